"""``recon reconstruct`` where the rotation axis is beside the middle: half acquisitions, scikit-image's sinograms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from recon.commands.reconstruct.main import main
from recon.operators import FanBeam, ParallelBeam
from recon.operators.tomography.beams import Geometry, offset_from_rotation_centre
from tests.datasets.scans.discs import VALUES, in_regions, integrals
from tests.operators.tomography.scans import chords

CENTRE, VIEWS, PIXELS, SPACING = 4.0, 90, 64, 0.5
OFFSET = offset_from_rotation_centre(CENTRE, PIXELS, SPACING)
DISTANCES = {"source_distance": 120.0, "detector_distance": 60.0}


@pytest.mark.parametrize("kind", ["parallel", "fan"])
def test_half_acquisition(kind: str, tmp_path: Path) -> None:
    """A full turn about an axis near the detector's edge: every line counts once."""
    pytest.importorskip("astra", reason="needs the extra ct")
    detector = {"detector_pixels": PIXELS, "detector_spacing": SPACING}
    geometry: Geometry = ParallelBeam.equispaced(
        (96, 96), 0.4, VIEWS, arc=2 * np.pi, detector_offset=OFFSET, **detector
    )
    entries: dict[str, object] = {}
    if kind == "fan":
        geometry = FanBeam.equispaced((96, 96), 0.4, VIEWS, **DISTANCES, **detector, detector_offset=OFFSET)
        entries = dict(DISTANCES)
    sinogram = chords(geometry, (1.0, -2.0), 10.0, 0.02)[0, 0].numpy()
    angles = np.asarray(geometry.angles)
    np.savez(
        tmp_path / "scan.npz",
        sinogram=sinogram,
        angles=angles,
        detector_spacing=SPACING,
        rotation_centre=CENTRE,
        **entries,
    )
    options = ["--size", "96", "--pixel-size", "0.4", "--method", "fbp", "--output", str(tmp_path / "out")]
    assert main(["--data", str(tmp_path / "scan.npz"), *options]) == 0
    found = np.load(tmp_path / "out" / "scan.npy").squeeze()
    x, y = np.meshgrid(*geometry.pixel_positions(), indexing="ij")
    distance = np.hypot(x - 1.0, y + 2.0)
    assert float(found[distance < 8].mean()) == pytest.approx(0.02, rel=0.02)
    assert abs(float(found[distance > 12].mean())) <= 0.0004


@pytest.mark.parametrize("size", [64, 65])
@pytest.mark.parametrize("circle", [True, False])
def test_sinogram_of_skimage(size: int, circle: bool, tmp_path: Path) -> None:
    pytest.importorskip("astra", reason="needs the extra ct")
    data, transform = pytest.importorskip("skimage.data"), pytest.importorskip("skimage.transform")
    image = transform.resize(data.shepp_logan_phantom(), (size, size), anti_aliasing=True)
    sinogram = transform.radon(image, np.arange(0, 180, 2.0), circle=circle)
    np.save(tmp_path / "scan.npy", sinogram.T)
    geometry = {
        "type": "parallel",
        "convention": "skimage",
        "image_shape": [size, size],
        "pixel_size": 1.0,
        "angles_degrees": {"start": 0, "arc": 180, "views": 90},
        "detector_pixels": len(sinogram),
        "detector_spacing": 1.0,
    }
    (tmp_path / "scan.yaml").write_text(yaml.safe_dump(geometry))
    options = ["--geometry", str(tmp_path / "scan.yaml"), "--method", "fbp", "--output", str(tmp_path / "out")]
    assert main(["--data", str(tmp_path / "scan.npy"), *options]) == 0
    found = np.load(tmp_path / "out" / "scan.npy").squeeze()
    theirs = transform.iradon(sinogram, np.arange(0, 180, 2.0), circle=circle, output_size=size)
    assert np.linalg.norm(found - image) <= 1.02 * np.linalg.norm(theirs - image)


def test_the_picture_of_a_displaced_detector_holds_what_a_full_turn_sees(tmp_path: Path) -> None:
    """A disc that is wider than the detector, twice as far as its farther end: pixels outside would be wrong inside."""
    pytest.importorskip("astra", reason="needs the extra ct")
    across = int(2 * (PIXELS - 1 - CENTRE + 0.5))
    geometry = ParallelBeam.equispaced(
        (across, across),
        SPACING,
        VIEWS,
        arc=2 * np.pi,
        detector_pixels=PIXELS,
        detector_spacing=SPACING,
        detector_offset=OFFSET,
    )
    sinogram = chords(geometry, (1.0, -2.0), 20.0, 0.02)[0, 0].numpy()
    np.savez(
        tmp_path / "scan.npz",
        sinogram=sinogram,
        angles=np.asarray(geometry.angles),
        detector_spacing=SPACING,
        rotation_centre=CENTRE,
    )
    for method in ("fbp", "tv"):
        out = tmp_path / method
        assert main(["--data", str(tmp_path / "scan.npz"), "--method", method, "--output", str(out)]) == 0
        found = np.load(out / "scan.npy").squeeze()
        assert found.shape == (across, across)
        x, y = np.meshgrid(*geometry.pixel_positions(), indexing="ij")
        distance = np.hypot(x - 1.0, y + 2.0)
        assert float(found[distance < 18].mean()) == pytest.approx(0.02, rel=0.02)
        assert abs(float(found[(distance > 21) & (np.hypot(x, y) < 27)].mean())) <= 0.0004


def test_total_variation_of_half_acquisition_is_that_of_a_centred_detector(tmp_path: Path) -> None:
    """60 views of a full turn about the detector's edge are the lines of 30 views of half a turn, at the same weight.

    What is wrong in such pictures comes of 30 directions, not of the displacement.
    """
    pytest.importorskip("astra", reason="needs the extra ct")
    scans = {"half": (np.arange(60) * 6.0, 64, 4.0), "centred": (np.arange(30) * 6.0, 119, 59.0)}
    found = {}
    for name, (degrees, pixels, centre) in scans.items():
        np.savez(
            tmp_path / f"{name}.npz",
            sinogram=integrals(degrees, pixels, SPACING, centre),
            angles_degrees=degrees,
            detector_spacing=SPACING,
            rotation_centre=centre,
        )
        options = ["--method", "tv", "--weight", "0.05", "--accuracy", "0.05", "--output", str(tmp_path / name)]
        assert main(["--data", str(tmp_path / f"{name}.npz"), *options]) == 0
        found[name] = in_regions(np.load(tmp_path / name / f"{name}.npy"), SPACING)
    assert found["half"] == pytest.approx(found["centred"], abs=2e-5)
    assert found["half"] == pytest.approx(VALUES, abs=2.5e-4)

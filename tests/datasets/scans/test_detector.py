"""Bad detector pixels of scans made here: dead, stuck, drifting, noisy; and what only looks like them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets.readers.pictures import DataError
from datasets.scans.detector import interpolated, largest_run, without_bad_pixels
from datasets.scans.reading import read_sinogram
from datasets.scans.rings import without_rings, without_stripes
from datasets.scans.scan import Scan
from datasets.sources.phantoms import SheppLogan
from recon.commands.main import main
from recon.operators import ParallelBeam, RayTransform
from tests.datasets.scans.disc_scans import BODY, HOLE, INSERT, Disc, dxchange, half_turn, means, sinogram

h5py = pytest.importorskip("h5py")

PHANTOM = (BODY, INSERT, HOLE)


def _scan(values: np.ndarray, angles: np.ndarray, **options: Any) -> Scan:
    return Scan(torch.from_numpy(values), torch.from_numpy(angles), 0.5, **options)


def _bad(values: np.ndarray, angles: np.ndarray, **options: Any) -> list[int]:
    return list(without_bad_pixels(_scan(values, angles, **options)).metadata.get("bad_pixels", []))


def _noisy(photons: float, seed: int = 0, **options: Any) -> np.ndarray:
    z = sinogram(half_turn(90), PHANTOM, **options)
    return np.asarray(-np.log(np.random.default_rng(seed).poisson(photons * np.exp(-z)).clip(1) / photons))


@pytest.mark.parametrize("column", [0, 12, 30, 40, 70, 95])
@pytest.mark.parametrize("kind", ["dead", "air", "stuck"])
@pytest.mark.parametrize("photons", [None, 1e4])
def test_pixels_that_do_not_change_are_found(column: int, kind: str, photons: float | None) -> None:
    """One pixel of a constant value, anywhere: it weighs 0 and its neighbours stand in for it."""
    clean = sinogram(half_turn(90), PHANTOM) if photons is None else _noisy(photons)
    values = clean.copy()
    values[:, column] = {"dead": 11.8, "air": -1.5, "stuck": 1.5}[kind]
    made = without_bad_pixels(_scan(values, half_turn(90)))
    assert made.metadata["bad_pixels"] == [column]
    assert made.weights is not None
    assert (made.weights[:, column] == 0).all()
    assert (made.weights[:, np.arange(96) != column] > 0).all()
    assert float((made.sinogram - torch.from_numpy(clean)).abs().max()) < 0.3
    assert str(column) in made.warnings[0]


@pytest.mark.parametrize("columns", [(20, 21), (60, 61, 62), (15, 33, 74)])
def test_several_pixels_are_found(columns: tuple[int, ...]) -> None:
    values = _noisy(1e4)
    values[:, columns] = 11.8
    assert _bad(values, half_turn(90)) == list(columns)


def test_drifting_noisy_and_dying_pixels_are_found() -> None:
    values = _noisy(1e5)
    values[:, 20] += np.linspace(0.1, 0.8, 90)
    values[:, 33] += 0.8 * np.random.default_rng(1).standard_normal(90)
    values[30:, 70] = 6.0
    assert _bad(values, half_turn(90)) == [20, 33, 70]


@pytest.mark.parametrize("arc", [math.pi, 2 * math.pi])
@pytest.mark.parametrize("seed", range(8))
def test_objects_are_no_bad_pixels(arc: float, seed: int) -> None:
    """Clean scans, among them pins and metal on the axis and shells around it, noisy or not, are left alone."""
    rng = np.random.default_rng(seed)
    centre = 47.5 + rng.uniform(-5, 5)
    objects = [BODY, INSERT, Disc(0, 0, rng.choice([0.3, 0.6, 1.0]), rng.choice([0.1, 0.4]))]
    objects += [Disc(0, 0, 12, 0.05), Disc(0, 0, 11.5, -0.05)]
    objects += [Disc(*rng.uniform(-10, 10, 2), rng.choice([0.4, 1.0, 3.0]), rng.choice([-0.015, 0.1, 0.4]))]
    views = int(rng.choice([20, 60, 180]))
    angles = np.arange(views) * arc / views
    z = sinogram(angles, objects, centre=centre)
    if seed % 2:
        z = -np.log(rng.poisson(1e4 * np.exp(-z)).clip(0.5) / 1e4)
    assert _bad(z, angles) == []
    assert _bad(z, angles, rotation_centre=centre) == []


@pytest.mark.parametrize(("size", "views"), [(64, 30), (128, 30), (128, 60)])
def test_shells_in_few_views_are_no_noise(size: int, views: int) -> None:
    """The skull of the Shepp-Logan phantom comes and goes at the pixels where it turns."""
    geometry = ParallelBeam.equispaced((size, size), 1.0, views)
    z = RayTransform(geometry, cache=False)(SheppLogan(size)[0][None].double())[0, 0].numpy()
    assert _bad(z, np.asarray(geometry.angles)) == []


@pytest.mark.parametrize("size", [64, 65])
def test_air_at_the_ends_of_the_detector_is_no_stuck_pixel(size: int) -> None:
    """Exact zeros beside an object that comes and goes, as in scikit-image's sinograms."""
    transform, data = pytest.importorskip("skimage.transform"), pytest.importorskip("skimage.data")
    image = transform.resize(data.shepp_logan_phantom(), (size, size), anti_aliasing=True)
    values = transform.radon(image, np.arange(0, 180, 2.0), circle=True).T
    assert _bad(values, np.deg2rad(np.arange(0, 180, 2.0))) == []


def test_a_pixel_on_the_axis_is_said_not_taken() -> None:
    """A pin on the axis cannot be told from a pixel with an offset: data stay, with a warning."""
    z = sinogram(half_turn(90), [*PHANTOM, Disc(0, 0, 0.3, 0.5)], pixels=97, centre=48)
    made = without_bad_pixels(_scan(z, half_turn(90)))
    assert "bad_pixels" not in made.metadata
    np.testing.assert_array_equal(made.sinogram.numpy(), z)
    assert "48" in made.warnings[0]
    assert "axis" in made.warnings[0]


def test_interpolation() -> None:
    values = np.tile(np.arange(6.0), (2, 1))
    wrong = np.array([False, True, True, False, False, True])
    spoiled = np.where(wrong, 99.0, values)
    expected = np.where(wrong & (np.arange(6) == 5), 4.0, values)  # the nearest, at the end
    np.testing.assert_allclose(interpolated(spoiled, wrong), expected)
    with pytest.raises(DataError):
        interpolated(spoiled, np.ones(6, bool))
    assert largest_run(2048) > largest_run(32) == 3


def test_real_scans_are_left_alone(shared_data: Path) -> None:
    for row in (0, 1):
        scan = read_sinogram(shared_data / "tomopy_tooth" / "tooth.h5", row=row)
        assert "bad_pixels" not in scan.metadata
    for file in sorted((shared_data / "htc2022").glob("*_full.mat")):
        scan = read_sinogram(file)
        for views in (slice(None), slice(0, 60), slice(200, 381), slice(None, None, 24)):
            part = scan.select(views)
            assert without_bad_pixels(part).warnings == part.warnings


@pytest.mark.parametrize("columns", [(40,), (31, 32), (47,)])
def test_files_with_bad_pixels(tmp_path: Path, columns: tuple[int, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """In counts whose flat field is fine: what they hold does not matter, and the report names them."""
    z = sinogram(half_turn(60), PHANTOM, pixels=64, pitch=0.75)
    command = ["reconstruct", "--task", "ct", "--output", str(tmp_path), "--weight", "0.01", "--accuracy", "0.3"]
    images = []
    for name, value in (("dead", 100.0), ("stuck", 65000.0)):
        dxchange(tmp_path / f"{name}.h5", z, bad=dict.fromkeys(columns, value))
        assert main([*command, "--data", str(tmp_path / f"{name}.h5"), "--method", "tv"]) == 0
        images.append(np.load(tmp_path / f"{name}.npy"))
        entry = json.loads((tmp_path / "report.json").read_text())["images"][0]
        assert entry["details"]["bad_pixels"] == list(columns)
        assert abs(entry["details"]["rotation_centre"]["detector_pixel"] - 31.5) < 0.1
        assert any(str(columns[0]) in text and "weigh 0" in text for text in entry["warnings"])
    np.testing.assert_allclose(images[0], images[1], atol=1e-9)
    printed = capsys.readouterr()
    assert "rotation centre" in printed.out
    assert "did not measure" in printed.err


def test_values_are_right_beside_a_dead_pixel(tmp_path: Path) -> None:
    """TV within 2 % of the phantom, as without the dead pixel; FBP near to it."""
    z = sinogram(half_turn(60), PHANTOM, pixels=64, pitch=0.75)
    dxchange(tmp_path / "a.h5", z, bad={25: 100.0})
    command = ["reconstruct", "--task", "ct", "--output", str(tmp_path), "--data", str(tmp_path / "a.h5")]
    assert main([*command, "--method", "fbp"]) == 0
    assert means(np.load(tmp_path / "a.npy") / 0.75, 0.75)[:3] == pytest.approx([0.02, 0.04, 0.005], abs=0.0015)
    assert main([*command, "--method", "tv", "--weight", "1e-3", "--accuracy", "0.02"]) == 0
    body, insert, hole, air = means(np.load(tmp_path / "a.npy") / 0.75, 0.75)
    assert body == pytest.approx(0.020, rel=0.02)
    assert insert == pytest.approx(0.040, rel=0.02)
    assert hole == pytest.approx(0.005, abs=0.0004)  # 2 % of the edge of 0.02 that is blurred
    assert air == pytest.approx(0.0, abs=0.0004)


# --- rings -----------------------------------------------------------------------------------------------------------


def test_stripes_are_removed() -> None:
    """Exactly, where all pixels see the same values in other orders; scans without stripes hardly change."""
    rng = np.random.default_rng(0)
    clean = rng.permuted(np.tile(rng.random((180, 1)), (1, 40)), axis=0)
    stripes = np.zeros(40)
    stripes[[5, 11, 12, 20, 33]] = [0.1, -0.05, 0.2, 0.01, -0.4]
    np.testing.assert_allclose(without_stripes(clean + stripes, 5), clean, atol=1e-12)
    z = sinogram(half_turn(180), PHANTOM, centre=46.0)
    assert float(np.abs(without_stripes(z, 5) - z).mean()) < 0.01 * float(z.max())


def test_ring_filter_of_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", sinogram=sinogram(half_turn(60), PHANTOM), angles=half_turn(60), detector_spacing=0.5)
    plain, made = read_sinogram(tmp_path / "a.npz"), read_sinogram(tmp_path / "a.npz", ring_filter=5)
    np.testing.assert_array_equal(made.sinogram.numpy(), without_stripes(plain.sinogram.numpy(), 5))
    assert made.metadata["ring_filter"] == 5
    for size in (1, 4, 97, -3):
        with pytest.raises(DataError, match="odd"):
            without_rings(plain, size)

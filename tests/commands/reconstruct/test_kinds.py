"""``recon reconstruct`` on plausible sinograms of every kind: the right values, or a refusal that says what to give."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import tifffile
import torch
import yaml

from recon.operators import ParallelBeam
from recon.reconstruction.noise import sinogram_noise
from tests.commands.reconstruct.slices import refused, run, write_slice
from tests.datasets.scans.discs import VALUES, in_regions, integrals, write_dxchange

h5py = pytest.importorskip("h5py")
pytest.importorskip("astra", reason="needs the extra ct")

PIXELS, PITCH = 64, 0.75
HALF_TURN, TWO_TURNS, GOLDEN = np.arange(48) * 3.75, np.arange(96) * 7.5, np.arange(48) * 111.246117975 % 180
FBP = ("--task", "ct", "--method", "fbp")


def z(degrees: np.ndarray) -> np.ndarray:
    return integrals(degrees, PIXELS, PITCH)


def scan_npz(path: Path, values: np.ndarray, degrees: np.ndarray = HALF_TURN) -> Path:
    np.savez(path, sinogram=values, angles_degrees=degrees, detector_spacing=PITCH)
    return path


def geometry_file(path: Path) -> tuple[str, ...]:
    angles = tuple(np.deg2rad(HALF_TURN).tolist())
    made = ParallelBeam((PIXELS, PIXELS), PITCH, angles, detector_pixels=PIXELS, detector_spacing=PITCH)
    path.write_text(yaml.safe_dump(made.to_dict()))
    return "--geometry", str(path)


def fbp(path: Path, *options: str, scale: float = 1.0) -> np.ndarray:
    """Values in the regions, in 1/mm; ``scale`` is the pitch where the file has none."""
    _, output, report = run(path, *FBP, *options)
    assert report["details"]["geometry"]["image_shape"] == [PIXELS, PIXELS]
    image = np.load(output / f"{path.stem}.npy")
    shutil.rmtree(output)
    return in_regions(image, PITCH) / scale


@pytest.fixture
def plain(tmp_path: Path) -> np.ndarray:
    values = fbp(scan_npz(tmp_path / "plain.npz", z(HALF_TURN)))
    np.testing.assert_allclose(values, VALUES, atol=0.0015)
    return values


def test_the_unit_of_counts_does_not_matter(tmp_path: Path, plain: np.ndarray) -> None:
    """Normalized, raw, and raw in a file without flat fields: the same values as of the line integrals."""
    rays = z(HALF_TURN)
    raw = write_dxchange(tmp_path / "raw.h5", rays, HALF_TURN)
    np.testing.assert_allclose(fbp(raw, "--rotation-centre", "31.5", scale=PITCH), plain, atol=1e-6)
    one = np.ones((2, 1, PIXELS))
    changes = {"data": np.exp(-rays)[:, None], "data_white": one, "data_dark": 0 * one}
    normalized = write_dxchange(tmp_path / "normalized.h5", rays, HALF_TURN, **changes)
    np.testing.assert_allclose(fbp(normalized, "--rotation-centre", "31.5", scale=PITCH), plain, atol=1e-6)
    bare = write_dxchange(tmp_path / "bare.h5", rays, HALF_TURN, data_white=None, data_dark=None)
    refused(r"bare\.h5: has no flat fields .*--flat", bare, *FBP)
    for given in (("1000", "100"), (str(raw), str(raw))):
        options = ("--flat", given[0], "--dark", given[1], "--rotation-centre", "31.5")
        np.testing.assert_allclose(fbp(bare, *options, scale=PITCH), plain, atol=1e-6)


def test_angles_from_the_command_line(tmp_path: Path, plain: np.ndarray) -> None:
    path = write_dxchange(tmp_path / "a.h5", z(HALF_TURN), None)
    refused(r"a\.h5: has no dataset 'exchange/theta'.*--angles", path, *FBP)
    np.save(tmp_path / "angles.npy", HALF_TURN)
    (tmp_path / "angles.txt").write_text("\n".join(str(a) for a in HALF_TURN))
    for given in ("180", str(tmp_path / "angles.npy"), str(tmp_path / "angles.txt")):
        options = ("--angles", given, "--rotation-centre", "31.5")
        np.testing.assert_allclose(fbp(path, *options, scale=PITCH), plain, atol=1e-6)
    _, output, report = run(path, *FBP, "--angles", "180")
    shutil.rmtree(output)
    assert "48 views from 0 to 176.25 degrees in steps of 3.75" in report["warnings"][0]
    (tmp_path / "angles.txt").write_text("\n".join(str(a) for a in np.deg2rad(HALF_TURN)))
    refused("look like radians", path, *FBP, "--angles", str(tmp_path / "angles.txt"))
    refused(
        r"none\.txt: no such file; --angles is an arc in degrees", path, *FBP, "--angles", str(tmp_path / "none.txt")
    )
    refused("47 angles for a sinogram of shape", path, *FBP, "--angles", str(_shorter(tmp_path)))
    (tmp_path / "angles.txt").write_text("one two")
    refused(r"angles\.txt: cannot be read as angles", path, *FBP, "--angles", str(tmp_path / "angles.txt"))


def _shorter(folder: Path) -> Path:
    np.save(folder / "shorter.npy", HALF_TURN[:-1])
    return folder / "shorter.npy"


@pytest.mark.parametrize("degrees", [HALF_TURN, GOLDEN, TWO_TURNS], ids=["half turn", "golden", "two turns"])
def test_views_in_any_order_with_tv(tmp_path: Path, degrees: np.ndarray) -> None:
    path = write_dxchange(tmp_path / "a.h5", z(degrees), degrees)
    _, output, report = run(path, "--method", "tv", "--weight", "0.02", "--accuracy", "0.05")
    values = in_regions(np.load(output / "a.npy"), PITCH) / PITCH
    np.testing.assert_allclose(values, VALUES, atol=0.0004)
    assert report["details"]["rotation_centre"]["detector_pixel"] == pytest.approx(31.5, abs=0.01)
    np.testing.assert_allclose(fbp(path, scale=PITCH), VALUES, atol=0.0015)


def test_photons_of_averaged_views_count_twice(tmp_path: Path) -> None:
    path = write_dxchange(tmp_path / "a.h5", z(TWO_TURNS), TWO_TURNS)
    options = ("--method", "tv", "--weight", "0.02", "--photons", "1000")
    _, _, twice = run(path, *options)
    assert twice["details"]["views_averaged"] == 96
    assert twice["noise"] == pytest.approx((2000 * np.exp(-z(TWO_TURNS)).mean()) ** -0.5, rel=1e-3)


def test_nxtomo(tmp_path: Path, plain: np.ndarray) -> None:
    frames = np.concatenate(
        [np.full((2, PIXELS), 100.0), np.full((2, PIXELS), 1000.0), 100 + 900 * np.exp(-z(HALF_TURN))]
    )
    with h5py.File(tmp_path / "a.nxs", "w") as file:
        group = file.create_group("entry/tomo_entry/data")
        group["data"], group["image_key"] = frames[:, None], [2, 2, 1, 1] + 48 * [0]
        group["rotation_angle"] = np.concatenate([np.zeros(4), HALF_TURN])
    np.testing.assert_allclose(fbp(tmp_path / "a.nxs", scale=PITCH), plain, atol=1e-5)


def test_arrays_with_a_geometry(tmp_path: Path, plain: np.ndarray) -> None:
    """NumPy, TIFF and MATLAB in the orientation of FIPS, of line integrals and of counts."""
    options = geometry_file(tmp_path / "scan.yaml")
    rays = z(HALF_TURN)
    np.save(tmp_path / "a.npy", rays)
    tifffile.imwrite(tmp_path / "b.tif", rays.astype(np.float32))
    scipy.io.savemat(tmp_path / "c.mat", {"sinogram": rays.T, "A": np.eye(2)})
    for name in ("a.npy", "b.tif", "c.mat"):
        np.testing.assert_allclose(fbp(tmp_path / name, *options), plain, atol=1e-6)
    tifffile.imwrite(tmp_path / "b.tif", np.rint(60000 * np.exp(-rays)).astype(np.uint16))
    refused(r"b\.tif: its values.*as counts are", tmp_path / "b.tif", *FBP, *options)
    np.testing.assert_allclose(fbp(tmp_path / "b.tif", *options, "--flat", "60000"), plain, atol=1e-5)
    tifffile.imwrite(tmp_path / "b.tif", rays.T.astype(np.float32))
    refused(r"b\.tif: 48 angles .* unless the sinogram is transposed", tmp_path / "b.tif", *FBP, *options)
    for option in ("--angles", "--rotation-centre"):
        refused(f"{option} does not go with --geometry", tmp_path / "a.npy", *FBP, *options, option, "30")


def test_the_geometry_file_has_the_order_of_the_views(tmp_path: Path, plain: np.ndarray) -> None:
    """Angles in the data file that decrease do not turn the rows around once the geometry says otherwise."""
    options = geometry_file(tmp_path / "scan.yaml")
    scan_npz(tmp_path / "a.npz", z(HALF_TURN), HALF_TURN[::-1])
    np.testing.assert_allclose(fbp(tmp_path / "a.npz", *options), plain, atol=1e-6)


def test_a_tiff_that_fits_both_ways_is_refused(tmp_path: Path) -> None:
    geometry = ParallelBeam.equispaced((48, 48), 1.0, 48, detector_pixels=48)
    (tmp_path / "scan.yaml").write_text(yaml.safe_dump(geometry.to_dict()))
    tifffile.imwrite(tmp_path / "a.tif", np.ones((48, 48), np.float32))
    refused("of both the sinogram and the picture", tmp_path / "a.tif", *FBP, "--geometry", str(tmp_path / "scan.yaml"))


def test_raw_counts(tmp_path: Path, plain: np.ndarray) -> None:
    counts = np.rint(60000 * np.exp(-z(HALF_TURN))).astype(np.uint16)
    path = scan_npz(tmp_path / "a.npz", counts)
    refused(r"a\.npz: its values.*--flat 60000.*--counts --photons 60000", path, *FBP)
    for options in (("--flat", "60000"), ("--counts", "--photons", "60000"), ("--flat", "60000", "--photons", "1e5")):
        np.testing.assert_allclose(fbp(path, *options), plain, atol=1e-5)
    refused("--counts does not go with --flat", path, *FBP, "--counts", "--photons", "60000", "--flat", "60000")
    transmissions = scan_npz(tmp_path / "b.npz", np.exp(-z(HALF_TURN)))
    refused("they are not numbers of photons; give the value of air", transmissions, *FBP, "--counts", "--photons", "1")
    np.testing.assert_allclose(fbp(transmissions, "--flat", "1"), plain, atol=1e-6)


def test_radians_in_the_field_for_degrees(tmp_path: Path) -> None:
    path = scan_npz(tmp_path / "a.npz", z(HALF_TURN)[:32], np.deg2rad(HALF_TURN[:32]))
    refused(r"a\.npz: the 32 angles span .* look like radians", path, *FBP)


def test_rays_without_light_weigh_nothing(tmp_path: Path) -> None:
    """Measured with TV and without --photons: what opaque rays would say changes nothing, and they are counted."""
    changes: dict[str, Any] = {"data": (100 + 900 * np.exp(-z(HALF_TURN)))[:, None]}
    rng = np.random.default_rng(0)
    opaque = rng.random(changes["data"].shape) < 0.03
    options = ("--method", "tv", "--weight", "0.02", "--rotation-centre", "31.5")
    changes["data"][opaque] = 100.0
    path = write_dxchange(tmp_path / "a.h5", z(HALF_TURN), HALF_TURN, **changes)
    _, output, report = run(path, *options)
    assert f"{opaque.sum()} of {opaque.size} rays" in report["warnings"][0]
    np.testing.assert_allclose(in_regions(np.load(output / "a.npy"), PITCH) / PITCH, VALUES, atol=0.0006)
    changes["data"][rng.random(opaque.shape) < 0.7] = 100.0
    write_dxchange(path, z(HALF_TURN), HALF_TURN, **changes)
    _, _, report = run(path, *FBP, "--rotation-centre", "31.5", "--noise", "0.1")
    assert "Photon starvation: most rays measured nothing" in report["warnings"][0]


@pytest.mark.parametrize("photons", ["0.3", "1e6"])
def test_starvation_in_a_simulation(tmp_path: Path, photons: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_slice(tmp_path / "a.dcm")
    options = ("--task", "ct", "--views", "20", "--photons", photons, "--method", "tv", "--weight", "0.1")
    _, _, report = run(tmp_path / "a.dcm", *options)
    said = "Photon starvation" in " ".join(report["warnings"])
    assert said == (photons == "0.3")
    assert ("Photon starvation" in capsys.readouterr().err) == said


def test_line_integrals_at_the_floor_of_given_photons(tmp_path: Path) -> None:
    """Somebody else took the logarithm, with half a photon for none."""
    rays = z(HALF_TURN)
    rays[:, 30:34] = np.log(2 * 500)
    _, _, report = run(scan_npz(tmp_path / "a.npz", rays), "--method", "tv", "--weight", "0.1", "--photons", "500")
    assert any(f"{4 * 48} of {rays.size} rays" in text for text in report["warnings"])


def test_options_of_measurements_do_not_go_with_pictures(tmp_path: Path) -> None:
    write_slice(tmp_path / "a.dcm")
    for option, value in (("--flat", "1"), ("--dark", "1"), ("--angles", "180")):
        refused(f"{option} does not go with", tmp_path / "a.dcm", *FBP, "--views", "9", "--photons", "9", option, value)


def test_noise_of_the_rays_that_were_measured() -> None:
    """Rays at the floor, more than half of them, do not spoil its estimate."""
    generator = torch.Generator().manual_seed(0)
    values = torch.from_numpy(z(HALF_TURN)) + 0.02 * torch.randn(48, PIXELS, generator=generator)
    measured = torch.ones(48, PIXELS, dtype=torch.bool)
    measured[:, ::5] = measured[:30] = False
    values[~measured] = 11.8
    assert sinogram_noise(values, measured) == pytest.approx(0.02, rel=0.15)
    with pytest.raises(ValueError, match=r"too few rays were measured \(0 of 3072 rays\)"):
        sinogram_noise(values, torch.zeros_like(measured))

"""Counts to line integrals: any common unit, rays without light, flat and dark fields from outside of the file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from datasets.physics import MIN_TRANSMISSION, line_integrals
from datasets.readers.pictures import DataError
from datasets.scans.counts import attenuation, field_row, starved
from datasets.scans.reading import read_sinogram
from tests.datasets.scans.discs import integrals, write_dxchange

pytest.importorskip("h5py")

DEGREES = np.arange(12) * 15.0
Z = integrals(DEGREES, 40, 1.2)


def test_a_common_factor_of_flat_dark_and_data_changes_nothing(tmp_path: Path) -> None:
    """Normalized data (flat 1, dark 0) are one of the cases: every ray below 1/2 was lost."""
    rng = np.random.default_rng(0)
    for trial in range(30):
        dark, factor = 200 * rng.random((1, 1, 40)), 10 ** rng.uniform(-7, 7)
        beam = rng.uniform(100, 3000) * (0.5 + rng.random((1, 1, 40)))
        z = (4 * rng.random() * Z)[:, None] + 0.1 * rng.standard_normal((12, 1, 40))
        z[rng.random(z.shape) < 0.02] = 40.0  # rays that no light passes
        frames = {"data": dark + beam * np.exp(-z), "data_white": dark + beam, "data_dark": dark}
        photons = None if trial % 2 else 10 ** rng.uniform(2, 6)
        scans = []
        for scale in (1.0, factor, 1 / frames["data_white"].max()):
            scaled: dict[str, Any] = {key: scale * value for key, value in frames.items()}
            path = write_dxchange(tmp_path / "a.h5", z[:, 0], DEGREES, **scaled)
            scans.append((scale, read_sinogram(path, photons=photons)))
        _, first = scans[0]
        assert first.weights is not None
        assert (first.weights[torch.from_numpy(z[:, 0] == 40.0)] == 0).all()
        for scale, other in scans[1:]:
            torch.testing.assert_close(other.sinogram, first.sinogram, rtol=1e-6, atol=1e-6)
            assert other.weights is not None
            torch.testing.assert_close(other.weights / scale, first.weights, rtol=1e-6, atol=1e-6)
            assert other.warnings == first.warnings


def test_floor_of_flat_fields_and_of_photons() -> None:
    counts = torch.tensor([0.0, 0.2, 1.0], dtype=torch.float64)
    flat = torch.ones(3, dtype=torch.float64)
    expected = torch.tensor([-math.log(MIN_TRANSMISSION), -math.log(0.2), 0.0], dtype=torch.float64)
    torch.testing.assert_close(line_integrals(counts, flat), expected)
    torch.testing.assert_close(line_integrals(1000 * counts, 1000 * flat), expected)
    # a number is a number of photons
    assert line_integrals(counts, 1000.0)[0].item() == pytest.approx(math.log(2000))
    assert line_integrals(counts, flat, floor=0.1)[0].item() == pytest.approx(math.log(10))
    with pytest.raises(ValueError, match="floor of counts is 0"):
        line_integrals(counts, flat, floor=0.0)


def test_rays_without_light_are_counted_and_weigh_nothing() -> None:
    data = np.full((10, 20), 600.0)
    data[:2] = 100.0
    data[2, 3] = 90.0
    made = attenuation(data, np.full(20, 1100.0), np.full(20, 100.0), Path("a.h5"))
    assert (made.weights == 0).sum() == 41
    (said,) = starved(made.weights, [], Path("a.h5"), None)
    assert "a.h5: 41 of 200 rays (20 %) have less light than 1/131070 of the flat field" in said
    assert "starvation" not in said
    data[:6] = 100.0
    known = attenuation(data, np.full(20, 1100.0), np.full(20, 100.0), Path("a.h5"), photons=50.0)
    (said,) = starved(known.weights, [], Path("a.h5"), 50.0)
    assert "120 of 200 rays (60 %) have less light than half a photon" in said
    assert "Photon starvation: most rays" in said
    assert float(known.sinogram[0, 0]) == pytest.approx(math.log(100))
    enough = attenuation(data + 100, np.full(20, 1100.0), np.full(20, 100.0), Path("a.h5"))
    assert starved(enough.weights, [], Path("a.h5"), None) == ()


def test_rays_of_dead_pixels_are_not_counted_again(tmp_path: Path) -> None:
    """They are said as pixels; rays without light at other pixels are said as rays."""
    z = integrals(DEGREES, 40, 1.2)
    z[:, 17] = np.inf
    (said,) = read_sinogram(write_dxchange(tmp_path / "a.h5", z, DEGREES)).warnings
    assert "1 of 40 detector pixels did not measure (no light: 17)" in said
    z[2, 25], z[3, 25] = np.inf, np.inf
    pixels, rays = read_sinogram(write_dxchange(tmp_path / "a.h5", z, DEGREES)).warnings
    assert "(no light: 17)" in pixels
    assert "2 of 468 rays" in rays
    # as many as this are no defects: the object lets no light pass
    z[:, 12:28] = np.inf
    assert "192 of 480 rays" in " ".join(read_sinogram(write_dxchange(tmp_path / "a.h5", z, DEGREES)).warnings)


def test_fields_from_numbers_arrays_and_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(900, 1100, (4, 3, 5)).astype(np.uint16)
    place, path = (1, 3, 5), Path("scan.h5")
    expected = frames[:, 1].mean(0)
    np.save(tmp_path / "f.npy", frames)
    tifffile.imwrite(tmp_path / "f.tif", frames, photometric="minisblack")
    write_dxchange(tmp_path / "f.h5", np.zeros((2, 5)), None, data_white=frames, data_dark=frames)
    for name in ("f.npy", "f.tif", "f.h5"):
        for kind in ("flat", "dark"):
            np.testing.assert_allclose(field_row(tmp_path / name, kind, place, path), expected)
    np.testing.assert_array_equal(field_row(7.0, "flat", place, path), np.full(5, 7.0))
    np.testing.assert_array_equal(field_row(frames[0, 0], "flat", place, path), frames[0, 0])
    np.testing.assert_array_equal(field_row(frames[0], "flat", place, path), frames[0, 1])
    np.testing.assert_allclose(field_row(frames[:, 0], "flat", (0, 1, 5), path), frames[:, 0].mean(0))
    for bad, message in (
        (frames[:, :, :4], r"scan\.h5: a flat field of shape \(4, 3, 4\); valid are one number, \(5,\)"),
        (np.full(5, np.nan), "the flat field has 5 of 5 values that are NaN"),
        (0.0, "the flat count is 0; it must be positive"),
        (tmp_path / "nothing.npy", r"nothing\.npy: no such file"),
        (tmp_path / "f.jpg", r"f\.jpg: unknown kind of file"),
    ):
        with pytest.raises(DataError, match=message):
            field_row(bad, "flat", place, path)
    (tmp_path / "f.tif").write_bytes(b"II*")
    with pytest.raises(DataError, match=r"f\.tif: cannot be read"):
        field_row(tmp_path / "f.tif", "flat", place, path)


def test_fields_replace_those_of_the_file(tmp_path: Path) -> None:
    """What is given on purpose is not ignored because the file has its own."""
    path = write_dxchange(tmp_path / "a.h5", Z, DEGREES)
    np.testing.assert_allclose(read_sinogram(path).sinogram.numpy(), Z, atol=1e-12)
    double = read_sinogram(path, flat=1900.0)
    np.testing.assert_allclose(double.sinogram.numpy(), Z + math.log(2), atol=1e-12)
    path = write_dxchange(tmp_path / "b.h5", Z, None, data_white=None, data_dark=None)
    given = read_sinogram(path, flat=np.full(40, 1000.0), dark=100.0, angles_degrees=180.0)
    np.testing.assert_allclose(given.sinogram.numpy(), Z, atol=1e-12)
    np.testing.assert_allclose(given.angles.numpy(), np.deg2rad(DEGREES))
    assert "12 views from 0 to 165 degrees in steps of 15" in given.warnings[0]


def test_counts_in_files_of_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.rint(50000 * np.exp(-Z)).astype(np.uint16))
    options: dict[str, Any] = {"angles_degrees": DEGREES, "detector_spacing": 1.2}
    scan = read_sinogram(path, flat=50000.0, **options)
    np.testing.assert_allclose(scan.sinogram.numpy(), Z, atol=1e-4)
    assert scan.weights is not None
    with pytest.raises(DataError, match=r"a\.tif: a dark field belongs to counts"):
        read_sinogram(path, dark=10.0, **options)
    np.save(tmp_path / "a.npy", np.exp(-Z))
    scan = read_sinogram(tmp_path / "a.npy", flat=1.0, **options)
    np.testing.assert_allclose(scan.sinogram.numpy(), Z, atol=1e-12)
    with pytest.raises(DataError, match="lie between 0 and half a photon, so they are not numbers of photons"):
        read_sinogram(tmp_path / "a.npy", flat=1.0, photons=1.0, **options)


def test_real_scan_that_is_normalized(shared_data: Path, tmp_path: Path) -> None:
    """The tooth after its flat field, as other programs store it: the same line integrals as from raw counts."""
    h5py = pytest.importorskip("h5py")
    path = shared_data / "tomopy_tooth" / "tooth.h5"
    with h5py.File(path, "r") as file:
        data, white, dark = (np.asarray(file[f"exchange/{k}"][:], float) for k in ("data", "data_white", "data_dark"))
        theta = np.asarray(file["exchange/theta"])
    white, dark = white.mean(0, keepdims=True), dark.mean(0, keepdims=True)
    one = np.ones_like(white)
    frames = {"data": (data - dark) / (white - dark), "data_white": one, "data_dark": 0 * one}
    write_dxchange(tmp_path / "a.h5", data[:, 0], theta, **frames)
    raw, normalized = read_sinogram(path), read_sinogram(tmp_path / "a.h5")
    torch.testing.assert_close(normalized.sinogram, raw.sinogram, rtol=0, atol=1e-9)
    assert raw.warnings == ()

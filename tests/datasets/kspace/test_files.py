"""Files of k-space: where the zero frequency is, and raw data of ISMRMRD."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets import DataError, FastMRIFolder, read_kspace
from datasets.kspace.files import load_kspace, read_noise_scan
from recon.operators.mri.cartesian import centred_fft
from recon.operators.mri.sampling import random_lines
from tests.datasets.kspace.test_noise import discs, noise, white

h5py = pytest.importorskip("h5py")


def _kspace(shape: tuple[int, int] = (48, 45), coils: int = 1) -> torch.Tensor:
    gains = torch.linspace(1, 2, coils).double()[:, None, None]
    return centred_fft(gains * discs(shape)) + noise(white(coils, 0.01), shape)


# --- the zero frequency ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [(1,), (2,), (1, 2)])
@pytest.mark.parametrize("shape", [(48, 48), (47, 50)])
def test_zero_frequency_in_the_corner(tmp_path: Path, axes: tuple[int, ...], shape: tuple[int, int]) -> None:
    right = _kspace(shape, 2)
    np.save(tmp_path / "k.npy", torch.fft.ifftshift(right, dim=axes).numpy())
    made = load_kspace(tmp_path / "k.npy")
    assert torch.equal(made.values, right)
    assert len(made.warnings) == 1
    assert "zero frequency is in the corner" in made.warnings[0]
    with pytest.warns(UserWarning, match="zero frequency is in the corner"):
        assert torch.equal(read_kspace(tmp_path / "k.npy"), right)


def test_undersampled_in_the_corner(tmp_path: Path) -> None:
    right = _kspace((48, 48), 2) * random_lines((48, 48), 3.0, 8, 0)
    np.save(tmp_path / "k.npy", torch.fft.ifftshift(right, dim=(1, 2)).numpy())
    assert torch.equal(load_kspace(tmp_path / "k.npy").values, right)


@pytest.mark.parametrize("moved", [(0, 0), (2, -3), (5, 0)])
def test_zero_frequency_in_the_middle_or_near(tmp_path: Path, moved: tuple[int, int]) -> None:
    given = _kspace((48, 48)).roll(moved, (1, 2))
    np.save(tmp_path / "k.npy", given.numpy())
    made = load_kspace(tmp_path / "k.npy")
    assert torch.equal(made.values, given)
    assert not made.warnings


def test_zero_frequency_elsewhere_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "k.npy", _kspace((48, 48)).roll((0, 12), (1, 2)).numpy())
    with pytest.raises(DataError, match=r"k\.npy: its energy is concentrated around \(24, 36\).*shift it"):
        load_kspace(tmp_path / "k.npy")


def test_noise_has_no_zero_frequency(tmp_path: Path) -> None:
    np.save(tmp_path / "k.npy", noise(white(2, 1.0), (40, 40)).numpy())
    assert not load_kspace(tmp_path / "k.npy").warnings


def test_fastmri_in_the_corner(tmp_path: Path) -> None:
    right = _kspace((48, 48))
    for name, values in (("right", right), ("corner", torch.fft.ifftshift(right, dim=(1, 2)))):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["kspace"] = values.numpy()
    expected = FastMRIFolder(tmp_path / "right.h5")[0]
    with pytest.warns(UserWarning, match="zero frequency is in the corner"):
        found = FastMRIFolder(tmp_path / "corner.h5")[0]
    assert torch.equal(found, expected)
    assert load_kspace(tmp_path / "corner.h5").warnings


# --- ISMRMRD ---------------------------------------------------------------------------------------------------------

_COUNTERS = [(name, "<u2") for name in ("kspace_encode_step_1", "kspace_encode_step_2", "average", "slice")]
_COUNTERS += [(name, "<u2") for name in ("contrast", "phase", "repetition", "set", "segment")]
_HEAD = np.dtype(
    [
        ("version", "<u2"),
        ("flags", "<u8"),
        ("number_of_samples", "<u2"),
        ("active_channels", "<u2"),
        ("discard_pre", "<u2"),
        ("discard_post", "<u2"),
        ("center_sample", "<u2"),
        ("trajectory_dimensions", "<u2"),
        ("sample_time_us", "<f4"),
        ("idx", np.dtype(_COUNTERS)),
    ]
)
_NOISE, _REVERSE = 1 << 18, 1 << 21


def _xml(matrix: tuple[int, int], extent: tuple[float, float], readout: float, trajectory: str = "cartesian") -> str:
    def space(name: str, x: int, fov: float) -> str:
        return (
            f"<{name}><matrixSize><x>{x}</x><y>{matrix[1]}</y><z>1</z></matrixSize><fieldOfView_mm><x>{fov}</x>"
            f"<y>{extent[1]}</y><z>5</z></fieldOfView_mm></{name}>"
        )

    return (
        '<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding>'
        + space("encodedSpace", matrix[0], extent[0])
        + space("reconSpace", round(matrix[0] * readout / extent[0]), readout)
        + f"<trajectory>{trajectory}</trajectory><encodingLimits><kspace_encoding_step_1><minimum>0</minimum>"
        f"<maximum>{matrix[1] - 1}</maximum><center>{matrix[1] // 2}</center></kspace_encoding_step_1></encodingLimits>"
        "</encoding></ismrmrdHeader>"
    )


def _line(values: np.ndarray, centre: int, step: int = 0, flags: int = 0, **more: Any) -> tuple[Any, Any, Any]:
    """An acquisition of (channels, samples)."""
    head = np.zeros((), _HEAD)
    head["flags"], head["number_of_samples"], head["active_channels"] = flags, values.shape[1], len(values)
    head["center_sample"], head["sample_time_us"] = centre, more.pop("dwell", 5.0)
    head["idx"]["kspace_encode_step_1"] = step
    for name, value in more.items():
        (head["idx"] if name in head["idx"].dtype.names else head)[name] = value
    flat = np.ascontiguousarray(values.astype(np.complex64)).view(np.float32).ravel()
    return head[()], np.zeros(0, np.float32), flat


def _write(path: Path, lines: list[tuple[Any, Any, Any]], xml: str) -> Path:
    real = h5py.vlen_dtype(np.dtype("<f4"))
    kind = np.dtype([("head", _HEAD), ("traj", real), ("data", real)])
    with h5py.File(path, "w") as file:
        table = file.create_dataset("dataset/data", (len(lines),), kind)
        for k, line in enumerate(lines):
            table[k] = line
        file.create_dataset("dataset/xml", (1,), h5py.string_dtype())[0] = xml
    return path


def _oversampled(coils: int = 2) -> tuple[torch.Tensor, np.ndarray]:
    """k-space (coils, 48, 40), and that of twice the field of view along the readout, (coils, 96, 40)."""
    shape = (48, 40)
    gains = torch.linspace(1, 2, coils).double()[:, None, None]
    images = gains * discs(shape)
    wide = torch.zeros(coils, 96, 40, dtype=torch.complex128)
    wide[:, 24:72] = images
    return centred_fft(images), centred_fft(wide).numpy()


XML = _xml((96, 40), (96.0, 60.0), 48.0)


def test_ismrmrd_without_the_oversampling(tmp_path: Path) -> None:
    right, wide = _oversampled()
    order = np.random.default_rng(0).permutation(40)
    _write(tmp_path / "raw.h5", [_line(wide[:, :, k], 48, int(k)) for k in order], XML)
    made = load_kspace(tmp_path / "raw.h5")
    assert torch.allclose(made.values, right, atol=1e-5)
    assert made.pixel_size == (1.0, 1.5)
    assert made.noise is None
    assert made.warnings == ()


def test_ismrmrd_undersampled_slices_averages_and_contrasts(tmp_path: Path) -> None:
    right, wide = _oversampled()
    lines = []
    for k in range(0, 40, 2):
        for average in (-1, 1):
            lines.append(_line(wide[:, :, k] * (1 + 0.1 * average), 48, k, slice=3))
        lines.append(_line(7 * wide[:, :, k], 48, k, slice=3, contrast=1))
        lines.append(_line(2 * wide[:, :, k], 48, k, slice=1))
    lines.append(_line(wide[:, :, 1], 48, 1, 1 << 19, slice=3))  # calibration alone
    _write(tmp_path / "raw.h5", lines, XML)
    made = load_kspace(tmp_path / "raw.h5", 1)
    assert torch.allclose(made.values[..., ::2], right[..., ::2], atol=1e-5)
    assert not made.values[..., 1::2].any()
    assert any("2 values of contrast" in text for text in made.warnings)
    assert any("1 lines that are for calibration" in text for text in made.warnings)
    assert torch.allclose(load_kspace(tmp_path / "raw.h5").values[..., ::2], 2 * right[..., ::2], atol=1e-5)
    with pytest.raises(DataError, match="there is no slice 2; valid are 0 to 1"):
        load_kspace(tmp_path / "raw.h5", 2)


def test_ismrmrd_noise_has_the_variance_of_the_lines(tmp_path: Path) -> None:
    _, wide = _oversampled()
    rng, sigma = np.random.default_rng(0), 0.05
    noisy = wide + sigma * (rng.standard_normal(wide.shape) + 1j * rng.standard_normal(wide.shape))
    # twice the dwell time is half the bandwidth, so half the variance
    alone = sigma / np.sqrt(2) * (rng.standard_normal((2, 4000)) + 1j * rng.standard_normal((2, 4000)))
    lines = [_line(alone, 0, 0, _NOISE, dwell=10.0), *(_line(noisy[:, :, k], 48, k) for k in range(40))]
    _write(tmp_path / "raw.h5", lines, XML)
    made = load_kspace(tmp_path / "raw.h5")
    assert made.noise is not None
    assert float(made.noise.real.std()) == pytest.approx(sigma, rel=0.03)
    right, _ = _oversampled()
    assert float((made.values - right).real.std()) == pytest.approx(sigma, rel=0.03)
    assert torch.equal(read_noise_scan(tmp_path / "raw.h5"), made.noise)


@pytest.mark.parametrize(
    ("lines", "xml", "message"),
    [
        ({}, _xml((96, 40), (96.0, 60.0), 48.0, "radial"), "trajectory is radial; valid is cartesian"),
        ({}, "<ismrmrdHeader/>", "it has 0 encodings"),
        ({"flags": _REVERSE}, XML, "read in the reverse direction"),
        ({"step": 70}, XML, r"acquisition 3 is line 70 .* outside of the encoded 96x40"),
        ({"step": 2}, XML, "lines were measured 1 to 2 times"),
        ({"trajectory_dimensions": 2}, XML, "trajectory of its own"),
        ({"discard_pre": 10}, XML, "oversampled .* not complete"),
    ],
)
def test_ismrmrd_that_is_not_understood(tmp_path: Path, lines: dict[str, int], xml: str, message: str) -> None:
    _, wide = _oversampled()
    made = [_line(wide[:, :, k], 48, **({"step": k} | (lines if k == 3 else {}))) for k in range(40)]
    _write(tmp_path / "raw.h5", made, xml)
    with pytest.raises(DataError, match=message):
        load_kspace(tmp_path / "raw.h5")


def test_acquisitions_without_counters_are_refused_by_name(tmp_path: Path) -> None:
    real = h5py.vlen_dtype(np.dtype("<f4"))
    kind = np.dtype([("head", [("version", "<u2"), ("flags", "<u8")]), ("traj", real), ("data", real)])
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file.create_dataset("dataset/data", (4,), kind)
        file.create_dataset("dataset/xml", (1,), h5py.string_dtype())[0] = "<ismrmrdHeader/>"
    with pytest.raises(DataError, match=r"no number_of_samples, .*no idx.* give the k-space of a slice as \.npy"):
        load_kspace(tmp_path / "raw.h5")


def test_noise_scans_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"n\.txt: unknown kind of noise scan; valid are \.npy"):
        read_noise_scan(tmp_path / "n.txt")
    _, wide = _oversampled()
    _write(tmp_path / "raw.h5", [_line(wide[:, :, 0], 48)], XML)
    with pytest.raises(DataError, match="no acquisition of noise"):
        read_noise_scan(tmp_path / "raw.h5")
    np.save(tmp_path / "one.npy", noise(white(1, 1.0), (300,))[0].numpy())
    assert read_noise_scan(tmp_path / "one.npy").shape == (1, 300)

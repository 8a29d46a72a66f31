"""``recon reconstruct`` on k-space of scanners, NIfTI and DICOM that is no slice: right, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recon.commands.reconstruct.main import guessed_task
from recon.operators.mri.cartesian import centred_fft, centred_ifft
from tests.commands.reconstruct.slices import refused, run, write_slice
from tests.datasets.kspace.test_noise import correlated, discs, noise, white
from tests.datasets.readers.test_nifti import write_nifti

SIGMA = 0.01


@pytest.fixture
def single(tmp_path: Path) -> Path:
    """k-space of one coil, and the true image beside it."""
    image = discs((48, 48))
    np.save(tmp_path / "k.npy", (centred_fft(image[None]) + noise(white(1, SIGMA), (48, 48)))[0].numpy())
    np.save(tmp_path / "true.npy", image.numpy())
    return tmp_path / "k.npy"


def _error(file: Path, truth: torch.Tensor) -> float:
    found = torch.from_numpy(np.abs(np.load(file)))
    return float((found - truth.abs()).norm() / truth.norm())


def test_noise_within_a_fifth_and_tv_better_than_zero_filled(single: Path) -> None:
    """Noise that was overestimated three times made TV worse than the zero-filled image."""
    truth = discs((48, 48))
    _, output, report = run(single, "--method", "tv")
    assert report["noise"] == pytest.approx(SIGMA, rel=0.2)
    assert "local frequencies" in report["noise_rule"]
    assert report["warnings"] == []
    tv = _error(output / "k.npy", truth)
    plain = float((centred_ifft(torch.from_numpy(np.load(single))).abs() - truth.abs()).norm() / truth.norm())
    assert tv < 0.7 * plain


def test_corner_is_noticed_and_right(single: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, output, _ = run(single, "--method", "tv")
    right = np.load(output / "k.npy")
    np.save(single, np.fft.ifftshift(np.load(single)))
    _, output, report = run(single, "--method", "tv")
    np.testing.assert_array_equal(np.load(output / "k.npy"), right)
    assert len(report["warnings"]) == 1
    assert "zero frequency is in the corner" in report["warnings"][0]
    assert "zero frequency is in the corner" in capsys.readouterr().err


def test_noise_that_cannot_be_estimated_is_said(tmp_path: Path) -> None:
    from recon.operators.mri.sampling import radial

    mask = radial((48, 48), 3.0, None, 0)
    y = (centred_fft(discs((48, 48))[None]) + noise(white(1, 0.003), (48, 48))) * mask
    np.save(tmp_path / "k.npy", y.numpy())
    _, _, report = run(tmp_path / "k.npy", "--method", "zero_filled")
    assert any("may be overestimated" in text and "--noise-scan" in text for text in report["warnings"])
    _, _, report = run(tmp_path / "k.npy", "--method", "zero_filled", "--noise", "0.003")
    assert report["warnings"] == []
    assert report["noise_rule"] == "given"


def test_noise_scan_whitens_and_is_reported(tmp_path: Path) -> None:
    from recon.operators import simulated_sensitivities

    truth, shape = correlated(4, 0.02), (64, 64)
    y = centred_fft(simulated_sensitivities(4, shape) * discs(shape)) + noise(truth, shape)
    np.save(tmp_path / "k.npy", y.numpy())
    np.save(tmp_path / "noise.npy", noise(truth, (5000,), 3).numpy())
    _, _, report = run(tmp_path / "k.npy", "--method", "tv", "--noise-scan", str(tmp_path / "noise.npy"))
    assert report["details"]["coils_whitened"]
    deviations = truth.diagonal().real.sqrt().tolist()
    assert report["details"]["noise_of_coils"] == pytest.approx(deviations, rel=0.05)
    assert "measured, in" in report["noise_rule"]
    assert report["warnings"] == []
    # the residual of the discrepancy principle is that noise
    assert report["residual"] == pytest.approx(report["noise"], rel=0.05)


def test_options_that_exclude_each_other(single: Path) -> None:
    both = ("--method", "tv", "--noise", "1", "--noise-scan", "x.npy")
    refused("--noise and --noise-scan exclude each other", single, *both)
    np.save(single, np.zeros((8, 8)))
    refused("--noise-scan belongs to --task mri", single, "--method", "tv", "--noise-scan", "x.npy")


def test_nifti_is_a_picture_with_its_spacing(tmp_path: Path) -> None:
    values = discs((48, 40)).abs().numpy().astype(np.float32)
    file = write_nifti(tmp_path / "slice.nii", values, (0.5, 0.75))
    assert guessed_task([file], None) == "denoising"
    _, output, report = run(file, "--method", "tv", "--weight", "1e-6", "--accuracy", "1e-3")
    assert report["details"]["pixel_size_mm"] == [0.5, 0.75]
    np.testing.assert_allclose(np.load(output / "slice.npy"), values, atol=1e-3)
    _, output, report = run(
        write_nifti(file, 1000 * values, (0.5, 0.75)),
        "--task", "mri", "--method", "zero_filled", "--noise", "1e-6", "--acceleration", "1",
    )  # fmt: skip
    assert report["details"]["pixel_size_mm"] == [0.5, 0.75]
    np.testing.assert_allclose(np.abs(np.load(output / "slice.npy")), 1000 * values, atol=1e-3)


def test_nifti_on_another_scale_is_refused(tmp_path: Path) -> None:
    file = write_nifti(tmp_path / "slice.nii", 1000 * discs((48, 40)).abs().numpy().astype(np.float32))
    refused(r"slice\.nii: values from 0 to 1000; pictures are denoised on the scale \[0, 1\]", file, "--method", "tv")
    refused(r"slice\.nii: nothing says which attenuation", file, "--task", "ct", "--method", "fbp", "--noise", "1")


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("mri", {"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]}, r"s\.dcm: is a mosaic of several slices"),
        ("mri", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, r"s\.dcm: is a secondary capture"),
        (
            "ct",
            {"RescaleType": "US", "RescaleSlope": "1e-5", "RescaleIntercept": "0"},
            r"s\.dcm: .*no Hounsfield units",
        ),
    ],
)
def test_dicom_that_is_no_slice(tmp_path: Path, task: str, changes: dict[str, Any], message: str) -> None:
    pydicom = pytest.importorskip("pydicom")
    write_slice(tmp_path / "s.dcm", modality="CT" if task == "ct" else "MR")
    dataset = pydicom.dcmread(tmp_path / "s.dcm")
    for key, value in changes.items():
        setattr(dataset, key, value)
    dataset.save_as(tmp_path / "s.dcm")
    method = "fbp" if task == "ct" else "zero_filled"
    refused(message, tmp_path / "s.dcm", "--task", task, "--method", method, "--noise", "0.1")

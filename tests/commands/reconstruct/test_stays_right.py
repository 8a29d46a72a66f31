"""What was right stays right: fan beams in closed form, and measured scans with the values of the release before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.modules.kspace import KSpaceDataModule
from datasets.scans.reading import read_sinogram
from tests.commands.reconstruct.slices import run
from tests.datasets.scans.discs import PHANTOM, VALUES, in_regions

# mean, standard deviation, median and 95 % quantile
TOOTH = [0.4521555253, 0.5836993774, 0.0154057805, 1.4497280922]
HELSINKI = [1.3280178666, 0.6422602902, 1.5788770318, 1.9716037154]
BRAIN = [0.2499869190, 0.2249824885, 0.2391357777, 0.6118764066]
BRAIN_TV = [0.2354501808, 0.2298611540, 0.1972242275, 0.6020988553]
TOOTH_TV = [0.0007073001, 0.0020049981, 0.0001072408, 0.0066645594]
HELSINKI_TV = [0.0190517214, 0.0153190191, 0.0258985647, 0.0382746484]
SOURCE, DETECTOR, PITCH = 100.0, 50.0, 0.75


def _fan(degrees: np.ndarray, pixels: int, centre: float) -> np.ndarray:
    """Chords of the discs along the rays from the source at -SOURCE e_t to DETECTOR e_t + s e_s."""
    angles = np.deg2rad(degrees)
    across, along = (np.stack(p, -1) for p in ((np.cos(angles), np.sin(angles)), (-np.sin(angles), np.cos(angles))))
    s = (np.arange(pixels) - centre) * PITCH
    start = -SOURCE * along[:, None]
    end = DETECTOR * along[:, None] + s[None, :, None] * across[:, None]
    ray = (end - start) / np.linalg.norm(end - start, axis=-1, keepdims=True)
    z = np.zeros((len(angles), pixels))
    for x, y, radius, value in PHANTOM:
        to = np.array([x, y]) - start
        distance = to[..., 0] * ray[..., 1] - to[..., 1] * ray[..., 0]
        z += 2 * value * np.sqrt(np.clip(radius**2 - distance**2, 0, None))
    return z


@pytest.mark.parametrize(
    ("arc", "centre"),
    [
        pytest.param(360.0, 47.5, id="full"),
        pytest.param(220.0, 47.5, id="short"),  # half a turn and twice the fan
        pytest.param(360.0, 52.25, id="offset"),
    ],
)
def test_fan_beam(tmp_path: Path, arc: float, centre: float) -> None:
    pytest.importorskip("astra", reason="needs the extra ct")
    degrees = np.arange(60) * arc / 60
    file = tmp_path / "scan.npz"
    np.savez(
        file,
        sinogram=_fan(degrees, 96, centre),
        angles_degrees=degrees,
        detector_spacing=PITCH,
        source_distance=SOURCE,
        detector_distance=DETECTOR,
        rotation_centre=centre,
    )
    options = ("--size", "64", "--pixel-size", "0.75", "--weight", "0.002", "--mu", "0.05", "--smoothing", "5e-4")
    _, output, report = run(file, "--method", "tv", "--noise", "0.01", *options)
    assert report["status"] == "converged"
    np.testing.assert_allclose(in_regions(np.load(output / "scan.npy"), 0.75), VALUES, atol=8e-4)


def _measured(shared_data: Path, *parts: str) -> Path:
    file = shared_data.joinpath(*parts)
    if not file.is_file():
        pytest.skip(f"real data: no file {file}")
    return file


def _linked(folder: Path, file: Path) -> Path:
    """The same file in a folder that results can be written beside."""
    (folder / file.name).symlink_to(file)
    return folder / file.name


def _numbers(values: np.ndarray) -> list[float]:
    return [float(values.mean()), float(values.std()), *np.quantile(values, [0.5, 0.95]).tolist()]


def test_line_integrals_of_the_tooth(shared_data: Path) -> None:
    pytest.importorskip("h5py", reason="needs the extra data")
    z = read_sinogram(_measured(shared_data, "tomopy_tooth", "tooth.h5"), row=0).sinogram.numpy()
    assert z.shape == (181, 640)
    assert _numbers(z) == pytest.approx(TOOTH, rel=2e-3, abs=2e-4)


def test_line_integrals_of_helsinki(shared_data: Path) -> None:
    scan = read_sinogram(_measured(shared_data, "htc2022", "htc2022_ta_full.mat"))
    assert scan.sinogram.shape == (721, 560)
    assert scan.distances is not None
    assert (scan.distances.source, scan.distances.detector) == pytest.approx((410.66, 143.08))
    assert _numbers(scan.sinogram.numpy()) == pytest.approx(HELSINKI, rel=1e-9)


def test_tv_of_the_tooth(shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("astra", reason="needs the extra ct")
    pytest.importorskip("h5py", reason="needs the extra data")
    file = _linked(tmp_path, _measured(shared_data, "tomopy_tooth", "tooth.h5"))
    options = ("--views", "30", "--rotation-centre", "296", "--size", "80", "--weight", "0.1", "--mu", "2000")
    _, output, report = run(file, "--method", "tv", "--noise", "0.01", "--smoothing", "5e-4", *options)
    assert report["status"] == "converged"
    assert _numbers(np.load(output / "tooth.npy")) == pytest.approx(TOOTH_TV, rel=0.01, abs=2e-5)


def test_tv_of_helsinki(shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("astra", reason="needs the extra ct")
    file = _linked(tmp_path, _measured(shared_data, "htc2022", "htc2022_ta_full.mat"))
    options = ("--views", "30", "--size", "64", "--weight", "0.02", "--mu", "30")
    _, output, report = run(file, "--method", "tv", "--noise", "0.01", "--smoothing", "2e-3", *options)
    assert report["status"] == "converged"
    assert _numbers(np.load(output / "htc2022_ta_full.npy")) == pytest.approx(HELSINKI_TV, rel=0.005, abs=2e-5)


def test_brain_of_eight_coils(shared_data: Path) -> None:
    file = _measured(shared_data, "mri_kspace_8ch", "cartesian_ksp.npy")
    data = KSpaceDataModule(str(file), noise=0.0115)
    assert data.scale == pytest.approx(1.0, abs=1e-6)
    image = data.operator.adjoint(data.measurement()[None])[0]
    assert _numbers(torch.linalg.vector_norm(image, dim=0).numpy()) == pytest.approx(BRAIN, rel=1e-5)
    found = KSpaceDataModule(str(file))
    assert torch.equal(found.measurement(), data.measurement())  # not whitened, as its noise is not certain
    assert found.noise == pytest.approx(0.01195, rel=0.1)


def test_tv_of_eight_coils(shared_data: Path, tmp_path: Path) -> None:
    file = _linked(tmp_path, _measured(shared_data, "mri_kspace_8ch", "cartesian_ksp.npy"))
    options = ("--weight", "0.005", "--mu", "0.05", "--smoothing", "0.02", "--noise", "0.0115")
    _, output, report = run(file, "--method", "tv", *options)
    assert report["status"] == "converged"
    assert _numbers(np.abs(np.load(output / "cartesian_ksp.npy"))) == pytest.approx(BRAIN_TV, rel=0.005)

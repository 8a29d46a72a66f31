"""Training on measurements: LoDoPaB-CT with its own sinograms, fully sampled k-space undersampled in retrospect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets import DataError, FastMRIFolder, KSpaceDataModule, LoDoPaBDataModule, MRIDataModule
from datasets.physics import line_integrals, transmission_counts
from datasets.readers.hdf5 import LODOPAB_MU_MAX, LODOPAB_PHOTONS
from datasets.sources.phantoms import RandomEllipses
from models import TotalVariation
from models.training.bilevel import BilevelModule
from recon.bilevel import MAID
from recon.operators import ParallelBeam, RayTransform, channels_to_complex, magnitude, simulated_sensitivities
from recon.operators.mri.cartesian import centred_fft, centred_ifft
from tests.trainers import quiet_trainer

h5py = pytest.importorskip("h5py")


# --- LoDoPaB-CT ---

SMALL = ParallelBeam.equispaced((20, 20), 13.0, 12, detector_pixels=29)


def _lodopab(folder: Path, count: int = 3) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Files as those of the data set: pictures, and line integrals over m divided by µ_max in 1/m."""
    pytest.importorskip("astra")
    operator, written = RayTransform(SMALL, cache=False), {}
    for seed, part in enumerate(("train", "validation", "test")):
        x = torch.stack(list(RandomEllipses(count, 20, seed=seed)))
        counts = [
            transmission_counts(LODOPAB_MU_MAX * operator(p[None])[0], LODOPAB_PHOTONS, seed, i)
            for i, p in enumerate(x)
        ]
        y = torch.stack([line_integrals(c, LODOPAB_PHOTONS) for c in counts])[:, 0] / (1000 * LODOPAB_MU_MAX)
        written[part] = (x[:, 0].numpy().astype(np.float32), y.numpy().astype(np.float32))
        for kind, values in zip(("ground_truth", "observation"), written[part], strict=True):
            with h5py.File(folder / f"{kind}_{part}_000.hdf5", "w") as out:
                out["data"] = values
    return written


def _data(folder: Path, **changes: Any) -> LoDoPaBDataModule:
    options = {"geometry": SMALL, "cache": False, "dtype": "float64"} | changes
    return LoDoPaBDataModule(str(folder), **options)


def test_pictures_come_with_their_own_sinograms(tmp_path: Path) -> None:
    written = _lodopab(tmp_path)
    data = _data(tmp_path, limit=2)
    x, y = data.train_tensors()
    np.testing.assert_array_equal(x[:, 0].numpy(), written["train"][0][:2])
    np.testing.assert_allclose(y[:, 0].numpy(), 1000 * written["train"][1][:2].astype(np.float64))
    for part, loader in (("validation", data.val_dataloader()), ("test", data.test_dataloader())):
        batches = list(loader)
        assert [int(batch.index) for batch in batches] == [0, 1, 2]
        np.testing.assert_array_equal(batches[2].x[0, 0].numpy(), written[part][0][2])
        np.testing.assert_allclose(batches[2].y[0, 0].numpy(), 1000 * written[part][1][2].astype(np.float64))
    (first, *_) = data.predict_dataloader()
    np.testing.assert_allclose(first.y[0, 0].numpy(), 1000 * written["test"][1][0].astype(np.float64))
    assert "test" in data.names("predict")[0]
    # y is a sinogram of x in mm up to the noise, of which the weights are the inverse variances
    weights = LODOPAB_PHOTONS * LODOPAB_MU_MAX**2 * torch.exp(-LODOPAB_MU_MAX * data.operator(x))
    assert ((y - data.operator(x)).square() * weights).mean().item() == pytest.approx(1.0, rel=0.15)
    torch.testing.assert_close(data.mean_weights(), weights.mean(0), rtol=0.15, atol=0)
    assert (y - data.operator(x)).norm() < 0.2 * y.norm()


def test_every_third_view(tmp_path: Path) -> None:
    _lodopab(tmp_path)
    all_views, some = _data(tmp_path), _data(tmp_path, view_step=3, dtype="float32")
    assert some.train_tensors()[1].dtype == torch.float32
    torch.testing.assert_close(some.train_tensors()[1].double(), all_views.train_tensors()[1][:, :, ::3])
    assert some.geometry.angles == all_views.geometry.angles[::3]
    torch.testing.assert_close(
        some.operator(some.train_tensors()[0]).double(),
        all_views.operator(all_views.train_tensors()[0])[:, :, ::3],
        rtol=1e-4,
        atol=1e-3,
    )


def test_lodopab_that_does_not_fit(tmp_path: Path) -> None:
    _lodopab(tmp_path)
    other = ParallelBeam.equispaced((20, 20), 13.0, 12, detector_pixels=28)
    with pytest.raises(DataError, match=r"train_000\.hdf5\[0\].*12 views of 29 detector pixels.*12 of 28"):
        _data(tmp_path, geometry=other).setup("fit")
    with pytest.raises(ValueError, match="view_step is 0"):
        _data(tmp_path, view_step=0)
    (tmp_path / "observation_train_000.hdf5").unlink()
    with pytest.raises(DataError, match=r"observation_train_000\.hdf5: no such file"):
        _data(tmp_path).setup("fit")


def test_learning_on_measured_sinograms(tmp_path: Path) -> None:
    _lodopab(tmp_path)
    trainer = quiet_trainer(tmp_path, epochs=2)
    trainer.fit(BilevelModule(TotalVariation(0.0, -3.0), MAID, mu=5.0), datamodule=_data(tmp_path, limit=2))
    assert trainer.global_step == 2
    assert float(trainer.callback_metrics["val_psnr"]) > 10


# --- fastMRI ---


def _picture(shape: tuple[int, int], seed: int) -> torch.Tensor:
    """A complex picture with an object in the middle and a smooth phase."""
    i, j = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in shape)
    i, j = i[:, None].expand(shape), j.expand(shape)
    body = ((i / 0.7) ** 2 + (j / 0.6) ** 2 < 1).double()
    inner = (((i - 0.1 * seed) / 0.3) ** 2 + (j / 0.2) ** 2 < 1).double()
    return torch.polar(0.4 * body + 0.5 * inner, 0.3 * i + 0.2 * seed * j)


def _fastmri(path: Path, coils: int = 1, slices: int = 2, patient: str = "p", shape: tuple[int, int] = (40, 32)) -> Any:
    pictures = torch.stack([_picture(shape, seed) for seed in range(slices)])
    maps = simulated_sensitivities(coils, shape)
    kspace = 300.0 * centred_fft(maps * pictures[:, None])
    with h5py.File(path, "w") as file:
        file["kspace"] = (kspace[:, 0] if coils == 1 else kspace).numpy().astype(np.complex64)
        file["reconstruction_esc"] = centred_ifft(kspace)[:, 0].abs().numpy().astype(np.float32)
        file.attrs["patient_id"] = patient
    return pictures, kspace


def test_pictures_of_one_coil_are_those_of_the_file(tmp_path: Path) -> None:
    _fastmri(tmp_path / "a.h5")
    source = FastMRIFolder(tmp_path)
    assert source.patients == ["p", "p"]
    for number, picture in enumerate(source):
        with h5py.File(tmp_path / "a.h5") as file:
            expected = file["reconstruction_esc"][number].astype(np.float64)
        np.testing.assert_allclose(magnitude(picture)[0].numpy(), expected / expected.max(), atol=1e-5)


@pytest.mark.parametrize("coils", [1, 4])
def test_learning_data_are_the_measured_samples_on_the_mask(tmp_path: Path, coils: int) -> None:
    for number, patient in enumerate("abc"):
        _, kspace = _fastmri(tmp_path / f"{number}.h5", coils, patient=patient, shape=(32, 32))
    data = MRIDataModule(train=str(tmp_path), size=None, crop_size=32, sigma=0.0, limit=None)
    x, y = data.train_tensors()
    assert x.shape == (2, 2, 32, 32)
    files = {name[-7:-3] for part in ("val", "test") for name in data.names(part)}  # type: ignore[arg-type]
    assert len(files) == 2
    # all three files hold the same pictures
    sampled = channels_to_complex(y[:, 0])
    assert torch.equal(sampled != 0, data.operator.mask & (sampled != 0))
    if coils == 1:
        scale = centred_ifft(kspace)[:, 0].abs().amax((-2, -1))[:, None, None]
        torch.testing.assert_close(sampled, kspace[:, 0] / scale * data.operator.mask, atol=1e-5, rtol=0)
    else:
        truth = torch.stack([_picture((32, 32), seed) for seed in range(2)]).abs()
        truth = truth / truth.amax((-2, -1), keepdim=True)
        assert (magnitude(x)[:, 0] - truth).norm() < 0.05 * truth.norm()


@pytest.mark.parametrize("coils", [1, 4])
def test_measured_slice_in_retrospect(tmp_path: Path, coils: int) -> None:
    pictures, kspace = _fastmri(tmp_path / "a.h5", coils)
    data = KSpaceDataModule(str(tmp_path / "a.h5"), 1, acceleration=2.0, calibration=12)
    data.setup("fit")
    ((x, y, index),) = data.train_dataloader()
    assert int(index) == 0
    assert 0.45 < data.operator.mask.double().mean() < 0.55
    measured = kspace[1].to(torch.complex64).to(torch.complex128)
    torch.testing.assert_close(channels_to_complex(y[0]) * data.scale, measured * data.operator.mask)
    truth = pictures[1].abs()
    found = magnitude(x)[0, 0] * data.scale / 300.0
    assert (found - truth).norm() < 0.05 * truth.norm()
    assert (data.operator(x) - y).norm() < 0.05 * y.norm()
    trainer = quiet_trainer(tmp_path, epochs=2)
    trainer.fit(BilevelModule(TotalVariation(-6.0, -5.0), MAID, mu=1e-2), datamodule=data)
    assert trainer.global_step == 2


def test_kspace_that_cannot_be_undersampled_again(tmp_path: Path) -> None:
    _, kspace = _fastmri(tmp_path / "a.h5")
    array = kspace[0].numpy().copy()
    array[..., ::3] = 0
    np.save(tmp_path / "some.npy", array)
    with pytest.raises(DataError, match=r"some\.npy: only .* of 1240 points.*needs fully sampled data"):
        KSpaceDataModule(str(tmp_path / "some.npy"), acceleration=2.0).setup("fit")
    array = kspace[0].numpy().copy()
    array[..., :4], array[..., -4:] = 0, 0  # less resolution along the columns is no undersampling
    np.save(tmp_path / "rim.npy", array)
    KSpaceDataModule(str(tmp_path / "rim.npy"), acceleration=2.0).setup("fit")
    with pytest.raises(ValueError, match=r"set acceleration"):
        KSpaceDataModule(str(tmp_path / "rim.npy")).setup("fit")
    with pytest.raises(ValueError, match=r"set acceleration"):
        KSpaceDataModule(str(tmp_path / "rim.npy")).target()
    with pytest.raises(ValueError, match="pattern is 'spiral'"):
        KSpaceDataModule("a.h5", acceleration=2.0, pattern="spiral")  # type: ignore[arg-type]


def test_fastmri_folders_that_are_no_good(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the folder has no fastMRI file"):
        FastMRIFolder(tmp_path)
    with pytest.raises(DataError, match="no such file or folder"):
        FastMRIFolder(tmp_path / "nowhere")
    _fastmri(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["mask"] = np.arange(32) % 2
    with pytest.raises(DataError, match=r"a\.h5\[1\]: is undersampled \(16 of 32 columns\)"):
        FastMRIFolder(tmp_path)[1]
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["mask"][:] = 1
        file["kspace"][0] = 0
    with pytest.raises(DataError, match=r"a\.h5\[0\]: holds only zeros"):
        FastMRIFolder(tmp_path)[0]
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["reconstruction_esc"]
        file["reconstruction_esc"] = np.ones((1, 8, 8))
    with pytest.raises(DataError, match=r"reconstruction_esc has the shape \(1, 8, 8\); valid is \(2, height, width\)"):
        FastMRIFolder(tmp_path)[1]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["kspace"] = np.complex64(5)
    with pytest.raises(DataError, match=r"a\.h5: kspace has the shape \(\)"):
        FastMRIFolder(tmp_path)

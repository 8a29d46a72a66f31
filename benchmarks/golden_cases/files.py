"""Small files of data for the programs and the data modules: made here, always the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pydicom
import torch
from PIL import Image
from torch import Tensor

from benchmarks.golden_cases.common import normal, pictures
from datasets import RandomEllipses, SheppLogan
from recon.operators import ParallelBeam, RayTransform, simulated_sensitivities

#: standard deviation of the noise of k-space
SIGMA = 0.01


def write_all(folder: Path) -> None:
    """Everything below, under names that the groups know."""
    write_pictures(folder / "pictures")
    write_scans(folder)
    write_kspace(folder)
    for modality in ("CT", "MR"):
        for number in range(6):
            patient = "abcdef"[number]
            write_slice(folder / modality.lower() / f"{number}.dcm", modality, patient, 0.4 + 0.1 * number)
    write_lodopab(folder / "lodopab")
    for number in range(3):
        write_fastmri(folder / "fastmri" / f"{'abc'[number]}.h5", number)


def write_pictures(folder: Path) -> None:
    """Four grey pictures of 20x22 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate("abcd"):
        values = (255 * pictures(1, 1, 20, 22, seed=70 + number)[0, 0]).clamp(0, 255).round()
        Image.fromarray(values.numpy().astype(np.uint8)).save(folder / f"{name}.png")


def write_scans(folder: Path) -> None:
    """scan.npz: a noisy parallel scan of a disc with an insert; counts.npz: its counts; scan.h5: in DXchange."""
    degrees, pixels, pitch = np.arange(40) * 4.5, 31, 10.0
    angles, s = np.deg2rad(degrees)[:, None], (np.arange(pixels) - 15) * pitch
    lines = np.zeros((len(degrees), pixels))
    for down, right, radius, value in ((0, 0, 110, 0.02), (-30, 40, 25, 0.015), (40, -20, 20, -0.012)):
        t = s - (down * np.cos(angles) + right * np.sin(angles))
        lines += 2 * value * np.sqrt(np.clip(radius**2 - t**2, 0, None))
    noisy = lines + normal(*lines.shape, seed=80, scale=0.02).numpy()
    geometry = {"angles_degrees": degrees, "detector_spacing": pitch}
    np.savez(folder / "scan.npz", sinogram=noisy, **geometry)
    counts = np.round(3 + 997 * np.exp(-noisy))
    np.savez(folder / "counts.npz", sinogram=counts, **geometry)
    with h5py.File(folder / "scan.h5", "w") as file:
        file["exchange/data"] = counts[:, None]
        file["exchange/data_white"] = np.full((2, 1, pixels), 1000.0)
        file["exchange/data_dark"] = np.full((2, 1, pixels), 3.0)
        file["exchange/theta"] = degrees


def kspace_of(image: Tensor) -> Tensor:
    """The centred, unitary Fourier transform of complex images."""
    axes = (-2, -1)
    return torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(image, dim=axes), norm="ortho"), dim=axes)


def _disc(shape: tuple[int, int], shift: int = 0) -> Tensor:
    """A disc with an insert and a smooth phase."""
    i, j = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in shape)
    i, j = i[:, None].expand(shape), j.expand(shape)
    made = torch.where((i / 0.8).square() + (j / 0.7).square() < 1, 0.5, 0.0).double()
    made[(i + 0.1 * shift).square() + (j - 0.2).square() < 0.05] = 1.0
    return torch.polar(made, 0.3 * i - 0.2 * j)


def _complex_noise(*shape: int, seed: int) -> Tensor:
    return torch.complex(normal(*shape, seed=seed, scale=SIGMA), normal(*shape, seed=seed + 1, scale=SIGMA))


def write_kspace(folder: Path) -> None:
    """k.npy: one coil, 32x32, with k_true.npy; coils.npy: three; noise.npy: noise alone of these."""
    image = _disc((32, 32))
    np.save(folder / "k_true.npy", image.abs().numpy())
    np.save(folder / "k.npy", (kspace_of(image) + _complex_noise(32, 32, seed=90)).numpy())
    coils = kspace_of(simulated_sensitivities(3, (32, 32)) * image) + _complex_noise(3, 32, 32, seed=92)
    np.save(folder / "coils.npy", coils.numpy())
    np.save(folder / "noise.npy", _complex_noise(3, 2000, seed=94).numpy())


def write_fastmri(path: Path, number: int) -> None:
    """Two slices of one coil of a patient."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = torch.stack([_disc((40, 32), number + shift) for shift in range(2)])
    kspace = 300.0 * (kspace_of(images) + _complex_noise(2, 40, 32, seed=100 + 2 * number))
    back = torch.fft.ifftshift(kspace, dim=(-2, -1))
    magnitudes = torch.fft.fftshift(torch.fft.ifft2(back, norm="ortho"), dim=(-2, -1)).abs()
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace.numpy().astype(np.complex64)
        file["reconstruction_esc"] = magnitudes.numpy().astype(np.float32)
        file.attrs["patient_id"] = f"patient {number}"


def write_slice(path: Path, modality: str, patient: str, contrast: float) -> None:
    """A DICOM slice of a phantom, pixels of 2 mm: air to at most 1000 HU, or 0 to 500."""
    phantom = contrast * SheppLogan(32)[0][0].numpy()
    stored = np.rint(2000 * phantom if modality == "CT" else 500 * phantom).astype(np.uint16)
    dataset: Any = pydicom.Dataset()
    kind = pydicom.uid.CTImageStorage if modality == "CT" else pydicom.uid.MRImageStorage
    dataset.SOPClassUID = kind
    dataset.SOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[modality, patient])
    dataset.Modality, dataset.PatientID, dataset.SeriesInstanceUID = modality, patient, f"1.2.{ord(patient)}"
    dataset.PixelSpacing = [2.0, 2.0]
    if modality == "CT":
        dataset.RescaleSlope, dataset.RescaleIntercept = "1", "-1000"
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.set_pixel_data(stored, "MONOCHROME2", 16, generate_instance_uid=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)


def write_lodopab(folder: Path) -> None:
    """Three pictures of 20x20 pixels with sinograms for each part, as the files of LoDoPaB-CT."""
    folder.mkdir(parents=True, exist_ok=True)
    geometry = ParallelBeam.equispaced((20, 20), 13.0, 12, detector_pixels=29)
    operator = RayTransform(geometry, cache=False)
    for seed, part in enumerate(("train", "validation", "test")):
        (folder / f"patient_ids_rand_{part}.csv").write_text("".join(f"{10 * seed + k}\n" for k in range(3)))
        x = torch.stack(list(RandomEllipses(3, 20, seed=seed))).double()
        y = operator(x) / 1000 + normal(3, 1, *geometry.range_shape[1:], seed=120 + seed, scale=1e-3)
        for kind, values in (("ground_truth", x), ("observation", y)):
            with h5py.File(folder / f"{kind}_{part}_000.hdf5", "w") as file:
                file["data"] = values[:, 0].numpy().astype(np.float32)

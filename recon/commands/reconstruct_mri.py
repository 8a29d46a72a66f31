"""``recon reconstruct`` for MRI: k-space of one slice with the operator that its samples and coils define."""

from __future__ import annotations

from pathlib import Path

import torch

from datasets.hdf5 import read_fastmri
from datasets.kspace import KSpaceDataModule
from recon.commands.problem import Problem
from recon.commands.weight import kspace_noise
from recon.operators import root_sum_of_squares, zero_filled


def kspace_problem(
    path: Path, index: int, noise: float | None, dtype: torch.dtype, device: str, reference: torch.Tensor | None
) -> Problem:
    """The problem of a ``.npy`` or fastMRI file; ``noise`` is given on the scale of the file.

    Raises:
        DataError: (a ValueError) the file cannot be used, or the centre of its k-space is not sampled.
    """
    module = KSpaceDataModule(str(path), index, dtype="float32" if dtype == torch.float32 else "float64")
    y, operator, scale = module.measurement()[None], module.operator, module.scale
    level = kspace_noise(y[0], operator.mask) if noise is None else noise / scale
    pixel_size = None
    if path.suffix.lower() != ".npy":
        scan = read_fastmri(path, index)
        pixel_size = scan.pixel_size
        if reference is None and scan.target is not None:
            reference = scan.target[0]
    operator, y = operator.to(device), y.to(device)
    return Problem(
        name=path.stem if index == 0 else f"{path.stem}_{index}",
        data=path,
        task="mri",
        y=y,
        operator=operator,
        start=operator.adjoint(y),
        baseline=scale * root_sum_of_squares(zero_filled(y))[0, 0].cpu().double(),
        method="zero_filled",
        scale=scale,
        unit="scale of the file",
        noise=level,
        noise_rule="estimated from the outermost tenth of k-space" if noise is None else "given",
        measured=2 * y.shape[1] * int(operator.mask.sum()),
        reference=reference,
        details={
            "sampling": {
                "shape": list(operator.mask.shape),
                "coils": int(y.shape[1]),
                "acceleration": operator.acceleration,
                "sensitivities": "ESPIRiT, estimated from the centre of k-space" if y.shape[1] > 1 else "one coil, 1",
            },
            "pixel_size_mm": None if pixel_size is None else list(pixel_size),
        },
    )

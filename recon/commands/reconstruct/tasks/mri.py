"""MRI: k-space of one slice, measured or simulated, with the operator that explains it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.modules.kspace import KSpaceDataModule
from datasets.noise import gaussian_noise
from recon.commands.reconstruct.tasks.declared import MASKS, MRIFiles
from recon.commands.reconstruct.tasks.measured import Measured
from recon.commands.reconstruct.tasks.pictures import is_picture, read_picture
from recon.commands.reconstruct.tasks.task import Job
from recon.operators import CartesianMRI, channels_to_complex, root_sum_of_squares, simulated_sensitivities, zero_filled
from recon.operators.mri.sampling import PATTERNS
from recon.reconstruction.problem import DicomTarget, Problem

ACCELERATION = 4.0


class MRI(MRIFiles, Measured):
    """Magnetic resonance imaging on Cartesian grids: k-space, and pictures whose k-space is simulated."""

    plain, plain_title = MRIFiles.plain, "zero-filled RSS"
    of_measurements = ("noise_scan", "reference")
    of_simulations = MRIFiles.of_scans
    relative_mu = 1e-3
    modality = "MR"

    def check(self) -> None:
        super().check()
        if self.args.nonnegative:
            raise ValueError("--nonnegative does not go with MRI, whose images are complex")
        if self.args.noise is not None and self.args.noise_scan is not None:
            raise ValueError("--noise and --noise-scan exclude each other; give one of them")

    def simulates(self, path: Path) -> bool:
        return is_picture(path)

    def build(self, job: Job, reference: Tensor | None) -> Problem:
        args = self.args
        options = MRIOptions(
            index=args.index,
            noise=args.noise,
            noise_scan=args.noise_scan,
            size=args.size,
            mask=args.mask or "random",
            acceleration=args.acceleration or ACCELERATION,
            coils=args.coils or 1,
            seed=args.seed or 0,
            number=job.number,
        )
        return mri_problem(job.data, options, self.dtype, args.device, reference)

    def numbers(self, problem: Problem, image: Tensor, x: Tensor | None) -> np.ndarray:
        """The complex image; the magnitudes of the plain method."""
        if x is None:
            return image.numpy()
        return problem.scale * channels_to_complex(x[0].detach().cpu().double()).numpy()


@dataclass(frozen=True)
class MRIOptions:
    """What is asked for on the command line, the noise on the scale of the file; from ``size`` on, for simulations.

    ``seed`` and ``number`` fix mask and noise.
    """

    index: int = 0
    noise: float | None = None
    noise_scan: str | None = None
    size: int | None = None
    mask: str = "random"
    acceleration: float = ACCELERATION
    coils: int = 1
    seed: int = 0
    number: int = 0


def mri_problem(path: Path, options: MRIOptions, dtype: torch.dtype, device: str, reference: Tensor | None) -> Problem:
    """The problem of a k-space file, or of a picture whose k-space is simulated.

    Raises
    ------
    DataError
        (a ValueError) the file cannot be used, or the centre of its k-space is not sampled.
    ValueError
        a value is out of range, or a simulation lacks its noise.
    """
    if is_picture(path):
        return _simulated(path, options, dtype, device)
    return _measured(path, options, dtype, device, reference)


def _measured(path: Path, options: MRIOptions, dtype: torch.dtype, device: str, reference: Tensor | None) -> Problem:
    module = KSpaceDataModule(
        str(path),
        options.index,
        dtype="float32" if dtype == torch.float32 else "float64",
        noise_scan=options.noise_scan,
        noise=options.noise,
    )
    y, operator, scale = module.measurement()[None], module.operator, module.scale
    pixel_size = module.file.pixel_size
    reference = module.file.target if reference is None else reference
    maps = "ESPIRiT, estimated from the centre of k-space" if y.shape[1] > 1 else "one coil, 1"
    operator, y = operator.to(device), y.to(device)
    return Problem(
        name=path.stem if options.index == 0 else f"{path.stem}_{options.index}",
        data=path,
        task="mri",
        y=y,
        operator=operator,
        start=operator.adjoint(y),
        baseline=scale * root_sum_of_squares(zero_filled(y))[0, 0].cpu().double(),
        method="zero_filled",
        scale=scale,
        unit="scale of the file",
        noise=module.noise / scale,
        noise_rule="given" if module.covariance is None else module.covariance.rule,
        measured=2 * y.shape[1] * int(operator.mask.sum()),
        reference=reference,
        details={
            "sampling": _sampling(operator, y.shape[1], maps),
            "pixel_size_mm": None if pixel_size is None else list(pixel_size),
            "noise_of_coils": None if module.covariance is None else module.covariance.deviations.tolist(),
            "coils_whitened": module.whitened,
        },
        warnings=(*module.file.warnings, *_uncertain(module)),
    )


def _uncertain(module: KSpaceDataModule) -> tuple[str, ...]:
    if module.covariance is None or module.covariance.certain:
        return ()
    return (
        f"{module.path}: the noise ({module.noise:.3g}, {module.covariance.rule}) may be overestimated, as what was "
        "sampled shows no part without signal; give --noise-scan, or --noise",
    )


def _simulated(path: Path, options: MRIOptions, dtype: torch.dtype, device: str) -> Problem:
    """k-space of a picture as a real image of phase 0; noise in the samples only, see ``KSpaceDataset``."""
    picture = read_picture(path, "mri", options.size)
    scale = picture.scale
    if options.noise is None:
        raise ValueError(
            f"{path}: is a picture, whose k-space is simulated; give its --noise on the scale of the file, e.g. "
            f"{0.01 * scale:.2g}, 1 % of the largest value"
        )
    shape = (picture.x.shape[0], picture.x.shape[1])
    mask = PATTERNS[MASKS[options.mask]](shape, options.acceleration, None, options.seed)
    operator = CartesianMRI(mask, simulated_sensitivities(options.coils, shape) if options.coils > 1 else None)
    exact = operator(torch.stack([picture.x, torch.zeros_like(picture.x)])[None])
    level = options.noise / scale
    noise = gaussian_noise(exact.shape[1:], level, options.seed, options.number, exact.dtype)
    y = (exact + noise.masked_fill(~mask, 0.0)).to(device, dtype)
    operator = operator.to(device)
    maps = "those of the simulation" if options.coils > 1 else "one coil, 1"
    return Problem(
        name=path.stem,
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
        noise_rule="given",
        measured=2 * options.coils * int(mask.sum()),
        reference=scale * picture.x,
        details={
            "sampling": _sampling(operator, options.coils, maps),
            "pixel_size_mm": None if picture.pixel_size is None else list(picture.pixel_size),
        },
        simulated=(
            f"k-space of the picture on the same pixels, mask {options.mask}, noise of standard deviation "
            f"{options.noise:g} in real and imaginary parts, seed {options.seed}"
        ),
        dicom=DicomTarget(path, picture.pixel_size) if picture.dicom and picture.pixel_size else None,
    )


def _sampling(operator: CartesianMRI, coils: int, sensitivities: str) -> dict[str, object]:
    return {
        "shape": list(operator.mask.shape),
        "coils": coils,
        "acceleration": operator.acceleration,
        "sensitivities": sensitivities,
    }

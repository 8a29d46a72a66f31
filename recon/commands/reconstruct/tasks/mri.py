"""MRI: k-space of one slice, measured or simulated, with the operator that explains it."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from datasets.kspace.ismrmrd import holds_ismrmrd
from datasets.modules.kspace import KSpaceDataModule
from datasets.modules.mri import Sampling
from datasets.noise import gaussian_noise
from datasets.readers.hdf5 import open_hdf5
from datasets.scans.counts import HDF5_SUFFIXES
from recon.commands.reconstruct.options import AT_LEAST_ONE, NOT_NEGATIVE, Range
from recon.commands.reconstruct.tasks.measured import Measured
from recon.commands.reconstruct.tasks.pictures import holds_complex, is_picture, read_picture
from recon.commands.reconstruct.tasks.task import Job
from recon.operators import CartesianMRI, channels_to_complex, root_sum_of_squares, zero_filled
from recon.operators.mri.sampling import Pattern
from recon.reconstruction import DicomTarget, NoiseLevel, Origin, Problem

#: masks of simulations, by their names on the command line
MASKS: dict[str, Pattern] = {
    "random": "random_lines",
    "equispaced": "equispaced",
    "radial": "radial",
    "poisson": "poisson_disc",
}
ACCELERATION = 4.0
UNIT = "scale of the file"


class MRI(Measured):
    """Magnetic resonance imaging on Cartesian grids: k-space, and pictures whose k-space is simulated."""

    name = "mri"
    plain, plain_title = "zero_filled", "zero-filled RSS"
    files = "k-space: complex .npy, fastMRI or ISMRMRD .h5"
    suffixes = HDF5_SUFFIXES
    of_measurements = ("noise_scan", "reference")
    of_simulations = ("size", "mask", "acceleration", "coils", "seed")
    options = ("noise_scan", *of_simulations)
    ranges: ClassVar = {
        "acceleration": Range("finite and at least 1", lambda v: 1 <= v < math.inf),
        **dict.fromkeys(("size", "coils"), AT_LEAST_ONE),
        "seed": NOT_NEGATIVE,
    }
    relative_mu = 1e-3
    modality = "MR"

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("MRI, measured")
        group.add_argument(
            "--noise-scan",
            help="noise without signal, measured as the data: complex .npy (coils, samples), or ISMRMRD .h5; coils are "
            "whitened by it (default: from the data file)",
        )
        group = parser.add_argument_group("simulation from pictures")
        group.add_argument("--mask", choices=list(MASKS), help="of k-space (default: random lines with a full centre)")
        group.add_argument("--acceleration", type=float, help="k-space points for each sampled one (default: 4)")
        group.add_argument("--coils", type=int, help="(default: 1)")
        group.add_argument("--seed", type=int, help="of noise and mask (default: 0)")

    @classmethod
    def holds(cls, path: Path) -> bool:
        """Whether a file has k-space: HDF5 may hold a scan as well, and arrays of complex values are nothing else."""
        if not super().holds(path):
            return holds_complex(path)
        with open_hdf5(path) as file:
            return "kspace" in file or holds_ismrmrd(file)

    def check(self) -> None:
        super().check()
        if self.args.nonnegative:
            raise ValueError("--nonnegative does not go with MRI, whose images are complex")
        if self.args.noise is not None and self.args.noise_scan is not None:
            raise ValueError("--noise and --noise-scan exclude each other; give one of them")

    def simulates(self, path: Path) -> bool:
        return is_picture(path)

    def build(self, job: Job, reference: Tensor | None) -> Problem:
        return self._simulated(job) if is_picture(job.data) else self._measured(job.data, reference)

    def numbers(self, problem: Problem, image: Tensor, x: Tensor | None) -> np.ndarray:
        """The complex image; the magnitudes of the plain method."""
        if x is None:
            return image.numpy()
        return problem.scale * channels_to_complex(x[0].detach().cpu().double()).numpy()

    def _measured(self, path: Path, reference: Tensor | None) -> Problem:
        args = self.args
        module = KSpaceDataModule(str(path), args.index, dtype=args.dtype, noise_scan=args.noise_scan, noise=args.noise)
        y, covariance, pixel_size = module.measurement()[None], module.covariance, module.file.pixel_size
        details = {
            "pixel_size_mm": None if pixel_size is None else list(pixel_size),
            "noise_of_coils": None if covariance is None else covariance.deviations.tolist(),
            "coils_whitened": module.whitened,
        }
        said = (*module.file.warnings, *_uncertain(module))
        origin = replace(Origin.of_slice(path, args.index, UNIT), details=details, warnings=said)
        return self._problem(
            origin,
            y,
            module.operator,
            module.scale,
            (module.noise / module.scale, "given" if covariance is None else covariance.rule),
            module.file.target if reference is None else reference,
            "ESPIRiT, estimated from the centre of k-space",
        )

    def _simulated(self, job: Job) -> Problem:
        """k-space of a picture as a real image of phase 0; noise in the samples only, see ``KSpaceDataset``."""
        args, path = self.args, job.data
        picture = read_picture(path, "mri", args.size)
        scale, pixel_size = picture.scale, picture.pixel_size
        if args.noise is None:
            raise ValueError(
                f"{path}: is a picture, whose k-space is simulated; give its --noise on the scale of the file, e.g. "
                f"{0.01 * scale:.2g}, 1 % of the largest value"
            )
        shape = (picture.x.shape[0], picture.x.shape[1])
        seed, coils, mask_name = args.seed or 0, args.coils or 1, args.mask or "random"
        operator = Sampling(MASKS[mask_name], args.acceleration or ACCELERATION, coils=coils).operator(shape, seed)
        exact = operator(torch.stack([picture.x, torch.zeros_like(picture.x)])[None])
        level = args.noise / scale
        noise = gaussian_noise(exact.shape[1:], level, seed, job.number, exact.dtype)
        y = (exact + noise.masked_fill(~operator.mask, 0.0)).to(self.dtype)
        origin = Origin(
            path,
            path.stem,
            UNIT,
            simulated=(
                f"k-space of the picture on the same pixels, mask {mask_name}, noise of standard deviation "
                f"{args.noise:g} in real and imaginary parts, seed {seed}"
            ),
            details={"pixel_size_mm": None if pixel_size is None else list(pixel_size)},
            dicom=DicomTarget(path, pixel_size) if picture.dicom and pixel_size else None,
        )
        maps = "those of the simulation"
        return self._problem(origin, y, operator, scale, (level, "given"), scale * picture.x, maps)

    def _problem(
        self,
        origin: Origin,
        y: Tensor,
        operator: CartesianMRI,
        scale: float,
        noise: tuple[float, str],
        reference: Tensor | None,
        sensitivities: str,
    ) -> Problem:
        """The problem of k-space (1, coils, 2, H, W) with what the report says of its sampling."""
        coils = y.shape[1]
        sampling = {
            "shape": list(operator.mask.shape),
            "coils": coils,
            "acceleration": operator.acceleration,
            "sensitivities": sensitivities if coils > 1 else "one coil, 1",
        }
        measured = 2 * coils * int(operator.mask.sum())
        operator, y = operator.to(self.args.device), y.to(self.args.device)
        return Problem(
            origin=replace(origin, details={"sampling": sampling, **origin.details}),
            noise=NoiseLevel(*noise, measured),
            y=y,
            operator=operator,
            start=operator.adjoint(y),
            baseline=scale * root_sum_of_squares(zero_filled(y))[0, 0].cpu().double(),
            scale=scale,
            reference=reference,
        )


def _uncertain(module: KSpaceDataModule) -> tuple[str, ...]:
    if module.covariance is None or module.covariance.certain:
        return ()
    return (
        f"{module.path}: the noise ({module.noise:.3g}, {module.covariance.rule}) may be overestimated, as what was "
        "sampled shows no part without signal; give --noise-scan, or --noise",
    )

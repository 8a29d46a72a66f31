"""Pictures to denoise: each with a regularizer, and a certificate of the accuracy.

The reconstruction of data y is x^ = argmin 1/2||x - y||^2 + weight R(x) + (mu/2)||x||^2, over x >= 0 if asked to. What
is written is an x with ||x - x^|| <= accuracy, the Euclidean norm over the whole image on the scale of its values
(8-bit files: [0, 1]).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from datasets import DataError
from datasets.physics import MAX_HU
from datasets.readers.dicom.slices import holds_dicom
from datasets.readers.nifti import is_nifti, read_nifti
from recon.commands.errors import printable
from recon.commands.reconstruct.options import SMOOTHED_TV, TV
from recon.commands.reconstruct.regularized import Trained
from recon.commands.reconstruct.report import Quality, Result, evaluations, graded
from recon.commands.reconstruct.tasks.declared import ImageFiles
from recon.commands.reconstruct.tasks.pictures import picture_files, read_values
from recon.commands.reconstruct.tasks.task import Job, Loaded, Task, named, note
from recon.files import Content
from recon.lower_level import Energy, Regularizer, SaddleModel
from recon.plotting.panels import Panel, busiest_square, side_by_side
from recon.reconstruction import DicomTarget, NoiseLevel, Origin, Problem
from recon.reconstruction.noise import image_noise
from recon.reconstruction.total_variation import EXACT_CERTIFICATE
from recon.reconstruction.variational import Weighted

# CT slices are denoised on the scale of the data modules: air is 0, bone of 3071 HU is 1
_HU_RANGE, _HU_ZERO = 1000 + MAX_HU, -1000.0
# what noise may make of a picture on [0, 1], in NIfTI files, whose scale can be anything
_LOWEST, _HIGHEST = -1.0, 2.0


class Images(ImageFiles, Task):
    """Denoising of pictures and slices; whatever no other task takes is one."""

    accuracy = 1e-2
    written = (".png", ".npy", "_comparison.png")
    psnr_convention = "PSNR and SSIM with data range 1, over all pixels and channels, values not clipped"
    remedies = "--dtype float64, a larger --accuracy or a larger --max-evaluations"

    def certificate(self, model: Loaded) -> str:
        return EXACT_CERTIFICATE if self.args.method == TV else super().certificate(model)

    def check(self) -> None:
        args = self.args
        if (args.method is None) == (args.model is None):
            raise ValueError(
                "images are denoised with a trained regularizer, or TV; give either --model or --method tv"
            )
        if args.method not in (None, TV, SMOOTHED_TV):
            raise ValueError(
                f"--method {args.method} does not go with --task denoising; valid are {TV} and {SMOOTHED_TV}"
            )
        if args.smoothing is not None and args.method == TV:
            raise ValueError(f"--method {TV} smooths nothing for images; --smoothing belongs to --method {SMOOTHED_TV}")
        if args.anisotropic and args.method != TV:
            raise ValueError(f"--anisotropic belongs to --method {TV}")
        if args.index:
            raise ValueError(f"--index is {args.index}, but an image file holds one image, 0")
        if args.choose == "sweep" and args.reference is None:
            raise ValueError("--choose sweep compares with a reference; give --reference, or --choose discrepancy")

    def jobs(self) -> list[Job]:
        """All pictures, with references of the same names; they are readable before anything is computed."""
        files = [file for path in self.args.data for file in picture_files(Path(path))]
        jobs = self.jobs_of(files, self._references(files))
        for job in jobs:
            _read(job)
        return jobs

    def _references(self, files: Sequence[Path]) -> Sequence[Path | None]:
        if self.args.reference is None:
            return [None] * len(files)
        reference = Path(self.args.reference)
        found = picture_files(reference)
        if len(files) == 1 and not reference.is_dir():
            return found
        by_name = {file.stem: file for file in found}
        for file in files:
            if file.stem not in by_name:
                raise DataError(
                    f"{self.args.reference}: has no reference for {file}; its name must be {file.stem}, too"
                )
        return [by_name[file.stem] for file in files]

    def trained(self, model: Regularizer | SaddleModel, metadata: Mapping[str, object]) -> Trained:
        """Regularizers need a strongly convex energy, unless their training stopped the descent early."""
        file, args = self.args.model, self.args
        for part, valid in {"operator": "Identity", "fidelity": "SquaredL2"}.items():
            found = str(metadata.get(part, valid))
            if found.rpartition(".")[2] != valid:
                raise ValueError(f"{file}: trained with the {part} {found}; this program denoises, which is {valid}")
        trained = super().trained(model, metadata)
        if isinstance(model, SaddleModel):
            return replace(trained, mu=0.0)  # there is no place for it
        if trained.steps is None:
            pixel = next(model.parameters(), torch.zeros(())).new_zeros(1, 1, 1, 1)
            try:
                energy = Energy(pixel, Weighted(model, args.weight or 1.0), mu=args.mu or trained.mu)
                energy.require_strong_convexity()
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from error
        return trained

    def problem(self, job: Job) -> Problem:
        """Denoising of a picture."""
        y, target = _read(job)
        noise = self.args.noise
        batch = y[None].to(self.args.device, self.dtype)
        spacing = read_nifti(job.data).pixel_size if is_nifti(job.data) else None
        with named(job.data):  # pictures that are too small
            level = image_noise(batch) if noise is None else noise / (_HU_RANGE if holds_dicom(job.data) else 1.0)
        return Problem(
            origin=Origin(
                job.data,
                job.data.stem,
                "1",
                details={} if spacing is None else {"pixel_size_mm": list(spacing)},
                dicom=DicomTarget(job.data) if holds_dicom(job.data) else None,
            ),
            noise=NoiseLevel(
                level, "estimated from second differences of the image" if noise is None else "given", batch.numel()
            ),
            y=batch,
            start=batch,
            baseline=y,
            reference=target,
        )

    def image(self, problem: Problem, x: Tensor) -> Tensor:
        return x[0].cpu()

    def quality(self, image: Tensor, reference: Tensor) -> Quality:
        return Quality.of(image, reference, 1.0)

    def contents(self, problem: Problem, result: Result, image: Tensor, x: Tensor | None) -> dict[str, Content]:
        pixels = image.numpy()[0] if len(image) == 1 else np.moveaxis(image.numpy(), 0, -1)  # what this program reads
        return {".png": pixels, ".npy": pixels, "_comparison.png": _picture(problem, result, image)}

    def stored(self, image: Tensor) -> Tensor:
        return _HU_RANGE * image[0] + _HU_ZERO

    def description(self) -> str:
        return "denoised by recon"

    def table(self, results: Sequence[Result]) -> Table:
        """One row for every image; PSNR of the data and of the reconstruction."""
        table = Table(title="Reconstructions, PSNR in dB")
        table.add_column("image", overflow="fold")
        for column in ("status", "weight", "‖x − x̂‖ ≤", "evals", "s", "PSNR", "SSIM"):
            table.add_column(column, justify="right")
        for r in results:
            before, (after, similarity) = r.before.psnr, r.quality
            weight, error = r.prior.weight, r.certified.error
            table.add_row(
                escape(printable(r.subject.name)),
                graded(r),
                "–" if weight is None else f"{weight:.2g}",
                "none" if error is None else f"{error:.1e}",
                evaluations(r),
                f"{r.seconds:.1f}",
                "" if after is None or before is None else f"{before:.2f} → {after:.2f}",
                "" if similarity is None else f"{similarity:.3f}",
            )
        return table

    def goal(self) -> str:
        accuracy = self.accuracy if self.args.accuracy is None else self.args.accuracy
        return f"images did not reach the accuracy {accuracy:g}"


def _read(job: Job) -> tuple[Tensor, Tensor | None]:
    """Data and reference, ``(channel, height, width)``, float64."""
    y = _image(job.data)
    if job.reference is None:
        return y, None
    # a gray image may be compared with a colour one: with its luminance
    target = _image(job.reference, gray=y.shape[0] == 1)
    if target.shape != y.shape:
        raise DataError(
            f"{job.reference}: has the shape {tuple(target.shape)}, but the data {job.data} have {tuple(y.shape)}"
        )
    return y, target


def _image(path: Path, gray: bool = False) -> Tensor:
    """(channel, height, width) on [0, 1]: pictures by their type, CT slices by (HU + 1000) / 4071, unclipped.

    NIfTI is taken as it is, where it can be a noisy picture on [0, 1]: no other scale is known.
    """
    values, _ = read_values(path, "CT", gray)
    if holds_dicom(path):
        return (values - _HU_ZERO) / _HU_RANGE
    low, high = float(values.min()), float(values.max())
    if is_nifti(path) and (low < _LOWEST or high > _HIGHEST):
        raise DataError(
            f"{path}: values from {low:g} to {high:g}; pictures are denoised on the scale [0, 1], so divide them, or "
            "simulate k-space with --task mri"
        )
    return values


def _picture(problem: Problem, result: Result, x: Tensor) -> bytes:
    y, target = problem.baseline, problem.reference
    panels = [Panel("data", y, note(result.before.psnr)), Panel("reconstruction", x, note(result.quality.psnr))]
    if target is not None:
        panels.append(Panel("reference", target))
    side = min(y.shape[1:]) // 5
    zoom = busiest_square(x if target is None else target, side) if side >= 8 else None
    return side_by_side(panels, zoom)

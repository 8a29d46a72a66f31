"""``recon reconstruct``: denoise image files with a trained regularizer, each with a certificate of its accuracy.

The reconstruction of data y is x^ = argmin 1/2||x - y||^2 + R(x) + (mu/2)||x||^2. What is written is an x with
||x - x^|| <= accuracy, the Euclidean norm over the whole image on the scale of its values (8-bit files: [0, 1]).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from datasets import DataError, ImageFolder, read_dicom, read_image, write_dicom
from datasets.dicom import DicomFolder, holds_dicom
from datasets.physics import MAX_HU
from models.storage import load_regularizer
from recon.commands.results import Result, finite, output_files, quality, results_table, words, write_result
from recon.files import prepare_folder, write_files
from recon.lower_level import LBFGS, Energy, Regularizer, Status, cropped, mirrored

REPORT = "report.json"
#: certified by default, ||x - x^|| of the whole image
ACCURACY = 1e-2
_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_OF_SCANS = ("weight", "choose", "noise", "mu", "smoothing", "geometry", "size", "pixel_size", "views", "angle_range")


# CT slices are denoised on the scale of the data modules: air is 0, bone of 3071 HU is 1
_HU_RANGE, _HU_ZERO = 1000 + MAX_HU, -1000.0


@dataclass(frozen=True)
class Job:
    """One image: where it is read, with what it is compared, and the name of what is written."""

    name: str
    data: Path
    reference: Path | None


def main(args: argparse.Namespace) -> int:
    """Run the program; returns 0 if every image reached the accuracy, else 1.

    Raises:
        ValueError: files that are no images or do not fit together, values out of range, a model that certifies
            nothing (DataError and ModelFileError are ValueErrors).
        OSError: a file is missing, or the output cannot be written.
    """
    args.accuracy = ACCURACY if args.accuracy is None else args.accuracy
    if args.model is None:
        raise ValueError("images are denoised with a trained regularizer; give --model")
    for option in _OF_SCANS:
        if getattr(args, option) is not None:
            raise ValueError(f"--{option.replace('_', '-')} belongs to CT and MRI; these data are taken for images")
    regularizer, metadata = load_regularizer(args.model)
    mu = _denoising_mu(metadata, args.model)
    regularizer.to(device=args.device, dtype=_DTYPES[args.dtype]).requires_grad_(False)
    jobs = _jobs([Path(p) for p in args.data], args.reference)
    _check_output(Path(args.output), [*(j.data for j in jobs), *(j.reference for j in jobs if j.reference)], jobs)
    for job in jobs:  # everything is readable before anything is computed
        _read(job)
    modulus = _strong_convexity(regularizer, mu, args.model)
    results = _reconstruct_all(jobs, regularizer, mu, args)
    failed = [r for r in results if r.status != words(Status.CONVERGED)]
    report = {
        "task": "denoising",
        "model": str(args.model),
        "regularizer": type(regularizer).__name__,
        "accuracy": args.accuracy,
        "strong_convexity": modulus,
        "mu": mu,
        "dtype": args.dtype,
        "device": args.device,
        "converged": not failed,
        "psnr_convention": "PSNR and SSIM with data range 1, over all pixels and channels, values not clipped",
        "images": [asdict(r) for r in results],
    }
    write_files({Path(args.output) / REPORT: (json.dumps(report, indent=2, allow_nan=False) + "\n").encode()})
    Console().print(results_table(results))
    if failed:
        print(
            f"recon reconstruct: {len(failed)} of {len(results)} images did not reach the accuracy {args.accuracy:g}: "
            f"{', '.join(f'{r.name} ({r.status})' for r in failed)}; try --dtype float64, a larger --accuracy or a "
            "larger --max-evaluations",
            file=sys.stderr,
        )
    return 1 if failed else 0


def _denoising_mu(metadata: dict[str, Any], model: str) -> float:
    """The weight mu that the regularizer was trained with, if it was trained for denoising."""
    for part, valid in {"operator": "Identity", "fidelity": "SquaredL2"}.items():
        found = str(metadata.get(part, valid))
        if found.rpartition(".")[2] != valid:
            raise ValueError(f"{model}: trained with the {part} {found}; this program denoises, which is {valid}")
    mu = metadata.get("mu", 0.0)
    if not isinstance(mu, (int, float)) or not 0 <= mu < math.inf:
        raise ValueError(f"{model}: mu is {mu!r}, but must be finite and not negative")
    return float(mu)


def _jobs(data: list[Path], reference: str | None) -> list[Job]:
    files = [file for path in data for file in _files(path)]
    seen: dict[str, Path] = {}
    for file in files:
        if file.stem in seen:
            raise DataError(f"{seen[file.stem]} and {file} have the same name, and so would their reconstructions")
        seen[file.stem] = file
    if reference is None:
        return [Job(file.stem, file, None) for file in files]
    references = _files(Path(reference))
    if len(files) == 1 and not Path(reference).is_dir():
        return [Job(files[0].stem, files[0], references[0])]
    by_name = {file.stem: file for file in references}
    for file in files:
        if file.stem not in by_name:
            raise DataError(f"{reference}: has no reference for {file}; its name must be {file.stem}, too")
    return [Job(file.stem, file, by_name[file.stem]) for file in files]


def _files(path: Path) -> list[Path]:
    """The images of a folder, or the DICOM slices if it has any; or the one file."""
    if not holds_dicom(path):
        return [Path(name) for name in ImageFolder(path).names]
    if path.is_file():
        return [path]
    return [Path(name) for name in DicomFolder(path, "CT").names]


def _check_output(output: Path, inputs: list[Path], jobs: list[Job]) -> None:
    """Make the folder; refuse one that cannot be written to, or where a result would replace an input."""
    prepare_folder(output)
    originals = {path.resolve() for path in inputs}
    for job in jobs:
        for path in (*output_files(output, job.name), output / f"{job.name}.dcm"):
            if path.resolve() in originals:
                raise ValueError(f"{path}: is an input and would be overwritten; choose another --output than {output}")


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
    """(channel, height, width) on [0, 1]: pictures by their type, CT slices by (HU + 1000) / 4071, unclipped."""
    if not holds_dicom(path):
        return read_image(path, gray=gray)
    return ((read_dicom(path, "CT").image - _HU_ZERO) / _HU_RANGE)[None]


def _strong_convexity(regularizer: Regularizer, mu: float, model: str) -> float:
    parameter = next(regularizer.parameters(), torch.zeros(()))
    energy = Energy(parameter.new_zeros(1, 1, 1, 1), regularizer, mu=mu)
    try:
        return energy.require_strong_convexity()
    except ValueError as error:
        raise ValueError(f"{model}: {error}") from error


class _WatchedEnergy(Energy):
    """Reports the certified distance to the minimizer at every evaluation."""

    def __init__(self, y: Tensor, regularizer: Regularizer, mu: float, show: Callable[[float], None]) -> None:
        super().__init__(y, regularizer, mu=mu)
        self.show = show

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, grad = super().value_and_grad(x)
        self.show(float(grad.norm()) / self.strong_convexity)
        return value, grad


def _reconstruct_all(jobs: list[Job], regularizer: Regularizer, mu: float, args: argparse.Namespace) -> list[Result]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn(
            "{task.completed}/{task.total}, evaluation {task.fields[evaluation]}, certified {task.fields[error]}"
        ),
        TimeElapsedColumn(),
    )
    results = []
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("reconstruct", total=len(jobs), evaluation=0, error="-")
        for job in jobs:
            count = 0

            def show(error: float) -> None:
                nonlocal count
                count += 1
                progress.update(task, evaluation=count, error=f"{error:.1e}")

            results.append(_reconstruct(job, regularizer, mu, args, show))
            progress.advance(task)
    return results


def _reconstruct(
    job: Job, regularizer: Regularizer, mu: float, args: argparse.Namespace, show: Callable[[float], None]
) -> Result:
    y, target = _read(job)
    batch = y[None].to(args.device, _DTYPES[args.dtype])
    start = time.perf_counter()
    try:
        data = mirrored(batch, regularizer.margin)
        energy = _WatchedEnergy(data, regularizer, mu, show)
        solution = LBFGS(max_iterations=args.max_evaluations)(energy, data, args.accuracy)
        solution = cropped(solution, (batch.shape[2], batch.shape[3]))
    except ValueError as error:  # images that are smaller than the filters
        raise DataError(f"{job.data}: {error}") from error
    seconds = time.perf_counter() - start
    x, distance = solution.x[0].cpu(), float(solution.error[0])
    result = Result(
        name=job.name,
        data=str(job.data),
        reference=str(job.reference) if job.reference else None,
        shape=list(y.shape),
        status=words(Status(int(solution.status[0]))),
        error=finite(distance),
        error_rms_per_pixel=finite(distance / math.sqrt(y.numel())),
        evaluations=int(solution.evaluations[0]),
        seconds=round(seconds, 3),
        **({} if target is None else quality(x, y, target)),
    )
    write_result(Path(args.output), result, x, y, target)
    if holds_dicom(job.data):
        write_dicom(Path(args.output) / f"{job.name}.dcm", _HU_RANGE * x[0] + _HU_ZERO, job.data, "denoised by recon")
    return result

"""``recon reconstruct``: denoise image files with a regularizer, each with a certificate of its accuracy.

The reconstruction of data y is x^ = argmin 1/2||x - y||^2 + weight R(x) + (mu/2)||x||^2, over x >= 0 if asked to. What
is written is an x with ||x - x^|| <= accuracy, the Euclidean norm over the whole image on the scale of its values
(8-bit files: [0, 1]).
"""

from __future__ import annotations

import argparse
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

from datasets import DataError, read_dicom, read_image, write_dicom
from datasets.physics import MAX_HU
from datasets.readers.dicom.slices import holds_dicom
from datasets.readers.nifti import is_nifti, read_nifti
from models.files.storage import load_model
from recon.commands.output.one_by_one import Outcome, one_by_one
from recon.commands.reconstruct.networks import Network
from recon.commands.reconstruct.pictures import picture_files
from recon.commands.reconstruct.regularized import (
    DTYPES,
    Settings,
    Trained,
    certificate,
    check_variational,
    reconstruct,
)
from recon.commands.reconstruct.results import (
    Result,
    certified,
    output_files,
    print_warnings,
    quality,
    results_table,
    words,
    write_result,
)
from recon.files import write_files
from recon.lower_level import Energy, NotStronglyConvexError, Regularizer, SaddleModel, Status
from recon.metrics import psnr
from recon.operators import Identity
from recon.reconstruction import Problem, Reconstructor, Watch
from recon.reconstruction.methods import NOT_CERTIFIED as STATUS
from recon.reconstruction.noise import image_noise
from recon.reconstruction.variational import Weighted

REPORT = "report.json"
#: what denoises; None is total variation
Model = Trained | Network | None
#: certified by default, ||x - x^|| of the whole image
ACCURACY = 1e-2
# CT slices are denoised on the scale of the data modules: air is 0, bone of 3071 HU is 1
_HU_RANGE, _HU_ZERO = 1000 + MAX_HU, -1000.0
# what noise may make of a picture on [0, 1], in NIfTI files, whose scale can be anything
_LOWEST, _HIGHEST = -1.0, 2.0


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
    if (args.method is None) == (args.model is None):
        raise ValueError("images are denoised with a trained regularizer, or TV; give either --model or --method tv")
    if args.method not in (None, "tv"):
        raise ValueError(f"--method {args.method} does not go with --task denoising; valid is tv")
    if args.index:
        raise ValueError(f"--index is {args.index}, but an image file holds one image, 0")
    if args.choose == "sweep" and args.reference is None:
        raise ValueError("--choose sweep compares with a reference; give --reference, or --choose discrepancy")
    model, metadata = load_model(args.model, args.trust) if args.model else (None, {})
    mu = args.mu
    if isinstance(model, Reconstructor):
        return _run(args, Network.of(model, metadata, args), None)
    args.accuracy = ACCURACY if args.accuracy is None else args.accuracy
    args.dtype = args.dtype or "float64"
    if model is not None:
        check_variational(model, Settings.of(args), args)
        trained = _trained_to_denoise(model, metadata, args.model)
        model.to(device=args.device, dtype=DTYPES[args.dtype]).requires_grad_(False)
        if isinstance(model, Regularizer):
            mu = args.mu or trained.mu
            if trained.steps is None:
                _require_strong_convexity(model, mu, args.weight or 1.0, args.model)
        return _run(args, trained, mu)
    return _run(args, None, mu)


def _run(args: argparse.Namespace, model: Model, mu: float | None) -> int:
    jobs = _jobs([Path(p) for p in args.data], args.reference)
    _check_output(Path(args.output), [*(j.data for j in jobs), *(j.reference for j in jobs if j.reference)], jobs)
    for job in jobs:  # everything is readable before anything is computed
        _read(job)

    def report(outcome: Outcome[Result]) -> None:
        _write_report(outcome, mu or 0.0, certificate(model, args.plain), args)

    return _finish(_reconstruct_all(jobs, model, mu, args, report), args)


def _failed(results: list[Result]) -> list[Result]:
    return [r for r in results if r.status not in (words(Status.CONVERGED), STATUS)]


def _write_report(outcome: Outcome[Result], mu: float, certified: str, args: argparse.Namespace) -> None:
    report = {
        "task": "denoising",
        "method": args.method or "model",
        "model": args.model,
        "accuracy": args.accuracy,
        "nonnegative": args.nonnegative,
        "plain": args.plain,
        "certificate": certified,
        "mu": mu,
        "dtype": args.dtype,
        "device": args.device,
        "converged": not (_failed(outcome.results) or outcome.failures or outcome.pending),
        "psnr_convention": "PSNR and SSIM with data range 1, over all pixels and channels, values not clipped",
        "images": [asdict(r) for r in outcome.results],
        **outcome.entries(),
    }
    write_files({Path(args.output) / REPORT: report})


def _finish(outcome: Outcome[Result], args: argparse.Namespace) -> int:
    """Show the table, and name what failed or did not reach its accuracy."""
    results, failed = outcome.results, _failed(outcome.results)
    Console().print(results_table(results))
    print_warnings(results)
    if failed:
        print(
            f"recon reconstruct: {len(failed)} of {len(results)} images did not reach the accuracy {args.accuracy:g}: "
            f"{', '.join(f'{r.name} ({r.status})' for r in failed)}; try --dtype float64, a larger --accuracy or a "
            "larger --max-evaluations",
            file=sys.stderr,
        )
    outcome.print_failures("recon reconstruct")
    return 1 if failed or outcome.failures else 0


def _trained_to_denoise(model: Regularizer | SaddleModel, metadata: dict[str, Any], file: str) -> Trained:
    """The model with the weight mu that it was trained with, if it was trained for denoising."""
    for part, valid in {"operator": "Identity", "fidelity": "SquaredL2"}.items():
        found = str(metadata.get(part, valid))
        if found.rpartition(".")[2] != valid:
            raise ValueError(f"{file}: trained with the {part} {found}; this program denoises, which is {valid}")
    return Trained.of(model, metadata, file)


def _require_strong_convexity(regularizer: Regularizer, mu: float, weight: float, model: str) -> None:
    parameter = next(regularizer.parameters(), torch.zeros(()))
    try:
        Energy(parameter.new_zeros(1, 1, 1, 1), Weighted(regularizer, weight), mu=mu).require_strong_convexity()
    except ValueError as error:
        raise ValueError(f"{model}: {error}") from error


def _jobs(data: list[Path], reference: str | None) -> list[Job]:
    files = [file for path in data for file in picture_files(path)]
    seen: dict[str, Path] = {}
    for file in files:
        if file.stem in seen:
            raise DataError(f"{seen[file.stem]} and {file} have the same name, and so would their reconstructions")
        seen[file.stem] = file
    if reference is None:
        return [Job(file.stem, file, None) for file in files]
    references = picture_files(Path(reference))
    if len(files) == 1 and not Path(reference).is_dir():
        return [Job(files[0].stem, files[0], references[0])]
    by_name = {file.stem: file for file in references}
    for file in files:
        if file.stem not in by_name:
            raise DataError(f"{reference}: has no reference for {file}; its name must be {file.stem}, too")
    return [Job(file.stem, file, by_name[file.stem]) for file in files]


def _check_output(output: Path, inputs: list[Path], jobs: list[Job]) -> None:
    """Refuse a folder where a result would replace an input."""
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
    if is_nifti(path):
        return _on_unit_scale(read_nifti(path).image, path)[None]
    if not holds_dicom(path):
        return read_image(path, gray=gray)
    return ((read_dicom(path, "CT").image - _HU_ZERO) / _HU_RANGE)[None]


def _on_unit_scale(values: Tensor, path: Path) -> Tensor:
    """NIfTI as it is, where it can be a noisy picture on [0, 1]: no other scale is known."""
    low, high = float(values.min()), float(values.max())
    if low < _LOWEST or high > _HIGHEST:
        raise DataError(
            f"{path}: values from {low:g} to {high:g}; pictures are denoised on the scale [0, 1], so divide them, or "
            "simulate k-space with --task mri"
        )
    return values


def _pixel_size(path: Path) -> list[float] | None:
    """Of NIfTI; DICOM keeps it in the slice that is written."""
    found = read_nifti(path).pixel_size if is_nifti(path) else None
    return None if found is None else list(found)


def _reconstruct_all(
    jobs: list[Job],
    model: Model,
    mu: float | None,
    args: argparse.Namespace,
    report: Callable[[Outcome[Result]], None],
) -> Outcome[Result]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn(
            "{task.completed}/{task.total}, evaluation {task.fields[evaluation]}, certified {task.fields[error]}"
        ),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("reconstruct", total=len(jobs), evaluation=0, error="-")

        def watch(phase: str, evaluation: int, error: float) -> None:
            progress.update(task, evaluation=evaluation, error=f"{error:.1e}")

        def work(job: Job) -> Result:
            if isinstance(model, Network):
                return _by_network(job, model, args)
            return _reconstruct(job, model, mu, args, watch)

        def reported(outcome: Outcome[Result]) -> None:
            report(outcome)
            progress.advance(task)

        return one_by_one({str(job.data): job for job in jobs}, work, reported)


def _problem(job: Job, y: Tensor, noise: float | None) -> Problem:
    """Denoising of y (1, channel, height, width)."""
    dicom = holds_dicom(job.data)
    scale = _HU_RANGE if dicom else 1.0
    rule = "estimated from second differences of the image" if noise is None else "given"
    return Problem(
        name=job.name,
        data=job.data,
        task="denoising",
        y=y,
        operator=Identity(),
        start=y,
        baseline=y[0, 0].cpu().double(),
        method="data",
        scale=1.0,
        unit="1",
        noise=image_noise(y) if noise is None else noise / scale,
        noise_rule=rule,
        measured=y.numel(),
    )


def _reconstruct(job: Job, model: Trained | None, mu: float | None, args: argparse.Namespace, watch: Watch) -> Result:
    y, target = _read(job)
    batch = y[None].to(args.device, DTYPES[args.dtype])

    def psnr_of(x: Tensor) -> float:
        assert target is not None
        return float(psnr(x.cpu().double(), target[None]))

    start = time.perf_counter()
    try:
        problem = _problem(job, batch, args.noise)
        made = reconstruct(problem, model, mu, Settings.of(args), psnr_of, watch)
    except NotStronglyConvexError:
        raise
    except ValueError as error:  # images that are smaller than the filters
        named = str(job.data) in str(error)
        raise DataError(str(error) if named else f"{job.data}: {error}") from error
    solution = made.solution
    seconds = time.perf_counter() - start
    x = solution.x[0].cpu()
    result = Result(
        name=job.name,
        data=str(job.data),
        reference=str(job.reference) if job.reference else None,
        shape=list(y.shape),
        status=made.status,
        **certified(solution, 1.0, y.numel()),
        evaluations=int(solution.evaluations[0]),
        seconds=round(seconds, 3),
        regularizer=type(made.solver.regularizer).__name__,
        strong_convexity=made.solver.strong_convexity(made.choice.weight),
        weight=made.choice.weight,
        weight_rule=made.choice.rule,
        weight_trials=made.choice.entries(),
        noise=problem.noise,
        noise_rule=problem.noise_rule,
        residual=made.residual or 0.0,
        evaluations_choosing=made.choice.evaluations,
        pixel_size_mm=_pixel_size(job.data),
        **({} if target is None else quality(x, y, target)),
    )
    _write(result, job, x, y, target, args)
    return result


def _by_network(job: Job, network: Network, args: argparse.Namespace) -> Result:
    y, target = _read(job)
    start = time.perf_counter()
    problem = _problem(job, y[None].to(args.device, DTYPES[args.dtype]), args.noise)
    found, warnings = network(problem)
    x, seconds = found[0].cpu(), time.perf_counter() - start
    result = Result(
        name=job.name,
        data=str(job.data),
        reference=str(job.reference) if job.reference else None,
        shape=list(y.shape),
        status=STATUS,
        error=None,
        error_rms_per_pixel=None,
        error_rounding=None,
        grade=None,
        evaluations=None,
        seconds=round(seconds, 3),
        regularizer=network.name,
        strong_convexity=None,
        weight=None,
        weight_rule=None,
        weight_trials=[],
        noise=problem.noise,
        noise_rule=problem.noise_rule,
        residual=problem.residual(found),
        evaluations_choosing=0,
        pixel_size_mm=_pixel_size(job.data),
        warnings=warnings,
        **({} if target is None else quality(x, y, target)),
    )
    _write(result, job, x, y, target, args)
    return result


def _write(result: Result, job: Job, x: Tensor, y: Tensor, target: Tensor | None, args: argparse.Namespace) -> None:
    write_result(Path(args.output), result, x, y, target)
    if holds_dicom(job.data):
        write_dicom(Path(args.output) / f"{job.name}.dcm", _HU_RANGE * x[0] + _HU_ZERO, job.data, "denoised by recon")

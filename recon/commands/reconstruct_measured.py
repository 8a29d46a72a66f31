"""``recon reconstruct`` for measured data: the plain method, or a regularized reconstruction with its certificate."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from torch import Tensor

from datasets.reading import DataError
from models import TotalVariation
from models.storage import load_regularizer
from recon.commands.measured_results import MeasuredResult, measured_table, output_files, quality, write_measured
from recon.commands.problem import CERTIFICATE, NOT_EXACT, Problem, Solver
from recon.commands.reconstruct_ct import CTOptions, ct_problem
from recon.commands.reconstruct_mri import kspace_problem
from recon.commands.references import read_reference
from recon.commands.results import finite, words
from recon.commands.weight import Choice, discrepancy, sweep
from recon.files import prepare_folder, write_files
from recon.lower_level import Regularizer, Status

REPORT = "report.json"
DTYPES = {"float32": torch.float32, "float64": torch.float64}
#: mu and the accuracy by default, relative to ||A||^2 and to the norm of the first guess
RELATIVE_MU = {"ct": 1e-5, "mri": 1e-3}
RELATIVE_ACCURACY = 1e-2
#: smoothing of TV relative to the 99th percentile of the first guess
SMOOTHING = 0.01


def main(args: argparse.Namespace, task: str) -> int:
    """Reconstruct every file; returns 0 if every certificate was reached, else 1.

    Raises:
        ValueError: files that cannot be used or do not fit together, values out of range.
        OSError: a file is missing, or the output cannot be written.
    """
    paths = [Path(p) for p in args.data]
    _check(args, task, paths)
    model = load_regularizer(args.model) if args.model else None
    if model is not None:
        model[0].to(device=args.device, dtype=DTYPES[args.dtype]).requires_grad_(False)
    prepare_folder(Path(args.output))
    results = []
    with _progress() as show:
        for path in paths:
            show(f"{path.name}: reading, operator")
            problem = _problem(path, task, args)
            results.append(_one(problem, model, args, show))
    failed = [r for r in results if r.status not in (words(Status.CONVERGED), "direct")]
    report = {
        "task": task,
        "method": args.method or "model",
        "converged": not failed,
        "dtype": args.dtype,
        "device": args.device,
        "certificate": CERTIFICATE if args.backend != "astra_cuda" else NOT_EXACT,
        "images": [r.entries() for r in results],
    }
    write_files({Path(args.output) / REPORT: (json.dumps(report, indent=2, allow_nan=False) + "\n").encode()})
    Console().print(measured_table(results))
    if failed:
        print(
            f"recon reconstruct: {len(failed)} of {len(results)} reconstructions did not reach their accuracy: "
            f"{', '.join(f'{r.name} ({r.status})' for r in failed)}; try --dtype float64, a larger --accuracy, a "
            "larger --mu or a larger --max-evaluations",
            file=sys.stderr,
        )
    return 1 if failed else 0


def _check(args: argparse.Namespace, task: str, paths: list[Path]) -> None:
    plain = {"ct": "fbp", "mri": "zero_filled"}[task]
    if (args.method is None) == (args.model is None):
        raise ValueError(f"give either --model or --method; methods for {task} are {plain}, tv")
    if args.method not in (None, plain, "tv"):
        raise ValueError(f"--method {args.method} does not go with --task {task}; valid are {plain}, tv")
    if args.weight is not None and args.choose is not None:
        raise ValueError("--weight and --choose exclude each other; give one of them")
    for name in ("weight", "mu", "accuracy", "noise", "smoothing", "pixel_size"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} is {value}, but must be positive and finite")
    for name in ("size", "views"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}, but must be at least 1")
    if task == "mri":
        for name in ("geometry", "size", "pixel_size", "views", "angle_range", "rotation_centre"):
            if getattr(args, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')} belongs to --task ct")
    names: dict[str, Path] = {}
    for path in paths:
        if path.is_dir():
            raise DataError(f"{path}: is a folder; name the files that belong together by their geometry")
        if path.stem in names:
            raise DataError(f"{names[path.stem]} and {path} have the same name, and so would their reconstructions")
        names[path.stem] = path
    if args.reference is not None and len(paths) != 1:
        raise ValueError("--reference is one file for one file of --data")
    inputs = {p.resolve() for p in [*paths, *([Path(args.reference)] if args.reference else [])]}
    for path in paths:
        for file in output_files(Path(args.output), path.stem):
            if file.resolve() in inputs:
                raise ValueError(f"{file}: is an input and would be overwritten; choose another --output")


def _problem(path: Path, task: str, args: argparse.Namespace) -> Problem:
    dtype, reference = DTYPES[args.dtype], None
    if args.reference is not None:
        reference = read_reference(Path(args.reference), task)
    if task == "mri":
        problem = kspace_problem(path, args.index, args.noise, dtype, args.device, reference)
    else:
        options = CTOptions(
            geometry=Path(args.geometry) if args.geometry else None,
            size=args.size,
            pixel_size=args.pixel_size,
            views=args.views,
            angle_range=tuple(args.angle_range) if args.angle_range else None,
            rotation_centre=args.rotation_centre,
            index=args.index,
            noise=args.noise,
            filter=args.filter,
            backend=args.backend,
        )
        problem = ct_problem(path, options, dtype, args.device, reference)
    if args.choose == "sweep" and problem.reference is None:
        raise ValueError(f"{path}: --choose sweep compares with a reference; give --reference, or --choose discrepancy")
    if problem.reference is not None:
        quality(problem.baseline, problem.reference)  # shapes that do not fit are found before the work
    return problem


def _one(
    problem: Problem,
    model: tuple[Regularizer, dict[str, Any]] | None,
    args: argparse.Namespace,
    show: Callable[[str], None],
) -> MeasuredResult:
    start = time.perf_counter()
    output = Path(args.output)
    if args.method in ("fbp", "zero_filled"):
        result = MeasuredResult.of_baseline(problem, args.method, time.perf_counter() - start)
        write_measured(output, problem, result, problem.baseline, None)
        return result
    regularizer, trained_mu = _regularizer(problem, model, args)
    mu = args.mu or trained_mu or RELATIVE_MU[problem.task] * problem.operator.norm_bound**2
    count = 0

    def watch(error: float) -> None:
        nonlocal count
        count += 1
        show(f"{problem.name}: {phase}, evaluation {count}, certified {error * problem.scale:.2g} {problem.unit}")

    phase = "choosing the weight"
    solver = Solver(problem, regularizer, mu, args.max_evaluations, watch)
    choice = _choice(problem, solver, args, trained=model is not None)
    accuracy = (
        RELATIVE_ACCURACY * float(problem.start.norm()) if args.accuracy is None else args.accuracy / problem.scale
    )
    phase = "final solution"
    solution = solver.certified(choice.weight, choice.start, accuracy)
    error = float(solution.error[0]) * problem.scale if problem.exact else math.inf
    image = problem.picture(solution.x)
    result = MeasuredResult(
        name=problem.name,
        data=str(problem.data),
        method="tv" if model is None else "model",
        model=args.model,
        regularizer=type(regularizer).__name__,
        smoothing=float(regularizer.log_smoothing.exp()) * problem.scale
        if isinstance(regularizer, TotalVariation)
        else None,
        shape=list(image.shape),
        unit=problem.unit,
        status=words(Status(int(solution.status[0]))),
        weight=choice.weight,
        weight_rule=choice.rule,
        weight_trials=[{"weight": t.weight, "value": t.value} for t in choice.trials],
        noise=problem.noise * problem.scale,
        noise_rule=problem.noise_rule,
        residual=problem.residual(solution.x) * problem.scale,
        mu=mu,
        strong_convexity=solver.energy(choice.weight).strong_convexity,
        norm_bound=problem.operator.norm_bound,
        accuracy=accuracy * problem.scale,
        error=finite(error),
        error_relative=finite(error / max(float(image.norm()), 1e-300)),
        error_rms_per_pixel=finite(error / math.sqrt(image.numel())),
        evaluations=int(solution.evaluations[0]),
        evaluations_choosing=choice.evaluations,
        seconds=round(time.perf_counter() - start, 2),
        details=dict(problem.details),
        **quality(problem.baseline, problem.reference, "baseline_"),
        **quality(image, problem.reference),
    )
    write_measured(output, problem, result, image, solution.x)
    return result


def _regularizer(
    problem: Problem, model: tuple[Regularizer, dict[str, Any]] | None, args: argparse.Namespace
) -> tuple[Regularizer, float | None]:
    """R of weight 1, and the mu that it was trained with."""
    if model is not None:
        mu = model[1].get("mu", 0.0)
        if not isinstance(mu, (int, float)) or not 0 <= mu < math.inf:
            raise ValueError(f"{args.model}: mu is {mu!r}, but must be finite and not negative")
        return model[0], float(mu)
    nu = args.smoothing / problem.scale if args.smoothing else SMOOTHING * _height(problem.start)
    tv = TotalVariation(log_weight=0.0, log_smoothing=math.log(nu))
    return tv.to(problem.y).requires_grad_(False), None


def _height(x: Tensor) -> float:
    """The 99th percentile of absolute values: the height of what is seen, whatever the streaks of the first guess."""
    values = x.detach().abs().flatten().double()
    values = values[values > 0]
    if not len(values):
        raise ValueError("the data give an image that is zero everywhere")
    return float(values.kthvalue(max(1, math.ceil(0.99 * len(values)))).values)


def _choice(problem: Problem, solver: Solver, args: argparse.Namespace, trained: bool) -> Choice:
    def psnr(x: Tensor) -> float:
        value = quality(problem.picture(x), problem.reference)["psnr"]
        return math.inf if value is None else value

    if args.weight is not None or (trained and args.choose is None):
        rule = "given" if args.weight is not None else "as trained"
        return Choice(args.weight or 1.0, rule, (), 0, problem.start)
    if args.choose == "sweep":
        return sweep(solver, trained, psnr)
    return discrepancy(solver, trained)


class _progress:
    """A line that says what is being done; ``with _progress() as show: show("text")``."""

    def __enter__(self) -> Callable[[str], None]:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self.progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self.progress.__enter__()
        task = self.progress.add_task("")
        return lambda text: self.progress.update(task, description=text)

    def __exit__(self, *error: Any) -> None:
        self.progress.__exit__(*error)

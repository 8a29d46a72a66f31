"""``recon reconstruct`` for CT and MRI: the plain method, or a regularized reconstruction with its certificate."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from torch import Tensor

from datasets.readers.pictures import DataError
from models.files.storage import load_model
from recon.commands.errors import printable
from recon.commands.output.one_by_one import Outcome, one_by_one
from recon.commands.reconstruct.ct import ct_problem, simulates
from recon.commands.reconstruct.ct_data import CTOptions
from recon.commands.reconstruct.measured_results import (
    MeasuredResult,
    measured_table,
    output_files,
    quality,
    write_measured,
)
from recon.commands.reconstruct.mri import ACCELERATION, MRIOptions, mri_problem
from recon.commands.reconstruct.networks import Network
from recon.commands.reconstruct.options import option
from recon.commands.reconstruct.pictures import holds_complex, is_picture, picture_files
from recon.commands.reconstruct.references import read_reference
from recon.commands.reconstruct.regularized import (
    DTYPES,
    Settings,
    Trained,
    certificate,
    check_variational,
    reconstruct,
)
from recon.commands.reconstruct.results import print_warnings, words
from recon.files import write_files
from recon.lower_level import Status
from recon.reconstruction import Problem, Reconstructor
from recon.reconstruction.methods import NOT_CERTIFIED as STATUS
from recon.reconstruction.variational import NOT_EXACT

REPORT = "report.json"
#: mu by default, relative to ||A||^2
RELATIVE_MU = {"ct": 1e-5, "mri": 1e-3}
PLAIN = {"ct": "fbp", "mri": "zero_filled"}
# what means nothing for data that were measured, and for pictures whose data are simulated
_OF_SIMULATIONS = {"ct": ("seed",), "mri": ("size", "mask", "acceleration", "coils", "seed")}
_OF_MEASUREMENTS = ("rotation_centre", "counts", "flat", "dark", "angles", "ring_filter", "noise_scan", "reference")


def main(args: argparse.Namespace, task: str) -> int:
    """Reconstruct every file; returns 0 if every certificate was reached, else 1.

    Raises:
        ValueError: files that cannot be used or do not fit together, values out of range.
        OSError: a file is missing, or the output cannot be written.
    """
    _check_method(args, task)
    paths = [file for path in args.data for file in _files(Path(path), task)]
    _check_files(args, task, paths)
    model: Trained | Network | None = None
    loaded, metadata = load_model(args.model, args.trust) if args.model else (None, {})
    if isinstance(loaded, Reconstructor):
        model = Network.of(loaded, metadata, args)
    args.dtype = args.dtype or "float64"
    if loaded is not None and not isinstance(loaded, Reconstructor):
        regularizer = loaded
        check_variational(regularizer, Settings.of(args), args)
        regularizer.to(device=args.device, dtype=DTYPES[args.dtype]).requires_grad_(False)
        model = Trained.of(regularizer, metadata, args.model)
    described = certificate(model, args.plain)
    described = described if args.backend != "astra_cuda" else NOT_EXACT
    with _progress() as show:

        def work(job: tuple[int, Path]) -> MeasuredResult:
            number, path = job
            show(f"{path.name}: reading, operator")
            problem = _problem(path, number, task, args)
            if args.method == PLAIN[task]:
                return _plain(problem, args)
            if isinstance(model, Network):
                return _by_network(problem, model, args)
            return _regularized(problem, model, args, show)

        def report(outcome: Outcome[MeasuredResult]) -> None:
            _write_report(outcome, args, task, described)

        outcome = one_by_one({str(path): (number, path) for number, path in enumerate(paths)}, work, report)
    return _finish(outcome)


def _failed(results: list[MeasuredResult]) -> list[MeasuredResult]:
    return [r for r in results if r.status not in (words(Status.CONVERGED), "direct", STATUS)]


def _write_report(outcome: Outcome[MeasuredResult], args: argparse.Namespace, task: str, certified: str) -> None:
    report = {
        "task": task,
        "method": args.method or "model",
        "converged": not (_failed(outcome.results) or outcome.failures or outcome.pending),
        "dtype": args.dtype,
        "device": args.device,
        "certificate": certified,
        "images": [r.entries() for r in outcome.results],
        **outcome.entries(),
    }
    write_files({Path(args.output) / REPORT: report})


def _finish(outcome: Outcome[MeasuredResult]) -> int:
    """Show the table, and name what failed or did not reach its accuracy."""
    results, failed = outcome.results, _failed(outcome.results)
    console = Console()
    console.print(measured_table(results))
    print_warnings(results)
    for result in results:
        centre = result.details.get("rotation_centre", {})
        if centre.get("estimated"):
            where = (
                f"detector pixel {centre['detector_pixel']:.2f} ± {centre['uncertainty']:.2f}, from {centre['method']}"
            )
            console.print(f"{escape(result.name)}: rotation centre {where}", highlight=False)
    for simulated in dict.fromkeys(r.simulated for r in results if r.simulated):
        console.print(f"simulated data: {simulated}")
    if failed:
        print(
            f"recon reconstruct: {len(failed)} of {len(results)} reconstructions did not reach their accuracy: "
            f"{', '.join(f'{r.name} ({r.status})' for r in failed)}; try --dtype float64, a larger --accuracy, a "
            "larger --mu or a larger --max-evaluations",
            file=sys.stderr,
        )
    outcome.print_failures("recon reconstruct")
    return 1 if failed or outcome.failures else 0


def _check_method(args: argparse.Namespace, task: str) -> None:
    if (args.method is None) == (args.model is None):
        raise ValueError(f"give either --model or --method; methods for {task} are {PLAIN[task]}, tv")
    if args.method not in (None, PLAIN[task], "tv"):
        raise ValueError(f"--method {args.method} does not go with --task {task}; valid are {PLAIN[task]}, tv")
    if task == "mri" and args.nonnegative:
        raise ValueError("--nonnegative does not go with MRI, whose images are complex")
    if args.noise is not None and args.photons is not None:
        raise ValueError("--noise and --photons exclude each other: photons say what the noise is; give one of them")
    if args.noise is not None and args.noise_scan is not None:
        raise ValueError("--noise and --noise-scan exclude each other; give one of them")
    if args.counts and args.photons is None:
        raise ValueError("--counts needs --photons, those of a ray through air")


def _files(path: Path, task: str) -> list[Path]:
    """A file, or the pictures in a folder."""
    if not path.is_dir():
        return [path]
    return picture_files(path, "CT" if task == "ct" else "MR")


def _check_files(args: argparse.Namespace, task: str, paths: list[Path]) -> None:
    names: dict[str, Path] = {}
    for path in paths:
        if path.stem in names:
            raise DataError(f"{names[path.stem]} and {path} have the same name, and so would their reconstructions")
        names[path.stem] = path
        simulated = is_picture(path) if task == "mri" else simulates(path, _ct_options(args, 0))
        if task == "ct" and holds_complex(path):
            raise DataError(f"{path}: holds complex values, as k-space does; use --task mri")
        for name in _OF_MEASUREMENTS if simulated else _OF_SIMULATIONS[task]:
            if getattr(args, name) not in (None, False):
                kind = "a picture, whose data are simulated" if simulated else "taken for measured data"
                raise ValueError(f"{option(name)} does not go with {path}, which is {kind}")
        if simulated and args.index:
            raise DataError(f"{path}: there is no slice {args.index}; the file holds one, 0")
    if args.reference is not None and len(paths) != 1:
        raise ValueError("--reference is one file for one file of --data")
    inputs = {p.resolve() for p in [*paths, *([Path(args.reference)] if args.reference else [])]}
    for path in paths:
        for file in output_files(Path(args.output), path.stem):
            if file.resolve() in inputs:
                raise ValueError(f"{file}: is an input and would be overwritten; choose another --output")


def _ct_options(args: argparse.Namespace, number: int) -> CTOptions:
    return CTOptions(
        geometry=Path(args.geometry) if args.geometry else None,
        size=args.size,
        pixel_size=args.pixel_size,
        views=args.views,
        angle_range=tuple(args.angle_range) if args.angle_range else None,
        rotation_centre=args.rotation_centre,
        index=args.index,
        noise=args.noise,
        photons=args.photons,
        counts=args.counts,
        flat=args.flat,
        dark=args.dark,
        angles=args.angles,
        ring_filter=args.ring_filter,
        filter=args.filter,
        backend=args.backend,
        seed=args.seed or 0,
        number=number,
    )


def _mri_options(args: argparse.Namespace, number: int) -> MRIOptions:
    return MRIOptions(
        index=args.index,
        noise=args.noise,
        noise_scan=args.noise_scan,
        size=args.size,
        mask=args.mask or "random",
        acceleration=args.acceleration or ACCELERATION,
        coils=args.coils or 1,
        seed=args.seed or 0,
        number=number,
    )


def _problem(path: Path, number: int, task: str, args: argparse.Namespace) -> Problem:
    dtype, reference = DTYPES[args.dtype], None
    if args.reference is not None:
        reference = read_reference(Path(args.reference), task)
    try:
        if task == "mri":
            problem = mri_problem(path, _mri_options(args, number), dtype, args.device, reference)
        else:
            problem = ct_problem(path, _ct_options(args, number), dtype, args.device, reference)
    except ValueError as error:
        if path.name in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error  # geometry and operators know no files
    if args.choose == "sweep" and problem.reference is None:
        raise ValueError(f"{path}: --choose sweep compares with a reference; give --reference, or --choose discrepancy")
    if problem.reference is not None:
        quality(problem.baseline, problem.reference)  # shapes that do not fit are found before the work
    return problem


def _plain(problem: Problem, args: argparse.Namespace) -> MeasuredResult:
    """Filtered back-projection, or the zero-filled image."""
    result = MeasuredResult.of_baseline(problem, args.method, 0.0)
    write_measured(Path(args.output), problem, result, problem.baseline, None)
    return result


def _by_network(problem: Problem, network: Network, args: argparse.Namespace) -> MeasuredResult:
    """What a trained network returns."""
    start = time.perf_counter()
    x, warnings = network(problem)
    image = problem.picture(x)
    result = MeasuredResult.of_network(problem, network, x, image, warnings, time.perf_counter() - start)
    write_measured(Path(args.output), problem, result, image, x)
    return result


def _regularized(
    problem: Problem, model: Trained | None, args: argparse.Namespace, show: Callable[[str], None]
) -> MeasuredResult:
    """The regularized reconstruction."""

    def watch(phase: str, evaluation: int, error: float) -> None:
        certified = f"certified {error * problem.scale:.2g} {problem.unit}"
        show(f"{problem.name}: {phase}, evaluation {evaluation}, {certified}")

    def psnr(x: Tensor) -> float:
        value = quality(problem.picture(x), problem.reference)["psnr"]
        return math.inf if value is None else value

    start = time.perf_counter()
    mu = args.mu or (model and model.mu) or RELATIVE_MU[problem.task] * problem.operator.norm_bound**2
    if args.plain and not args.mu:
        mu = None  # as the model says, in the plain form
    try:
        made = reconstruct(problem, model, mu, Settings.of(args), psnr, watch)
    except ValueError as error:
        if problem.data.name in str(error):
            raise
        raise ValueError(f"{problem.data}: {error}") from error  # models and solvers know no files
    image = problem.picture(made.solution.x)
    seconds = time.perf_counter() - start
    result = MeasuredResult.of_reconstruction(problem, made, image, args.model, seconds)
    write_measured(Path(args.output), problem, result, image, made.solution.x)
    return result


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A line that says what is being done; ``with _progress() as show: show("text")``."""
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("")
        yield lambda text: progress.update(task, description=printable(text))

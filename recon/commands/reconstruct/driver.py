"""``recon reconstruct``, whatever the task: one file after the other, a report after each, a table in the end."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from torch import Tensor

from models.files.storage import load_model
from recon.commands.errors import printable
from recon.commands.output.one_by_one import Outcome, one_by_one
from recon.commands.output.summary import SUMMARY, summary
from recon.commands.reconstruct.networks import TrainedNetwork
from recon.commands.reconstruct.regularized import Trained, check_variational, reconstruct
from recon.commands.reconstruct.report import REPORT, Prior, Quality, Result, Subject, Work, report
from recon.commands.reconstruct.tasks.task import Job, Loaded, Task, named
from recon.files import write_files
from recon.reconstruction import Problem, Reconstructor, Regularized, Request
from recon.reconstruction.methods import NOT_CERTIFIED


def reconstruct_files(task: Task) -> int:
    """Reconstruct every file of a task.

    Parameters
    ----------
    task : Task
        With the options that were given.

    Returns
    -------
    int
        0 if all reached their accuracy, else 1.

    Raises
    ------
    ValueError
        Files that cannot be used or do not fit together, values out of range, a model that certifies nothing.
    OSError
        A file is missing, or the output cannot be written.
    """
    begin, written = time.perf_counter(), list[str]()
    task.check()
    jobs = task.jobs()
    model = _model(task)
    with _progress() as show:

        def work(job: Job) -> Result:
            result, files = _result(job, task, model, show)
            written.extend(file.name for file in files)
            return result

        def write(outcome: Outcome[Result]) -> None:
            content = report(outcome, _about(task, model))
            about = summary("reconstruct", time.perf_counter() - begin, _status(outcome), _numbers(outcome, task))
            about |= {"written": [*written, REPORT]}
            write_files({task.output / REPORT: content, task.output / SUMMARY: about})

        outcome = one_by_one({str(job.data): job for job in jobs}, work, write)
    return _finish(outcome, task)


def _model(task: Task) -> Loaded:
    """What ``--model`` names, on the device and in the precision of the task."""
    args = task.args
    loaded, metadata = load_model(args.model, args.trust) if args.model else (None, {})
    if isinstance(loaded, Reconstructor):
        return TrainedNetwork.of(loaded, metadata, args)
    args.dtype = args.dtype or "float64"
    if loaded is None:
        return None
    check_variational(loaded, args)
    loaded.to(device=args.device, dtype=task.dtype).requires_grad_(False)
    return task.trained(loaded, metadata)


def _result(job: Job, task: Task, model: Loaded, show: Callable[[str], None]) -> tuple[Result, list[Path]]:
    """Read a file, reconstruct, write the result; returns its entry, and what was written."""
    args = task.args
    show(f"{job.data.name}: reading, operator")
    problem = task.problem(job)
    if args.choose == "sweep" and problem.reference is None:
        raise ValueError(
            f"{job.data}: --choose sweep compares with a reference; give --reference, or --choose discrepancy"
        )
    before = _quality(problem.baseline, problem, task)  # shapes that do not fit are found before the work
    begin = time.perf_counter()
    x, made, warnings = None, None, list[str]()
    if isinstance(model, TrainedNetwork):
        x, warnings = model(problem)
    elif args.method is None or args.method != task.plain:
        made = _solved(problem, task, model, show)
        x = made.solution.x
    image = problem.baseline if x is None else task.image(problem, x)
    seconds = round(time.perf_counter() - begin, 3)
    result = Result(Subject.of(problem, job.reference, image, warnings), seconds, before)
    if x is not None:
        after = _quality(image, problem, task)
        result = replace(result, quality=after, baseline=task.plain or "data", before=before)
    if made is not None:
        result = result.solved(problem, made, image)
    elif x is not None and isinstance(model, TrainedNetwork):
        work = Work(NOT_CERTIFIED, problem.residual(x) * problem.scale, evaluations=None)
        result = replace(result, work=work, prior=Prior(model.name))
    elif task.plain_is_start:
        result = replace(result, work=Work(residual=problem.residual(problem.start) * problem.scale))
    return result, task.write(problem, result, image, x)


def _solved(problem: Problem, task: Task, model: Trained | None, show: Callable[[str], None]) -> Regularized:
    """The regularized reconstruction, as the options say."""
    args, origin = task.args, problem.origin

    def watch(phase: str, evaluation: int, error: float) -> None:
        certified = f"certified {error * problem.scale:.2g} {origin.unit}"
        show(f"{origin.name}: {phase}, evaluation {evaluation}, {certified}")

    def psnr(x: Tensor) -> float:
        value = _quality(task.image(problem, x), problem, task).psnr
        return math.inf if value is None else value

    mu = args.mu or (model and model.mu) or task.default_mu(problem)
    if args.plain and not args.mu:
        mu = None  # as the model says, in the plain form
    accuracy = task.accuracy if args.accuracy is None else args.accuracy
    request = Request(accuracy, args.weight, args.choose, psnr, args.nonnegative)
    with named(origin.data):
        made = reconstruct(problem, model, mu, args, request, watch)
    if args.accuracy is None:
        made = replace(made, accuracy_rule=made.accuracy_rule.replace("given", "by default"))
    return made


def _quality(image: Tensor, problem: Problem, task: Task) -> Quality:
    return Quality() if problem.reference is None else task.quality(image, problem.reference)


def _about(task: Task, model: Loaded) -> dict[str, object]:
    """What the report says of all results."""
    args = task.args
    return {
        "task": task.name,
        "method": task.method,
        "model": args.model,
        "nonnegative": args.nonnegative,
        "plain": args.plain,
        "certificate": task.certificate(model),
        "psnr_convention": task.psnr_convention,
        "dtype": args.dtype,
        "device": args.device,
    }


def _status(outcome: Outcome[Result]) -> str:
    if outcome.pending:
        return "incomplete"
    if outcome.failures:
        return "failed"
    return "finished" if all(result.reached for result in outcome.results) else "accuracy not reached"


def _numbers(outcome: Outcome[Result], task: Task) -> dict[str, object]:
    """The main numbers of the summary; None where one is unknown of some image."""
    results = outcome.results
    errors, values = [r.certified.error for r in results], [r.quality.psnr for r in results]
    known = [v for v in values if v is not None]
    return {
        "task": task.name,
        "method": task.method,
        "model": task.args.model,
        "images": len(results),
        "failures": len(outcome.failures),
        "pending": len(outcome.pending),
        "evaluations": sum((r.work.evaluations or 0) + r.work.evaluations_choosing for r in results),
        "largest_error": None if None in errors else max((e for e in errors if e is not None), default=None),
        "psnr": math.fsum(known) / len(known) if known and len(known) == len(values) else None,
    }


def _finish(outcome: Outcome[Result], task: Task) -> int:
    """Show the table, and name what failed or did not reach its accuracy; returns the exit status."""
    results, missed = outcome.results, [r for r in outcome.results if not r.reached]
    console = Console()
    console.print(task.table(results))
    for text in dict.fromkeys(text for r in results for text in r.subject.warnings):
        print(f"recon reconstruct: warning: {printable(text)}", file=sys.stderr)
    for text in task.notes(results):
        console.print(escape(text), highlight=False)
    if missed:
        names = ", ".join(f"{r.subject.name} ({r.work.status})" for r in missed)
        print(
            f"recon reconstruct: {len(missed)} of {len(results)} {task.goal()}: {names}; try {task.remedies}",
            file=sys.stderr,
        )
    outcome.print_failures("recon reconstruct")
    return 1 if missed or outcome.failures else 0


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A line that says what is being done; ``with _progress() as show: show("text")``."""
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("")
        yield lambda text: progress.update(task, description=printable(text))

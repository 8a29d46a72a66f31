"""One run of a race: a method on a learning problem until its budget is spent, with checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm

from models.files.checkpoint_file import checkpoint_bytes, load_checkpoint
from recon.bilevel import Accuracy, BilevelObjective, DivergedError, Record, Training, UpperLevelMethod
from recon.bilevel.methods.method import flat
from recon.files import write_files
from recon.lower_level import NotStronglyConvexError

#: ends of runs: the parameters lost themselves; there was no method, only the initial parameters
DIVERGED, START = "diverged", "start"
#: certified ||x - x^|| per pixel of exact losses; their error is quadratic in it
EXACT = 1e-5
#: evaluations at which the first exact loss is computed
FIRST_EXACT = 30.0
#: parameters are kept for every iteration where there are no more
FEW = 8
#: seconds between checkpoints of a run
SAVE_EVERY = 30.0


@dataclass(frozen=True)
class Iteration:
    """An iteration of a run. seconds: of the run so far, without exact losses; theta: nothing if it is long.

    true_lower, true_upper: a short interval that holds the exact loss, NaN where it was not computed.
    """

    record: Record
    seconds: float
    theta: list[float]
    true_lower: float = math.nan
    true_upper: float = math.nan


@dataclass(frozen=True)
class Descent:
    """A run: its iterations, and how it ended."""

    iterations: list[Iteration]
    seconds: float
    status: str


def descend(
    name: str,
    objective: BilevelObjective,
    optimizer: UpperLevelMethod[BilevelObjective] | None,
    budget: float,
    true_losses: int = 0,
    checkpoint: Path | None = None,
) -> Descent:
    """Iterate until the budget is spent, or nothing changes any more; go on from ``checkpoint`` if it is there.

    At about ``true_losses`` iterations, at evaluations in a geometric progression, the exact loss is computed, too.
    """
    if optimizer is None:
        return Descent([], 0.0, START)
    run = Training(objective, optimizer)
    iterations: list[Iteration] = []
    ratio = max(1.01, max(budget / FIRST_EXACT, 1.0) ** (1 / max(true_losses - 1, 1)))
    due = FIRST_EXACT if true_losses else math.inf
    if checkpoint is not None and checkpoint.is_file():
        iterations, due = resume(checkpoint, run)
    bar = Tqdm(total=round(budget), desc=name, leave=False, initial=round(objective.evaluations))
    saved = time.perf_counter()

    def after(record: Record) -> None:
        nonlocal due, saved
        theta, true = flat(objective.params), (math.nan, math.nan)
        if objective.evaluations >= due or (true_losses and record.finished):
            true = exact_loss(objective)
            while due <= objective.evaluations:
                due *= ratio
        iterations.append(Iteration(record, run.seconds, theta.tolist() if len(theta) <= FEW else [], *true))
        bar.update(round(objective.evaluations) - bar.n)
        bar.set_postfix_str(f"loss {record.loss:.4g}, iteration {len(iterations)}")
        if checkpoint is not None and time.perf_counter() - saved > SAVE_EVERY:
            save(checkpoint, run, iterations, due)
            saved = time.perf_counter()

    try:
        status = run.descend(budget, after=after)
    except (DivergedError, NotStronglyConvexError):  # nothing certifies descent of most methods
        status = DIVERGED
    bar.close()
    return Descent(iterations, run.seconds, status)


def save(path: Path, run: Training, iterations: Sequence[Iteration], due: float) -> None:
    """Write everything that :func:`resume` needs."""
    content = run.state_dict()
    lines = zip(content.pop("records"), iterations, strict=True)
    content["iterations"] = [asdict(iteration) | {"record": record} for record, iteration in lines]
    write_files({path: checkpoint_bytes(content | {"due": due})})


def resume(path: Path, run: Training) -> tuple[list[Iteration], float]:
    """Put back what :func:`save` wrote; returns the iterations, and when an exact loss is due.

    Raises
    ------
    ValueError
        if the file is damaged, or belongs to another run.
    """
    try:
        content = load_checkpoint(path, run.objective.y.device)
        lines = content["iterations"]
        run.load_state_dict(content | {"records": [line["record"] for line in lines]})
        pairs = zip(lines, run.records, strict=True)
        return [Iteration(**line | {"record": record}) for line, record in pairs], float(content["due"])
    except Exception as error:  # entries that are missing, or of another method
        reason = str(error).removeprefix(f"{path}: ") or type(error).__name__
        raise ValueError(
            f"{path}: is no checkpoint of this run; delete it to begin the run again ({reason})"
        ) from error


@torch.no_grad()
def exact_loss(objective: BilevelObjective) -> tuple[float, float]:
    """A short certified interval of the loss at the parameters at hand; not counted, and from no warm start.

    NaN where there are no minimizers: methods that certify no descent may have left the parameters there.
    """
    spent, accuracy = objective.evaluations, EXACT * math.sqrt(objective.target[0].numel())
    try:
        at = objective.evaluate(Accuracy(accuracy, accuracy), None)
    except NotStronglyConvexError:
        return math.nan, math.nan
    finally:
        objective.evaluations = spent
    return at.lower, at.upper

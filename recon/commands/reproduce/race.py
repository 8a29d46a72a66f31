"""Figures that set upper-level methods against each other on one learning problem, from ``configs/figures``.

Each YAML has ``data`` (pictures to denoise; ``class: MRIDataModule`` for MRI; or a file of these), ``regularizer``,
``budget``, ``runs`` and, where they are needed, ``mu`` of the energy, ``reference``, the name of the run that the
others are measured by, and ``true_losses``, at about how many iterations of each run the exact loss is computed as
well, which is not counted. A run has ``optimizer`` and, if it is not L-BFGS, ``solver``; without ``optimizer`` it is
the initial parameters. All runs start at the same parameters, with the same data. They use a GPU where there is one.

``race_plan`` reads it, ``race_run`` makes a run; until it is finished, ``runs/NAME.ckpt`` has what it needs to go on,
bit for bit. ``run`` writes, for each run as soon as it is finished, ``runs/NAME.json`` (its row of results.csv),
``runs/NAME.csv`` (iterations) and ``runs/NAME.npz`` (the first picture, and the filters), then results.csv, reached.csv
(with ``reference``), intervals.csv (with ``true_losses``) and summary.json, from which ``race_pictures`` draws. A run
whose files are damaged is made again, the others are kept.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import time
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from jsonargparse import ArgumentParser
from pytorch_lightning.cli import OptimizerCallable
from rich.console import Console
from rich.table import Table

from datasets import DenoisingDataModule
from models import ICNN
from models.regularizers.ridge import RidgeRegularizer
from recon.bilevel import Accuracy, BilevelObjective, InexactAdam, InexactSGD, Record, UpperLevelMethod
from recon.commands.configuration.classes import check_classes
from recon.commands.configuration.data import make_data, operator_of
from recon.commands.output.runs import finite
from recon.commands.output.summary import write_summary
from recon.commands.output.tables import claim, table
from recon.commands.reproduce import listing
from recon.commands.reproduce.race_pictures import (
    COLUMNS,
    OF_ITERATION,
    OF_RECORD,
    Runs,
    images_of,
    iterations_of,
    plot,
    slug,
)
from recon.commands.reproduce.race_plan import Values, read_figure
from recon.commands.reproduce.race_run import Descent, Iteration, descend
from recon.files import write_files
from recon.lower_level import LBFGS, Grade, NotStronglyConvexError, Regularizer, Solver, Status
from recon.metrics import psnr
from recon.operators import LinearOperator

#: certified ||x - x^|| per pixel at which the final parameters of all runs are measured
ACCURACY = 1e-4
#: their losses are means over mini-batches
MINI_BATCHES = (InexactAdam, InexactSGD)


class Row(TypedDict):
    """What a run came to, a row of results.csv; its loss in [lower, upper] is certified, at one accuracy for all runs.

    grade: what that interval rests on, ``proved``, ``modelled`` or ``estimated``; status: how the run ended.

    psnr: mean; shown, shown_noisy: PSNR of the picture that is shown, and of its data. within_1_percent: evaluations
    after which the iterations stay within 1 % of ``loss``, NaN if they do not.
    """

    run: str
    loss: float
    lower: float
    upper: float
    psnr: float
    shown: float
    shown_noisy: float
    evaluations: float
    within_1_percent: float
    iterations: int
    seconds: float
    status: str
    grade: str | None


def run(figure: str, scale: str, output: Path) -> None:
    """Make the runs that are not finished, write their tables into ``output``, and draw them.

    Raises
    ------
    ValueError
        the configuration or the data cannot be used, or the folder has the results of other settings.
    OSError
        a file is missing, or cannot be written.
    """
    begin, content = time.perf_counter(), read_figure(listing.FOLDER / figure / f"{scale}.yaml")
    data, source = _data(content["data"], scale)
    name = data.pop("class", DenoisingDataModule.__name__)
    module = make_data({"class_path": f"datasets.{name}", "init_args": data})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, y = (t.to(device) for t in module.train_tensors())
    operator = operator_of(module).to(device)

    def problem(entry: Values) -> tuple[BilevelObjective, UpperLevelMethod[BilevelObjective] | None]:
        return make(content["regularizer"], entry, x, y, operator, float(content.get("mu", 0.0)))

    for entry in content["runs"].values():  # errors come before the first computation
        problem(entry)
    claim(output, {"figure": figure, "scale": scale, "source": source, **content})
    console = Console()
    naive = operator.adjoint(y)
    console.print(
        f"{len(x)} pictures of {source}, noisy {float(psnr(_shown(naive), _shown(x)).mean()):.2f} dB", highlight=False
    )
    (output / "runs").mkdir(exist_ok=True)
    rows: list[Row] = []
    for name, entry in content["runs"].items():
        kept = finished(name, output, console)
        if kept is None:
            objective, optimizer = problem(entry)
            folder = output / "runs"
            files = {suffix: folder / f"{slug(name)}.{suffix}" for suffix in ("json", "csv", "npz", "ckpt")}
            true_losses = content.get("true_losses", 0)
            descent = descend(name, objective, optimizer, content["budget"], true_losses, files["ckpt"])
            kept, image = measure(name, objective, descent, _shown(naive)[0])
            arrays = {"true": _shown(x)[0], "noisy": _shown(naive)[0], "image": image}
            _keep(files, kept, descent, arrays, objective, certified=not isinstance(optimizer, MINI_BATCHES))
        rows.append(kept)
        write_files({output / "results.csv": table(rows)})
    summary: dict[str, object] = {"figure": figure, "scale": scale, "source": source, "pictures": len(x)}
    summary["runs"] = [finite({**row}) for row in rows]
    iterations = {row["run"]: iterations_of(output, row["run"], row["iterations"]) for row in rows}
    if "reference" in content:
        found = reached(rows, iterations, content["reference"])
        write_files({output / "reached.csv": table(found)})
        summary["reached"] = [finite(row) for row in found]
    if content.get("true_losses"):
        held = intervals(iterations)
        if held:
            write_files({output / "intervals.csv": table(held)})
        summary["intervals"] = {"checked": len(held), "held": sum(bool(row["held"]) for row in held)}
    _print(rows, console)
    plot(output)
    write_summary(output, f"reproduce {figure}", time.perf_counter() - begin, "finished", summary)


def _keep(
    files: Mapping[str, Path],
    row: Row,
    descent: Descent,
    arrays: dict[str, torch.Tensor],
    objective: BilevelObjective,
    certified: bool,
) -> None:
    """Write the files of a run that is finished; its checkpoint is of no use any more."""
    if isinstance(objective.regularizer, (ICNN, RidgeRegularizer)):
        arrays["filters"] = objective.regularizer.kernels()
    written = {files["npz"]: _npz(**arrays)}
    if descent.iterations:
        written[files["csv"]] = table([_line(iteration, certified) for iteration in descent.iterations])
    else:
        files["csv"].unlink(missing_ok=True)
    # the last one: it says that the others are there
    write_files(written | {files["json"]: json.dumps(finite({**row}), indent=2).encode()})
    files["ckpt"].unlink(missing_ok=True)


def finished(name: str, output: Path, console: Console) -> Row | None:
    """The row of results.csv of a run that is finished and whose files are whole; None if it has to be made."""
    path = output / "runs" / f"{slug(name)}.json"
    if not path.is_file():
        return None
    try:
        row: Row = json.loads(path.read_text(), object_hook=_with_nan)
        if not isinstance(row, dict) or row.keys() != Row.__required_keys__:
            raise ValueError(f"{path}: has other entries than a run")
        iterations_of(output, row["run"], row["iterations"])
        images_of(output, row["run"])
    except ValueError as error:
        console.print(f"{error}; {name} is made again", highlight=False)
        return None
    return row


def _with_nan(row: dict[str, object]) -> dict[str, object]:
    """A row with NaN for null, which JSON has in its place."""
    return {k: math.nan if v is None and k != "grade" else v for k, v in row.items()}


def make(
    regularizer: Values,
    entry: Values,
    x: torch.Tensor,
    y: torch.Tensor,
    operator: LinearOperator | None = None,
    mu: float = 0.0,
) -> tuple[BilevelObjective, UpperLevelMethod[BilevelObjective] | None]:
    """The learning problem of a run at its start, and its method if it has one.

    Raises
    ------
    ValueError
        if they cannot be made.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--regularizer", type=Regularizer)
    parser.add_argument("--optimizer", type=OptimizerCallable)
    parser.add_argument("--solver", type=Solver)
    try:
        parsed = parser.parse_object({"regularizer": dict(regularizer), **entry})
        check_classes(parsed, {"regularizer": Regularizer, "optimizer": UpperLevelMethod, "solver": Solver})
        made = parser.instantiate(parsed)
    except Exception as error:  # jsonargparse raises its own, without a common base
        raise ValueError(" ".join(str(error).split())) from error
    solver = made.solver if made.solver is not None else LBFGS()
    objective = BilevelObjective(made.regularizer.to(x.dtype), x, y, operator, mu=mu, solver=solver)
    if made.optimizer is None:
        return objective, None
    try:
        return objective, made.optimizer(objective.params)
    except ImportError as error:
        raise ValueError(str(error)) from error


def _line(iteration: Iteration, certified: bool) -> dict[str, object]:
    """A row of ``runs/NAME.csv``; not ``certified``: the loss is a mean over mini-batches, each at its own theta."""
    record = iteration.record
    line = dict(zip(COLUMNS, (*attrgetter(*OF_RECORD)(record), *attrgetter(*OF_ITERATION)(iteration)), strict=True))
    if not certified:
        line |= {"lower": math.nan, "upper": math.nan}
    return line | {"progress": record.progress.value} | {f"theta_{i}": v for i, v in enumerate(iteration.theta)}


def measure(name: str, objective: BilevelObjective, descent: Descent, noisy: torch.Tensor) -> tuple[Row, torch.Tensor]:
    """The certified loss and the mean PSNR at the end, and the first picture; not counted.

    All of it is NaN where there are no minimizers: where a method that diverged has left the parameters.
    """
    true, nan = _shown(objective.target), math.nan
    accuracy = ACCURACY * math.sqrt(objective.target[0].numel())
    row: Row = {
        "run": name,
        "loss": nan,
        "lower": nan,
        "upper": nan,
        "psnr": nan,
        "shown": nan,
        "shown_noisy": float(psnr(noisy[None], true[:1])),
        "evaluations": objective.evaluations,
        "within_1_percent": nan,
        "iterations": len(descent.iterations),
        "seconds": round(descent.seconds, 1),
        "status": descent.status,
        "grade": None,
    }
    at = None
    with contextlib.suppress(NotStronglyConvexError), torch.no_grad():
        at = objective.evaluate(Accuracy(accuracy, accuracy), None)
    if at is None or bool((at.status == Status.NOT_FINITE).any()):
        return row, torch.full_like(objective.target[0], nan)
    image = _shown(at.x)
    quality = psnr(image, true)
    row |= {"loss": at.value, "lower": at.lower, "upper": at.upper, "grade": Grade(at.grade).word}
    row |= {"psnr": float(quality.mean()), "shown": float(quality[0])}
    row["within_1_percent"] = within([iteration.record for iteration in descent.iterations], at.value)
    return row, image[0]


def reached(rows: Sequence[Row], iterations: Runs, reference: str) -> list[dict[str, object]]:
    """What each run needed until it was certified to be below the final loss of the run ``reference``.

    evaluations: of the first iteration whose ``upper`` is at most that loss, NaN if there is none; times_fewer: those
    of all iterations of ``reference`` divided by these.
    """
    end = next(row for row in rows if row["run"] == reference)
    found = []
    for row in rows:
        enough = (r for r in iterations[row["run"]] if float(r["upper"]) <= end["loss"])
        first = next(enough, {"evaluations": "nan", "seconds": "nan"})
        evaluations, seconds = float(first["evaluations"]), float(first["seconds"])
        line: dict[str, object] = {"run": row["run"], "loss_to_reach": end["loss"], "evaluations": evaluations}
        fewer = end["evaluations"] / evaluations if evaluations else math.nan
        found.append(line | {"seconds": seconds, "times_fewer": fewer})
    return found


def intervals(iterations: Runs) -> list[dict[str, object]]:
    """Certified intervals beside exact losses; held: whether they hold it, as far as it is known."""
    names = ("evaluations", "loss", "lower", "upper", "true_lower", "true_upper")
    found: list[dict[str, object]] = []
    for run_name, records in iterations.items():
        for record in records:
            line = {name: float(record[name]) for name in names}
            if math.isfinite(line["true_lower"]) and math.isfinite(line["lower"]):
                held = line["lower"] <= line["true_upper"] and line["upper"] >= line["true_lower"]
                found.append({"run": run_name, "iteration": int(record["iteration"]), **line, "held": int(held)})
    return found


def within(records: Sequence[Record], loss: float) -> float:
    """Evaluations after which the loss stays within 1 % of ``loss``; NaN if it does not."""
    near = math.nan
    for record in reversed(records):
        if not abs(record.loss - loss) <= 0.01 * abs(loss):
            break
        near = record.evaluations
    return near


def _shown(x: torch.Tensor) -> torch.Tensor:
    """Magnitudes of complex images, which have two channels; gray ones as they are."""
    return x if x.shape[1] == 1 else x.square().sum(1, keepdim=True).sqrt()


def _data(content: Values, scale: str) -> tuple[dict[str, object], str]:
    """Arguments of the data module, and what the pictures are called."""
    own = dict(content)
    name = str(own.pop("folder"))
    try:
        return {"train": str(listing.data_folder(name)), **own}, name
    except ValueError:
        if scale != "quick":
            raise
        return own, "built-in"


def _npz(**images: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{k: v.detach().cpu().numpy() for k, v in images.items()})
    return buffer.getvalue()


def _print(rows: Sequence[Row], console: Console) -> None:
    shown = Table()
    for column in ("run", "loss", "PSNR", "evaluations", "to within 1 %", "iterations", "s", "end"):
        shown.add_column(column, justify="left" if column in ("run", "end") else "right")
    for row in rows:
        shown.add_row(
            row["run"],
            f"{row['loss']:.4g}",
            f"{row['psnr']:.2f}",
            f"{row['evaluations']:.0f}",
            f"{row['within_1_percent']:.0f}",
            str(row["iterations"]),
            f"{row['seconds']:.0f}",
            row["status"],
        )
    console.print(shown)

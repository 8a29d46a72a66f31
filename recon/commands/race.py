"""Figures that set upper-level methods against each other on one learning problem, from ``configs/figures``.

Each YAML has ``data`` (pictures to denoise; ``class: MRIDataModule`` for MRI), ``regularizer``, ``budget``, ``runs``
and, where the operator needs it, ``mu``. A run has ``optimizer`` and, if it is not L-BFGS, ``solver``;
without ``optimizer`` it is the initial parameters. All runs start at the same parameters, with the same data.

``run`` writes, for every run as soon as it is finished, ``runs/NAME.csv`` (iterations) and ``runs/NAME.npz`` (the first
picture), then results.csv and summary.json, from which ``race_pictures`` draws.
"""

from __future__ import annotations

import io
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jsonargparse import ArgumentParser
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm
from pytorch_lightning.cli import OptimizerCallable
from rich.console import Console
from rich.table import Table

from datasets import DenoisingDataModule, MRIDataModule
from recon.bilevel import Accuracy, BilevelObjective, DivergedError, Record
from recon.bilevel.parameters import flat
from recon.commands.race_pictures import COLUMNS, DIVERGED, START, plot, slug
from recon.commands.runs import finite, write_json
from recon.commands.tables import claim, read, table
from recon.files import write_files
from recon.lower_level import LBFGS, NotStronglyConvexError, Regularizer, Solver, Status
from recon.metrics import psnr

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "figures"
KEYS = {"data", "regularizer", "budget", "runs"}
MODULES: dict[str, type[DenoisingDataModule]] = {m.__name__: m for m in (DenoisingDataModule, MRIDataModule)}
#: certified ||x - x^|| per pixel at which the final parameters of all runs are measured
ACCURACY = 1e-4
#: parameters are written for every iteration where there are no more
FEW = 8


@dataclass(frozen=True)
class Result:
    """What a run came to; loss in [lower, upper] is certified, at the same accuracy for all runs; status: its end.

    within_1_percent: evaluations after which the iterations stay within 1 % of ``loss``, NaN if they do not.
    """

    run: str
    loss: float
    lower: float
    upper: float
    psnr: float
    evaluations: float
    within_1_percent: float
    iterations: int
    seconds: float
    status: str


def names() -> list[str]:
    """The figures that ``configs/figures`` describes."""
    return sorted(path.name for path in FOLDER.glob("*") if path.is_dir())


def run(figure: str, scale: str, output: Path) -> None:
    """Make the runs that are not finished, write their tables into ``output``, and draw them.

    Raises:
        ValueError: the configuration or the data cannot be used, or the folder has the results of other settings.
        OSError: a file is missing, or cannot be written.
    """
    content = read_figure(FOLDER / figure / f"{scale}.yaml")
    data, source = _data(content["data"], scale)
    kind = MODULES[data.pop("class", DenoisingDataModule.__name__)]
    module = kind(**data)
    x, y = module.train_tensors()
    problem: dict[str, Any] = {"operator": getattr(module, "operator", None), "mu": float(content.get("mu", 0.0))}
    for entry in content["runs"].values():  # errors come before the first computation
        make(content["regularizer"], entry, x, y, **problem)
    claim(output, {"figure": figure, "scale": scale, "source": source, **content})
    done = {row["run"]: row for row in (read(output / "results.csv") if (output / "results.csv").is_file() else [])}
    console = Console()
    naive = y if problem["operator"] is None else problem["operator"].adjoint(y)
    console.print(
        f"{len(x)} pictures of {source}, noisy {float(psnr(_shown(naive), _shown(x)).mean()):.2f} dB", highlight=False
    )
    for name, entry in content["runs"].items():
        if name not in done:
            objective, optimizer = make(content["regularizer"], entry, x, y, **problem)
            records, path, seconds, status = descend(name, objective, optimizer, content["budget"])
            result, image = measure(name, objective, records, seconds, status)
            shown = _npz(true=_shown(x)[0], noisy=_shown(naive)[0], image=image)
            files = {output / "runs" / f"{slug(name)}.npz": shown}
            if records:
                lines = [{c: getattr(r, c) for c in COLUMNS} | {"progress": r.progress.value} for r in records]
                for line, values in zip(lines, path, strict=True):
                    line |= {f"theta_{i}": value for i, value in enumerate(values)}
                files[output / "runs" / f"{slug(name)}.csv"] = table(lines)
            (output / "runs").mkdir(exist_ok=True)
            done[name] = asdict(result)
            files[output / "results.csv"] = table([done[n] for n in content["runs"] if n in done])
            write_files(files)
    rows = [_numbers(row) for row in read(output / "results.csv")]
    write_json(
        output / "summary.json",
        {"figure": figure, "scale": scale, "source": source, "runs": [finite(row) for row in rows]},
    )
    _print(rows, console)
    plot(output)


def read_figure(path: Path) -> dict[str, Any]:
    """The configuration of a figure.

    Raises:
        ValueError: it is none.
        OSError: the file cannot be read.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict) or content.keys() - {"mu"} != KEYS:
        raise ValueError(f"{path}: must have {', '.join(sorted(KEYS))}, may have mu, and nothing else")
    budget, runs = content["budget"], content["runs"]
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 < budget < math.inf:
        raise ValueError(f"{path}: budget is {budget!r}, but must be a positive number of evaluations")
    if not isinstance(runs, dict) or not runs or not isinstance(content["data"], dict):
        raise ValueError(f"{path}: data and runs must map names to values")
    if content["data"].get("class", DenoisingDataModule.__name__) not in MODULES:
        raise ValueError(f"{path}: data.class is {content['data']['class']!r}, but must be {' or '.join(MODULES)}")
    for name, entry in runs.items():
        if not isinstance(entry, dict) or not entry.keys() <= {"optimizer", "solver"}:
            raise ValueError(f"{path}: the run {name} may have `optimizer` and `solver`, and nothing else")
    slugs = [slug(str(name)) for name in runs]
    if len(set(slugs)) < len(slugs):
        raise ValueError(f"{path}: runs need names that differ in letters or digits, got {', '.join(runs)}")
    return content


def make(
    regularizer: Mapping[str, Any], entry: Mapping[str, Any], x: torch.Tensor, y: torch.Tensor, **problem: Any
) -> tuple[BilevelObjective, torch.optim.Optimizer | None]:
    """The learning problem of a run at its start, with the options ``problem``, and its method if it has one.

    Raises ``ValueError`` if they cannot be made.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--regularizer", type=Regularizer)
    parser.add_argument("--optimizer", type=OptimizerCallable)
    parser.add_argument("--solver", type=Solver)
    try:
        made = parser.instantiate(parser.parse_object({"regularizer": dict(regularizer), **entry}))
    except Exception as error:  # jsonargparse raises its own, without a common base
        raise ValueError(" ".join(str(error).split())) from error
    solver = made.solver if made.solver is not None else LBFGS()
    objective = BilevelObjective(made.regularizer.to(x.dtype), x, y, solver=solver, **problem)
    if made.optimizer is None:
        return objective, None
    try:
        return objective, made.optimizer(objective.params)
    except ImportError as error:
        raise ValueError(str(error)) from error


def descend(
    name: str, objective: BilevelObjective, optimizer: torch.optim.Optimizer | None, budget: float
) -> tuple[list[Record], list[list[float]], float, str]:
    """Iterate until the budget is spent, or nothing changes any more.

    The records, theta after each iteration (nothing if it has more than ``FEW`` entries), seconds, and how it ended.
    """
    records: list[Record] = []
    path: list[list[float]] = []
    if optimizer is None:
        return records, path, 0.0, START
    begin, status = time.perf_counter(), "budget spent"
    bar = Tqdm(total=round(budget), desc=name, leave=False)
    step: Any = optimizer.step
    while objective.evaluations < budget:
        before = objective.evaluations
        try:
            records.append(step(objective=objective))
            theta = flat(objective.params)
            path.append(theta.tolist() if len(theta) <= FEW else [])
        except (DivergedError, NotStronglyConvexError):  # nothing certifies descent of most methods
            status = DIVERGED
            break
        bar.update(round(objective.evaluations) - round(before))
        bar.set_postfix_str(f"loss {records[-1].loss:.4g}, iteration {len(records)}")
        if records[-1].finished:
            status = records[-1].progress.value
            break
    bar.close()
    return records, path, time.perf_counter() - begin, status


def measure(
    name: str, objective: BilevelObjective, records: Sequence[Record], seconds: float, status: str
) -> tuple[Result, torch.Tensor]:
    """The certified loss and the mean PSNR at the end, and the first picture; not counted."""
    spent = objective.evaluations
    accuracy = ACCURACY * math.sqrt(objective.target[0].numel())
    nan, seconds = math.nan, round(seconds, 1)
    lost = Result(name, nan, nan, nan, nan, spent, nan, len(records), seconds, status)
    nowhere = torch.full_like(objective.target[0], math.nan)
    try:
        with torch.no_grad():
            at = objective.evaluate(Accuracy(accuracy, accuracy), None)
    except NotStronglyConvexError:  # where a method that diverged has left the parameters
        return lost, nowhere
    if bool((at.status == Status.NOT_FINITE).any()):
        return lost, nowhere
    image = _shown(at.x)
    quality = float(psnr(image, _shown(objective.target)).mean())
    near = within(records, at.value)
    result = Result(name, at.value, at.lower, at.upper, quality, spent, near, len(records), seconds, status)
    return result, image[0]


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


def _data(content: Mapping[str, Any], scale: str) -> tuple[dict[str, Any], str]:
    """Arguments of the data module, and what the pictures are called."""
    own = dict(content)
    name = own.pop("folder")
    folders = [Path(os.environ["RECON_DATA"]) / name] if os.environ.get("RECON_DATA") else []
    for folder in (*folders, Path("data") / name):
        if folder.is_dir():
            return {"train": str(folder), **own}, str(name)
    if scale != "quick":
        raise ValueError(f"there is no folder {name} in $RECON_DATA or data; set RECON_DATA to the folder that has it")
    return own, "built-in"


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of results.csv with its numbers as such."""
    return {k: v if k in ("run", "status") else int(v) if k == "iterations" else float(v) for k, v in row.items()}


def _npz(**images: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {k: v.detach().cpu().numpy() for k, v in images.items()}
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _print(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    shown = Table()
    for column in ("run", "loss", "PSNR", "evaluations", "to within 1 %", "iterations", "s", "end"):
        shown.add_column(column, justify="left" if column in ("run", "end") else "right")
    for row in rows:
        shown.add_row(
            str(row["run"]),
            f"{float(row['loss']):.4g}",
            f"{float(row['psnr']):.2f}",
            f"{float(row['evaluations']):.0f}",
            f"{float(row['within_1_percent']):.0f}",
            str(row["iterations"]),
            f"{float(row['seconds']):.0f}",
            str(row["status"]),
        )
    console.print(shown)

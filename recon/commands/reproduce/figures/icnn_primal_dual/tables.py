"""The tables of the figure: every iterate, what every method needed, and the steps that were tried."""

from __future__ import annotations

import csv
import math
import statistics
from pathlib import Path

from recon.commands.output.tables import table
from recon.commands.reproduce.figures.icnn_primal_dual.methods import TARGET, Comparison

COLUMNS = ["picture", "method", "parameter", "iteration", "seconds", "energy", "relative_gap"]
TARGET_COLUMNS = ["picture", "method", "parameter", "iterations_to_target", "seconds_to_target", "iterations_ratio",
                  "seconds_ratio", "last_gap", "target", "reference_energy", "reference_gap"]  # fmt: skip


def _table(header: list[str], lines: list[list[object]]) -> bytes:
    return table([dict(zip(header, line, strict=True)) for line in lines])


def rows(found: Comparison) -> bytes:
    """Every iterate of every method: its energy, and the relative gap of the smallest energy so far."""
    lines: list[list[object]] = []
    # a method may get below the reference, by no more than its certified gap
    lowest = min([found.reference.energy, *(v for t in found.traces for v in t.energies)])
    for t in found.traces:
        for i, (s, e, b) in enumerate(zip(t.seconds, t.energies, t.best(), strict=True), 1):
            gap = (b - lowest) / abs(lowest)
            lines.append([found.picture, t.method, f"{t.parameter:g}", i, f"{s:.6g}", f"{e:.16g}", f"{gap:.6g}"])
    return _table(COLUMNS, lines)


def targets(found: list[Comparison]) -> bytes:
    """What each method needed on each picture, over the subgradient method there, and medians of these numbers.

    Empty where the target was not reached (medians: not on most pictures). ``reference_gap`` is certified.
    """
    lines: list[list[object]] = []
    needed: dict[str, list[tuple[float, ...]]] = {}
    for each in found:
        base = each.traces[0].reached(each.reference.goal)
        for t in each.traces:
            count, seconds = t.reached(each.reference.goal)
            numbers = (count, seconds, _ratio(count, base[0]), _ratio(seconds, base[1]))
            needed.setdefault(t.method, []).append(numbers)
            gap = (t.best()[-1] - each.reference.energy) / abs(each.reference.energy)
            known = [f"{gap:.3g}", f"{TARGET:g}", f"{each.reference.energy:.16g}", f"{each.reference.gap:.3g}"]
            lines.append([each.picture, t.method, f"{t.parameter:g}", *map(_number, numbers), *known])
    worst = max(each.reference.gap for each in found)
    for method, values in needed.items():
        middle = [statistics.median(column) for column in zip(*values, strict=True)]
        lines.append(["median", method, "", *map(_number, middle), "", f"{TARGET:g}", "", f"{worst:.3g}"])
    return _table(TARGET_COLUMNS, lines)


def _ratio(mine: float, base: float) -> float:
    """Infinite if this method did not reach the target, or neither did."""
    return mine / base if math.isfinite(mine) else math.inf


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else ""


def steps(found: list[Comparison]) -> bytes:
    """All steps of the subgradient method that were tried, and where they got."""
    lines: list[list[object]] = []
    for each in found:
        for t in sorted(each.tried, key=lambda t: t.parameter):
            gap = (t.best()[-1] - each.reference.energy) / abs(each.reference.energy)
            count = t.reached(each.reference.goal)[0]
            lines.append([each.picture, f"{t.parameter:.6g}", _number(count), f"{gap:.3g}"])
    return _table(["picture", "step", "iterations_to_target", "last_gap"], lines)


def read(path: Path) -> list[dict[str, str]]:
    """The rows of every iterate; raises ValueError, naming the file, if there is none, or it is not whole."""
    if not path.is_file():
        raise ValueError(f"{path.parent} has no {path.name}; run the figure without --plot-only first")
    with path.open(newline="") as file:
        found = list(csv.DictReader(file))
    if not found:
        raise ValueError(f"{path} has no rows; run the figure without --plot-only again")
    for number, row in enumerate(found, 2):
        try:
            values = [float(row[name]) for name in ("iteration", "seconds", "relative_gap")]
        except (KeyError, TypeError, ValueError):
            values = [math.nan]
        if set(row) != set(COLUMNS) or not all(map(math.isfinite, values)):
            raise ValueError(f"{path}, line {number}: not the columns {', '.join(COLUMNS)}; the file is cut or another")
    return found

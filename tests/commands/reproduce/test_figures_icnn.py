"""recon reproduce icnn-primal-dual: a tiny run, its tables, drawing alone, bad files."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from models import ICNN, LeakyReLU
from recon.commands.main import main
from recon.commands.reproduce.figures import icnn_primal_dual as figure
from recon.commands.reproduce.figures.icnn_primal_dual import methods, tables
from recon.lower_level import LBFGS, Energy
from tests.commands.summaries import check_summary

TINY = replace(
    figure.SCALES["quick"], size=16, pictures=2, filters=2, passes=1, iterations=200, repeats=2, widths=(0.1,)
)
PICTURE = f"{figure.NAME}.png"


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_tiny_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables have what they claim: the best of the tried steps, iterates that reach the target where they say."""
    monkeypatch.setitem(figure.SCALES, "quick", TINY)
    assert main(["reproduce", "icnn-primal-dual", "--output", str(tmp_path)]) == 0
    assert (tmp_path / PICTURE).stat().st_size > 1000
    targets = rows(tmp_path / f"{figure.NAME}_targets.csv")
    assert list(targets[0]) == tables.TARGET_COLUMNS
    names = [figure.SUBGRADIENT, figure.PRIMAL_DUAL, methods.FIXED, "FISTA, width 0.1", "LBFGS, width 0.1"]
    assert [(r["picture"], r["method"]) for r in targets] == [
        (p, m) for p in ("test 0", "test 1", "median") for m in names
    ]
    assert all(0 <= float(r["reference_gap"]) <= 0.1 * figure.TARGET for r in targets)
    for r in targets[:2]:
        assert int(r["iterations_to_target"]) <= TINY.iterations
    ratios = [float(r["iterations_ratio"]) for r in targets if r["method"] == figure.PRIMAL_DUAL]
    assert ratios[2] == pytest.approx(sum(ratios[:2]) / 2, rel=1e-3)
    medians = check_summary(tmp_path, "reproduce icnn-primal-dual")["medians"]
    assert medians[figure.PRIMAL_DUAL]["iterations_ratio"] == pytest.approx(ratios[2])
    iterates = rows(tmp_path / f"{figure.NAME}.csv")
    assert list(iterates[0]) == tables.COLUMNS
    for r in targets[:2]:
        mine = [i for i in iterates if i["method"] == r["method"]]
        assert len(mine) == TINY.iterations
        best = float(r["reference_energy"]) * (1 + figure.TARGET)
        reached = [float(i["energy"]) <= best for i in mine]
        assert reached.index(True) + 1 == int(r["iterations_to_target"])
        assert [float(i["seconds"]) for i in mine] == sorted(float(i["seconds"]) for i in mine)
    steps = [r for r in rows(tmp_path / f"{figure.NAME}_steps.csv") if r["picture"] == "test 0"]
    assert len(steps) == len(methods.GRID) + len(methods.REFINED)
    needed = [float(r["iterations_to_target"]) for r in steps if r["iterations_to_target"]]
    assert min(needed) == float(targets[0]["iterations_to_target"])
    (tmp_path / PICTURE).unlink()
    monkeypatch.setattr(figure, "compare", None)
    assert main(["reproduce", "icnn-primal-dual", "--plot-only", "--output", str(tmp_path)]) == 0
    assert (tmp_path / PICTURE).is_file()


def test_reference_is_certified() -> None:
    """A smoothed network's minimum, from another solver, is within the gap; too few iterations are refused."""
    _, energy = next(figure.problems(TINY))
    known = methods.reference(energy, 4000)
    assert 0 <= known.gap <= 0.1 * figure.TARGET
    network = ICNN(2, activation=LeakyReLU(width=1e-5)).double()
    network.load_state_dict(energy.regularizer.state_dict())
    smooth = Energy(energy.y, network)
    found = LBFGS(max_iterations=3000)(smooth, energy.y, 1e-9)
    below = float(smooth.value_and_grad(found.x)[0])
    above = float(energy.value_and_grad(found.x)[0])
    # smoothing lowers the network, by less than its width a bit
    assert below <= known.energy + 1e-9
    assert known.energy * (1 - known.gap) <= above
    assert above - known.energy <= 1e-3 * above
    with pytest.raises(ValueError, match=r"after 2 iterations the reference .* raise Scale.reference"):
        methods.reference(energy, 2)


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / f"{figure.NAME}.csv"
    with pytest.raises(ValueError, match=f"has no {figure.NAME}.csv"):
        figure.plot(tmp_path)
    header = ",".join(tables.COLUMNS)
    path.write_text(header + "\n")
    with pytest.raises(ValueError, match=f"{figure.NAME}.csv has no rows"):
        figure.plot(tmp_path)
    good = "test 0,subgradient,0.1,1,0.01,2.5,0.1\n"
    for line in ("test 0,subgradient,0.1,2,0.0", "test 0,subgradient,0.1,2,x,2.5,0.1", good.strip() + ",9"):
        path.write_text(f"{header}\n{good}{line}\n")
        with pytest.raises(ValueError, match=f"{figure.NAME}.csv, line 3"):
            figure.plot(tmp_path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=f"{figure.NAME}.csv, line 2"):
        figure.plot(tmp_path)
    with pytest.raises(ValueError, match="scale is 'huge'"):
        figure.run("huge", tmp_path)

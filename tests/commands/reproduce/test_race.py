"""Figures of configs/figures: a tiny race from start to end, what is kept, what is refused, drawing alone."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from datasets import DenoisingDataModule
from models import TotalVariation
from recon.bilevel import MAID, Accuracy, BilevelObjective, CertifiedLoss, Progress, Record
from recon.bilevel.methods.run import MOST_IDLE
from recon.commands.main import main
from recon.commands.reproduce import listing, race, race_plan, race_run
from tests.commands.summaries import check_summary

CONFIGURATIONS = sorted(listing.FOLDER.glob("*/*.yaml"))
TINY: dict[str, Any] = {
    "data": {"folder": "nowhere", "limit": 2, "size": 16, "sigma": 0.1, "dtype": "float64"},
    "regularizer": {"class_path": "models.TotalVariation", "init_args": {"log_weight": -4.0, "log_smoothing": -3.0}},
    "budget": 60,
    "runs": {
        "MAID": {"optimizer": {"class_path": "recon.bilevel.MAID"}},
        "HOAG, cubic": {
            "optimizer": {"class_path": "recon.bilevel.HOAG", "init_args": {"schedule": "cubic"}},
            "solver": {"class_path": "recon.lower_level.FISTA"},
        },
        "far": {
            "optimizer": {"class_path": "recon.bilevel.FixedAccuracy", "init_args": {"lr": 1e9, "adaptive": False}}
        },
    },
}


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(listing, "FOLDER", tmp_path / "figures")
    monkeypatch.delenv("RECON_DATA", raising=False)
    monkeypatch.delenv("RECON_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)
    write(tmp_path, TINY)
    return tmp_path


def write(folder: Path, content: Any) -> None:
    for scale in ("quick", "paper"):
        path = folder / "figures" / "tiny" / f"{scale}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_a_race(tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "tiny", "--output", "out"]) == 0, capsys.readouterr().err
    out = tiny / "out"
    results = {row["run"]: row for row in rows(out / "results.csv")}
    assert list(results) == list(TINY["runs"])
    assert results["far"]["status"] == "diverged"
    assert not (out / "runs" / "far.csv").exists()
    maid = rows(out / "runs" / "maid.csv")
    assert all(float(r["lower"]) <= float(r["loss"]) <= float(r["upper"]) for r in maid)
    # the last record's interval and that of the result, computed at another accuracy, hold the same number
    assert float(maid[-1]["lower"]) <= float(results["MAID"]["upper"])
    assert float(maid[-1]["upper"]) >= float(results["MAID"]["lower"])
    assert float(maid[0]["theta_0"]) != float(maid[-1]["theta_0"])
    assert float(maid[-1]["evaluations"]) == float(results["MAID"]["evaluations"]) >= 60
    summary = json.loads((out / "summary.json").read_text())
    assert summary["source"] == "built-in"
    check_summary(out, "reproduce tiny")
    assert [entry["run"] for entry in summary["runs"]] == list(TINY["runs"])
    # "far" ended where it began: its loss is that of the initial parameters
    data = race.DenoisingDataModule(limit=2, size=16, sigma=0.1, dtype="float64")
    x, y = data.train_tensors()
    objective = BilevelObjective(TotalVariation(-4.0, -3.0).double(), x, y)
    with torch.no_grad():
        exact = objective.evaluate(Accuracy(1e-9, 1e-9)).value
    assert float(results["far"]["lower"]) - 1e-7 <= exact <= float(results["far"]["upper"]) + 1e-7
    assert float(results["MAID"]["upper"]) < exact
    assert summary["runs"][0]["loss"] == float(results["MAID"]["loss"])
    # finished runs are kept, and pictures come from the files alone
    before = (out / "results.csv").read_bytes()
    for name in ("loss.png", "accuracy.png", "pictures.png"):
        assert (out / name).stat().st_size > 1000
        (out / name).unlink()
    monkeypatch.setattr(race, "descend", None)
    assert main(["reproduce", "tiny", "--output", "out"]) == 0, capsys.readouterr().err
    assert (out / "results.csv").read_bytes() == before
    monkeypatch.setattr(race, "make", None)
    (out / "loss.png").unlink()
    assert main(["reproduce", "tiny", "--plot-only", "--output", "out"]) == 0
    assert (out / "loss.png").is_file()


def test_intervals_against_exact_losses_and_what_was_reached(tiny: Path) -> None:
    adam = {"optimizer": {"class_path": "recon.bilevel.InexactAdam", "init_args": {"lr": 0.05, "batch_size": 1}}}
    content = {**TINY, "budget": 200, "reference": "HOAG, cubic", "true_losses": 4}
    write(tiny, {**content, "runs": {**TINY["runs"], "start": {}, "Adam": adam}})
    race.run("tiny", "quick", tiny / "out")
    found = rows(tiny / "out" / "intervals.csv")
    count = {name: sum(row["run"] == name for row in found) for name in ("MAID", "HOAG, cubic", "Adam", "start")}
    assert count["start"] == 0
    assert all(count[name] >= 3 for name in ("MAID", "HOAG, cubic"))
    for row in found:
        width = float(row["true_upper"]) - float(row["true_lower"])
        assert 0 <= width < 1e-6
        if row["run"] != "Adam":  # its intervals belong to the parameters before each step, as its docstring says
            assert float(row["lower"]) - width <= float(row["true_lower"])
            assert float(row["true_upper"]) <= float(row["upper"]) + width
            assert row["held"] == "1"
    summary = json.loads((tiny / "out" / "summary.json").read_text())
    assert summary["intervals"] == {"checked": len(found), "held": sum(row["held"] == "1" for row in found)}
    # exact losses are not counted
    maid = rows(tiny / "out" / "runs" / "maid.csv")
    content = {**TINY, "budget": 200}
    write(tiny, content)
    race.run("tiny", "quick", tiny / "without")
    for with_them, without in zip(maid, rows(tiny / "without" / "runs" / "maid.csv"), strict=True):
        assert with_them["evaluations"] == without["evaluations"]
        assert with_them["loss"] == without["loss"]
    assert not (tiny / "without" / "intervals.csv").exists()
    # the first certified to be below the end of the reference
    reached = {row["run"]: row for row in rows(tiny / "out" / "reached.csv")}
    results = {row["run"]: row for row in rows(tiny / "out" / "results.csv")}
    goal, spent = float(results["HOAG, cubic"]["loss"]), float(results["HOAG, cubic"]["evaluations"])
    first = next(row for row in maid if float(row["upper"]) <= goal)
    assert float(reached["MAID"]["evaluations"]) == float(first["evaluations"])
    assert float(reached["MAID"]["times_fewer"]) == pytest.approx(spent / float(first["evaluations"]))
    assert math.isnan(float(reached["start"]["evaluations"]))
    assert (tiny / "out" / "intervals.png").is_file()


def test_filters_are_drawn(tiny: Path) -> None:
    regularizer = {"class_path": "models.FieldsOfExperts", "init_args": {"filters": 3, "size": 3}}
    write(tiny, {**TINY, "regularizer": regularizer, "budget": 20})
    race.run("tiny", "quick", tiny / "out")
    assert np.load(tiny / "out" / "runs" / "maid.npz")["filters"].shape == (3, 3, 3)
    drawn = np.asarray(Image.open(tiny / "out" / "filters.png").convert("L"))
    assert (drawn < 100).mean() > 0.05  # black parts of filters, not titles alone


def test_a_method_that_loses_itself_is_a_row_without_numbers(tiny: Path) -> None:
    optimizer = {"class_path": "recon.bilevel.InexactSGD", "init_args": {"lr": 1e9}}
    write(tiny, {**TINY, "runs": {"MAID": TINY["runs"]["MAID"], "SGD": {"optimizer": optimizer}}})
    assert main(["reproduce", "tiny", "--output", "out"]) == 0
    row = json.loads((tiny / "out" / "summary.json").read_text())["runs"][1]
    assert row["status"] == "diverged"
    assert row["loss"] is None
    assert (tiny / "out" / "pictures.png").is_file()


def test_an_interrupted_race_goes_on(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    descend, called = race.descend, []

    def interrupted(name: str, *args: Any) -> Any:
        called.append(name)
        if name == "HOAG, cubic" and called.count(name) == 1:
            raise KeyboardInterrupt
        return descend(name, *args)

    monkeypatch.setattr(race, "descend", interrupted)
    with pytest.raises(KeyboardInterrupt):
        race.run("tiny", "quick", tiny / "out")
    race.run("tiny", "quick", tiny / "out")
    assert called == ["MAID", "HOAG, cubic", "HOAG, cubic", "far"]
    assert [row["run"] for row in rows(tiny / "out" / "results.csv")] == list(TINY["runs"])


def test_bad_input(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def message(*options: str) -> str:
        assert main(["reproduce", "tiny", "--output", "out", *options]) == 1
        return capsys.readouterr().err

    assert "no folder nowhere in $RECON_DATA or data" in message("--scale", "paper")
    assert "has no results.csv and settings.json" in message("--plot-only")
    (tiny / "out").mkdir(exist_ok=True)
    for content, text in (
        ("a: [", "cannot be read as YAML"),
        ({**TINY, "more": 1}, "must have budget, data, regularizer, runs"),
        ({**TINY, "reference": "HOAG"}, "reference is 'HOAG', but must be one of MAID, HOAG, cubic, far"),
        ({**TINY, "true_losses": -1}, "true_losses is -1, but must be a number of iterations"),
        ({**TINY, "budget": -3}, "budget is -3, but must be a positive number"),
        ({**TINY, "runs": {}}, "data and runs must map names"),
        ({**TINY, "runs": {"a": {"method": {}}}}, "the run a may have `optimizer` and `solver`, and nothing else"),
        ({**TINY, "data": {**TINY["data"], "class": "CT"}}, "data.class is 'CT'"),
        ({**TINY, "runs": {"a b": TINY["runs"]["MAID"], "A-B": TINY["runs"]["MAID"]}}, "differ in letters or digits"),
    ):
        write(tiny, content)
        assert text in message()
    wrong = {"optimizer": {"class_path": "recon.bilevel.HOAG", "init_args": {"schedul": "cubic"}}}
    write(tiny, {**TINY, "runs": {"wrong": wrong}})
    assert "schedul" in message()
    assert not (tiny / "out" / "settings.json").exists()
    write(tiny, TINY)
    assert main(["reproduce", "tiny", "--output", "new"]) == 0
    write(tiny, {**TINY, "budget": 70})
    assert main(["reproduce", "tiny", "--output", "new"]) == 1
    assert "holds results of other settings (budget)" in capsys.readouterr().err
    assert main(["reproduce", "tiny", "--scale", "paper", "--plot-only", "--output", "new"]) == 1
    assert "holds tiny at quick scale, not tiny at paper scale" in capsys.readouterr().err
    (tiny / "new" / "settings.json").unlink()
    write(tiny, TINY)
    assert main(["reproduce", "tiny", "--output", "new"]) == 1
    assert "has results, but no settings.json" in capsys.readouterr().err


def test_damaged_runs_are_named_and_made_again(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", "tiny", "--output", "out"]) == 0
    runs, results = tiny / "out" / "runs", (tiny / "out" / "results.csv").read_bytes()
    descend, made = race.descend, []

    def watched(name: str, *args: Any) -> Any:
        made.append(name)
        return descend(name, *args)

    monkeypatch.setattr(race, "descend", watched)
    table = (runs / "maid.csv").read_bytes()
    pictures = (runs / "maid.npz").read_bytes()
    first_lines = b"".join(table.splitlines(keepends=True)[:3])
    for file, content in (
        ("maid.csv", b"iteration,loss\n1,"),
        ("maid.csv", first_lines),
        ("maid.csv", table[:-3]),
        ("maid.csv", None),
        ("maid.npz", b"PK"),
        ("maid.npz", pictures[:-2000]),
        ("maid.npz", None),
    ):
        (runs / file).unlink()
        if content is not None:
            (runs / file).write_bytes(content)
        capsys.readouterr()
        assert main(["reproduce", "tiny", "--plot-only", "--output", "out"]) == 1
        assert re.search(rf"{file}: (was cut off|is missing)", capsys.readouterr().err)
        made.clear()
        assert main(["reproduce", "tiny", "--output", "out"]) == 0
        assert made == ["MAID"]
    (runs / "maid.json").write_text("{")
    (tiny / "out" / "results.csv").write_bytes(results[:-3])
    made.clear()
    assert main(["reproduce", "tiny", "--output", "out"]) == 0
    assert made == ["MAID"]
    ours, theirs = (
        [row | {"seconds": ""} for row in csv.DictReader(r.decode().splitlines())]
        for r in ((tiny / "out" / "results.csv").read_bytes(), results)
    )
    assert ours == theirs


@pytest.mark.parametrize("method", ["MAID", "PublishedMAID", "HOAG", "InexactAdam", "DFOLS"])
def test_a_run_that_was_killed_goes_on_bit_for_bit(tiny: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    if method == "DFOLS":
        pytest.importorskip("dfols")
    write(
        tiny,
        {
            **TINY,
            "budget": 300,
            "true_losses": 3,
            "runs": {"a": {"optimizer": {"class_path": f"recon.bilevel.{method}"}}},
        },
    )
    race.run("tiny", "quick", tiny / "whole")
    monkeypatch.setattr(race_run, "SAVE_EVERY", 0.0)
    save, count = race_run.save, 0

    def killed(*args: Any) -> None:
        nonlocal count
        save(*args)
        count += 1
        if count in (2, 4):
            raise KeyboardInterrupt

    monkeypatch.setattr(race_run, "save", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            race.run("tiny", "quick", tiny / "out")
    assert (tiny / "out" / "runs" / "a.ckpt").is_file()
    race.run("tiny", "quick", tiny / "out")
    assert not (tiny / "out" / "runs" / "a.ckpt").exists()
    for file in ("runs/a.csv", "results.csv"):
        ours, theirs = ([r | {"seconds": ""} for r in rows(tiny / folder / file)] for folder in ("out", "whole"))
        assert ours == theirs
    (tiny / "out" / "runs" / "a.json").unlink()
    (tiny / "out" / "runs" / "a.ckpt").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"a\.ckpt: is no checkpoint of this run; delete it"):
        race.run("tiny", "quick", tiny / "out")


@pytest.mark.parametrize("method", ["MAID", "PublishedMAID", "HOAG", "InexactAdam"])
def test_a_run_goes_on_from_a_checkpoint_of_an_older_version(tiny: Path, method: str) -> None:
    """Written after three iterations, when all options lay on one level and every method had a state of its own."""
    optimizer = {"class_path": f"recon.bilevel.{method}"}
    write(tiny, {**TINY, "budget": 300, "true_losses": 3, "runs": {"a": {"optimizer": optimizer}}})
    race.run("tiny", "quick", tiny / "whole")
    older = (Path(__file__).parent / "older" / f"{method}.ckpt").read_bytes()
    for folder, content in (("out", older), ("other", (Path(__file__).parent / "older" / "HOAG.ckpt").read_bytes())):
        race.run("tiny", "quick", tiny / folder)  # settings, and then as if it had been killed
        (tiny / folder / "runs" / "a.json").unlink()
        (tiny / folder / "runs" / "a.ckpt").write_bytes(content)
    race.run("tiny", "quick", tiny / "out")
    ours, whole = (rows(tiny / folder / "runs" / "a.csv") for folder in ("out", "whole"))
    assert [row["iteration"] for row in ours] == [row["iteration"] for row in whole]
    for mine, theirs in zip(ours, whole, strict=True):  # the first three are of another machine
        for name in ("loss", "upper", "evaluations", "theta_0", "theta_1"):
            assert float(mine[name]) == pytest.approx(float(theirs[name]), rel=1e-6, nan_ok=True), name
    if method != "HOAG":
        with pytest.raises(ValueError, match=r"a\.ckpt: is no checkpoint of this run; .*that of another method"):
            race.run("tiny", "quick", tiny / "other")


def test_there_is_no_exact_loss_without_minimizers() -> None:
    class Concave(TotalVariation):
        def convexity(self) -> float:
            return -2.0

    data = race.DenoisingDataModule(limit=1, size=16, sigma=0.1, dtype="float64")
    objective = BilevelObjective(Concave(-4.0, -3.0).double(), *data.train_tensors())
    objective.evaluations = 7.0
    assert all(map(math.isnan, race_run.exact_loss(objective)))
    assert objective.evaluations == 7.0


def test_a_run_in_which_nothing_happens_ends(tiny: Path) -> None:
    class Idle(torch.optim.SGD):
        def step(self, closure: Any = None, *, objective: BilevelObjective) -> Record:  # type: ignore[override]
            return Record(
                1, CertifiedLoss(1.0, 1.0, 1.0), 0, 0, 0, 0, 1, objective.evaluations, 0, Progress.LINE_SEARCH_FAILED
            )

    data = race.DenoisingDataModule(limit=1, size=16, sigma=0.1, dtype="float64")
    objective = BilevelObjective(TotalVariation(-4.0, -3.0).double(), *data.train_tensors())
    descent = race.descend("idle", objective, Idle(objective.params), 100)
    assert descent.status == "line search failed"
    assert len(descent.iterations) == MOST_IDLE


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_configurations(path: Path) -> None:
    """Every run of every figure can be made."""
    content = race_plan.read_figure(path)
    x = torch.zeros(1, 1, 12, 12)
    for entry in content["runs"].values():
        objective, optimizer = race.make(content["regularizer"], entry, x, x)
        assert optimizer is None or objective.params[0] is optimizer.param_groups[0]["params"][0]
    assert any(isinstance(race.make(content["regularizer"], e, x, x)[1], MAID) for e in content["runs"].values())
    assert {p.stem for p in path.parent.iterdir()} == {"quick", "paper"}


def test_mri_and_initial_parameters(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = {"class": "MRIDataModule", "folder": "nowhere", "val": "builtin", "test": "builtin", "limit": 2, "size": 16}
    data |= {"acceleration": 2, "coils": 2, "sigma": 0.02, "dtype": "float64"}
    runs = {"poor": {}, "MAID": TINY["runs"]["MAID"]}
    write(tiny, {**TINY, "data": data, "mu": 0.01, "runs": runs})
    assert main(["reproduce", "tiny", "--output", "out"]) == 0, capsys.readouterr().err
    poor, learned = rows(tiny / "out" / "results.csv")
    assert (poor["status"], poor["iterations"], poor["evaluations"]) == ("start", "0", "0.0")
    assert float(learned["upper"]) < float(poor["lower"])
    assert (tiny / "out" / "pictures.png").is_file()
    # magnitudes are drawn, one channel
    assert np.load(tiny / "out" / "runs" / "poor.npz")["image"].shape == (1, 16, 16)


def test_pictures_of_a_folder_have_the_size_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some").mkdir()
    picture = np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "some" / "a.png")
    monkeypatch.setenv("RECON_DATA", str(tmp_path))
    data, source = race._data({"folder": "some", "size": 16, "sigma": 0.1}, "quick")
    assert source == "some"
    assert DenoisingDataModule(**data).train_tensors()[0].shape == (1, 1, 16, 16)


def test_within_1_percent() -> None:
    def record(loss: float, evaluations: float) -> Record:
        return Record(1, CertifiedLoss(loss, 0, 0), 0, 0, 0, 0, 1, evaluations, 0, Progress.ACCEPTED)

    records = [record(loss, 10.0 * (i + 1)) for i, loss in enumerate([2.0, 1.005, 1.2, 1.009, 1.0])]
    assert race.within(records, 1.0) == 40
    assert math.isnan(race.within(records, 3.0))
    assert math.isnan(race.within([], 1.0))

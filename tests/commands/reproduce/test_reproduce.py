"""recon reproduce: tiny runs of the figures, the files they leave, drawing alone, bad input."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from models import LearnedTV
from models.files.storage import load_model, save_regularizer
from recon.bilevel import CertifiedLoss, DivergedError, Progress, Record
from recon.commands.main import main
from recon.commands.output.tables import claim, read
from recon.commands.reproduce import listing
from recon.commands.reproduce.figures import tv_discretisation as tv
from recon.commands.reproduce.figures.tv_discretisation import learning, pictures
from tests.commands.summaries import check_summary

FIGURES = ("reconstructions.png", "filters.png", "training.png", "sensitivity.png")


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_tv_discretisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training writes tables and models; drawing needs these alone."""
    tiny = replace(tv.SCALES["quick"], patches=2, patch_size=12, kernels=2, budget=60.0, piggyback=(5, 10))
    small = tv.load("quick")
    small = learning.Data(small.x[:2, :, :12, :12], small.y[:2, :, :12, :12], small.held_x[:1, :, :24, :24],
                    small.held_y[:1, :, :24, :24])  # fmt: skip
    monkeypatch.setattr(tv, "load", lambda scale: small)
    monkeypatch.setitem(tv.SCALES, "quick", replace(tiny, accuracies=(1.0,), steps=(1e-2,)))
    assert main(["reproduce", "tv-discretisation", "--output", str(tmp_path)]) == 0
    assert all((tmp_path / name).stat().st_size > 1000 for name in FIGURES)
    assert [row["method"] for row in rows(tmp_path / "results.csv")] == ["standard", "fixed", "adaptive"]
    summary = check_summary(tmp_path, "reproduce tv-discretisation")
    assert list(summary["methods"]) == ["standard", "fixed", "adaptive"]
    training = rows(tmp_path / "training.csv")
    assert all(
        float(r["lower"]) <= float(r["loss"]) <= float(r["upper"]) for r in training if r["method"] == "adaptive"
    )
    assert [(r["method"], float(r["accuracy_or_iterations"])) for r in rows(tmp_path / "sensitivity.csv")] == [
        ("adaptive", 1.0),
        ("fixed", 5.0),
        ("fixed", 10.0),
    ]
    learned, _ = load_model(tmp_path / "adaptive")
    assert isinstance(learned, LearnedTV)
    assert small.psnr(learned) == pytest.approx(float(rows(tmp_path / "results.csv")[2]["psnr"]), abs=1e-3)
    for name in FIGURES:
        (tmp_path / name).unlink()
    monkeypatch.setattr(learning, "learn", None)
    assert main(["reproduce", "tv-discretisation", "--output", str(tmp_path)]) == 0  # every run is finished
    (tmp_path / "filters.png").unlink()
    monkeypatch.setattr(tv, "train", None)
    assert main(["reproduce", "tv-discretisation", "--plot-only", "--output", str(tmp_path)]) == 0
    assert all((tmp_path / name).is_file() for name in FIGURES)


def test_a_folder_of_other_settings_and_a_table_that_was_cut_off(tmp_path: Path) -> None:
    claim(tmp_path, {"scale": "quick", "budget": 1.0})
    claim(tmp_path, {"scale": "quick", "budget": 1.0})
    with pytest.raises(ValueError, match=r"holds results of other settings \(budget\); choose another folder"):
        claim(tmp_path, {"scale": "quick", "budget": 2.0})
    (tmp_path / "settings.json").write_text('{"scale": "qu')
    with pytest.raises(ValueError, match=r"settings.json: is no JSON file"):
        claim(tmp_path, {"scale": "quick"})
    (tmp_path / "results.csv").write_text("method,psnr\nstandard,27.4\nfix")
    with pytest.raises(ValueError, match=r"results.csv: was cut off"):
        read(tmp_path / "results.csv")


def test_a_run_that_diverges_is_a_row_and_no_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, size = tv.load("quick"), replace(tv.SCALES["quick"], accuracies=(), first_steps=(), piggyback=(10,))
    save_regularizer(learning.start(size, -2.0), tmp_path / "standard", {})

    def learn(*args: object, step: float, **options: object) -> list[Record]:
        if step == 1e-2:
            raise DivergedError("NaN")
        return [Record(1, CertifiedLoss(0.0, 0.0, 0.0), 0.0, 0.0, 0.0, step, 1, 7.0, 0.0, Progress.ACCEPTED)]

    monkeypatch.setattr(learning, "learn", learn)
    monkeypatch.setattr(learning.Data, "psnr", lambda self, model: 28.0)
    learning.sensitivity(size, data, tmp_path)
    found = rows(tmp_path / "sensitivity.csv")
    assert [(r["step"], r["psnr"]) for r in found] == [("0.001", "28.0"), ("0.01", "nan")]
    legend = pictures._sensitivity(read(tmp_path / "sensitivity.csv")).legends[0]
    assert [t.get_text() for t in legend.get_texts()] == ["non-adaptive, 10 iterations (diverged: 0.01)"]


def test_the_best_weight_is_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the weights e^-3, e^-2.9, ..., the one of the largest PSNR."""
    data = tv.load("quick")
    monkeypatch.setattr(learning.Data, "psnr", lambda self, model: -abs(float(model.log_weight.detach()) + 2.2))
    assert float(learning.best_standard(data).log_weight.detach()) == pytest.approx(-2.2)


def test_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert "tv-discretisation" in listing.names()
    assert main(["reproduce", "nothing", "--output", str(tmp_path)]) == 1
    assert "there is no figure 'nothing'; valid are" in capsys.readouterr().err
    assert main(["reproduce", "tv-discretisation", "--plot-only", "--output", str(tmp_path)]) == 1
    assert "has no results.csv, training.csv" in capsys.readouterr().err
    monkeypatch.setenv("RECON_DATA", str(tmp_path))
    assert main(["reproduce", "tv-discretisation", "--scale", "paper", "--output", str(tmp_path)]) == 1
    assert "no folder kodak_gray_96 in $RECON_DATA or data; set RECON_DATA" in capsys.readouterr().err
    with pytest.raises(ValueError, match="scale is 'huge'"):
        tv.run("huge", tmp_path)

"""recon reproduce peers: the table, what it marks, and bad input."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.noise import derive_seed, gaussian_noise
from models.files.storage import pretrained
from models.foreign import load_foreign
from recon.commands.main import main
from recon.commands.reproduce import peers
from recon.lower_level import LBFGS, Energy
from recon.metrics import psnr
from recon.reconstruction.boundary import middle, mirrored
from tests.commands.summaries import check_summary
from tests.models.foreign.checkpoints import write_crr, write_pylopt, write_wcrr

FILES = {"images.csv", "reconstructions.png", "summary.json", "table.csv", "table.md"}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two pictures of 24 x 20 pixels."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(2):
        values = np.add.outer(np.arange(24) * (i + 3), np.arange(20) * 4) % 256
        Image.fromarray(values.astype(np.uint8)).save(folder / f"{i}.png")
    return folder


def command(pictures: Path, output: Path, *words: str) -> list[str]:
    return ["reproduce", "peers", "--pictures", str(pictures), "--sigma", "0.1", "--output", str(output), *words]


def test_all_models_denoise_the_same_data(tmp_path: Path, pictures: Path) -> None:
    write_crr(tmp_path / "theirs")
    write_pylopt(tmp_path / "pylopt")
    paths, output = [str(tmp_path / name) for name in ("theirs", "pylopt")], tmp_path / "output"
    words = ["--checkpoint", *paths, "--lmbd", "9", "2", "--mu", "file", "file", "--models", "tv_bsd"]
    assert main(command(pictures, output, *words)) == 0
    assert {path.name for path in output.iterdir()} == FILES
    rows = list(csv.DictReader((output / "images.csv").read_text().splitlines()))
    assert [(r["model"], r["picture"]) for r in rows] == [
        (model, f"{i}.png") for model in ("tv_bsd", "theirs", "pylopt") for i in range(2)
    ]
    # the second picture by hand, to ten thousand times the accuracy
    x = torch.from_numpy(np.asarray(Image.open(pictures / "1.png"), dtype=np.float64) / 255)[None, None]
    y = x + gaussian_noise((1, 24, 20), 0.1, 0, 1)[None]
    models = {
        "tv_bsd": pretrained("tv_bsd").double(),
        "theirs": load_foreign(tmp_path / "theirs", 0.1, 9.0).regularizer,
    }
    for name, model in models.items():
        wide = mirrored(y, model.margin)
        exact = middle(LBFGS()(Energy(wide, model), wide, torch.full((1,), 1e-6)).x, (24, 20))
        row = next(r for r in rows if r["model"] == name and r["picture"] == "1.png")
        assert float(row["psnr"]) == pytest.approx(float(psnr(exact, x)), abs=0.05)
        assert 0 < float(row["certified"]) <= 1e-3 * float(y.norm()) * 1.001
        assert row["grade"] == "proved"
    summary = check_summary(output, "reproduce peers")
    assert summary["models"]["theirs"]["kind"] == "CRR-NN"
    assert "λ 9 given, μ 1.7 of the file" in (output / "table.md").read_text()


def test_what_cannot_be_certified_says_so(tmp_path: Path, pictures: Path) -> None:
    folder, output = tmp_path / "theirs", tmp_path / "output"
    state = write_wcrr(folder)
    state["activation_ccv.coefficients"] = torch.linspace(-0.1, 0.1, 21)[None]
    state["mu_"] = torch.tensor(-9.0)
    torch.save({"state_dict": state}, folder / "checkpoints" / "checkpoint_10.pth")
    assert main(command(pictures, output, "--checkpoint", str(folder), "--models", "--limit", "1")) == 0
    (row,) = csv.DictReader((output / "images.csv").read_text().splitlines())
    assert row["certified"] == row["grade"] == ""
    assert float(row["modulus"]) < 0
    assert "| none, modulus -0.0" in (output / "table.md").read_text()
    assert json.loads((output / "summary.json").read_text())["models"]["theirs"]["certified"] is None


def test_lmbd_is_tuned_on_other_pictures(tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither half nor twice the lmbd that is chosen is better on them."""
    write_crr(tmp_path / "theirs")
    (tmp_path / "other").mkdir()
    (pictures / "1.png").rename(tmp_path / "other" / "1.png")
    words = ["--checkpoint", str(tmp_path / "theirs"), "--models"]
    assert main(command(pictures, tmp_path / "out", *words, "--tune", str(tmp_path / "other"))) == 0
    (row,) = csv.DictReader((tmp_path / "out" / "table.csv").read_text().splitlines())
    assert row["parameters"].endswith("λ by the PSNR on other pictures (1)")
    lmbd = float(row["parameters"].split()[1])
    x = torch.from_numpy(np.asarray(Image.open(tmp_path / "other" / "1.png"), dtype=np.float64) / 255)[None, None]
    y = x + gaussian_noise((1, 24, 20), 0.1, derive_seed(0, 1), 0)[None]

    def quality(value: float) -> float:
        model = load_foreign(tmp_path / "theirs", 0.1, value).regularizer
        wide = mirrored(y, model.margin)
        exact = LBFGS()(Energy(wide, model), wide, torch.full((1,), 1e-3)).x
        return float(psnr(middle(exact, (24, 20)), x))

    assert quality(lmbd) >= max(quality(lmbd / 2), quality(2 * lmbd))
    assert main(command(pictures, tmp_path / "out", *words, "--tune", str(pictures))) == 1
    assert "the choice must not see the tested pictures" in capsys.readouterr().err


def test_an_interrupt_leaves_nothing(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(peers, "measure", stop)
    assert main(command(pictures, tmp_path / "output", "--models", "tv_bsd")) == 130
    assert not (tmp_path / "output").exists()


def test_bad_input(tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_crr(tmp_path / "theirs")
    crr, output = str(tmp_path / "theirs"), tmp_path / "output"
    for words, message in (
        (["--models"], "there is nothing to compare: give --checkpoint, or --models"),
        (["--models", "crr_ct"], "crr_ct: is no regularizer for pictures"),
        (["--checkpoint", crr, "--lmbd", "1", "2", "--models"], "--lmbd has 2 values, but needs one for each of the 1"),
        (["--checkpoint", crr, "--mu", "much", "--models"], "--mu is 'much', but needs positive numbers, or file"),
        (["--checkpoint", crr, crr, "--models"], "--checkpoint has a path twice"),
        (["--sigma", "-1", "--models", "tv_bsd"], "sigma is -1.0, but must be positive and finite"),
        (["--limit", "0", "--models", "tv_bsd"], "limit is 0, but must be at least 1"),
    ):
        assert main(command(pictures, output, *words)) == 1
        assert message in capsys.readouterr().err
    assert not output.exists()

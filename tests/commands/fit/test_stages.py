"""Trainings in several stages: one command, a folder for every stage, interrupted and resumed, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from models.files.storage import load_regularizer
from recon.commands.configuration.stages import merge, read_stages
from recon.commands.fit import stages as staged
from recon.commands.main import main
from tests.commands.fit.test_fit import assert_equal
from tests.commands.summaries import check_summary


def content() -> dict[str, Any]:
    """Score matching, then unrolled steps on patches of another size, then certified bilevel learning."""
    regularizer = {"class_path": "models.FieldsOfExperts", "init_args": {"filters": 3, "size": 3}}
    adam = {"class_path": "recon.bilevel.InexactAdam", "init_args": {"batch_size": 2}}
    return {
        "model": {
            "class_path": "models.BilevelModule",
            "init_args": {"regularizer": regularizer, "optimizer": {"class_path": "recon.bilevel.MAID"}},
        },
        "data": {
            "class_path": "datasets.DenoisingDataModule",
            "init_args": {
                "train": "pictures",
                "val": "rest",
                "pictures": {"limit": 3},
                "sigma": 0.1,
                "dtype": "float64",
            },
        },
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False},
        "stages": [
            {
                "name": "score",
                "model": {
                    "class_path": "models.ScoreMatchingModule",
                    "init_args": {"optimizer": {"class_path": "recon.bilevel.ScoreMatchingAdam"}},
                },
                "trainer": {"max_epochs": 3},
            },
            {
                "name": "unrolled",
                "model": {"init_args": {"optimizer": adam, "differentiation": {"unrolled_steps": 2}}},
                "data": {"init_args": {"pictures": {"patch_size": 10, "n_patches": 6}}},
            },
            {"name": "bilevel"},
        ],
    }


def write(path: Path, values: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values))
    return str(path)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stages of :func:`content` on random pictures of 16x14 pixels."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RECON_DEBUG", raising=False)
    rng = np.random.default_rng(0)
    for folder in ("pictures", "others"):
        (tmp_path / folder).mkdir()
        for name in "abcde":
            smooth = np.kron(rng.integers(0, 256, (4, 2)), np.ones((4, 7))).astype(np.uint8)
            Image.fromarray(smooth).save(tmp_path / folder / f"{name}.png")
    return Path(write(tmp_path / "configs" / "foe" / "stages.yaml", content()))


def last(run: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(run / stage / "checkpoints" / "last.ckpt", weights_only=False)
    return found


def test_every_stage_starts_where_the_one_before_ended(config: Path, tmp_path: Path) -> None:
    assert main(["fit", "--config", str(config)]) == 0
    run = tmp_path / "outputs" / "foe" / "stages" / "version_0"
    check_summary(run, "fit", "iteration limit")
    summary = json.loads((run / "summary.json").read_text())
    names = ["1_score", "2_unrolled", "3_bilevel"]
    each = [json.loads((run / name / "summary.json").read_text()) for name in names]
    assert [s["iterations"] for s in each] == [3, 2, 2]
    assert [s["config"] for s in each] == [str(config)] * 3
    assert summary["seconds"] == pytest.approx(sum(s["seconds"] for s in each), abs=0.05)
    assert [row["stage"] for row in summary["stages"]] == ["score", "unrolled", "bilevel"]
    assert [row["guarantee"] for row in summary["stages"]] == ["none", "none", "exact"]
    with (run / "stages.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_psnr"]) for row in rows] == [s["val_psnr"] for s in each]
    assert (run / "regularizer.safetensors").read_bytes() == (run / names[2] / "regularizer.safetensors").read_bytes()

    _, metadata = load_regularizer(run / "regularizer.safetensors")
    assert [stage["name"] for stage in metadata["stages"]] == ["score", "unrolled", "bilevel"]
    assert [stage["training"]["loss"] for stage in metadata["stages"]] == [s["loss"] for s in each]
    assert yaml.safe_load(metadata["stages"][1]["config"])["data"]["init_args"]["pictures"]["patch_size"] == 10

    # the second stage by hand, from the file of the first
    by_hand = content()
    by_hand["model"]["init_args"] |= by_hand["stages"][1]["model"]["init_args"]
    by_hand["model"]["init_args"]["regularizer"] = {
        "class_path": "models.pretrained",
        "init_args": {"path": str(run / "1_score" / "regularizer.safetensors")},
    }
    by_hand["data"]["init_args"]["pictures"] |= by_hand["stages"][1]["data"]["init_args"]["pictures"]
    del by_hand["stages"]
    write(tmp_path / "hand.yaml", by_hand)
    assert main(["fit", "--config", "hand.yaml"]) == 0
    (hand,) = (tmp_path / "outputs" / "hand").glob("*/checkpoints/last.ckpt")
    assert_equal(torch.load(hand, weights_only=False)["state_dict"], last(run, "2_unrolled")["state_dict"])

    # other subcommands take the last stage
    assert main(["validate", "--config", str(config), "--ckpt_path", "last"]) == 0
    validated = json.loads((run.parent / "validate_0" / "summary.json").read_text())
    assert validated["val_psnr"] == pytest.approx(each[2]["val_psnr"], rel=1e-12)


def test_interrupted_trainings_go_on_with_the_same_bits(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, broken = tmp_path / "whole" / "version_0", tmp_path / "broken" / "version_0"
    root = ["--trainer.default_root_dir", "broken"]
    assert main(["fit", "--config", str(config), "--trainer.default_root_dir", "whole"]) == 0

    # stopped in the second stage, after an iteration
    short = content()
    short["stages"][1]["trainer"] = {"max_epochs": 1}
    write(config, short)
    original = staged.run_cli

    def stops(arguments: list[str], stage: Any = None) -> Any:
        if stage.folder.name == "3_bilevel":
            raise KeyboardInterrupt
        return original(arguments, stage)

    monkeypatch.setattr(staged, "run_cli", stops)
    with pytest.raises(KeyboardInterrupt):
        staged.run(["fit", "--config", str(config), *root])
    monkeypatch.setattr(staged, "run_cli", original)
    (broken / "2_unrolled" / "summary.json").unlink()  # as if it had been killed before the end
    before = (broken / "1_score" / "summary.json").stat().st_mtime_ns
    write(config, content())
    assert main(["fit", "--config", str(config), *root, "--ckpt_path", "last"]) == 0
    assert (broken / "1_score" / "summary.json").stat().st_mtime_ns == before
    for stage in ("2_unrolled", "3_bilevel"):
        assert_equal(last(broken, stage)["state_dict"], last(whole, stage)["state_dict"])
        one, two = (json.loads((run / stage / "summary.json").read_text()) for run in (broken, whole))
        assert {k: v for k, v in one.items() if k != "seconds"} == {k: v for k, v in two.items() if k != "seconds"}

    assert main(["fit", "--config", str(config), *root, "--ckpt_path", "last"]) == 1
    assert "nothing is left to do" in capsys.readouterr().err

    # killed between the last iteration of a stage and its model
    for path in (broken / "summary.json", broken / "3_bilevel" / "summary.json"):
        path.unlink()
    (broken / "3_bilevel" / "regularizer.safetensors").unlink()
    assert main(["fit", "--config", str(config), *root, "--ckpt_path", str(broken)]) == 0
    kept, again = (json.loads((run / "3_bilevel" / "summary.json").read_text()) for run in (whole, broken))
    assert [again[k] for k in ("loss", "lower", "upper", "evaluations", "val_psnr", "iterations")] == [
        kept[k] for k in ("loss", "lower", "upper", "evaluations", "val_psnr", "iterations")
    ]

    # finished stages must be those of the configuration
    (broken / "summary.json").unlink()
    changed = content()
    changed["stages"][0]["model"]["init_args"]["noise_factor"] = 2.0
    assert main(["fit", "--config", write(config, changed), *root, "--ckpt_path", "last"]) == 1
    assert "stage 1, score, was finished with another model" in capsys.readouterr().err
    write(config, content())
    options = [*root, "--data.train", "others", "--ckpt_path", "last"]
    assert main(["fit", "--config", str(config), *options]) == 1
    assert "stage score was finished with the options of its file, not --data.train others" in capsys.readouterr().err


def test_options_hold_for_all_stages(config: Path, tmp_path: Path) -> None:
    options = ["--data.train", "others", "--trainer.max_epochs=1"]
    assert main(["fit", "--config", str(config), *options]) == 0
    run = tmp_path / "outputs" / "foe" / "stages" / "version_0"
    for name in ("1_score", "2_unrolled", "3_bilevel"):
        assert json.loads((run / name / "summary.json").read_text())["iterations"] == 1
        assert yaml.safe_load((run / name / "config.yaml").read_text())["data"]["init_args"]["train"] == "others"
    _, metadata = load_regularizer(run / "regularizer.safetensors")
    assert metadata["stages"][2]["options"] == options


def changed(path: str, value: object) -> dict[str, Any]:
    """The content with another value at a path of keys and numbers."""
    values: Any = content()
    *rest, key = [int(part) if part.isdigit() else part for part in path.split("/")]
    place = values
    for part in rest:
        place = place[part]
    place[key] = value
    found: dict[str, Any] = values
    return found


FOE = {"class_path": "models.FieldsOfExperts", "init_args": {"filters": 5, "size": 3}}


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        (changed("stages", []), ["stages is []"]),
        (changed("stages", {"a": 1}), ["stages is {'a': 1}"]),
        (changed("stages/1", "x"), ["stage 2 is 'x'"]),
        (changed("stages/2/name", "score"), ["two stages have the name score"]),
        (changed("stages/1/name", "a/b"), ["stage 2 has the name 'a/b'"]),
        (changed("stages/1/modle", {}), ["stage unrolled has no use for modle"]),
        (changed("stages/1/trainer", {"default_root_dir": "x"}), ["stage unrolled has trainer.default_root_dir"]),
        (changed("stages/1/trainer", {"max_epoch": 3}), ["stage unrolled", "max_epoch"]),
        (changed("stages/0/model/init_args/noise_faktor", 1.0), ["stage score", "noise_faktor"]),
        (changed("stages/2/model", {"init_args": {"regularizer": FOE}}), ["stage bilevel", "regularizer", "shape"]),
        (
            changed("stages/2/model", {"init_args": {"regularizer": {"class_path": "models.TotalVariation"}}}),
            ["stage bilevel", "model.init_args.regularizer is models.TotalVariation", "models.FieldsOfExperts"],
        ),
    ],
)
def test_stages_that_cannot_follow_are_refused_before_anything_is_computed(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], values: dict[str, Any], parts: list[str]
) -> None:
    assert main(["fit", "--config", write(config, values)]) == 1
    text = capsys.readouterr().err
    assert len(text.strip().splitlines()) == 1
    for part in parts:
        assert part in text
    assert not (tmp_path / "outputs").exists()


def test_a_first_stage_that_fails_leaves_no_folder(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(tmp_path / "pictures")
    assert main(["fit", "--config", str(config)]) == 1
    assert "pictures" in capsys.readouterr().err
    assert not list(tmp_path.glob("outputs/foe/stages/*"))


def test_merged_sections(tmp_path: Path) -> None:
    common = {"class_path": "models.BilevelModule", "init_args": {"regularizer": 1, "chunk_size": 2, "mu": 3}}
    own = {"class_path": "models.ScoreMatchingModule", "init_args": {"mu": 4}}
    assert merge(common, own, keep=True) == {**own, "init_args": {"regularizer": 1, "mu": 4}}
    optimizer = {"class_path": "recon.bilevel.MAID", "init_args": {"lr": 1}}
    other = {"class_path": "recon.bilevel.InexactAdam"}
    assert merge({"optimizer": optimizer}, {"optimizer": other}) == {"optimizer": other}
    assert merge({"optimizer": optimizer}, {"optimizer": {"init_args": {"seed": 2}}}) == {
        "optimizer": {"class_path": "recon.bilevel.MAID", "init_args": {"lr": 1, "seed": 2}}
    }
    write(tmp_path / "data.yaml", {"class_path": "D", "init_args": {"sigma": 0.1}})
    path = write(tmp_path / "a" / "b.yaml", {"data": "../data.yaml", "stages": [{"data": {"init_args": {"n": 1}}}, {}]})
    stages = read_stages(Path(path))
    assert stages is not None
    assert [stage.name for stage in stages] == ["stage1", "stage2"]
    assert stages[0].content == {"data": {"class_path": "D", "init_args": {"sigma": 0.1, "n": 1}}}
    assert stages[1].content == {"data": {"class_path": "D", "init_args": {"sigma": 0.1}}}
    assert read_stages(Path(write(tmp_path / "c.yaml", {"data": "../data.yaml"}))) is None

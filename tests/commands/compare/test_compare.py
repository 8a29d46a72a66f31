"""`recon compare`: values against those computed by hand, refusals, what is kept, the pictures."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from datasets import DenoisingDataModule
from models import Convexity, ConvolutionalCritic, FieldsOfExperts, LearnedTV, TotalVariation, UNet
from models.files.setting import describe_setting
from models.files.storage import save_regularizer
from recon.commands.compare import comparison as compare
from recon.commands.compare.methods import Task, baseline
from recon.commands.main import main
from recon.operators import Identity
from recon.reconstruction import Data, Request, Saddle, Variational
from tests.commands.summaries import check_summary

SIDE, SIGMA = 16, 0.1


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures of 16x16 pixels to denoise: two to learn from, two for validation, two for the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RECON_DEBUG", raising=False)
    rng = np.random.default_rng(0)
    for part in ("learn", "val", "test"):
        (tmp_path / part).mkdir()
        for name in "ab":
            pixels = np.kron(rng.integers(20, 236, (4, 4)), np.ones((4, 4))).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / part / f"{part}_{name}.png")
    save(tmp_path, "network", UNet(scales=2, channels=2).double(), module())
    return tmp_path


def module(**changes: Any) -> DenoisingDataModule:
    arguments: dict[str, Any] = {"train": "learn", "val": "val", "test": "test", "sigma": SIGMA}
    return DenoisingDataModule(**(arguments | changes))


def save(folder: Path, name: str, model: Any, data: DenoisingDataModule | None, **metadata: Any) -> None:
    setting = {"setting": describe_setting(Identity(), data)} if data is not None else {}
    save_regularizer(model, folder / name, setting | metadata)


def write(folder: Path, methods: dict[str, Any], data: dict[str, Any] | None = None, **more: Any) -> str:
    arguments = {"train": "learn", "val": "val", "test": "test", "sigma": SIGMA, **(data or {})}
    section = {"class_path": "datasets.DenoisingDataModule", "init_args": arguments}
    path = folder / "compare.yaml"
    path.write_text(yaml.safe_dump({"data": section, "methods": methods, **more}))
    return str(path)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "images.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def samples(data: DenoisingDataModule) -> list[tuple[Tensor, Tensor]]:
    return [(s.x, s.y) for s in data.test_dataloader()]


def minimizer(regularizer: TotalVariation, y: Tensor, accuracy: float, mu: float = 0.0) -> Tensor:
    return Variational(regularizer, mu).reconstruct(Data(y=y), Request(accuracy)).solution.x


def test_values_are_those_computed_by_hand(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    regularizer = TotalVariation(-2.0, -4.0).double()
    save(folder, "tv", regularizer, module(), mu=0.25, training={"seconds": 12.5, "evaluations": 40.0})
    methods = {"network": {"model": "network.safetensors"}, "tv": {"model": "tv.safetensors"}}
    config = write(folder, methods, accuracy=1e-6)
    assert main(["compare", "--config", config, "--output", "out"]) == 0, capsys.readouterr().err
    network = UNet(scales=2, channels=2).double()
    found = rows(folder / "out")
    assert [(r["method"], r["image"]) for r in found] == [
        (m, str(folder_name)) for m in methods for folder_name in module().names("test")
    ]
    for row, (x, y) in zip(found, samples(module()) * 2, strict=True):
        if row["method"] == "network":
            with torch.no_grad():
                z = network(y, Identity())
            assert row["error"] == row["evaluations"] == ""
        else:
            z = minimizer(regularizer, y, 1e-9, mu=0.25)
            assert 0 < float(row["error"]) <= 1e-6
            assert float(row["evaluations"]) > 1
        mse = float((z - x).square().mean())
        extent = float(x.max() - x.min())
        assert float(row["psnr"]) == pytest.approx(-10 * math.log10(mse), abs=1e-4)
        assert float(row["psnr_image_range"]) == pytest.approx(10 * math.log10(extent**2 / mse), abs=1e-4)
        assert float(row["residual"]) == pytest.approx(float((z - y).norm() / y.norm()), rel=1e-5)
        assert 0 < float(row["ssim"]) < 1
    check_summary(folder / "out", "compare")
    summary = json.loads((folder / "out" / "summary.json").read_text())["methods"]
    assert summary[0]["certified"] is False
    assert summary[0]["largest_error"] is None
    assert summary[0]["parameters"] == sum(p.numel() for p in network.parameters())
    assert summary[1]["psnr"] == pytest.approx(sum(float(r["psnr"]) for r in found[2:]) / 2)
    assert summary[1]["largest_error"] == max(float(r["error"]) for r in found[2:])
    assert (summary[1]["training_seconds"], summary[1]["training_evaluations"]) == (12.5, 40.0)
    lines = (folder / "out" / "table.md").read_text().splitlines()
    assert lines[2].startswith(f"| network | {summary[0]['psnr']:.2f} |")
    assert "| no |" in lines[2]
    assert "| no |" not in lines[3]
    for name in ("comparison.png", "psnr.png"):
        with Image.open(folder / "out" / name) as picture:
            assert min(picture.size) > 200
    assert np.load(folder / "out" / "tv" / "reconstructions.npy").shape == (2, SIDE, SIDE)


def test_what_is_finished_is_kept(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(folder, "second", UNet(scales=2, channels=3).double(), module())
    first = {"network": {"model": "network.safetensors"}}
    second = {"second": {"model": "second.safetensors"}}
    command = ["compare", "--config", write(folder, first | second), "--output", "out"]
    measured: list[str] = []
    measure = compare.measure

    def interrupted(name: str, *arguments: Any) -> Any:
        measured.append(name)
        if measured == ["network", "second"]:
            raise KeyboardInterrupt
        return measure(name, *arguments)

    monkeypatch.setattr(compare, "measure", interrupted)
    assert main(command) == 130
    assert "the same command goes on" in capsys.readouterr().err
    kept = (folder / "out" / "network" / "images.csv").read_bytes()
    assert main(command) == 0
    assert measured == ["network", "second", "second"]
    assert (folder / "out" / "network" / "images.csv").read_bytes() == kept
    assert len(rows(folder / "out")) == 4
    # all from the files, the same numbers
    table = (folder / "out" / "table.csv").read_bytes()
    assert main(command) == 0
    assert measured == ["network", "second", "second"]
    assert (folder / "out" / "table.csv").read_bytes() == table
    # other noise, and another model under the same name
    write(folder, first | second, {"sigma": SIGMA, "seed": 1})
    assert main(command) == 1
    assert "holds results of other settings (data)" in capsys.readouterr().err
    write(folder, first | second)
    save(folder, "second", UNet(scales=2, channels=2, seed=7).double(), module())
    assert main(command) == 1
    assert "holds results of other settings (sha256)" in capsys.readouterr().err
    (folder / "out" / "second" / "settings.json").unlink()
    (folder / "out" / "network" / "method.json").write_text("{")
    assert main(command) == 1
    assert "method.json: was damaged" in capsys.readouterr().err


def test_what_is_damaged_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, own = write(folder, {"network": {"model": "network.safetensors"}}), folder / "out" / "network"
    assert main(["compare", "--config", config, "--output", "out"]) == 0
    capsys.readouterr()
    for file, content in (
        ("images.csv", (own / "images.csv").read_bytes().replace(b"psnr", b"psn", 1)),
        ("images.csv", re.sub(rb",0\.", b",0x", (own / "images.csv").read_bytes())),
        ("method.json", b"{}"),
        ("reconstructions.npy", (own / "reconstructions.npy").read_bytes()[:100]),
    ):
        whole = (own / file).read_bytes()
        (own / file).write_bytes(content)
        assert re.search(rf"{file}: (was damaged|lacks a column)", refused(config, capsys))
        (own / file).write_bytes(whole)
    # other data to learn from, or to choose on
    for part, word in (("learn", "training"), ("val", "validation")):
        extra = folder / part / "z.png"
        Image.fromarray(np.full((16, 16), 99, np.uint8)).save(extra)
        assert f"holds results of other settings ({word})" in refused(config, capsys)
        extra.unlink()
    assert main(["compare", "--config", config, "--output", "out"]) == 0


def test_errors_come_before_the_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare, "_result", None)
    tv = {"tv": {"baseline": "tv"}}
    assert "show is 7, but there are 2 test images" in refused(write(folder, tv, show=7), capsys)
    model = {"class_path": "models.BilevelModule", "init_args": {"regularizer": "models.FieldsOfExpert"}}
    (folder / "bad.yaml").write_text(yaml.safe_dump({"model": model}))
    assert re.search(r"bad\.yaml: .*FieldsOfExpert", refused(write(folder, tv | {"m": {"config": "bad.yaml"}}), capsys))


def refused(config: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["compare", "--config", config, "--output", "out"]) == 1
    return capsys.readouterr().err


def test_models_for_something_else_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = {"m": {"model": "m.safetensors"}}
    save(folder, "m", UNet(scales=2, channels=2), module(sigma=0.2))
    text = refused(write(folder, model), capsys)
    assert "m.safetensors: the model was trained for another problem" in text
    assert "noise.sigma is 0.2 there, but 0.1 here" in text
    assert not (folder / "out").exists()
    # what was trained for another problem stays refused; what says nothing does not
    unchecked = {"m": {"model": "m.safetensors", "unchecked": True}}
    assert "noise.sigma" in refused(write(folder, unchecked), capsys)
    save(folder, "m", UNet(scales=2, channels=2), None)
    assert "write `unchecked: true` beside `model`" in refused(write(folder, model), capsys)
    assert main(["compare", "--config", write(folder, unchecked), "--output", "out"]) == 0
    save(folder, "m", UNet(scales=2, channels=2), module(train="test", val="val", test="val"))
    assert "was trained on test, the test data" in refused(write(folder, model), capsys)
    # folders of other names that share a picture
    shutil.copytree(folder / "learn", folder / "others")
    save(folder, "m", UNet(scales=2, channels=2), module(), learned_from=module(train="others").fingerprints("train"))
    assert main(["compare", "--config", write(folder, model), "--output", "fine"]) == 0
    shutil.copy(folder / "test" / "test_a.png", folder / "others" / "copy.png")
    save(folder, "m", UNet(scales=2, channels=2), module(), learned_from=module(train="others").fingerprints("train"))
    assert "has learned from 1 of the patients or pictures of the test" in refused(write(folder, model), capsys)
    save(folder, "m", UNet(scales=2, channels=2), module(), learned_from=3)
    assert "metadata.learned_from is no list of fingerprints" in refused(write(folder, model), capsys)
    save(folder, "m", FieldsOfExperts(filters=2, size=3).double(), module(), fidelity="x.Weighted")
    assert "was trained with x.Weighted" in refused(write(folder, model), capsys)


def test_saddle_point_models_are_compared(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    learned = LearnedTV(2, 3, convexity=Convexity(0.3, 0.2)).double()
    save(folder, "m", learned, module())
    methods = {"m": {"model": "m.safetensors"}}
    assert main(["compare", "--config", write(folder, methods, accuracy=1e-3), "--output", "out"]) == 0
    for row, (x, y) in zip(rows(folder / "out"), samples(module()), strict=True):
        exact = Saddle(learned).reconstruct(Data(y=y), Request(1e-6)).solution.x
        assert 0 < float(row["error"]) <= 1e-3
        assert float(row["psnr"]) == pytest.approx(-10 * math.log10(float((exact - x).square().mean())), abs=0.05)
    assert json.loads((folder / "out" / "summary.json").read_text())["methods"][0]["certified"] is True
    config = write(folder, methods, nonnegative=True)
    assert "m.safetensors: x >= 0 does not go with saddle-point models" in refused(config, capsys)


def test_nonnegative_comparisons_minimize_over_nonnegative_images(folder: Path) -> None:
    """Of total variation, and of critics whose descent stops early."""
    save(folder, "critic", ConvolutionalCritic(1, (3, 3), 3).double(), module(sigma=0.6), descent_iterations=3)
    methods = {"tv": {"baseline": "tv"}, "critic": {"model": "critic.safetensors"}}
    for nonnegative in (False, True):
        config = write(folder, methods, {"sigma": 0.6}, accuracy=0.1, nonnegative=nonnegative)
        assert main(["compare", "--config", config, "--output", str(nonnegative)]) == 0
        for method in methods:
            images = np.load(folder / str(nonnegative) / method / "reconstructions.npy")
            # so much of the noise stays after three steps
            assert images.min() >= 0 if nonnegative or method == "tv" else images.min() < 0


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"m": {}}, "the method m has neither; it needs one of `model` (a file), `config`"),
        ({"m": {"model": "a", "config": "b"}}, "the method m has model and config"),
        ({"m": {"baseline": "tv", "weight": 1}}, "the method m cannot have weight"),
        ({"m": {"baseline": "best"}}, "there is no baseline 'best'; valid are fbp, zero_filled, tv"),
        ({"m": {"baseline": "fbp"}}, "the baseline fbp is for ray transforms"),
        ({"m": {"baseline": "tv", "mu": -1}}, "mu of the method m is -1"),
        ({"../m": {"baseline": "tv"}}, "a method is called '../m'"),
        ({"m": {"model": "none.safetensors"}}, "none.safetensors: no such file"),
        ({"m": {"config": "none.yaml"}}, "none.yaml: No such file"),
        ({"m": {"config": "compare.yaml"}}, "has no `model`"),
        ([], "needs `methods`"),
    ],
)
def test_bad_methods_are_refused(folder: Path, methods: Any, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(write(folder, methods), capsys)


def test_bad_data_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tv = {"tv": {"baseline": "tv"}}
    assert "2 patients or pictures of the test are in the training data" in refused(
        write(folder, tv, {"test": "learn"}), capsys
    )
    assert "are in the validation data, too, e.g. " in refused(write(folder, tv, {"test": "val"}), capsys)
    assert "accuracy is 0" in refused(write(folder, tv, accuracy=0), capsys)
    assert "nonnegative is 1; valid are true and false" in refused(write(folder, tv, nonnegative=1), capsys)
    assert "has no use for method" in refused(write(folder, tv, method=1), capsys)


def test_total_variation_is_the_best_on_validation_data(folder: Path) -> None:
    data = module()
    accuracy = 0.05
    method = baseline({"baseline": "tv"}, Task(data, Identity(), accuracy, 2))
    pairs = [(s.x, s.y) for s in data.val_dataloader()]

    def quality(solved: Any) -> float:
        values = [-10 * math.log10(float((solved(y) - x).square().mean())) for x, y in pairs]
        return sum(values) / len(values)

    chosen = quality(lambda y: method.reconstruct(y).x)
    grid = [(-4.0 + i, -7.0 + 2.0 * j) for i in range(4) for j in range(3)]
    others = [quality(lambda y, p=p: minimizer(TotalVariation(*p).double(), y, accuracy)) for p in grid]
    assert chosen > max(others) - 0.05
    assert chosen > quality(lambda y: y) + 1
    assert all(method.reconstruct(y).error <= accuracy for _, y in pairs)
    assert method.training_evaluations
    assert "TV, weight" in method.description

"""`recon compare` of CT: photons, trainings, patients that are held out, the configurations of the project."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from datasets import TomographyDataModule
from datasets.sources.images import PatientSource
from models import ConvolutionalCritic, TotalVariation, UNet
from models.files.setting import describe_setting
from models.files.storage import load_model, save_regularizer
from recon.commands.compare import comparison as compare
from recon.commands.compare.configuration import read_comparison
from recon.commands.compare.methods import Task, load_method
from recon.commands.configuration.data import data_section
from recon.commands.main import main
from recon.lower_level import LBFGS, Energy, WeightedSquaredL2
from tests.commands.reconstruct.slices import write_slice

COMPARISONS = sorted((Path(__file__).resolve().parents[3] / "configs").glob("*/compare*.yaml"))


def test_rays_are_weighted_by_their_photons(tmp_path: Path) -> None:
    pytest.importorskip("astra")
    data = TomographyDataModule(size=16, views=8, limit=2, cache=False, photons=1e4)
    assert data.operator is not None
    path = save_regularizer(TotalVariation(-1.0, -4.0).double(), tmp_path / "tv", {"mu": 0.1})
    y = data.test_dataloader().dataset[0].y[None]
    task = Task(data, data.operator, 0.01, 1, weighted=True)
    weights = task.weights(y)
    assert weights is not None
    found = load_method(path, task, unchecked=True).reconstruct(y, weights)
    energy = Energy(y, TotalVariation(-1.0, -4.0).double(), data.operator, WeightedSquaredL2(weights), 0.1)
    exact = LBFGS()(energy, torch.zeros_like(found.x), 1e-4).x
    assert float((found.x - exact).norm()) <= found.error + 1e-4 <= 0.011
    torch.testing.assert_close(weights, (w := torch.exp(-data.noise()["mu_unit"] * y)) / w.mean())
    gaussian = TomographyDataModule(size=16, views=8, limit=2, cache=False)
    with pytest.raises(ValueError, match="weighted is true, but the noise is none of photons"):
        Task(gaussian, data.operator, 0.01, 1, weighted=True).weights(y)


def test_tomography_with_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The quick comparison, smaller: FBP, TV, and a network that is trained; a training that is cut off goes on."""
    pytest.importorskip("astra")
    monkeypatch.chdir(tmp_path)
    configs = Path(__file__).resolve().parents[3] / "configs" / "ct"
    content = yaml.safe_load((configs / "compare_quick.yaml").read_text())
    content["data"]["init_args"] |= {"size": 16, "views": 12, "limit": 2}
    network = yaml.safe_load((configs / "unet_quick.yaml").read_text())
    network["data"] = str(configs / network["data"])
    network["model"]["init_args"]["steps"] = 4
    network["model"]["init_args"]["reconstructor"]["init_args"] = {"scales": 2, "channels": 2}
    network["trainer"] |= {"accelerator": "cpu", "limit_val_batches": 1, "check_val_every_n_epoch": 1}
    (tmp_path / "unet.yaml").write_text(yaml.safe_dump(network))
    content["methods"] = {"fbp": {"baseline": "fbp"}, "unet": {"config": "unet.yaml"}}
    content |= {"validation_images": 1}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(content))
    command = ["compare", "--config", "small.yaml", "--output", "out"]
    assert main(command) == 0, capsys.readouterr().err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())["methods"]
    assert [s["method"] for s in summary] == ["fbp", "unet"]
    assert summary[0]["description"].startswith("FBP, ")
    run = tmp_path / "out" / "unet" / "training" / "version_0"
    trained = json.loads((run / "reconstructor.json").read_text())["metadata"]["training"]
    assert summary[1]["training_seconds"] == trained["seconds"] > 0
    # the noise and pictures are those of the comparison, the precision that of the training
    fit = yaml.safe_load((tmp_path / "out" / "unet" / "fit.yaml").read_text())["data"]["init_args"]
    assert fit == content["data"]["init_args"] | {"dtype": "float32"}
    # finished, but not measured: the training is not repeated
    before = (run / "reconstructor.safetensors").stat().st_mtime_ns
    (tmp_path / "out" / "unet" / "method.json").unlink()
    assert main(command) == 0
    assert (run / "reconstructor.safetensors").stat().st_mtime_ns == before
    assert len(list((tmp_path / "out" / "unet" / "training").iterdir())) == 1
    # cut off after half of its steps: it goes on there, and ends with the same network
    whole = json.loads((run / "reconstructor.json").read_text())["sha256"]
    shutil.rmtree(run.parent)
    (tmp_path / "out" / "unet" / "method.json").unlink()
    half = ["--trainer.max_epochs=1", f"--trainer.default_root_dir={run.parent}"]
    assert main(["fit", "--config", str(tmp_path / "out" / "unet" / "fit.yaml"), *half]) == 0
    (run / "reconstructor.safetensors").unlink()
    assert main(command) == 0
    resumed = json.loads((run / "reconstructor.json").read_text())
    assert resumed["sha256"] == whole
    assert resumed["metadata"]["training"]["iterations"] == 4
    assert [p.name for p in run.parent.iterdir()] == ["version_0"]


def test_patients_of_the_test_are_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("astra")
    pydicom = pytest.importorskip("pydicom")
    monkeypatch.chdir(tmp_path)

    def write_patient(path: Path, name: str) -> None:
        write_slice(path)
        dataset = pydicom.dcmread(path)
        dataset.PatientID = name
        dataset.save_as(path)

    for name in "abcdef":
        write_patient(tmp_path / "scans" / f"{name}.dcm", name)
    write_patient(tmp_path / "more" / "scan.dcm", "a")
    arguments: dict[str, Any] = {"train": "scans", "fractions": [0.5, 0.25, 0.25], "size": 16, "views": 4}
    content: dict[str, Any] = {
        "data": {"class_path": "datasets.TomographyDataModule", "init_args": arguments},
        "methods": {"m": {"model": "m.safetensors"}},
    }

    def described(**changes: Any) -> None:
        data = TomographyDataModule(**(arguments | changes))
        setting = describe_setting(data.operator, data)
        save_regularizer(UNet(scales=2, channels=2), tmp_path / "m", {"setting": setting})

    def compared() -> int:
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
        return main(["compare", "--config", "c.yaml", "--output", "out"])

    # the model was trained on other patients of the same folder
    described(seed=1)
    assert compared() == 1
    assert "another split of scans, perhaps on patients of the test: seed is 1 there, but 0" in capsys.readouterr().err
    described()
    assert compared() == 0, capsys.readouterr().err
    # the only patient of the test is in the whole folder, too, but as another slice
    data = TomographyDataModule(**arguments)
    train = data._source("scans", "train")
    assert isinstance(train, PatientSource)
    write_patient(tmp_path / "more" / "scan.dcm", train.patients[0])
    arguments |= {"test": "more"}
    described()
    assert compared() == 1
    text = capsys.readouterr().err
    assert f"1 patients or pictures of the test are in the training data, too, e.g. {train.patients[0]}" in text
    # that patient is not in the folder to learn from, but in the one that the model has learned from
    for name in ("elsewhere", "y", "z"):
        (tmp_path / name).mkdir()
        write_patient(tmp_path / name / "a.dcm", name)
    write_patient(tmp_path / "elsewhere" / "a.dcm", train.patients[0])
    write_patient(tmp_path / "more" / "scan.dcm", train.patients[0])
    apart = {"size": 16, "views": 4, "val": "z", "test": "z"}
    elsewhere = TomographyDataModule(train="elsewhere", **apart).fingerprints("train")
    content["data"]["init_args"] = {"train": "z", "val": "y", "test": "more", "size": 16, "views": 4}
    data = TomographyDataModule(**content["data"]["init_args"])
    setting = {"setting": describe_setting(data.operator, data)}
    save_regularizer(UNet(scales=2, channels=2), tmp_path / "m", setting | {"learned_from": elsewhere})
    assert elsewhere == TomographyDataModule(train="more", **apart).fingerprints("train")
    assert compared() == 1
    assert "has learned from 1 of the patients or pictures of the test" in capsys.readouterr().err


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_configurations_name_files_that_exist(path: Path) -> None:
    comparison = read_comparison(path)
    entries = {method: compare.identity(comparison, method) for method in comparison.methods}
    data = comparison.data["init_args"]
    trained = [e for e in entries.values() if "training" in e]
    models = [e for e in entries.values() if "model" in e]
    assert bool(trained) != bool(models)
    for entry in models:  # shipped ones, for this problem
        noise = load_model(entry["model"])[1]["setting"]["noise"]
        low, high = noise["sigma"] if isinstance(noise["sigma"], list) else (noise["sigma"], noise["sigma"])
        assert (noise["kind"], low <= data["sigma"] <= high) == ("gaussian", True)
    for entry in trained:
        file = path.parent / entry["config"]
        own = data_section(yaml.safe_load(file.read_text()), file.parent)["init_args"]
        for section in (own["pictures"], data["pictures"]):
            section.pop("limit", None)
        free = dict.fromkeys(("dtype", "test"))  # what a comparison may say otherwise, with limit
        assert own | free == data | free


def test_critics_of_the_older_filtered_back_projection_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Their descent started from other images when its steps were counted; minimizers do not depend on the start."""
    data = TomographyDataModule(size=16, views=8, limit=2, cache=False)
    assert data.operator is not None
    task, entries = Task(data, data.operator, 0.1, 1), {"mu": 0.1, "descent_iterations": 2}
    for model, said in ((ConvolutionalCritic(filters=(3, 3), size=3), True), (TotalVariation(-2.0), False)):
        for ramp in ({}, {"ramp": "space"}):
            path = save_regularizer(model.double(), tmp_path / "critic", entries | ramp)
            load_method(path, task, unchecked=True)
            assert ("learned from filtered back-projections" in caplog.text) == (said and not ramp)
            caplog.clear()

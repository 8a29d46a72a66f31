"""Names and cards of the models that come with the library."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from jsonargparse import ArgumentParser

from models import FieldsOfExperts, TotalVariation
from models.files import shipped
from models.files.storage import load_model, save_regularizer
from recon.commands.main import main
from recon.lower_level import Regularizer

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", shipped.names())
def test_card_agrees_with_the_model(name: str) -> None:
    text = shipped.card(name)
    assert text.startswith(f"# {name}\n\n")
    rows = dict(re.findall(r"^\| ([a-z, ]+) \| (.*) \|$", text, flags=re.MULTILINE))
    assert rows.keys() >= {"class", "operator, noise", "data", "seed", "command", "measured"}
    model, _ = load_model(name)
    assert f"models.{type(model).__name__}" in rows["class"]
    found = re.search(r"recon fit --config (\S+)", rows["command"])
    assert found is not None
    assert (ROOT / found[1]).is_file()
    assert re.search(r"\d dB", rows["measured"])
    assert "\n" not in shipped.purpose(name)


def test_names_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shipped.locate("foe_bsd") == shipped.FOLDER / "foe_bsd.safetensors"
    assert shipped.locate("./foe_bsd") == Path("foe_bsd")
    assert shipped.locate("foe_bsd.safetensors") == Path("foe_bsd.safetensors")
    assert shipped.locate("runs/foe_bsd", tmp_path) == tmp_path / "runs" / "foe_bsd"
    # a model of one's own is found before that of the library
    own = save_regularizer(TotalVariation(), tmp_path / "foe_bsd")
    assert shipped.locate("foe_bsd") == Path("foe_bsd")
    assert isinstance(load_model("foe_bsd")[0], TotalVariation)
    assert shipped.locate("foe_bsd", own.parent / "elsewhere").parent == shipped.FOLDER


def test_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(FileNotFoundError, match=r"foe_bds: no such file.*did you mean foe_bsd.*`recon models`"):
        load_model("foe_bds")
    with pytest.raises(FileNotFoundError, match=r"xyz: no such file, and no model of that name"):
        shipped.card("xyz")


def test_list_and_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert all(name[:8] in out for name in shipped.names())
    assert main(["models", "foe_bsd"]) == 0
    assert capsys.readouterr().out == shipped.card("foe_bsd")
    assert main(["models", "nothing_like_it"]) == 1
    assert "recon models: nothing_like_it: no such file" in capsys.readouterr().err


def test_reconstruct_takes_a_name(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    noisy = 0.5 + 0.1 * torch.randn(32, 32, generator=generator)
    tifffile.imwrite(tmp_path / "noisy.tif", noisy.numpy())
    for name in ("foe_bsd", str(shipped.locate("foe_bsd"))):
        out = tmp_path / Path(name).stem / str(len(name))
        assert main(["reconstruct", "--model", name, "--data", str(tmp_path / "noisy.tif"), "--output", str(out)]) == 0
    results = sorted(tmp_path.glob("foe_bsd/*/noisy.npy"))
    assert len(results) == 2
    np.testing.assert_array_equal(*(np.load(path) for path in results))


@pytest.mark.slow
def test_wheel_holds_models_and_cards(tmp_path: Path) -> None:
    command = [sys.executable, "-c", f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    for name in shipped.names():
        assert held >= {f"models/pretrained/{name}{suffix}" for suffix in (".safetensors", ".json", ".md")}


def test_configurations_start_from_a_name() -> None:
    parser = ArgumentParser()
    parser.add_argument("--regularizer", type=Regularizer)
    given = {"regularizer": {"class_path": "models.pretrained", "init_args": {"path": "foe_bsd"}}}
    made = parser.instantiate(parser.parse_object(given)).regularizer
    assert isinstance(made, FieldsOfExperts)
    torch.testing.assert_close(dict(made.state_dict()), dict(load_model("foe_bsd")[0].state_dict()))

"""Models of regularizers in files: what is nested in them is trusted, measured and compared like the rest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from models import ICNN, ConvexRidge, InitialFilters, LeakyReLU, NoiseConditioned
from models.files.arguments import plain_arguments
from models.files.storage import ModelFileError, load_model, load_regularizer, save_regularizer
from tests.lower_level.problems import perturb
from tests.models.files.test_storage import change

ROOT = Path(__file__).resolve().parents[3]


def ridge(dtype: torch.dtype = torch.float32) -> NoiseConditioned:
    inner = ConvexRidge(3, 3, knots=5, initial_filters=InitialFilters(channels=(2,)))
    found = perturb(NoiseConditioned(inner, 0.3, 0.01, knots=3).to(dtype), 0, 0.2)
    assert isinstance(found, NoiseConditioned)
    return found


def network(dtype: torch.dtype = torch.float32) -> NoiseConditioned:
    found = perturb(NoiseConditioned(ICNN(4, 3, activation=LeakyReLU(0.1, 0.1)), 0.3).to(dtype), 0, 0.2)
    assert isinstance(found, NoiseConditioned)
    return found


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_regularizer(ridge(), tmp_path / "levels", {"sigma": [0.01, 0.3]})


def nested(path: Path, **entries: Any) -> None:
    """Overwrite entries of the nested regularizer in the description of ``path``."""
    arguments = json.loads(path.with_suffix(".json").read_text())["arguments"]
    change(path, arguments=arguments | {"regularizer": arguments["regularizer"] | entries})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [ridge, network])
def test_round_trip(tmp_path: Path, make: Any, dtype: torch.dtype) -> None:
    model = make(dtype)
    path = save_regularizer(model, tmp_path / "levels", {"mu": 0.0})
    loaded, metadata = load_regularizer(path)
    assert metadata == {"mu": 0.0}
    assert isinstance(loaded, NoiseConditioned)
    assert type(loaded.regularizer) is type(model.regularizer)
    assert plain_arguments(loaded.constructor_arguments()) == plain_arguments(model.constructor_arguments())
    assert (loaded.smallest, loaded.largest, loaded.knots) == (model.smallest, model.largest, model.knots)
    state = model.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in loaded.state_dict().items())
    x = torch.rand(2, 1, 8, 9, dtype=dtype)
    levels = torch.tensor([0.05, 0.2])
    assert torch.equal(loaded.at(levels).grad(x), model.at(levels).grad(x))
    again = save_regularizer(loaded, tmp_path / "again", {"mu": 0.0})
    assert again.read_bytes() == path.read_bytes()


def test_the_description_names_class_and_arguments(saved: Path) -> None:
    head = json.loads(saved.with_suffix(".json").read_text())
    inner = head["arguments"]["regularizer"]
    assert head["class"] == "models.NoiseConditioned"
    assert inner.keys() == {"class", "arguments"}
    assert inner["class"] == "models.ConvexRidge"
    assert inner["arguments"]["initial_filters"] == {"kind": "dct", "seed": 0, "channels": [2]}
    assert head["arguments"]["largest"] == 0.3


HOSTILE = """
from pathlib import Path
Path(__file__).with_name("was_here").touch()
from models import ConvexRidge

class Mine(ConvexRidge):
    pass
"""


def test_nested_classes_have_to_be_trusted(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even imported, unless that is said."""
    (tmp_path / "nested_hostile.py").write_text(HOSTILE)
    monkeypatch.syspath_prepend(tmp_path)
    nested(saved, **{"class": "nested_hostile.Mine"})
    with pytest.raises(ModelFileError, match=r"levels\.safetensors.*nested_hostile"):
        load_regularizer(saved)
    assert not (tmp_path / "was_here").exists()
    loaded, _ = load_regularizer(saved, trust=["nested_hostile"])
    assert isinstance(loaded, NoiseConditioned)
    assert type(loaded.regularizer).__name__ == "Mine"
    assert (tmp_path / "was_here").exists()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"class": "models.TotalVariation", "arguments": {}}, "TotalVariation knows no noise level"),
        ({"class": "models.ConvexRidge", "arguments": {"filters": 0}}, "at least one filter"),
        ({"class": "models.ConvexRidge", "arguments": {"nope": 1}}, "nope"),
        ({"class": "models.ConvexRidge", "arguments": {"filters": 4, "size": 3, "knots": 5}}, "weight is missing"),
        ({"class": "torch.nn.Linear"}, "torch.nn.Linear"),
        ({"class": "os.system"}, "os.system"),
        ({"class": "models.Nope"}, "models.Nope"),
        ({"class": 3}, "levels"),
        ({"class": None}, "levels"),
        ({"arguments": 3}, "levels"),
        ({"arguments": None}, "levels"),
        ({"arguments": [1]}, "levels"),
        ({"more": 1}, "levels"),
    ],
)
def test_what_does_not_fit_is_refused(saved: Path, entries: dict[str, Any], message: str) -> None:
    nested(saved, **entries)
    with pytest.raises(ModelFileError, match=message) as caught:
        load_regularizer(saved)
    assert "levels.safetensors" in str(caught.value) or "levels.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["class", "arguments", "regularizer", "largest"])
def test_missing_entries_are_refused(saved: Path, missing: str) -> None:
    arguments = json.loads(saved.with_suffix(".json").read_text())["arguments"]
    (arguments if missing in arguments else arguments["regularizer"]).pop(missing)
    change(saved, arguments=arguments)
    with pytest.raises(ModelFileError, match=r"levels\.safetensors"):
        load_regularizer(saved)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"knots": 4}, r"log_gains of shape|log_gains.*\(3, 3\)"), ({"largest": -1}, "largest")],
)
def test_wrong_shapes_and_ranges_are_named(saved: Path, arguments: dict[str, Any], message: str) -> None:
    own = json.loads(saved.with_suffix(".json").read_text())["arguments"]
    change(saved, arguments=own | arguments)
    with pytest.raises(ModelFileError, match=message):
        load_regularizer(saved)


#: refuses what the files ask for, within 100 MB more than before
SCRIPT = """
import resource, sys
from models.files.storage import ModelFileError, load_model
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
load_model(sys.argv[1])
before = peak()
for path in sys.argv[2:]:
    try:
        load_model(path)
    except ModelFileError as error:
        assert len(str(error)) < 1000 and chr(10) not in str(error), error
    else:
        raise AssertionError(path)
    assert peak() - before < 100_000, (path, peak(), before)
"""

BOMBS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("models.ICNN", {"filters": 10**6, "initial_filters": {"kind": "normal"}}, {}),
    ("models.ICNN", {"filters": 4, "layers": 10**9}, {}),
    ("models.ConvexRidge", {"filters": 10**6, "size": 10**5}, {}),
    ("models.ConvexRidge", {"knots": 10**9}, {}),
    ("models.ConvexRidge", {"size": 9, "initial_filters": {"kind": "normal", "channels": [10**6, 10**6, 4]}}, {}),
    ("models.ConvexRidge", {"size": 7, "initial_filters": {"kind": "normal", "channels": [4000, 4000]}}, {}),
    ("models.ConvexRidge", {"filters": 3, "size": 3, "knots": 5}, {"knots": 10**9}),
]


def test_files_that_ask_for_more_than_they_hold_take_no_memory(tmp_path: Path) -> None:
    good = save_regularizer(network(), tmp_path / "good")
    paths = []
    for number, (name, inner, outer) in enumerate(BOMBS):
        path = save_regularizer(ridge(), tmp_path / f"bomb{number}")
        arguments = {"regularizer": {"class": name, "arguments": inner}, "largest": 0.3} | outer
        change(path, arguments=arguments)
        paths.append(str(path))
    command = [sys.executable, "-c", SCRIPT, str(good), *paths]
    subprocess.run(command, cwd=ROOT, check=True)


def test_nesting_that_never_ends_is_refused(saved: Path) -> None:
    inner: dict[str, Any] = {"class": "models.ConvexRidge", "arguments": {}}
    for _ in range(300):
        inner = {"class": "models.NoiseConditioned", "arguments": {"regularizer": inner, "largest": 0.3}}
    change(saved, arguments={"regularizer": inner, "largest": 0.3})
    with pytest.raises(ModelFileError, match=r"levels\.(safetensors|json)"):
        load_model(saved)

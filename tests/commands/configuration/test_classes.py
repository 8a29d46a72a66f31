"""A configuration makes what its places ask for, and nothing else: the rest is refused before anything is made."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import Namespace

from models import TotalVariation
from recon.commands.configuration.classes import check_classes, named_classes
from recon.commands.main import main
from recon.commands.reproduce.race import make
from recon.lower_level import LBFGS, Regularizer, Solver

OWN = """
import torch
from typing import Any, Callable
from models import TotalVariation
from recon.bilevel import MAID
from recon.lower_level import LBFGS, Regularizer, Solver

MARK = {mark!r}

def leave(command: Any = None) -> Any:
    open(MARK, "w").close()

def untyped(command=None):
    open(MARK, "w").close()

def lying(command: Any = None) -> int:
    open(MARK, "w").close()

def total_variation(log_weight: float = -2.0) -> Regularizer:
    return TotalVariation(log_weight)

class Marked(TotalVariation):
    def __init__(self, extra: Any = None, bare=None) -> None:
        super().__init__()
        open(MARK, "w").close()

class Wrapping(Solver):
    def __init__(self, inner: Solver, factory: Callable[[], Solver] = LBFGS) -> None:
        open(MARK, "w").close()
        self.inner = inner

    def __call__(self, energy, x0, accuracy):
        return self.inner(energy, x0, accuracy)
"""


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What exists once one of the things in the module ``own`` was called."""
    (tmp_path / "own.py").write_text(OWN.format(mark=str(tmp_path / "mark")))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RECON_DEBUG", raising=False)
    return tmp_path / "mark"


def configuration(folder: Path, place: str, value: Any) -> Path:
    """A small training whose ``place``, a path of keys, is ``value``."""
    content: dict[str, Any] = {
        "model": {
            "class_path": "models.BilevelModule",
            "init_args": {"regularizer": {"class_path": "models.TotalVariation"}},
        },
        "data": {"class_path": "datasets.DenoisingDataModule", "init_args": {"size": 16, "limit": 1, "sigma": 0.1}},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
    }
    *keys, last = place.split(".")
    part = content
    for key in keys:
        part = part[key]
    part[last] = value
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def call(path: str, mark: Path) -> dict[str, Any]:
    return {"class_path": path, "init_args": {"command": f"touch {mark}"}}


PLACES = [
    "model",
    "model.init_args.regularizer",
    "model.init_args.optimizer",
    "model.init_args.solver",
    "model.init_args.fidelity",
    "model.init_args.operator",
    "model.init_args.loss",
    "data",
    "data.init_args.operator",
    "trainer.logger",
    "trainer.callbacks",
    "trainer.plugins",
    "trainer.profiler",
]


@pytest.mark.filterwarnings("ignore:(?s).*denylist.*")  # of jsonargparse, which will refuse some of these itself
@pytest.mark.parametrize(
    ("place", "path"),
    [(place, "os.system") for place in PLACES]
    + [(f"model.init_args.{name}", "own.leave") for name in ("optimizer", "regularizer")]
    + [("model.init_args.solver", f"own.{name}") for name in ("leave", "untyped", "lying")],
)
def test_what_is_of_another_kind_is_refused(
    mark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, path: str
) -> None:
    value: Any = call(path, mark)
    config = configuration(tmp_path, place, [value] if place == "trainer.callbacks" else value)
    assert main(["fit", "--config", str(config)]) == 1
    assert path in capsys.readouterr().err
    assert not mark.exists()
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        # a class, but not of the kind
        ("model.init_args.solver", {"class_path": "models.TotalVariation"}, "models.TotalVariation"),
        ("model.init_args.regularizer", {"class_path": "recon.lower_level.LBFGS"}, "recon.lower_level.LBFGS"),
        # deep inside something that fits
        (
            "model.init_args.solver",
            {"class_path": "own.Wrapping", "init_args": {"inner": {"class_path": "own.leave"}}},
            "own.leave",
        ),
        (
            "model.init_args.solver",
            {
                "class_path": "own.Wrapping",
                "init_args": {"inner": {"class_path": "recon.lower_level.LBFGS"}, "factory": "own.leave"},
            },
            "own.leave",
        ),
        # places without a kind take no class
        (
            "model.init_args.regularizer",
            {"class_path": "own.Marked", "init_args": {"extra": {"class_path": "own.leave"}}},
            "own.leave",
        ),
        (
            "model.init_args.regularizer",
            {"class_path": "own.Marked", "init_args": {"bare": [{"class_path": "own.leave"}]}},
            "own.leave",
        ),
    ],
)
def test_nothing_is_made_before_all_is_checked(
    mark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, value: Any, named: str
) -> None:
    assert main(["fit", "--config", str(configuration(tmp_path, place, value))]) == 1
    assert named in capsys.readouterr().err
    assert not mark.exists()


def test_what_fits_is_made(mark: Path, tmp_path: Path) -> None:
    """Classes of one's own, and functions that say what they return."""
    for place, value in (
        ("model.init_args.regularizer", {"class_path": "own.total_variation", "init_args": {"log_weight": -3.0}}),
        (
            "model.init_args.solver",
            {"class_path": "own.Wrapping", "init_args": {"inner": {"class_path": "recon.lower_level.LBFGS"}}},
        ),
    ):
        assert main(["fit", "--config", str(configuration(tmp_path, place, value))]) == 0
    assert mark.exists()


@pytest.mark.filterwarnings("ignore:(?s).*denylist.*")
def test_races_and_comparisons(mark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    tv = {"class_path": "models.TotalVariation"}
    for regularizer, entry in (
        (call("own.leave", mark), {}),
        (tv, {"solver": call("os.system", mark)}),
        (tv, {"optimizer": call("own.untyped", mark)}),
        ({"class_path": "own.Marked", "init_args": {"extra": {"class_path": "own.leave"}}}, {}),
    ):
        with pytest.raises(ValueError, match=r"own\.|os\.system"):
            make(regularizer, entry, x, x)
    comparison = {"data": call("own.leave", mark), "methods": {"tv": {"baseline": "tv"}}}
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump(comparison))
    assert main(["compare", "--config", str(tmp_path / "compare.yaml")]) == 1
    assert "own.leave" in capsys.readouterr().err
    assert not mark.exists()


def test_every_class_of_a_parsed_configuration(mark: Path) -> None:
    import own  # type: ignore[import-not-found]

    slots = {"regularizer": Regularizer, "solver": Solver}
    fits = {"regularizer": Namespace(class_path="models.TotalVariation", init_args=Namespace(log_weight=-1.0))}
    check_classes(fits, slots)
    check_classes(Namespace(solver=None, regularizer=Namespace(class_path="own.total_variation")), slots)
    for wrong in ("os.system", "own.leave", "models.files.storage", "not.there", "builtins.object", "builtins.dict"):
        with pytest.raises(ValueError, match=f"solver: {wrong} cannot stand here; valid are subclasses of recon"):
            check_classes({"solver": {"class_path": wrong}}, slots)
    deep = {"class_path": "own.Marked", "init_args": {"bare": {"a": [{"class_path": "own.Marked"}]}}}
    with pytest.raises(ValueError, match=r"regularizer\.bare\.a: own\.Marked cannot stand here; this takes no class"):
        check_classes({"regularizer": deep}, slots)
    with pytest.raises(ValueError, match=r"own\.leave cannot stand here"):
        check_classes({"solver": own.leave}, slots)
    assert named_classes({"a": ["models.TotalVariation", "x", 3], "b": {"c": "own.Marked"}, "d": "os.system"}) == [
        TotalVariation,
        own.Marked,
    ]
    assert issubclass(LBFGS, Solver)

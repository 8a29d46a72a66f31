"""Trained regularizers in files: what is written can be read, and what cannot be used is refused in one sentence."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models import FieldsOfExperts, TotalVariation
from models.files.checkpoint_file import checkpoint_bytes
from models.files.storage import ModelFileError, load_regularizer, pretrained, save_regularizer, specification
from models.files.trust import OWN, find_class
from models.training.bilevel import BilevelModule
from recon.commands.main import main
from recon.lower_level import Regularizer, SaddleModel
from recon.names import public_name
from recon.reconstruction.reconstructor import Reconstructor


def small() -> FieldsOfExperts:
    regularizer = FieldsOfExperts(3, size=3, smallest_width=0.01, weak_convexity=0.25)
    with torch.no_grad():
        for p in regularizer.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return regularizer


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_regularizer(small(), tmp_path / "foe", {"sigma": 0.1})


def change(path: Path, **entries: Any) -> None:
    """Overwrite entries of the description of ``path``."""
    description = path.with_suffix(".json")
    description.write_text(json.dumps(json.loads(description.read_text()) | entries))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip(tmp_path: Path, dtype: torch.dtype) -> None:
    regularizer = small().to(dtype)
    x = torch.rand(2, 1, 8, 9, dtype=dtype)
    path = save_regularizer(regularizer, tmp_path / "new" / "foe_0.1", {"sigma": 0.1, "training": {"images": 4}})
    assert sorted(p.name for p in path.parent.iterdir()) == ["foe_0.1.json", "foe_0.1.safetensors"]
    for name in ("foe_0.1", "foe_0.1.safetensors", "foe_0.1.json"):
        loaded, metadata = load_regularizer(tmp_path / "new" / name)
        assert isinstance(loaded, FieldsOfExperts)
        assert metadata == {"sigma": 0.1, "training": {"images": 4}}
        assert loaded.constructor_arguments() == regularizer.constructor_arguments()
        assert torch.equal(loaded.grad(x), regularizer.grad(x))
        assert all(p.requires_grad for p in loaded.parameters())


def test_saving_again_replaces_both_files(saved: Path) -> None:
    save_regularizer(TotalVariation(-1.0), saved)
    loaded, metadata = load_regularizer(saved)
    assert isinstance(loaded, TotalVariation)
    assert metadata == {}


def test_loads_without_lightning(saved: Path) -> None:
    script = (
        "import sys; from models.files.storage import load_regularizer; "
        f"load_regularizer({str(saved)!r}); assert 'pytorch_lightning' not in sys.modules"
    )
    root = Path(__file__).resolve().parents[3]
    subprocess.run([sys.executable, "-c", script], cwd=root, check=True)


MODULE = """
import torch
from torch import nn
from recon.lower_level import Regularizer

class Tikhonov(Regularizer):
    def __init__(self, weight, **options):
        super().__init__()
        self.log_weight, self.options = nn.Parameter(torch.tensor(weight)), options

    def forward(self, x):
        return 0.5 * self.log_weight.exp() * x.flatten(1).square().sum(1)

class Scalar(Tikhonov):
    def forward(self, x):
        return super().forward(x).sum()

class Positional(Tikhonov):
    def __init__(self, *weights):
        super().__init__(weights[0])

NotARegularizer = nn.Linear
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of the user's own."""
    (tmp_path / "my_regularizers.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_regularizers", raising=False)
    import my_regularizers

    return my_regularizers


def test_own_regularizer(tmp_path: Path, mine: Any) -> None:
    path = save_regularizer(mine.Tikhonov(-1.0, name="a"), tmp_path / "own")
    for trust in (["my_regularizers"], [mine.Tikhonov], ["another", "my_regularizers"]):
        loaded, _ = load_regularizer(path, trust=trust)
        assert type(loaded) is mine.Tikhonov
        assert loaded.options == {"name": "a"}
    assert type(pretrained(path, trust=["my_regularizers"])) is mine.Tikhonov


def test_what_is_no_regularizer_is_refused_when_it_is_loaded(tmp_path: Path, mine: Any) -> None:
    path = save_regularizer(mine.Scalar(-1.0), tmp_path / "own")
    with pytest.raises(
        ModelFileError, match=r"own\.safetensors: Scalar: its value at images .* of shape \(\), but must"
    ):
        load_regularizer(path, trust=["my_regularizers"])


def test_arguments_that_cannot_be_saved(tmp_path: Path, mine: Any) -> None:
    with pytest.raises(ValueError, match=r"Tikhonov: the argument extra = Linear.* cannot be saved as JSON"):
        save_regularizer(mine.Tikhonov(-1.0, extra=nn.Linear(1, 1)), tmp_path / "own")
    with pytest.raises(TypeError, match="weights of its constructor have no names"):
        save_regularizer(mine.Positional(-1.0), tmp_path / "own")
    with pytest.raises(ValueError, match="metadata must be plain values with finite numbers"):
        save_regularizer(small(), tmp_path / "own", {"loss": float("nan")})
    mixed = small()
    mixed.log_scale.data = mixed.log_scale.data.double()
    with pytest.raises(ValueError, match="numbers of type float32, float64"):
        save_regularizer(mixed, tmp_path / "own")
    assert not list(tmp_path.glob("own*"))


def test_local_class_is_refused_when_it_is_saved(tmp_path: Path) -> None:
    class Local(Regularizer):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).sum(1)

    with pytest.raises(ValueError, match="Local cannot be imported by this name"):
        save_regularizer(Local(), tmp_path / "local")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"class": "models.nowhere.Regularizer"},
            r"none of this project \(.*\). .* by --trust models\.nowhere, or trust=",
        ),
        (
            {"class": "models.regularizers.fields_of_experts.Nothing"},
            "'models.regularizers.fields_of_experts.Nothing', which is none of this",
        ),
        ({"class": "Nothing"}, "say so by a name with its module"),
        ({"class": "torch.nn.Linear"}, "none of this project"),
        ({"class": "subprocess.run"}, "none of this project"),
        ({"class": "unittest.__main__.X"}, "none of this project"),
        ({"arguments": {"filters": 3, "colour": 1}}, "cannot be made with the arguments"),
        ({"arguments": {"filters": 0}}, "cannot be made with the arguments"),
        ({"arguments": {"filters": 4, "size": 3}}, r"weight has the shape \(3, 3, 3\) instead of \(4, 3, 3\)"),
        ({"arguments": {"filters": 3, "size": 3}}, "log_concavity is not one of its tensors"),
        ({"class": "models.TotalVariation", "arguments": {}}, "log_weight is missing"),
        ({"dtype": "bfloat16"}, "dtype is 'bfloat16'; valid are float32, float64"),
        ({"format": "something else"}, "does not describe a regularizer"),
        ({"class": 3}, "entry 'class' is missing or not of the type str"),
        ({"metadata": 3}, "'metadata' must be an object"),
        ({"sha256": "0"}, "does not belong to foe.json"),
    ],
)
def test_wrong_description(saved: Path, entries: dict[str, Any], message: str) -> None:
    change(saved, **entries)
    with pytest.raises(ModelFileError, match=message):
        load_regularizer(saved)


SIDE_EFFECTS = [
    "hostile.X",
    "hostile.inner.X",
    "hostile.__main__.X",
    "hostile",
    ".hostile.X",
    "models.files.storage.sys.X",
]


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package whose modules leave a file when they run."""
    mark = tmp_path / "ran"
    (tmp_path / "hostile").mkdir()
    for name in ("__init__", "inner", "__main__"):
        (tmp_path / "hostile" / f"{name}.py").write_text(f"open({str(mark)!r}, 'w').close()\nX = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [n for n in sys.modules if n.partition(".")[0] == "hostile"]:
        monkeypatch.delitem(sys.modules, name)
    return mark


@pytest.mark.parametrize("name", SIDE_EFFECTS)
def test_a_file_chooses_no_import(saved: Path, tmp_path: Path, hostile: Path, name: str) -> None:
    change(saved, **{"class": name})
    entry = {"specification": specification(small()) | {"class": name}}
    for path in (saved, checkpoint(tmp_path / "last.ckpt", bilevel=entry)):
        with pytest.raises(ModelFileError, match="none of this project"):
            load_regularizer(path)
        if name != "hostile.X":  # a trusted module does not make others trusted, nor those inside it
            with pytest.raises(ModelFileError, match="none of this project"):
                load_regularizer(path, trust=["hostile.inn", "hos", "hostile.X", ""])
        with pytest.raises(ValueError, match=r"names the class|there is no class"):
            pretrained(path)
    assert not hostile.exists()


def test_trusted_modules_are_imported_and_their_classes_checked(saved: Path, hostile: Path) -> None:
    change(saved, **{"class": "hostile.X"})
    with pytest.raises(ModelFileError, match=r"hostile\.X is not a regularizer"):
        load_regularizer(saved, trust=["hostile"])
    assert hostile.exists()
    change(saved, **{"class": "nowhere.X"})
    with pytest.raises(ModelFileError, match=r"there is no class nowhere\.X"):
        load_regularizer(saved, trust=["nowhere"])
    with pytest.raises(TypeError, match=r"must be a list of modules or classes: \['hostile'\]"):
        load_regularizer(saved, trust="hostile")


def test_the_table_has_every_model_of_the_project() -> None:
    """What a user can train and save is found again without trust, and nothing else is in the table."""
    import models as package

    kinds = (Regularizer, SaddleModel, Reconstructor)
    public = [getattr(package, name) for name in package.__all__]
    classes = {thing for thing in public if isinstance(thing, type) and issubclass(thing, kinds)}
    assert {public_name(cls) for cls in classes} == OWN
    assert {find_class(name) for name in OWN} == classes


def test_command_line_trusts_by_name(saved: Path, tmp_path: Path, hostile: Path, capsys: Any) -> None:
    change(saved, **{"class": "hostile.X"})
    image = tmp_path / "a.npy"
    np.save(image, np.zeros((8, 8)))
    command = ["reconstruct", "--model", str(saved), "--data", str(image), "--output", str(tmp_path / "out")]
    assert main(command) == 1
    assert "say so by --trust hostile" in capsys.readouterr().err
    assert not hostile.exists()
    assert main([*command, "--trust", "hostile"]) == 1
    assert "hostile.X is not a regularizer" in capsys.readouterr().err


def test_missing_files(saved: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors: no such file"):
        load_regularizer(saved.with_name("nothing"))
    saved.with_suffix(".json").unlink()
    with pytest.raises(FileNotFoundError, match=r"foe\.json: no such file"):
        load_regularizer(saved)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x89PNG\r\n\x1a\n"])
def test_files_of_another_kind(saved: Path, content: bytes) -> None:
    weights = saved.read_bytes()
    saved.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"foe\.safetensors: not a safetensors file, or truncated"):
        load_regularizer(saved)
    saved.write_bytes(weights)
    saved.with_suffix(".json").write_bytes(content)
    with pytest.raises(ModelFileError, match=r"foe\.json: not JSON, or truncated"):
        load_regularizer(saved)


def test_truncated(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:-20])
    with pytest.raises(ModelFileError, match="truncated"):
        load_regularizer(saved)


def test_values_that_are_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not written, and where another program wrote them, not read."""
    regularizer = small()
    regularizer.weight.data[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"foe\.safetensors: not written, weight: 1 of 27 values are NaN or infinite"):
        save_regularizer(regularizer, tmp_path / "foe")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("models.files.storage.check_finite", lambda *arguments: None)
    path = save_regularizer(regularizer, tmp_path / "foe")
    with pytest.raises(ModelFileError, match="NaN or infinite values in weight"):
        load_regularizer(path)


def test_full_disk_keeps_what_was_there(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p: p.read_bytes() for p in saved.parent.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("recon.files.os.fsync", full)
    with pytest.raises(OSError, match=r"foe\.safetensors: cannot be written \(No space left on device\)"):
        save_regularizer(TotalVariation(), saved)
    assert {p: p.read_bytes() for p in saved.parent.iterdir()} == before


def checkpoint(path: Path, **entries: Any) -> Path:
    """What Lightning writes of a module with :func:`small`, as far as it matters here."""
    module = BilevelModule(small(), mu=0.5)
    content: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(content)
    path.write_bytes(checkpoint_bytes(content | entries))
    return path


def test_lightning_checkpoint(tmp_path: Path) -> None:
    regularizer, metadata = load_regularizer(checkpoint(tmp_path / "last.ckpt"))
    assert isinstance(regularizer, FieldsOfExperts)
    assert regularizer.constructor_arguments() == small().constructor_arguments()
    assert "mu" in metadata


def test_wrong_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_regularizer(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ModelFileError, match="not a checkpoint of this program, or truncated"):
        load_regularizer(path)
    torch.save([1], path)
    with pytest.raises(ModelFileError, match=r"not a checkpoint of this program.*holds a list"):
        load_regularizer(path)
    for content in ({"state_dict": {}}, {"bilevel": 3}, {"bilevel": {}}):
        torch.save(content, path)
        with pytest.raises(ModelFileError, match="a checkpoint of another model"):
            load_regularizer(path)
    torch.save({"bilevel": object}, path)  # needs unpickling of classes
    with pytest.raises(ModelFileError, match="not a checkpoint of this program"):
        load_regularizer(path)
    checkpoint(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ModelFileError, match="truncated"):
        load_regularizer(path)
    entry = {"specification": specification(TotalVariation())}
    with pytest.raises(ModelFileError, match="does not fit TotalVariation"):
        load_regularizer(checkpoint(path, bilevel=entry))

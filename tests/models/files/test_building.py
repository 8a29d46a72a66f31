"""Models from files are no larger than the files: what a description asks for is compared before memory is taken."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import models
from models.files.building import MisfitError, build
from models.files.checkpoint_file import checkpoint_bytes
from models.files.shipped import FOLDER, names
from models.files.storage import ModelFileError, load_model, save_regularizer, specification
from models.files.trust import OWN
from recon.limits import set_memory_limit
from recon.lower_level import Regularizer
from recon.names import public_name
from recon.reconstruction.reconstructor import Reconstructor

ROOT = Path(__file__).resolve().parents[3]

SMALL: dict[str, Any] = {
    "ConvexRidge": {"filters": 3, "size": 3, "knots": 5},
    "ConvolutionalCritic": {"filters": [3, 4]},
    "FieldsOfExperts": {"filters": 3, "size": 3},
    "ICNN": {"filters": 4, "size": 3},
    "LearnedPrimalDual": {"iterations": 2, "memory": 2, "channels": 3},
    "LearnedTV": {"kernels": 2},
    "TotalVariation": {},
    "UNet": {"scales": 2, "channels": 4},
    "WeaklyConvexRidge": {"filters": 3, "size": 3, "knots": 5},
    "LinearSplineRidge": {"filters": 3, "size": 3, "knots": 5},
    "MultivariateFieldsOfExperts": {"filters": 4, "size": 3},
}

N = 10**9
#: each would take gigabytes of tensors, or of Python's objects, or hours
BOMBS: list[tuple[str, dict[str, Any]]] = [
    ("ConvexRidge", {"filters": 10**6, "size": 10**5}),
    ("ConvexRidge", {"filters": N, "size": 10**5, "initial_filters": "multiscale"}),
    ("ConvexRidge", {"knots": N}),
    ("WeaklyConvexRidge", {"filters": N, "initial_filters": "normal"}),
    ("FieldsOfExperts", {"filters": 48, "size": 10**5}),
    ("FieldsOfExperts", {"filters": 48, "size": 10**5, "unit_norm": True, "weak_convexity": 0.5}),
    ("FieldsOfExperts", {"filters": 10**4, "size": 10**4}),
    ("ConvolutionalCritic", {"filters": [10**6, 10**6]}),
    ("ConvolutionalCritic", {"filters": [4] * 10**5}),
    ("ConvolutionalCritic", {"channels": N}),
    ("ICNN", {"layers": N, "filters": 4}),
    ("ICNN", {"filters": N, "initial_filters": "normal"}),
    ("ICNN", {"filters": 10**6, "initial_filters": "normal"}),
    ("ICNN", {"inner_size": 10**4}),
    ("LearnedPrimalDual", {"iterations": N}),
    ("LearnedPrimalDual", {"iterations": 9999}),
    ("LearnedPrimalDual", {"iterations": N, "share_weights": True}),
    ("LearnedPrimalDual", {"channels": 10**6}),
    ("LearnedPrimalDual", {"memory": N}),
    ("LearnedTV", {"kernels": 10**6, "size": 10**3 + 1, "initial": "random"}),
    ("LearnedTV", {"size": 10**5 + 1}),
    ("UNet", {"channels": 10**6}),
    ("UNet", {"scales": 16}),
    ("UNet", {"scales": N}),
    ("UNet", {"image_channels": N}),
    ("UNet", {"scales": 10**400}),
]


def small(name: str) -> Any:
    return getattr(models, name)(**SMALL[name])


def bombs(folder: Path) -> list[Path]:
    """Model files and checkpoints that hold small networks, and ask for large ones."""
    found = []
    for number, (name, arguments) in enumerate(BOMBS):
        path = save_regularizer(small(name), folder / f"bomb{number}")
        description = path.with_suffix(".json")
        head = json.loads(description.read_text())
        if 10**400 not in arguments.values():
            description.write_text(json.dumps(head | {"arguments": arguments}))
            found.append(path)
        found.append(checkpoint(folder / f"bomb{number}.ckpt", name, arguments, small(name).state_dict()))
    return found


def checkpoint(path: Path, name: str, arguments: dict[str, Any], tensors: dict[str, Any]) -> Path:
    supervised = issubclass(getattr(models, name), Reconstructor)
    prefix, entry = ("reconstructor.", "supervised") if supervised else ("regularizer.", "bilevel")
    head = specification(small(name)) | {"arguments": arguments}
    content = {"state_dict": {prefix + k: t for k, t in tensors.items()}, entry: {"specification": head}}
    path.write_bytes(checkpoint_bytes(content))
    return path


#: peak of the memory in kB before and after all files were refused
SCRIPT = """
import resource, sys
import torch
from models.files.storage import ModelFileError, load_model
from models.files.shipped import names
for name in names():
    load_model(name)
torch.argsort(torch.randn(10, 10)), torch.fft.rfft2(torch.randn(10, 10))
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
for path in sys.argv[1:]:
    try:
        load_model(path)
    except ModelFileError as error:
        assert path.rpartition(".")[0] in str(error), error
        assert len(str(error)) < 1000 and chr(10) not in str(error), error
    else:
        raise AssertionError(path)
    assert peak() - before < 100_000, (path, peak(), before)
"""


def test_files_that_ask_for_more_than_they_hold_take_no_memory(tmp_path: Path) -> None:
    paths = [str(path) for path in bombs(tmp_path)]
    subprocess.run([sys.executable, "-c", SCRIPT, *paths], cwd=ROOT, check=True)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_every_model_has_its_shapes_without_memory(name: str) -> None:
    """Constructors run on the meta device, and what they make there is what they make with numbers."""
    cls, model = getattr(models, name), small(name)
    with torch.device("meta"):
        sketch = cls(**SMALL[name])
    assert all(t.is_meta for t in sketch.state_dict().values())
    shapes = {k: t.shape for k, t in model.state_dict().items()}
    assert {k: t.shape for k, t in sketch.state_dict().items()} == shapes
    made = build(cls, SMALL[name], model.state_dict())
    assert all(torch.equal(t, made.state_dict()[k]) for k, t in model.state_dict().items())


@pytest.mark.parametrize("name", names())
def test_models_of_the_library_load_with_their_bits(name: str) -> None:
    import safetensors.torch

    model, _ = load_model(name)
    state, held = model.state_dict(), safetensors.torch.load_file(FOLDER / f"{name}.safetensors")
    assert state.keys() == held.keys()
    assert all(torch.equal(state[k], t) and state[k].dtype == t.dtype for k, t in held.items())


@pytest.mark.parametrize("kind", ["view", "sparse", "meta", "number"])
def test_tensors_that_only_promise_their_numbers(tmp_path: Path, kind: str) -> None:
    """A view of one number has any shape; a network of that shape would not be small."""
    arguments = SMALL["FieldsOfExperts"] | {"filters": 10**6, "size": 10**3, "initial_filters": "normal"}
    shapes = {"weight": (10**6, 10**3, 10**3), "log_scale": (), "log_weights": (10**6,), "log_widths": (10**6,)}
    hollow: dict[str, Any] = {
        "view": lambda shape: torch.zeros(1).expand(shape) if shape else torch.zeros(()),
        "sparse": lambda shape: torch.sparse_coo_tensor(
            torch.zeros(len(shape), 1).long(), torch.ones(1), shape, check_invariants=False
        ),
        "meta": lambda shape: torch.empty(shape, device="meta"),
        "number": lambda shape: 1.0,
    }
    tensors = {k: hollow[kind](shape) for k, shape in shapes.items()}
    path = checkpoint(tmp_path / "last.ckpt", "FieldsOfExperts", arguments, tensors)
    with pytest.raises(
        ModelFileError, match=r"last\.ckpt: .*weight.*: no dense tensor of as many numbers as its shape"
    ):
        load_model(path)


def test_tensors_that_share_their_memory_are_limited(tmp_path: Path) -> None:
    """Views of one another need memory for each once a network is made of them."""
    network = small("LearnedPrimalDual")
    one = torch.zeros(10**5)
    tensors = {k: one[: t.numel()].view(t.shape) for k, t in network.state_dict().items()}
    arguments = SMALL["LearnedPrimalDual"]
    assert load_model(checkpoint(tmp_path / "last.ckpt", "LearnedPrimalDual", arguments, tensors))
    set_memory_limit(sum(4 * t.numel() for t in tensors.values()) - 1)
    try:
        with pytest.raises(MisfitError, match=r"its tensors would take .*, but the limit is .* --max-memory"):
            build(models.LearnedPrimalDual, arguments, tensors)
    finally:
        set_memory_limit(None)


class Mine(Regularizer):
    """A class of the user's; with ``numbers`` its constructor needs some, which the meta device has not."""

    def __init__(self, width: int = 2, layers: int = 1, numbers: bool = False, plain: int = 0) -> None:
        super().__init__()
        self.factor = float(torch.full((), 2.0).sqrt()) if numbers else 1.0
        self.layers = nn.ModuleList()
        for _ in range(layers):
            self.layers.append(nn.Conv2d(1, width, 3))
        self.more = nn.Sequential()
        for _ in range(plain):
            self.more.append(nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        return sum(self.factor * layer(x).square().flatten(1).sum(1) for layer in self.layers)

    def convexity(self) -> float:
        return 0.0


@pytest.mark.parametrize("numbers", [False, True])
def test_trusted_classes_are_measured_too(tmp_path: Path, numbers: bool) -> None:
    path = save_regularizer(Mine(numbers=numbers), tmp_path / "mine")
    x = torch.rand(1, 1, 8, 8)
    loaded, _ = load_model(path, trust=[Mine])
    assert isinstance(loaded, Mine)
    assert loaded.factor == Mine(numbers=numbers).factor
    assert loaded(x).shape == (1,)
    head = json.loads(path.with_suffix(".json").read_text())
    for arguments, message in (
        ({"layers": N}, "far larger than the file, which has 2 tensors"),
        ({"plain": N}, "far more layers than the file, which has 2 tensors"),
        ({"width": 10**6}, "far larger" if numbers else r"shape \(2, 1, 3, 3\) instead of \(1000000, 1, 3, 3\)"),
        ({"layers": 9}, r"layers\.1\.weight is missing.* and 11 more"),
    ):
        path.with_suffix(".json").write_text(json.dumps(head | {"arguments": {"numbers": numbers} | arguments}))
        with pytest.raises(ModelFileError, match=rf"mine\.safetensors: does not fit Mine with .*{message}"):
            load_model(path, trust=[Mine])


def test_nothing_is_counted_afterwards() -> None:
    with pytest.raises(MisfitError):
        build(Mine, {"layers": N}, {})
    assert len(Mine(layers=500).layers) == 500


def test_every_model_of_the_table_is_here() -> None:
    small_ones = {public_name(getattr(models, name)) for name in SMALL}
    others = {models.ICNNSaddle, models.NoiseConditioned}  # no file has the one, and the other is in test_nested.py
    assert small_ones == OWN - {public_name(cls) for cls in others}

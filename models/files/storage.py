"""Trained models in small files: the parameters as safetensors, and a JSON that says what they belong to.

``foe.safetensors`` holds the state dict. ``foe.json`` beside it holds the class, the arguments of its constructor, the
floating-point type, a checksum of the parameters, the version of this library and any metadata. Nothing of Lightning
is needed to read them, and nothing is unpickled. Networks that reconstruct are kept in the same way.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from models.files.arguments import plain_arguments, typed_arguments
from models.files.building import MisfitError, build
from models.files.checkpoint_file import CheckpointError, load_checkpoint
from models.files.shipped import locate
from models.files.trust import Trusted, UntrustedError, find_class, is_importable
from recon.files import check_finite, write_files
from recon.lower_level import ContractError, Recreatable, Regularizer, SaddleModel, check_contract
from recon.lower_level.contract import SIDE
from recon.names import public_name
from recon.reconstruction.reconstructor import Reconstructor

FORMAT, RECONSTRUCTOR_FORMAT = "recon regularizer 1", "recon reconstructor 1"
WEIGHTS, DESCRIPTION, CHECKPOINT = ".safetensors", ".json", ".ckpt"

Model = Regularizer | SaddleModel | Reconstructor
_KINDS = (Regularizer, SaddleModel, Reconstructor)
_WORDS = ("a regularizer R(x) of an energy", "a saddle-point model", "a network that reconstructs")

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


class ModelFileError(ValueError):
    """A file that holds no usable regularizer; the message names it and says what would be valid."""


def save_regularizer(regularizer: Recreatable, path: str | Path, metadata: Mapping[str, object] | None = None) -> Path:
    """Write ``regularizer`` to ``path`` (with or without ``.safetensors``) and to the ``.json`` beside it.

    Parameters
    ----------
    regularizer
        or a reconstructor, of a class that can be imported, with constructor arguments that JSON can hold.
    path
        both files are replaced if they exist; folders are made.
    metadata
        what else to keep (level of the noise, data, training record): plain values, numbers finite.

    Returns
    -------
    Path
        The path of the safetensors file.

    Raises
    ------
    ValueError
        the class cannot be imported by its name, an argument or the metadata cannot be put into JSON, or the parameters
        are not all of type float32 or all of float64, or not finite.
    OSError
        the files cannot be written; none of them is then changed.
    """
    weights, description = _paths(path)
    # copies: safetensors refuses views of one another
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in regularizer.state_dict().items()}
    for name, tensor in tensors.items():
        check_finite(tensor.numpy(), str(weights), name)
    content = safetensors.torch.save(tensors)
    form = RECONSTRUCTOR_FORMAT if isinstance(regularizer, Reconstructor) else FORMAT
    head: dict[str, object] = {"format": form, **specification(regularizer)}
    digest = hashlib.sha256(content).hexdigest()
    head |= {"version": library_version(), "sha256": digest, "metadata": dict(metadata or {})}
    try:
        text = json.dumps(head, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{description}: the metadata must be plain values with finite numbers ({error})") from error
    write_files({weights: content, description: text.encode() + b"\n"})
    return weights


def load_regularizer(path: str | Path, trust: Iterable[Trusted] = ()) -> tuple[Regularizer, dict[str, Any]]:
    """Read a regularizer of energies, on the CPU, and its metadata.

    As :func:`load_model`, but raises :class:`ModelFileError` for other models, too.
    """
    model, metadata = load_model(path, trust)
    if not isinstance(model, Regularizer):
        raise _wrong_kind(path, model, Regularizer)
    return model, metadata


def load_reconstructor(path: str | Path, trust: Iterable[Trusted] = ()) -> tuple[Reconstructor, dict[str, Any]]:
    """Read a network that reconstructs, on the CPU, and its metadata.

    As :func:`load_model`, but raises :class:`ModelFileError` for other models, too. What it was trained for is the
    entry ``setting`` of the metadata, see :func:`models.files.setting.setting_difference`.
    """
    model, metadata = load_model(path, trust)
    if not isinstance(model, Reconstructor):
        raise _wrong_kind(path, model, Reconstructor)
    return model, metadata


def load_model(path: str | Path, trust: Iterable[Trusted] = ()) -> tuple[Model, dict[str, Any]]:
    """Read a regularizer, a saddle-point model or a reconstructor, on the CPU, and its metadata.

    ``path`` is what :func:`save_regularizer` wrote (the safetensors, the JSON, or their common name), the name of a
    model that comes with the library (:func:`models.files.shipped.names`), or a Lightning checkpoint (``.ckpt``): of
    :class:`models.BilevelModule`, whose metadata are ``mu`` and the classes of ``operator`` and ``fidelity``,
    or of :class:`models.SupervisedModule`, with the entry ``setting``.

    The class is one of this project, or of a module in ``trust`` (its name, which is then imported; or the class
    itself): no other module is imported, see :mod:`models.files.trust`. Only subclasses of
    :class:`recon.lower_level.Regularizer`, :class:`recon.lower_level.SaddleModel` and
    :class:`recon.reconstruction.reconstructor.Reconstructor` are instantiated, and checkpoints are read with
    ``weights_only=True``.

    Raises
    ------
    FileNotFoundError
        one of the files is missing, or no model has that name.
    ModelFileError
        (a ValueError) a file is of another kind, truncated, of another model, or names a class that is not trusted,
        unknown or not a regularizer.
    """
    path = locate(path)
    if path.suffix == CHECKPOINT:
        return _load_checkpoint(path, trust)
    weights, description = _paths(path)
    for file in (weights, description):
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file; a regularizer is a {WEIGHTS} and a {DESCRIPTION} file")
    head = _read_description(description)
    saved = _specification(head, description)
    cls = _class(saved.name, description, trust)
    content = weights.read_bytes()
    try:
        tensors = safetensors.torch.load(content)
    except SafetensorError as error:
        raise ModelFileError(f"{weights}: not a safetensors file, or truncated ({error})") from error
    model = _build(cls, saved, tensors, weights, trust)
    if hashlib.sha256(content).hexdigest() != head.get("sha256"):
        raise ModelFileError(
            f"{weights}: does not belong to {description.name}, its checksum is another; copy both files"
        )
    return model, head["metadata"]


def pretrained(path: str | Path, trust: list[str] | None = None) -> Regularizer:
    """The regularizer in a file that :func:`load_model` reads: what a configuration starts from to train on.

    In YAML: ``regularizer: {class_path: models.pretrained, init_args: {path: FILE_OR_NAME}}``.
    ``trust``: modules that a class which is none of this project may come from.
    """
    return load_regularizer(path, trust or ())[0]


def pretrained_saddle_model(path: str | Path, trust: list[str] | None = None) -> SaddleModel:
    """The saddle-point model in a file that :func:`load_model` reads; like ``pretrained``."""
    model = load_model(path, trust or ())[0]
    if not isinstance(model, SaddleModel):
        raise _wrong_kind(path, model, SaddleModel)
    return model


def pretrained_reconstructor(path: str | Path, trust: list[str] | None = None) -> Reconstructor:
    """The network in a file that :func:`load_reconstructor` reads; like ``pretrained``."""
    return load_reconstructor(path, trust or ())[0]


def specification(regularizer: Recreatable) -> dict[str, object]:
    """``class``, ``arguments`` and ``dtype``: plain values from which the regularizer can be made again.

    Raises
    ------
    ValueError
        as :func:`save_regularizer`.
    """
    cls = type(regularizer)
    name = public_name(cls)
    if not is_importable(cls):
        raise ValueError(f"{name} cannot be imported by this name; define the class at the top level of a module")
    arguments = plain_arguments(regularizer.constructor_arguments())
    for argument, value in arguments.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{name}: the argument {argument} = {value!r} cannot be saved as JSON ({error})"
            ) from error
    dtypes = {str(t.dtype).removeprefix("torch.") for t in regularizer.state_dict().values() if t.is_floating_point()}
    if len(dtypes) > 1 or not dtypes <= _DTYPES.keys():
        raise ValueError(
            f"{name} holds numbers of type {', '.join(sorted(dtypes))}; valid is one of {', '.join(_DTYPES)}"
        )
    return {"class": name, "arguments": arguments, "dtype": dtypes.pop() if dtypes else "float32"}


def _wrong_kind(path: str | Path, model: Model, needed: type) -> ModelFileError:
    own, need = _words(type(model)), _words(needed)
    name, base = type(model).__name__, public_name(needed)
    return ModelFileError(f"{path}: holds {own}, {name}; this needs {need}, a subclass of {base}")


def _words(cls: type) -> str:
    return next(words for kind, words in zip(_KINDS, _WORDS, strict=True) if issubclass(cls, kind))


def _paths(path: str | Path) -> tuple[Path, Path]:
    path = Path(path)
    # not with_suffix alone: foe_0.1 has a suffix, too
    stem = path.with_suffix("") if path.suffix in (WEIGHTS, DESCRIPTION) else path
    return stem.with_name(stem.name + WEIGHTS), stem.with_name(stem.name + DESCRIPTION)


def library_version() -> str:
    """Of this library, ``unknown`` where it is not installed."""
    try:
        return version("recon-bilevel")
    except PackageNotFoundError:  # run from a folder, without installation
        return "unknown"


def _read_description(path: Path) -> dict[str, Any]:
    try:
        head = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: not JSON, or truncated ({error})") from error
    if not isinstance(head, dict) or head.get("format") not in (FORMAT, RECONSTRUCTOR_FORMAT):
        raise ModelFileError(f"{path}: does not describe a regularizer; its entry 'format' must be {FORMAT!r}")
    if not isinstance(head.get("metadata"), dict):
        raise ModelFileError(f"{path}: the entry 'metadata' must be an object")
    return head


@dataclass(frozen=True)
class _Specification:
    """Of a model in a file: its class and arguments, and the type of its numbers."""

    name: str
    arguments: dict[str, object]
    dtype: torch.dtype


def _specification(head: Mapping[str, Any], path: Path) -> _Specification:
    for entry, kind in {"class": str, "arguments": dict, "dtype": str}.items():
        if not isinstance(head.get(entry), kind):
            raise ModelFileError(f"{path}: the entry {entry!r} is missing or not of the type {kind.__name__}")
    if head["dtype"] not in _DTYPES:
        raise ModelFileError(f"{path}: the dtype is {head['dtype']!r}; valid are {', '.join(_DTYPES)}")
    return _Specification(head["class"], head["arguments"], _DTYPES[head["dtype"]])


def _class(name: str, path: Path, trust: Iterable[Trusted]) -> type[Model]:
    try:
        cls = find_class(name, trust)
    except UntrustedError as error:
        raise ModelFileError(f"{path}: {error}") from error
    if cls is None:
        raise ModelFileError(
            f"{path}: there is no class {name}; install the package that has it, or put it on PYTHONPATH"
        )
    if not (isinstance(cls, type) and issubclass(cls, _KINDS)):
        valid = ", of ".join(map(public_name, _KINDS))
        raise ModelFileError(f"{path}: {name} is not a regularizer; valid are subclasses of {valid}")
    return cls


def _build(
    cls: type[Model], saved: _Specification, tensors: Mapping[str, object], path: Path, trust: Iterable[Trusted]
) -> Model:
    """The model with the tensors in ``path``, with one sentence for everything that does not fit."""
    arguments = (cls.older_arguments if issubclass(cls, Reconstructor) else {}) | saved.arguments
    try:
        typed = typed_arguments(cls, arguments, lambda name: _class(name, path, trust))
        regularizer = build(cls, typed, tensors).to(saved.dtype)
    except ModelFileError:
        raise
    except MisfitError as error:
        raise ModelFileError(f"{path}: does not fit {cls.__name__} with {_brief(arguments)}: {error}") from error
    except Exception as error:  # arguments of any kind and size end in errors of any kind
        raise ModelFileError(
            f"{path}: {saved.name} cannot be made with the arguments {_brief(arguments)} ({error})"
        ) from error
    regularizer.load_state_dict(dict(tensors))
    bad = [k for k, t in regularizer.state_dict().items() if t.is_floating_point() and not torch.isfinite(t).all()]
    if bad:
        raise ModelFileError(f"{path}: holds NaN or infinite values in {', '.join(bad)}")
    if isinstance(regularizer, Regularizer):
        _check_contract(regularizer, path)
    return regularizer


def _brief(arguments: Mapping[str, object]) -> str:
    try:
        text = str(arguments)
    except (ValueError, RecursionError):  # integers of thousands of digits, and deep lists
        return "such numbers or lists"
    return text if len(text) <= 200 else text[:197] + "..."


def _check_contract(regularizer: Regularizer, path: Path) -> None:
    """Raise :class:`ModelFileError` for what is no regularizer of pictures, nor of complex images."""
    dtype = next((t.dtype for t in regularizer.parameters()), torch.float32)
    for channels in (1, 2):
        try:
            return check_contract(
                regularizer.at(regularizer.typical_noise), torch.zeros(1, channels, SIDE, SIDE, dtype=dtype)
            )
        except ContractError as error:
            raise ModelFileError(f"{path}: {error}") from error
        except (RuntimeError, ValueError, IndexError):  # images of a size of its own: what uses it will check
            continue


def _load_checkpoint(path: Path, trust: Iterable[Trusted]) -> tuple[Model, dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        content = load_checkpoint(path)
    except CheckpointError as error:
        raise ModelFileError(str(error)) from error
    entry, parts = content.get("bilevel", content.get("supervised")), content.get("state_dict")
    head = entry.get("specification") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(head, dict) or not isinstance(parts, dict):
        raise ModelFileError(
            f"{path}: a checkpoint of another model; valid are those of models.BilevelModule and "
            "models.SupervisedModule"
        )
    saved = _specification(head, path)
    cls = _class(saved.name, path, trust)
    supervised = issubclass(cls, Reconstructor)
    prefix = "reconstructor." if supervised else "regularizer."
    tensors = {k.removeprefix(prefix): v for k, v in parts.items() if str(k).startswith(prefix)}
    model = _build(cls, saved, tensors, path, trust)
    problem = entry.get("problem", {})
    named = ("operator", "fidelity")
    if not isinstance(problem, dict) or not all("class" in problem[k] for k in named if k in problem):
        raise ModelFileError(f"{path}: its entry 'problem' is no description of an operator and a fidelity")
    if supervised:
        return model, {"setting": problem["setting"]} if "setting" in problem else {}
    return model, {"mu": problem.get("mu", 0.0)} | {k: problem[k]["class"] for k in named if k in problem}

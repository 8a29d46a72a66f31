"""Models made from the arguments in a file, and no larger than what the file holds.

A few bytes can ask for any number of gigabytes: a million channels, or a thousand million layers. So constructors run
on torch's meta device first, where tensors have shapes and no memory, the modules and tensors that they make are
counted, and only what has the names and shapes of the tensors in the file is made with numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from models.files.arguments import made
from models.files.trust import OWN
from recon.limits import excess
from recon.names import public_name

Module = TypeVar("Module", bound=nn.Module)

#: of what a file holds, constructors may make this many times as much on the way, and some more where it holds little
_SLACK, _SOME_TENSORS, _SOME_NUMBERS = 4, 100, 10**6
#: modules without tensors, for each tensor
_MODULES = 10
#: of the names in a message
_NAMED = 5


class MisfitError(ValueError):
    """The model that was asked for is not the one that the file has the tensors of."""


def build(cls: type[Module], arguments: Mapping[str, object], tensors: Mapping[str, object]) -> Module:
    """``cls(**arguments)`` on the CPU, if its state dict has the names and shapes of ``tensors``; values are not set.

    Classes of this project are not made before that is known. Others, trusted ones, may have constructors that need
    numbers, and are then made at once, while what they make is counted: ``_SLACK`` times as much as the file holds.

    Raises
    ------
    MisfitError
        names or shapes are others, a tensor has no memory of its own, or all are larger than the memory.
    Exception
        whatever the constructor raises.
    """
    held = _whole(tensors)
    with _counted(held):
        sketch: nn.Module | None = None
        try:
            with torch.device("meta"):
                sketch = cls(**made(arguments))
        except MisfitError:
            raise
        except Exception:
            if public_name(cls) in OWN:
                raise
        if sketch is not None:
            _check_fit(sketch, held)
        model = cls(**made(arguments))
    _check_fit(model, held)
    return model


def _whole(tensors: Mapping[str, object]) -> dict[str, Tensor]:
    """The tensors; refused are shapes with fewer numbers in memory than they promise: views, sparse and meta ones."""
    held = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor) and _is_whole(tensor)}
    hollow = [name for name in tensors if name not in held]
    if hollow:
        raise MisfitError(f"{_listed(hollow)}: no dense tensor of as many numbers as its shape has")
    wrong = excess(float(sum(t.numel() * t.element_size() for t in held.values())))
    if wrong:
        raise MisfitError(f"its tensors {wrong}")
    return held


def _is_whole(tensor: Tensor) -> bool:
    if tensor.is_meta or tensor.is_nested or tensor.is_quantized or tensor.layout is not torch.strided:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _check_fit(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    own = model.state_dict()
    wrong = [f"{k} is missing" for k in own if k not in tensors]
    wrong += [f"{k} is not one of its tensors" for k in tensors if k not in own]
    wrong += [
        f"{k} has the shape {tuple(t.shape)} instead of {tuple(own[k].shape)}"
        for k, t in tensors.items()
        if k in own and t.shape != own[k].shape
    ]
    if wrong:
        raise MisfitError(_listed(wrong))


@contextmanager
def _counted(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Raise :class:`MisfitError` where more is made than what holds ``tensors`` can need; on any device."""
    most = _SLACK * len(tensors) + _SOME_TENSORS
    numbers = _SLACK * sum(t.numel() for t in tensors.values()) + _SOME_NUMBERS
    count = {"tensors": 0, "numbers": 0, "modules": 0}

    def count_tensor(module: nn.Module, name: str, value: object) -> None:
        count["tensors"] += 1
        if isinstance(value, Tensor) and not value.is_meta and not nn.parameter.is_lazy(value):
            count["numbers"] += value.numel()
        if count["tensors"] > most or count["numbers"] > numbers:
            raise MisfitError(f"it would be far larger than the file, which has {len(tensors)} tensors")

    def count_module(module: nn.Module, name: str, value: object) -> None:
        count["modules"] += 1
        if count["modules"] > _MODULES * most:
            raise MisfitError(f"it would have far more layers than the file, which has {len(tensors)} tensors")

    handles = [
        register_module_parameter_registration_hook(count_tensor),
        register_module_buffer_registration_hook(count_tensor),
        register_module_module_registration_hook(count_module),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")

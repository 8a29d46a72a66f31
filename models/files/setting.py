"""What a model was trained for, as plain values: the operator and the noise of the data, and the data themselves.

Written into the JSON beside every trained model (entry ``setting`` of its metadata), so that a program can refuse to
apply it to other measurements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol, TypedDict, runtime_checkable

import torch
from torch import Tensor

from recon.names import current_name, public_name
from recon.operators import Geometry, LinearOperator, geometry_to_dict

#: two fingerprints of one operator differ by less, relative to ||A u||, whatever the machine and the precision
TOLERANCE = 1e-4


@runtime_checkable
class Described(Protocol):
    """A data module that says what its data are."""

    def description(self) -> Mapping[str, object]:
        """Plain values, the entry ``noise`` among them."""
        ...


class Setting(TypedDict):
    """What a model was trained for; None where nothing is known."""

    operator: dict[str, object]
    noise: object
    data: dict[str, object] | None


def describe_setting(operator: LinearOperator, datamodule: object = None) -> Setting:
    """``operator``, see :func:`describe_operator`; ``noise`` and ``data``, what the data module's ``description`` says.

    The last two are None for data modules without that method, and without data module.
    """
    data = dict(datamodule.description()) if isinstance(datamodule, Described) else {}
    return {"operator": describe_operator(operator), "noise": data.pop("noise", None), "data": data or None}


@torch.no_grad()
def describe_operator(operator: LinearOperator) -> dict[str, object]:
    """Class, shapes, bound of the norm, geometry in the form of ``geometry_from_dict`` (CT), and a fingerprint.

    The fingerprint of A stands for everything that has no short description, such as masks, sensitivities and kernels:
    ||A u||, <A u, v> and <A u, w> for fixed vectors u, v, w, float64. None for operators of images of any size.
    """
    found: dict[str, object] = {
        "class": public_name(operator),
        "domain_shape": _listed(operator.domain_shape),
        "range_shape": _listed(operator.range_shape),
        "norm_bound": operator.norm_bound,
    }
    geometry = getattr(operator, "geometry", None)
    if isinstance(geometry, Geometry):
        found["geometry"] = geometry_to_dict(geometry)
    return found | {"fingerprint": _fingerprint(operator)}


def setting_difference(saved: Mapping[str, object], current: Mapping[str, object]) -> str | None:
    """In what operator or noise of two settings differ, in words; None if they do not. The data may differ.

    A model that was trained for a range of noise levels (``sigma`` is a list) is one for every level in it. Numbers of
    fingerprints may differ by rounding, and an operator whose class has another name is another one.
    """
    for part in ("operator", "noise"):
        found = first_difference(saved.get(part), current.get(part), _same, part)
        if found is not None:
            name, theirs, ours = found
            if name.endswith("fingerprint"):
                return "the operator has the same class and shapes, but other values (mask, sensitivities, kernel, ...)"
            return f"{name} is {_brief(theirs)} there, but {_brief(ours)} here"
    return None


def first_difference(
    saved: object, current: object, same: Callable[[object, object, str], bool], name: str = ""
) -> tuple[str, object, object] | None:
    """Where two descriptions differ, classes before all else and fingerprints last, and the values there.

    ``same(a, b, name)`` compares what are not dictionaries both.
    """
    if not (isinstance(saved, Mapping) and isinstance(current, Mapping)):
        return None if same(saved, current, name) else (name, saved, current)
    for key in sorted(saved.keys() | current.keys(), key=lambda key: (key == "fingerprint", key != "class", key)):
        found = first_difference(saved.get(key), current.get(key), same, f"{name}.{key}" if name else key)
        if found is not None:
            return found
    return None


def _same(a: object, b: object, name: str) -> bool:
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b):
            return False
        if name.endswith("fingerprint"):
            return all(abs(s - t) <= TOLERANCE * max(abs(a[0]), abs(b[0])) for s, t in zip(a, b, strict=True))
        return all(_same(s, t, name) for s, t in zip(a, b, strict=True))
    if name == "noise.sigma" and isinstance(a, list) and isinstance(b, (int, float)):
        return len(a) == 2 and a[0] <= b <= a[1]
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        # norm bounds come out of iterations that round differently on other machines
        return math.isclose(a, b, rel_tol=TOLERANCE if name.endswith("norm_bound") else 1e-9)
    if isinstance(a, str) and isinstance(b, str):
        return current_name(a) == current_name(b)
    return bool(a == b)


def _fingerprint(operator: LinearOperator) -> list[float] | None:
    if operator.domain_shape is None or operator.complex_domain or operator.complex_range:
        return None
    # in the precision of its buffers; sparse matrices would keep a copy in float64
    like = next((t for t in operator.buffers() if t.is_floating_point()), torch.empty(0, dtype=torch.float32))
    image = operator(_vector(operator.domain_shape, 0.6180339887498949).to(like)).double().cpu().flatten()
    v, w = (_vector(tuple(image.shape), step).flatten() for step in (0.4142135623730951, 0.7320508075688772))
    scale = math.sqrt(len(image))
    return [float(image.norm()), float(image @ v) / scale, float(image @ w) / scale]


def _vector(shape: tuple[int, ...], step: float) -> Tensor:
    """Numbers in [-1/2, 1/2) without pattern, ``(1, *shape)``: the fractional parts of multiples of an irrational."""
    steps = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64) * step
    # the square mixes neighbours, which would else be a plane wave; the argument stays small enough for its digits
    return ((steps.frac() * 97.0).square().frac() - 0.5).reshape(1, *shape)


def _listed(shape: tuple[int, ...] | None) -> list[int] | None:
    return None if shape is None else list(shape)


def _brief(value: object) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 80 else text[:77] + "..."

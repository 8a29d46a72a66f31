"""What energies and certificates rely on in a regularizer, checked where it is cheap.

:func:`check_contract` looks once at two small images; :func:`contradiction` looks for a pair of images that refutes the
moduli that a regularizer claims, for :mod:`recon.lower_level.watch`, too. Neither proves a claim.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from recon.lower_level.batch import per_image_dot, per_image_norm
from recon.lower_level.precision import full_precision, unit_roundoff
from recon.lower_level.regularizer import Regularizer

#: largest side of the images that contracts are checked on, where the regularizer takes them
SIDE = 16
#: relative excess of a modulus over its claim that says nothing: claims are computed in the precision of parameters
SLACK = 1e-3
#: shortest step, relative to the image, whose curvature double precision resolves; how many times u the noise may be
_SHORTEST, _SAFETY = 1e-6, 1e3


class Claims(NamedTuple):
    """What a regularizer says of itself, at its current parameters: see the methods of these names."""

    convexity: float
    smoothness: float
    gain: float

    @classmethod
    def of(cls, regularizer: Regularizer) -> Claims:
        """Asked once: the answers cost time."""
        return cls(regularizer.convexity(), regularizer.smoothness(), regularizer.rounding_gain())


class ContractError(ValueError):
    """A regularizer that is none: its values, gradients or claims are not what certificates rely on."""


@full_precision()
def check_contract(regularizer: Regularizer, like: Tensor, overflow: bool = False) -> None:
    """Check R on two random images of the kind of ``like``, ``(batch, channel, height, width)``, as small as R allows.

    Values: one finite number per image, of the type of the images, the same whenever asked, whatever other images are
    in the batch. Derivatives: shapes, types, finite, and where they are analytic, those of automatic differentiation.
    Parameters: some of those that are trained matter. Moduli: numbers that two pairs of images do not refute.
    With ``overflow``, values of plus infinity are left to what refuses initial parameters that are too large.

    Raises
    ------
    ContractError
        (a ValueError) it names the class, what is wrong, and what is right.
    """
    x, value = _first_values(regularizer, like)
    if overflow and isinstance(value, Tensor) and bool((value == math.inf).any()):
        return
    if value is not None:
        _check_values(regularizer, x, value.detach() if isinstance(value, Tensor) else value)
    claims = Claims.of(regularizer)
    _check_moduli(type(regularizer).__name__, claims)
    compare = _Comparison(regularizer, x, claims)
    grad = _check_gradient(regularizer, x, value, compare)
    if value is not None:
        _check_function(regularizer, x, value.detach(), grad)
    _check_derivatives(regularizer, x, compare)
    for step in (x[1:] - x[:1], 1e-2 * (x[1:] - 0.5)):
        found = contradiction(regularizer, claims, x[:1], step)
        if found is not None:
            raise ContractError(found)


def contradiction(regularizer: Regularizer, claims: Claims, x: Tensor, s: Tensor) -> str | None:
    r"""What the gradients of R at x and x + s refute, or nothing; one image each, ``(1, channel, height, width)``.

    The ``claims`` m = convexity() and L = smoothness() say, with y = grad R(x + s) - grad R(x), for all x and s,

        <s, y> >= m \|\|s\|\|^2   and   \|\|y\|\| <= L \|\|s\|\|.

    Both are compared in double precision, with s no shorter than it can resolve, so that rounding errors, here of size
    u (G \|\|x\|\| + offset + \|\|grad R\|\|), refute nothing. Where G is unknown, the slope along random pixels stands
    for it.
    """
    with torch.no_grad():
        exact, x, s = _in_double(regularizer, x), x.double(), s.double()
        size, length = float(per_image_norm(x)), float(per_image_norm(s))
        if not 0 < length < math.inf:
            return None
        s = (x + s * max(1.0, _SHORTEST * size / length)) - x
        length = float(per_image_norm(s))
        noise = _random(tuple(x.shape), 1, x) - 0.5
        start, end, aside = (exact.grad(z) for z in (x, x + s, x + noise * (length / float(per_image_norm(noise)))))
        y, sideways = end - start, float(per_image_norm(aside - start))
        slope, steepness = float(per_image_dot(s, y)) / length**2, float(per_image_norm(y)) / length
    m, bound, gain = claims
    gain = max(gain if gain < math.inf else 0.0, steepness, sideways / length)
    sizes = gain * size + exact.rounding_offset(x) + float(per_image_norm(start)) + float(per_image_norm(end))
    doubt = _SAFETY * unit_roundoff(torch.float64) * sizes / length
    name = type(regularizer).__name__
    if slope < m - SLACK * abs(m) - doubt:
        return (
            f"{name} claims convexity() = {m:g}, but between two images its gradient changes by {slope:g} times their "
            "distance along it: nothing is certified with it. Give a bound that holds, or -inf where none is known"
        )
    if steepness > (1 + SLACK) * bound + doubt:
        return (
            f"{name} claims smoothness() = {bound:g}, but between two images its gradient changes by {steepness:g} "
            "times their distance: nothing is certified with it. Give a bound that holds, or inf where none is known"
        )
    return None


def check_shapes(regularizer: Regularizer, x: Tensor, value: Tensor, grad: Tensor) -> None:
    """Raise :class:`ContractError` if value and gradient are not those of the images x; costs next to nothing."""
    if value.shape != (len(x),):
        raise ContractError(_no_value(regularizer, x, value))
    if grad.shape != x.shape or grad.dtype != x.dtype:
        raise ContractError(
            f"{type(regularizer).__name__}: the gradient is {grad.dtype} of shape {tuple(grad.shape)}, but must be as "
            f"the images, {x.dtype} of shape {tuple(x.shape)}"
        )


def _no_value(regularizer: Regularizer, x: Tensor, value: object) -> str:
    is_tensor = isinstance(value, Tensor)
    what = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    return (
        f"{type(regularizer).__name__}: its value at images {tuple(x.shape)} is {what}, but must be one number for "
        f"each, of shape ({len(x)},){'' if is_tensor else ' and a tensor'}: sum over all axes but the first, as "
        "r.flatten(1).sum(1)"
    )


def _first_values(regularizer: Regularizer, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """Two images, and R there; None where only value_and_grad is defined."""
    whole = tuple(like.shape[1:])
    for shape in dict.fromkeys(((*whole[:1], *(min(n, SIDE) for n in whole[1:])), whole)):
        x = _random((2, *shape), 0, like)
        try:
            with torch.enable_grad():
                return x, regularizer(x)
        except NotImplementedError:
            break
        except Exception:  # parameters may belong to images of one size
            if shape == whole:
                raise
    return x, None


def _check_values(regularizer: Regularizer, x: Tensor, value: Tensor) -> None:
    name = type(regularizer).__name__
    if not isinstance(value, Tensor) or value.shape != (len(x),):
        raise ContractError(_no_value(regularizer, x, value))
    if not value.dtype.is_floating_point or torch.promote_types(value.dtype, x.dtype) != value.dtype:
        raise ContractError(f"{name}: its values at images of {x.dtype} are {value.dtype}; they must be as precise")
    _check_finite(name, "values", value)


def _check_function(regularizer: Regularizer, x: Tensor, value: Tensor, grad: Tensor) -> None:
    """The same value whenever asked, and image by image."""
    name = type(regularizer).__name__
    with torch.no_grad():
        again, alone = regularizer(x), torch.cat([regularizer(z) for z in x.split(1)])
    # sums of many terms may cancel, and are added up in another order for another batch
    close = 1e3 * unit_roundoff(x.dtype) * (value.abs() + per_image_norm(x) * per_image_norm(grad))
    if not bool(((again - value).abs() <= close).all()):
        raise ContractError(f"{name}: two evaluations at the same images differ; it must be a function (no dropout)")
    if not bool(((alone - value).abs() <= close).all()):
        raise ContractError(
            f"{name}: the value of an image depends on the others of its batch; every image is a problem of its own "
            "(no normalization over batches)"
        )


def _check_gradient(regularizer: Regularizer, x: Tensor, value: Tensor | None, compare: _Comparison) -> Tensor:
    """Value and gradient, and that of automatic differentiation where there is one and the code has its own."""
    name = type(regularizer).__name__
    own = type(regularizer).value_and_grad is not Regularizer.value_and_grad
    if value is not None and not own:
        with torch.enable_grad():
            point = x.clone().requires_grad_(True)
            value = regularizer(point)
            used = value.requires_grad and torch.autograd.grad(value.sum(), point, allow_unused=True)[0] is not None
        if not used:
            raise ContractError(f"{name}: its value does not depend on the image differentiably; is it detached?")
    again, grad = regularizer.value_and_grad(x)
    check_shapes(regularizer, x, again, grad)
    _check_finite(name, "values", again)
    _check_finite(name, "gradient", grad)
    if value is not None and own:
        compare("value", lambda: [value.detach()], [again])
        compare("gradient", lambda: [Regularizer.value_and_grad(regularizer, x)[1]], [grad])
    return grad


def _check_derivatives(regularizer: Regularizer, x: Tensor, compare: _Comparison) -> None:
    """Products with the Hessian and with the derivative in the parameters."""
    name, w, kind = type(regularizer).__name__, _random(tuple(x.shape), 2, x) - 0.5, type(regularizer)
    product = regularizer.hessian(x)(w)
    if product.shape != x.shape or product.dtype != x.dtype:
        raise ContractError(f"{name}: products with its Hessian are not {x.dtype} of shape {tuple(x.shape)}")
    _check_finite(name, "Hessian", product)
    if kind.hessian is not Regularizer.hessian:
        compare("Hessian", lambda: [Regularizer.hessian(regularizer, x)(w)], [product])
    params = regularizer.trainable()
    if not params:
        return
    try:
        mixed = regularizer.parameter_vjp(x, w)
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
        raise ContractError(_useless(name)) from error
    if [(g.shape, g.dtype) for g in mixed] != [(p.shape, p.dtype) for p in params]:
        raise ContractError(f"{name}: parameter_vjp does not return a tensor like each of its {len(params)} parameters")
    for part in mixed:
        _check_finite(name, "derivative in the parameters", part)
    wide = 6 * x - 3  # what vanishes between 0 and 1 may matter elsewhere
    if not any(bool((part != 0).any()) for part in (*mixed, *regularizer.parameter_vjp(wide, w))):
        raise ContractError(_useless(name))
    if kind.parameter_vjp is not Regularizer.parameter_vjp:
        compare("derivative in the parameters", lambda: Regularizer.parameter_vjp(regularizer, x, w), mixed)


def _useless(name: str) -> str:
    return f"{name}: its gradient does not depend on its parameters at random images: nothing can be learned"


class _Comparison:
    """Analytic derivatives against those of automatic differentiation, where there are any."""

    def __init__(self, regularizer: Regularizer, x: Tensor, claims: Claims) -> None:
        self.name, self.unit = type(regularizer).__name__, unit_roundoff(x.dtype)
        gain = claims.gain if claims.gain < math.inf else 0.0
        self.noise = _SAFETY * self.unit * (regularizer.rounding_offset(x) + gain * float(x.double().norm()))

    def __call__(self, what: str, automatic: Callable[[], Sequence[Tensor]], own: Sequence[Tensor]) -> None:
        try:
            expected = automatic()
        except (RuntimeError, NotImplementedError):  # forward cannot be differentiated that often
            return
        for mine, right in zip(own, expected, strict=True):
            error, size = float((mine - right).double().norm()), float(right.double().norm())
            if not error <= math.sqrt(self.unit) * size + self.noise:
                raise ContractError(
                    f"{self.name}: its own {what} differs from that of forward, by automatic differentiation, by "
                    f"{error:.3g}, of {size:.3g}; correct one of both"
                )


def _check_moduli(name: str, claims: Claims) -> None:
    m, bound, gain = claims
    if not (-math.inf <= m < math.inf):
        raise ContractError(f"{name}: convexity() is {m}, but must be a number, or -inf where nothing is known")
    if not (bound >= 0 and bound >= m * (1 - SLACK)):
        raise ContractError(
            f"{name}: smoothness() is {bound}, but must be at least 0 and convexity() = {m:g}, or inf where unknown"
        )
    if not gain >= 0:
        raise ContractError(f"{name}: rounding_gain() is {gain}, but must be at least 0, or inf where unknown")


def _check_finite(name: str, what: str, tensor: Tensor) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise ContractError(f"{name}: its {what} at random images between 0 and 1 are not all finite")


def _in_double(regularizer: Regularizer, x: Tensor) -> Regularizer:
    tensors = [*regularizer.parameters(), *regularizer.buffers()]
    if x.dtype == torch.float64 and all(t.dtype == torch.float64 for t in tensors if t.is_floating_point()):
        return regularizer
    return copy.deepcopy(regularizer).double()


def _random(shape: Sequence[int], seed: int, like: Tensor) -> Tensor:
    """Numbers between 0 and 1, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(tuple(shape), generator=generator, dtype=torch.float64).to(like)

"""Linear operators as maps of flat vectors, as saddle-point problems take them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recon.lower_level.batch import per_image_norm
from recon.operators import LinearOperator
from recon.operators.linear import Shape


class SaddleMap:
    """K: the flat view of a linear operator, ``(batch, domain_size) -> (batch, range_size)``, the same for all images.

    Parameters
    ----------
    operator : LinearOperator
        What K does. Problems of several variables stack operators (:func:`recon.operators.stack`), and let each act on
        its part of x (:class:`recon.operators.Restriction`).
    domain_shape : tuple of int, optional
        Of the images, where the operator takes any.

    Attributes
    ----------
    norm_bound : float
        A guaranteed upper bound of the spectral norm; infinite where none is known (then it is estimated, and bounds
        that contain it are not certified).
    exact : bool
        Whether :meth:`transpose` is the transpose up to rounding errors.

    Raises
    ------
    ValueError
        The operator has no fixed shapes, or complex numbers.
    """

    def __init__(self, operator: LinearOperator, domain_shape: Shape | None = None) -> None:
        shape = tuple(domain_shape) if domain_shape is not None else operator.domain_shape
        range_shape = operator.range_shape if operator.range_shape is not None else shape
        if shape is None or range_shape is None:
            raise ValueError(f"{type(operator).__name__} has no domain_shape; give one")
        if operator.complex_domain or operator.complex_range:
            raise ValueError(f"{type(operator).__name__} has complex images or data; use one with real channels")
        self.operator, self.domain_shape, self.range_shape = operator, shape, range_shape
        self.domain_size, self.range_size = math.prod(shape), math.prod(range_shape)
        self.norm_bound = operator.norm_bound if operator.norm_bound_certified else math.inf
        self.exact = operator.adjoint_exact and not operator.adjoint_mismatch

    @property
    def name(self) -> str:
        """Of the operator, for messages."""
        return type(self.operator).__name__

    def __call__(self, x: Tensor) -> Tensor:
        """K x, differentiable in the tensors K is made of."""
        return self.operator(x.view(-1, *self.domain_shape)).flatten(1)

    def transpose(self, y: Tensor) -> Tensor:
        """K^T y."""
        return self.operator.adjoint(y.view(-1, *self.range_shape)).flatten(1)

    def absolute_sums(self) -> tuple[Tensor, Tensor] | None:
        """Those of the operator, flat: inverses of step sizes. None: not known."""
        sums = self.operator.absolute_sums()
        return None if sums is None else (sums[0].flatten(), sums[1].flatten())

    def eps(self, dtype: torch.dtype) -> float:
        """Twice the unit roundoff of products with K and K^T for vectors of ``dtype``: what rounding models take."""
        own = 2 * self.operator.unit_roundoff(dtype) * self.operator.rounding_factor
        return max(torch.finfo(dtype).eps, own) + self.operator.adjoint_mismatch

    def tensors(self) -> list[tuple[Tensor, float]]:
        r"""The tensors t that depend on learned parameters, with c: \|\|d_t <Kx, y>\|\| <= c \|\|x\|\| \|\|y\|\|."""
        return self.operator.tensors()

    def like(self) -> Tensor:
        """An empty tensor of the dtype and on the device of K, for those who have to make vectors."""
        return self.operator.like()


def check_transpose(operator: SaddleMap) -> None:
    """Raise ``ValueError`` unless <Kx, y> = <x, K^T y> for random x and y, up to rounding."""
    like, generator = operator.like(), torch.Generator().manual_seed(0)
    x = torch.randn(2, operator.domain_size, generator=generator, dtype=torch.float64).to(like)
    y = torch.randn(2, operator.range_size, generator=generator, dtype=torch.float64).to(like)
    with torch.no_grad():
        kx, kty = operator(x), operator.transpose(y)
    for name, value, size in (("K x", kx, operator.range_size), ("K^T y", kty, operator.domain_size)):
        if value.shape != (2, size):
            raise ValueError(f"{operator.name}: {name} has the shape {tuple(value.shape)}, not (2, {size})")
    left, right = (kx * y).double().sum(1), (x * kty).double().sum(1)
    scale = per_image_norm(kx) * per_image_norm(y) + per_image_norm(x) * per_image_norm(kty)
    wrong = (left - right).abs() > 100 * operator.eps(kx.dtype) * scale
    if wrong.any():
        raise ValueError(
            f"the transpose of {operator.name} fails the adjoint test: <Kx, y> = {float(left[0]):.10g}, but "
            f"<x, K^T y> = {float(right[0]):.10g}"
        )


def power_method(operator: SaddleMap) -> float:
    """An estimate of ||K||, from below, by 60 iterations."""
    like, generator = operator.like(), torch.Generator().manual_seed(1)
    x = torch.randn(1, operator.domain_size, generator=generator, dtype=torch.float64).to(like)
    norm = 0.0
    with torch.no_grad():
        for _ in range(60):
            size = float(x.norm())
            if size == 0:
                return 0.0
            x = operator.transpose(operator(x / size))
            norm = math.sqrt(float(x.norm()))
    return norm

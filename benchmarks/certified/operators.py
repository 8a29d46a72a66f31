"""Random operators of the project, each with its matrix in extended precision."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.certified import matrices
from benchmarks.certified.terms import LD, Array, extended
from recon.operators import (
    Blur,
    CartesianMRI,
    FanBeam,
    FiniteDifferences,
    Identity,
    LinearOperator,
    Mask,
    ParallelBeam,
    RayTransform,
    stack,
)
from recon.operators.odl import ODLOperator

Shape = tuple[int, int, int]
Rng = np.random.Generator


@dataclass(frozen=True)
class Measured:
    """An operator of the project and its matrix, ``(data, pixels)`` in extended precision."""

    operator: LinearOperator
    matrix: Array
    image: Shape

    @property
    def singular_values(self) -> tuple[float, float]:
        """The smallest (0 if there are fewer data than pixels) and the largest one."""
        s = np.linalg.svd(self.matrix.astype(np.float64), compute_uv=False)
        return (float(s[-1]) if self.matrix.shape[0] >= self.matrix.shape[1] else 0.0), float(s[0])


class OwnMatrix(LinearOperator):
    """An operator as a user of the project would write it: a dense matrix."""

    def __init__(self, matrix: Array, image: Shape) -> None:
        values = np.linalg.svd(matrix, compute_uv=False)
        low = float(values[-1]) * (1 - 1e-10) if matrix.shape[0] >= matrix.shape[1] else 0.0
        super().__init__(image, (1, len(matrix), 1), float(values[0]) * (1 + 1e-10), low)
        self.matrix = torch.from_numpy(matrix)

    def _forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ self.matrix.to(x).T)[:, None, :, None]

    def _adjoint(self, y: Tensor) -> Tensor:
        return (y.flatten(1) @ self.matrix.to(y)).view(len(y), *(self.domain_shape or ()))


def small(rng: Rng, low: int = 4, high: int = 9, channels: int = 1) -> Shape:
    """A small image; its pixels make dense Hessians."""
    return channels, int(rng.integers(low, high + 1)), int(rng.integers(low, high + 1))


def colours(rng: Rng) -> Shape:
    """One channel, or now and then two."""
    return small(rng, 4, 6, 2) if rng.random() < 0.15 else small(rng)


def identity(rng: Rng) -> Measured:
    """Denoising."""
    image = colours(rng)
    return Measured(Identity(), np.eye(math.prod(image), dtype=LD), image)


def blur(rng: Rng) -> Measured:
    """A kernel of either sign or not, wrapped around or mirrored."""
    image, reflect = colours(rng), bool(rng.integers(2))
    kernel = rng.normal(size=rng.choice([1, 3, 5], 2))
    kernel = kernel if rng.integers(2) else np.abs(kernel)
    kernel = kernel / np.abs(kernel).sum()
    operator = Blur(torch.from_numpy(kernel), image, "reflect" if reflect else "periodic")
    matrix = matrices.blur(kernel.astype(LD), image[1:], reflect)
    return Measured(operator, matrices.each_channel(matrix, image[0]), image)


def mask(rng: Rng) -> Measured:
    """Inpainting."""
    image = colours(rng)
    kept = rng.random(image) < rng.uniform(0.3, 1)
    return Measured(Mask(torch.from_numpy(kept)), np.diag(kept.reshape(-1).astype(LD)), image)


def differences(rng: Rng) -> Measured:
    """Finite differences as data."""
    image, periodic = small(rng), bool(rng.integers(2))
    operator = FiniteDifferences(image, "periodic" if periodic else "neumann")
    return Measured(operator, np.concatenate(matrices.difference_matrices(image[1:], periodic)), image)


def _single(matrix: Array) -> Array:
    """The nearest matrix of single-precision numbers: the same in all types."""
    return matrix.astype(np.float32).astype(np.float64)


def own_matrix(rng: Rng) -> Measured:
    """A dense matrix of random condition and size."""
    image = small(rng, 4, 7)
    n = math.prod(image)
    m = int(rng.integers(max(n // 2, 1), 2 * n))
    matrix = _single(rng.normal(size=(m, n)) * np.exp(rng.uniform(-2, 2, (1, n))) * 10.0 ** rng.uniform(-3, 3))
    return Measured(OwnMatrix(matrix, image), matrix.astype(LD), image)


@lru_cache(maxsize=64)
def _rays(backend: Any, which: int) -> Measured:
    rng = np.random.default_rng([which, 77])
    size, views = int(rng.integers(5, 9)), int(rng.integers(3, 9))
    pixel = float(rng.uniform(0.3, 3))
    geometry: ParallelBeam | FanBeam
    if which % 2:
        geometry = ParallelBeam.equispaced((size, size), pixel, views)
    else:
        geometry = FanBeam.equispaced((size, size), pixel, views, source_distance=40.0, detector_distance=20.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        operator = RayTransform(geometry, backend=backend, cache=False)
    # the entries are what ASTRA says of every pixel: images with a single one show them without another rounding
    units = torch.eye(size**2, dtype=torch.float64).view(size**2, 1, size, size)
    matrix = np.concatenate([extended(operator(u[None])).reshape(1, -1) for u in units]).T.copy()
    return Measured(operator, matrix, (1, size, size))


def rays(backend: str, rng: Rng) -> Measured:
    """CT with an explicit matrix, or through ODL and ASTRA's CPU projector, which compute in single precision."""
    return _rays(backend, int(rng.integers(8)))


@lru_cache(maxsize=64)
def _odl(dtype: str, which: int) -> Measured:
    odl: Any = import_module("odl")
    rng = np.random.default_rng([which, dtype == "float32"])
    image = small(rng, 4, 7)
    n, shape = math.prod(image), image[1:]
    space = odl.uniform_discr([0, 0], [float(s) for s in shape], shape, dtype=dtype)
    if which % 3 == 0:
        gradient = odl.Gradient(space, pad_mode="symmetric")
        return Measured(ODLOperator(gradient), np.concatenate(matrices.difference_matrices(shape)), image)
    m = int(rng.integers(n, 2 * n)) if which % 3 == 1 else max(n // 2, 1)
    matrix = _single(rng.normal(size=(m, n)) / math.sqrt(n) * 10.0 ** rng.uniform(-2, 2)).astype(dtype)
    return Measured(ODLOperator(_odl_matrix(matrix, space, odl.rn(m, dtype=dtype))), matrix.astype(LD), image)


def _odl_matrix(matrix: Array, domain: Any, range_: Any) -> Any:
    """A matrix that ODL multiplies with in the type of its spaces (cells of volume one)."""
    odl: Any = import_module("odl")

    class Dense(odl.Operator):
        def __init__(self, matrix: Array, domain: Any, range_: Any) -> None:
            super().__init__(domain=domain, range=range_, linear=True)
            self.matrix = matrix

        def _call(self, x: Any) -> Any:
            return self.range.element((self.matrix @ np.asarray(x.asarray()).reshape(-1)).reshape(self.range.shape))

        @property
        def adjoint(self) -> Any:
            return Dense(self.matrix.T, self.range, self.domain)

    return Dense(matrix, domain, range_)


def from_odl(dtype: str, rng: Rng) -> Measured:
    """Operators of ODL between spaces of single or of double precision."""
    return _odl(dtype, int(rng.integers(12)))


def mri(rng: Rng) -> Measured:
    """Samples of k-space, one coil or several."""
    height, width = (int(n) for n in rng.integers(4, 8, 2))
    sampled = rng.random((height, width)) < rng.uniform(0.3, 1.1)
    coils = int(rng.integers(1, 4))
    maps = np.ones((1, height, width), dtype=complex)
    if coils > 1:
        maps = rng.normal(size=(coils, height, width)) + 1j * rng.normal(size=(coils, height, width))
    operator = CartesianMRI(torch.from_numpy(sampled), torch.from_numpy(maps) if coils > 1 else None)
    matrix = matrices.fourier_samples(sampled, maps.astype(np.clongdouble))
    return Measured(operator, matrix, (2, height, width))


def algebra(rng: Rng) -> Measured:
    """Operators made of others: products, transposes, sums, multiples, weights and stacks."""
    of = OPERATORS[str(rng.choice(["blur", "mask", "differences", "own_matrix", "odl_single"]))](rng)
    a, m, image = of.operator, of.matrix, of.image
    kept = rng.random(image) < rng.uniform(0.5, 1)
    part, factor = Mask(torch.from_numpy(kept)), float(_single(rng.normal(size=1))[0])
    projection = np.diag(kept.reshape(-1).astype(LD))
    weights = _single(rng.uniform(0.3, 2, a.range_shape))
    made: dict[str, tuple[LinearOperator, Array]] = {
        "product": (a @ part, m @ projection),
        "normal": (a.T @ a, m.T @ m),
        "sum": (a + factor * (a @ part), m + factor * (m @ projection)),
        "weights": (torch.from_numpy(weights) * a, weights.reshape(-1, 1).astype(LD) * m),
        "stack": (stack([a, -factor * part]), np.concatenate([m, -factor * projection])),
    }
    operator, matrix = made[str(rng.choice(list(made)))]
    return Measured(operator, matrix, image)


OPERATORS: dict[str, Callable[[Rng], Measured]] = {
    "identity": identity,
    "blur": blur,
    "mask": mask,
    "differences": differences,
    "own_matrix": own_matrix,
    "ray_matrix": partial(rays, "matrix"),
    "ray_odl": partial(rays, "odl"),
    "odl_single": partial(from_odl, "float32"),
    "odl_double": partial(from_odl, "float64"),
    "mri": mri,
    "algebra": algebra,
}

"""Random problems: an operator, a fidelity and a regularizer of the project, and the same as matrices and formulas."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.certified import formulas
from benchmarks.certified.newton import LD, Array, Composed, Energy, Term, extended, kullback_leibler, quadratic, ridge
from models.convex_ridge import ConvexRidge, WeaklyConvexRidge
from models.fields_of_experts import FieldsOfExperts
from models.icnn import ICNN
from models.total_variation import TotalVariation
from recon.lower_level import DataFidelity, KullbackLeibler, Regularizer, SquaredL2, WeightedSquaredL2
from recon.operators import Blur, CartesianMRI, FiniteDifferences, Identity, LinearOperator, Mask

Shape = tuple[int, int, int]
Rng = np.random.Generator
DTYPES = {"float32": torch.float32, "float64": torch.float64}


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


# --- operators -------------------------------------------------------------------------------------------------------


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


def small(rng: Rng, low: int = 4, high: int = 9) -> Shape:
    """An image of one channel."""
    return 1, int(rng.integers(low, high + 1)), int(rng.integers(low, high + 1))


def identity(rng: Rng) -> Measured:
    """Denoising."""
    image = small(rng)
    return Measured(Identity(), np.eye(math.prod(image), dtype=LD), image)


def blur(rng: Rng) -> Measured:
    """A random kernel or a Gaussian, wrapped around or mirrored."""
    image, reflect = small(rng), bool(rng.integers(2))
    sides = rng.choice([1, 3, 5], 2)
    kernel = rng.normal(size=sides) if rng.integers(2) else np.abs(rng.normal(size=sides))
    kernel = kernel / np.abs(kernel).sum()
    operator = Blur(torch.from_numpy(kernel), image, "reflect" if reflect else "periodic")
    return Measured(operator, formulas.blur(kernel.astype(LD), image[1:], reflect), image)


def mask(rng: Rng) -> Measured:
    """Inpainting."""
    image = small(rng)
    kept = rng.random(image) < rng.uniform(0.3, 1)
    return Measured(Mask(torch.from_numpy(kept)), np.diag(kept.reshape(-1).astype(LD)), image)


def differences(rng: Rng) -> Measured:
    """Finite differences as data."""
    image, periodic = small(rng), bool(rng.integers(2))
    operator = FiniteDifferences(image, "periodic" if periodic else "neumann")
    return Measured(operator, np.concatenate(formulas.difference_matrices(image[1:], periodic)), image)


def _single(matrix: Array) -> Array:
    """The nearest matrix of single-precision numbers: the same in all types."""
    return matrix.astype(np.float32).astype(np.float64)


def own_matrix(rng: Rng) -> Measured:
    """A dense matrix of random condition and size."""
    image = small(rng, 4, 7)
    n = math.prod(image)
    m = int(rng.integers(max(n // 2, 1), 2 * n))
    matrix = rng.normal(size=(m, n)) * np.exp(rng.uniform(-2, 2, (1, n))) * 10.0 ** rng.uniform(-3, 3)
    matrix = _single(matrix)
    return Measured(OwnMatrix(matrix, image), matrix.astype(LD), image)


def _columns(apply: Callable[[Tensor], Tensor], image: Shape) -> Array:
    """The matrix of a linear map that has no formula of its own: one image of a single pixel after the other."""
    n = math.prod(image)
    units = torch.eye(n, dtype=torch.float64).view(n, *image)
    return np.concatenate([extended(apply(u[None])).reshape(1, -1) for u in units]).T.copy()


@lru_cache(maxsize=64)
def _rays(backend: str, which: int) -> Measured:
    from recon.operators import FanBeam, ParallelBeam, RayTransform

    rng = np.random.default_rng([which, 77])
    size, views = int(rng.integers(5, 9)), int(rng.integers(3, 9))
    pixel = float(rng.uniform(0.3, 3))
    geometry: Any
    if which % 2:
        geometry = ParallelBeam.equispaced((size, size), pixel, views)
    else:
        geometry = FanBeam.equispaced((size, size), pixel, views, source_distance=40.0, detector_distance=20.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        operator = RayTransform(geometry, backend=backend, cache=False)  # type: ignore[arg-type]
    # entries are lengths that ASTRA computes; a single pixel of value one shows them without another rounding
    return Measured(operator, _columns(operator, (1, size, size)), (1, size, size))


def ray_matrix(rng: Rng) -> Measured:
    """CT with an explicit matrix."""
    return _rays("matrix", int(rng.integers(8)))


def ray_odl(rng: Rng) -> Measured:
    """CT through ODL and ASTRA's CPU projector, which compute in single precision."""
    return _rays("odl", int(rng.integers(6)))


@lru_cache(maxsize=64)
def _odl(single: bool, which: int) -> Measured:
    import odl

    from recon.operators.odl_adapter import ODLOperator

    rng = np.random.default_rng([which, int(single)])
    dtype = "float32" if single else "float64"
    image = small(rng, 4, 7)
    n = math.prod(image)
    shape = image[1:]
    space = odl.uniform_discr([0, 0], [float(s) for s in shape], shape, dtype=dtype)
    if which % 3 == 0:
        operator = odl.Gradient(space, pad_mode="symmetric")
        matrix = np.concatenate(formulas.difference_matrices(shape))
    else:
        m = int(rng.integers(n, 2 * n)) if which % 3 == 1 else max(n // 2, 1)
        dense = _single(rng.normal(size=(m, n)) / math.sqrt(n) * 10.0 ** rng.uniform(-2, 2))
        operator, matrix = _odl_matrix(dense.astype(dtype), space, odl.rn(m, dtype=dtype)), dense.astype(LD)
    return Measured(ODLOperator(operator), matrix, image)


def _odl_matrix(matrix: Array, domain: Any, range_: Any) -> Any:
    import odl

    class Dense(odl.Operator):  # type: ignore[misc]
        """A matrix that ODL multiplies with in the type of its spaces (cells of volume one)."""

        def __init__(self, matrix: Array, domain: Any, range_: Any) -> None:
            super().__init__(domain=domain, range=range_, linear=True)
            self.matrix = matrix

        def _call(self, x: Any) -> Any:
            return self.range.element((self.matrix @ np.asarray(x.asarray()).reshape(-1)).reshape(self.range.shape))

        @property
        def adjoint(self) -> Any:
            return Dense(self.matrix.T, self.range, self.domain)

    return Dense(matrix, domain, range_)


def odl_single(rng: Rng) -> Measured:
    """Operators of ODL between spaces of single precision."""
    return _odl(True, int(rng.integers(12)))


def odl_double(rng: Rng) -> Measured:
    """Operators of ODL between spaces of double precision."""
    return _odl(False, int(rng.integers(12)))


def mri(rng: Rng) -> Measured:
    """Samples of k-space, one coil or several."""
    height, width = (int(n) for n in rng.integers(4, 8, 2))
    sampled = rng.random((height, width)) < rng.uniform(0.3, 1.1)
    coils = int(rng.integers(1, 4))
    maps = np.ones((1, height, width), dtype=complex)
    if coils > 1:
        maps = rng.normal(size=(coils, height, width)) + 1j * rng.normal(size=(coils, height, width))
    operator = CartesianMRI(torch.from_numpy(sampled), torch.from_numpy(maps) if coils > 1 else None)
    matrix = formulas.fourier_samples(sampled, maps.astype(np.clongdouble))
    return Measured(operator, matrix, (2, height, width))


OPERATORS: dict[str, Callable[[Rng], Measured]] = {
    "identity": identity,
    "blur": blur,
    "mask": mask,
    "differences": differences,
    "own_matrix": own_matrix,
    "ray_matrix": ray_matrix,
    "ray_odl": ray_odl,
    "odl_single": odl_single,
    "odl_double": odl_double,
    "mri": mri,
}


# --- regularizers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Regular:
    """A regularizer of the project, its formula for any parameters, and its modulus of convexity."""

    regularizer: Regularizer
    build: Callable[[formulas.Parameters], Term]
    concavity: float = 0.0
    name: str = field(default="")

    @property
    def term(self) -> Term:
        """The formula at the current parameters."""
        return self.build(formulas.as_parameters(self.regularizer))


def _randomize(rng: Rng, module: Regularizer, spread: float) -> None:
    with torch.no_grad():
        for p in module.parameters():
            p += spread * torch.from_numpy(np.asarray(rng.normal(size=tuple(p.shape)))).to(p)


def total_variation(rng: Rng, image: Shape, dtype: torch.dtype, scale: float = 1.0) -> Regular:
    """Weights and smoothings over several orders of magnitude; both are in units of the image."""
    nu = math.log(scale) + rng.uniform(math.log(3e-3), math.log(3.0))
    tv = TotalVariation(math.log(scale) + rng.uniform(-7, 0), nu).to(dtype)
    return Regular(tv, lambda theta: formulas.total_variation(theta, image), name="tv")


def experts(rng: Rng, image: Shape, dtype: torch.dtype, scale: float = 1.0, rho: float = 0.0) -> Regular:
    """Fields of Experts."""
    potential = str(rng.choice(["smoothed_l1", "log_cosh"] + ([] if rho else ["student_t"] * bool(rng.random() < 0.3))))
    unit, smallest = bool(rng.integers(2)), float(rng.choice([0.0, 1e-3 * scale]))
    size = int(rng.integers(2, 4))
    foe = FieldsOfExperts(
        filters=int(rng.integers(1, min(5, size**2))),
        size=size,
        potential=potential,
        log_scale=math.log(scale) + rng.uniform(-1, 1),
        log_weight=rng.uniform(-6, 0),
        log_width=math.log(scale) + rng.uniform(-4, 1),
        smallest_width=smallest,
        weak_convexity=rho,
        initial_filters="normal",
        unit_norm=unit,
        seed=int(rng.integers(1000)),
    ).to(dtype)
    _randomize(rng, foe, 0.2)

    def build(theta: formulas.Parameters) -> Term:
        return formulas.experts(theta, image, potential, unit, smallest, rho)

    concavity = -float(foe.convexity()) if potential == "student_t" else rho
    return Regular(foe, build, concavity, "weakly convex experts" if rho else f"experts {potential}")


def splines(rng: Rng, image: Shape, dtype: torch.dtype, scale: float = 1.0, rho: float = 0.0) -> Regular:
    """(Weakly) convex ridge regularizers."""
    unit, size = bool(rng.integers(2)), int(rng.integers(2, 4))
    spacing, unit_of = float(scale * 10 ** rng.uniform(-2, 0)), float(rng.choice([1.0, 0.3]))
    options: dict[str, Any] = {"weak_convexity": rho} if rho else {}
    kind = WeaklyConvexRidge if rho else ConvexRidge
    module = kind(
        filters=int(rng.integers(1, min(5, size**2))),
        size=size,
        knots=int(rng.integers(2, 8)),
        spacing=spacing,
        log_weight=rng.uniform(-6, 0),
        log_width=rng.uniform(-3, 1),
        initial_filters="normal",
        unit_norm=unit,
        seed=int(rng.integers(1000)),
        scale=unit_of,
        **options,
    ).to(dtype)
    _randomize(rng, module, 0.3)

    def build(theta: formulas.Parameters) -> Term:
        return formulas.splines(theta, image, unit, spacing, unit_of, rho)

    return Regular(module, build, rho, "weakly convex splines" if rho else "splines")


def network(rng: Rng, image: Shape, dtype: torch.dtype, scale: float = 1.0, huber: bool = False) -> Regular:
    """Input convex networks of one or two hidden layers."""
    layers, smooth = int(rng.integers(1, 3)), not huber and bool(rng.integers(2))
    size, inner = int(rng.integers(2, 4)), int(rng.choice([1, 1, 2]))
    if size + layers * (inner - 1) > min(image[1:]):
        inner = 1
    slope, width, mean = float(rng.choice([0.0, 0.2])), float(scale * 10 ** rng.uniform(-2, 0)), bool(rng.integers(2))
    module = ICNN(
        filters=int(rng.integers(1, 4)),
        size=size,
        layers=layers,
        inner_size=inner,
        slope=slope,
        width=width,
        activation="smooth" if smooth else "huber",
        log_scale=math.log(scale) + rng.uniform(-2, 1),
        log_weight=rng.uniform(-5, 0),
        initial_filters="normal",
        zero_mean=mean,
        seed=int(rng.integers(1000)),
    ).to(dtype)
    _randomize(rng, module, 0.2)

    def build(theta: formulas.Parameters) -> Term:
        return formulas.network(theta, image, layers, slope, width, smooth, mean)

    return Regular(module, build, name="network")


def weak(make: Callable[..., Regular]) -> Callable[..., Regular]:
    """The weakly convex relative of a regularizer."""

    def made(rng: Rng, image: Shape, dtype: torch.dtype, scale: float = 1.0) -> Regular:
        return make(rng, image, dtype, scale, float(rng.uniform(0.05, 0.99)))

    return made


REGULARIZERS: dict[str, Callable[..., Regular]] = {
    "tv": total_variation,
    "experts": experts,
    "weak experts": weak(experts),
    "splines": splines,
    "weak splines": weak(splines),
    "network": network,
}


# --- fidelities ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fitted:
    """A fidelity of the project, its formula for given data, and the smallest and largest D''."""

    fidelity: DataFidelity
    build: Callable[[Array, Array], Composed]
    bounds: tuple[float, float]


def squared(rng: Rng, shape: tuple[int, ...], y: Tensor) -> Fitted:
    """A weighted square, one weight for all data or one for each."""
    if rng.random() < 0.6:
        weight = float(rng.choice([1.0, 0.3, 17.0]))
        return Fitted(SquaredL2(weight), lambda a, z: quadratic(a, z, weight), (weight, weight))
    weights = np.exp(rng.uniform(-2, 2, shape)) * (rng.random(shape) < 0.9)
    fidelity = WeightedSquaredL2(torch.from_numpy(weights))
    flat = weights.reshape(-1).astype(LD)
    bounds = float(weights.min()), float(weights.max())
    return Fitted(fidelity, lambda a, z: quadratic(a, z, flat), bounds)


def counts(background: float, y: Tensor) -> Fitted:
    """Kullback-Leibler."""
    top = float(y.max()) / background**2
    return Fitted(KullbackLeibler(background), lambda a, z: kullback_leibler(a, z, background), (0.0, top))


@dataclass(frozen=True)
class Problem:
    """A batch of energies, in the project's form and in formulas."""

    measured: Measured
    regular: Regular
    fitted: Fitted
    y: Tensor
    truth: Tensor
    mu: float

    def energy(self, theta: formulas.Parameters | None = None) -> Energy:
        """The formulas, at other parameters if they are given."""
        a, y = self.measured.matrix, extended(self.y).reshape(len(self.y), -1)
        term = self.regular.term if theta is None else self.regular.build(theta)
        return Energy(self.fitted.build(a, y), term, ridge(self.mu, a.shape[1]))


def replaced(problem: Problem, y: Tensor) -> Problem:
    """The same with other data."""
    return replace(problem, y=y)


def regularized(problem: Problem, regular: Regular) -> Problem:
    """The same with another regularizer."""
    return replace(problem, regular=regular)


def squares_only(problem: Problem) -> Problem:
    """The same with an unweighted square as fidelity."""
    weight = float(problem.fitted.bounds[1])
    fitted = Fitted(SquaredL2(weight), lambda a, z: quadratic(a, z, weight), (weight, weight))
    return replace(problem, fitted=fitted)

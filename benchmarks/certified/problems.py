"""Random problems: an operator, a fidelity and a regularizer of the project, and the same as matrices and formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.certified import formulas
from benchmarks.certified.operators import Measured, Rng, Shape
from benchmarks.certified.terms import LD, Array, Composed, Energy, Term, extended, kullback_leibler, quadratic, ridge
from models import InitialFilters, LeakyReLU
from models.regularizers.convex_ridge import ConvexRidge, WeaklyConvexRidge
from models.regularizers.fields_of_experts import FieldsOfExperts
from models.regularizers.icnn import ICNN
from models.regularizers.multivariate import MultivariateFieldsOfExperts
from models.regularizers.total_variation import TotalVariation
from recon.lower_level import DataFidelity, KullbackLeibler, Regularizer, SquaredL2, WeightedSquaredL2
from recon.lower_level import Energy as Certified

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Regular:
    """A regularizer of the project, its formula for any parameters, and its modulus of convexity."""

    regularizer: Regularizer
    build: Callable[[formulas.Parameters], Term]
    concavity: float = 0.0
    name: str = ""


def randomize(rng: Rng, module: torch.nn.Module, spread: float) -> None:
    """Add normal numbers to all parameters."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(spread * torch.from_numpy(np.asarray(rng.normal(size=tuple(p.shape)))).to(p))


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
        unit_norm=unit,
        initial_filters=InitialFilters("normal", int(rng.integers(1000))),
    ).to(dtype)
    randomize(rng, foe, 0.2)

    def build(theta: formulas.Parameters) -> Term:
        return formulas.experts(theta, image, potential, unit, smallest, rho)

    concavity = -float(foe.convexity()) if potential == "student_t" else rho
    return Regular(foe, build, concavity, "weakly convex experts" if rho else f"experts {potential}")


def multivariate(rng: Rng, image: Shape, dtype: torch.dtype, scale: float = 1.0, rho: float = 0.0) -> Regular:
    """Fields of Experts whose potentials are functions of four responses."""
    potential = str(rng.choice(["soft_maximum", "soft_maximum", "smoothed_norm"]))
    unit, smallest = bool(rng.integers(2)), float(rng.choice([0.0, 1e-3 * scale]))
    module = MultivariateFieldsOfExperts(
        filters=4 * int(rng.integers(1, 3)),
        size=int(rng.integers(2, 4)),
        potential=potential,
        log_scale=math.log(scale) + rng.uniform(-1, 1),
        log_weight=rng.uniform(-6, 0),
        log_width=math.log(scale) + rng.uniform(-4, 1),
        smallest_width=smallest,
        weak_convexity=rho,
        unit_norm=unit,
        initial_filters=InitialFilters("normal", int(rng.integers(1000))),
    ).to(dtype)
    randomize(rng, module, 0.2)

    def build(theta: formulas.Parameters) -> Term:
        return formulas.multivariate(theta, image, potential, unit, smallest, rho)

    return Regular(module, build, rho, f"{'weakly convex ' if rho else ''}multivariate {potential}")


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
        unit_norm=unit,
        initial_filters=InitialFilters("normal", int(rng.integers(1000))),
        scale=unit_of,
        **options,
    ).to(dtype)
    randomize(rng, module, 0.3)

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
        activation=LeakyReLU(slope, width, "smooth" if smooth else "huber"),
        log_scale=math.log(scale) + rng.uniform(-2, 1),
        log_weight=rng.uniform(-5, 0),
        zero_mean=mean,
        initial_filters=InitialFilters("normal", int(rng.integers(1000))),
    ).to(dtype)
    randomize(rng, module, 0.2)

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
#: with kinds of problems of their own
GROUPED: dict[str, Callable[..., Regular]] = {"multivariate": multivariate, "weak multivariate": weak(multivariate)}


@dataclass(frozen=True)
class Fitted:
    """A fidelity of the project, its formula for given data, and the smallest and largest D''."""

    fidelity: DataFidelity
    build: Callable[[Array, Array], Composed]
    bounds: tuple[float, float]


def plain_square(weight: float) -> Fitted:
    """(w/2) ||Ax - y||^2."""
    return Fitted(SquaredL2(weight), lambda a, z: quadratic(a, z, weight), (weight, weight))


def squared(rng: Rng, shape: tuple[int, ...]) -> Fitted:
    """A weighted square, one weight for all data or one for each."""
    if rng.random() < 0.6:
        return plain_square(float(rng.choice([1.0, 0.3, 17.0])))
    weights = np.exp(rng.uniform(-2, 2, shape)) * (rng.random(shape) < 0.9)
    flat = weights.reshape(-1).astype(LD)
    bounds = float(weights.min()), float(weights.max())
    return Fitted(WeightedSquaredL2(torch.from_numpy(weights)), lambda a, z: quadratic(a, z, flat), bounds)


def counts(background: float, y: Tensor) -> Fitted:
    """Kullback-Leibler."""
    top = float(y.max()) / background**2
    return Fitted(KullbackLeibler(background), lambda a, z: kullback_leibler(a, z, background), (0.0, top))


@dataclass(frozen=True)
class Problem:
    """A batch of energies, in the project's form and in formulas; other parts by ``dataclasses.replace``."""

    measured: Measured
    regular: Regular
    fitted: Fitted
    y: Tensor
    truth: Tensor
    mu: float

    def certified(self) -> Certified:
        """The energy of the project."""
        regularizer, operator = self.regular.regularizer, self.measured.operator
        return Certified(self.y, regularizer, operator, self.fitted.fidelity, self.mu)

    def energy(self, theta: formulas.Parameters | None = None) -> Energy:
        """The formulas, at the current parameters or at others."""
        a, y = self.measured.matrix, extended(self.y).reshape(len(self.y), -1)
        theta = formulas.as_parameters(self.regular.regularizer) if theta is None else theta
        return Energy(self.fitted.build(a, y), self.regular.build(theta), ridge(self.mu, a.shape[1]))


def random_problem(
    rng: Rng,
    measured: Measured,
    make: Callable[..., Regular],
    dtype: torch.dtype,
    batch: int,
    scale: float = 1.0,
    kl: bool = False,
) -> Problem:
    """Data of random images, with noise, and mu such that the energy is strongly convex."""
    truth = rng.normal(size=(batch, *measured.image)) if rng.random() < 0.3 else rng.random((batch, *measured.image))
    truth = (np.abs(truth) if kl else truth) * scale
    clean = (measured.matrix @ truth.reshape(batch, -1).T).T.astype(np.float64)
    shape = tuple(measured.operator.range_shape or measured.image)
    background = 10.0 ** rng.uniform(-2, 2)
    y = _counted(rng, clean, background) if kl else _noisy(rng, clean, scale)
    data = torch.from_numpy(y.reshape(batch, *shape)).to(dtype)
    fitted = counts(background, data) if kl else squared(rng, shape)
    regular = make(rng, measured.image, dtype, scale)
    low, high = measured.singular_values
    needed = regular.concavity - low**2 * fitted.bounds[0]
    mu = 0.0
    if needed >= -1e-6 * high**2 * fitted.bounds[0] or rng.random() < 0.3:
        mu = max(needed, 0.0) * 1.02 + 10.0 ** rng.uniform(-4, 0) * max(high**2 * min(fitted.bounds[1], 1e8), 1e-6)
    return Problem(measured, regular, fitted, data, torch.from_numpy(truth).to(dtype), float(mu))


def _noisy(rng: Rng, clean: Array, scale: float) -> Array:
    """Noise of any strength; now and then far from all A x."""
    noise = 10.0 ** rng.uniform(-4, 0) * (np.abs(clean).mean() + 1e-300)
    y = clean + noise * rng.normal(size=clean.shape)
    return y + 10.0 ** rng.uniform(1, 4) * scale if rng.random() < 0.1 else y


def _counted(rng: Rng, clean: Array, background: float) -> Array:
    """Poisson counts over a background, often hardly any, now and then all of them nearly the background."""
    peak = 10.0 ** rng.uniform(-1, 4) * (0.01 if rng.random() < 0.5 else 1)
    clean = clean * (peak / max(float(np.abs(clean).max()), 1e-300))
    if rng.random() < 0.3:
        return background * (1 + 1e-3 * rng.normal(size=clean.shape))
    return rng.poisson(np.maximum(clean, 0) + background).astype(float)

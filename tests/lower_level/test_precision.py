"""Certificates against the true error where floating point, not mathematics, decides."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from models import InitialFilters
from models.regularizers.icnn import ICNN
from models.regularizers.total_variation import TotalVariation
from recon.bilevel import Accuracy, BilevelObjective
from recon.lower_level import FISTA, LBFGS, PDHG, Energy, KullbackLeibler, ProjectedLBFGS, Regularizer, Status
from recon.lower_level.batch import per_image_dot, per_image_norm
from recon.lower_level.precision import full_precision
from recon.lower_level.regularizer import HessianMap
from recon.lower_level.solvers.cg import conjugate_gradients
from recon.operators import Blur, LinearOperator
from tests.lower_level.problems import normal, norms, perturb, smooth_image
from tests.lower_level.saddle.saddle_problems import FieldModel


class Ridge(Regularizer):
    """R(x) = weight/2 ||x||^2."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * self.weight * x.square().flatten(1).sum(1)

    def convexity(self) -> float:
        return self.weight

    def smoothness(self) -> float:
        return self.weight


SOLVERS: dict[str, Callable[[], FISTA | LBFGS]] = {"lbfgs": LBFGS, "fista": FISTA}


class Dense(LinearOperator):
    """A matrix of random numbers that single precision can hold, in double precision; ``adjoint`` off by ``skew``."""

    def __init__(self, size: int, seed: int = 0, skew: float = 0.0) -> None:
        matrix = (normal(size, size, seed=seed, scale=0.3) + torch.eye(size, dtype=torch.float64)).float().double()
        super().__init__((1, 1, size), (1, 1, size), float(torch.linalg.matrix_norm(matrix, 2)) * (1 + 1e-12))
        self.matrix, self.skew, self.adjoint_mismatch = matrix, skew, skew

    def _forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.T

    def _adjoint(self, y: Tensor) -> Tensor:
        return y @ self.matrix * (1 + self.skew)


class SinglePrecision(Dense):
    """The same in single precision, whatever the images are: what ODL's spaces and ASTRA's GPU projectors do."""

    def unit_roundoff(self, dtype: torch.dtype) -> float:
        return max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps) / 2

    def _forward(self, x: Tensor) -> Tensor:
        return (x.float() @ self.matrix.float().T).to(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return (y.float() @ self.matrix.float()).to(y)


@pytest.mark.parametrize("solver", SOLVERS)
def test_operators_in_single_precision_under_double_precision_images(solver: str) -> None:
    for seed in range(5):
        operator, y = SinglePrecision(40, seed), normal(3, 1, 1, 40, seed=seed, scale=3.0)
        regularizer = TotalVariation(-2.0, -2.0).double()
        exact = LBFGS()(Energy(y, regularizer, Dense(40, seed), mu=0.1), 0 * y, 1e-12)
        found = SOLVERS[solver]()(Energy(y, regularizer, operator, mu=0.1), 0 * y, 1e-12)
        assert exact.converged
        true = norms(found.x - exact.x)
        assert bool((true <= found.error).all()), (true / found.error).tolist()
        assert bool((found.status == Status.PRECISION_FLOOR).all())


def test_adjoint_solves_with_an_operator_in_single_precision() -> None:
    for seed in range(5):
        operator, y = SinglePrecision(40, seed), normal(3, 1, 1, 40, seed=seed)
        regularizer, b = TotalVariation(-2.0, -2.0).double(), normal(3, 1, 1, 40, seed=seed + 9)
        energies = [Energy(y, regularizer, a, mu=0.1) for a in (operator, Dense(40, seed))]
        for accuracy in (1e-5, 1e-6, 1e-7, 1e-12):
            found = energies[0].solve_adjoint(y, b, 0 * b, accuracy, 1000)
            true = norms(b - energies[1].hessian(y)(found.w))
            assert bool((true <= found.residual_norm).all()), (true / found.residual_norm).tolist()
        assert not found.converged


def test_an_adjoint_that_is_not_quite_the_transpose_enters_the_certificate() -> None:
    """As projectors and back-projectors of different kinds are."""
    operator, exact, y = Dense(40, skew=1e-6), Dense(40), normal(3, 1, 1, 40)
    regularizer = TotalVariation(-2.0, -2.0).double()
    true = LBFGS()(Energy(y, regularizer, exact, mu=0.1), 0 * y, 1e-12).x
    found = LBFGS()(Energy(y, regularizer, operator, mu=0.1), 0 * y, 1e-9)
    distance = norms(found.x - true)
    assert float(distance.min()) > 1e-9  # what it would have claimed
    assert bool((distance <= found.error).all())
    assert not found.converged


@pytest.mark.parametrize("pixels", [1000, 127, 128, 4_000_003])
def test_norms_and_inner_products_of_single_precision_images(pixels: int) -> None:
    x = normal(2, pixels).float() + 3
    y = normal(2, pixels, seed=1).float()
    exact = x.double().square().sum(1).sqrt()
    assert float((per_image_norm(x) / exact - 1).abs().max()) < 1e-6
    assert per_image_norm(x).dtype == per_image_dot(x, y).dtype == torch.float64
    scale = exact * y.double().square().sum(1).sqrt()
    assert float(((per_image_dot(x, y) - (x.double() * y.double()).sum(1)).abs() / scale).max()) < 1e-6


@pytest.mark.parametrize("scale", [1e-30, 1e-24, 1e-20, 1e18, 1e25])
def test_norms_of_images_whose_squares_leave_the_range(scale: float) -> None:
    x = (scale * normal(2, 300)).float()
    assert float((per_image_norm(x) / x.double().square().sum(1).sqrt() - 1).abs().max()) < 1e-6
    assert float((per_image_dot(x, x) / x.double().square().sum(1) - 1).abs().max()) < 1e-6


def test_denoising_of_a_large_image_in_single_precision() -> None:
    """R = 0 and a solution that is known: the norm of the gradient is all that decides. 4 million pixels."""
    y = normal(1, 1, 2048, 2048).float() + 4
    energy = Energy(y, Ridge(0.25))
    x = y.clone()
    grad = energy.grad(x)
    true = norms(x.double() - y.double() / 1.25)  # of 1/2 (x - y)^2 + 1/8 x^2
    assert float(true) <= float((per_image_norm(grad) + energy.rounding(x, per_image_norm(grad))) / 1.25)
    assert float(per_image_norm(grad)) == pytest.approx(float(norms(0.25 * y.double())), rel=1e-6)


def test_kullback_leibler_near_the_background_in_single_precision() -> None:
    """1 - y / (z + b) with y about b cancels: what is left is less than what is subtracted. 512 images of a pixel."""
    fidelity = KullbackLeibler(100.0)
    y = (100 + normal(512, 1, 1, 1, scale=1e-4)).float()
    found = LBFGS()(Energy(y, Ridge(0.0), fidelity=fidelity, mu=1e-3), 0 * y, 1e-30)
    exact = LBFGS()(Energy(y.double(), Ridge(0.0), fidelity=fidelity, mu=1e-3), 0 * y.double(), 1e-12)
    true = norms(found.x.double() - exact.x)
    assert float(true.max()) > 1e-6
    assert bool((true <= found.error).all()), (true / found.error).max()


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1.0])
def test_gradients_of_an_icnn_in_single_precision(scale: float) -> None:
    """grad R(0) = V'q cancels by the zero mean, but in exact arithmetic only: faint images have no small errors."""
    for seed in range(5):
        regularizer = perturb(ICNN(8, 5, initial_filters=InitialFilters(seed=seed)), seed, 0.3).requires_grad_(False)
        x = (scale * smooth_image(3, 1, 16, 16, seed=seed)).float()
        energies = Energy(x, regularizer), Energy(x.double(), copy.deepcopy(regularizer).double())
        computed, exact = energies[0].grad(x), energies[1].grad(x.double())
        true = norms(computed.double() - exact)
        assert bool((true <= energies[0].rounding(x, per_image_norm(computed))).all())


def test_fourier_transforms_have_errors_that_grow_with_their_length() -> None:
    blur = Blur(torch.ones(5, 5) / 25, (1, 64, 64))
    assert blur.rounding_factor == pytest.approx(2 * math.log2(math.prod(s for s in _torus(blur))), rel=0.2)
    y = normal(2, 1, 64, 64).float() + 1
    double = copy.deepcopy(blur).double()
    regularizer = Ridge(0.25)
    x = normal(2, 1, 64, 64, seed=1).float() + 1
    energy, exact = Energy(y, regularizer, blur), Energy(y.double(), regularizer, double)
    true = norms(energy.grad(x).double() - exact.grad(x.double()))
    assert bool((true <= energy.rounding(x, per_image_norm(energy.grad(x)))).all())


def _torus(blur: Blur) -> tuple[int, ...]:
    assert blur.domain_shape is not None
    return tuple(blur.domain_shape[-2:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-42, 1e-24, 1e-170, 1e-320])
def test_images_that_underflow_are_not_certified_to_be_exact(dtype: torch.dtype, scale: float) -> None:
    y = (scale * (2 + normal(2, 1, 6, 6)).abs()).to(dtype)
    if not bool((y > 0).any()):
        pytest.skip("nothing of the data is left in this type")
    for solver in (LBFGS(), FISTA(), ProjectedLBFGS()):
        found = solver(Energy(y, Ridge(0.25)), 0 * y, 1e-300)
        # a bound of the true error, which in units of the data is not too small for double precision
        true = (found.x.double() / scale - y.double() / scale / 1.25).flatten(1).norm(dim=1)
        assert bool((true <= found.error / scale).all())
        assert bool((found.error > 0).all())


def test_parameters_in_single_precision_of_total_variation() -> None:
    """exp(theta) of a float32 theta is computed in double precision where the images are."""
    y = smooth_image(2, 1, 12, 12)
    single = TotalVariation(-1.3, -2.7)
    double = copy.deepcopy(single).double()
    found, exact = (LBFGS()(Energy(y, r), y, 1e-11) for r in (single, double))
    assert found.converged
    assert bool((norms(found.x - exact.x) <= found.error + exact.error).all())


# --- reduced precision of the hardware: what is certified assumes that of the tensors ---------------------------------


def _modes() -> tuple[str, ...]:
    backends = torch.backends
    return tuple(
        part.fp32_precision
        for part in (
            backends.cuda.matmul,
            backends.cudnn.conv,
            backends.cudnn.rnn,
            backends.mkldnn.matmul,
            backends.mkldnn.conv,
        )
    )


class _Watching(Regularizer):
    """Notes the precision that its gradients and Hessians are computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.25))
        self.register_buffer("kernel", torch.ones(1, 1, 1, 1))
        self.kernel: Tensor
        self.seen: set[tuple[str, ...]] = set()
        self.dtypes: set[torch.dtype] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add(_modes())
        z = torch.nn.functional.conv2d(x, self.kernel)
        if x.dtype == torch.float32:  # the contract looks in double precision, too
            self.dtypes.add(z.dtype)
        return 0.5 * self.weight * z.float().square().flatten(1).sum(1)

    def convexity(self) -> float:
        return float(self.weight.detach())

    def smoothness(self) -> float:
        return float(self.weight.detach())


def _hypergradient(regularizer: Regularizer, y: Tensor) -> None:
    objective = BilevelObjective(regularizer, y, y)
    accuracy = Accuracy(1e-3, 1e-3)
    objective.hypergradient(objective.evaluate(accuracy), accuracy, bound=True)


@pytest.mark.parametrize(
    "use",
    [
        lambda r, y: LBFGS()(Energy(y, r), 0 * y, 1e-3),
        lambda r, y: FISTA()(Energy(y, r), 0 * y, 1e-3),
        lambda r, y: ProjectedLBFGS()(Energy(y, r), 0 * y, 1e-3),
        lambda r, y: Energy(y, r).solve_adjoint(y, y, 0 * y, 1e-3, 100),
        _hypergradient,
    ],
    ids=["lbfgs", "fista", "projected", "adjoint", "hypergradient"],
)
def test_no_reduced_precision_where_something_is_certified(use: Callable[[Regularizer, Tensor], None]) -> None:
    regularizer, y = _Watching(), normal(2, 1, 8, 8, dtype=torch.float32)
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    outside = _modes()
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            use(regularizer, y)
            assert torch.is_autocast_enabled("cpu")
        assert _modes() == outside
    finally:
        torch.backends.cudnn.conv.fp32_precision = before
    assert regularizer.seen == {("ieee",) * 5}
    assert regularizer.dtypes == {torch.float32}


def test_primal_dual_and_linear_solvers_use_the_precision_of_the_tensors() -> None:
    seen = set()

    def product(v: Tensor, kept: Tensor | None) -> Tensor:
        seen.add(_modes())
        return 2 * v

    b = normal(2, 1, 4, 4)
    conjugate_gradients(HessianMap(product), b, 0 * b, 1e-6)
    model, y = FieldModel(6), normal(2, 1, 1, 6)
    saddle = model.saddle_point(y)
    forward = saddle.operator.__class__.__call__

    def watched(self: object, x: Tensor) -> Tensor:
        seen.add(_modes())
        return forward(self, x)  # type: ignore[arg-type]

    operator = type("Watched", (type(saddle.operator),), {"__call__": watched})
    saddle.operator.__class__ = operator
    PDHG(max_iterations=5)(saddle, *saddle.split(model.initial(y)), 1e-3)
    assert seen == {("ieee",) * 5}


def test_full_precision_is_put_back_after_an_error() -> None:
    before = _modes()

    @full_precision()
    def fails() -> None:
        assert _modes() == ("ieee",) * 5
        raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert _modes() == before

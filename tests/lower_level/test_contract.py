"""Regularizers that are none are refused, and claims that iterates refute end the certificate; true ones never do."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import ICNN, ConvexRidge, FieldsOfExperts, TotalVariation, WeaklyConvexRidge
from recon.bilevel import MAID, BilevelObjective
from recon.lower_level import (
    FISTA,
    LBFGS,
    ContractError,
    Energy,
    HessianMap,
    ProjectedLBFGS,
    Regularizer,
    Solver,
    check_contract,
)
from recon.lower_level.watch import EVERY, Watch, watch_of
from tests.lower_level.problems import normal

LIKE = torch.zeros(3, 1, 20, 18, dtype=torch.float64)


class Tikhonov(Regularizer):
    """R(x) = e^theta/2 ||x||^2, with everything analytic, and nothing wrong."""

    def __init__(self, log_weight: float = 0.0) -> None:
        super().__init__()
        self.log_weight = nn.Parameter(torch.tensor(log_weight, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * self.log_weight.exp() * x.flatten(1).square().sum(1)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return Tikhonov.forward(self, x).detach(), self.log_weight.detach().exp() * x

    def hessian(self, x: Tensor) -> HessianMap:
        return HessianMap(lambda v, kept: self.log_weight.detach().exp() * v)

    def parameter_vjp(self, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        return (self.log_weight.detach().exp() * (x * w).sum(),)

    def convexity(self) -> float:
        return float(self.log_weight.detach().exp())

    smoothness = convexity


class Automatic(Tikhonov):
    """The same with ``forward`` alone."""

    value_and_grad = Regularizer.value_and_grad
    hessian = Regularizer.hessian
    parameter_vjp = Regularizer.parameter_vjp


def automatic(forward: Any) -> type[Regularizer]:
    return type("Own", (Automatic,), {"forward": forward})


def analytic(**methods: Any) -> type[Regularizer]:
    return type("Own", (Tikhonov,), methods)


def squares(self: Any, x: Tensor) -> Tensor:
    return self.log_weight.exp() * x.flatten(1).square().sum(1)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            automatic(lambda s, x: squares(s, x).sum()),
            r"Own: its value at images \(2, 1, 16, 16\) is .* shape \(\), but",
        ),
        (automatic(lambda s, x: squares(s, x)[:, None]), r"shape \(2, 1\), but must be one number for each"),
        (automatic(lambda s, x: float(squares(s, x).sum())), r"is a float, but .* and a tensor: sum over all axes"),
        (automatic(lambda s, x: squares(s, x).float()), r"at images of torch\.float64 are torch\.float32"),
        (
            automatic(lambda s, x: squares(s, x) * math.nan),
            r"values at random images between 0 and 1 are not all finite",
        ),
        (automatic(lambda s, x: squares(s, x) / 0), r"not all finite"),
        (automatic(lambda s, x: squares(s, x.detach())), r"its value does not depend on the image"),
        (automatic(lambda s, x: squares(s, x).detach()), r"its value does not depend on the image differentiably"),
        (automatic(lambda s, x: s.log_weight + squares(s, 0 * x.detach())), r"its value does not depend on the image"),
        (automatic(lambda s, x: squares(s, x - x.mean())), r"the value of an image depends on the others of its batch"),
        (automatic(lambda s, x: squares(s, nn.functional.dropout(x))), r"two evaluations at the same images differ"),
        (automatic(lambda s, x: 0.5 * x.flatten(1).square().sum(1)), r"does not depend on its parameters"),
        (automatic(lambda s, x: Tikhonov.forward(s, x) + s.log_weight - s.log_weight.detach()), None),
        (automatic(lambda s, x: (1 + 1e-30 * s.log_weight) * x.flatten(1).sqrt().sum(1)), r"smoothness|convexity"),
        (analytic(value_and_grad=lambda s, x: (squares(s, x).detach(), x)), r"own value differs from that of forward"),
        (
            analytic(value_and_grad=lambda s, x: (s(x).detach(), 1.001 * x)),
            r"own gradient differs from that of forward",
        ),
        (analytic(value_and_grad=lambda s, x: (s(x).detach(), x.float())), r"the gradient is torch\.float32"),
        (analytic(value_and_grad=lambda s, x: (s(x).detach(), x[:1])), r"of shape \(1, 1, 16, 16\), but must be as"),
        (analytic(hessian=lambda s, x: HessianMap(lambda v, k: 2 * v)), r"own Hessian differs"),
        (analytic(hessian=lambda s, x: HessianMap(lambda v, k: v[0])), r"products with its Hessian are not"),
        (analytic(hessian=lambda s, x: HessianMap(lambda v, k: v / 0)), r"its Hessian at random .* not all finite"),
        (analytic(parameter_vjp=lambda s, x, w: (-(x * w).sum(),)), r"own derivative in the parameters differs"),
        (analytic(parameter_vjp=lambda s, x, w: ()), r"parameter_vjp does not return a tensor like each of its 1"),
        (analytic(convexity=lambda s: math.nan), r"convexity\(\) is nan"),
        (analytic(convexity=lambda s: math.inf), r"convexity\(\) is inf"),
        (analytic(convexity=lambda s: 1.1), r"smoothness\(\) is 1\.0, but must be at least 0 and convexity\(\) = 1\.1"),
        (
            analytic(convexity=lambda s: 1.1, smoothness=lambda s: 2.0),
            r"claims convexity\(\) = 1\.1, but .* by 1 times",
        ),
        (
            analytic(convexity=lambda s: 0.0, smoothness=lambda s: 0.9),
            r"claims smoothness\(\) = 0\.9, but .* by 1 times",
        ),
        (analytic(smoothness=lambda s: -1.0, convexity=lambda s: -2.0), r"smoothness\(\) is -1"),
        (analytic(rounding_gain=lambda s: math.nan), r"rounding_gain\(\) is nan"),
        (Tikhonov, None),
        (Automatic, None),
    ],
)
def test_what_is_no_regularizer(kind: type[Regularizer], message: str | None) -> None:
    if message is None:
        check_contract(kind(), LIKE)
        return
    with pytest.raises(ContractError, match=message):
        check_contract(kind(), LIKE)
    if not math.isinf(float(torch.as_tensor(kind()(LIKE + 0.5)).max())):  # which methods refuse themselves
        with pytest.raises(ContractError, match=message):  # before any training
            BilevelObjective(kind(), LIKE[:, :, :16, :16] + 0.5, LIKE[:, :, :16, :16])


def test_a_scalar_is_refused_by_energies_too() -> None:
    regularizer = automatic(lambda s, x: squares(s, x).sum())()
    with pytest.raises(ContractError, match=r"Own: its value .* is torch\.float64 of shape \(\), .* shape \(3,\)"):
        LBFGS()(Energy(LIKE, regularizer), LIKE, 1e-3)


def test_regularizers_for_images_of_one_size_only() -> None:
    weight = normal(20, 18, seed=1).abs()
    kind = automatic(lambda s, x: 0.5 * s.log_weight.exp() * (weight * x.square()).flatten(1).sum(1))
    own = type("Sized", (kind,), {"convexity": lambda s: 0.0, "smoothness": lambda s: float(weight.max())})
    check_contract(own(), LIKE)
    with pytest.raises(RuntimeError, match="size of tensor"):  # its own words
        check_contract(own(), LIKE[:, :, :17])


def test_values_that_overflow_are_left_to_the_method() -> None:
    with pytest.raises(ContractError, match="not all finite"):
        check_contract(TotalVariation(800.0).double(), LIKE)
    check_contract(TotalVariation(800.0).double(), LIKE, overflow=True)


# --- along the iterates ----------------------------------------------------------------------------------------------


class Hidden(Automatic):
    """R(x) = sum phi(x) with phi'' = ``below`` for x < 3, and ``above`` beyond: both checks at [0, 1] see the first."""

    def __init__(self, below: float, above: float, claims: tuple[float, float]) -> None:
        super().__init__()
        self.below, self.above, self.claims = below, above, claims

    def forward(self, x: Tensor) -> Tensor:
        beyond = (x - 3).clamp_min(0)
        value = 0.5 * self.below * x.square() + 0.5 * (self.above - self.below) * beyond.square()
        return self.log_weight.exp() * value.flatten(1).sum(1)

    def convexity(self) -> float:
        return self.claims[0]

    def smoothness(self) -> float:
        return self.claims[1]


SOLVERS = [LBFGS(), LBFGS(precondition=False), FISTA(), FISTA(backtracking=True), ProjectedLBFGS()]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(
    ("regularizer", "message"),
    [
        (Hidden(0.2, -0.5, (0.0, 1.0)), r"Hidden claims convexity\(\) = 0, but between two images .* by -0\.5 times"),
        (Hidden(0.2, -0.5, (-0.4, 1.0)), r"Hidden claims convexity\(\) = -0\.4, but"),
        (Hidden(0.2, 0.0, (0.2, 1.0)), r"Hidden claims convexity\(\) = 0\.2, but"),
        (
            Hidden(0.2, 3.0, (0.0, 1.0)),
            r"Hidden claims smoothness\(\) = 1, but between two images .* by [123]\.?\d* times",
        ),
    ],
)
def test_iterates_refute_claims(solver: Solver, regularizer: Hidden, message: str, dtype: torch.dtype) -> None:
    own = Hidden(regularizer.below, regularizer.above, regularizer.claims).to(dtype)
    check_contract(own, LIKE.to(dtype))  # which random images between 0 and 1 cannot refute
    y = (5 + 0.3 * normal(2, 1, 6, 7, seed=3)).to(dtype)
    with pytest.raises(ContractError, match=message):
        solver(Energy(y, own), y, 1e-3)


def test_training_ends_by_name() -> None:
    regularizer = Hidden(0.2, -0.5, (0.0, 1.0))
    clean = 5 + 0.3 * normal(2, 1, 6, 7, seed=3)
    objective = BilevelObjective(regularizer, clean, clean + 0.1 * normal(2, 1, 6, 7, seed=4))
    step: Any = MAID(objective.params).step
    with pytest.raises(ContractError, match="Hidden claims convexity"):
        step(objective=objective)


class Steep(Automatic):
    """Steep, and nothing claimed but convexity: rounding errors of unknown size."""

    def forward(self, x: Tensor) -> Tensor:
        return self.log_weight.exp() * torch.sqrt(x.diff(dim=-1).square() + 1e-8).flatten(1).sum(1)

    def convexity(self) -> float:
        return 0.0

    def smoothness(self) -> float:
        return math.inf


def perturbed(regularizer: Regularizer) -> Regularizer:
    torch.manual_seed(0)
    with torch.no_grad():
        for p in regularizer.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return regularizer


TRUE: list[Any] = [
    lambda: TotalVariation(-2.0, -6.0),
    lambda: perturbed(FieldsOfExperts(4, size=3)),
    lambda: perturbed(FieldsOfExperts(4, size=3, weak_convexity=0.5)),
    lambda: perturbed(ConvexRidge()),
    lambda: perturbed(WeaklyConvexRidge()),
    lambda: perturbed(ICNN()),
    lambda: Hidden(-0.5, -0.5, (-0.5, 0.5)),  # tight claims
    lambda: Hidden(1e-9, 2.0, (0.0, 2.0)),
    lambda: Steep(-1.0),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("make", TRUE)
def test_no_false_alarms(make: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pair of iterates is compared, down to the floor of the precision, large images and small ones."""
    monkeypatch.setattr(Watch, "due", lambda self: True)
    regularizer = make().to(dtype)
    check_contract(regularizer, LIKE.to(dtype))
    for scale, offset in ((1.0, 0.5), (1e-3, 0.0), (1e-2, 1e3), (1e4, 0.0)):
        y = (offset + scale * normal(2, 1, 16, 15, seed=5)).to(dtype)
        for solver in (LBFGS(max_iterations=60), FISTA(max_iterations=60), ProjectedLBFGS(max_iterations=60)):
            found = solver(Energy(y, regularizer, mu=0.3), torch.zeros_like(y), 1e-12 * scale)
            again = solver(Energy(y, regularizer, mu=0.3), found.x, 1e-12 * scale)
            assert torch.isfinite(again.x).all()


def test_spot_checks_are_rare_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    regularizer, y = TotalVariation(-2.0).double(), normal(2, 1, 8, 8, seed=6)
    compared, evaluated = 0, 0
    compare = Watch.compare

    def counted(self: Watch, *args: Any) -> None:
        nonlocal compared
        compared += 1
        compare(self, *args)

    monkeypatch.setattr(Watch, "compare", counted)
    first = LBFGS()(Energy(y, regularizer), torch.zeros_like(y), 1e-8)
    assert compared >= 1  # at the first two gradients
    for seed in range(100):
        y = normal(2, 1, 8, 8, seed=seed)
        LBFGS()(Energy(y, regularizer), torch.zeros_like(y), 1e-8)
    evaluated = watch_of(regularizer).count
    assert evaluated > 4 * EVERY
    assert compared <= 6 + 1.1 * evaluated / EVERY
    monkeypatch.setattr(Watch, "due", lambda self: False)
    second = LBFGS()(Energy(normal(2, 1, 8, 8, seed=6), regularizer), torch.zeros_like(y), 1e-8)
    assert torch.equal(first.x, second.x)
    assert torch.equal(first.error, second.error)

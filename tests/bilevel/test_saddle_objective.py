"""Upper-level methods on a saddle-point lower level: certified intervals, MAID, checkpoints, counts, bad input."""

from __future__ import annotations

import functools
import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recon.bilevel import (
    MAID,
    Accuracy,
    AccuracySchedule,
    CertifiedProposals,
    InexactAdam,
    NegativePSNR,
    Piggyback,
    Progress,
    PublishedMAID,
    SaddleObjective,
)
from recon.lower_level import (
    PDHG,
    FairNorm,
    HuberNorm,
    NotStronglyConvexError,
    SaddleMap,
    SaddleModel,
    SaddlePoint,
    SmoothedNorm,
    Squared,
    Status,
)
from recon.operators import FiniteDifferences, LinearOperator
from tests.lower_level.problems import normal, smooth_image
from tests.lower_level.saddle.saddle_problems import FilterModel, MatrixMap

SHAPE = (1, 6, 7)


class TotalVariationModel(SaddleModel):
    """Denoising with e^theta_1 sum sqrt(|Dx|^2 + nu^2), or with a Huber norm of weight e^theta_1."""

    def __init__(self, smooth: bool = True, shape: tuple[int, int, int] = SHAPE) -> None:
        super().__init__()
        self.smooth, self.image_shape = smooth, shape
        self.log_weight = nn.Parameter(torch.tensor(-4.0, dtype=torch.float64))
        self.log_width = nn.Parameter(torch.tensor(-2.0, dtype=torch.float64), requires_grad=smooth)

    def saddle_point(self, y: Tensor) -> SaddlePoint:
        k = SaddleMap(FiniteDifferences(self.image_shape))
        field, weight = (2, *self.image_shape[1:]), self.log_weight.exp()
        f = SmoothedNorm(field, weight, self.log_width.exp()) if self.smooth else HuberNorm(field, weight, 0.3)
        return SaddlePoint(k, Squared(k.domain_size, 1.0, y.flatten(1)), f, self.image_shape, check=False)


def objective(smooth: bool = True, **options: Any) -> SaddleObjective:
    target = 0.5 + 0.3 * smooth_image(3, *SHAPE, seed=3)
    return SaddleObjective(TotalVariationModel(smooth), target, target + normal(3, *SHAPE, scale=0.15), **options)


def exact_loss(of: SaddleObjective) -> float:
    fresh = SaddleObjective(of.model, of.target, of.y, of.loss)
    at = fresh.evaluate(Accuracy(1e-9, 1.0), None, goal_oriented=False)
    assert bool((at.status == Status.CONVERGED).all())
    return at.value


@pytest.mark.parametrize("second", [True, False])
@pytest.mark.parametrize("kind", ["smoothed", "huber", "matrix", "psnr"])
def test_intervals_contain_the_exact_loss(kind: str, second: bool) -> None:
    if kind == "matrix":
        model = FilterModel((5, 4), matrix=normal(7, 20, seed=4, scale=0.3))
        of = SaddleObjective(model, normal(3, 1, 5, 4), normal(3, 7, seed=1))
    else:
        of = objective(kind != "huber", loss=NegativePSNR() if kind == "psnr" else None)
    f = exact_loss(of)
    lengths = []
    for accuracy in (Accuracy(0.3, 0.3), Accuracy(1e-2, 1e-2), Accuracy(1e-4, 1e-4)):
        at = of.evaluate(accuracy, None, second)
        assert at.lower - 1e-9 <= f <= at.upper + 1e-9
        assert bool((at.error <= accuracy.solution).all())
        lengths.append(at.upper - at.lower)
    if kind != "huber" and second:  # of second order
        assert at.satisfies(accuracy)
        first = of.evaluate(accuracy, None, goal_oriented=False)
        assert lengths[-1] <= 0.1 * (first.upper - first.lower)


@pytest.mark.parametrize(("method", "smooth"), [(MAID, True), (MAID, False), (PublishedMAID, True)])
def test_maid_runs_unchanged(method: type[MAID], smooth: bool) -> None:
    """Intervals hold the exact loss, accepted steps decrease it, and there are such steps."""
    of = objective(smooth)
    optimizer = method(of.params, lr=0.3)
    first = before = exact_loss(of)
    accepted = 0
    for _ in range(6):
        record = optimizer.step(objective=of)
        after = exact_loss(of)
        assert record.lower - 1e-9 <= after <= record.upper + 1e-9
        assert record.evaluations == of.evaluations
        if record.progress is Progress.ACCEPTED:
            assert after < before
            accepted += 1
        before = after
    assert accepted >= 4
    assert before < (0.8 if method is MAID else 0.999) * first


@pytest.mark.parametrize("smooth", [True, False])
def test_certified_proposals_run_unchanged(smooth: bool) -> None:
    of = objective(smooth)
    method = CertifiedProposals(of.params, functools.partial(InexactAdam, lr=0.2, batch_size=2))
    first = before = exact_loss(of)
    for _ in range(4):
        record = method.step(objective=of)
        after = exact_loss(of)
        assert record.lower - 1e-9 <= after <= record.upper + 1e-9
        assert after < before if record.progress is Progress.ACCEPTED else after == pytest.approx(before, rel=1e-6)
        before = after
    assert before < 0.8 * first


def test_descent_check_with_the_bound_of_piggyback() -> None:
    of = objective()
    record = PublishedMAID(of.params, schedule=AccuracySchedule(descent_check=True)).step(objective=of)
    assert record.progress is Progress.ACCEPTED
    assert 0 < record.omega <= 0.5 * record.gradient_norm * 2


def test_resume_is_bit_identical() -> None:
    def run(steps: int, checkpoint: bytes | None) -> tuple[SaddleObjective, MAID, list[Any]]:
        of = objective()
        optimizer = MAID(of.params)
        if checkpoint is not None:
            state = torch.load(io.BytesIO(checkpoint), weights_only=True)
            of.model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            of.load_state_dict(state["objective"])
        return of, optimizer, [optimizer.step(objective=of) for _ in range(steps)]

    of, _, records = run(4, None)
    half, half_optimizer, _ = run(2, None)
    buffer = io.BytesIO()
    parts = {"model": half.model, "optimizer": half_optimizer, "objective": half}
    torch.save({k: v.state_dict() for k, v in parts.items()}, buffer)
    resumed, _, rest = run(2, buffer.getvalue())
    assert rest == records[2:]
    for a, b in zip(of.params, resumed.params, strict=True):
        assert torch.equal(a, b)
    assert of.evaluations == resumed.evaluations


@pytest.mark.parametrize("iterations", [None, 30])
def test_mini_batches_at_fixed_accuracy_and_for_a_fixed_number_of_iterations(iterations: int | None) -> None:
    of = objective(piggyback=Piggyback(iterations=iterations))
    optimizer = InexactAdam(of.params, lr=0.2, batch_size=2, solution_accuracy=1e-2, adjoint_accuracy=1e-2)
    first = exact_loss(of)
    for _ in range(4):
        before = of.evaluations
        optimizer.step(objective=of)
        if iterations is not None:  # 30 steps of two evaluations, as many at the start, and two for the residual
            assert of.evaluations - before == pytest.approx(2 * 30 + 2 + 2)
    assert exact_loss(of) < 0.9 * first


def test_counts_every_product_of_the_lower_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is counted is at least what was computed with K, and no more than a few evaluations above it."""
    count = [0, 0]
    forward, transpose = SaddleMap.__call__, SaddleMap.transpose

    def counted_forward(self: SaddleMap, x: Tensor) -> Tensor:
        count[0] += len(x)
        return forward(self, x)

    def counted_transpose(self: SaddleMap, y: Tensor) -> Tensor:
        count[1] += len(y)
        return transpose(self, y)

    of = objective()
    monkeypatch.setattr(SaddleMap, "__call__", counted_forward)
    monkeypatch.setattr(SaddleMap, "transpose", counted_transpose)
    of.evaluate(Accuracy(1e-3, 1e-3))
    assert max(count) / 3 <= of.evaluations <= max(count) / 3 + 4


def test_chunks_and_subsets() -> None:
    accuracy = Accuracy(1e-8, 1e-8)
    whole, parts = objective(), objective(chunk_size=2)
    at, other = whole.evaluate(accuracy), parts.evaluate(accuracy)
    torch.testing.assert_close(at.x, other.x, rtol=0, atol=1e-7)
    z = [o.hypergradient(e, accuracy, bound=True) for o, e in ((whole, at), (parts, other))]
    torch.testing.assert_close(z[0].z, z[1].z, rtol=0, atol=1e-6)
    assert whole.evaluations == pytest.approx(parts.evaluations, abs=2)
    index = torch.tensor([2, 0])
    part = whole.subset(index)
    assert part.evaluations == 0
    torch.testing.assert_close(whole.image(part.evaluate(accuracy)), whole.image(at)[index], rtol=0, atol=1e-7)
    assert part.accuracy_for(at, 1e-3).solution > part.accuracy_for(at, 1e-5).solution > 0


def test_bad_input() -> None:
    target, y = torch.zeros(2, *SHAPE, dtype=torch.float64), torch.zeros(2, *SHAPE, dtype=torch.float64)
    model = TotalVariationModel()
    with pytest.raises(ValueError, match="2 and 1"):
        SaddleObjective(model, target, y[:1])
    with pytest.raises(ValueError, match="chunk_size is 0"):
        SaddleObjective(model, target, y, chunk_size=0)
    with pytest.raises(ValueError, match="data: image 0"):
        SaddleObjective(model, target, y / 0)
    with pytest.raises(ValueError, match=r"\(1, 7, 6\), not \(1, 6, 7\)"):
        SaddleObjective(model, target.transpose(2, 3), y)

    class Wrong(MatrixMap):
        def transpose(self, y: Tensor) -> Tensor:
            return -super().transpose(y)

    class WrongModel(TotalVariationModel):
        def saddle_point(self, y: Tensor) -> SaddlePoint:
            saddle = super().saddle_point(y)
            saddle.operator = Wrong(torch.ones(84, 42, dtype=torch.float64))
            return saddle

    with pytest.raises(ValueError, match="adjoint test"):
        SaddleObjective(WrongModel(), target, y)


def test_parameters_out_of_range_certify_nothing() -> None:
    """MAID takes this error of a trial point for a step that was too long."""
    of = objective()
    with torch.no_grad():
        of.model.log_weight.fill_(1e4)
    with pytest.raises(NotStronglyConvexError, match="weights of a norm are inf"):
        of.evaluate(Accuracy(1.0, 1.0))


class Pixel(SaddleModel):
    """min_x psi(x) + (mu/2) x^2 + 1/2 (k x - b)^2 for one number x, K = k."""

    def __init__(self, norm: type[SmoothedNorm], mu: float, k: float) -> None:
        super().__init__()
        self.norm, self.mu, self.k = norm, mu, k
        self.log_weight = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def saddle_point(self, y: Tensor) -> SaddlePoint:
        g = self.norm((1,), self.log_weight.exp(), 1.0, axis=None, mu=self.mu)
        return SaddlePoint(Multiple(1, self.k), g, Squared(1, 1.0, y.flatten(1)), (1, 1, 1))


class Multiple(SaddleMap):
    """K x = k x."""

    def __init__(self, size: int, k: float | Tensor) -> None:
        super().__init__(Factor(size, k))

    def like(self) -> Tensor:
        return torch.empty(0, dtype=torch.float64)


class Factor(LinearOperator):
    """x -> k x."""

    def __init__(self, size: int, k: float | Tensor) -> None:
        super().__init__((size,), (size,), abs(float(torch.as_tensor(k).detach())))
        self.k = k

    def _forward(self, x: Tensor) -> Tensor:
        return self.k * x

    _adjoint = _forward

    def tensors(self) -> list[tuple[Tensor, float]]:
        return [(self.k, 1.0)] if isinstance(self.k, Tensor) else []


@pytest.mark.parametrize("far", [1.0, 100.0, 1000.0])
@pytest.mark.parametrize("norm", [SmoothedNorm, FairNorm])
def test_intervals_hold_between_a_kink_and_far_beyond_it(norm: type[SmoothedNorm], far: float) -> None:
    """x in the smoothed kink, x^ far away: the Hessian on the way to x^ is nothing like that at x."""
    mu, k = 1e-3 / far, 0.02 / far**0.5
    slope = far / (1 + far) if norm is FairNorm else far / (1 + far**2) ** 0.5
    y = torch.full((1, 1, 1, 1), (slope + mu * far + k * k * far) / k, dtype=torch.float64)  # x^ = far
    target = torch.full_like(y, 1.01 * far)
    for limit in (1, 2, 5, 30):
        at = SaddleObjective(Pixel(norm, mu, k), target, y, solver=PDHG(limit)).evaluate(Accuracy(1e-12, 1e-10))
        exact = 0.5 * (0.01 * far) ** 2
        assert at.lower <= exact * (1 + 1e-9)
        assert at.upper >= exact * (1 - 1e-9)


class Learned(SaddleModel):
    """1/2 ||x - y||^2 + 1/2 ||k x||^2, k learned: x^ = y / (1 + k^2)."""

    def __init__(self, k: float) -> None:
        super().__init__()
        self.k = torch.nn.Parameter(torch.tensor(k, dtype=torch.float64))

    def saddle_point(self, y: Tensor) -> SaddlePoint:
        n = y[0].numel()
        return SaddlePoint(Multiple(n, self.k), Squared(n, 1.0, y.flatten(1)), Squared(n, 1.0), tuple(y.shape[1:]))


@pytest.mark.parametrize("k", [0.5, 0.1])
@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_bound_after_a_fixed_number_of_iterations_from_a_warm_start(k: float, iterations: int) -> None:
    """Y is then not the one that the residual belongs to."""
    y, target = normal(1, 1, 4, 4), normal(1, 1, 4, 4, seed=1)
    tight = Accuracy(1e-10, 1e-10)
    at = SaddleObjective(Learned(0.5), target, y).evaluate(tight)
    of = SaddleObjective(Learned(k), target, y, piggyback=Piggyback(iterations=iterations))
    for factor in (1.0, 50.0):
        found = of.hypergradient(
            of.evaluate(tight, replace(at, adjoint=at.adjoint._replace(w=factor * at.adjoint.w))), tight, bound=True
        )
        exact = float(((y / (1 + k**2) - target) * y).sum() * -2 * k / (1 + k**2) ** 2)
        assert abs(float(found.z) - exact) <= found.error * (1 + 1e-9)


@pytest.mark.parametrize("k", [1.0, 0.1, 1e-2, 1e-3])
def test_certificates_in_float32_for_data_far_larger_than_kx(k: float) -> None:
    """Rounding errors of the data count, not only those of Kx."""
    b = 1000 * normal(1, 200).float()
    for w in (3.0, 0.3):
        saddle = SaddlePoint(Multiple(200, k), Squared(200), Squared(200, w, b), (1, 200, 1), check=False)
        x = k * w * b.double() / (1 + w * k**2)
        y = w * (k * x - b.double())
        for limit in (5, 20, 200):
            found = PDHG(limit)(saddle, torch.zeros(1, 200), torch.zeros(1, 200), 1e-30)
            assert float((found.x - x).norm()) <= float(found.error)
            assert float((found.y - y).norm()) <= float(found.dual_error)

"""Upper-level methods on a saddle-point lower level: certified intervals, MAID, checkpoints, counts, bad input."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recon.bilevel import (
    MAID,
    Accuracy,
    InexactAdam,
    NegativePSNR,
    Piggyback,
    Progress,
    PublishedMAID,
    SaddleObjective,
)
from recon.lower_level import (
    HuberNorm,
    NotStronglyConvexError,
    OperatorMap,
    SaddleModel,
    SaddlePoint,
    SmoothedNorm,
    Squared,
    Status,
)
from recon.operators import FiniteDifferences
from tests.lower_level.problems import normal, smooth_image
from tests.lower_level.saddle_problems import FilterModel, MatrixMap

SHAPE = (1, 6, 7)


class TotalVariationModel(SaddleModel):
    """Denoising with e^theta_1 sum sqrt(|Dx|^2 + nu^2), or with a Huber norm of weight e^theta_1."""

    def __init__(self, smooth: bool = True, shape: tuple[int, int, int] = SHAPE) -> None:
        super().__init__()
        self.smooth, self.image_shape = smooth, shape
        self.log_weight = nn.Parameter(torch.tensor(-4.0, dtype=torch.float64))
        self.log_width = nn.Parameter(torch.tensor(-2.0, dtype=torch.float64), requires_grad=smooth)

    def saddle_point(self, y: Tensor) -> SaddlePoint:
        k = OperatorMap(FiniteDifferences(self.image_shape))
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


def test_descent_check_with_the_bound_of_piggyback() -> None:
    of = objective()
    record = PublishedMAID(of.params, descent_check=True).step(objective=of)
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
    forward, transpose = OperatorMap.__call__, OperatorMap.transpose

    def counted_forward(self: OperatorMap, x: Tensor) -> Tensor:
        count[0] += len(x)
        return forward(self, x)

    def counted_transpose(self: OperatorMap, y: Tensor) -> Tensor:
        count[1] += len(y)
        return transpose(self, y)

    of = objective()
    monkeypatch.setattr(OperatorMap, "__call__", counted_forward)
    monkeypatch.setattr(OperatorMap, "transpose", counted_transpose)
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

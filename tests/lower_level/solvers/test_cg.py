"""Conjugate gradients against dense solves: per image, truthful residuals, and the floor of single precision."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from recon.lower_level import HessianMap, Status, conjugate_gradients
from tests.lower_level.problems import normal, norms


def systems(
    batch: int, n: int, condition: list[float] | float, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, HessianMap, Tensor]:
    """Positive definite matrices with log-spaced eigenvalues in [1, condition], their map, and right-hand sides."""
    conditions = condition if isinstance(condition, list) else [condition] * batch
    q, _ = torch.linalg.qr(normal(batch, n, n, seed=seed))
    spectra = torch.stack([torch.logspace(0, math.log10(c), n, dtype=torch.float64) for c in conditions])
    a = ((q * spectra[:, None]) @ q.mT).to(dtype)

    def apply(v: Tensor, kept: Tensor | None) -> Tensor:
        return ((a if kept is None else a[kept]) @ v.flatten(1)[..., None]).view_as(v)

    return a, HessianMap(apply), normal(batch, 1, 1, n, seed=seed + 1, dtype=dtype)


def true_residual(a: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return norms(b.flatten(1).double() - (a.double() @ w.flatten(1).double()[..., None])[..., 0])


@given(
    seed=st.integers(0, 10_000),
    log_condition=st.floats(0, 5),
    log_accuracy=st.floats(-9, 1),
    known=st.booleans(),
    warm=st.booleans(),
)
def test_residual_and_solution(seed: int, log_condition: float, log_accuracy: float, known: bool, warm: bool) -> None:
    a, hessian, b = systems(3, 12, 10**log_condition, seed)
    w0 = normal(*b.shape, seed=seed + 2) if warm else torch.zeros_like(b)
    rounding = 2.0**-53 * 10**log_condition if known else math.inf
    solved = conjugate_gradients(hessian, b, w0, 10**log_accuracy, rounding=rounding)
    assert solved.converged
    truth = true_residual(a, solved.w, b)
    assert bool((truth <= 10**log_accuracy).all())
    assert bool((truth <= solved.residual_norm * (1 + 1e-9) + 1e-14).all())
    exact = torch.linalg.solve(a, b.flatten(1)[..., None])[..., 0]
    assert bool((norms(solved.w.flatten(1) - exact) <= 10**log_accuracy * (1 + 1e-6)).all())  # B >= 1
    assert bool((norms(solved.residual) <= solved.residual_norm * (1 + 1e-12)).all())


def test_every_image_stops_at_its_own_time() -> None:
    conditions = [2.0, 1e4, 50.0]
    a, hessian, b = systems(3, 40, conditions)
    accuracy = torch.tensor([1e-2, 1e-8, 1e-5])
    together = conjugate_gradients(hessian, b, torch.zeros_like(b), accuracy)
    assert bool((true_residual(a, together.w, b) <= accuracy).all())
    evaluations = together.evaluations.tolist()
    assert evaluations[0] < evaluations[2] < evaluations[1]
    for i in range(3):
        index = torch.tensor([i])
        alone = conjugate_gradients(hessian.select(index), b[index], torch.zeros_like(b[index]), float(accuracy[i]))
        assert int(alone.evaluations) == pytest.approx(evaluations[i], rel=0.1)  # rounding differs with the batch
        torch.testing.assert_close(alone.w, together.w[index], rtol=1e-6, atol=1e-8)


def test_evaluations_are_counted_per_image() -> None:
    calls = []
    _, hessian, b = systems(3, 40, [2.0, 1e3, 50.0])
    counting = HessianMap(lambda v, kept: (calls.append(len(v)), hessian._apply(v, kept))[1])
    solved = conjugate_gradients(counting, b, torch.zeros_like(b), 1e-6)
    assert int(solved.evaluations.sum()) == sum(calls)
    calls.clear()
    known = conjugate_gradients(counting, b, torch.zeros_like(b), 1e-6, residual=b, rounding=1e-13)
    assert int(known.evaluations.sum()) == sum(calls)
    assert int(known.evaluations.sum()) < int(solved.evaluations.sum())  # nothing is recomputed
    assert known.converged


def test_warm_start_at_the_solution_costs_one_product() -> None:
    a, hessian, b = systems(2, 10, 100.0)
    exact = torch.linalg.solve(a, b.flatten(1)[..., None])[..., 0].view_as(b)
    solved = conjugate_gradients(hessian, b, exact, 1e-8)
    assert solved.evaluations.tolist() == [1, 1]
    assert torch.equal(solved.w, exact)
    zero = conjugate_gradients(hessian, torch.zeros_like(b), torch.zeros_like(b), 1e-8)
    assert zero.converged
    assert float(zero.w.abs().max()) == 0
    nearby = conjugate_gradients(hessian, b, exact + 1e-4 * b, 1e-8)
    cold = conjugate_gradients(hessian, b, torch.zeros_like(b), 1e-8)
    assert int(nearby.evaluations.sum()) < int(cold.evaluations.sum())


def test_iteration_limit_is_reported() -> None:
    a, hessian, b = systems(2, 60, [1e4, 2.0])
    solved = conjugate_gradients(hessian, b, torch.zeros_like(b), 1e-8, max_iterations=25)
    assert solved.status.tolist() == [Status.ITERATION_LIMIT, Status.CONVERGED]
    assert int(solved.evaluations.max()) <= 26
    assert not solved.converged
    torch.testing.assert_close(true_residual(a, solved.w, b), solved.residual_norm, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("condition", [10.0, 1e3, 1e5])
def test_single_precision_ends_at_its_floor(condition: float, known: bool) -> None:
    a, hessian, b = systems(2, 40, condition, dtype=torch.float32)
    rounding = 2.0**-24 * condition if known else math.inf
    solved = conjugate_gradients(hessian, b, torch.zeros_like(b), 1e-12, rounding=rounding)
    assert solved.status.tolist() == [Status.PRECISION_FLOOR] * 2
    assert int(solved.evaluations.max()) < 5000  # two or three cycles, which rounding errors decide
    truth, floor = true_residual(a, solved.w, b), 2.0**-24 * condition * norms(solved.w) * 40
    assert bool((truth <= solved.residual_norm + floor).all())
    assert bool((truth <= floor).all())  # as good as it gets


@given(seed=st.integers(0, 10_000), log_condition=st.floats(0, 5.5), log_accuracy=st.floats(-5, 0))
def test_bound_of_the_gap_is_honest_in_single_precision(seed: int, log_condition: float, log_accuracy: float) -> None:
    """The reported norm is no smaller than the true residual, up to the rounding error of one product."""
    condition = 10**log_condition
    a, hessian, b = systems(4, 30, condition, seed, torch.float32)
    solved = conjugate_gradients(hessian, b, torch.zeros_like(b), 10**log_accuracy, rounding=2.0**-24 * condition)
    truth = true_residual(a, solved.w, b)
    one_product = 2.0**-24 * (condition * norms(solved.w) + norms(b))
    assert bool((truth <= solved.residual_norm + one_product).all())


def test_bad_images_do_not_spoil_the_others() -> None:
    a, hessian, b = systems(4, 20, 100.0)
    b = b.clone()
    b[1, 0, 0, 3] = math.nan
    a[3] *= -1  # not positive definite: ends without a solution, and says so
    solved = conjugate_gradients(hessian, b, torch.zeros_like(b), 1e-8)
    assert solved.status[1] == Status.NOT_FINITE
    assert solved.status[3] not in (Status.CONVERGED, -1)
    assert solved.status[[0, 2]].tolist() == [Status.CONVERGED] * 2
    keep = torch.tensor([0, 2])
    alone = conjugate_gradients(hessian.select(keep), b[keep], torch.zeros_like(b[keep]), 1e-8)
    torch.testing.assert_close(solved.w[keep], alone.w, rtol=1e-9, atol=1e-11)
    assert float(solved.residual_norm[3]) == pytest.approx(float(true_residual(a, solved.w, b)[3]))


def test_bad_accuracies_are_refused() -> None:
    _, hessian, b = systems(2, 5, 10.0)
    for bad in (0.0, -1.0, math.nan, torch.tensor([1.0, 0.0])):
        with pytest.raises(ValueError, match=r"accuracy asked for is .* but must be positive"):
            conjugate_gradients(hessian, b, b, bad)

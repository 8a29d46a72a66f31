"""PDHG: certificates against true distances, stopping image by image, and agreement with the smooth solvers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.regularizers.total_variation import TotalVariation
from recon.lower_level import (
    LBFGS,
    PDHG,
    Energy,
    Functional,
    HuberNorm,
    NotStronglyConvexError,
    SaddleMap,
    SaddleModel,
    SaddlePoint,
    SmoothedNorm,
    Squared,
    Status,
)
from recon.lower_level.saddle.problem import distances
from recon.operators import FiniteDifferences, stack
from tests.lower_level.problems import normal, smooth_image
from tests.lower_level.saddle.saddle_problems import FieldModel, FilterModel, Matrix, MatrixMap, ReLUModel, solved

SHAPE = (1, 10, 9)


def denoising(kind: str, batch: int = 3, dtype: torch.dtype = torch.float64) -> tuple[SaddlePoint, Tensor, Tensor]:
    """Total variation denoising, with the noisy images as x0 and y0 = 0."""
    y = (smooth_image(batch, *SHAPE, seed=1) + normal(batch, *SHAPE, seed=2, scale=0.1)).to(dtype)
    f: Functional = {
        "huber": lambda: HuberNorm((2, 10, 9), 0.15, 0.1),
        "sharp": lambda: HuberNorm((2, 10, 9), 0.15, 0.002),
        "smoothed": lambda: SmoothedNorm((2, 10, 9), 0.15, 0.02),
        "plain": lambda: HuberNorm((2, 10, 9), 0.15),
    }[kind]()
    saddle = SaddlePoint(SaddleMap(FiniteDifferences(SHAPE)), Squared(90, 1.0, y.flatten(1)), f, SHAPE)
    return saddle, y.flatten(1), torch.zeros(batch, 180, dtype=dtype)


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("kind", ["huber", "sharp", "smoothed", "plain"])
def test_certified_distance_on_denoising(kind: str, adaptive: bool) -> None:
    """Never below the true distance, and within a factor of 5 of it; the gap alone falls behind near the end."""
    saddle, x, y = denoising(kind)
    best = PDHG(20_000)(saddle, x, y, 1e-5 if kind == "plain" else 1e-10)
    for accuracy in (1e-1, 1e-2) if kind == "plain" else (1e-1, 1e-2, 1e-4):
        found = PDHG(20_000, adaptive)(saddle, x, y, accuracy)
        assert found.converged
        assert bool((found.error <= accuracy).all())
        distance = (found.x - best.x).norm(dim=1)
        assert bool((distance <= found.error + best.error).all())
        if kind == "plain":
            assert bool(torch.isinf(found.dual_error).all())
            assert accuracy < 1e-2 or bool((found.error <= 50 * distance).all())
        else:
            assert bool((found.error <= 5 * distance).all())
            distance = (found.y - best.y).norm(dim=1)
            assert bool((distance <= found.dual_error + best.dual_error).all())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["filters", "nonsmooth", "matrix", "field", "relu"])
def test_certified_distances_from_random_points(kind: str, seed: int) -> None:
    """One step from anywhere, and many: certificates hold for x and for y."""
    model: SaddleModel = {
        "filters": lambda: FilterModel((4, 3), seed=seed),
        "nonsmooth": lambda: FilterModel((4, 3), False, seed=seed),
        "matrix": lambda: FilterModel((4, 3), matrix=normal(6, 12, seed=seed, scale=0.4), seed=seed),
        "field": lambda: FieldModel(4, seed),
        "relu": lambda: ReLUModel(6, seed),
    }[kind]()
    data = {"matrix": (4, 6), "field": (4, 1, 1, 4), "relu": (4, 1, 1, 6)}.get(kind, (4, 1, 4, 3))
    with torch.no_grad():
        saddle = model.saddle_point(normal(*data, seed=seed + 7))
    best = solved(saddle)
    assert best.converged
    n, m = saddle.operator.domain_size, saddle.operator.range_size
    for limit in (1, 2, 5, 30):
        for scale in (0.01, 1.0, 100.0):
            start = normal(4, n, seed=limit, scale=scale), normal(4, m, seed=limit + 1, scale=scale)
            found = PDHG(limit)(saddle, best.x + start[0], best.y + start[1], 1e-13)
            assert bool((found.status == Status.ITERATION_LIMIT).all())
            assert bool(((found.x - best.x).norm(dim=1) <= saddle.spread * found.error + 1e-10).all())
            image = (saddle.image(found.x) - saddle.image(best.x)).flatten(1).norm(dim=1)
            assert bool((image <= found.error + 1e-10).all())
            assert bool(((found.y - best.y).norm(dim=1) <= found.dual_error + 1e-9).all())


def test_distances_are_attained_and_contain_the_published_ones() -> None:
    """Both cases of the paper, and a linear problem in which the bound is an equality."""
    p, d, zero = torch.tensor([3.0]), torch.tensor([2.0]), torch.zeros(1)
    assert float(distances(p, zero, 2.0, 0.5)[0]) == pytest.approx(1.5)
    assert float(distances(zero, d, 2.0, 0.5)[1]) == pytest.approx(4.0)
    assert bool(torch.isinf(distances(p, d, 1.0, 0.0)[0]))
    # a = (P + sqrt(P^2 + D^2))/2 together with b = D/2 lies on the circle a^2 + b^2 = P a + D b
    a = float(distances(torch.tensor([1.0]), torch.tensor([1.0]), 1.0, 1.0)[0])
    assert a**2 + 0.25 == pytest.approx(a + 0.5)


def test_same_image_as_the_smooth_solver() -> None:
    saddle, x, y = denoising("smoothed")
    tv = TotalVariation(math.log(0.15), math.log(0.02)).double().requires_grad_(False)
    smooth = LBFGS()(Energy(x.view(3, *SHAPE), tv), x.view(3, *SHAPE), 1e-9)
    found = PDHG()(saddle, x, y, 1e-9)
    torch.testing.assert_close(saddle.image(found.x), smooth.x, rtol=0, atol=1e-7)  # theta of tv was rounded to float32
    torch.testing.assert_close(saddle.embed(saddle.image(found.x)), found.x)


@pytest.mark.parametrize("adaptive", [True, False])
def test_diagonal_preconditioning_finds_the_same_point(adaptive: bool) -> None:
    model = FieldModel(4)
    with torch.no_grad():
        saddle = model.saddle_point(normal(2, 1, 1, 4))
        matrix = model.matrix * torch.logspace(-1, 1, 8, dtype=torch.float64)
    saddle = SaddlePoint(MatrixMap(matrix), saddle.g, saddle.f, saddle.image_shape)
    # the groups of f are columns of a 2 x 3 field: their steps have to agree
    sums = saddle.operator.absolute_sums()
    assert sums is not None
    rows = sums[1].view(2, 3).amax(0).repeat(2)
    columns = torch.cat([sums[0][:4], sums[0][4:].view(2, 2).amax(0).repeat(2)])
    saddle.operator.absolute_sums = lambda: (columns, rows)  # type: ignore[method-assign]
    best = solved(saddle)
    found = PDHG(adaptive=adaptive, diagonal=True)(saddle, 0 * best.x, 0 * best.y, 1e-8)
    assert found.converged
    torch.testing.assert_close(found.x, best.x, rtol=0, atol=2e-8)
    with pytest.raises(ValueError, match="absolute_sums"):
        PDHG(diagonal=True)(denoising("huber")[0], *denoising("huber")[1:], 1e-2)


def test_images_stop_one_by_one_and_do_not_disturb_each_other() -> None:
    saddle, x, y = denoising("huber")
    goal = torch.tensor([1.0, 1e-6, 1e-2])
    found = PDHG()(saddle, x, y, goal)
    assert found.converged
    assert found.evaluations[0] < found.evaluations[2] < found.evaluations[1]
    for i in range(3):
        index = torch.tensor([i])
        alone = PDHG()(saddle.select(index), x[index], y[index], goal[index])
        assert int(alone.evaluations) == int(found.evaluations[i])
        torch.testing.assert_close(alone.x[0], found.x[i], rtol=0, atol=1e-12)


def test_counts_products_with_the_operator() -> None:
    class Counting(SaddleMap):
        forwards = transposes = 0

        def __call__(self, x: Tensor) -> Tensor:
            self.forwards += len(x)
            return super().__call__(x)

        def transpose(self, y: Tensor) -> Tensor:
            self.transposes += len(y)
            return super().transpose(y)

    saddle, x, y = denoising("huber")
    counting = Counting(FiniteDifferences(SHAPE))
    found = PDHG()(SaddlePoint(counting, saddle.g, saddle.f, SHAPE, check=False), x, y, torch.tensor([1.0, 1e-3, 0.1]))
    assert int(found.evaluations.sum()) == counting.forwards
    assert int(found.evaluations.sum()) == counting.transposes + 3


def test_nan_in_one_image() -> None:
    saddle, x, y = denoising("huber")
    y = y.clone()
    y[1, 3] = math.nan
    found = PDHG()(saddle, x, y, 1e-6)
    assert found.status.tolist() == [Status.CONVERGED, Status.NOT_FINITE, Status.CONVERGED]
    assert math.isinf(float(found.error[1]))
    assert math.isinf(float(found.dual_error[1]))


def test_precision_floor_in_single_precision() -> None:
    saddle, x, y = denoising("huber", dtype=torch.float32)
    found = PDHG()(saddle, x, y, 1e-9)
    assert bool((found.status == Status.PRECISION_FLOOR).all())
    exact = PDHG()(denoising("huber")[0], x.double(), y.double(), 1e-10)
    distance = (found.x.double() - exact.x).norm(dim=1)
    # the data are rounded, too: that moves the solution by no more than it moves the data
    slack = (denoising("huber")[1] - x.double()).norm(dim=1) + 1e-10
    assert bool((distance <= found.error + slack).all())
    assert bool((found.error <= 1e-3).all())


def test_without_moduli() -> None:
    """min |x - 1| + |x|-like problem: no certificate, residuals all the same; the solution is known."""
    saddle = SaddlePoint(
        MatrixMap(torch.eye(2, dtype=torch.float64)),
        HuberNorm((2,), 1.0, axis=None),
        Squared(2, 0.25, torch.tensor([[2.0, -8.0]], dtype=torch.float64)),
        (1, 1, 2),
    )
    zero = torch.zeros(1, 2, dtype=torch.float64)
    with pytest.raises(NotStronglyConvexError, match="modulus of HuberNorm is 0"):
        PDHG()(saddle, zero, zero, 1e-6)
    found = PDHG(certified=False)(saddle, zero, zero, 1e-9)
    assert found.converged
    assert bool(torch.isinf(found.error).all())
    torch.testing.assert_close(found.x, torch.tensor([[0.0, -4.0]], dtype=torch.float64), rtol=0, atol=1e-7)


def test_nonnegative_images_and_stacked_maps() -> None:
    """min_{x >= 0} 1/2|x - b|^2 + 1/2|Ax - c|^2: the optimality conditions by hand, in one and in two dual blocks."""
    a, b, c = normal(5, 4, seed=1), normal(2, 4, seed=2), normal(2, 5, seed=3)
    saddle = SaddlePoint(
        SaddleMap(stack([Matrix(a[:2]), Matrix(a[2:])])), Squared(4, 1.0, b, nonnegative=True), Squared(5, 1.0, c),
        (1, 2, 2),
    )  # fmt: skip
    found = PDHG()(saddle, b, torch.zeros(2, 5, dtype=torch.float64), 1e-10)
    slope = found.x - b + (found.x @ a.T - c) @ a
    assert bool((found.x >= 0).all())
    torch.testing.assert_close(torch.minimum(found.x, slope), torch.zeros_like(b), rtol=0, atol=1e-8)


def test_bad_input() -> None:
    class Wrong(Matrix):
        def _adjoint(self, y: Tensor) -> Tensor:
            return 1.001 * super()._adjoint(y)

    eye = torch.eye(2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"transpose of Wrong fails the adjoint test"):
        SaddlePoint(SaddleMap(Wrong(eye)), Squared(2), Squared(2), (1, 1, 2))
    with pytest.raises(ValueError, match="K maps 2 to 2"):
        SaddlePoint(MatrixMap(eye), Squared(3), Squared(2), (1, 1, 2))
    with pytest.raises(ValueError, match="too few"):
        SaddlePoint(MatrixMap(eye), Squared(2), Squared(2), (1, 1, 3))
    with pytest.raises(ValueError, match="different domains"):
        stack([Matrix(eye), Matrix(eye[:, :1])])
    with pytest.raises(ValueError, match="accuracy"):
        PDHG()(*denoising("huber"), 0.0)
    with pytest.raises(ValueError, match="max_iterations"):
        PDHG(0)
    with pytest.raises(NotStronglyConvexError, match="strongly convex f"):
        denoising("plain")[0].require_dual_convexity()

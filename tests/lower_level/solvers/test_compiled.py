"""The compiled steps of solvers compute what torch computes, up to rounding, whoever does how much of it."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from recon.lower_level import FISTA, LBFGS, Energy, ProjectedLBFGS, Regularizer, conjugate_gradients, per_image_dot
from recon.lower_level.batch import PerImage
from recon.lower_level.solvers.cg import Cycle
from recon.lower_level.solvers.compiled import library
from recon.lower_level.solvers.iterate import State, SteppedSolver
from recon.lower_level.solvers.preconditioner import Preconditioner
from recon.lower_level.solvers.stopping import Stopping, norms_of
from tests.lower_level.problems import make, normal, smooth_image
from tests.lower_level.solvers.test_cg import systems

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    BUILT = library.usable(torch.zeros(1)) is not None
pytestmark = pytest.mark.skipif(not BUILT, reason="no library was built")

Switch = Callable[[str], None]
#: relative differences that rounding explains, of numbers that are sums of rounded ones
TOLERANCES = {torch.float32: 2e-5, torch.float64: 1e-11}


@pytest.fixture
def switch(monkeypatch: pytest.MonkeyPatch) -> Switch:
    return lambda to: monkeypatch.setenv("RECON_KERNELS", to)


def same(found: PerImage, expected: PerImage, dtype: torch.dtype) -> None:
    """All tensors are, up to rounding; NaN where the other is."""
    others = expected.tensors()
    for name, tensor in found.tensors().items():
        assert tensor.dtype == others[name].dtype, name
        largest = float(torch.nan_to_num(others[name].double(), posinf=0, neginf=0).abs().max()) if len(tensor) else 0.0
        tolerance = TOLERANCES[dtype] if tensor.is_floating_point() else 0.0
        torch.testing.assert_close(
            tensor,
            others[name],
            rtol=tolerance,
            atol=tolerance * largest,
            equal_nan=True,
            msg=lambda m, n=name: f"{n}: {m}",
        )


def in_lockstep(solver: SteppedSolver, energy: Energy, x0: Tensor, steps: int, switch: Switch) -> State:
    """Every step by torch and by the library, from the same state: they end in the same one."""
    switch("best")
    state = solver.init(energy, x0)
    for _ in range(steps):
        other = type(state)(**{f.name: getattr(state, f.name).clone() for f in dataclasses.fields(state)})
        switch("best")
        solver.step(energy, state)
        switch("off")
        solver.step(energy, other)
        same(state, other, x0.dtype)
        assert torch.allclose(solver.norms(state), norms_of(solver.left(state), state.x), rtol=1e-6, equal_nan=True)
    return state


def denoising(batch: int, height: int, width: int, dtype: torch.dtype) -> Energy:
    return Energy(smooth_image(batch, 1, height, width, dtype=dtype), make("tv", dtype=dtype), mu=0.1)


class Preconditioned(Energy):
    """With a preconditioner that has nothing to do with it."""

    def _made_preconditioner(self, like: Tensor) -> Preconditioner:
        rows, columns = (torch.fft.fftfreq(n, dtype=torch.float64).square() for n in like.shape[-2:])
        return Preconditioner(1 + 5 * (rows[:, None] + columns)[None])


# --- L-BFGS ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("memory", [1, 3, 10])
def test_steps_of_lbfgs(memory: int, dtype: torch.dtype, switch: Switch) -> None:
    energy = denoising(2, 9, 7, dtype)
    state = in_lockstep(LBFGS(memory), energy, energy.y, 14, switch)
    assert int(state.count.max()) > memory


def test_steps_of_lbfgs_with_a_preconditioner(switch: Switch) -> None:
    energy = Preconditioned(smooth_image(2, 1, 8, 9), make("tv"))
    in_lockstep(LBFGS(3), energy, energy.y, 8, switch)


class Steep(Regularizer):
    """sum_p log cosh(c x_p) / c with c = 30, of which no Lipschitz constant is told: first steps are too long."""

    def forward(self, x: Tensor) -> Tensor:
        u = 30 * x
        return (torch.logaddexp(u, -u) - math.log(2)).flatten(1).sum(1) / 30

    def convexity(self) -> float:
        return 0.0


def test_images_that_reject_trials_keep_their_points_and_others_go_on(switch: Switch) -> None:
    y = normal(3, 1, 5, 6) * torch.tensor([1e-3, 1.0, 50.0], dtype=torch.float64).view(3, 1, 1, 1)
    energy = Energy(y, Steep())
    state = in_lockstep(LBFGS(4), energy, y, 12, switch)
    assert len(set(state.count.tolist())) > 1


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_trials_that_are_not_finite_are_rejected(wrong: float, switch: Switch) -> None:
    energy = denoising(3, 6, 5, torch.float64)
    plain, calls = energy.value_and_grad, [0]

    def poisoned(x: Tensor) -> tuple[Tensor, Tensor]:
        value, grad = plain(x)
        calls[0] += 1
        if calls[0] in (6, 7):  # a step of either
            value, grad = value.clone(), grad.clone()
            value[0], grad[1, 0, 2, 3] = wrong, wrong
        return value, grad

    energy.value_and_grad = poisoned  # type: ignore[method-assign]
    state = in_lockstep(LBFGS(3), energy, energy.y, 3, switch)
    assert state.fresh.tolist() == [wrong == -math.inf, False, True]
    in_lockstep(LBFGS(3), energy, energy.y, 6, switch)


def test_empty_batches_and_single_pixels(switch: Switch) -> None:
    energy = denoising(2, 1, 1, torch.float64)
    in_lockstep(LBFGS(2), energy, energy.y, 3, switch)
    nobody = energy.select(torch.zeros(0, dtype=torch.int64))
    switch("best")
    for solver in (LBFGS(2), FISTA()):
        state = solver.init(nobody, nobody.y)
        solver.step(nobody, state)
        assert len(state.x) == 0


def test_gradients_of_another_shape_are_refused(switch: Switch) -> None:
    switch("best")
    energy = denoising(2, 6, 5, torch.float64)
    state = LBFGS().init(energy, energy.y)
    energy.value_and_grad = lambda x: (x[:, 0, 0, 0], x[:1])  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"\(1, 1, 6, 5\) belong to images \(2, 1, 6, 5\)"):
        LBFGS().step(energy, state)


def test_solves_go_on_with_torch_where_the_library_has_begun(switch: Switch) -> None:
    energy, solver = denoising(3, 8, 9, torch.float64), LBFGS(4)
    switch("best")
    whole, begun = solver(energy, energy.y, 1e-9), solver.start(energy, energy.y, 1e-9)
    for _ in range(5):
        solver.step(begun.energy, begun.state)
    saved = begun.state_dict()
    switch("off")
    rest = solver.resume(energy, saved).run()
    assert rest.converged
    assert torch.allclose(rest.x, whole.x, atol=2e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_over_x_not_negative(dtype: torch.dtype, switch: Switch) -> None:
    energy = denoising(3, 9, 7, dtype)
    state = in_lockstep(ProjectedLBFGS(3), energy, energy.y, 14, switch)
    assert int(state.count.max()) > 3
    assert bool((state.x == 0).any())


def test_steps_over_x_not_negative_with_a_preconditioner(switch: Switch) -> None:
    energy = Preconditioned(smooth_image(2, 1, 8, 9), make("tv"))
    in_lockstep(ProjectedLBFGS(3), energy, energy.y, 10, switch)


# --- other solvers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("accelerated", [False, True])
def test_steps_of_fista(accelerated: bool, dtype: torch.dtype, switch: Switch) -> None:
    energy = denoising(3, 9, 7, dtype)
    in_lockstep(FISTA(accelerated=accelerated), energy, energy.y, 10, switch)
    in_lockstep(FISTA(backtracking=True, accelerated=accelerated), energy, energy.y, 10, switch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("rounding", [1e-7, math.inf])
def test_steps_of_conjugate_gradients(
    rounding: float, preconditioned: bool, dtype: torch.dtype, switch: Switch
) -> None:
    _, hessian, b = systems(3, 40, [2.0, 1e3, 50.0], dtype=dtype)
    b[2] = 0.0  # has no curvature along p
    scale = normal(3, 1, 1, 40, seed=5, dtype=dtype).abs() + 0.5
    goal, budget = torch.full((3,), 1e-1, dtype=torch.float64), torch.tensor([5, 100, 100])
    cycle = Cycle(torch.zeros_like(b), b, goal, budget, rounding, scale * b if preconditioned else None)
    ended = []
    for _ in range(7):
        other, product = copy.copy(cycle), hessian(cycle.p)
        other.load(cycle.tensors())
        other._steps = None
        done = []
        for choice, part in (("best", cycle), ("off", other)):
            switch(choice)
            found = part.advance(product)
            done.append([False] * 3 if found is None else found.tolist())
            part.turn(scale * part.r if preconditioned else None)
        assert done[0] == done[1]
        ended.append(done[0])
        same(cycle, other, dtype)
    assert ended[0] == [False, False, True]
    assert ended[-1][0] is True


def test_cycles_go_on_as_images_leave(switch: Switch) -> None:
    _, hessian, b = systems(3, 40, [2.0, 1e4, 50.0])
    accuracy = torch.tensor([1e-2, 1e-8, 1e-5])
    found = []
    for choice in ("best", "off"):
        switch(choice)
        found.append(conjugate_gradients(hessian, b, torch.zeros_like(b), accuracy))
    assert found[0].converged
    assert found[0].evaluations.sub(found[1].evaluations).abs().max() <= 2
    assert torch.allclose(found[0].w, found[1].w, atol=1e-2)


# --- when images stop ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("certified", [False, True])
def test_images_stop_when_torch_says(certified: bool, switch: Switch) -> None:
    energy = denoising(400, 3, 3, torch.float64)
    x, evaluations = energy.y, torch.arange(400) % 50
    stoppings, seen = {}, set()
    for choice in ("best", "off"):
        switch(choice)
        stoppings[choice] = Stopping(energy, 1e-14, x, certified)
        stoppings[choice].accuracy = 10.0 ** (torch.arange(400, dtype=torch.float64) % 13 - 16)
    for k in range(130):
        norms = torch.stack((10.0 ** (normal(400, seed=k) - 14), x.flatten(1).norm(dim=1)), 1)
        norms[k % 400] = torch.tensor([math.nan, math.inf, 0.0, 1.0])[torch.tensor([k % 4, (k + 1) % 3])]
        stalled = (torch.arange(400) + k) % 17 == 0 if k % 2 else None
        found = []
        for choice, stopping in stoppings.items():
            switch(choice)
            status = stopping.status(energy, x, norms, stalled, evaluations if k % 3 else None, 49)
            assert status is not None
            found.append(status)
        assert torch.equal(*found)
        seen |= set(found[0].tolist())
        for name in ("best", "stale"):
            assert torch.equal(getattr(stoppings["best"], name), getattr(stoppings["off"], name))
    assert seen == {-1, 0, 1, 2, 3}


def test_none_is_said_where_all_go_on_and_norms_of_other_images_are_refused(switch: Switch) -> None:
    switch("best")
    energy = denoising(2, 3, 3, torch.float64)
    stopping = Stopping(energy, 1e-9, energy.y)
    assert stopping.status(energy, energy.y, torch.ones(2, 2, dtype=torch.float64)) is None
    with pytest.raises(ValueError, match="norms of 2 images"):
        stopping.status(energy, energy.y, torch.ones(3, 2, dtype=torch.float64))


# --- bits ------------------------------------------------------------------------------------------------------------


class ImageByImage(Energy):
    """On one thread: what torch computes of an energy depends on the batch, and on threads."""

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if len(x) == 1:
            return super().value_and_grad(x)
        with one_thread():
            parts = [self.select(torch.tensor([i])).value_and_grad(x[i : i + 1]) for i in range(len(x))]
        return torch.cat([value for value, _ in parts]), torch.cat([grad for _, grad in parts])


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def solved(energy: Energy) -> list[Tensor]:
    """What there is to say of a few steps of all solvers."""
    states = [solver.init(energy, energy.y) for solver in (LBFGS(3), FISTA())]
    for _ in range(4):
        for solver, state in zip((LBFGS(3), FISTA()), states, strict=True):
            solver.step(energy, state)
    linear = energy.solve_adjoint(energy.y, energy.y, torch.zeros_like(energy.y), 1e-2, 5)
    tensors = [tensor for state in states for tensor in state.tensors().values()]
    return [*tensors, linear.w, linear.residual, linear.residual_norm, norms_of(energy.y, states[0].x)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_depend_neither_on_threads_nor_on_the_batch(
    dtype: torch.dtype, switch: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch("best")
    monkeypatch.setattr(library, "SHARE", 1000)
    energy = ImageByImage(smooth_image(2, 1, 200, 203, dtype=dtype), make("tv", dtype=dtype))  # more than a chunk
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert library.Shape.of(energy.y).threads == count
            found.append(solved(energy))
    finally:
        torch.set_num_threads(threads)
    for one, three in zip(*found, strict=True):
        assert torch.equal(one, three)
    alone = solved(energy.select(torch.tensor([1])))
    for whole, single in zip(found[0], alone, strict=True):
        assert torch.equal(whole[1:], single)


def exact(x: Tensor) -> float:
    return math.sqrt(math.fsum(v * v for v in x.double().flatten().tolist()))


@pytest.mark.parametrize("pixels", [1, 15, 129, 512, 40_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norms_are_right_to_eight_units_of_double_precision(dtype: torch.dtype, pixels: int, switch: Switch) -> None:
    """That is what SUMMATION stands for; partial sums of float32 have none of its rounding errors."""
    switch("best")
    x = normal(2, pixels, seed=pixels, dtype=dtype).exp()
    found = norms_of(x[1:], x[:1])
    assert float(found[0, 0]) == pytest.approx(exact(x[1]), rel=8 * 2.0**-53, abs=0)
    assert float(found[0, 1]) == pytest.approx(exact(x[0]), rel=8 * 2.0**-53, abs=0)


def test_norms_of_tiny_huge_and_other_numbers(switch: Switch) -> None:
    switch("best")
    for value in (1e-38, 1e-30, 3e38):
        x = torch.full((1, 1000), value, dtype=torch.float32)
        assert float(norms_of(x, x)[0, 0]) == pytest.approx(exact(x), rel=1e-14)
    x = torch.tensor([[1.0, math.inf, 1.0], [1.0, math.nan, math.inf], [1.0, -math.inf, math.inf]])
    assert norms_of(x, x)[:, 0].isnan().tolist() == [False, True, False]
    assert norms_of(x, x)[:, 1].isinf().tolist() == [True, False, True]


def test_long_sums_lose_nothing_that_counts(switch: Switch) -> None:
    """One large number, and as many small ones that a naive sum would lose."""
    switch("best")
    x = torch.full((1, 3_000_000), 2.0**-27, dtype=torch.float64)
    x[0, 0] = 1.0
    assert float(norms_of(x, x)[0, 0] ** 2 - 1) == pytest.approx(2_999_999 * 2.0**-54, rel=1e-6)
    assert float(per_image_dot(x, x)) >= 1.0


# --- what is in use --------------------------------------------------------------------------------------------------


def test_what_it_is_used_for(switch: Switch) -> None:
    switch("best")
    assert library.usable(torch.zeros(1, dtype=torch.float64)) is not None
    assert library.usable(torch.zeros(1, dtype=torch.float16)) is None
    assert library.usable(torch.zeros(1, device="meta")) is None
    assert library.describe().startswith("compiled, ")
    switch("off")
    assert library.usable(torch.zeros(1)) is None
    assert library.describe() == "torch (RECON_KERNELS is off)"

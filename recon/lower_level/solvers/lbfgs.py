"""L-BFGS for a batch of strongly convex energies, free or over x >= 0; every image has its own history and step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from recon.errors import at_least
from recon.lower_level.batch import over_image, per_image_dot
from recon.lower_level.energy import Energy
from recon.lower_level.solvers.compiled.lbfgs import SearchSteps
from recon.lower_level.solvers.compiled.library import usable
from recon.lower_level.solvers.iterate import State, SteppedSolver
from recon.lower_level.solvers.preconditioner import Preconditioner
from recon.lower_level.solvers.quasi_newton import CURVATURE, InverseHessian, Pairs, curved, spectral
from recon.lower_level.solvers.stopping import norms_of

SMALLEST_STEP = 1e-8
_SMALLEST_PROJECTED_STEP = 1e-10
_STEEP_BELOW = 1e-3  # steps along a quasi-Newton direction that got shorter than this try the projected gradient


@dataclass
class LineSearchState(State):
    """The direction, the step along it that is tried next, and which images are ``fresh``: need a new direction."""

    direction: Tensor
    step: Tensor
    fresh: Tensor

    def go(self, trial: Tensor, value: Tensor, grad: Tensor) -> None:
        """To the trial where it was accepted, that is, ``fresh``."""
        here = over_image(self.fresh, trial)
        self.x, self.grad = torch.where(here, trial, self.x), torch.where(here, grad, self.grad)
        self.value = torch.where(self.fresh, value, self.value)


class Search(NamedTuple):
    """Of the line search: c, the share of a value below which changes of it are rounding errors, between which shares
    steps are shortened, and the share of |s| |y| that <s, y> must exceed."""

    armijo: float
    resolution: float
    shortest: float = 0.1
    longest: float = 0.5
    curvature: float = CURVATURE

    @classmethod
    def of(cls, armijo: float, dtype: torch.dtype) -> Search:
        """For images of a type; values of h are sums in double precision."""
        return cls(armijo, 1e-6 if dtype == torch.float32 else 1e-12)


L = TypeVar("L", bound=LineSearchState)


class LineSearchSolver(SteppedSolver[L]):
    """What L-BFGS with and without constraints have in common: options, the test of a trial, and what follows.

    Parameters
    ----------
    memory : int
        Number of (step, change of gradient) pairs per image.
    max_iterations : int
        Evaluations of one image after which it counts as not converged.
    armijo : float
        c of the line search.
    certified : bool
        Refuse energies without a known modulus of strong convexity; otherwise ``accuracy`` bounds the gradient.
    precondition : bool
        Start from :meth:`Energy.preconditioner` instead of a multiple of the identity where there is one. It changes
        the directions; what is certified stays the same.

    Raises
    ------
    ValueError
        ``memory`` or ``max_iterations`` is less than 1, or ``armijo`` not in (0, 1/2).
    """

    def __init__(
        self,
        memory: int = 10,
        max_iterations: int = 10_000,
        armijo: float = 1e-4,
        certified: bool = True,
        precondition: bool = True,
    ) -> None:
        at_least(1, memory=memory, max_iterations=max_iterations)
        if not 0 < armijo < 0.5:
            raise ValueError(f"armijo is {armijo}, but must lie in (0, 1/2)")
        self.memory, self.max_iterations, self.armijo, self.certified = memory, max_iterations, armijo, certified
        self.precondition = precondition

    def prepare(self, energy: Energy, like: Tensor) -> None:
        """The preconditioner, if it is asked for."""
        self._inverse(energy, like)

    def _begun(self, energy: Energy, x: Tensor) -> LineSearchState:
        value, grad = energy.value_and_grad(x)
        spent, fresh = (torch.ones(len(x), dtype=dtype, device=x.device) for dtype in (torch.int64, torch.bool))
        return LineSearchState(x, value, grad, spent, torch.zeros_like(x), torch.ones_like(value), fresh)

    def _inverse(self, energy: Energy, like: Tensor) -> Preconditioner | None:
        return energy.preconditioner(like) if self.precondition else None

    @staticmethod
    def _initial_scale(energy: Energy, grad: Tensor) -> Tensor:
        if math.isfinite(energy.smoothness):
            return grad.new_full((len(grad),), 1 / energy.smoothness)
        return 1 / grad.flatten(1).norm(dim=1).clamp_min(1.0)

    def _accepted(
        self, old: Tensor, new: Tensor, slope: Tensor, before: Tensor, after: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """Which trials are good: ``slope`` is the c-th part of the decrease that the gradient promises, negative."""
        flat = (new - old).abs() <= Search.of(self.armijo, dtype).resolution * old.abs()
        return ((new <= old + slope) | (flat & (after <= (2 * self.armijo - 1) * before))) & torch.isfinite(after)

    @staticmethod
    def _moved(state: L, trial: Tensor, value: Tensor, grad: Tensor, before: Tensor, after: Tensor) -> None:
        """Go to the trial where it was accepted, that is, ``state.fresh``."""
        if bool(state.fresh.all()):  # nearly always: nothing is copied
            state.x, state.grad, state.value, state.step = trial, grad, value, torch.ones_like(state.step)
            return
        state.go(trial, value, grad)
        # a rejected step is shortened to where the slope would vanish if it were linear, within [0.1, 0.5]
        shortest, longest = Search._field_defaults["shortest"], Search._field_defaults["longest"]
        secant = torch.nan_to_num(before / (before - after), nan=shortest).clamp(shortest, longest)
        state.step = torch.where(state.fresh, torch.ones_like(state.step), state.step * secant)


@dataclass
class LBFGSState(LineSearchState):
    r"""With the history, see :class:`recon.lower_level.solvers.quasi_newton.InverseHessian`.

    Parameters
    ----------
    products : Tensor
        Of the pairs with the gradient.
    norms : Tensor
        \|\|grad\|\| and \|\|x\|\|, ``(images, 2)``.

    Attributes
    ----------
    moved : bool
        Whether all images are known to have accepted the last trial.
    """

    pairs: Tensor
    gram: Tensor
    count: Tensor
    products: Tensor
    norms: Tensor

    def __post_init__(self) -> None:
        self.moved = False
        self._steps: SearchSteps | None = None

    def compiled(self, armijo: float, smoothness: float) -> SearchSteps | None:
        """Steps from here by the compiled library, where it can be used; ``smoothness``: one over the first steps."""
        if self._steps is None and (kernel := usable(self.x)) is not None:
            scale = 1 / smoothness if math.isfinite(smoothness) else 0.0
            self._steps = SearchSteps(kernel, self, Search.of(armijo, self.x.dtype), scale)
        return self._steps

    def select(self, index: Tensor) -> None:
        super().select(index)
        self._steps = None


class LBFGS(LineSearchSolver[LBFGSState]):
    r"""Limited-memory BFGS with Armijo backtracking (Nocedal and Wright 2006, algorithm 7.5).

    A trial step a along d is accepted if h(x + ad) <= h(x) + c a <grad h(x), d>, or, where h cannot resolve the
    decrease any more, if the slope at the trial is at most (1 - 2c) \|<grad h(x), d>\| (the approximate Wolfe test of
    Hager and Zhang 2005): near the minimizer gradients stay accurate long after values have stopped changing.

    Parameters
    ----------
    memory, max_iterations, armijo, certified, precondition
        See :class:`LineSearchSolver`.
    """

    state = LBFGSState

    def init(self, energy: Energy, x0: Tensor) -> LBFGSState:
        """x0, without history."""
        history = InverseHessian(x0.flatten(1), self.memory)
        begun = vars(self._begun(energy, x0.clone(memory_format=torch.contiguous_format)))
        own = {"products": torch.zeros_like(history.gram[:, 0]), "norms": norms_of(begun["grad"], begun["x"])}
        return LBFGSState(**begun, **history.state_dict(), **own)

    def norms(self, state: LBFGSState) -> Tensor:
        """Those that the last step has computed."""
        return state.norms

    def stalled(self, state: LBFGSState) -> Tensor | None:
        """Directions of descent along which nothing is accepted."""
        return None if state.moved else state.step < SMALLEST_STEP

    def step(self, energy: Energy, state: LBFGSState) -> None:
        """One trial along the direction, a new one where the last trial was accepted."""
        inverse = self._inverse(energy, state.x)
        steps = state.compiled(self.armijo, energy.smoothness if inverse is None else 1.0)
        first = inverse(state.grad) if inverse is not None and bool(state.fresh.any()) else None
        if steps is None:
            trial = self._propose(energy, state, first)
        else:
            trial = steps.propose(state, first)
        value, grad = energy.value_and_grad(trial)
        changes = None if inverse is None else inverse(grad - state.grad)
        if steps is None:
            self._accept(state, trial, value, grad, changes)
        else:
            steps.accept(state, trial, value, grad, changes)

    def _propose(self, energy: Energy, state: LBFGSState, first: Tensor | None) -> Tensor:
        """The trial points, along new directions where ``state.fresh``; ``first``: the preconditioned gradient."""
        x, grad = state.x, state.grad
        if bool(state.fresh.any()):
            history = InverseHessian.of(state.pairs, state.gram, state.count)
            scale = self._initial_scale(energy, grad) if first is None else torch.ones_like(state.step)
            inverse = None if first is None else first.flatten(1)
            new = -history.apply(grad.flatten(1), scale, inverse, state.products).view_as(x)
            whole = bool(state.fresh.all())
            state.direction = new if whole else torch.where(over_image(state.fresh, x), new, state.direction)
        return torch.addcmul(x, over_image(state.step, x), state.direction)

    def _accept(self, state: LBFGSState, trial: Tensor, value: Tensor, grad: Tensor, changes: Tensor | None) -> None:
        """Go to the trial where it is good, and keep the pair; ``changes``: of the preconditioned gradient."""
        state.evaluations = state.evaluations + 1
        before, after = per_image_dot(state.grad, state.direction), per_image_dot(grad, state.direction)
        state.fresh = self._accepted(
            state.value, value, self.armijo * state.step * before, before, after, state.x.dtype
        )
        history = InverseHessian.of(state.pairs, state.gram, state.count)
        s, y = (trial - state.x).flatten(1), (grad - state.grad).flatten(1)
        z = None if changes is None else changes.flatten(1)
        rows = torch.nonzero(state.fresh & curved(s, y, per_image_dot(s, y))).flatten()
        if len(rows) == len(s):
            history.update(rows, s, y, z)
        else:
            history.update(rows, s[rows], y[rows], None if z is None else z[rows])
        self._moved(state, trial, value, grad, before, after)
        state.products, state.norms = history.products(state.grad.flatten(1)), norms_of(state.grad, state.x)


def projected_gradient(x: Tensor, grad: Tensor) -> Tensor:
    r"""p with p_i = g_i where x_i > 0 and min(g_i, 0) where x_i = 0, for x >= 0: what is left of g on x >= 0.

    For mu-strongly convex h with g = grad h(x) and its minimizer x^ over x >= 0,

        \|\|x - x^\|\| <= \|\|p\|\| / mu.

    Proof. Optimality of x^ is <grad h(x^), x - x^> >= 0. With strong monotonicity of the gradient,

        mu \|\|x - x^\|\|^2 <= <g - grad h(x^), x - x^> <= <g, x - x^>,

    and g_i (x_i - x^_i) <= p_i (x_i - x^_i) for every i: if x_i > 0, both are the same; if x_i = 0, then
    x_i - x^_i <= 0 and g_i >= p_i. So mu \|\|x - x^\|\|^2 <= <p, x - x^> <= \|\|p\|\| \|\|x - x^\|\|.

    An error of the computed g changes p by no more, because both cases are nonexpansive in g.
    """
    return torch.where(x > 0, grad, grad.clamp_max(0))


@dataclass
class ProjectedState(LineSearchState):
    """With pairs s, y as in :class:`recon.lower_level.solvers.quasi_newton.Pairs`, the length ``gamma`` of a gradient
    step that puts pixels to zero, the step ``safe`` that the smoothness allows, and which images go along the gradient,
    ``steep``."""

    s: Tensor
    y: Tensor
    count: Tensor
    gamma: Tensor
    safe: Tensor
    steep: Tensor


class ProjectedLBFGS(LineSearchSolver[ProjectedState]):
    r"""Minimize h over x >= 0: limited-memory BFGS on the free pixels (Bertsekas 1982; Schmidt et al. 2009).

    Pixels that a gradient step would put to zero, x_i <= gamma g_i, take just this step; the others take that of L-BFGS
    whose pairs are restricted to them, so that it approximates the inverse of the Hessian of the free pixels. Trials
    are projected, x(a) = max(x + a d, 0), and accepted if h(x(a)) <= h(x) + c <g, x(a) - x>, or, where h cannot resolve
    the decrease, by the slope at x(a) as in :class:`LBFGS`. Directions that allow only tiny steps give way to -g / L.

    ``Solution.error`` is (\|\|p\|\| + rounding) / mu with the :func:`projected_gradient` p; ``Solution.gradient`` is g
    itself. Solutions are not differentiable in the parameters where pixels are about to become free, and the adjoint
    equations of training know nothing of the free pixels: :class:`recon.bilevel.BilevelObjective` refuses this solver.

    Parameters
    ----------
    memory, max_iterations, armijo, certified, precondition
        See :class:`LineSearchSolver`.
    """

    state = ProjectedState

    def init(self, energy: Energy, x0: Tensor) -> ProjectedState:
        """max(x0, 0), without history."""
        begun = self._begun(energy, x0.clamp_min(0))
        s, y = (begun.x.new_zeros(len(x0), self.memory, *x0.shape[1:]) for _ in range(2))
        # first the step that the smoothness allows, then those of Barzilai and Borwein
        safe = self._initial_scale(energy, begun.grad).double()
        count = torch.zeros_like(begun.evaluations)
        return ProjectedState(**vars(begun), s=s, y=y, count=count, gamma=safe, safe=safe, steep=~begun.fresh)

    def left(self, state: ProjectedState) -> Tensor:
        """The projected gradient."""
        return projected_gradient(state.x, state.grad)

    def stalled(self, state: ProjectedState) -> Tensor:
        """Nothing is accepted along the gradient itself."""
        return state.steep & (state.step < _SMALLEST_PROJECTED_STEP)

    def step(self, energy: Energy, state: ProjectedState) -> None:
        """One trial along the path, a new one where the last trial was accepted or steps got tiny."""
        x, grad, inverse = state.x, state.grad, self._inverse(energy, state.x)
        history = Pairs(state.s, state.y, state.count)
        turned = ~state.steep & (state.step < _STEEP_BELOW)
        if bool((state.fresh | turned).any()):
            new = _direction(x, grad, state.gamma, history, inverse)
            direction = torch.where(over_image(state.fresh, x), new, state.direction)
            state.direction = torch.where(over_image(turned, x), -over_image(state.safe, x) * grad, direction)
            state.step = torch.where(turned, 1.0, state.step)
            state.steep = turned | (state.steep & ~state.fresh)
        trial = torch.addcmul(x, over_image(state.step, x), state.direction).clamp_min(0)
        value, trial_grad = energy.value_and_grad(trial)
        state.evaluations = state.evaluations + 1
        s, y = trial - x, trial_grad - grad
        before, after = per_image_dot(grad, s), per_image_dot(trial_grad, s)
        accepted = self._accepted(state.value, value, self.armijo * before, before, after, x.dtype)
        state.fresh = accepted & (before < 0)
        state.gamma = torch.where(history.update(state.fresh, s, y), spectral(s, y), state.gamma)
        self._moved(state, trial, value, trial_grad, before, after)


def _direction(x: Tensor, grad: Tensor, gamma: Tensor, history: Pairs, inverse: Preconditioner | None) -> Tensor:
    """That of L-BFGS on the free pixels, of a gradient step of length gamma on those which it puts to zero."""
    scale = over_image(gamma, x)
    free = (x > scale * grad.clamp_min(0)) | ((x == 0) & (grad < 0))
    return torch.where(free, -history.apply(grad, free, gamma, inverse), -scale * grad)

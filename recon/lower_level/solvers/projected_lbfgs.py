"""L-BFGS over images that are nowhere negative, with a certificate of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from recon.lower_level.batch import over_image, per_image_dot
from recon.lower_level.energy import Energy
from recon.lower_level.precision import full_precision
from recon.lower_level.solution import RUNNING, Solution, Status
from recon.lower_level.solvers.lbfgs import LBFGS
from recon.lower_level.solvers.preconditioner import Preconditioner
from recon.lower_level.solvers.stopping import Collector, Stopping

_SMALLEST_STEP = 1e-10
_STEEP_BELOW = 1e-3  # steps along a quasi-Newton direction that got shorter than this try the projected gradient


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


class ProjectedLBFGS(LBFGS):
    r"""Minimize h over x >= 0: limited-memory BFGS on the free pixels (Bertsekas 1982; Schmidt et al. 2009).

    Pixels that a gradient step would put to zero, x_i <= gamma g_i, take just this step; the others take that of L-BFGS
    whose pairs are restricted to them, so that it approximates the inverse of the Hessian of the free pixels. Trials
    are projected, x(a) = max(x + a d, 0), and accepted if h(x(a)) <= h(x) + c <g, x(a) - x>, or, where h cannot resolve
    the decrease, by the slope at x(a) as in :class:`LBFGS`. Directions that allow only tiny steps give way to -g / L.

    ``Solution.error`` is (\|\|p\|\| + rounding) / mu with the :func:`projected_gradient` p; ``Solution.gradient`` is g
    itself. Solutions are not differentiable in the parameters where pixels are about to become free, and the adjoint
    equations of training know nothing of the free pixels: :class:`recon.bilevel.BilevelObjective` refuses this solver.

    Parameters: those of :class:`LBFGS`.
    """

    @full_precision()
    def __call__(self, energy: Energy, x0: Tensor, accuracy: float | Tensor) -> Solution:
        """Minimize h over x >= 0 from max(x0, 0) to certified distance ``accuracy`` (a number, or one per image)."""
        stopping, out = Stopping(energy, accuracy, x0, self.certified), Collector(x0)
        x = x0.detach().clamp_min(0)
        value, grad = energy.value_and_grad(x)
        out.evaluations += 1
        inverse = energy.preconditioner(x) if self.precondition else None
        history = _Pairs(x, self.memory)
        resolution = 1e-6 if x.dtype == torch.float32 else 1e-12  # of values of h, whose sums are in double precision
        # first the step that the smoothness allows, then those of Barzilai and Borwein
        gamma = safe = self._initial_scale(energy, grad).double()
        step, steep = torch.ones_like(value), torch.zeros_like(value, dtype=torch.bool)
        fresh, direction = ~steep, torch.zeros_like(x)
        for iteration in range(self.max_iterations + 1):
            p = projected_gradient(x, grad)
            status = stopping.status(energy, x, p)
            status[steep & (step < _SMALLEST_STEP) & (status == RUNNING)] = Status.PRECISION_FLOOR
            if iteration == self.max_iterations:
                status[status == RUNNING] = Status.ITERATION_LIMIT
            done = status != RUNNING
            if done.any():
                rest = out.finish(done, status, x, grad, stopping.certificate(energy, x, p))
                if rest.numel() == 0:
                    break
                energy = energy.select(rest)
                stopping.select(rest)
                history.select(rest)
                inverse = inverse.select(rest) if inverse is not None else None
                x, value, grad, direction, gamma = x[rest], value[rest], grad[rest], direction[rest], gamma[rest]
                step, steep, fresh, safe = step[rest], steep[rest], fresh[rest], safe[rest]
            turned = ~steep & (step < _STEEP_BELOW)
            if bool((fresh | turned).any()):
                new = _direction(x, grad, gamma, history, inverse)
                direction = torch.where(over_image(fresh, x), new, direction)
                direction = torch.where(over_image(turned, x), -over_image(safe, x) * grad, direction)
                step, steep = torch.where(turned, 1.0, step), turned | (steep & ~fresh)
            trial = torch.addcmul(x, over_image(step, x), direction).clamp_min(0)
            trial_value, trial_grad = energy.value_and_grad(trial)
            out.evaluations[out.active] += 1
            s, y = trial - x, trial_grad - grad
            before, after = per_image_dot(grad, s), per_image_dot(trial_grad, s)
            decrease = trial_value <= value + self.armijo * before
            flat = (trial_value - value).abs() <= resolution * value.abs()
            fresh = decrease | (flat & (after <= (2 * self.armijo - 1) * before))
            fresh &= (before < 0) & torch.isfinite(after)
            gamma = torch.where(history.update(fresh, s, y), _spectral(s, y), gamma)
            here = over_image(fresh, x)
            x, grad = torch.where(here, trial, x), torch.where(here, trial_grad, grad)
            value = torch.where(fresh, trial_value, value)
            secant = torch.nan_to_num(before / (before - after), nan=0.1).clamp(0.1, 0.5)
            step = torch.where(fresh, torch.ones_like(step), step * secant)
        return out.solution()


def _direction(x: Tensor, grad: Tensor, gamma: Tensor, history: _Pairs, inverse: Preconditioner | None) -> Tensor:
    """That of L-BFGS on the free pixels, of a gradient step of length gamma on those which it puts to zero."""
    scale = over_image(gamma, x)
    free = (x > scale * grad.clamp_min(0)) | ((x == 0) & (grad < 0))
    return torch.where(free, -history.apply(grad, free, gamma, inverse), -scale * grad)


def _spectral(s: Tensor, y: Tensor) -> Tensor:
    return (per_image_dot(s, y) / per_image_dot(y, y)).double()


class _Pairs:
    """The newest pairs (s, y) of every image, and the product with the L-BFGS matrix restricted to some pixels."""

    def __init__(self, like: Tensor, memory: int) -> None:
        self.s, self.y = (like.new_zeros(memory, *like.shape) for _ in range(2))
        self.count = torch.zeros(len(like), dtype=torch.int64, device=like.device)

    def update(self, accepted: Tensor, s: Tensor, y: Tensor) -> Tensor:
        """Keep the pairs of the images where ``accepted``, if they are of use; returns of which they are."""
        useful = accepted & (per_image_dot(s, y) > 1e-10 * s.flatten(1).norm(dim=1) * y.flatten(1).norm(dim=1))
        rows = torch.nonzero(useful).flatten()
        head = self.count[rows] % len(self.s)
        self.s[head, rows], self.y[head, rows] = s[rows], y[rows]
        self.count[rows] += 1
        return useful

    def apply(self, grad: Tensor, free: Tensor, gamma: Tensor, inverse: Preconditioner | None) -> Tensor:
        """H g: two loops over the pairs, all vectors restricted to the pixels ``free``.

        A restricted pair without positive curvature is left out. With a preconditioner, H_0 = P^{-1} between two
        restrictions, times the Barzilai-Borwein scale of the newest pair in its metric.
        """
        memory, images = len(self.s), torch.arange(len(grad), device=grad.device)
        slots = [(self.count - 1 - k) % memory for k in range(memory)]  # from the newest, empty ones last
        q = grad * free
        stack: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        scale, unset = gamma.to(grad), torch.ones_like(gamma, dtype=torch.bool)
        if inverse is not None:
            scale = torch.ones_like(scale)
        for slot in slots:
            s, y = self.s[slot, images] * free, self.y[slot, images] * free
            sy = per_image_dot(s, y)
            good = sy > 1e-10 * s.flatten(1).norm(dim=1) * y.flatten(1).norm(dim=1)
            if not good.any():
                continue
            rho = torch.where(good, 1 / sy, 0.0)
            first = good & unset
            if first.any():
                z = y if inverse is None else inverse(y) * free
                scale = torch.where(first, sy / per_image_dot(y, z), scale)
                unset = unset & ~first
            a = rho * per_image_dot(s, q)
            q = q - over_image(a, q) * y
            stack.append((s, y, rho, a))
        r = over_image(scale, q) * (q if inverse is None else inverse(q) * free)
        for s, y, rho, a in reversed(stack):
            r = r + over_image(a - rho * per_image_dot(y, r), r) * s
        return r

    def select(self, index: Tensor) -> None:
        """Keep the images ``index`` only."""
        self.s, self.y, self.count = self.s[:, index], self.y[:, index], self.count[index]

"""Total variation denoising min_x 1/2 ||x - y||^2 + alpha TV(x), isotropic, forward differences: who is how fast."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.peers.turns import PATIENCE, AbsentError, Array, Distance, NotReachedError, Problem, count, last


def forward(x: Array) -> Array:
    """Dx ``(2, ..., height, width)``, zero behind the last row and column."""
    z = np.zeros((2, *x.shape), x.dtype)
    np.subtract(x[..., 1:, :], x[..., :-1, :], out=z[0, ..., :-1, :])
    np.subtract(x[..., 1:], x[..., :-1], out=z[1, ..., :-1])
    return z


def transpose(p: Array) -> Array:
    """D^T p of p with zeros behind the last row and column."""
    x = -p[0] - p[1]
    x[..., 1:, :] += p[0, ..., :-1, :]
    x[..., 1:] += p[1, ..., :-1]
    return x


def fgp_iterates(y: Array, alpha: float) -> Iterator[Array]:
    """Fast gradient projection on the dual (Beck and Teboulle 2009), as one would write it in NumPy."""
    p = q = np.zeros((2, *y.shape), y.dtype)
    t, one = 1.0, np.asarray(1.0, y.dtype)
    while True:
        new = q + forward(y - transpose(q)) / 8
        new /= np.maximum(np.sqrt(np.square(new).sum(0)) / alpha, one)
        following = (1 + (1 + 4 * t * t) ** 0.5) / 2
        q = new + np.asarray((t - 1) / following, y.dtype) * (new - p)
        p, t = new, following
        yield y - transpose(p)


def reference(y: Array, alpha: float, relative: float, limit: int = 20_000) -> Array:
    """The minimizer in float64, to ||x - x^|| <= ``relative`` ||x|| by the duality gap (the largest of a batch)."""
    y = y.astype(np.float64)
    p = q = np.zeros((2, *y.shape))
    t = 1.0
    for n in range(limit):
        new = q + forward(y - transpose(q)) / 8
        new /= np.maximum(np.sqrt(np.square(new).sum(0)) / alpha, 1.0)
        if np.vdot(q - new, new - p) > 0:  # restart (O'Donoghue and Candes 2015)
            t = 1.0
        following = (1 + (1 + 4 * t * t) ** 0.5) / 2
        q = new + (t - 1) / following * (new - p)
        p, t = new, following
        if n % 20 == 19:
            x = y - transpose(p)
            z = forward(x)
            gap = (alpha * np.sqrt(np.square(z).sum(0)) - (p * z).sum(0)).sum((-2, -1))
            if np.all(np.sqrt(2 * gap) <= relative * np.sqrt(np.square(x).sum((-2, -1)))):
                return x
    raise RuntimeError(f"the reference was not reached in {limit} iterations")


def recon(problem: Problem, goal: float, distance: Distance) -> Callable[[], Array]:
    """``TotalVariationSolver`` to a certified distance of ``goal`` times 0.95 ||y||, which is less than ||x^||."""
    import torch

    from recon.lower_level import TotalVariationProblem, TotalVariationSolver

    y = torch.from_numpy(problem["y"]).reshape(-1, 1, *problem["y"].shape[-2:])
    accuracy = 0.95 * goal * y.flatten(1).norm(dim=1)

    def run() -> Array:
        solution = TotalVariationSolver()(TotalVariationProblem(y, float(problem["alpha"])), accuracy)
        return np.asarray(solution.x).reshape(problem["y"].shape)

    return run


def fgp(problem: Problem, goal: float, distance: Distance) -> Callable[[], Array]:
    y, alpha = problem["y"], float(problem["alpha"])
    n = count(fgp_iterates(y, alpha), goal, distance)
    return lambda: last(fgp_iterates(y, alpha), n)


def skimage(problem: Problem, goal: float, distance: Distance) -> Callable[[], Array]:
    """``denoise_tv_chambolle``, image by image, without its own stopping rule."""
    from skimage.restoration import denoise_tv_chambolle

    y, alpha = problem["y"], float(problem["alpha"])

    def run(n: int) -> Array:
        images = [denoise_tv_chambolle(image, weight=alpha, eps=0, max_num_iter=n) for image in np.atleast_3d(y.T).T]
        return np.stack(images).reshape(y.shape)

    return by_doubling(run, goal, distance)


def deepinv(problem: Problem, goal: float, distance: Distance) -> Callable[[], Array]:
    """``TVDenoiser`` with the best of four steps."""
    import torch
    from deepinv.models import TVDenoiser

    y, alpha = torch.from_numpy(problem["y"]), float(problem["alpha"])
    y = y.reshape(-1, 1, *y.shape[-2:])

    def solver(tau: float) -> Callable[[int], Array]:
        def run(n: int) -> Array:
            found: Array = TVDenoiser(n_it_max=n, crit=0.0, tau=tau)(y, ths=alpha).numpy()
            return found.reshape(problem["y"].shape)

        return run

    best = min((0.01, 0.03, 0.1, 0.3), key=lambda tau: distance(solver(tau)(100)))
    return by_doubling(solver(best), goal, distance)


def by_doubling(run: Callable[[int], Array], goal: float, distance: Distance) -> Callable[[], Array]:
    """``run(n)`` with the least n that reaches the goal, for programs that show no iterates."""
    high, began = 2, time.process_time()
    while (reached := distance(run(high))) > goal:
        if time.process_time() - began > PATIENCE:
            raise NotReachedError(f"{reached:.1e} after {high} iterations, {PATIENCE} s for finding their number")
        high *= 2
    low = high // 2
    while high - low > max(1, low // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if distance(run(middle)) <= goal else (middle, high)
    return lambda: run(high)


def odl_pdhg(problem: Problem, goal: float, distance: Distance) -> Callable[[], Array]:
    """``odl.solvers.pdhg`` on D, steps balanced by the best of four ratios."""
    import odl

    y, alpha = problem["y"], float(problem["alpha"])
    if y.ndim > 2:
        raise AbsentError("one image at a time")
    space = odl.uniform_discr([0, 0], list(y.shape), y.shape, dtype=str(y.dtype))
    gradient = odl.Gradient(space, method="forward", pad_mode="symmetric")
    data = 0.5 * odl.functionals.L2NormSquared(space).translated(space.element(y))
    isotropic = alpha * odl.functionals.GroupL1Norm(gradient.range)

    def run(n: int, ratio: float) -> Array:
        x = space.element(y.copy())  # which is worked on in place
        odl.solvers.pdhg(x, data, isotropic, gradient, niter=n, tau=ratio / 8**0.5, sigma=0.99 / (ratio * 8**0.5))
        return np.asarray(x.asarray())

    best = min((0.3, 1.0, 3.0, 10.0), key=lambda ratio: distance(run(60, ratio)))
    return by_doubling(lambda n: run(n, best), goal, distance)

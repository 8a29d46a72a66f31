"""CT with total variation, min_x 1/2 ||Ax - y||^2 + alpha TV(x), parallel beam; and filtered back-projection.

All have the same matrix (ASTRA's projector ``linear``); nothing is strongly convex here, so that nobody has a
certificate: everyone is told when it is near enough.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.peers.denoising import forward, transpose
from benchmarks.peers.turns import PATIENCE, Array, Distance, NotReachedError, Problem, count, last

if TYPE_CHECKING:
    from recon.lower_level import Snapshot
    from recon.operators import ParallelBeam

#: smoothings, whether there is a preconditioner, and the filter of FBP
Candidate = tuple[tuple[float, ...], bool, str]


def geometry(size: int, views: int) -> ParallelBeam:
    """The scan of the comparison: pixels of length 1."""
    from recon.operators import ParallelBeam

    return ParallelBeam.equispaced((size, size), 1.0, views)


def _scan(problem: Problem) -> ParallelBeam:
    return geometry(int(problem["size"]), int(problem["views"]))


def primal_dual(
    y: Array, project: Callable[[Array], Array], back: Callable[[Array], Array], alpha: float, size: int, ratio: float
) -> Iterator[tuple[Array, Array, Array]]:
    """x, r and p of Chambolle and Pock (2011) with diagonal steps (Pock and Chambolle 2011); A has no negative entries.

    ``ratio`` makes steps of the image longer and those of the dual variables shorter.
    """
    one = np.asarray(ratio, y.dtype)
    step = 1 / (one * np.maximum(project(np.ones((size, size), y.dtype)), np.asarray(1e-9, y.dtype)))
    tau = one / (back(np.ones_like(y)) + 4)
    x = bar = np.zeros((size, size), y.dtype)
    p, r = np.zeros((2, size, size), y.dtype), np.zeros_like(y)
    while True:
        r = (r + step * (project(bar) - y)) / (1 + step)
        p = p + forward(bar) / (2 * one)
        p /= np.maximum(np.sqrt(np.square(p).sum(0)) / alpha, np.asarray(1, y.dtype))
        new = x - tau * (back(r) + transpose(p))
        x, bar = new, 2 * new - x
        yield x, r, p


def sparse_matrix(size: int, views: int, dtype: str) -> Any:
    """A of :func:`geometry` as SciPy's CSR matrix."""
    import astra
    from scipy import sparse

    scan = geometry(size, views)
    _, spacing, _ = scan.across()
    box = astra.create_vol_geom(size, size)
    beams = astra.create_proj_geom("parallel", spacing, scan.detector_pixels, np.asarray(scan.angles))
    projector = astra.create_projector("linear", beams, box)
    matrix = sparse.csc_matrix(astra.matrix.get(astra.projector.matrix(projector)))
    return matrix[:, upright(np.arange(size * size).reshape(size, size)).ravel()].tocsr().astype(dtype)


def upright(picture: Array) -> Array:
    """A picture of ASTRA's in the axes of everyone else: a quarter turn."""
    return np.rot90(picture, 3)


def chambolle_pock(problem: Problem, goal: float, distance: Distance) -> Callable[[], Array]:
    """With SciPy's sparse matrix, the best of four ratios."""
    y, alpha, size, views = problem["y"].ravel(), float(problem["alpha"]), int(problem["size"]), int(problem["views"])
    matrix = sparse_matrix(size, views, str(y.dtype))
    adjoint = matrix.T.tocsr()

    def iterates(ratio: float) -> Iterator[Array]:
        steps = primal_dual(
            y, lambda x: matrix @ x.ravel(), lambda r: (adjoint @ r).reshape(size, size), alpha, size, ratio
        )
        return (x for x, _, _ in steps)

    best = min((0.01, 0.03, 0.1, 0.3), key=lambda ratio: distance(last(iterates(ratio), 100)))
    n = count(iterates(best), goal, distance, 2000)
    return lambda: last(iterates(best), n)


def odl_pdhg(problem: Problem, goal: float, distance: Distance) -> Callable[[], Array]:
    """``odl.solvers.pdhg`` with ``odl.Gradient`` and ODL's ray transform (``astra_cpu``), the best of five ratios."""
    import odl
    from odl.applications.tomo.operators.ray_trafo import RayTransform

    alpha = float(problem["alpha"])
    transform = RayTransform(*_scan(problem).to_odl(), impl="astra_cpu")
    gradient = odl.Gradient(transform.domain, method="forward", pad_mode="symmetric")
    stacked = odl.BroadcastOperator(transform, gradient)
    y = transform.range.element(problem["y"].reshape(transform.range.shape))
    # spaces of ODL may weigh their norms by the areas of cells: of pixels 1, of data whatever the version makes of them
    square = odl.functionals.L2NormSquared(transform.range)
    weight = float(square(transform.range.one())) / transform.range.size
    data = (0.5 / weight) * square.translated(y)
    total = odl.functionals.SeparableSum(data, alpha * odl.functionals.GroupL1Norm(gradient.range))
    norm = 1.1 * odl.power_method_opnorm(stacked, maxiter=12)

    def run(n: int, ratio: float, callback: Callable[[Any], None] | None = None) -> Array:
        x = transform.domain.zero()
        zero = odl.functionals.ZeroFunctional(transform.domain)
        steps = {"tau": ratio / norm, "sigma": 1 / (ratio * norm)}
        odl.solvers.pdhg(x, zero, total, stacked, niter=n, callback=callback, **steps)
        return np.asarray(x.asarray())

    best = min((0.01, 0.03, 0.1, 0.3, 1.0), key=lambda ratio: distance(run(60, ratio)))
    seen, nearest, began = 0, float("inf"), time.process_time()

    def near(x: Any) -> None:
        nonlocal seen, nearest
        seen, nearest = seen + 1, min(nearest, distance(np.asarray(x.asarray())))
        if nearest <= goal or time.process_time() - began > PATIENCE:
            raise StopIteration

    with contextlib.suppress(StopIteration):
        run(10**6, best, near)
    if nearest > goal:
        raise NotReachedError(f"{nearest:.1e} after {seen} iterations, the limit is {PATIENCE} s")
    return lambda: run(seen, best)


#: smoothings, the next from the solution of the one before; those in front are solved roughly
CHAINS = ((3e-3,), (3e-3, 1e-3), (3e-3, 3e-4), (3e-3, 5e-4, 1e-4))
ROUGH = 40  # iterations
FILTERS = ("ram-lak", "hann")  # of FBP


def smoothed(problem: Problem) -> Callable[[Candidate, Callable[[Snapshot], None]], Array]:
    """What solves smoothed total variation in the way of a candidate; it calls back in the last smoothing."""
    import torch

    from models import TotalVariation
    from recon.lower_level import LBFGS, Energy
    from recon.operators import FilteredBackProjection, RayTransform

    scan = _scan(problem)
    operator = RayTransform(scan)
    filters = {name: FilteredBackProjection(scan, name) for name in FILTERS}
    y = torch.from_numpy(problem["y"]).reshape(1, 1, *operator.range_shape[1:])  # type: ignore[index]
    log_alpha = math.log(float(problem["alpha"]))

    def solve(candidate: Candidate, callback: Callable[[Snapshot], None]) -> Array:
        chain, precondition, name = candidate
        x = filters[name](y)
        for index, smoothing in enumerate(chain):
            tv = TotalVariation(log_alpha, math.log(smoothing)).to(y).requires_grad_(False)
            final = index == len(chain) - 1
            solver = LBFGS(certified=False, precondition=precondition, max_iterations=1000 if final else ROUGH)
            x = solver(Energy(y, tv, operator), x, 1e-12, callback if final else None).x
        return np.asarray(x)[0, 0]

    return solve


def recon(problem: Problem, goal: float, distance: Distance) -> Callable[[], Array]:
    """L-BFGS on smoothed total variation from FBP; what gets there in the fewest CPU seconds is chosen.

    Candidates are :data:`CHAINS` of smoothings, each with and without preconditioner, and from two filters of FBP.
    """
    solve = smoothed(problem)

    def spent(candidate: Candidate, patience: float) -> tuple[float, int]:
        """CPU seconds, infinite beyond ``patience``, and steps of the last smoothing."""
        steps, looked, began = 0, 0.0, time.process_time()
        reached = False

        def near(now: Snapshot) -> None:
            nonlocal steps, looked, reached
            begin = time.process_time()
            steps, reached = steps + 1, distance(np.asarray(now.x)[0, 0]) <= goal
            looked += time.process_time() - begin
            if reached or time.process_time() - began - looked > patience:
                raise StopIteration

        solve(candidate, near)
        return (time.process_time() - began - looked, steps) if reached else (math.inf, steps)

    best, cost, steps = None, float(PATIENCE), 0
    for candidate in itertools.product(CHAINS, (True, False), FILTERS):
        seconds, needed = spent(candidate, cost)
        if seconds < cost:
            best, cost, steps = candidate, seconds, needed
    if best is None:
        raise NotReachedError("with no smoothing")
    print(f"recon, to {goal:g}: {best}, {steps} steps", file=sys.stderr)

    def run() -> Array:
        left = steps

        def stop(now: Snapshot) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise StopIteration

        return solve(best, stop)

    return run


def astra_fbp(problem: Problem, goal: float, distance: Distance) -> Callable[[], Array]:
    """ASTRA's FBP on the CPU."""
    return _astra(problem, "FBP", 1)


def astra_sirt(problem: Problem, goal: float, distance: Distance) -> Callable[[], Array]:
    """100 iterations of ASTRA's SIRT, which minimizes something else: context."""
    return _astra(problem, "SIRT", 100)


def _astra(problem: Problem, kind: str, iterations: int) -> Callable[[], Array]:
    import astra

    scan, size = _scan(problem), int(problem["size"])
    _, spacing, _ = scan.across()
    box = astra.create_vol_geom(size, size)
    beams = astra.create_proj_geom("parallel", spacing, scan.detector_pixels, np.asarray(scan.angles))
    image = astra.data2d.create("-vol", box, 0.0)
    config = astra.astra_dict(kind)
    config["ProjectorId"] = astra.create_projector("linear", beams, box)
    data = problem["y"].reshape(len(scan.angles), scan.detector_pixels).astype(np.float32)
    config["ProjectionDataId"] = astra.data2d.create("-sino", beams, data)
    config["ReconstructionDataId"] = image
    algorithm = astra.algorithm.create(config)

    def run() -> Array:
        astra.data2d.store(image, 0.0)
        astra.algorithm.run(algorithm, iterations)
        return upright(astra.data2d.get(image))

    return run


def skimage_fbp(problem: Problem, goal: float, distance: Distance) -> Callable[[], Array]:
    """``iradon`` of as many detector pixels as there are."""
    from skimage.transform import iradon

    scan, size = _scan(problem), int(problem["size"])
    data = problem["y"].reshape(len(scan.angles), scan.detector_pixels).T
    return lambda: np.asarray(iradon(data, np.degrees(scan.angles), output_size=size, circle=False))


def recon_fbp(problem: Problem, goal: float, distance: Distance) -> Callable[[], Array]:
    """``FilteredBackProjection``."""
    import torch

    from recon.operators import FilteredBackProjection

    scan = _scan(problem)
    invert = FilteredBackProjection(scan)
    y = torch.from_numpy(problem["y"]).reshape(1, 1, len(scan.angles), scan.detector_pixels)
    return lambda: np.asarray(invert(y))[0, 0]


def phantom(size: int) -> Array:
    """Shepp-Logan."""
    from skimage.data import shepp_logan_phantom
    from skimage.transform import resize

    found: Array = resize(shepp_logan_phantom().astype(np.float64), (size, size), anti_aliasing=True)
    return found


def reference(y: Array, alpha: float, size: int, views: int, folder: Path) -> tuple[Array, float, float]:
    r"""The minimizer by Chambolle-Pock in float64, kept in ``folder``; how far it moved, and its gap, both relative.

    It is done when 1000 iterations moved it by less than 1e-4 of its norm, and convergence is linear then: this is more
    than what is left. The gap is that of the objective: for the dual point (r, p) at hand and every minimizer x^ with
    \|\|x^\|\| <= 2 \|\|x\|\|,

        F(x) - F(x^) <= F(x) + \|\|r\|\|^2 / 2 + <r, y> + 2 \|\|x\|\| \|\|A^T r + D^T p\|\|.

    Raises
    ------
    NotReachedError
        it takes more than 20000 iterations.
    """
    import torch

    from recon.operators import RayTransform

    facts = hashlib.sha256(y.tobytes() + repr((alpha, size, views)).encode()).hexdigest()[:16]
    path = folder / f"ct_{size}_{views}_{facts}.npz"
    if path.exists():
        with np.load(path) as file:
            return file["x"], float(file["moved"]), float(file["gap"])
    operator = RayTransform(geometry(size, views))
    shape = operator.range_shape

    def project(x: Array) -> Array:
        return operator(torch.from_numpy(x)[None, None]).numpy().ravel()

    def back(r: Array) -> Array:
        return operator.adjoint(torch.from_numpy(r).reshape(1, *shape))[0, 0].numpy()  # type: ignore[misc]

    before, iterates = np.zeros((size, size)), primal_dual(y, project, back, alpha, size, 0.02)
    for n in itertools.count(1000, 1000):
        x, r, p = next(itertools.islice(iterates, 999, None))
        norm, moved = float(np.linalg.norm(x)), float(np.linalg.norm(x - before))
        if moved <= 1e-4 * norm:
            break
        if n == 20_000:
            raise NotReachedError(f"the reference still moves by {moved / norm:.1e}")
        before = x
    misfit, infeasible = project(x) - y, back(r) + transpose(p)
    value = 0.5 * misfit @ misfit + alpha * np.sqrt(np.square(forward(x)).sum(0)).sum()
    gap = float(value + 0.5 * r @ r + r @ y + 2 * norm * np.linalg.norm(infeasible)) / float(value)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(path, x=x, moved=moved / norm, gap=gap)
    return x, moved / norm, gap

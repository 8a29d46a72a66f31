"""CT with total variation, min_x 1/2 ||Ax - y||^2 + alpha TV(x), parallel beam; and filtered back-projection.

All have the same matrix (ASTRA's projector ``linear``); nothing is strongly convex here, so that nobody has a
certificate: everyone is told when it is near enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.peers.denoising import by_doubling, forward, transpose
from benchmarks.peers.turns import Array, Distance, NotReachedError, Problem, count, last

if TYPE_CHECKING:
    from recon.operators import ParallelBeam


def geometry(size: int, views: int) -> ParallelBeam:
    """The scan of the comparison: pixels of length 1."""
    from recon.operators import ParallelBeam

    return ParallelBeam.equispaced((size, size), 1.0, views)


def _scan(problem: Problem) -> ParallelBeam:
    return geometry(int(problem["size"]), int(problem["views"]))


def chambolle_pock_iterates(y: Array, matrix: Any, alpha: float, size: int, ratio: float) -> Iterator[Array]:
    """Chambolle and Pock (2011) with diagonal steps (Pock and Chambolle 2011), SciPy's sparse matrix.

    ``ratio`` makes those of the image longer and those of the dual variables shorter.
    """
    one = np.asarray(ratio, y.dtype)
    step = 1 / (one * np.maximum(np.asarray(abs(matrix).sum(1)).ravel(), 1e-9).astype(y.dtype))
    columns = np.asarray(abs(matrix).sum(0)).ravel().astype(y.dtype)
    tau = (one / (columns + 4)).reshape(size, size)
    x = bar = np.zeros((size, size), y.dtype)
    p, r = np.zeros((2, size, size), y.dtype), np.zeros_like(y)
    adjoint = matrix.T.tocsr()
    while True:
        r = (r + step * (matrix @ bar.ravel() - y)) / (1 + step)
        p = p + forward(bar) / (2 * one)
        p /= np.maximum(np.sqrt(np.square(p).sum(0)) / alpha, np.asarray(1, y.dtype))
        new = x - tau * ((adjoint @ r).reshape(size, size) + transpose(p))
        x, bar = new, 2 * new - x
        yield x


def sparse_matrix(size: int, views: int, dtype: str) -> Any:
    """A of :func:`geometry` as SciPy's CSR matrix."""
    import astra
    from scipy import sparse

    scan = geometry(size, views)
    _, spacing, _ = scan.across()
    box = astra.create_vol_geom(size, size)
    beams = astra.create_proj_geom("parallel", spacing, scan.detector_pixels, np.asarray(scan.angles))
    projector = astra.create_projector("linear", beams, box)
    matrix = astra.matrix.get(astra.projector.matrix(projector))
    return sparse.csr_matrix(matrix).astype(dtype)


def chambolle_pock(problem: Problem, goal: float, distance: Distance) -> Callable[[], Array]:
    y, alpha, size, views = problem["y"].ravel(), float(problem["alpha"]), int(problem["size"]), int(problem["views"])
    matrix = sparse_matrix(size, views, str(y.dtype))

    def iterates(ratio: float) -> Iterator[Array]:
        return chambolle_pock_iterates(y, matrix, alpha, size, ratio)

    best = min((0.03, 0.1, 0.3), key=lambda ratio: distance(last(iterates(ratio), 100)))
    n = count(iterates(best), goal, distance, 5000)
    return lambda: last(iterates(best), n)


def odl_pdhg(problem: Problem, goal: float, distance: Distance) -> Callable[[], Array]:
    """``odl.solvers.pdhg`` with ``odl.Gradient`` and ODL's ray transform (``astra_cpu``), the best of three ratios."""
    import odl
    from odl.applications.tomo.operators.ray_trafo import RayTransform

    alpha = float(problem["alpha"])
    transform = RayTransform(*_scan(problem).to_odl(), impl="astra_cpu")
    gradient = odl.Gradient(transform.domain, method="forward", pad_mode="symmetric")
    stacked = odl.BroadcastOperator(transform, gradient)
    y = transform.range.element(problem["y"].reshape(transform.range.shape))
    # ODL's inner products are weighted by the areas of the cells: of pixels 1, of the data their cell's
    data = (0.5 / y.space.cell_volume) * odl.functionals.L2NormSquared(transform.range).translated(y)
    total = odl.functionals.SeparableSum(data, alpha * odl.functionals.GroupL1Norm(gradient.range))
    norm = 1.1 * odl.power_method_opnorm(stacked, maxiter=12)

    def run(n: int, ratio: float) -> Array:
        x = transform.domain.zero()
        zero = odl.functionals.ZeroFunctional(transform.domain)
        odl.solvers.pdhg(x, zero, total, stacked, niter=n, tau=ratio / norm, sigma=1 / (ratio * norm))
        return np.asarray(x.asarray())

    best = min((0.3, 1.0, 3.0), key=lambda ratio: distance(run(60, ratio)))
    return by_doubling(lambda n: run(n, best), goal, distance)


def recon(problem: Problem, goal: float, distance: Distance) -> Callable[[], Array]:
    """L-BFGS with preconditioner on smoothed total variation; of four smoothings the fastest that gets there."""
    import math

    import torch

    from models import TotalVariation
    from recon.lower_level import LBFGS, Energy, Snapshot
    from recon.operators import FilteredBackProjection, RayTransform

    scan = _scan(problem)
    operator, first = RayTransform(scan), FilteredBackProjection(scan)
    y = torch.from_numpy(problem["y"]).reshape(1, 1, *operator.range_shape[1:])  # type: ignore[index]

    def solve(smoothing: float, limit: int, callback: Callable[[Snapshot], None] | None = None) -> Array:
        tv = TotalVariation(math.log(float(problem["alpha"])), math.log(smoothing)).to(y).requires_grad_(False)
        solver = LBFGS(certified=False, max_iterations=limit)
        return np.asarray(solver(Energy(y, tv, operator), first(y), 1e-12, callback).x)[0, 0]

    def spent(smoothing: float) -> int:
        found = [0]

        def near(now: Snapshot) -> None:
            if distance(np.asarray(now.x)[0, 0]) <= goal:
                found[0] = int(now.evaluations)
                raise StopIteration

        solve(smoothing, 2000, near)
        return found[0] or 10**9

    counts = {smoothing: spent(smoothing) for smoothing in (3e-2, 1e-2, 3e-3, 1e-3)}
    best = min(counts, key=lambda smoothing: counts[smoothing])
    if counts[best] == 10**9:
        raise NotReachedError("with no smoothing")
    return lambda: solve(best, counts[best])


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
        found: Array = astra.data2d.get(image)
        return found

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


def reference(y: Array, matrix: Any, alpha: float, size: int, iterations: int) -> Array:
    """Chambolle-Pock in float64, as many iterations as ``iterations``.

    Raises
    ------
    NotReachedError
        the second half of them still moved the image by more than 3e-4 of its norm.
    """
    half = np.zeros((size, size))
    for n, x in enumerate(chambolle_pock_iterates(y, matrix, alpha, size, 0.05), 1):
        if n == iterations // 2:
            half = x
        if n == iterations:
            moved = float(np.linalg.norm(x - half) / np.linalg.norm(x))
            if moved > 3e-4:
                raise NotReachedError(f"the reference still moves by {moved:.1e}")
            return x
    raise AssertionError("iterates do not end")

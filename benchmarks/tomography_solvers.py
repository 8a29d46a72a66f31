"""Lower level of CT: evaluations with and without preconditioner, and over x >= 0.

Shepp-Logan phantom, parallel beam, Gaussian noise of 2 % of the mean, total variation; float64, started from filtered
back-projection. Evaluations until the norm of the gradient (of its projection, over x >= 0) is 1e-4 and 1e-6 times that
at x = 0, PSNR there, and the certified distance to the minimizer at 1e-6 for mu = 1e-6 ||A||^2. Last, Hessian-vector
products of conjugate gradients for an adjoint system at the solution, to the same reductions of its residual.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import arguments, print_table, start, write_csv
from datasets.sources.phantoms import SheppLogan
from models import TotalVariation
from recon.lower_level import LBFGS, Energy, ProjectedLBFGS, Snapshot, conjugate_gradients
from recon.operators import FilteredBackProjection, ParallelBeam, RayTransform

GOALS = (1e-4, 1e-6)
FIELD = 300.0  # mm


def psnr(x: Tensor, truth: Tensor) -> float:
    return -10 * math.log10(float((x - truth).square().mean()))


def measure(size: int, views: int, log_smoothing: float, log_weight: float) -> list[dict[str, Any]]:
    geometry = ParallelBeam.equispaced((size, size), FIELD / size, views)
    operator = RayTransform(geometry)
    truth = SheppLogan(size)[0][None].double()
    y = operator(truth)
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(0), dtype=y.dtype)
    y = y + 0.02 * float(y.abs().mean()) * noise
    x0 = FilteredBackProjection(geometry)(y)
    tv = TotalVariation(log_weight, log_smoothing).double().requires_grad_(False)
    energy = Energy(y, tv, operator, mu=1e-6 * operator.norm_bound**2)
    scale = float(energy.grad(torch.zeros_like(x0)).norm())
    labels = {"size": size, "views": views, "smoothing": math.exp(log_smoothing)}
    rows, x = [], x0
    for solver, precondition in ((LBFGS, False), (LBFGS, True), (ProjectedLBFGS, False), (ProjectedLBFGS, True)):
        hits: dict[float, tuple[float, float]] = dict.fromkeys(GOALS, (math.inf, math.nan))

        def note(now: Snapshot, hits: dict[float, tuple[float, float]] = hits) -> None:
            """The evaluation at which each goal is first reached, and the PSNR there."""
            gradient = float(now.error) * energy.strong_convexity
            for goal in GOALS:
                if gradient <= goal * scale and hits[goal][0] == math.inf:
                    hits[goal] = (int(now.evaluations), psnr(now.x, truth))

        begin = time.perf_counter()
        solution = solver(certified=False, precondition=precondition, max_iterations=2000)(
            energy, x0, GOALS[1] * scale, note
        )
        seconds, x = time.perf_counter() - begin, solution.x
        counts = {f"{goal:g}": hits[goal][0] for goal in GOALS}
        pictures = {f"PSNR {goal:g}": hits[goal][1] for goal in GOALS}
        last = {"relative certified error": float(solution.error / x.flatten().norm()), "seconds": seconds}
        name = f"{solver.__name__}{', preconditioned' if precondition else ''}"
        rows.append(labels | {"method": name} | counts | pictures | last)
    b, hessian = x - truth, energy.hessian(x)
    for precondition in (False, True):
        inverse = energy.preconditioner(x) if precondition else None
        begin, counts = time.perf_counter(), {}
        for goal in GOALS:
            accuracy = goal * float(b.norm())
            solved = conjugate_gradients(hessian, b, torch.zeros_like(b), accuracy, preconditioner=inverse)
            counts[f"{goal:g}"] = int(solved.evaluations) if solved.converged else math.inf
        name = f"CG{', preconditioned' if precondition else ''}"
        empty = {f"PSNR {goal:g}": math.nan for goal in GOALS} | {"relative certified error": math.nan}
        rows.append(labels | {"method": name} | counts | empty | {"seconds": time.perf_counter() - begin})
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--views", type=int, nargs="+", default=[60, 180])
    parser.add_argument("--log-smoothing", type=float, nargs="+", default=[-5.0])
    parser.add_argument("--log-weight", type=float, default=1.0)
    args = parser.parse_args()
    start(args)
    if args.quick:
        args.size, args.views = 48, [20]
    rows = []
    for views in args.views:
        for log_smoothing in args.log_smoothing:
            part = measure(args.size, views, log_smoothing, args.log_weight)
            print_table(f"TV, {args.size}², {views} views: evaluations to a relative gradient", part)
            rows += part
    write_csv(args.output / "tomography_solvers.csv", rows)


if __name__ == "__main__":
    main()

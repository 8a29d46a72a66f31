"""Lower-level solvers: evaluations and seconds of L-BFGS, FISTA and gradient descent against condition number.

Energies 1/2||x - y||^2 + R(x), R a Fields of Experts or smoothed total variation of fixed weight, whose smoothing is
chosen so that L/mu, by the guaranteed constants that FISTA uses, has the value of the column kappa.

Then what solvers take for themselves, beside energies or products with Hessians: CPU time per evaluation of a solve of
one image in single precision on one thread, with the compiled steps and with those of torch, in turns.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import arguments, denoising_data, print_table, start, write_csv
from models import FieldsOfExperts, TotalVariation
from recon.lower_level import FISTA, LBFGS, Energy, HessianMap, ProjectedLBFGS, Regularizer, Solver
from recon.lower_level.solvers.compiled.library import describe

#: log weights: they denoise well at a noise level of 0.1, except for the strong one, which makes solving harder
LOG_WEIGHTS = {"FoE": -4.25, "FoE, strong": -2.5, "TV": -2.5}


def regularizer(kind: str, kappa: float, filters: int, dtype: torch.dtype) -> Regularizer:
    """Of the weight above, and smoothed so that the energy has the condition number ``kappa``."""

    def make(log_width: float) -> Regularizer:
        if kind == "TV":
            return TotalVariation(LOG_WEIGHTS[kind], log_width).to(dtype)
        return FieldsOfExperts(filters, log_weight=LOG_WEIGHTS[kind], log_width=log_width).to(dtype)

    # the smoothness of both is inversely proportional to the width
    return make(math.log(make(0.0).smoothness() / (kappa - 1)))


#: gradient descent gives up after this many times the evaluations of FISTA
PATIENCE = 12


def measure(energy: Energy, x0: Tensor, accuracy: float, repeats: int) -> list[dict[str, Any]]:
    """Solve with every method in turns; gradient descent once, because it is slow."""
    rows: dict[str, dict[str, Any]] = {}
    for turn in range(repeats):
        solvers: dict[str, Solver] = {"L-BFGS": LBFGS(), "FISTA": FISTA()}
        if turn == 0:
            solvers["gradient descent"] = FISTA(accelerated=False)
        for name, solver in solvers.items():
            if isinstance(solver, FISTA) and not solver.accelerated:
                solver.max_iterations = PATIENCE * rows["FISTA"]["most evaluations"]
            begin = time.perf_counter()
            solution = solver(energy, x0, accuracy)
            seconds = time.perf_counter() - begin
            if name in rows:
                rows[name]["seconds"] = min(seconds, rows[name]["seconds"])
                continue
            rows[name] = {
                "method": name,
                "evaluations": float(solution.evaluations.double().mean()),
                "most evaluations": int(solution.evaluations.max()),
                "seconds": seconds,
                "converged": solution.converged,
                "error": float(solution.error.max()),
            }
    return list(rows.values())


def compare(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One line of the table: evaluations and the ratios that matter."""
    lbfgs, fista, descent = rows
    bound = "" if descent["converged"] else ">"
    return {
        "L-BFGS": lbfgs["evaluations"],
        "FISTA": fista["evaluations"],
        "GD": bound + f"{descent['evaluations']:.0f}",
        "L-BFGS/FISTA": lbfgs["evaluations"] / fista["evaluations"],
        "GD/L-BFGS": bound + f"{descent['evaluations'] / lbfgs['evaluations']:.1f}",
        "GD/FISTA": bound + f"{descent['evaluations'] / fista['evaluations']:.1f}",
        "L-BFGS [s]": lbfgs["seconds"],
        "FISTA [s]": fista["seconds"],
        "GD [s]": descent["seconds"],
        "L-BFGS/FISTA, time": lbfgs["seconds"] / fista["seconds"],
    }


# --- what solvers take for themselves --------------------------------------------------------------------------------

#: most of the time of the energy that L-BFGS may take for itself
GOALS = {"TV 128²": 0.3, "FoE 256²": 0.1}


@dataclass
class Clock:
    """CPU seconds inside of what it wraps, and calls."""

    seconds: float = 0.0
    calls: int = 0

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            begin = time.process_time()
            result = call(*arguments)
            self.seconds += time.process_time() - begin
            self.calls += 1
            return result

        return timed


def minimize(energy: Energy, solver: Solver, accuracy: float, clock: Clock) -> None:
    """Solve, with the energy on the clock."""
    energy = energy.select(torch.arange(len(energy.y)))  # a copy
    energy.value_and_grad = clock.wrap(energy.value_and_grad)  # type: ignore[method-assign]
    solver(energy, energy.y, accuracy)


def differentiate(energy: Energy, x: Tensor, accuracy: float, clock: Clock) -> None:
    """The adjoint equation, with products on the clock."""
    energy = energy.select(torch.arange(len(energy.y)))
    plain = energy.hessian

    def hessian(at: Tensor) -> HessianMap:
        linear = plain(at)
        return HessianMap(clock.wrap(lambda v, kept: (linear if kept is None else linear.select(kept))(v)))

    energy.hessian = hessian  # type: ignore[method-assign]
    energy.solve_adjoint(x, energy.y - x, torch.zeros_like(x), accuracy, 10_000)


def bookkeeping(name: str, energy: Energy, repeats: int) -> list[dict[str, Any]]:
    """A row for every method: minima over turns."""
    x, accuracy = LBFGS()(energy, energy.y, 1e-2).x, 1e-4 * math.sqrt(energy.y[0].numel())
    solvers: dict[str, Solver] = {"L-BFGS": LBFGS(), "projected L-BFGS": ProjectedLBFGS(), "FISTA": FISTA()}
    calls: dict[str, Callable[[Clock], None]] = {
        method: partial(minimize, energy, solver, accuracy) for method, solver in solvers.items()
    }
    calls["conjugate gradients"] = partial(differentiate, energy, x, 1e-3 * accuracy)
    best: dict[tuple[str, str], Clock] = {}
    own: dict[tuple[str, str], float] = {}
    before = os.environ.get("RECON_KERNELS", "best")
    for turn in range(repeats + 1):
        for method, call in calls.items():
            for steps in ("best", "off"):
                key, clock = (method, steps), Clock()
                os.environ["RECON_KERNELS"] = steps
                begin = time.process_time()
                call(clock)
                rest = (time.process_time() - begin - clock.seconds) / clock.calls
                if turn and rest < own.get(key, math.inf):
                    own[key], best[key] = rest, clock
    os.environ["RECON_KERNELS"] = before
    rows = []
    for method in calls:
        clock = best[method, "best"]
        energy_time = 1e3 * clock.seconds / clock.calls
        rows.append(
            {
                "energy": name,
                "method": method,
                "evaluations": clock.calls,
                "energy [ms]": energy_time,
                "torch [ms]": 1e3 * own[method, "off"],
                "compiled [ms]": 1e3 * own[method, "best"],
                "torch/energy": 1e3 * own[method, "off"] / energy_time,
                "compiled/energy": 1e3 * own[method, "best"] / energy_time,
                "goal": GOALS.get(name, "") if method == "L-BFGS" else "",
            }
        )
    return rows


def measure_bookkeeping(data: str, quick: bool) -> list[dict[str, Any]]:
    """On one thread, whatever there is."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    for name, kind, size, repeats in (("TV 128²", "TV", 128, 9), ("FoE 256²", "FoE, strong", 256, 3)):
        size = 32 if quick else size
        y = denoising_data(data, torch.float32, limit=1, size=size)[1]
        rows += bookkeeping(name, Energy(y, regularizer(kind, 1000.0, 48, y.dtype)), 1 if quick else repeats)
    torch.set_num_threads(threads)
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--kappa", type=float, nargs="+", default=[40, 150, 500, 1000, 3000])
    parser.add_argument("--accuracy", type=float, nargs="+", default=[1e-1, 1e-2, 1e-4])
    args = parser.parse_args()
    start(args)
    if args.quick:
        args.kappa, args.accuracy = [40, 500, 1000], [1e-1, 1e-2]
    images, size, filters, repeats = (2, 32, 24, 1) if args.quick else (4, 64, 48, 3)
    _, y = denoising_data(args.data, torch.float64, limit=images, size=size)
    rows: list[dict[str, Any]] = []
    for kind in LOG_WEIGHTS:
        table = []
        for kappa in args.kappa:
            energy = Energy(y, regularizer(kind, kappa, filters, y.dtype))
            exact = energy.smoothness / energy.strong_convexity
            for accuracy in args.accuracy:
                labels = {"regularizer": kind, "kappa": round(exact, 6), "accuracy": accuracy}
                part = measure(energy, y, accuracy, repeats)
                rows += [labels | row for row in part]
                table.append({"kappa": exact, "accuracy": accuracy} | compare(part))
        title = f"{kind}, {images} images {size}², float64: evaluations per image to a certified ||x - x^|| <= accuracy"
        print_table(f"{title}\n(targets at kappa >= 500: L-BFGS/FISTA <= 0.6, GD/L-BFGS and GD/FISTA >= 10)", table)
    write_csv(args.output / "solvers.csv", rows)
    own = measure_bookkeeping(args.data, args.quick)
    print_table(f"CPU time per evaluation, one image, float32, one thread; steps: {describe()}", own)
    write_csv(args.output / "bookkeeping.csv", own)


if __name__ == "__main__":
    main()

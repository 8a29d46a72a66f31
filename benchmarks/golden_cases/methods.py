"""Upper-level methods: five iterations, and the same interrupted after three and resumed from a file."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.golden_cases.common import Cases, Context, attempt, bits, exact, normal, pictures, regularizer
from models import Convexity, InitialKernels, LearnedTV
from recon.bilevel import (
    DFOLS,
    HOAG,
    MAID,
    Accelerations,
    AccuracySchedule,
    BilevelObjective,
    Differentiation,
    FixedAccuracy,
    InexactAdam,
    InexactSGD,
    LineSearch,
    NegativePSNR,
    Piggyback,
    PublishedMAID,
    Record,
    SaddleObjective,
)
from recon.lower_level import FISTA, PDHG, SquaredL2
from recon.operators import Blur, Identity

ITERATIONS, INTERRUPTED = 5, 3
#: what a record says; whatever else is added to it later is not compared
FIELDS = [
    "iteration",
    "loss",
    "lower",
    "upper",
    "epsilon",
    "delta",
    "omega",
    "step",
    "trials",
    "evaluations",
    "gradient_norm",
    "progress",
    "rounding",
    "grade",
]

Objective = BilevelObjective | SaddleObjective
Method = Callable[[list[nn.Parameter]], torch.optim.Optimizer]

#: every method, with the options that configs/figures and configs use
METHODS: dict[str, Method] = {
    "maid": lambda p: MAID(p),
    "maid 4a": lambda p: PublishedMAID(p, accelerations=Accelerations("goal_oriented", largest_growth=4.0)),
    "maid 4a + 4b": lambda p: PublishedMAID(
        p, lr=0.1, accelerations=Accelerations("goal_oriented", "lbfgs", largest_growth=4.0)
    ),
    "maid from 100": lambda p: MAID(p, solution_accuracy=100.0, adjoint_accuracy=100.0, tolerance=1e-4),
    "maid from 1e-5": lambda p: MAID(p, solution_accuracy=1e-5, adjoint_accuracy=1e-5, tolerance=1e-4),
    "maid tolerance": lambda p: MAID(p, tolerance=0.5),
    "maid adagrad": lambda p: MAID(p, direction="adagrad", certificate="first_order", memory=3, slack=0.5),
    "maid descent check": lambda p: PublishedMAID(
        p,
        lr=0.1,
        line_search=LineSearch(),
        schedule=AccuracySchedule(descent_check=True, eta=0.4),
        accelerations=Accelerations("goal_oriented", "lbfgs", largest_growth=2.0),
    ),
    "published": lambda p: PublishedMAID(p),
    "published slow decay": lambda p: PublishedMAID(p, accuracy_shrink=0.8, accuracy_growth=1.05),
    "published fast decay": lambda p: PublishedMAID(p, accuracy_shrink=0.1, accuracy_growth=1.0),
    "published from 1": lambda p: PublishedMAID(p, solution_accuracy=1.0, adjoint_accuracy=1.0, tolerance=1e-4),
    "published descent check": lambda p: PublishedMAID(p, descent_check=True, lr=0.1),
    "hoag quadratic": lambda p: HOAG(p, schedule="quadratic"),
    "hoag cubic": lambda p: HOAG(p, schedule="cubic"),
    "hoag exponential": lambda p: HOAG(p, schedule="exponential", adaptive=False),
    "fixed accuracy": lambda p: FixedAccuracy(p, solution_accuracy=0.01, adjoint_accuracy=0.01),
    "adam": lambda p: InexactAdam(p, lr=0.03, lr_decay=0.4, batch_size=2, accuracy_decay=0.2),
    "sgd": lambda p: InexactSGD(p, lr=0.01, batch_size=2),
    "sgd momentum": lambda p: InexactSGD(p, lr=0.003, batch_size=2, momentum=0.9),
}
#: least squares only
DERIVATIVE_FREE: dict[str, Method] = {
    "dfols": lambda p: DFOLS(p, solution_accuracy=1.0),
    "dfols fixed": lambda p: DFOLS(p, solution_accuracy=0.01, dynamic=False),
}


def _noisy(batch: int, *shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    target = pictures(batch, 1, *shape, seed=21, dtype=dtype)
    return target, target + normal(*target.shape, seed=22, scale=0.1, dtype=dtype)


def tv() -> BilevelObjective:
    """Two parameters, denoising."""
    return BilevelObjective(regularizer("tv"), *_noisy(3, 11, 13))


def foe() -> BilevelObjective:
    """Fields of Experts in single precision, deblurring, in chunks."""
    target, y = _noisy(3, 10, 9, dtype=torch.float32)
    blur = Blur(0.6, (1, 10, 9))
    fidelity, loss = SquaredL2(2.0), NegativePSNR(margin=1)
    return BilevelObjective(
        regularizer("foe", torch.float32), target, blur(y), blur, fidelity, 0.05, loss, FISTA(2000), chunk_size=2
    )


def learned_tv() -> SaddleObjective:
    """Learned total variation, a saddle-point lower level."""
    model = LearnedTV(2, log_weight=-2.0, convexity=Convexity(0.3, 0.2), norm="fair", smoothing=0.1)
    return SaddleObjective(model.double(), *_noisy(2, 9, 8), loss=NegativePSNR(), solver=PDHG(diagonal=True))


def piggyback() -> SaddleObjective:
    """The same with adjoints by PDHG."""
    model = LearnedTV(
        1, initial=InitialKernels("identity"), log_weight=-2.0, convexity=Convexity(0.3, 0.2), smoothing=0.1
    )
    return SaddleObjective(model.double(), *_noisy(2, 9, 8), piggyback=Piggyback(adjoint="pdhg"), chunk_size=1)


def unrolled() -> BilevelObjective:
    """Differentiated through steps of gradient descent."""
    return BilevelObjective(
        regularizer("crr"), *_noisy(2, 9, 10), Identity(), differentiation=Differentiation(unrolled_steps=12)
    )


def truncated() -> BilevelObjective:
    """One step at the minimizer instead of the adjoint equations."""
    return BilevelObjective(regularizer("crr"), *_noisy(2, 9, 10), differentiation=Differentiation(adjoint_steps=1))


SADDLE = ("maid", "maid 4a + 4b", "published", "hoag cubic", "adam")
RUNS: list[tuple[Callable[[], Objective], dict[str, Method]]] = [
    (tv, METHODS | DERIVATIVE_FREE),
    (foe, METHODS),
    (learned_tv, {name: METHODS[name] for name in SADDLE}),
    (piggyback, {name: METHODS[name] for name in SADDLE}),
    (unrolled, {name: METHODS[name] for name in ("hoag quadratic", "adam", "sgd", "maid")}),
    (truncated, {name: METHODS[name] for name in ("hoag quadratic", "fixed accuracy", "sgd momentum", "maid")}),
]


def compute(context: Context) -> dict[str, Any]:
    cases = Cases()
    for make, methods in RUNS:
        for name, method in methods.items():
            file = f"{make.__name__}_{name.replace(' ', '_').replace('+', 'and')}.pt"
            cases.add(f"{make.__name__}: {name}", lambda k=make, m=method, f=file: _run(k, m, f, context))
    return cases.results


@dataclasses.dataclass
class _Training:
    objective: Objective
    optimizer: torch.optim.Optimizer

    @staticmethod
    def start(make: Callable[[], Objective], method: Method) -> _Training:
        objective = make()
        return _Training(objective, method(objective.params))

    def go_on(self, iterations: int) -> list[Record]:
        return [self.optimizer.step(objective=self.objective) for _ in range(iterations)]  # type: ignore[call-arg]

    def theta(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.objective.params])

    def state(self) -> dict[str, Any]:
        theta, optimizer = [p.detach().clone() for p in self.objective.params], self.optimizer.state_dict()
        return {"theta": theta, "optimizer": optimizer, "objective": self.objective.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for p, value in zip(self.objective.params, state["theta"], strict=True):
                p.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.objective.load_state_dict(state["objective"])


def _run(make: Callable[[], Objective], method: Method, name: str, context: Context) -> dict[str, Any]:
    whole, part = _Training.start(make, method), _Training.start(make, method)
    records = whole.go_on(ITERATIONS)
    part.go_on(INTERRUPTED)
    own, kept = context.work / name, context.kept / name
    torch.save(part.state(), own)
    again = _resumed(make, method, own)
    if context.writing:
        shutil.copy(own, kept)
    theta = whole.theta()
    return {
        "theta": bits(theta),
        "first": exact(theta[:3]),
        "records": [{name: exact(getattr(r, name)) for name in FIELDS} for r in records],
        "resumed is uninterrupted": bool(torch.equal(again, theta)),
        "resumed from the kept file": bits(again) if context.writing else attempt(lambda: _resumed(make, method, kept)),
    }


def _resumed(make: Callable[[], Objective], method: Method, file: Path) -> Tensor:
    training = _Training.start(make, method)
    training.load(torch.load(file, weights_only=True))
    training.go_on(ITERATIONS - INTERRUPTED)
    return training.theta()

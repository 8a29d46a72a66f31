"""Derivative-free bilevel learning of few parameters: DFO-LS with dynamic accuracy."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recon.bilevel.evaluation import Accuracy, Evaluation
from recon.bilevel.loss import SquaredError
from recon.bilevel.methods.method import DivergedError, UpperLevelMethod
from recon.bilevel.methods.record import Progress, Record
from recon.bilevel.objective import InexactObjective
from recon.errors import positive

#: models of the residuals are interpolated in as many directions as there are parameters
MOST_PARAMETERS = 100
#: ratio of the trust-region radii of consecutive stages; the factor of the residuals where there is no minimizer
SHRINK, BARRIER = 0.1, 10.0
#: accuracy relative to the square of the radius, in all stages but the last
LOOSE = 10.0


class DFOLS(UpperLevelMethod[InexactObjective]):
    r"""DFO-LS, a trust-region method without derivatives, with dynamic accuracy (after Ehrhardt and Roberts 2021).

    Minimizes the sum of the squares of r_i(theta) = \|\|x~_i(theta) - x_i*\|\| with the package ``dfo-ls`` (Cartis,
    Fiala, Marteau and Roberts 2019). ``step(objective=...)`` evaluates the point that DFO-LS asks for; theta is the
    best one so far.

    The radius Delta falls in stages, by a factor 10 in each, from ``rhobeg`` to ``rhoend``. All minimizers of a stage
    are as accurate as its last radius needs,

        \|\|x~_i - x^_i\|\| <= min(solution_accuracy, 10 Delta^2)    (dynamic; otherwise solution_accuracy throughout),

    Delta^2 in the last stage, and a stage begins at the best point of the one before, evaluated anew. The published
    method has its own trust-region code, which asks for 10 Delta^2 at every point and makes points more accurate one
    by one where that is not enough; the package has no way to, and 10 Delta^2 to the end ends away from the minimum.

    Parameters
    ----------
    params : iterable of tensors
        What is learned.
    rhobeg, rhoend : float
        First and last radius.
    solution_accuracy : float
        epsilon_0.
    dynamic : bool
        Whether the accuracy follows the radius.

    Raises
    ------
    ValueError
        An option is out of range, there are more than 100 parameters, or (in ``step``) the loss is not
        ``SquaredError``.
    ImportError
        The package ``dfo-ls`` is not installed.
    DivergedError
        (a ValueError, in ``step``) The energy of the first point is not finite.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        rhobeg: float = 1.0,
        rhoend: float = 1e-4,
        solution_accuracy: float = 1e-1,
        dynamic: bool = True,
    ) -> None:
        positive(rhobeg=rhobeg, rhoend=rhoend, solution_accuracy=solution_accuracy)
        if rhoend >= rhobeg:
            raise ValueError(f"rhoend is {rhoend}, but must be less than rhobeg, {rhobeg}")
        super().__init__(params, rhobeg=rhobeg, rhoend=rhoend, solution_accuracy=solution_accuracy, dynamic=dynamic)
        count = sum(p.numel() for p in self.options["params"])
        if count > MOST_PARAMETERS:
            raise ValueError(
                f"DFO-LS is for few parameters, at most {MOST_PARAMETERS}; the regularizer has {count}, use MAID"
            )
        _package()

    def _check(self, objective: InexactObjective) -> None:
        if type(objective.loss) is not SquaredError:
            raise ValueError(f"DFO-LS minimizes squared errors; the loss is {type(objective.loss).__name__}")

    def _begin(self, objective: InexactObjective) -> None:
        theta = self._theta().cpu()  # where the package computes
        self.progress.update(stage=0, best=theta, start=theta, residuals=[])

    def _iterate(self, objective: InexactObjective) -> Record:
        """One evaluation."""
        state, radii = self.progress, self._radii()
        point = self._ask()
        while point is None and state["stage"] + 1 < len(radii):
            state.update(stage=state["stage"] + 1, start=state["best"], residuals=[])
            point = self._ask()
        if point is None:  # nothing was evaluated
            return replace(self._record(objective, Progress.CONVERGED, 0.0), iteration=state["iteration"])
        before, first = state["best"], not state["residuals"]
        self._set(point)
        new = self._at_point(objective)
        if first and new is None:
            raise DivergedError("the energy is NaN or infinite at the start; start from other parameters")
        found = [BARRIER * r for r in state["residuals"][0]] if new is None else new.slope.tolist()
        state["residuals"] = [*state["residuals"], found]
        better = new is not None and (first or new.value < self.evaluation.value)
        if new is not None and better:
            state["best"], self.evaluation = self._theta().cpu(), new
        self._set(state["best"])
        return self._record(
            objective, Progress.ACCEPTED if better else Progress.REJECTED, float((point - before).norm())
        )

    def _radii(self) -> list[tuple[float, float]]:
        """First and last radius of each stage."""
        options = self.options
        last, stages = float(options["rhobeg"]), []
        while last > options["rhoend"] * (1 + 1e-9):
            first = last
            last = max(SHRINK * first, options["rhoend"]) if options["dynamic"] else options["rhoend"]
            stages.append((first, last))
        return stages

    def _ask(self) -> Tensor | None:
        """The point that DFO-LS evaluates next; None if the stage is finished.

        DFO-LS is deterministic: it runs from the start of the stage through all points that are known. That takes
        milliseconds, and all of its state that has to be saved are their residuals.
        """
        state = self.progress
        known = iter(state["residuals"])
        first, last = self._radii()[state["stage"]]

        def residuals(theta: np.ndarray) -> np.ndarray:
            values = next(known, None)
            if values is None:
                raise _Asked(torch.from_numpy(np.array(theta, dtype=np.float64)))
            return np.array(values)

        start = state["start"].numpy().astype(np.float64)
        generator = np.random.get_state()  # the package draws from it where models are degenerate
        np.random.seed(0)
        try:
            _package().solve(residuals, start, rhobeg=first, rhoend=last, maxfun=100_000, do_logging=False)
        except _Asked as asked:
            return asked.point
        finally:
            np.random.set_state(generator)
        return None

    def _at_point(self, objective: InexactObjective) -> Evaluation | None:
        """The objective at the point, or None where there are no minimizers."""
        options, state = self.options, self.progress
        goal = options["solution_accuracy"]
        if options["dynamic"]:
            radii = self._radii()
            factor = 1.0 if state["stage"] + 1 == len(radii) else LOOSE
            goal = min(goal, factor * radii[state["stage"]][1] ** 2)
        start = self.evaluation if "evaluation" in state else None
        new = self._try(objective, Accuracy(goal, math.inf), start)
        return new if new is not None and new.finite else None


class _Asked(Exception):
    """No error: it carries the point out of the package."""

    def __init__(self, point: Tensor) -> None:
        self.point = point


def _package() -> Any:
    try:
        return importlib.import_module("dfols")
    except ImportError as error:
        raise ImportError(
            "DFO-LS needs the package dfo-ls, which is not installed; install it with "
            "`pip install 'recon-bilevel[dfo]'` or `pip install dfo-ls`"
        ) from error

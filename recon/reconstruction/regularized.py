"""What methods with a regularizer share: the weight is chosen, then the problem is solved to an accuracy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from recon.reconstruction.boundary import cropped, middle
from recon.reconstruction.methods import NOT_CERTIFIED, Method, Reconstruction, Request, Watch, WatchError
from recon.reconstruction.problem import Data, Problem
from recon.reconstruction.weight import Choice, WeightedSolver, discrepancy, sweep


@dataclass(frozen=True)
class Regularized(Reconstruction):
    """A solution with everything that led to it, on the scale of x.

    Parameters
    ----------
    solution : Solution
        As of every reconstruction.
    solver : WeightedSolver
        What found it.
    choice : Choice
        The weight.
    accuracy, accuracy_rule
        What was asked for, None where nothing is certified, and how it was chosen.
    residual : float, optional
        Root mean square of A x - y, of the mirrored image where the regularizer needs one; for a Problem.
    """

    solver: WeightedSolver
    choice: Choice
    accuracy: float | None
    accuracy_rule: str
    residual: float | None

    @property
    def certifies(self) -> bool:
        return self.solver.certifies

    @property
    def status(self) -> str:
        return super().status if self.certifies else NOT_CERTIFIED


class RegularizedMethod(Method, ABC):
    """A method that minimizes something with ``weight R(x)`` in it."""

    #: whether R was trained, so that 1 is its weight
    trained: bool

    @property
    def margin(self) -> int:
        """Width of the band at the boundary that images are mirrored by."""
        return 0

    @abstractmethod
    def solver(self, problem: Data, nonnegative: bool, watch: WatchError | None) -> WeightedSolver:
        """What solves this problem for any weight.

        Raises
        ------
        ValueError
            The problem does not fit, or there is no place for x >= 0.
        """

    def reconstruct(self, problem: Data, request: Request, watch: Watch | None = None) -> Regularized:
        whole = problem.mirrored(self.margin)
        phases = None if watch is None else _Phases(watch)
        solver = self.solver(whole, request.nonnegative, phases)
        choice = self._choice(solver, request, problem)
        accuracy, rule = solver.accuracy(choice.weight, request.accuracy)
        if phases is not None:
            phases.phase = "final solution"
        solution = solver.certified(choice.weight, choice.start, accuracy)
        residual = whole.residual(solution.x) if isinstance(whole, Problem) else None
        if whole is not problem:
            solution = cropped(solution, _size(problem))
        return Regularized(solution, solver, choice, accuracy if solver.certifies else None, rule, residual)

    def _choice(self, solver: WeightedSolver, request: Request, problem: Data) -> Choice:
        if request.weight is not None or (self.trained and request.choose is None):
            rule = "as trained" if request.weight is None else "given"
            return Choice(request.weight or 1.0, rule, (), 0, solver.problem.start)
        if request.choose != "sweep":
            return discrepancy(solver, self.trained)
        quality = request.quality
        if quality is None:
            raise ValueError(f"{problem.source}: a sweep needs the quality of an image")
        if solver.problem is problem:
            return sweep(solver, self.trained, quality)
        return sweep(solver, self.trained, lambda x: quality(middle(x, _size(problem))))


def _size(problem: Data) -> tuple[int, int]:
    return problem.y.shape[2], problem.y.shape[3]


class _Phases:
    """Counts the evaluations, and tells what is being done."""

    def __init__(self, watch: Watch) -> None:
        self.watch, self.count, self.phase = watch, 0, "choosing the weight"

    def __call__(self, error: float) -> None:
        self.count += 1
        self.watch(self.phase, self.count, error)

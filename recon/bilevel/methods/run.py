"""One loop of an upper-level method, until a budget is spent; it knows no files, but what one needs to go on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from recon.bilevel.methods.method import UpperLevelMethod, flat
from recon.bilevel.methods.record import Record
from recon.bilevel.objective import InexactObjective

#: iterations without any evaluation or change after which a run ends
MOST_IDLE = 50


class Training:
    """A method on an objective, from iteration to iteration.

    Parameters
    ----------
    objective : InexactObjective
        The learning problem; theta is in its parameters.
    method : UpperLevelMethod
        On the same parameters.

    Attributes
    ----------
    records : list of Record
        Those of all iterations so far.
    seconds : float
        What they took.
    """

    def __init__(self, objective: InexactObjective, method: UpperLevelMethod[Any]) -> None:
        self.objective, self.method = objective, method
        self.records: list[Record] = []
        self.seconds = 0.0

    def descend(
        self,
        budget: float = math.inf,
        iterations: float = math.inf,
        after: Callable[[Record], None] | None = None,
    ) -> str:
        """Iterate until the budget is spent, or nothing changes any more.

        Parameters
        ----------
        budget : float
            Evaluations per image, of the whole run; the iteration that reaches it is the last one.
        iterations : float
            The most that there may be in the whole run.
        after : callable, optional
            Called with the record after every iteration: for progress, checkpoints, tables. Its time does not count.

        Returns
        -------
        str
            How the run ended: ``budget spent``, ``iteration limit``, or as its last iteration did.

        Raises
        ------
        DivergedError, NotStronglyConvexError
            As ``method.step`` does; parameters and ``records`` are those of the last iteration that succeeded.
        """
        idle = 0
        while not (self.records and self.records[-1].finished):
            if self.objective.evaluations >= budget:
                return "budget spent"
            if len(self.records) >= iterations:
                return "iteration limit"
            before, theta = self.objective.evaluations, flat(self.objective.params)
            begin = time.perf_counter()
            try:
                record = self.method.step(objective=self.objective)
            finally:
                self.seconds += time.perf_counter() - begin
            self.records.append(record)
            changed = self.objective.evaluations > before or bool((flat(self.objective.params) != theta).any())
            idle = 0 if changed else idle + 1
            if after is not None:
                after(record)
            if idle == MOST_IDLE:
                break
        return self.records[-1].progress.value

    def state_dict(self) -> dict[str, Any]:
        """Everything that a new run needs to go on bit for bit, in plain values and tensors."""
        return {
            "params": [p.detach() for p in self.objective.params],
            "optimizer": self.method.state_dict(),
            "objective": self.objective.state_dict(),
            "records": [record.line() for record in self.records],
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned.

        Parameters
        ----------
        state : mapping
            Of a run with the same objective and method.

        Raises
        ------
        ValueError
            The parameters are others, or the state is that of another method.
        """
        with torch.no_grad():
            for p, value in zip(self.objective.params, state["params"], strict=True):
                p.copy_(value)
        self.method.load_state_dict(state["optimizer"])
        self.objective.load_state_dict(state["objective"])
        self.records = [Record.of_line(line) for line in state["records"]]
        self.seconds = float(state["seconds"])

"""Inexact stochastic hypergradients: mini-batches with decreasing accuracy and step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor

from recon.bilevel.evaluation import Accuracy, Evaluation
from recon.bilevel.methods.parameters import check_one_group, check_positive
from recon.bilevel.methods.record import Progress, Record
from recon.bilevel.objective import InexactObjective
from recon.lower_level import Status


class DivergedError(ValueError):
    """Parameters, of which nothing certifies that they converge, went where hypergradients are not finite."""


class _Passes(torch.optim.Optimizer):
    """Passes through mini-batches; what makes a step of a mini-batch is the class that follows in the inheritance."""

    def _take(self, **own: Any) -> None:
        """Check and keep the options that are not those of the step itself."""
        accuracies = {name: own[name] for name in ("solution_accuracy", "adjoint_accuracy")}
        check_positive(lr=own["first_lr"], **accuracies)
        for name in ("lr_decay", "accuracy_decay"):
            if not 0 <= own[name] < math.inf:
                raise ValueError(f"{name} is {own[name]}, but must be finite and not negative")
        if own["batch_size"] < 1:
            raise ValueError(f"batch_size is {own['batch_size']}, but must be at least 1")
        check_one_group(self)
        self.defaults.update(own)
        self.param_groups[0].update(own)

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], Any] | None = None, *, objective: InexactObjective
    ) -> Record:
        """One pass through the images of ``objective``, whose parameters must be those of this optimizer."""
        if closure is not None:
            closure()
        options, state = self.param_groups[0], cast(dict[str, dict[str, Any]], self.state)["passes"]
        if not state:
            start = objective.start()
            state.update(done=0, x=start.x, w=start.w)
        k = state["done"]
        options["lr"] = options["first_lr"] * (k + 1) ** -options["lr_decay"]
        accuracy = Accuracy(options["solution_accuracy"], options["adjoint_accuracy"]).scaled(
            (k + 1) ** -options["accuracy_decay"]
        )
        generator = torch.Generator().manual_seed(1_000_003 * options["seed"] + k)
        order = torch.randperm(len(objective.y), generator=generator)
        batches = []
        for index in order.split(options["batch_size"]):
            batches.append(self._descend(objective, index.to(objective.y.device), accuracy, state))
        state["done"] = k + 1
        return self._record(objective, batches)

    def _descend(
        self, objective: InexactObjective, index: Tensor, accuracy: Accuracy, state: dict[str, Any]
    ) -> tuple[Evaluation, float]:
        """One step on the images ``index``; the objective there, and ||z||."""
        part = objective.subset(index)
        start = dataclasses.replace(part.start(), x=state["x"][index], w=state["w"][index])
        gradient = part.hypergradient(part.evaluate(accuracy, start, goal_oriented=False), accuracy)
        objective.evaluations += part.evaluations * len(index) / len(objective.y)
        norm = float(gradient.z.norm())
        if not math.isfinite(norm) or bool((gradient.evaluation.status == Status.NOT_FINITE).any()):
            raise DivergedError(
                "the hypergradient is NaN or infinite; start from other parameters, or with a smaller lr"
            )
        params = self.param_groups[0]["params"]
        for p, z in zip(params, gradient.z.split([p.numel() for p in params]), strict=True):
            p.grad = z.view_as(p).to(p.dtype)
        super().step()
        self.zero_grad()
        at = gradient.evaluation
        state["x"][index], state["w"][index] = at.x, at.w
        return at, norm

    def _record(self, objective: InexactObjective, batches: list[tuple[Evaluation, float]]) -> Record:
        weights = [len(at.x) / len(objective.y) for at, _ in batches]

        def mean(values: Iterable[float]) -> float:
            return sum(w * v for w, v in zip(weights, values, strict=True))

        return Record(
            iteration=cast(dict[str, dict[str, Any]], self.state)["passes"]["done"],
            loss=mean(at.value for at, _ in batches),
            lower=mean(at.lower for at, _ in batches),
            upper=mean(at.upper for at, _ in batches),
            epsilon=max(float(at.error.max()) for at, _ in batches),
            delta=max(float(at.adjoint_residual.max()) for at, _ in batches),
            omega=math.inf,
            step=self.param_groups[0]["lr"],
            trials=len(batches),
            evaluations=objective.evaluations,
            gradient_norm=mean(norm for _, norm in batches),
            progress=Progress.ACCEPTED,
            rounding=mean(at.rounding for at, _ in batches),
            grade=max(at.grade for at, _ in batches),
        )


class InexactAdam(_Passes, torch.optim.Adam):  # type: ignore[misc]
    """Adam on inexact hypergradients of mini-batches (after Salehi, Mukherjee, Roberts and Ehrhardt 2024).

    ``step(objective=...)`` goes once through the training images, in an order that ``seed`` and the number of the pass
    decide, and makes one step of Adam for each mini-batch. In pass k = 0, 1, ...

        lr_k = lr (k+1)^-lr_decay,  epsilon_k = solution_accuracy (k+1)^-accuracy_decay,  delta_k alike.

    Nothing certifies descent, unlike in :class:`MAID`; the hypergradients are as accurate as epsilon_k and delta_k say.
    A pass costs as many evaluations as one evaluation of the whole objective at these accuracies. The lower-level and
    adjoint solutions of the previous pass are the warm starts.

    The ``Record`` of a pass: loss, lower and upper are means over the mini-batches, each at the parameters before its
    step; epsilon and delta are the largest, gradient_norm is the mean of ||z||, step is lr_k, trials their number.

    Parameters
    ----------
    lr, betas: of Adam. lr_decay: q >= 0.
    batch_size: images in a mini-batch; the last one of a pass may have fewer.
    solution_accuracy, adjoint_accuracy: epsilon_0, delta_0. accuracy_decay: p >= 0.
    seed: of the order of the images.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-2,
        batch_size: int = 8,
        solution_accuracy: float = 0.1,
        adjoint_accuracy: float = 0.1,
        lr_decay: float = 0.0,
        accuracy_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.99),
        seed: int = 0,
    ) -> None:
        super().__init__(params, lr=max(lr, 0.0), betas=betas)
        self._take(
            first_lr=lr,
            batch_size=batch_size,
            seed=seed,
            lr_decay=lr_decay,
            solution_accuracy=solution_accuracy,
            adjoint_accuracy=adjoint_accuracy,
            accuracy_decay=accuracy_decay,
        )


class InexactSGD(_Passes, torch.optim.SGD):  # type: ignore[misc]
    """Stochastic gradient descent on inexact hypergradients (Salehi, Mukherjee, Roberts and Ehrhardt 2024).

    As :class:`InexactAdam`, with steps theta+ = theta - lr_k m, m = momentum m + z, of the hypergradient z of a
    mini-batch. Converges for lr_decay in (1/2, 1] and accuracies that decrease.

    Parameters
    ----------
    lr, momentum: of SGD. The others: as in :class:`InexactAdam`.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        batch_size: int = 8,
        solution_accuracy: float = 0.1,
        adjoint_accuracy: float = 0.1,
        lr_decay: float = 0.6,
        accuracy_decay: float = 0.5,
        momentum: float = 0.0,
        seed: int = 0,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}, but must be at least 0 and less than 1")
        super().__init__(params, lr=max(lr, 0.0), momentum=momentum)
        self._take(
            first_lr=lr,
            batch_size=batch_size,
            seed=seed,
            lr_decay=lr_decay,
            solution_accuracy=solution_accuracy,
            adjoint_accuracy=adjoint_accuracy,
            accuracy_decay=accuracy_decay,
        )

"""Inexact stochastic hypergradients: mini-batches with decreasing accuracy and step."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from recon.bilevel.evaluation import Accuracy, CertifiedLoss, Evaluation
from recon.bilevel.methods.method import DivergedError, ObjectiveT, UpperLevelMethod, require_finite
from recon.bilevel.methods.record import Progress, Record
from recon.bilevel.objective import InexactObjective, Objective
from recon.errors import at_least, not_negative, positive

#: of the running mean of the spread of hypergradients, which is computed for one of so many mini-batches
MEMORY, SPREAD_OF = 0.9, 4


class Passes(UpperLevelMethod[ObjectiveT]):
    """An iteration is a pass through all images, in mini-batches, each of which is a step of an optimizer of torch.

    In pass k = 0, 1, ... the step is lr_k = lr (k+1)^-lr_decay, and the order of the images is decided by ``seed`` and
    k alone. A subclass is one of an optimizer of torch as well, whose constructor it calls, and then
    ``_take_passes``.

    Attributes
    ----------
    visited : list of tensors, optional
        Where it is a list, the parameters after every step are appended, flat, in float64.
    """

    visited: list[Tensor] | None = None

    def _take_passes(self, lr: float, batch_size: int, lr_decay: float, seed: int, **own: object) -> None:
        """Keep the options of passes, and those of the subclass."""
        positive(lr=lr)
        not_negative(lr_decay=lr_decay)
        at_least(1, batch_size=batch_size)
        self._take(first_lr=lr, batch_size=batch_size, lr_decay=lr_decay, seed=seed, **own)

    def _start_pass(self, count: int) -> tuple[torch.Generator, Sequence[Tensor]]:
        """Set the step of this pass; its random numbers, and the images of its mini-batches, out of ``count``."""
        options, k = self.options, self.progress["iteration"]
        options["lr"] = options["first_lr"] * (k + 1) ** -options["lr_decay"]
        generator = torch.Generator().manual_seed(1_000_003 * options["seed"] + k)
        return generator, torch.randperm(count, generator=generator).split(options["batch_size"])

    def _descend(self, gradients: Iterable[Tensor]) -> None:
        """A step along these gradients of all parameters."""
        for p, gradient in zip(self.options["params"], gradients, strict=True):
            p.grad = gradient.view_as(p).to(p.dtype)
        self._move()
        self.zero_grad()
        if self.visited is not None:
            self.visited.append(self._theta())

    def _exact_pass(
        self,
        objective: Objective,
        batches: Sequence[Tensor],
        gradient_of: Callable[[Tensor], tuple[float, list[Tensor]]],
    ) -> Record:
        """A pass with exact gradients: ``gradient_of`` gives the value and the gradient for images by their numbers.

        Its record has the means over the mini-batches, each at the parameters before its step.

        Raises
        ------
        DivergedError
            A gradient is not finite.
        """
        count, loss, norm = len(objective.y), 0.0, 0.0
        for index in batches:
            value, gradient = gradient_of(index)
            size = math.sqrt(sum(float(g.double().square().sum()) for g in gradient))
            if not math.isfinite(size):
                raise DivergedError("the gradient is NaN or infinite; train with a smaller lr")
            self._descend(gradient)
            loss, norm = loss + value * len(index) / count, norm + size * len(index) / count
        return Record(
            iteration=self.progress["iteration"] + 1,
            certified=CertifiedLoss(loss, loss, loss),
            epsilon=0.0,
            delta=0.0,
            omega=0.0,
            step=self.options["lr"],
            trials=len(batches),
            evaluations=objective.evaluations,
            gradient_norm=norm,
            progress=Progress.ACCEPTED,
        )

    @abstractmethod
    def _move(self) -> None:
        """The step of the optimizer of torch."""


class InexactPasses(Passes[InexactObjective]):
    r"""Passes on hypergradients whose accuracies follow a schedule, or the noise of mini-batches.

    By the schedule, those of pass k are the first ones times (k+1)^-accuracy_decay. With ``noise_share`` tau > 0 none
    has to be chosen: the hypergradient z of b images differs from that of all by about s / sqrt(b), s the spread of the
    z_i of single images, and certified errors eps_i, delta_i change z_i by about
    \|\|z_i\|\| (eps_i + delta_i) / \|\|grad g_i\|\|, as w_i is linear in grad g_i (to first order; no bound). So

        eps_i = delta_i = (tau / 2) (s / sqrt(b)) \|\|grad g_i\|\| / rms \|\|z_i\|\| sqrt(lr_k / lr)

    with a running mean of s / rms \|\|z_i\|\| and the slopes of the last pass. The root is how the noise that is left
    in theta falls with the steps, because smaller ones average over more mini-batches; errors do not average. Images
    that were not seen yet get the smaller one of the first accuracies.
    """

    def _take_inexact(
        self,
        lr: float,
        batch_size: int,
        solution_accuracy: float,
        adjoint_accuracy: float,
        lr_decay: float,
        accuracy_decay: float,
        seed: int,
        noise_share: float,
    ) -> None:
        first = {"solution_accuracy": solution_accuracy, "adjoint_accuracy": adjoint_accuracy}
        positive(**first)
        not_negative(accuracy_decay=accuracy_decay, noise_share=noise_share)
        own = {"accuracy_decay": accuracy_decay, "noise_share": noise_share}
        self._take_passes(lr, batch_size, lr_decay, seed, **first, **own)

    def _begin(self, objective: InexactObjective) -> None:
        start = objective.start()
        self.progress.update(x=start.x, w=start.adjoint.w, slope=torch.full_like(start.slope, math.nan), spread=None)

    @property
    def warm(self) -> tuple[Tensor, Tensor] | None:
        return (self.progress["x"], self.progress["w"]) if "x" in self.progress else None

    def take_over(self, evaluation: Evaluation, z: Tensor) -> None:
        if "x" in self.progress:  # copies, because passes change them in place
            self.progress.update(x=evaluation.x.clone(), w=evaluation.adjoint.w.clone())

    def _iterate(self, objective: InexactObjective) -> Record:
        """One pass."""
        options, k = self.options, self.progress["iteration"]
        first = Accuracy(options["solution_accuracy"], options["adjoint_accuracy"])
        scheduled = first if options["noise_share"] else first.scaled((k + 1) ** -options["accuracy_decay"])
        _, batches = self._start_pass(len(objective.y))
        return self._mean(
            objective, [self._on_batch(objective, index.to(objective.y.device), scheduled) for index in batches]
        )

    def _on_batch(self, objective: InexactObjective, index: Tensor, scheduled: Accuracy) -> tuple[Evaluation, float]:
        """One step on the images ``index``; the objective there, and ||z||."""
        state, accuracy = self.progress, self._by_noise(index, scheduled)
        part = objective.subset(index)
        start = part.start(state["x"][index], state["w"][index])
        gradient = part.hypergradient(part.evaluate(accuracy, start, goal_oriented=False), accuracy)
        objective.evaluations += part.evaluations * len(index) / len(objective.y)
        require_finite(gradient)
        if self.options["noise_share"]:
            self._watch_noise(part, index, gradient.evaluation)
        self._descend(gradient.z.split([p.numel() for p in self.options["params"]]))
        at = gradient.evaluation
        state["x"][index], state["w"][index] = at.x, at.adjoint.w  # in place: only warm starts
        return at, float(gradient.z.norm())

    def _by_noise(self, index: Tensor, scheduled: Accuracy) -> Accuracy:
        """The accuracies of these images that the noise of their mini-batch allows."""
        options, spread = self.options, self.progress.get("spread")
        if not options["noise_share"] or spread is None:
            return scheduled
        noise = spread * math.sqrt(options["lr"] / options["first_lr"] / len(index))
        allowed = 0.5 * options["noise_share"] * noise * self.progress["slope"][index]
        # images that were not seen yet, or are met exactly
        allowed = torch.where(allowed > 0, allowed, min(float(scheduled.solution), float(scheduled.adjoint)))
        return Accuracy(allowed, allowed)

    def _watch_noise(self, part: InexactObjective, index: Tensor, at: Evaluation) -> None:
        """Take note of the slopes of these images and, in some mini-batches, of the spread of their hypergradients."""
        state = self.progress
        state["slope"] = state["slope"].index_copy(0, index, at.slope)
        if state["spread"] is not None and int(index[0]) % SPREAD_OF:
            return
        rows = part.image_gradients(at)
        size = float(rows.square().sum(1).mean().sqrt())
        if len(rows) > 1 and size > 0:
            spread = float((rows - rows.mean(0)).square().sum() / (len(rows) - 1)) ** 0.5 / size
            before = state["spread"]
            state["spread"] = spread if before is None else MEMORY * before + (1 - MEMORY) * spread
        elif state["spread"] is None:
            state["spread"] = 1.0

    def _mean(self, objective: InexactObjective, batches: list[tuple[Evaluation, float]]) -> Record:
        weights = [len(at.x) / len(objective.y) for at, _ in batches]

        def mean(values: Iterable[float]) -> float:
            return sum(w * v for w, v in zip(weights, values, strict=True))

        return Record(
            iteration=self.progress["iteration"] + 1,
            certified=CertifiedLoss(
                value=mean(at.value for at, _ in batches),
                lower=mean(at.lower for at, _ in batches),
                upper=mean(at.upper for at, _ in batches),
                rounding=mean(at.rounding for at, _ in batches),
                grade=max(at.grade for at, _ in batches),
            ),
            epsilon=max(float(at.error.max()) for at, _ in batches),
            delta=max(float(at.adjoint.residual.max()) for at, _ in batches),
            omega=math.inf,
            step=self.options["lr"],
            trials=len(batches),
            evaluations=objective.evaluations,
            gradient_norm=mean(norm for _, norm in batches),
            progress=Progress.ACCEPTED,
        )


class InexactAdam(InexactPasses, torch.optim.Adam):  # type: ignore[misc]
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
    params : iterable of tensors
        What is learned.
    lr : float
        Of Adam, in the first pass.
    batch_size : int
        Images in a mini-batch; the last one of a pass may have fewer.
    solution_accuracy, adjoint_accuracy : float
        epsilon_0 and delta_0.
    lr_decay, accuracy_decay : float
        How the step and the accuracies fall, at least 0.
    betas : tuple of two floats
        Of Adam.
    seed : int
        Of the order of the images.
    noise_share : float
        How large the errors of a hypergradient may be against the noise of its mini-batch; then accuracies of single
        images take the place of the schedule, see :class:`InexactPasses`. 0 keeps the schedule.

    Raises
    ------
    ValueError
        An option is out of range, or the parameters are in several groups.
    DivergedError
        (a ValueError, in ``step``) The hypergradient is not finite.
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
        noise_share: float = 0.0,
    ) -> None:
        torch.optim.Adam.__init__(self, params, lr=max(lr, 0.0), betas=betas)
        self._take_inexact(
            lr, batch_size, solution_accuracy, adjoint_accuracy, lr_decay, accuracy_decay, seed, noise_share
        )

    def _move(self) -> None:
        torch.optim.Adam.step(self)


class InexactSGD(InexactPasses, torch.optim.SGD):  # type: ignore[misc]
    """Stochastic gradient descent on inexact hypergradients (Salehi, Mukherjee, Roberts and Ehrhardt 2024).

    As :class:`InexactAdam`, with steps theta+ = theta - lr_k m, m = momentum m + z, of the hypergradient z of a
    mini-batch. Converges for lr_decay in (1/2, 1] and accuracies that decrease.

    Parameters
    ----------
    params : iterable of tensors
        What is learned.
    lr, momentum : float
        Of SGD; the first in the first pass.
    batch_size, solution_accuracy, adjoint_accuracy, lr_decay, accuracy_decay, seed, noise_share
        As in :class:`InexactAdam`.

    Raises
    ------
    ValueError
        An option is out of range, or the parameters are in several groups.
    DivergedError
        (a ValueError, in ``step``) The hypergradient is not finite.
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
        noise_share: float = 0.0,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}, but must be at least 0 and less than 1")
        torch.optim.SGD.__init__(self, params, lr=max(lr, 0.0), momentum=momentum)
        self._take_inexact(
            lr, batch_size, solution_accuracy, adjoint_accuracy, lr_decay, accuracy_decay, seed, noise_share
        )

    def _move(self) -> None:
        torch.optim.SGD.step(self)

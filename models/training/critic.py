"""Adversarial training of a regularizer as a critic: its objective, and Adam on mini-batches of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from recon.bilevel import Progress, Record
from recon.lower_level import (
    DataFidelity,
    Regularizer,
    SquaredL2,
    check_contract,
    over_image,
    per_image_norm,
)
from recon.operators import Identity, LinearOperator
from recon.reconstruction.early_stopped import critic_reconstruction


@torch.no_grad()
def published_weight(operator: LinearOperator, fidelity: DataFidelity, x: Tensor, y: Tensor) -> float:
    r"""lambda = mean \|\|A^T D'(Ax, y)\|\| over pairs of true images x and their data y.

    The rule of Lunz et al. 2018, section 3.3: where x is a minimizer of D(A., y) + lambda R for a regularizer with
    \|\|grad R(x)\|\| = 1, the gradients of both terms have the same norm. Their lambda is 2 E\|\|A^T (Ax - y)\|\|, as
    their data term is \|\|Ax - y\|\|^2; that of D = 1/2 \|\|Ax - y\|\|^2 is half of it.
    """
    norms = [
        per_image_norm(operator.adjoint(fidelity.grad(operator(x[i : i + 1]), y[i : i + 1]))) for i in range(len(x))
    ]
    return float(torch.cat(norms).double().mean())


def scale_parameter(regularizer: Regularizer) -> nn.Parameter:
    """The parameter theta_0 of a regularizer R = e^{theta_0} (...), by which weights are multiplied into it.

    Raises:
        ValueError: there is none; it must be called ``log_scale`` (or ``log_weight``) and hold one number.
    """
    for name in ("log_scale", "log_weight"):
        found = getattr(regularizer, name, None)
        if isinstance(found, nn.Parameter) and found.numel() == 1:
            return found
    raise ValueError(
        f"{type(regularizer).__name__} has no parameter log_scale, a number theta_0 with R = e^theta_0 (...), that the "
        "weight could be multiplied into; valid are models.ICNN, ConvolutionalCritic, FieldsOfExperts, TotalVariation"
    )


class AdversarialObjective:
    r"""f(theta) = mean C(x_i) - mean C(v_i) + gamma mean (\|\|grad C(z_i)\|\| - 1)_+^2,  C = R / lambda,

    for true images x_i, naive reconstructions v_i of their data and z_i = t_i x_i + (1 - t_i) v_i, t_i uniform in
    [0, 1] (Lunz, Öktem and Schönlieb 2018, equation 10 and algorithm 1, which asks for \|\|grad C\|\| <= 1).

    The weight lambda is that of :func:`published_weight` throughout, so that R itself is always the regularizer that
    belongs to the data, and C the critic.

    Parameters: regularizer; target: x, ``(n, channel, height, width)``; y: their data; operator; fidelity;
    penalty: gamma.

    Raises
    ------
    ValueError: images or data are not finite or do not fit each other, or the data have no noise at all.
    """

    def __init__(
        self,
        regularizer: Regularizer,
        target: Tensor,
        y: Tensor,
        operator: LinearOperator | None = None,
        fidelity: DataFidelity | None = None,
        penalty: float = 10.0,
    ) -> None:
        if not 0 <= penalty < math.inf:
            raise ValueError(f"penalty is {penalty}, but must be finite and not negative")
        if len(target) == 0 or len(target) != len(y):
            raise ValueError(f"there are {len(target)} true images and {len(y)} data; both must be as many, and some")
        for name, values in {"true images": target, "data": y}.items():
            bad = ~torch.isfinite(values).flatten(1).all(1)
            if bad.any():
                raise ValueError(f"{name}: image {int(bad.nonzero()[0])} holds values that are NaN or infinite")
        self.regularizer, self.target, self.y, self.penalty = regularizer, target, y, penalty
        operator = operator if operator is not None else Identity()
        self.naive = torch.cat([critic_reconstruction(part, operator) for part in y.split(1)])
        if self.naive.shape != target.shape:
            raise ValueError(
                f"the true images have the shape {tuple(target.shape)}, the reconstructions of the data "
                f"{tuple(self.naive.shape)}; the operator must be that of the data"
            )
        self.scale = scale_parameter(regularizer)
        check_contract(regularizer, target)
        self.weight = published_weight(operator, fidelity if fidelity is not None else SquaredL2(), target, y)
        if not self.weight > 0:
            raise ValueError("the data have no noise at all, so that the rule for the weight gives zero; set sigma > 0")
        self.evaluations = 0.0

    @torch.no_grad()
    def calibrate(self) -> None:
        r"""Scale R so that mean \|\|grad C\|\| = 1 at the middles of x and v: else Adam needs thousands of steps to.

        Raises:
            ValueError: the gradient is zero or not finite there.
        """
        middle = 0.5 * (self.target + self.naive)
        norm = torch.cat([per_image_norm(self.regularizer.grad(z)) for z in middle.split(1)]).mean() / self.weight
        if not 0 < float(norm) < math.inf:
            raise ValueError(f"the gradient of the initial regularizer has the norm {float(norm)}; start from another")
        self.scale.sub_(norm.log().to(self.scale))

    def gradient(self, index: Tensor, t: Tensor) -> tuple[float, list[Tensor]]:
        r"""f and its gradient in theta for the images ``index`` and t, ``(batch,)``.

        That of the penalty, with g = grad C(z), is the derivative of <grad_x C(z), w> at the fixed direction
        w = 2 gamma (\|\|g\|\| - 1)_+ g / (n \|\|g\|\|), for which regularizers have fast code.
        """
        x, v, params = self.target[index], self.naive[index], self.regularizer.trainable()
        with torch.enable_grad():
            difference = (self.regularizer(x).mean() - self.regularizer(v).mean()) / self.weight
            found = torch.autograd.grad(difference, params, allow_unused=True, materialize_grads=True)
        share = over_image(t.to(x), x)
        value, more = self._penalty(share * x + (1 - share) * v)
        self.evaluations += 3 * len(index) / len(self.y)
        return float(difference.detach()) + value, [a + b for a, b in zip(found, more, strict=True)]

    def _penalty(self, z: Tensor) -> tuple[float, list[Tensor]]:
        grad = self.regularizer.grad(z) / self.weight
        norm = per_image_norm(grad)
        excess = (norm - 1).clamp_min(0)
        slope = 2 * self.penalty / (len(z) * self.weight) * excess / norm.clamp_min(torch.finfo(z.dtype).tiny)
        parts = self.regularizer.parameter_vjp(z, over_image(slope, z) * grad)
        return self.penalty * float(excess.double().square().mean()), list(parts)

    def state_dict(self) -> dict[str, Any]:
        """The counter and the weight."""
        return {"evaluations": self.evaluations, "weight": self.weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.evaluations, self.weight = float(state["evaluations"]), float(state["weight"])


class CriticAdam(torch.optim.Adam):
    """Adam on mini-batches of an :class:`AdversarialObjective`; ``step(objective=...)`` is one pass over its images.

    Order of the images and interpolation of pass k are decided by ``seed`` and k alone, so that a resumed training
    goes on with the same numbers. In pass k = 0, 1, ... the step is lr (k+1)^-lr_decay.

    The ``Record`` of a pass: loss is the mean over the mini-batches, each at the parameters before its step; nothing is
    inexact, so lower and upper are the same; evaluations are those of R or its gradient, per image.

    Parameters
    ----------
    lr, betas: of Adam. lr_decay: q >= 0. batch_size: images in a mini-batch; the last one may have fewer.
    seed: of order and interpolation.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-2,
        batch_size: int = 4,
        lr_decay: float = 0.0,
        betas: tuple[float, float] = (0.5, 0.9),
        seed: int = 0,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, but must be at least 1")
        if not 0 < lr < math.inf:
            raise ValueError(f"lr is {lr}, but must be positive and finite")
        if not 0 <= lr_decay < math.inf:
            raise ValueError(f"lr_decay is {lr_decay}, but must be finite and not negative")
        super().__init__(params, lr=lr, betas=betas)
        own: dict[str, Any] = {"first_lr": lr, "batch_size": batch_size, "lr_decay": lr_decay, "seed": seed}
        self.defaults.update(own)
        if len(self.param_groups) != 1:
            raise ValueError(f"CriticAdam takes one group of parameters, got {len(self.param_groups)}")
        self.param_groups[0].update(own, passes=0)

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], Any] | None = None, *, objective: AdversarialObjective
    ) -> Record:
        """One pass through the images of ``objective``, whose parameters must be those of this optimizer.

        Raises:
            ValueError: the gradient is not finite.
        """
        if closure is not None:
            closure()
        options = self.param_groups[0]
        k, count = options["passes"], len(objective.y)
        options["lr"] = options["first_lr"] * (k + 1) ** -options["lr_decay"]
        generator = torch.Generator().manual_seed(1_000_003 * options["seed"] + k)
        order = torch.randperm(count, generator=generator)
        t = torch.rand(count, generator=generator, dtype=torch.float64)
        loss = norm = 0.0
        batches = order.split(options["batch_size"])
        for index in batches:
            value, gradient = objective.gradient(index.to(objective.y.device), t[index].to(objective.y.device))
            size = math.sqrt(sum(float(g.double().square().sum()) for g in gradient))
            if not math.isfinite(size):
                raise ValueError("the gradient of the critic is NaN or infinite; train with a smaller lr")
            for p, g in zip(options["params"], gradient, strict=True):
                p.grad = g.to(p.dtype)
            super().step()
            self.zero_grad()
            loss, norm = loss + value * len(index) / count, norm + size * len(index) / count
        options["passes"] = k + 1
        return Record(
            iteration=k + 1,
            loss=loss,
            lower=loss,
            upper=loss,
            epsilon=0.0,
            delta=0.0,
            omega=0.0,
            step=options["lr"],
            trials=len(batches),
            evaluations=objective.evaluations,
            gradient_norm=norm,
            progress=Progress.ACCEPTED,
        )

"""Adversarial training of a regularizer as a critic: its objective, and Adam on mini-batches of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from recon.bilevel import Objective, Record
from recon.bilevel.loss import check_finite
from recon.bilevel.methods.passes import Passes
from recon.errors import not_negative
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

    Raises
    ------
    ValueError
        there is none; it must be called ``log_scale`` (or ``log_weight``) and hold one number.
    """
    for name in ("log_scale", "log_weight"):
        found = getattr(regularizer, name, None)
        if isinstance(found, nn.Parameter) and found.numel() == 1:
            return found
    raise ValueError(
        f"{type(regularizer).__name__} has no parameter log_scale, a number theta_0 with R = e^theta_0 (...), that the "
        "weight could be multiplied into; valid are models.ICNN, ConvolutionalCritic, FieldsOfExperts, TotalVariation"
    )


class AdversarialObjective(Objective):
    r"""f(theta) = mean C(x_i) - mean C(v_i) + gamma mean (\|\|grad C(z_i)\|\| - 1)_+^2,  C = R / lambda,

    for true images x_i, naive reconstructions v_i of their data and z_i = t_i x_i + (1 - t_i) v_i, t_i uniform in
    [0, 1] (Lunz, Öktem and Schönlieb 2018, equation 10 and algorithm 1, which asks for \|\|grad C\|\| <= 1).

    The weight lambda is that of :func:`published_weight` throughout, so that R itself is always the regularizer that
    belongs to the data, and C the critic.

    Parameters
    ----------
    regularizer : Regularizer
        R.
    target : tensor
        True images x, ``(n, channel, height, width)``.
    y : tensor
        Their data.
    operator : LinearOperator, optional
        A; the identity by default.
    fidelity : DataFidelity, optional
        D; 1/2||Ax - y||^2 by default.
    penalty : float
        gamma.

    Raises
    ------
    ValueError
        Images or data are not finite or do not fit each other, or the data have no noise at all.
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
        not_negative(penalty=penalty)
        super().__init__(target, y)
        check_finite("data", y)
        self.regularizer, self.penalty = regularizer, penalty
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

    @property
    def params(self) -> list[nn.Parameter]:
        return self.regularizer.trainable()

    @torch.no_grad()
    def calibrate(self) -> None:
        r"""Scale R so that mean \|\|grad C\|\| = 1 at the middles of x and v: else Adam needs thousands of steps to.

        Raises
        ------
        ValueError
            the gradient is zero or not finite there.
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
        x, v, params = self.target[index], self.naive[index], self.params
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

    def state_dict(self) -> dict[str, float]:
        """The counter and the weight."""
        return super().state_dict() | {"weight": self.weight}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        super().load_state_dict(state)
        self.weight = float(state["weight"])


class CriticAdam(Passes[AdversarialObjective], torch.optim.Adam):  # type: ignore[misc]
    """Adam on mini-batches of an :class:`AdversarialObjective`; ``step(objective=...)`` is one pass over its images.

    Order of the images and interpolation of pass k are decided by ``seed`` and k alone, so that a resumed training
    goes on with the same numbers. In pass k = 0, 1, ... the step is lr (k+1)^-lr_decay.

    The ``Record`` of a pass: loss is the mean over the mini-batches, each at the parameters before its step; nothing is
    inexact, so lower and upper are the same; evaluations are those of R or its gradient, per image.

    Parameters
    ----------
    params : iterable of tensors
        What is learned.
    lr : float
        Of Adam, in the first pass.
    batch_size : int
        Images in a mini-batch; the last one may have fewer.
    lr_decay : float
        How the step falls, at least 0.
    betas : tuple of two floats
        Of Adam.
    seed : int
        Of order and interpolation.

    Raises
    ------
    ValueError
        An option is out of range, the parameters are in several groups, or (in ``step``) the gradient is not finite.
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
        torch.optim.Adam.__init__(self, params, lr=max(lr, 0.0), betas=betas)
        self._take_passes(lr, batch_size, lr_decay, seed)

    def _iterate(self, objective: AdversarialObjective) -> Record:
        """One pass."""
        count, device = len(objective.y), objective.y.device
        generator, batches = self._start_pass(count)
        t = torch.rand(count, generator=generator, dtype=torch.float64)

        def gradient_of(index: Tensor) -> tuple[float, list[Tensor]]:
            return objective.gradient(index.to(device), t[index].to(device))

        return self._exact_pass(objective, batches, gradient_of)

    def _move(self) -> None:
        torch.optim.Adam.step(self)

"""Denoising score matching: a first objective for regularizers of denoising, without a lower-level problem."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recon.bilevel.loss import check_finite
from recon.bilevel.objective import Objective
from recon.errors import positive
from recon.lower_level import Regularizer, check_contract, per_image_norm


class ScoreMatchingObjective(Objective):
    r"""f(theta) = (1/N) sum_i 1/2 \|\|grad R_theta(y_i) - c (y_i - x_i)\|\|^2 for noisy images y_i of x_i.

    With c = 1 and noise of standard deviation sigma, the minimizer over all functions is
    grad R(y) = y - E[x|y] = -sigma^2 grad log p(y), p the density of noisy images (Vincent 2011): then R is the
    regularizer of 1/2 ||x - y||^2 + R(x) that belongs to p, up to p being that of noisy images and not of clean ones.
    c > 1 makes R stronger, as its minimizers, which have less noise than y, ask for.

    An image costs one gradient and one mixed derivative, whatever the regularizer is. Values are exact within rounding,
    and say nothing about the loss of reconstructions.

    Parameters
    ----------
    regularizer : Regularizer
        R_theta; its trainable parameters are theta.
    target : tensor
        True images x, ``(N, channel, height, width)``.
    y : tensor
        The images with noise, of the same shape.
    noise_factor : float
        c, positive.

    Raises
    ------
    ValueError
        Images or data are not finite or differ in shape, nothing can be learned, or ``noise_factor`` is not positive.
    ContractError
        (A ValueError) the regularizer is none, see :func:`recon.lower_level.check_contract`.
    """

    def __init__(self, regularizer: Regularizer, target: Tensor, y: Tensor, noise_factor: float = 1.0) -> None:
        positive(noise_factor=noise_factor)
        super().__init__(target, y)
        check_finite("data", y)
        if y.shape != target.shape:
            raise ValueError(
                f"score matching takes data that are images with noise, but the images have the shape "
                f"{tuple(target.shape)} and the data {tuple(y.shape)}"
            )
        self.regularizer, self.noise_factor = regularizer, noise_factor
        if not self.params:
            raise ValueError(f"{type(regularizer).__name__} has no trainable parameters: nothing can be learned")
        check_contract(regularizer.select(slice(0, 1)), target)

    @property
    def params(self) -> list[nn.Parameter]:
        return self.regularizer.trainable()

    @torch.no_grad()
    def gradient(self, index: Tensor) -> tuple[float, list[Tensor]]:
        """f and its gradient in theta for the images ``index``: tensors of the shapes of ``params``.

        The gradient of 1/2 ||grad R(y) - t||^2 is that of <grad R(y), w> at the fixed w = grad R(y) - t.
        """
        x, y = self.target[index], self.y[index]
        own = self.regularizer.select(index)
        residual = own.grad(y) - self.noise_factor * (y - x)
        value = 0.5 * float(per_image_norm(residual).double().square().sum()) / len(index)
        parts = own.parameter_vjp(y, residual / len(index))
        self.evaluations += 2 * len(index) / len(self.y)
        return value, list(parts)

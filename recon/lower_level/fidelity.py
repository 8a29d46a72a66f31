"""Data fidelities D(z, y) of predicted data z = Ax against measured data y, per image."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from recon.lower_level.batch import per_image_norm


class DataFidelity(nn.Module):
    """D(., y): convex and twice differentiable. ``curvature`` is the diagonal of D''.

    ``smoothness`` and ``strong_convexity`` bound D'' from above and below for given data; ``quadratic`` says whether
    D'' is constant, which the goal-oriented certificate relies on.
    """

    quadratic: bool = True

    def check(self, y: Tensor) -> None:
        """Raise ``ValueError`` if ``y`` is not data for this fidelity."""
        if not torch.isfinite(y).all():
            raise ValueError(f"the data hold {int((~torch.isfinite(y)).sum())} values that are NaN or infinite")

    def value(self, z: Tensor, y: Tensor) -> Tensor:
        """D(z, y), ``(batch, ...) -> (batch,)``."""
        raise NotImplementedError

    def grad(self, z: Tensor, y: Tensor) -> Tensor:
        """The gradient in z."""
        raise NotImplementedError

    def curvature(self, z: Tensor, y: Tensor) -> Tensor:
        """The diagonal of D'' at z, broadcastable to z."""
        raise NotImplementedError

    def weighted(self, weights: Tensor) -> DataFidelity:
        """D with every term times weights >= 0 of the shape of y, e.g. 0 where nothing was measured.

        Raises
        ------
        ValueError
            D knows no weights.
        """
        raise ValueError(f"{type(self).__name__} knows no weights, which these data need; use SquaredL2")

    def select(self, index: Tensor | slice, y: Tensor) -> DataFidelity:
        """D for the images ``index`` of the batch y alone."""
        return self

    def rounding_terms(self, y: Tensor) -> Tensor:
        """The size of the terms that D' subtracts and that do not shrink with its value, per image, float64.

        What is computed of D' is wrong by u times this, besides the errors of z and of the result. Zero where D' is a
        difference z - y, which rounds like its result.
        """
        return torch.zeros(len(y), dtype=torch.float64, device=y.device)

    def smoothness(self, y: Tensor) -> float:
        """An upper bound of D'' over all z."""
        raise NotImplementedError

    def strong_convexity(self, y: Tensor) -> float:
        """A lower bound of D'' over all z."""
        raise NotImplementedError


class SquaredL2(DataFidelity):
    """D(z, y) = (weight/2) ||z - y||^2."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        if not 0 < weight < math.inf:
            raise ValueError(f"weight of the squared L2 fidelity is {weight}, but must be positive and finite")
        self.weight = weight

    def weighted(self, weights: Tensor) -> DataFidelity:
        return WeightedSquaredL2(self.weight * weights)

    def value(self, z: Tensor, y: Tensor) -> Tensor:
        return 0.5 * self.weight * (z - y).flatten(1).square().sum(1, dtype=torch.float64)

    def grad(self, z: Tensor, y: Tensor) -> Tensor:
        return self.weight * (z - y)

    def curvature(self, z: Tensor, y: Tensor) -> Tensor:
        return z.new_full((1,) * z.ndim, self.weight)

    def smoothness(self, y: Tensor) -> float:
        return self.weight

    def strong_convexity(self, y: Tensor) -> float:
        return self.weight


class WeightedSquaredL2(DataFidelity):
    """D(z, y) = 1/2 sum_j w_j (z_j - y_j)^2 with weights w_j >= 0, e.g. the inverse variances of the noise.

    ``weights`` has the shape of one image's data, or broadcasts to it: all images have the same. Or it has the shape of
    y, with the batch: every image has its own.
    """

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        weights = torch.as_tensor(weights).detach()
        if weights.numel() == 0 or not torch.isfinite(weights).all() or (weights < 0).any():
            raise ValueError("weights of the weighted squared L2 fidelity must be finite and not negative")
        self.register_buffer("weights", weights)
        self.weights: Tensor

    def check(self, y: Tensor) -> None:
        super().check(y)
        one = (1, *y.shape[1:])
        try:
            fits = self._own(y) or torch.broadcast_shapes(one, self.weights.shape) == one
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"the weights have the shape {tuple(self.weights.shape)}, but must broadcast to the data of one image, "
                f"{one[1:]}, or have the shape of all data, {tuple(y.shape)}"
            )

    def _own(self, y: Tensor) -> bool:
        """Whether every image of y has weights of its own."""
        return self.weights.shape == y.shape

    def weighted(self, weights: Tensor) -> DataFidelity:
        return WeightedSquaredL2(self.weights.to(weights) * weights)

    def select(self, index: Tensor | slice, y: Tensor) -> DataFidelity:
        if not self._own(y):
            return self
        part = WeightedSquaredL2(self.weights[:1])
        part.weights = self.weights[index]  # of no image at all, when the last of a batch is solved
        return part

    def value(self, z: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (self.weights.to(z) * (z - y).square()).flatten(1).sum(1, dtype=torch.float64)

    def grad(self, z: Tensor, y: Tensor) -> Tensor:
        return self.weights.to(z) * (z - y)

    def curvature(self, z: Tensor, y: Tensor) -> Tensor:
        weights = self.weights.to(z)
        return weights.view((1,) * (z.ndim - weights.ndim) + weights.shape)  # an axis for the batch, of length one

    def smoothness(self, y: Tensor) -> float:
        return float(self.weights.max())

    def strong_convexity(self, y: Tensor) -> float:
        return float(self.weights.min())


class KullbackLeibler(DataFidelity):
    """D(z, y) = sum_j z_j - y_j + y_j log(y_j / (z_j + b)) + b for counts y >= 0 and background b > 0.

    Below z = 0 the quadratic Taylor polynomial of D at 0 continues it, so that D is convex and smooth everywhere and
    D'' <= y / b^2. Minimizers with z >= 0 are those of the Kullback-Leibler divergence.
    """

    quadratic = False

    def __init__(self, background: float) -> None:
        super().__init__()
        if not 0 < background < math.inf:
            raise ValueError(f"background of the Kullback-Leibler fidelity is {background}, but must be positive")
        self.background = background

    def check(self, y: Tensor) -> None:
        super().check(y)
        if (y < 0).any():
            raise ValueError(f"data of the Kullback-Leibler fidelity are counts, but hold {float(y.min()):g} < 0")

    def value(self, z: Tensor, y: Tensor) -> Tensor:
        b, inside = self.background, z.clamp_min(0)
        below = z.clamp_max(0)
        value = inside + b - y + torch.xlogy(y, y) - torch.xlogy(y, inside + b)
        value = value + below * (1 - y / b) + 0.5 * below.square() * y / b**2
        return value.flatten(1).sum(1, dtype=torch.float64)

    def grad(self, z: Tensor, y: Tensor) -> Tensor:
        b = self.background
        return 1 - y / (z.clamp_min(0) + b) + z.clamp_max(0) * y / b**2

    def curvature(self, z: Tensor, y: Tensor) -> Tensor:
        return y / (z.clamp_min(0) + self.background).square()

    def rounding_terms(self, y: Tensor) -> Tensor:
        """||1|| + 3 ||y / b||: D' = 1 - y / (z + b), with three roundings in the second term, at most y / b."""
        return y[0].numel() ** 0.5 + 3 * per_image_norm(y) / self.background

    def smoothness(self, y: Tensor) -> float:
        return float(y.max()) / self.background**2

    def strong_convexity(self, y: Tensor) -> float:
        return 0.0

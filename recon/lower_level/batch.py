"""Arithmetic image by image: the first axis is the batch, everything else belongs to one image."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

#: entries that are added up in single precision before their sum goes on in double precision
BLOCK = 128
#: pixels of images that are not worth blocks
SMALL = 16_384
#: sums of squares of single-precision numbers below this size lose digits, or everything, by underflow
_SMALLEST = 1e-16


def per_image_norm(x: Tensor) -> Tensor:
    """Euclidean norm of every image, ``(batch, ...) -> (batch,)`` in float64.

    Certificates are norms: sums over all pixels are in double precision whatever x is (4e-3 too small otherwise, for
    64 million pixels). On a CPU blocks of ``BLOCK`` pixels of large images are summed in the precision of x first. This
    changes the result by at most 8 u; images whose squares underflow or overflow go without blocks.
    """
    flat = _real(x).flatten(1)
    if _in_blocks(flat):
        head, tail = _blocks(flat)
        norm = torch.linalg.vector_norm(head, dim=2).double().square().sum(1)
        if tail is not None:
            norm = norm + tail.double().square().sum(1)
        norm = norm.sqrt()
        least = _SMALLEST * math.sqrt(flat.shape[1])
        if all(least < value < math.inf for value in norm.tolist()):
            return norm
    return torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64)


def per_image_dot(a: Tensor, b: Tensor) -> Tensor:
    """Real inner product image by image, ``(batch, ...), (batch, ...) -> (batch,)``, added up in float64 as norms."""
    a, b = _real(a).flatten(1), _real(b).flatten(1)
    if a.device.type != "cpu":
        return (a * b).sum(1, dtype=torch.float64)
    if a.dtype == b.dtype == torch.float32:
        if _in_blocks(a):
            (head_a, tail_a), (head_b, tail_b) = _blocks(a), _blocks(b)
            dot = torch.linalg.vecdot(head_a, head_b).sum(1, dtype=torch.float64)
            if tail_a is not None and tail_b is not None:
                dot = dot + (tail_a.double() * tail_b.double()).sum(1)
        else:
            dot = torch.linalg.vecdot(a, b).double()
        least = _SMALLEST**2 * a.shape[1]
        if all(least < abs(value) < math.inf for value in dot.tolist()):
            return dot
    return torch.linalg.vecdot(a.double(), b.double())


def _in_blocks(flat: Tensor) -> bool:
    """Whether double precision would take longer than blocks."""
    return flat.dtype == torch.float32 and flat.device.type == "cpu" and flat.shape[1] > SMALL


def over_image(v: Tensor, x: Tensor) -> Tensor:
    """One number per image, ``(batch,) -> (batch, 1, 1, ...)`` to broadcast against x; in its dtype unless boolean."""
    if v.dtype != torch.bool:
        v = v.to(x.dtype)
    return v.view(-1, *([1] * (x.ndim - 1)))


def per_image_accuracy(accuracy: float | Tensor, like: Tensor) -> Tensor:
    """What is asked of every image of ``like``: float64 on its device, ``(batch,)``.

    Raises
    ------
    ValueError
        There is neither one accuracy nor one per image, or one is not positive.
    """
    batch, goal = len(like), torch.as_tensor(accuracy, dtype=torch.float64)
    if goal.numel() not in (1, batch) or goal.ndim > 1:
        raise ValueError(f"needs one accuracy, or one for each of {batch} images, got {tuple(goal.shape)}")
    if not bool((goal > 0).all()):
        raise ValueError(f"the accuracy asked for is {float(goal.min()):g}, but must be positive")
    return goal.to(like.device).expand(batch).clone()


class PerImage:
    """What has tensors as attributes, each with one row for every image that still runs; others are not touched."""

    def select(self, index: Tensor) -> None:
        """Keep the images ``index`` only; tensors are replaced."""
        vars(self).update({name: tensor[index] for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """All of them by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def load(self, saved: Mapping[str, Tensor]) -> None:
        """Take over copies of what :meth:`tensors` returned."""
        vars(self).update({name: tensor.clone() for name, tensor in saved.items()})


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def _blocks(flat: Tensor) -> tuple[Tensor, Tensor | None]:
    """All whole blocks, ``(batch, blocks, BLOCK)``, and what is left."""
    whole = flat.shape[1] // BLOCK * BLOCK
    return flat[:, :whole].unflatten(1, (-1, BLOCK)), (flat[:, whole:] if whole < flat.shape[1] else None)

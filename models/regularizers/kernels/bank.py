"""Filters with profiles in the compiled library: tensors in, tensors out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.regularizers.kernels import calls, library

KINDS = ("smoothed_l1", "log_cosh", "student_t", "spline", "soft_maximum")
GROUPED = {"soft_maximum": 4}  #: how many filters share a profile of other kinds than the usual ones
LARGEST = 64  #: side of filters


@dataclass(frozen=True)
class Profiles:
    """What the library needs to know of psi_1, ..., psi_K.

    Parameters
    ----------
    kind
        one of :data:`KINDS`.
    tables
        at most three, ``(profiles, columns)``: weights, widths and maybe second widths of potentials; psi'', psi' and
        psi at the knots of splines. There is one profile for every filter, or for every group of filters.
    spacing
        distance of the knots of splines.
    """

    kind: str
    tables: tuple[Tensor, ...]
    spacing: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"the compiled kernels have {', '.join(KINDS)}, but no {self.kind!r}")
        numbers = (3,) if self.kind == "spline" else (2, 3)
        shapes = [tuple(table.shape) for table in self.tables]
        if len(shapes) not in numbers or len(set(shapes)) > 1:
            raise ValueError(f"{self.kind} has {numbers} tables of one shape, but got {shapes}")


def compiled(x: Tensor, kernels: Tensor, profiles: Profiles) -> Bank | None:
    """The bank for images like x, ``(batch, channel, height, width)``; ``None`` where the code in torch has to do.

    The library takes images no smaller than the filters in single and double precision, the same for images and
    parameters, on a CPU. :func:`library.level` says whether it is there and wanted.
    """
    size, group = kernels.shape[-1], GROUPED.get(profiles.kind, 1)
    if len(kernels) != group * len(profiles.tables[0]):
        raise ValueError(f"{len(kernels)} filters, but {len(profiles.tables[0])} profiles for {group} of them each")
    if not 2 <= size <= LARGEST or not calls.suitable(x, size, kernels, *profiles.tables):
        return None
    level = library.level()
    if level is None:
        return None
    tables = tuple(table.contiguous() for table in profiles.tables)
    return Bank(kernels.contiguous(), Profiles(profiles.kind, tables, profiles.spacing), level)


@dataclass(frozen=True)
class Weights:
    """psi''(c_k * x) at the images x, as the library lays it out, and the shape of x."""

    stored: Tensor
    shape: torch.Size


@dataclass(frozen=True)
class Bank:
    """Filters and profiles at a level of instructions, for images like those of :func:`compiled`.

    Images are ``(images, height, width)`` for filters ``(K, s, s)``, and ``(images, C, height, width)`` for filters
    ``(K, C, s, s)``.
    """

    kernels: Tensor
    profiles: Profiles
    level: int

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of psi_k(c_k * x) for every image, float64, and their gradient."""
        out = torch.empty_like(x)
        return self._run("gradient", x, out=out)[:, 0], out

    def curvature(self, x: Tensor) -> Weights:
        """psi''(c_k * x), for :meth:`product`."""
        stored = x.new_empty(calls.layout(self._task("curvature", x))[2])
        self._run("curvature", x, weights=stored)
        return Weights(stored, x.shape)

    def product(self, v: Tensor, weights: Weights, order: Tensor | None) -> Tensor:
        """sum_k C_k^T psi''(c_k * x) C_k v, where v[i] belongs to the image order[i] of ``weights``."""
        order = calls.checked_order(v, weights.stored.dtype, weights.shape, order)
        out = torch.empty_like(v)
        self._run("product", v, out=out, weights=weights.stored, order=order)
        return out

    def maximum(self, x: Tensor) -> Tensor:
        """max_p |(c_k * x)_p|, ``(images, K)``, float64."""
        return self._run("maximum", x)

    def derivative(self, x: Tensor, w: Tensor) -> tuple[Tensor, list[Tensor]]:
        """d/d(kernels, tables) of sum_k <psi_k'(c_k * x), c_k * w>, over all images."""
        total = calls.over_images(self._run("derivative", x, w=w))
        sizes = [self.kernels.numel(), *[self.profiles.tables[0].numel()] * 3]
        parts = [part.to(x.dtype) for part in total.split(sizes)]
        return parts[0].view_as(self.kernels), [
            part.view_as(table) for part, table in zip(parts[1:], self.profiles.tables, strict=False)
        ]

    # --- calls -------------------------------------------------------------------------------------------------------

    def _task(self, operation: str, x: Tensor) -> library.Task:
        task = calls.task(operation, self.level, x, self.kernels, self.profiles.tables)
        task.kind, task.columns = KINDS.index(self.profiles.kind), self.profiles.tables[0].shape[1]
        task.spacing = self.profiles.spacing
        return task

    def _run(self, operation: str, x: Tensor, **others: Tensor | None) -> Tensor:
        return calls.run(self._task(operation, x), x, **others)

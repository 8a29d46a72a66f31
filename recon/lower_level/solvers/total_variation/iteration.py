r"""Steps of the primal-dual method for total variation, one image at a time, and the sums that certify it.

The problem is min over low <= x <= high of F(x) = 1/2 sum_i w_i (x_i - y_i)^2 + alpha sum_i \|(Dx)_i\|, D forward
differences that are zero across the last row and column, \|.\| Euclidean or the sum of absolute values. With fields p,
\|p_i\| <= 1 in the dual norm, a step with sigma = dual alpha, tau = primal is

    p+ = P(p + dual D x_bar),
    x+ = clip(x + tau / (1 + tau w) (w (y - x) - alpha D^T p+)),
    x_bar = x+ + theta (x+ - x)

(Chambolle and Pock 2011, Algorithms 1 and 2). A kernel does it in one pass through the rows; the same with torch is for
other devices, and where nothing has been compiled.
"""

from __future__ import annotations

import ctypes
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from recon import native
from recon.lower_level.precision import unit_roundoff
from recon.native import address, library, wanted

LIBRARY, VERSION = "_total_variation", 1
#: fields longer than 1 - SNAP u have length 1: rounding takes or adds as much
SNAP = 16.0
#: pixels that torch certifies at a time, so that all of it stays in the cache
BLOCK = 1 << 15


class Step(NamedTuple):
    """dual = sigma / alpha, primal = tau, and the extrapolation theta."""

    dual: float
    primal: float
    theta: float


@dataclass(frozen=True)
class Image:
    """The problem of one image: ``y`` and ``weights`` (None: all are 1) are ``(channel, height, width)``."""

    y: Tensor
    weights: Tensor | None
    alpha: float
    low: float
    high: float
    isotropic: bool


class Sums(NamedTuple):
    r"""What the certificate is made of, in double precision; ``certificate.py`` has x(p), and how.

    Parameters
    ----------
    variation, slack
        TV(x) and TV(x) - <Dx, p>.
    distance, bound
        \|\|x - x(p)\|\|_W^2 and <W (x(p) - y) + alpha D^T p, x - x(p)>.
    output
        The squared distance of (x + x(p))/2 to what it is rounded to.
    """

    variation: float
    slack: float
    distance: float
    bound: float
    output: float


class Stepper(ABC):
    """x and p of one image, and what changes them.

    Parameters
    ----------
    image : Image
        The problem.
    x : Tensor
        ``(channel, height, width)``, in the box; it is copied, as is p.
    p : Tensor
        ``(2, channel, height, width)``; zero across the last row and column.
    """

    def __init__(self, image: Image, x: Tensor, p: Tensor) -> None:
        self.image = image
        self.x, self.bar, self.p = x.clone(), x.clone(), p.clone()

    def move(self, x: Tensor) -> None:
        """Go on from another x."""
        self.x, self.bar = x.clone(), x.clone()

    @abstractmethod
    def advance(self, steps: Sequence[Step]) -> None:
        """So many steps."""

    @abstractmethod
    def certify(self) -> tuple[Tensor, Sums]:
        """The midpoint of x and x^(p), rounded to the precision of x, and the sums for it."""


class CompiledStepper(Stepper):
    """By a compiled kernel, on the CPU."""

    def __init__(self, image: Image, x: Tensor, p: Tensor, kernel: ctypes.CDLL) -> None:
        super().__init__(image, x, p)
        self.kernel = kernel

    def _run(self, steps: Sequence[Step] = (), out: Tensor | None = None) -> Sums:
        image = self.image
        task, sums = _Task(), (ctypes.c_double * len(Sums._fields))()
        numbers = (ctypes.c_double * (3 * len(steps)))(*(value for step in steps for value in step))
        task.precision, task.isotropic = self.x.element_size(), image.isotropic
        task.planes, task.height, task.width = self.x.shape
        task.alpha, task.low, task.high = image.alpha, image.low, image.high
        task.y, task.weights = address(image.y), address(image.weights)
        task.x, task.bar, task.p, task.out = address(self.x), address(self.bar), address(self.p), address(out)
        task.count, task.steps, task.sums = len(steps), ctypes.addressof(numbers), ctypes.addressof(sums)
        task.snap = 1 - SNAP * unit_roundoff(self.x.dtype)
        self.kernel.total_variation_run(ctypes.byref(task))
        return Sums(*sums)

    def advance(self, steps: Sequence[Step]) -> None:
        self._run(steps)

    def certify(self) -> tuple[Tensor, Sums]:
        out = torch.empty_like(self.x)
        return out, self._run(out=out)


class _Task(ctypes.Structure):
    """``Task`` of total_variation.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("precision", "isotropic", "planes", "height", "width")),
        *((name, ctypes.c_double) for name in ("alpha", "low", "high")),
        *((name, ctypes.c_void_p) for name in ("y", "weights", "x", "bar", "p")),
        ("count", ctypes.c_int64),
        ("steps", ctypes.c_void_p),
        ("snap", ctypes.c_double),
        ("out", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
    )


class TorchStepper(Stepper):
    """With torch, in place: on every device, in every precision."""

    def __init__(self, image: Image, x: Tensor, p: Tensor) -> None:
        super().__init__(image, x, p)
        self.z, self.t, self.old = torch.zeros_like(self.p), torch.empty_like(self.x), torch.empty_like(self.x)

    def advance(self, steps: Sequence[Step]) -> None:
        image = self.image
        for step in steps:
            _differences(self.bar, self.z)
            self.p.add_(self.z, alpha=step.dual)
            self._project()
            transpose(self.p, self.t)
            self.old, self.x = self.x, self.old
            # x+ = x + share (w (y - x) - alpha D^T p)
            torch.sub(image.y, self.old, out=self.x)
            if image.weights is None:
                self.x.sub_(self.t, alpha=image.alpha).mul_(step.primal / (1 + step.primal))
            else:
                self.x.mul_(image.weights).sub_(self.t, alpha=image.alpha)
                self.x.div_(torch.add(1 / step.primal, image.weights))
            self.x.add_(self.old)
            if not (image.low == -math.inf and image.high == math.inf):
                self.x.clamp_(image.low, image.high)
            torch.sub(self.x, self.old, out=self.bar)
            self.bar.mul_(step.theta).add_(self.x)

    def _project(self) -> None:
        if not self.image.isotropic:
            self.p.clamp_(-1, 1)
            return
        torch.mul(self.p[0], self.p[0], out=self.t)
        self.t.addcmul_(self.p[1], self.p[1]).clamp_(min=1).rsqrt_()
        self.p.mul_(self.t)

    def certify(self) -> tuple[Tensor, Sums]:
        out, parts = torch.empty_like(self.x), []
        rows = max(1, BLOCK // (self.x.shape[0] * self.x.shape[2]))
        for top in range(0, self.x.shape[1], rows):
            # torch cuts sums longer than a row into as many parts as there are threads
            terms = [term.sum(-1).sum(-1).sum() for term in self._terms(slice(top, top + rows), out)]
            parts.append(torch.stack(terms))
        return out, Sums(*torch.stack(parts).sum(0).tolist())

    def _terms(self, rows: slice, out: Tensor) -> tuple[Tensor, ...]:
        """What is added up, for some rows alone; writes these rows of the midpoint."""
        image, lead = self.image, int(rows.start > 0)
        p = self._snapped(self.p[:, :, rows.start - lead : rows.stop])
        pull = transpose(p)[:, lead:].mul_(image.alpha)
        p = p[:, :, lead:]
        x = self.x[:, rows.start : rows.stop + 1].double()
        z = torch.zeros_like(p)
        _differences(x, z)
        x, y = x[:, : p.shape[2]], image.y[:, rows].double()
        if image.weights is None:
            w = torch.ones((), dtype=x.dtype, device=x.device)
            best = y - pull
        else:
            w = image.weights[:, rows].double()
            free = torch.where(pull > 0, image.low, torch.where(pull < 0, image.high, x))
            best = torch.where(w > 0, y - pull / w, free)
        best.clamp_(image.low, image.high)
        away, middle = x - best, 0.5 * (x + best)
        held = (best <= image.low) | (best >= image.high) | (w <= 0)
        out[:, rows] = middle
        length = _length(z) if image.isotropic else z[0].abs() + z[1].abs()
        lost = (out[:, rows].double() - middle).abs().add_(middle.abs(), alpha=unit_roundoff(torch.float64))
        return (
            length,
            length - (z[0] * p[0] + z[1] * p[1]),
            w * away.square(),
            torch.where(held, (w * (best - y) + pull) * away, 0.0),
            lost.square(),
        )

    def _snapped(self, p: Tensor) -> Tensor:
        """p in double precision, of length 1 where it is nearly that."""
        snap, p = 1 - SNAP * unit_roundoff(p.dtype), p.double()
        if not self.image.isotropic:
            return torch.where(p.abs() >= snap, p.sign(), p)
        length = _length(p)
        return p / torch.where(length >= snap, length, 1.0)


def stepper(image: Image, x: Tensor, p: Tensor) -> Stepper:
    """The steps of an image: compiled where they can be."""
    usable = x.device.type == "cpu" and wanted()
    kernel = library(Path(__file__).parent, LIBRARY, VERSION) if usable else None
    return TorchStepper(image, x, p) if kernel is None else CompiledStepper(image, x, p, kernel)


def describe() -> str:
    """What computes iterations, in a sentence."""
    return native.describe(Path(__file__).parent, LIBRARY, VERSION)


def _differences(x: Tensor, z: Tensor) -> None:
    """z = Dx, ``(2, ...)``, whose entries across the last row and column stay as they are, zero.

    x may have a row more than z, whose last row then is another one.
    """
    rows = x.shape[-2] - 1
    torch.sub(x[..., 1:, :], x[..., :-1, :], out=z[0, ..., :rows, :])
    x = x[..., : z.shape[-2], :]
    torch.sub(x[..., 1:], x[..., :-1], out=z[1, ..., :-1])


def transpose(p: Tensor, out: Tensor | None = None) -> Tensor:
    """D^T p, ``(2, ...) -> (...)``, into ``out`` if given; p is zero across the last row and column."""
    out = torch.add(p[0], p[1], out=out).neg_()
    out[..., 1:, :].add_(p[0, ..., :-1, :])
    out[..., 1:].add_(p[1, ..., :-1])
    return out


def _length(p: Tensor) -> Tensor:
    """Of vectors ``(2, ...)``; several times as fast as torch's norm along the first axis."""
    return (p[0] * p[0]).addcmul_(p[1], p[1]).sqrt_()

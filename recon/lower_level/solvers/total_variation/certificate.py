r"""What is certified of an image, and true in floating point.

For any x in the box and any field p with \|p_i\| <= 1, let x(p) = y - (alpha/w) D^T p, clipped to the box: there it
minimizes phi(t) = 1/2 \|\|t - y\|\|_W^2 + alpha <Dt, p>. With the gap

    G = F(x) - phi(x(p)) = alpha (TV(x) - <Dx, p>) + 1/2 \|\|x - x(p)\|\|_W^2 + <W (x(p) - y) + alpha D^T p, x - x(p)>

of which no term is negative, F(x) - min F <= G and \|\|x - x^\|\|_W^2 <= 2 G. Better off is m = (x + x(p))/2, with
\|\|m - x^\|\|_W^2 <= G - 1/4 \|\|x - x(p)\|\|_W^2 (docs/mathematics.md has the proof). Nothing cancels, and all is
computed in double precision from the very numbers x and p, whatever their type. What rounding errors are left is
modelled:

* a term of TV(x) - <Dx, p> is wrong by ``TERM`` u \|(Dx)_i\| at most, fields that are too long by u included;
* x(p) is wrong by d with \|\|d\|\|_W <= u (``FIELD`` alpha (n / min w)^(1/2) + 2 \|\|y\|\|), which changes G by at most
  3 \|\|d\|\|_W \|\|x - x(p)\|\|_W + \|\|d\|\|_W^2; where w = 0 it may be at the wrong bound, if D^T p is as small as
  its error;
* sums are wrong by u times the number of rows and columns, relatively.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from recon.lower_level.batch import per_image_norm
from recon.lower_level.precision import unit_roundoff
from recon.lower_level.solvers.total_variation.iteration import Image, Stepper, Sums, stepper

#: rounding errors in units of u, see above
TERM, FIELD = 16.0, 40.0


class Middle(NamedTuple):
    r"""What is known of m. weighted: the bound of \|\|m - x^\|\|_W without the rounding error of m itself, W <= 1.

    rounding: the part of it that the model of rounding errors adds. output: how far the numbers of m, of its type, are
    from the middle that ``weighted`` belongs to.
    """

    x: Tensor
    weighted: float
    rounding: float
    output: float


class GapCertificate:
    """Bounds for one image, all in the scale of ``image``, whose weights are at most 1."""

    def __init__(self, image: Image) -> None:
        self.image = image
        y, w, alpha, u = image.y, image.weights, image.alpha, unit_roundoff(torch.float64)
        size, norm = y.numel(), float(per_image_norm(y[None]))
        least = 1.0 if w is None else float(w[w > 0].min())
        self._free = free = 0 if w is None else int((w == 0).sum())
        self._field = u * (FIELD * alpha * math.sqrt(size / least) + 2 * norm)
        self._sign = u * FIELD * alpha * free * (image.high - image.low) if free else 0.0
        self._sum = u * (TERM + y.shape[2] + y.shape[1] * y.shape[0])
        #: the least square of ``weighted`` to hope for: rounding errors of x, in its type, have a total variation
        self.floor = unit_roundoff(y.dtype) * alpha * (math.sqrt(size) * norm + alpha * size)

    def look(self, iterating: Stepper) -> Middle:
        """The middle of x and x(p), and how far it is from the minimizer.

        Where weights are zero x(p) is at one bound or another, and the middle no picture: x then, with the bound 2 G.
        """
        x, sums = iterating.certify()
        if self._free:
            square = 2 * (self.image.alpha * sums.slack + 0.5 * sums.distance + sums.bound)
            return Middle(iterating.x.clone(), *self._rounded(square, sums, 2.0), 0.0)
        square = self.image.alpha * sums.slack + 0.25 * sums.distance + sums.bound
        return Middle(x, *self._rounded(square, sums), math.sqrt(sums.output))

    def gap(self, x: Tensor, p: Tensor) -> float:
        """A bound of F(x) - min F."""
        sums = stepper(self.image, x, p).certify()[1]
        return self._rounded(self.image.alpha * sums.slack + 0.5 * sums.distance + sums.bound, sums)[0] ** 2

    def _rounded(self, square: float, sums: Sums, factor: float = 1.0) -> tuple[float, float]:
        """The root of ``square`` with all rounding errors, and how much of it they are; ``factor``: of G in it."""
        if not math.isfinite(square):
            return math.inf, math.inf
        model = TERM * unit_roundoff(torch.float64) * self.image.alpha * sums.variation + self._sum * abs(square)
        model += 3 * self._field * math.sqrt(sums.distance) + self._field**2 + self._sign
        square, model = max(square, 0.0), factor * model
        return math.sqrt(square + model), math.sqrt(square + model) - math.sqrt(square)

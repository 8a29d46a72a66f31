"""The steps of the primal-dual hybrid gradient method, for a batch of saddle-point problems."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from recon.lower_level.batch import PerImage, per_image_norm
from recon.lower_level.saddle.problem import SaddlePoint

#: ratio of the residuals above which steps are balanced, and how fast the adaptation dies out (Goldstein et al. 2015)
IMBALANCE, DECAY = 1.5, 0.95


class Iteration(PerImage):
    r"""The state of the method, and one step of it; every image has its own step sizes tau, sigma.

        s = prox_{f/sigma}(y/sigma + K x_bar),  y+ = y + sigma (K x_bar - s),
        x+ = prox_{tau g}(x - tau K^T y+),  x_bar = x+ + theta (x+ - x).

    By Moreau's identity y+ = prox_{sigma f*}(y + sigma K x_bar), and s is in the subdifferential of f* at y+: the
    residuals p = (x - x+)/tau and d = s - K x+ of the optimality conditions at (x+, y+) cost nothing.

    Steps: tau sigma \|\|K\|\|^2 = 1 with tau/sigma = mu_f/mu_g where both moduli are positive, and theta = 1/(1 +
    2 min(tau mu_g, sigma mu_f)): linear convergence (Chambolle and Pock 2011, Algorithm 3). ``diagonal``: tau_j,
    sigma_i the inverse absolute sums of the columns and rows of K (Pock and Chambolle 2011, alpha = 1).
    """

    #: evaluations of a step, and of the start
    cost = 1

    def __init__(self, saddle: SaddlePoint, x: Tensor, y: Tensor, diagonal: bool = False) -> None:
        self.saddle, self.x, self.y = saddle, x.detach().clone(), y.detach().clone()
        batch = len(x)
        sums = saddle.operator.absolute_sums() if diagonal else None
        if diagonal and sums is None:
            raise ValueError(f"{saddle.operator.name} knows no absolute_sums: no diagonal preconditioning")
        if sums is not None:
            self.tau, self.sigma = ((1 / t.clamp_min(1e-30)).to(x).expand(batch, -1) for t in sums)
        else:
            step = 1 / max(saddle.norm, 1e-30)
            self.tau = self.sigma = x.new_full((batch, 1), step)
        if self.primal > 0 and 0 < self.dual < math.inf:
            ratio = math.sqrt(self.dual / self.primal)
            self.tau, self.sigma = self.tau * ratio, self.sigma / ratio
        self.alpha = x.new_full((batch, 1), 0.5)
        self.kx = saddle.operator(self.x)
        self.kx_bar, self.s = self.kx, self.kx
        self._set_theta()

    @classmethod
    def of(cls, saddle: SaddlePoint, saved: Mapping[str, Tensor]) -> Iteration:
        """One from the tensors that another one had, for the same problem; raises ``KeyError`` if some are missing."""
        iteration = object.__new__(cls)
        iteration.saddle = saddle
        names = ("x", "y", "s", "kx", "kx_bar", "kty", "tau", "sigma", "alpha", "theta", "largest")
        iteration.load({name: saved[name] for name in names})
        return iteration

    @property
    def primal(self) -> float:
        """mu_g."""
        return self.saddle.convexity

    @property
    def dual(self) -> float:
        """mu_f."""
        return self.saddle.dual_convexity

    def _set_theta(self) -> None:
        dual = self.dual if math.isfinite(self.dual) else 0.0
        tau, sigma = self.tau.amin(1, keepdim=True), self.sigma.amin(1, keepdim=True)
        self.theta = 1 / (1 + 2 * torch.minimum(tau * max(self.primal, 0.0), sigma * dual))
        self.largest = torch.stack((1 / tau[:, 0].double(), 1 / sigma[:, 0].double()), 1)

    def advance(self) -> tuple[Tensor, Tensor]:
        """One step; the residuals p and d at the new point."""
        v = self.y / self.sigma + self.kx_bar
        self.s = self.saddle.f.prox(v, 1 / self.sigma)
        self.y = self.sigma * (v - self.s)
        self.kty = self.saddle.operator.transpose(self.y)
        x = self.saddle.g.prox(self.x - self.tau * self.kty, self.tau)
        kx = self.saddle.operator(x)
        p, d = (self.x - x) / self.tau, self.s - kx
        self.kx_bar = kx + self.theta * (kx - self.kx)
        self.x, self.kx = x, kx
        return p, d

    def rounding(self) -> tuple[Tensor, Tensor]:
        """First-order models of the rounding errors in p and d, per image: u (||K|| ||y|| + ||x||/tau) and alike.

        That of d also has the rounding errors of s, which may be the difference of larger terms, y/w and a centre.
        """
        unit, norm = self.saddle.operator.eps(self.x.dtype), self.saddle.norm
        x, y = per_image_norm(self.x), per_image_norm(self.y)
        terms = self.saddle.f.conjugate_terms(self.y)
        return unit * (norm * y + self.largest[:, 0] * x), unit * (norm * x + self.largest[:, 1] * y + terms)

    def balance(self, p: Tensor, d: Tensor) -> None:
        """Move tau/sigma, less and less, so that both residuals weigh as much in the certificate (tau sigma stays)."""
        if self.primal > 0 and 0 < self.dual < math.inf:
            p, d = p * self.primal**-0.5, d * self.dual**-0.5
        up = (p > IMBALANCE * d)[:, None]
        down = (d > IMBALANCE * p)[:, None]
        if not bool((up | down).any()):
            return
        factor = torch.where(up, 1 / (1 - self.alpha), torch.where(down, 1 - self.alpha, 1.0))
        self.tau, self.sigma = self.tau * factor, self.sigma / factor
        self.alpha = torch.where(up | down, DECAY * self.alpha, self.alpha)
        self._set_theta()

    def carried(self) -> dict[str, Tensor]:
        """What is kept of an image when it stops, besides x, y and s: nothing, unless a subclass has more."""
        return {}

    def gap(self) -> tuple[Tensor, Tensor]:
        """The primal-dual gap at the current point, and its rounding error."""
        return self.saddle.gap_parts(self.x, self.y, self.kx, self.kty)

    def select(self, index: Tensor) -> None:
        """Go on with the images ``index`` only."""
        super().select(index)
        self.saddle = self.saddle.select(index)

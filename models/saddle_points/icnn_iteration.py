"""The primal-dual hybrid gradient method for denoising with input convex networks, layer by layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.saddle_points.icnn_saddle import ICNNSaddle, NetworkMap
from recon.lower_level.saddle.epigraph import dual_epigraph, dual_relu_sum

#: iterations between two comparisons of the residuals, their ratio above which steps move, and how fast this dies out
BALANCE_EVERY, IMBALANCE, DECAY = 5, 1.5, 0.8


class NetworkIteration:
    r"""The steps of :class:`~recon.lower_level.saddle.iteration.Iteration`, theta = 1, for an exact ICNN without A.

    What :class:`ICNNSaddle` puts into flat vectors is one tensor per layer here, ``(batch * channel, filters, height,
    width)``: x and z_0, ..., z_{L-1}; the multipliers (p_l, q_l) of (W_l z_{l-1} + b_l, z_l), W_0 = V, z_{-1} = x, and
    r of the last layer. Prox and projection are dual ones, a few passes over memory each.

    Steps: no row of K has two blocks of x, so that K^T diag(sigma) K is the block diagonal of sigma_0 V^T V and
    sigma_{l-1} I + sigma_l W_l^T W_l. Hence 1/tau = sigma_0 \|\|V\|\|^2 for x and sigma_{l-1} + sigma_l
    \|\|W_l\|\|^2 for z_{l-1} are safe, whatever sigma is. The bound of the method, \|\|x_0 - x^\|\|^2_{1/tau} +
    \|\|y_0 - y^\|\|^2_{1/sigma}, is then smallest for

        sigma_l = D(p_l, q_l) / sqrt(\|\|W_l\|\|^2 D(z_{l-1})^2 + D(z_l)^2),       D(z_L) = 0,

    D the distances to the solution. Estimates: of x the length of a step along the subgradient of R over the modulus of
    the data term, a bound of it; of z_l what changes on this step; of multipliers half of what they can be at most,
    0 <= r <= a, 0 <= p_l <= -q_l <= t_l = W_{l+1}^T ... W_L^T a. With ``adaptive``, sigma and 1/tau are scaled image
    by image as the residuals of both problems say, \|\|x - x+\|\|_{1/tau} and \|\|y - y+\|\|_{1/sigma}, in the norms
    of the method, where they have the same units, every ``BALANCE_EVERY`` iterations and ever less (Goldstein et al.
    2015). Multipliers start at the subgradient of R at x_0 by the chain rule.

    Parameters
    ----------
    model
        the network's exact form.
    data
        y, ``(batch, channel, height, width)``.
    x0
        the first image, of the shape of y.
    adaptive
        whether steps follow the residuals.

    Raises
    ------
    ValueError
        the model is relaxed, or has an operator.
    """

    @torch.no_grad()
    def __init__(self, model: ICNNSaddle, data: Tensor, x0: Tensor, adaptive: bool = True) -> None:
        if model.relaxation or model.z_convexity:
            raise ValueError("the model is relaxed, but this iteration is that of the exact form: relaxation 0")
        if model.data is not None:
            raise ValueError("the model has an operator, but this iteration is for denoising; use PrimalDual")
        self.model, network = model, model.network
        saddle_map = NetworkMap(network.convolutions(), model.image_shape)
        self.norms = saddle_map.norms
        self.kernels = [k.detach() for k in saddle_map.kernels]
        self.biases = [b.detach() for b in network.biases]
        self.a, self.sigma_0 = network.weights().detach(), network.hidden
        self.adaptive, self.count, self.shape = adaptive, 0, x0.shape
        self.pull, self.modulus = model.data_weight * self._layered(data), model.data_weight + model.mu
        self.x = self._start(x0)
        self.x_bar = self.x
        self._set_steps(self._steps(x0))
        self.alpha = x0.new_full((len(self.x[0]), 1, 1, 1), 0.5)

    @staticmethod
    def _layered(x: Tensor) -> Tensor:
        return x.reshape(-1, 1, *x.shape[2:])

    def _start(self, x0: Tensor) -> list[Tensor]:
        """x and z; sets the multipliers."""
        network = self.model.network
        responses = network.responses(x0)
        self.gradient, slopes = network._back(responses, self.kernels, self.a)
        self.p, self.q = [], []
        for layer, (u, q) in enumerate(zip(responses, slopes, strict=True)):
            self.p.append(q * network.activation(layer).derivative(u))
            self.q.append(-q)
        self.q.pop()  # the last layer has no constraint, its p is r
        return [self._layered(x0), *(network.hidden.value(u) for u in responses[:-1])]

    def _steps(self, x0: Tensor) -> list[Tensor]:
        """sigma_0, ..., sigma_L, one per image."""
        move = self.gradient.reshape_as(x0) + self.modulus * x0 - self.pull.reshape_as(x0)
        move = move / self.modulus
        after = self._start_values(x0 - move)
        moved = [_norm(self._layered(move)), *(_norm(b - z) for b, z in zip(after, self.x[1:], strict=True))]
        most = torch.ones_like(self.p[-1]) * self.a
        reach, found = [0.5 * _norm(most)], []
        for kernel in reversed(self.kernels[1:]):
            most = F.conv_transpose2d(most, kernel)
            # (p, q) is at most (t, -t)
            reach.insert(0, 0.5 * 2**0.5 * _norm(most))
        for layer, norm in enumerate(self.norms):
            own = moved[layer + 1] if layer + 1 < len(moved) else torch.zeros_like(moved[0])
            way = (norm**2 * moved[layer].square() + own.square()).sqrt()
            # x_0 is optimal, or does not say how far it is from the solution: any step is safe
            found.append(torch.where((way > 0) & (reach[layer] > 0), reach[layer] / way, torch.ones_like(way)))
        return found

    def _start_values(self, x: Tensor) -> list[Tensor]:
        return [self.model.network.hidden.value(u) for u in self.model.network.responses(x)[:-1]]

    def _set_steps(self, sigma: list[Tensor]) -> None:
        self.sigma = sigma
        below = [torch.zeros_like(sigma[0]), *sigma]
        self.tau = [1 / (b + s * n**2) for b, s, n in zip(below, sigma, self.norms, strict=False)]

    @property
    def image(self) -> Tensor:
        """x as ``(batch, channel, height, width)``."""
        return self.x[0].view(self.shape)

    @torch.no_grad()
    def advance(self) -> None:
        """One iteration: one product with K and one with K^T."""
        before = self.x, self.p, self.q
        activation, last = self.sigma_0, len(self.kernels) - 1
        p, q, x = [], [], []
        for layer, (kernel, bias, sigma) in enumerate(zip(self.kernels, self.biases, self.sigma, strict=True)):
            u = F.conv2d(self.x_bar[layer], kernel, bias)
            u = torch.addcmul(self.p[layer], u, sigma, out=u)
            if layer == last:
                p.append(dual_relu_sum(u, sigma, self.a, activation.width))
            else:
                z = torch.addcmul(self.q[layer], self.x_bar[layer + 1], sigma)
                one, two = dual_epigraph(u, z, sigma, activation.slope, activation.width)
                p.append(one)
                q.append(two)
        for layer, (kernel, tau) in enumerate(zip(self.kernels, self.tau, strict=True)):
            back = F.conv_transpose2d(p[layer], kernel)
            # x - tau (K^T y - c data), over 1 + tau (c + mu) for the image
            back = back.sub_(self.pull) if layer == 0 else back.add_(q[layer - 1])
            new = torch.addcmul(self.x[layer], back, tau, value=-1, out=back)
            x.append(new.div_(1 + tau * self.modulus) if layer == 0 else new)
        self.x_bar = [torch.sub(new, old).add_(new) for new, old in zip(x, self.x, strict=True)]
        self.x, self.p, self.q = x, p, q
        self.count += 1
        if self.adaptive and self.count % BALANCE_EVERY == 0:
            self._balance(*before)

    @torch.no_grad()
    def bounds(self) -> tuple[Tensor, Tensor]:
        r"""Upper and lower bounds of the minimum, ``(batch,)`` in float64: the energy of x, and the dual one.

        The multipliers are made feasible for the latter: r as it is, beta_l = W_{l+1}^T p_{l+1} from the last layer to
        the first, and p_l clamped to [s beta_l, beta_l]. What is left is a minimum of a quadratic function of x,

            min_x (c/2)||x - y||^2 + (mu/2)||x||^2 + <V x, p_0>  +  sum_l <b_l, p_l> - f_l*(p_l, -beta_l).

        Both are computed up to rounding.
        """
        network, (width, slope) = self.model.network, (self.sigma_0.width, self.sigma_0.slope)
        batch = self.shape[0]
        c, mu, data = self.model.data_weight, self.model.mu, self.pull / self.model.data_weight
        image = self.x[0]
        fit = 0.5 * c * (image - data).square() + 0.5 * mu * image.square()
        upper = network(self.image).double() + fit.reshape(batch, -1).double().sum(1)
        r = self.p[-1]
        lower = (r * self.biases[-1][:, None, None] - width / 2 * r.square() / self.a).reshape(batch, -1)
        total, p = lower.double().sum(1), r
        for layer in range(network.layers - 1, -1, -1):
            beta = F.conv_transpose2d(p, self.kernels[layer + 1])
            p = torch.maximum(torch.minimum(self.p[layer], beta), slope * beta)
            # f*(alpha, -beta) = beta (1 - s) w theta^2 / 2, theta = (alpha/beta - s)/(1 - s)
            excess = (p - slope * beta).square() / ((1 - slope) * beta).clamp_min(torch.finfo(p.dtype).tiny)
            part = p * self.biases[layer][:, None, None] - width / 2 * excess
            total = total + part.reshape(batch, -1).double().sum(1)
        force = F.conv_transpose2d(p, self.kernels[0])
        best = (c * data - force) / self.modulus
        part = 0.5 * c * (best - data).square() + 0.5 * mu * best.square() + best * force
        return upper, total + part.reshape(batch, -1).double().sum(1)

    def _balance(self, x: list[Tensor], p: list[Tensor], q: list[Tensor]) -> None:
        primal = _total([_norm(new - old) / t.sqrt() for new, old, t in zip(self.x, x, self.tau, strict=True)])
        moves = [_norm(new - old) / s.sqrt() for new, old, s in zip(self.p, p, self.sigma, strict=True)]
        moves += [_norm(new - old) / s.sqrt() for new, old, s in zip(self.q, q, self.sigma, strict=False)]
        dual = _total(moves)
        # longer steps of the problem that moves most, in these norms: of x, that is, smaller sigma
        up, down = dual > IMBALANCE * primal, primal > IMBALANCE * dual
        factor = torch.where(up, 1 / (1 - self.alpha), torch.where(down, 1 - self.alpha, 1.0))
        self.alpha = torch.where(up | down, DECAY * self.alpha, self.alpha)
        self._set_steps([s * factor for s in self.sigma])


def _norm(x: Tensor) -> Tensor:
    """Per image and channel."""
    return x.square().sum((1, 2, 3), keepdim=True).sqrt()


def _total(norms: list[Tensor]) -> Tensor:
    return torch.stack([n.square() for n in norms]).sum(0).sqrt()

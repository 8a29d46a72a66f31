"""Input convex neural networks (Amos, Xu, Kolter 2017; Mukherjee et al. 2021) as regularizers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.regularizers.filter_bank import check_image, spectral_bound
from models.regularizers.initial import InitialFilters
from models.regularizers.kernels import Network, compiled_hessian, compiled_network, flat_images, planes
from models.regularizers.leaky_relu import LeakyReLU
from models.regularizers.rescalable import Rescalable
from recon.errors import at_least, fraction, instance
from recon.lower_level import HessianMap, HessianVariation


class _Sizes(NamedTuple):
    r"""Of a network, in float64: M_1, ..., M_L, bounds t_0, ..., t_L of dR/dz_l per channel, V, and its \|\|V\|\|^2.

    M_l are the sums of the entries of every kernel of W_l. These are positive, so that the symbol of W_l is at most
    M_l, entry by entry, at every frequency: \|\|W_l\|\| <= \|\|M_l\|\|, and the same for products of layers with
    diagonal matrices sigma' in [0, 1] between them; t_L = a, t_{l-1} = M_l^T t_l.
    """

    sums: list[Tensor]
    weights: list[Tensor]
    kernels: Tensor
    norm: float


class ICNN(Rescalable):
    r"""R(x) = sum_p a^T sigma_1(W_L z_{L-1} + b_L)_p, z_l = sigma_0(W_l z_{l-1} + b_l), z_0 = sigma_0(V x + b_0).

    L is ``layers``. All layers are convolutions within the image, sigma_0 a leaky ReLU, sigma_1 a ReLU, both smoothed
    over the same width. a = e^{theta_0 + theta_k} and W_l = e^{learned} are positive by parametrization, so that R is
    convex whatever the parameters are: each z_l is a convex function of x, and the next layer does not decrease in it.
    Images with several channels are regularized channel by channel.

    The network is the same in its primal-dual form, see :class:`models.ICNNSaddle`.

    Parameters
    ----------
    filters
        channels of every layer.
    size
        side length of V.
    inner_size
        that of W_1, ..., W_L.
    layers
        L >= 1, the number of hidden layers.
    activation
        sigma_0. R is C^1 and has the primal-dual form for ``huber``, and infinitely smooth, which the goal-oriented
        certificates need, for ``smooth``; width 0 makes it not differentiable.
    log_scale, log_weight
        initial theta_0 and theta_k.
    mixing
        how much of a layer's initial weight the other channels and neighbours have; the rest is the identity.
    initial_filters
        the first half of V; the second half are the first one's negatives.
    zero_mean
        V without its mean, so that R does not see constants.

    Raises
    ------
    ValueError
        a number is out of range.
    """

    def __init__(
        self,
        filters: int = 16,
        size: int = 5,
        layers: int = 1,
        inner_size: int = 1,
        activation: LeakyReLU = LeakyReLU(),
        log_scale: float = 0.0,
        log_weight: float = -3.0,
        mixing: float = 0.2,
        initial_filters: InitialFilters = InitialFilters(),
        zero_mean: bool = True,
    ) -> None:
        super().__init__()
        instance(LeakyReLU, activation=activation)
        instance(InitialFilters, initial_filters=initial_filters)
        at_least(1, filters=filters, inner_size=inner_size, layers=layers)
        at_least(2, size=size)
        fraction(mixing=mixing)
        if initial_filters.in_channels != 1:
            raise ValueError(f"in_channels is {initial_filters.in_channels}, but networks take channels one by one: 1")
        self.kernel_size, self.layers, self.zero_mean = (size, size), layers, zero_mean
        self.hidden, self.outer = activation, replace(activation, slope=0.0)
        reach = size + layers * (inner_size - 1)
        self.margin, self.reach = reach - 1, (reach, reach)
        dtype = torch.get_default_dtype()
        half = initial_filters.make(-(-filters // 2), size)
        self.weight = nn.Parameter(torch.cat([half, -half])[:filters, None].to(dtype))
        entries = filters * inner_size**2
        inner = torch.full((filters, filters, inner_size, inner_size), mixing / max(entries - 1, 1))
        middle = inner_size // 2
        inner[:, :, middle, middle].fill_diagonal_(1 - mixing if entries > 1 else 1.0)
        self.log_inner = nn.ParameterList(nn.Parameter(inner.log().to(dtype)) for _ in range(layers))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(filters, dtype=dtype)) for _ in range(layers + 1))
        self.log_scale = nn.Parameter(torch.tensor(float(log_scale)))
        self.log_weights = nn.Parameter(torch.full((filters,), float(log_weight)))

    # --- parameters --------------------------------------------------------------------------------------------------

    def own_tensors(self) -> list[Tensor]:
        """V, W_1, ..., W_L, b_0, ..., b_L and a."""
        v = self.weight - self.weight.mean((2, 3), keepdim=True) if self.zero_mean else self.weight
        weights = torch.exp(self.log_scale + self.log_weights)[:, None, None]
        return [v, *(w.exp() for w in self.log_inner), *self.biases, weights]

    def gain_count(self) -> int:
        """Two: s_1 of V, and s_2."""
        return 2

    def rescaled(self, tensors: list[Tensor], gains: Tensor) -> list[Tensor]:
        """The tensors of R(s_1 x) / (s_1 s_2), which is convex, too."""
        v, *others, weights = tensors
        return [gains[0] * v, *others, weights / gains.prod()]

    def _tensors(self) -> list[Tensor]:
        """Differentiable where gradients are asked for."""
        if torch.is_grad_enabled() or self._source is None:
            return self.effective()
        return self.current()  # of a copy with gains

    def kernels(self) -> Tensor:
        """V, ``(filters, 1, size, size)``."""
        return self._tensors()[0]

    def convolutions(self) -> list[Tensor]:
        """V, W_1, ..., W_L, differentiable in the parameters."""
        return self._tensors()[: self.layers + 1]

    def weights(self) -> Tensor:
        """a, ``(filters, 1, 1)``, differentiable in the parameters."""
        return self._tensors()[-1]

    # --- derivatives -------------------------------------------------------------------------------------------------

    def activation(self, layer: int) -> LeakyReLU:
        """sigma_0 of the hidden layers 0, ..., L - 1, sigma_1 of the layer L."""
        return self.outer if layer == self.layers else self.hidden

    def responses(self, x: Tensor) -> list[Tensor]:
        """V x + b_0, W_1 z_0 + b_1, ..., each ``(batch * channel, filters, height, width)``."""
        check_image(x, self.reach)
        z, found = x.reshape(-1, 1, *x.shape[2:]), []
        for kernel, bias in zip(self.convolutions(), self.biases, strict=True):
            found.append(F.conv2d(z, kernel, bias))
            z = self.hidden.value(found[-1])
        return found

    def forward(self, x: Tensor) -> Tensor:
        """R(x), ``(batch, channel, height, width) -> (batch,)``, differentiable in x and the parameters."""
        outer = self.outer.value(self.responses(x)[-1])
        return _per_image(self.weights() * outer, x).sum(1)

    def _network(self, x: Tensor) -> Network | None:
        """The network in the compiled kernels, or ``None`` where the code in torch has to do."""
        check_image(x, self.reach)
        own = all(getattr(type(self), name) is getattr(ICNN, name) for name in ("activation", "forward", "responses"))
        if not own or self.outer != replace(self.hidden, slope=0.0):
            return None  # it computes something else
        return compiled_network(x, self.convolutions(), list(self.biases), self.weights(), self.hidden)

    @torch.no_grad()
    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """R(x), ``(batch,)`` in float64, and its gradient in x: one pass forth and one back."""
        if (network := self._network(x)) is not None:
            sums, grad = network.value_and_grad(flat_images(x))
            return sums.view(x.shape[:2]).sum(1), grad.view(x.shape)
        responses, kernels, a = self.responses(x), self.convolutions(), self.weights()
        value = _per_image(a * self.outer.value(responses[-1]), x).sum(1, dtype=torch.float64)
        return value, self._back(responses, kernels, a)[0].view_as(x)

    @torch.no_grad()
    def grad(self, x: Tensor) -> Tensor:
        if self._network(x) is not None:
            return self.value_and_grad(x)[1]
        return self._back(self.responses(x), self.convolutions(), self.weights())[0].view_as(x)

    def _back(self, responses: list[Tensor], kernels: list[Tensor], a: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The gradient in x, and dR/dz_l for z_l = sigma(response l): a for the last layer."""
        q: Tensor = a
        slopes = [q]
        for layer in range(self.layers, -1, -1):
            q = F.conv_transpose2d(q * self.activation(layer).derivative(responses[layer]), kernels[layer])
            slopes.insert(0, q)
        return slopes[0], slopes[1:]

    @torch.no_grad()
    def hessian(self, x: Tensor) -> HessianMap:
        """v -> R''(x) v: the tangent of the layers, then that of the gradient. sigma' and sigma'' are computed once."""
        if (network := self._network(x)) is not None:
            return compiled_hessian(network, x)
        responses, kernels = self.responses(x), self.convolutions()
        slopes = self._back(responses, kernels, self.weights())[1]
        first = [self.activation(i).derivative(u) for i, u in enumerate(responses)]
        second = [q * self.activation(i).curvature(u) for i, (u, q) in enumerate(zip(responses, slopes, strict=True))]
        channels = x.shape[1]

        def apply(v: Tensor, kept: Tensor | None) -> Tensor:
            order: Tensor | slice = slice(None)
            if kept is not None:
                order = planes(kept, channels)
            move, moves = v.reshape(-1, 1, *v.shape[2:]), []
            for kernel, slope in zip(kernels, first, strict=True):
                moves.append(F.conv2d(move, kernel))
                move = slope[order] * moves[-1]
            back = torch.zeros_like(move)
            for layer in range(self.layers, -1, -1):
                part = second[layer][order] * moves[layer] + first[layer][order] * back
                back = F.conv_transpose2d(part, kernels[layer])
            return back.view_as(v)

        return HessianMap(apply)

    def parameter_vjp(self, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        """The derivative in theta of the directional derivative of R at x along w."""
        return self.chain(self.derivative(x, w))

    def derivative(self, x: Tensor, w: Tensor) -> list[Tensor]:
        """The same in V, W_1, ..., W_L, b_0, ..., b_L and a: one backward pass."""
        if (network := self._network(x)) is not None and w.dtype == x.dtype and w.shape == x.shape:
            v, inner, biases, weights = network.derivative(flat_images(x), flat_images(w))
            return [v[:, None], *inner, *biases, weights.view(-1, 1, 1)]
        with torch.enable_grad():
            leaves = [t.detach().clone().requires_grad_(True) for t in self.current()]
            layers = self.layers + 1
            z, move = (t.detach().reshape(-1, 1, *t.shape[2:]) for t in (x, w))
            for layer, (kernel, bias) in enumerate(zip(leaves[:layers], leaves[layers:-1], strict=True)):
                u, du = F.conv2d(z, kernel, bias), F.conv2d(move, kernel)
                sigma = self.activation(layer)
                z, move = sigma.value(u), sigma.derivative(u) * du
            total = (leaves[-1] * move).sum()
            return list(torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True))

    # --- constants ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _sizes(self) -> _Sizes | None:
        """None where a weight is no finite number: a line search may try parameters whose exponentials are not."""
        kernels = [k.detach().double() for k in self.convolutions()]
        sums = [k.sum((2, 3)) for k in kernels[1:]]
        weights = [self.weights().double().flatten()]
        for m in reversed(sums):
            weights.insert(0, m.T @ weights[0])
        if not all(bool(torch.isfinite(t).all()) for t in (*sums, *weights)):
            return None
        v = kernels[0][:, 0]
        return _Sizes(sums, weights, v, float(spectral_bound(v, torch.ones_like(weights[0]))))

    def smoothness(self) -> float:
        r"""R'' = sum_l J_l^T diag(sigma''(u_l) dR/dz_l) J_l with the Jacobians J_l of u_l = W_l z_{l-1} + b_l, so

        \|\|R''\|\| <= c_0 \|\|V^T diag(t_0) V\|\| + \|\|V\|\|^2 sum_l c_l \|\|diag(sqrt(t_l)) M_l ... M_1\|\|^2,
        c_l = sup sigma''.
        """
        sizes = self._sizes()
        if self.hidden.width == 0 or sizes is None:
            return math.inf
        first = self.hidden.curvature_bound * float(spectral_bound(sizes.kernels, sizes.weights[0]))
        return first + self._deep(sizes)

    def _deep(self, sizes: _Sizes) -> float:
        """The second term of :meth:`smoothness`."""
        product, total = None, 0.0
        for layer, (m, t) in enumerate(zip(sizes.sums, sizes.weights[1:], strict=True), 1):
            product = m if product is None else m @ product
            gain = float(torch.linalg.matrix_norm(t.sqrt()[:, None] * product, 2))
            total += self.activation(layer).curvature_bound * gain**2 * sizes.norm
        return total

    def rounding_gain(self) -> float:
        r"""As for filters of ridge regularizers: 4 sqrt(sum_k (c_0 t_k \|\|v_k\|\|^2)^2) for V.

        The rest of :meth:`smoothness` stays as it is: errors of one filter reach all channels of the next layer.
        """
        sizes = self._sizes()
        if self.hidden.width == 0 or sizes is None:
            return math.inf
        power = sizes.kernels.square().sum((1, 2))
        first = 4 * float((self.hidden.curvature_bound * sizes.weights[0] * power).norm())
        return min(first + self._deep(sizes), self.smoothness())

    def rounding_offset(self, x: Tensor) -> float:
        r"""\|\|V\|\| sqrt(n) ((L + 2) \|\|t_0\|\| + r), for n pixels: what cancels in V^T (sigma' q), and in the u_l.

        q = dR/dz_0 is at most t_0. V of mean zero makes nothing of constant q, up to rounding errors of the terms that
        it adds up, and of q itself, which L layers have computed. For r see :meth:`_cancelled`.
        """
        sizes = self._sizes()
        if sizes is None:
            return math.inf
        norm = math.sqrt(sizes.norm * (x.shape[1] * x.shape[2] * x.shape[3]))
        return norm * ((self.layers + 2) * float(sizes.weights[0].norm()) + self._cancelled(sizes))

    @torch.no_grad()
    def _cancelled(self, sizes: _Sizes) -> float:
        r"""The part of biases: the computed u_l = W_l z_{l-1} + b_l are off by e_l u, however small, and gradients by

        r = sum_l \|\|diag(sqrt(t_l)) M_l ... M_1\|\| \|\|sqrt(t_l) c_l e_l\|\|,   e_0 = n_0 \|b_0\|,
        e_l = M_l (e_{l-1} + 12 \|u_{l-1}\|) + n_l (M_l \|z_{l-1}\| + \|b_l\|)

        with u_l, z_l of x = 0, n_l = 2 sqrt(m_l), m_0 = 1 + the entries of v_k, m_l = 9 + those of a filter of W_l, and
        the curvature c_l of sigma at and beyond \|u_l\| - e_l / 2N, N = n_0 + ... + n_l + 12 l. Elsewhere x has moved
        u_l so far that e_l is 2N roundings of the move: :meth:`rounding_gain` has them. The proof is in section 1 of
        docs/mathematics.md.
        """
        if self.hidden.width == 0:
            return 0.0  # nothing is known where gradients jump, as rounding_gain says
        u = self.biases[0].double()
        count, total = 2 * math.sqrt(1 + sizes.kernels[0].numel()), 0.0
        errors, product = count * u.abs(), torch.eye(len(u), dtype=u.dtype, device=u.device)
        for layer, t in enumerate(sizes.weights):
            if layer:
                m, bias, z = sizes.sums[layer - 1], self.biases[layer].double(), self.hidden.value(u)
                own = 2 * math.sqrt(9 + self.log_inner[layer - 1][0].numel())
                errors = m @ (errors + 12 * u.abs()) + own * (m @ z.abs() + bias.abs())
                count += own + 12
                u, product = m @ z + bias, m @ product
            curvature = self.activation(layer).curvature_beyond(u.abs() - errors / (2 * count))
            gain = torch.linalg.matrix_norm(t.sqrt()[:, None] * product, 2)
            total += float(gain * (t.sqrt() * curvature * errors).norm())
        return total

    def convexity(self) -> float:
        return 0.0

    def hessian_variation(self, w: Tensor) -> HessianVariation | None:
        r"""T for ``smooth``, from the third derivative along w, e and v, which is the sum over the layers of

            <dR/dz, sigma''' u[w] u[e] u[v] + sigma'' (u[w,e] u[v] + u[w,v] u[e] + u[e,v] u[w])>.

        With m_l >= \|u_l[w]\| per channel, g_l >= \|\|u_l'\|\|, h_l the bound of \|\|u_l[w,e]\|\|, r_l of the 1-norm
        of u_l[e,v], per unit of e and v:  m_{l+1} = M m_l,  g_l = \|\|M_l ... M_1\|\| \|\|V\|\|,
        h_{l+1} = \|\|M\|\| (c_l max m_l g_l + h_l),  r_{l+1} = \|\|M\|\|_1 (c_l g_l^2 + r_l).
        """
        sizes = self._sizes()
        if self.hidden.kind != "smooth" or sizes is None:
            return None
        with torch.no_grad():
            first = F.conv2d(w.reshape(-1, 1, *w.shape[2:]), self.kernels()).abs().amax((2, 3)).double()
        m = first.view(len(w), w.shape[1], -1).amax(1)
        gain = top = math.sqrt(sizes.norm)
        product, h, r, total = None, torch.zeros_like(m[:, 0]), 0.0, torch.zeros_like(m[:, 0])
        for layer, t in enumerate(sizes.weights):
            sigma = self.activation(layer)
            c, most = sigma.curvature_bound, (t * m).amax(1)
            total = total + sigma.third_bound * most * gain**2 + 2 * c * float(t.max()) * h * gain + c * most * r
            if layer < self.layers:
                matrix = sizes.sums[layer]
                h = float(torch.linalg.matrix_norm(matrix, 2)) * (c * m.amax(1) * gain + h)
                r = float(matrix.sum(0).max()) * (c * gain**2 + r)
                m, product = m @ matrix.T, matrix if product is None else matrix @ product
                gain = top * float(torch.linalg.matrix_norm(product, 2))
        return HessianVariation(torch.full_like(total, math.inf), total, torch.zeros_like(total))


def _per_image(z: Tensor, x: Tensor) -> Tensor:
    """What all channels of every image of x have led to, ``(batch, numbers)``, of empty batches, too."""
    return z.reshape(len(x), x.shape[1] * math.prod(z.shape[1:]))

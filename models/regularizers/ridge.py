"""Ridge regularizers R(x) = sum_k sum_p psi_k((c_k * x)_p): filters and one-dimensional profiles.

Fields of Experts and the (weakly) convex ridge regularizers differ in the profiles only. Everything that solvers need
is analytic and evaluated block by block, so that the filtered images never leave the cache of a CPU core.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.regularizers.filter_bank import (
    Response,
    check_image,
    frequency_response,
    map_blocks,
    patches,
    sum_patches,
    weighted_supremum,
)
from models.regularizers.initial import InitialFilters, composed
from models.regularizers.kernels import Bank, Profiles, compiled, compiled_hessian, flat_images, planes
from models.regularizers.rescalable import Rescalable
from recon.errors import instance
from recon.lower_level import HessianMap


class RidgeRegularizer(Rescalable):
    """R(x) = sum_k sum_p psi_k((c_k * x)_p), over all positions p where the filter lies within the image.

    Filters have mean zero by parametrization: c_k is the learned ``weight`` minus its mean. Images with several
    channels are regularized channel by channel, unless ``initial_filters`` has ``in_channels`` C > 1: filters are then
    ``(K, C, s, s)``, c_k * x = sum_a c_ka * x_a couples the channels, each c_ka has mean zero, and images of C channels
    are the only ones. A subclass defines the profiles by ``profile_parameters`` and the four functions below them.

    Parameters
    ----------
    filters
        number K of filters.
    size
        their side length s in pixels.
    initial_filters
        what learning starts from, whether it learns filters or the factors that they are composed of, and of how many
        channels of the image.
    unit_norm
        also divide the filters by their norm. The widths of the profiles are then in the units of the image; without
        it, growing filters evade a bound of the widths, and with them of the curvature and the cost of solves.

    Raises
    ------
    ValueError
        for less than one filter of 2x2 pixels, and initial filters that there are not.
    """

    #: how many filters, one after another, share a profile, a function of all their responses
    group = 1

    def __init__(self, filters: int, size: int, initial_filters: InitialFilters, unit_norm: bool) -> None:
        super().__init__()
        instance(InitialFilters, initial_filters=initial_filters)
        if filters < 1 or size < 2:
            raise ValueError(f"needs at least one filter (got {filters}) of at least 2x2 pixels (got {size}x{size})")
        if filters % self.group:
            raise ValueError(f"filters is {filters}, but must be a multiple of {self.group}, of groups of so many")
        self.kernel_size, self.unit_norm = (size, size), unit_norm
        self._in_channels = initial_filters.in_channels
        self.margin = size - 1  # pixels that are further inside lie in all s^2 patches
        dtype = torch.get_default_dtype()
        if initial_filters.channels:
            factors = initial_filters.factors(filters, size)
            self.factors = nn.ParameterList(nn.Parameter(f.to(dtype)) for f in factors)
        else:
            weight = initial_filters.make(filters, size)
            if unit_norm:  # so that moves of the filters and of the logarithms of their weights are of one scale
                weight = weight / _column(weight.flatten(1).norm(dim=1), weight)
            self.weight = nn.Parameter(weight.to(dtype))
        self._spectrum: tuple[Tensor, Response] | None = None
        self._smoothness: tuple[list[Tensor], float] | None = None

    # --- what a subclass defines -------------------------------------------------------------------------------------

    def profile_parameters(self, kernels: Tensor) -> list[Tensor]:
        """The tensors that the profiles depend on, differentiable in the parameters; first axis K."""
        raise NotImplementedError

    def value(self, u: Tensor, profile: list[Tensor]) -> Tensor:
        """psi_k(u_k) for u ``(batch, K, positions)``, differentiable in u and ``profile``; or of groups."""
        raise NotImplementedError

    def value_and_slope(self, u: Tensor, profile: list[Tensor]) -> tuple[Tensor, Tensor]:
        """psi_k(u_k) and psi_k'(u_k), the fast way: not differentiable."""
        raise NotImplementedError

    def slope(self, u: Tensor, profile: list[Tensor]) -> Tensor:
        """psi_k'(u_k), differentiable in ``profile``."""
        raise NotImplementedError

    def curvature(self, u: Tensor, profile: list[Tensor]) -> Tensor:
        """psi_k''(u_k); of n filters in a group the n (n + 1)/2 entries of a symmetric matrix."""
        raise NotImplementedError

    def curved(self, curvature: Tensor, v: Tensor) -> Tensor:
        """psi'' v for v ``(batch, K, positions)``, of which it may take the place."""
        v.view_as(curvature).mul_(curvature)
        return v

    def curvature_bound(self, profile: list[Tensor]) -> Tensor:
        """sup psi_k'', ``(K,)``."""
        raise NotImplementedError

    def divided(self, profile: list[Tensor], by: Tensor) -> list[Tensor]:
        """The tensors of psi_k / ``by``, for ``by`` ``(K, 1)``."""
        raise NotImplementedError

    def compiled_profiles(self, profile: list[Tensor]) -> Profiles | None:
        """The profiles for the compiled kernels, where these have them."""
        return None

    def _bank(self, x: Tensor) -> Bank | None:
        """Filters and profiles in the compiled kernels, or ``None`` where the code below has to do."""
        order = [set(vars(c)) for c in type(self).__mro__]
        claim = next(i for i, names in enumerate(order) if "compiled_profiles" in names)
        if any(not names.isdisjoint(("value_and_slope", "slope", "curvature")) for names in order[:claim]):
            return None  # a subclass has profiles of its own
        kernels, *profile = self.current()
        profiles = self.compiled_profiles(profile)
        return None if profiles is None else compiled(x, kernels, profiles)

    # --- parameters --------------------------------------------------------------------------------------------------

    @property
    def in_channels(self) -> int:
        return self._in_channels

    @property
    def composed(self) -> bool:
        """Whether the filters are compositions, and what is learned are their factors."""
        return hasattr(self, "factors")

    def kernels(self) -> Tensor:
        """c_k, ``(K, s, s)`` or ``(K, C, s, s)``, of mean zero; with ``unit_norm`` of mean square one in a group."""
        weight = composed(list(self.factors)) if self.composed else self.weight
        centred = weight - weight.mean((-2, -1), keepdim=True)
        if not self.unit_norm:
            return centred
        size = centred.flatten(1).unflatten(0, (-1, self.group)).flatten(1).norm(dim=1) / self.group**0.5
        return centred / _column(self.per_filter(size), centred).clamp_min(1e-12)

    def own_tensors(self) -> list[Tensor]:
        """The filters and the tensors of the profiles."""
        kernels = self.kernels()
        return [kernels, *self.profile_parameters(kernels)]

    def gain_count(self) -> int:
        """One for every group of filters."""
        return len(self.current()[0]) // self.group

    def per_filter(self, of_groups: Tensor) -> Tensor:
        """``(groups, ...) -> (K, ...)``: to every filter what its group has."""
        return of_groups.repeat_interleave(self.group, 0) if self.group > 1 else of_groups

    def rescaled(self, tensors: list[Tensor], gains: Tensor) -> list[Tensor]:
        r"""The tensors of sum_k sum_p s_k^-2 psi_k(s_k (c_k * x)_p), from those of psi_k and c_k.

        Its Hessian is that of R with other arguments of psi_k'', so that the bounds of R hold for it.

        Parameters
        ----------
        tensors
            filters and profiles.
        gains
            s_k > 0, ``(K,)``; where filters are in groups, one for each.
        """
        kernels, *profile = tensors
        moved = _column(self.per_filter(gains), kernels) * kernels
        return [moved, *self.divided(profile, gains.square()[:, None])]

    def copy_at(self, source: Callable[[], list[Tensor]], tensors: list[Tensor]) -> Self:
        other = super().copy_at(source, tensors)
        # gains cancel in psi_k'' |c^_k|^2: only their rounding is new
        other._smoothness = tensors, RidgeRegularizer.smoothness(self) * (1 + self.gain_rounding())
        return other

    def gain_rounding(self) -> float:
        r"""By how much rounded gains change \|\|sum_k w_k c^_k c^_k^*\|\| at most: (1 + s C^(1/2) u)^2 (1 + u)^4 - 1.

        With unit roundoff u, the entries of s_k c_k are off by u of themselves, and c^_k in C^C is so by at most
        u (sum_a \|\|c_ka\|\|_1^2)^(1/2) <= s u \|\|c_k\|\| for filters of s x s pixels. The norm is the square of that
        of the matrix of columns w_k^(1/2) c^_k, which changes by at most s u (sum_k w_k \|\|c_k\|\|^2)^(1/2), the
        Frobenius norm. That sum is the mean over all frequencies of the trace of what is bounded here: at most C times
        its maximum. psi_k / s_k^2 is two operations, whose errors w_k has.
        """
        u = 0.5 * torch.finfo(self.current()[0].dtype).eps
        return (1 + self.kernel_size[0] * self.in_channels**0.5 * u) ** 2 * (1 + u) ** 4 - 1

    def response(self) -> Response:
        """:func:`models.regularizers.filter_bank.frequency_response` of the filters, once per change of them."""
        kernels = self.current()[0]
        if self._spectrum is None or self._spectrum[0] is not kernels:
            self._spectrum = kernels, frequency_response(kernels)
        return self._spectrum[1]

    def spectral_bound(self, weights: Tensor) -> Tensor:
        r"""A guaranteed and tight upper bound of \|\|sum_k w_k C_k^T C_k\|\|, for weights ``(..., K)`` -> ``(...)``."""
        return weighted_supremum(self.response(), weights)

    # --- derivatives in x --------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """R(x), ``(batch, channel, height, width) -> (batch,)``, differentiable in x and the parameters."""
        self._check(x)
        kernels, *profile = self.effective()
        u = F.conv2d(_grouped(x, self.in_channels), _grouped(kernels, self.in_channels)).flatten(2)
        return self.value(u, profile).reshape(x.shape[0], -1).sum(1)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """R(x), ``(batch,)`` in float64, and sum_k C_k^T psi_k'(c_k * x), of the shape of x."""
        self._check(x)
        if (bank := self._bank(x)) is not None:
            sums, grad = bank.value_and_grad(flat_images(x, self.in_channels))
            return sums.view(self._groups(x)).sum(1), grad.view(x.shape)
        kernels, *profile = self.current()

        def reaction(u: Tensor, images: slice, rows: slice) -> tuple[Tensor, tuple[slice, Tensor]]:
            value, slope = self.value_and_slope(u, profile)
            return slope, (images, value.sum((1, 2), dtype=torch.float64))

        grad, values = _filtered(x, kernels, reaction)
        total = torch.zeros(math.prod(self._groups(x)), dtype=torch.float64, device=x.device)
        for images, value in values:
            total[images] += value
        return total.view(self._groups(x)).sum(1), grad

    def hessian(self, x: Tensor) -> HessianMap:
        """v -> sum_k C_k^T (psi_k''(c_k * x) . (C_k v)), with psi'' computed once."""
        self._check(x)
        if (bank := self._bank(x)) is not None:
            return compiled_hessian(bank, x, self.in_channels)
        kernels, *profile = self.current()
        batch, channels = self._groups(x)
        shape = (
            batch * channels,
            kernels.shape[0] * (self.group + 1) // 2,
            *(n - s + 1 for n, s in zip(x.shape[2:], self.kernel_size, strict=True)),
        )
        stored = x.new_empty(shape)

        def store(u: Tensor, images: slice, rows: slice) -> tuple[None, None]:
            part = stored[images, :, rows]
            part.copy_(self.curvature(u, profile).view_as(part))
            return None, None

        _filtered(x, kernels, store)

        def apply(v: Tensor, kept: Tensor | None) -> Tensor:
            order = None
            if kept is not None:
                order = planes(kept, channels).tolist()

            def reaction(u: Tensor, images: slice, rows: slice) -> tuple[Tensor, None]:
                if order is None:
                    weight = stored[images, :, rows]
                elif len(u) == 1:
                    weight = stored[order[images.start], None, :, rows]  # a view, unlike the next
                else:
                    weight = stored[order[images], :, rows]
                return self.curved(weight, u).view_as(u), None

            return _filtered(v, kernels, reaction)[0]

        return HessianMap(apply)

    # --- derivatives in the parameters -------------------------------------------------------------------------------

    def parameter_vjp(self, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        r"""d/dtheta of sum_p psi'(c * x)(c * w): in c directly, in the profiles by one backward pass per block."""
        return self.chain(self.derivative(x, w))

    def derivative(self, x: Tensor, w: Tensor) -> list[Tensor]:
        """The same in the tensors of :meth:`effective`."""
        if (bank := self._bank(x)) is not None and w.dtype == x.dtype and w.shape == x.shape:
            of_kernels, of_profile = bank.derivative(*(flat_images(t, self.in_channels) for t in (x, w)))
            return [of_kernels, *of_profile]
        kernels, *profile = self.current()
        kernel_grad = torch.zeros_like(kernels).flatten(1)
        profile_grad = [torch.zeros_like(p) for p in profile]
        size, flat = self.kernel_size, kernels.flatten(1)
        x, w = _grouped(x, self.in_channels), _grouped(w, self.in_channels)

        def block(i: int, j: int, r: int, s: int) -> tuple[Tensor, ...]:
            px, pw = (patches(t[i:j, :, r : s + size[0] - 1], size) for t in (x, w))
            u, v = flat @ px, flat @ pw
            with torch.enable_grad():
                leaves = [p.clone().requires_grad_(True) for p in profile]
                slope = self.slope(u, leaves)
                grads = torch.autograd.grad((slope * v).sum(), leaves, allow_unused=True, materialize_grads=True)
            part = torch.einsum("bkn,bpn->kp", slope.detach(), pw)
            return part + torch.einsum("bkn,bpn->kp", self.curved(self.curvature(u, profile), v), px), *grads

        for kernel_part, *profile_parts in map_blocks(block, x, size):
            kernel_grad += kernel_part
            for total, part in zip(profile_grad, profile_parts, strict=True):
                total += part
        return [kernel_grad.view_as(kernels), *profile_grad]

    # --- constants ---------------------------------------------------------------------------------------------------

    def smoothness(self) -> float:
        """||sum_k sup psi_k'' C_k^T C_k|| by :meth:`spectral_bound`, guaranteed; once per change of parameters."""
        current = self.current()
        if self._smoothness is None or self._smoothness[0] is not current:
            self._smoothness = current, float(self.spectral_bound(self.curvature_bound(current[1:])))
        return self._smoothness[1]

    def rounding_gain(self) -> float:
        r"""4 sqrt(sum_k (sup psi_k'' \|\|c_k\|\|^2)^2).

        A response c_k * x has an error of about u \|\|c_k\|\| \|\|x\|\| that differs from pixel to pixel and filter to
        filter, so that what becomes of them, C_k^T psi_k'' times the error, adds up in the square: a model of the kind
        of Higham and Mary (2019).
        """
        kernels, *profile = self.current()
        power = kernels.double().square().sum(tuple(range(1, kernels.ndim)))
        return min(4 * float((self.curvature_bound(profile).double() * power).norm()), self.smoothness())

    def filtered_maximum(self, w: Tensor) -> Tensor:
        """max_p |(c_k * w)_p| for every image and filter, ``(batch, K)``."""
        if (bank := self._bank(w)) is not None:
            return bank.maximum(flat_images(w, self.in_channels)).view(*self._groups(w), len(bank.kernels)).amax(1)
        kernels = self.current()[0]
        result = w.new_zeros(math.prod(self._groups(w)), kernels.shape[0])

        def reaction(u: Tensor, images: slice, rows: slice) -> tuple[None, tuple[slice, Tensor]]:
            return None, (images, u.abs_().amax(2))

        for images, top in _filtered(w, kernels, reaction)[1]:
            result[images] = torch.maximum(result[images], top)
        return result.view(*self._groups(w), len(kernels)).amax(1).double()

    def _check(self, x: Tensor) -> None:
        check_image(x, self.kernel_size, self.in_channels)

    def _groups(self, x: Tensor) -> tuple[int, int]:
        """Images, and parts of each that are regularized alone: channels, or all of them together."""
        return x.shape[0], x.shape[1] // self.in_channels


Note = TypeVar("Note")
Reaction = Callable[[Tensor, slice, slice], tuple[Tensor | None, Note]]


def _column(values: Tensor, like: Tensor) -> Tensor:
    """``(K,)`` as ``(K, 1, ...)``, to be combined with filters."""
    return values.view(-1, *[1] * (like.ndim - 1))


def _grouped(x: Tensor, channels: int) -> Tensor:
    """Images or filters ``(n, ..., height, width)`` as ``(images, channels, height, width)``."""
    return x.reshape(-1, channels, *x.shape[-2:])


def _filtered(x: Tensor, kernels: Tensor, reaction: Reaction[Note]) -> tuple[Tensor, list[Note]]:
    """sum_k C_k^T v, where ``v, note = reaction(C_k x, images, rows)`` block by block, and the notes in order.

    A reaction gets (images, K, positions), may work in place and must not write what another block's reads: blocks are
    computed at the same time. v is ``None`` if it contributes nothing. On a GPU the convolutions are cuDNN's.
    """
    out = torch.zeros_like(x)
    channels = 1 if kernels.ndim == 3 else kernels.shape[1]
    flat_x, flat_out = _grouped(x.detach(), channels), out.view(-1, channels, *x.shape[2:])
    size = (kernels.shape[-2], kernels.shape[-1])
    analysis = kernels.flatten(1)
    synthesis = analysis.t().contiguous()

    def block(i: int, j: int, r: int, s: int) -> tuple[slice, slice, Tensor | None, Note]:
        images, window = slice(i, j), slice(r, s + size[0] - 1)
        part = flat_x[images, :, window]
        if x.is_cuda:
            weight = _grouped(kernels, channels)
            u = F.conv2d(part, weight)
            v, note = reaction(u.flatten(2), images, slice(r, s))
            back = None if v is None else F.conv_transpose2d(v.view_as(u), weight)
        else:
            v, note = reaction(torch.matmul(analysis, patches(part, size)), images, slice(r, s))
            shape = (part.shape[2], part.shape[3])
            back = None if v is None else sum_patches(torch.matmul(synthesis, v), shape, size)
        return images, window, back, note

    results = map_blocks(block, flat_x, size)
    for images, window, back, _ in results:  # here, because the windows of neighbouring blocks overlap
        if back is not None:
            flat_out[images, :, window] += back
    return out, [note for *_, note in results]

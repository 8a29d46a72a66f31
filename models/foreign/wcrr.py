r"""Weakly convex ridge regularizers WCRR-NN (Goujon, Neumayer, Unser 2024): config.json and a checkpoint.

Format, as of github.com/axgoujon/weakly_convex_ridge_regularizer (``models/``, ``training/utils/trainer.py``; its
``multi_conv.py`` and ``spline_autograd_func.py`` as in ``others/wcrr`` of convex_ridge_regularizers):

* ``config.json``: ``multi_convolution`` with ``num_channels`` [1, ..., K] and odd ``size_kernels``;
  ``spline_activation`` with ``num_knots``, ``x_min`` = -``x_max``; ``spline_scaling`` with ``num_knots``;
  ``noise_range``, of 255; ``rho_wcvx`` (1, or 0 for the convex relative).
* checkpoint: ``state_dict`` with the scalar ``mu_``, ``conv_layer.conv_layers.0.parametrizations.weight.original`` and
  ``conv_layer.conv_layers.I.weight`` (out, in, size, size), ``activation_cvx.coefficients`` and
  ``activation_ccv.coefficients`` (1, n), ``spline_scaling.coefficients`` (K, m).

What it stands for: the first layer has mean zero for each output channel, the layers are correlated one after the
other, and divided by sqrt(L), where L = max sum_k |w^_k|^2 over the frequencies of a grid of 2 floor((S - 1)/2) + 2 p +
1 points per axis (``sn_size`` S = 256, filters of 2 p + 1 pixels): what the authors' ``load_model`` computes. (Their
test replaces it by 200 power iterations from a random start, which differ in the last digits and are not repeatable.)
phi_+ and phi_- are linear splines through coefficients whose slopes are clipped to [0, 1], the first and the last set
to 0, and made odd, (c_j - c_{n-1-j})/2; constant beyond. With alpha_k(sigma) = exp(s_k(sigma))/(sigma + 1e-5), s_k the
unclipped linear spline on noise_range and sigma of 255, the energy is

    1/2 ||x - y||^2 + lmbd sum_k sum_p psi_k((W x)_kp),
    psi_k'(u) = (e^mu phi_+(alpha_k u) - rho phi_-(alpha_k u)) / alpha_k,   lmbd = 1.

Its published modulus of weak convexity is rho ||W||^2 with ||W|| = 1. What is *proved* here uses an upper bound of
||W||^2, a few percent above, as a grid of frequencies finds the largest only nearly: so lmbd = 1 and rho = 1 leave no
positive modulus, and no certificate; with lmbd below 1 there is one.

Boundary: as for :mod:`models.foreign.crr`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.foreign.files import ForeignError, number, read_archive, read_json, section, tensors, whole, wholes
from models.foreign.model import Foreign, composed, ridge, spline, zero_mean

_CONVOLUTION = {"num_channels", "size_kernels", "zero_mean", "sn_size"}
_SPLINE = {"antisymmetric", "clamp", "init", "num_activations", "num_knots", "slope_max", "slope_min", "x_max", "x_min"}


def load_wcrr(checkpoint: Path, config: Path, sigma: float, lmbd: float | None = None) -> Foreign:
    """The model in the two files for noise of standard deviation ``sigma`` on [0, 1]; lmbd is 1 unless given.

    Raises
    ------
    FileNotFoundError
        a file is missing.
    ForeignError
        (a ValueError) a file is none of this format, or ``sigma`` is outside of its range.
    """
    settings = read_json(config)
    convolution = section(settings, "multi_convolution", config, _CONVOLUTION)
    channels, sizes = (wholes(convolution, name, config, 1, 512) for name in ("num_channels", "size_kernels"))
    centred = convolution.get("zero_mean", True)
    if channels[0] != 1 or len(channels) != len(sizes) + 1 or any(s % 2 == 0 or s > 31 for s in sizes) or not centred:
        raise ForeignError(
            f"{config}: needs layers from one channel, odd kernels of at most 31 pixels, and mean zero, not "
            f"{convolution}"
        )
    reach, knots = _activation(settings, config)
    scaling, range_ = _scaling(settings, config)
    rho = number(settings, "rho_wcvx", config, 0, 1e6)
    if not range_[0] <= 255 * sigma <= range_[1]:
        raise ForeignError(
            f"{config}: is for noise of {range_[0]:g}/255 to {range_[1]:g}/255, but sigma is {255 * sigma:g}/255"
        )
    names = ["conv_layer.conv_layers.0.parametrizations.weight.original"]
    names += [f"conv_layer.conv_layers.{i}.weight" for i in range(1, len(sizes))]
    shapes = {n: (channels[i + 1], channels[i], sizes[i], sizes[i]) for i, n in enumerate(names)}
    rest = {"mu_": (), "activation_cvx.coefficients": (1, knots), "activation_ccv.coefficients": (1, knots)}
    rest["spline_scaling.coefficients"] = (channels[-1], scaling)
    state = tensors(read_archive(checkpoint).get("state_dict"), {**rest, **shapes}, checkpoint)
    layers = _normalized([zero_mean(state[names[0]]), *(state[n] for n in names[1:])], convolution, config)
    step = 2 * reach / (knots - 1)
    convex, concave = (clipped(state[f"activation_{part}.coefficients"], step) for part in ("cvx", "ccv"))
    shape = float(state["mu_"].exp()) * convex - rho * concave
    alpha = spline(state["spline_scaling.coefficients"], *range_, 255 * sigma).exp() / (255 * sigma + 1e-5)
    weight = 1.0 if lmbd is None else lmbd
    regularizer = ridge(checkpoint, composed(layers), weight * shape / alpha[:, None], -reach / alpha, step / alpha)
    origin = "as published" if lmbd is None else "given"
    return Foreign("WCRR-NN", regularizer, f"λ {weight:.4g} {origin}, α(σ = {255 * sigma:.4g}/255) of the file", layers)


def _activation(settings: Mapping[str, Any], config: Path) -> tuple[float, int]:
    """The last knot and the number of knots of phi_+ and phi_-."""
    found = section(settings, "spline_activation", config, _SPLINE)
    low, high = number(found, "x_min", config, -1e9, -1e-9), number(found, "x_max", config, 1e-9, 1e9)
    if low != -high or found.get("clamp", True) is not True:
        raise ForeignError(f"{config}: spline_activation must be clamped, on a symmetric interval, not {found}")
    return high, whole(found, "num_knots", config, 3, 10001)


def _scaling(settings: Mapping[str, Any], config: Path) -> tuple[int, tuple[float, float]]:
    """The number of knots of s_k, and their range: that of the noise, of 255."""
    found = section(settings, "spline_scaling", config, _SPLINE)
    limits = settings.get("noise_range")
    if not isinstance(limits, list) or len(limits) != 2:
        raise ForeignError(f"{config}: noise_range is {limits!r}, but must be two numbers")
    low, high = (number({"noise_range": value}, "noise_range", config, 0, 1e4) for value in limits)
    constrained = found.get("slope_min") is not None or found.get("slope_max") is not None or found.get("antisymmetric")
    if not low < high or constrained:
        raise ForeignError(f"{config}: spline_scaling must be free of constraints, on a range of noise, not {found}")
    return whole(found, "num_knots", config, 2, 10001), (low, high)


def _normalized(layers: list[Tensor], convolution: Mapping[str, Any], config: Path) -> tuple[Tensor, ...]:
    """The layers, the first of them over sqrt(L)."""
    filters = composed(tuple(layers))
    reach = filters.shape[1] // 2
    side = whole(convolution, "sn_size", config, 2 * reach + 1, 4096) if "sn_size" in convolution else 256
    points = 2 * ((side - 1) // 2) + 2 * reach + 1
    norm = torch.fft.rfft2(filters, s=(points, points)).abs().square().sum(0).max()
    if not norm > 0:
        raise ForeignError(f"{config}: the filters of its checkpoint are zero")
    return layers[0] / norm.sqrt(), *layers[1:]


def clipped(coefficients: Tensor, step: float) -> Tensor:
    """Coefficients ``(1, n)`` with slopes clipped to [0, 1], zero at both ends, and made odd."""
    slopes = (coefficients.diff(dim=1) / step).clamp(0, 1)
    slopes[:, 0] = slopes[:, -1] = 0
    values = F.pad(slopes.cumsum(1) * step, (1, 0))
    return 0.5 * (values - values.flip(1))

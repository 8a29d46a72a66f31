r"""Convex ridge regularizers CRR-NN (Goujon, Neumayer, Bohra, Ducotterd, Unser 2023): config.json and a checkpoint.

Format, as of github.com/axgoujon/convex_ridge_regularizers (``models/``, ``training/trainer.py``):

* ``config.json``: ``net_params`` with ``channels`` [1, ..., K], odd ``kernel_size`` and ``padding``;
  ``activation_params`` with odd ``n_knots`` and ``knots_range``; ``sigma``, the noise of the training, of 255.
* checkpoint: ``state_dict`` with the scalars ``lmbd``, ``mu`` and ``L`` (an estimate of a Lipschitz constant, which is
  not used here), ``conv_layer.conv_layers.I.parametrizations.weight.original`` (out, in, size, size), and
  ``activation.coefficients_vect`` (K n_knots).

What it stands for: every layer has mean zero for each output channel, the layers are correlated one after the other,
u = W x, and no norm is divided by. sigma_k is the linear spline through the coefficients at the n knots in [-range,
range]; their differences are clipped to >= 0, the first and the last are set to 0, so that it is constant beyond, and
sigma_k(0) = 0. The energy is

    1/2 ||x - y||^2 + (lmbd/mu) sum_k sum_p psi_k(mu (W x)_kp),   psi_k' = sigma_k,   lmbd >= 1e-4 and mu >= 0.01.

The file's lmbd and mu were learned together with t steps of gradient descent (``training_options.t_steps``), whose
result is not the minimizer; the authors choose both again, on validation pictures, when they minimize.

Boundary: the original pads every layer with zeros, and intermediate channels end where the picture does. Here W acts
where the whole composed filter lies within the image, as that of all ridge regularizers of this project, and pictures
are mirrored at their boundary before. Both agree on pixels further from the boundary than the filters reach; on the
band along it the energies differ. For layers padded one by one the spectrum of the composed filters bounds nothing.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from models.foreign.files import ForeignError, number, read_archive, read_json, section, tensors, whole, wholes
from models.foreign.model import Foreign, composed, ridge, zero_mean

_NET = {"channels", "kernel_size", "padding"}
_ACTIVATION = {"name", "n_channels", "n_knots", "knots_range"}


def load_crr(checkpoint: Path, config: Path, lmbd: float | None = None, mu: float | None = None) -> Foreign:
    """The model in the two files; ``lmbd`` and ``mu`` in place of those of the file.

    Raises
    ------
    FileNotFoundError
        a file is missing.
    ForeignError
        (a ValueError) a file is none of this format, or of a variant that is not read: ReLU, an even number of knots.
    """
    settings = read_json(config)
    net, activation = (
        section(settings, *part) for part in (("net_params", config, _NET), ("activation_params", config, _ACTIVATION))
    )
    channels, size = wholes(net, "channels", config, 1, 512), whole(net, "kernel_size", config, 2, 31)
    knots = whole(activation, "n_knots", config, 3, 10001)
    reach = number(activation, "knots_range", config, 1e-9, 1e9)
    if channels[0] != 1 or len(channels) < 2 or activation.get("name", "spline") != "spline":
        raise ForeignError(f"{config}: only splines on filters of one channel are read, not {channels}, {activation}")
    if not knots % 2 or not size % 2:
        raise ForeignError(f"{config}: n_knots is {knots} and kernel_size {size}, but both must be odd")
    shapes = {
        f"conv_layer.conv_layers.{i}.parametrizations.weight.original": (channels[i + 1], channels[i], size, size)
        for i in range(len(channels) - 1)
    }
    rest = {"lmbd": (), "mu": (), "L": (), "activation.coefficients_vect": (channels[-1] * knots,)}
    state = tensors(read_archive(checkpoint).get("state_dict"), {**rest, **shapes}, checkpoint)
    layers = tuple(zero_mean(state[name]) for name in shapes)
    strength = max(float(state["lmbd"]), 1e-4) if lmbd is None else lmbd
    scaling = max(float(state["mu"]), 0.01) if mu is None else mu
    slopes = strength * monotone(state["activation.coefficients_vect"].view(channels[-1], knots))
    ones = torch.ones(channels[-1], dtype=torch.float64)
    spacing = 2 * reach / (knots - 1) / scaling * ones
    regularizer = ridge(checkpoint, composed(layers), slopes, -(knots // 2) * spacing, spacing)
    learned = f"of the file (σ = {settings.get('sigma')}/255, t steps)"
    chosen = (("λ", strength, lmbd), ("μ", scaling, mu))
    words = [f"{name} {value:.4g} {learned if given is None else 'given'}" for name, value, given in chosen]
    return Foreign("CRR-NN", regularizer, ", ".join(words), layers)


def monotone(coefficients: Tensor) -> Tensor:
    """Coefficients ``(K, n)`` with differences clipped to >= 0, zero at both ends, and the middle one zero."""
    steps = coefficients.diff(dim=1).clamp_min(0)
    steps[:, 0] = steps[:, -1] = 0
    values = F.pad(steps.cumsum(1), (1, 0))
    return values - values[:, values.shape[1] // 2, None]

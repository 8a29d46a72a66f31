"""Checkpoints in the formats of other programs, written as these write them, and their energies computed directly."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Profile = Callable[[Tensor], Tensor]


def write_crr(folder: Path, seed: int = 0, channels: tuple[int, ...] = (1, 3, 4), knots: int = 11) -> dict[str, Any]:
    """A model folder of CRR-NN; returns its state dictionary."""
    draw = torch.Generator().manual_seed(seed)
    state: dict[str, Any] = {"lmbd": torch.tensor(2.5), "mu": torch.tensor(1.7), "L": torch.tensor(0.9)}
    for i in range(len(channels) - 1):
        weight = 0.3 * torch.randn(channels[i + 1], channels[i], 3, 3, generator=draw)
        state[f"conv_layer.conv_layers.{i}.parametrizations.weight.original"] = weight
    trend = torch.linspace(-0.02, 0.02, knots)
    coefficients = trend + 0.003 * torch.randn(channels[-1], knots, generator=draw)
    state["activation.coefficients_vect"] = coefficients.flatten()
    config = {
        "activation_params": {"knots_range": 0.1, "n_channels": channels[-1], "n_knots": knots},
        "net_params": {"channels": list(channels), "kernel_size": 3, "padding": 1},
        "sigma": 25,
        "training_options": {"t_steps": 10},
    }
    content = {"epoch": 10, "state_dict": state, "config": config, "u": torch.zeros(1, 1, 20, 20)}
    content["optimizer_1_state_dict"] = {"state": {}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    write_model(folder, config, content)
    return state


def write_wcrr(folder: Path, seed: int = 0, rho: float = 1, knots: int = 21) -> dict[str, Any]:
    """A model folder of WCRR-NN; returns its state dictionary."""
    draw, channels = torch.Generator().manual_seed(seed), (1, 2, 3, 5)
    state: dict[str, Any] = {"mu_": torch.tensor(0.4)}
    for i in range(3):
        name = "parametrizations.weight.original" if i == 0 else "weight"
        weight = 0.3 * torch.randn(channels[i + 1], channels[i], 3, 3, generator=draw)
        state[f"conv_layer.conv_layers.{i}.{name}"] = weight
    line = torch.linspace(-0.1, 0.1, knots)[None]
    for part in ("cvx", "ccv"):
        state[f"activation_{part}.coefficients"] = 0.7 * line + 0.006 * torch.randn(1, knots, generator=draw)
    state["spline_scaling.coefficients"] = 3 + 0.5 * torch.randn(5, 7, generator=draw)
    spline = {"init": "zero", "num_activations": 1, "num_knots": knots, "slope_max": 1, "slope_min": 0}
    config = {
        "multi_convolution": {"num_channels": list(channels), "size_kernels": [3, 3, 3]},
        "noise_range": [0, 30],
        "rho_wcvx": rho,
        "spline_activation": spline | {"antisymmetric": True, "x_max": 0.1, "x_min": -0.1},
        "spline_scaling": {"clamp": False, "init": 5.0, "num_activations": 5, "num_knots": 7, "x_max": 30, "x_min": 0},
    }
    write_model(folder, config, {"epoch": 6000, "state_dict": state, "L": torch.tensor(1.0)})
    return state


def write_pylopt(folder: Path, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The two files of PyLOpt; returns filters and logarithms of weights."""
    draw = torch.Generator().manual_seed(seed)
    filters = 0.2 * torch.randn(6, 1, 3, 3, generator=draw)
    filters = filters - filters.mean((2, 3), keepdim=True)
    weights = torch.randn(6, generator=draw)
    folder.mkdir(parents=True, exist_ok=True)
    about = {"filter_dim": 3, "padding": 1, "padding_mode": "reflect", "orthogonality_options": {}}
    torch.save({"initialisation_dict": about, "state_dict": {"filter_tensor": filters}}, folder / "filters.pt")
    potential = {"initialisation_dict": {"num_marginals": 6}, "state_dict": {"weight_tensor": weights}}
    torch.save(potential, folder / "student_t.pt")
    return filters.double(), weights.double()


def write_model(folder: Path, config: dict[str, Any], content: dict[str, Any], number: int = 10) -> None:
    """config.json and a checkpoint."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(content, folder / "checkpoints" / f"checkpoint_{number}.pth")


def responses(x: Tensor, layers: list[Tensor]) -> Tensor:
    """The layers one after the other, where their kernels lie within the image."""
    for layer in layers:
        x = F.conv2d(x, layer)
    return x


def interpolated(u: Tensor, knots: list[float], values: list[float]) -> Tensor:
    """A linear spline, as a sum of hat functions of single knots with constant continuation: no index, no table."""
    total = torch.full_like(u, values[0])
    for (a, b), (left, right) in zip(itertools.pairwise(knots), itertools.pairwise(values), strict=True):
        total = total + (right - left) * ((u - a) / (b - a)).clamp(0, 1)
    return total


def crr_gradient(state: dict[str, Any], x: Tensor, lmbd: float, mu: float, reach: float = 0.1) -> Tensor:
    """lmbd W^T sigma(mu W x), by automatic differentiation of the layers for the transpose."""
    layers = [v.double() for k, v in state.items() if "original" in k]
    layers = [v - v.mean((1, 2, 3), keepdim=True) for v in layers]
    count = layers[-1].shape[0]
    coefficients = state["activation.coefficients_vect"].double().view(count, -1).tolist()
    n = len(coefficients[0])
    knots = [-reach + 2 * reach * j / (n - 1) for j in range(n)]
    x = x.clone().requires_grad_(True)
    u = responses(x, layers)
    slopes = []
    for k in range(count):
        steps = [max(b - a, 0.0) for a, b in itertools.pairwise(coefficients[k])]
        steps[0] = steps[-1] = 0.0
        values = [sum(steps[:j]) for j in range(n)]
        values = [v - values[n // 2] for v in values]
        slopes.append(lmbd * interpolated(mu * u[:, k], knots, values))
    (gradient,) = torch.autograd.grad((u * torch.stack(slopes, 1).detach()).sum(), x)
    return gradient


def wcrr_gradient(state: dict[str, Any], x: Tensor, sigma: float, lmbd: float, rho: float, size: int = 256) -> Tensor:
    """lmbd W^T (e^mu phi_+(alpha W x) - rho phi_-(alpha W x)) / alpha, sigma of 255."""
    names = ["conv_layer.conv_layers.0.parametrizations.weight.original"]
    names += ["conv_layer.conv_layers.1.weight", "conv_layer.conv_layers.2.weight"]
    layers = [state[name].double() for name in names]
    layers[0] = layers[0] - layers[0].mean((1, 2, 3), keepdim=True)
    layers[0] = layers[0] / math.sqrt(_norm(layers, size))
    n = state["activation_cvx.coefficients"].shape[1]
    knots = [-0.1 + 0.2 * j / (n - 1) for j in range(n)]
    odd = [
        _odd(state[f"activation_{part}.coefficients"][0].double().tolist(), 0.2 / (n - 1)) for part in ("cvx", "ccv")
    ]
    scaling = state["spline_scaling.coefficients"].double()
    places = [30 * j / (scaling.shape[1] - 1) for j in range(scaling.shape[1])]
    x = x.clone().requires_grad_(True)
    u = responses(x, layers)
    slopes = []
    for k in range(u.shape[1]):
        at = interpolated(torch.tensor(sigma, dtype=torch.float64), places, scaling[k].tolist())
        alpha = float(at.exp()) / (sigma + 1e-5)
        plus, minus = (interpolated(alpha * u[:, k], knots, values) for values in odd)
        slopes.append(lmbd * (float(state["mu_"].double().exp()) * plus - rho * minus) / alpha)
    (gradient,) = torch.autograd.grad((u * torch.stack(slopes, 1).detach()).sum(), x)
    return gradient


def _norm(layers: list[Tensor], size: int) -> float:
    """max |DFT| of the response of W^T W to an impulse, zero-padded to the size of their grid."""
    reach = sum(layer.shape[-1] // 2 for layer in layers)
    impulse = torch.zeros(1, 1, 4 * reach + 1, 4 * reach + 1, dtype=torch.float64)
    impulse[0, 0, 2 * reach, 2 * reach] = 1
    out = impulse
    for layer in layers:
        out = F.conv2d(out, layer, padding=1)
    for layer in reversed(layers):
        out = F.conv_transpose2d(out, layer, padding=1)
    padding = (size - 1) // 2 - reach
    return float(torch.fft.fft2(F.pad(out, (padding,) * 4)).abs().max())


def _odd(values: list[float], step: float) -> list[float]:
    slopes = [min(max((b - a) / step, 0.0), 1.0) for a, b in itertools.pairwise(values)]
    slopes[0] = slopes[-1] = 0.0
    sums = [step * sum(slopes[:j]) for j in range(len(values))]
    return [(a - b) / 2 for a, b in zip(sums, reversed(sums), strict=True)]

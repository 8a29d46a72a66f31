"""Rounding errors of input convex networks whose biases cancel what the layers before have computed."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import ICNN, LeakyReLU
from models.regularizers.filter_bank import spectral_bound
from models.regularizers.kernels import library
from recon.lower_level import Energy
from recon.lower_level.batch import per_image_norm
from tests.lower_level.problems import normal, norms, perturb, smooth_image


def cancel(network: ICNN, first: float, share: float = 1.0) -> ICNN:
    """b_0 = first, and the other biases take this share of W_l z_{l-1} at x = 0."""
    with torch.no_grad():
        network.biases[0].fill_(first)
        u = network.biases[0].double()
        for kernel, bias in zip(network.convolutions()[1:], list(network.biases)[1:], strict=True):
            product = kernel.double().sum((2, 3)) @ network.hidden.value(u)
            bias.copy_(-share * product)
            u = product + bias.double()
    return network.requires_grad_(False)


def alike(filters: int, inner: int, layers: int, kernel: Tensor, width: float = 0.01) -> ICNN:
    """All filters are ``kernel``, and all entries of W_l are 0.7 / filters."""
    size, hidden = kernel.shape[-1], LeakyReLU(0.2, width, "smooth")
    network = ICNN(filters, size, layers, inner, hidden, log_weight=-1.0, zero_mean=False)
    with torch.no_grad():
        network.weight.copy_(kernel)
        for w in network.log_inner:
            w.fill_(math.log(0.7 / filters))
    return network


def share_of_the_model(network: ICNN, x: Tensor) -> float:
    """The error of the gradient in single precision, in units of what the model says of it."""
    energy, exact = Energy(0 * x, network), copy.deepcopy(network).double()
    grad = network.grad(x)
    model = energy.rounding(x, per_image_norm(grad))
    return float((norms(grad.double() - exact.grad(x.double())) / model).max())


@pytest.fixture(params=["best", "off"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(library.SWITCH, request.param)
    return str(request.param)


@pytest.mark.parametrize("kind", ["huber", "smooth"])
@pytest.mark.parametrize(("layers", "inner"), [(1, 1), (1, 3), (2, 1), (2, 3)])
@pytest.mark.parametrize("first", [10.0, 1000.0])
def test_gradients_where_biases_cancel(first: float, layers: int, inner: int, kind: str, kernels: str) -> None:
    largest = 0.0
    for seed in range(3):
        x = smooth_image(2, 1, 24, 24, seed=seed) + 0.1 * normal(2, 1, 24, 24, seed=seed)
        network = ICNN(8, 5, layers, inner, LeakyReLU(width=0.01, kind=kind))
        for share in (1.0, 0.9, 0.5):
            perturbed = perturb(copy.deepcopy(network), seed, 0.3)
            assert isinstance(perturbed, ICNN)
            made = cancel(perturbed, first, share)
            for scale in (1e-3, 1e-2, 0.1, 1.0):
                largest = max(largest, share_of_the_model(made, (scale * x).float()))
    assert largest <= 1


def test_equal_terms_that_are_rounded_alike(kernels: str) -> None:
    """400 equal products, one after the other in torch, and V that does not cancel what their sums have in common."""
    for first in torch.logspace(0, 2, 20).tolist():
        network = cancel(alike(16, 5, 1, torch.full((5, 5), 1 / 64)), first)
        assert share_of_the_model(network, torch.zeros(1, 1, 24, 24)) <= 1


# --- the first-order bound, where it is attained ---------------------------------------------------------------------

CHECKS = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])


def moved(network: ICNN, x: Tensor, errors: list[float]) -> float:
    """How much the gradient at x moves, in units of h, where u_l is off by h e_l on a checkerboard; in float64."""
    rows, cols = torch.meshgrid(torch.arange(x.shape[2]), torch.arange(x.shape[3]), indexing="ij")
    h, board, grads = 1e-9, (1.0 - 2.0 * ((rows + cols) % 2)).double(), []
    for sign in (1.0, -1.0):
        z, responses, kernels = x, [], network.convolutions()
        for layer, (kernel, bias) in enumerate(zip(kernels, network.biases, strict=True)):
            u = F.conv2d(z, kernel, bias)
            responses.append(u + sign * h * errors[layer] * board[: u.shape[2], : u.shape[3]])
            z = network.hidden.value(u)  # the errors of a layer hold those that come from the layers before
        grads.append(network._back(responses, kernels, network.weights())[0])
    return float((grads[0] - grads[1]).norm()) / (2 * h)


def offset_of_biases(network: ICNN, x: Tensor) -> float:
    """What is left of ``rounding_offset`` without that of the same network without biases."""
    plain = copy.deepcopy(network)
    with torch.no_grad():
        for bias in plain.biases:
            bias.zero_()
    return network.rounding_offset(x) - plain.rounding_offset(x)


@pytest.mark.parametrize("share", [1.0, 0.99, 0.6, 0.3, 0.0])
def test_errors_of_sums_activations_and_biases_add_up_in_the_offset(share: float) -> None:
    """Two layers of one filter each, by hand: the last responses are small, or all of them are large."""
    first, second, width = 10.0, 3.0, 0.25
    network = alike(1, 3, 2, CHECKS / 4, width).double()
    cancel(network, first, 0.0)
    z_0, m = float(network.hidden.value(torch.tensor(first).double())), 9 * 0.7
    u_1 = m * z_0 + second
    z_1 = float(network.hidden.value(torch.tensor(u_1).double()))
    network.biases[1].fill_(second)
    network.biases[2].fill_(-share * m * z_1)
    n = 2 * math.sqrt(4 + 1), 2 * math.sqrt(9 + 9)
    e_0 = n[0] * first
    e_1 = m * (e_0 + 12 * first) + n[1] * (m * z_0 + second)
    e_2 = m * (e_1 + 12 * u_1) + n[1] * (m * z_1 + share * m * z_1)
    u = first, u_1, (1 - share) * m * z_1
    count = n[0], n[0] + n[1] + 12, n[0] + 2 * n[1] + 24
    expected = 0.0
    for layer, e in enumerate((e_0, e_1, e_2)):
        reach = max(u[layer] - e / (2 * count[layer]), 0.0)
        slope = 0.2 if layer < 2 else 0.0
        curvature = 0.5 * (1 - slope) * width**2 * (reach**2 + width**2) ** -1.5
        expected += float(network.weights()) * m**2 * curvature * e  # dR/dz_l <= a m^(2 - l), |du_l/dx| <= m^l ||V||
    expected *= 64 * float(spectral_bound(CHECKS[None].double() / 4, torch.ones(1))) ** 0.5
    assert offset_of_biases(network, torch.zeros(1, 1, 64, 64).double()) == pytest.approx(expected, rel=1e-5)


def test_the_first_bias_counts_where_it_is_not_large_against_the_width() -> None:
    network = cancel(alike(1, 1, 1, CHECKS / 4, 0.25), 0.02).double()
    network.biases[1].fill_(50.0)
    x = torch.zeros(1, 1, 64, 64).double()
    truth = moved(network, x, [2 * math.sqrt(5) * 0.02, 0.0])
    assert 0.9 * offset_of_biases(network, x) <= truth <= offset_of_biases(network, x)


def test_the_errors_of_two_layers_add_up() -> None:
    """W_1 and W_2 of one entry: both u_1 and u_2 are small, and off by what b_0 = 10 has left."""
    network = cancel(alike(1, 1, 2, CHECKS / 4, 0.25), 10.0).double()
    own = 2 * math.sqrt(9 + 1)
    z = float(network.hidden.value(torch.tensor(10.0).double()))
    e_1 = 0.7 * (2 * math.sqrt(5) * 10 + 12 * 10) + own * (0.7 * z + float(network.biases[1].abs()))
    x = torch.zeros(1, 1, 64, 64).double()
    truth = moved(network, x, [0.0, e_1, 0.7 * e_1])
    assert 0.4 * offset_of_biases(network, x) <= truth <= offset_of_biases(network, x)


@pytest.mark.parametrize("seed", range(4))
def test_no_errors_of_channels_move_gradients_by_more(seed: int) -> None:
    perturbed = perturb(ICNN(5, 3, 2, 2, LeakyReLU(width=0.05, kind="smooth")).double(), seed, 0.5)
    assert isinstance(perturbed, ICNN)
    network = cancel(perturbed, 1.0)
    n, x = (2 * math.sqrt(10), 2 * math.sqrt(9 + 20)), 1e-3 * normal(1, 1, 20, 20, seed=seed)
    e = n[0] * torch.ones(5).double()
    m = network.convolutions()[1].sum((2, 3))
    z = network.hidden.value(network.biases[0])
    e = m @ (e + 12) + n[1] * (m @ z + network.biases[1].abs())
    h, truth = 1e-8, 0.0
    for k in range(5):
        responses = network.responses(x)
        board = (2.0 * torch.rand(*responses[1].shape[2:], generator=torch.Generator().manual_seed(k)).round() - 1) * h
        responses[1] = responses[1] + e[:, None, None] * board
        grad = network._back(responses, network.convolutions(), network.weights())[0]
        truth = max(truth, float((grad - network.grad(x)).norm()) / h)
    assert 1e-3 * offset_of_biases(network, x) <= truth <= offset_of_biases(network, x)


@pytest.mark.parametrize("kind", ["huber", "smooth"])
def test_the_curvature_beyond_a_number_is_the_largest_one_there(kind: str) -> None:
    sigma, grid = LeakyReLU(0.2, 0.3, kind), torch.linspace(-2, 2, 4001).double()
    for t in (-1.0, 0.0, 0.1, 0.2999, 0.3, 0.7):
        largest = float(sigma.curvature(grid)[grid.abs() >= t].max())
        found = float(sigma.curvature_beyond(torch.tensor(t).double()))
        assert found == pytest.approx(largest, rel=2e-2, abs=0)


def test_networks_without_curvature_or_biases_have_no_such_offset() -> None:
    x = torch.zeros(1, 1, 16, 16)
    for network in (ICNN(4, 3), cancel(ICNN(4, 3, activation=LeakyReLU(width=0.0)), 10.0)):
        assert network.rounding_offset(x) == pytest.approx(3 * _first(network) * 16, rel=1e-6)


def _first(network: ICNN) -> float:
    r"""\|\|V\|\| \|\|t_0\|\|."""
    sizes = network._sizes()
    assert sizes is not None
    return math.sqrt(sizes.norm) * float(sizes.weights[0].norm())

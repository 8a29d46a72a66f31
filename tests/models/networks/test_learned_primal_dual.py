"""LearnedPrimalDual: against loops written by hand, published sizes, gradients, symmetries, bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import models
from models import LearnedPrimalDual, UNet
from models.files.storage import load_reconstructor, save_regularizer
from recon.operators import Blur, CartesianMRI, Identity, LinearOperator, ParallelBeam, RayTransform
from recon.operators.mri.sensitivity import simulated_sensitivities


def mri(shape: tuple[int, int] = (7, 9), coils: int = 3) -> CartesianMRI:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.6
    return CartesianMRI(mask, simulated_sensitivities(coils, shape))


def randomized(network: nn.Module, seed: int = 0) -> Any:
    """Away from the initial zeros of biases and slopes, where much of the network could be wrong unseen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return network.double()


def convolve(x: np.ndarray, convolution: nn.Conv2d) -> np.ndarray:
    """Cross-correlation with 3x3 kernels and zeros outside, pixel by pixel: (in, H, W) to (out, H, W)."""
    weight, bias = (p.detach().numpy() for p in (convolution.weight, convolution.bias))
    inputs, height, width = x.shape
    out = np.zeros((len(weight), height, width))
    for o in range(len(weight)):
        for i in range(height):
            for j in range(width):
                total = bias[o]
                for c in range(inputs):
                    for a in (-1, 0, 1):
                        for b in (-1, 0, 1):
                            if 0 <= i + a < height and 0 <= j + b < width:
                                total += weight[o, c, a + 1, b + 1] * x[c, i + a, j + b]
                out[o, i, j] = total
    return out


def update(x: np.ndarray, network: Any) -> np.ndarray:
    first, prelu, second, prelu2, third = network
    for convolution, activation in ((first, prelu), (second, prelu2)):
        x = convolve(x, convolution)
        slope = activation.weight.detach().numpy()[:, None, None]
        x = np.where(x > 0, x, slope * x)
    return convolve(x, third)


def test_two_iterations_by_hand() -> None:
    pytest.importorskip("astra")
    operator = RayTransform(ParallelBeam.equispaced((6, 5), 1.0, 4), cache=False)
    network = randomized(LearnedPrimalDual(2, memory=2, channels=3))
    y = torch.rand(1, *operator.range_shape, dtype=torch.float64)
    matrix = operator(torch.eye(30, dtype=torch.float64).reshape(30, 1, 6, 5)).flatten(1).T.numpy()
    matrix = matrix / operator.norm_bound
    g = y[0, 0].numpy() / operator.norm_bound
    f, h = np.zeros((2, 6, 5)), np.zeros((2, *g.shape))
    for i in range(2):
        projected = (matrix @ f[1].ravel()).reshape(g.shape)
        h = h + update(np.stack([h[0], h[1], projected, g]), network.dual[i])
        back = (matrix.T @ h[0].ravel()).reshape(6, 5)
        f = f + update(np.stack([f[0], f[1], back]), network.primal[i])
    assert np.abs(f[0]).max() > 0.01
    np.testing.assert_allclose(network(y, operator)[0, 0].detach().numpy(), f[0], atol=1e-12)


def test_two_iterations_by_hand_with_coils() -> None:
    operator = mri((4, 5), coils=2)
    network = randomized(LearnedPrimalDual(2, memory=2, channels=3, image_channels=2, data_channels=2))
    y = operator(torch.randn(1, 2, 4, 5, dtype=torch.float64))
    g = y[0].numpy() / operator.norm_bound
    f, h = np.zeros((4, 4, 5)), np.zeros((2, 4, 4, 5))
    for i in range(2):
        projected = operator(torch.from_numpy(f[None, 2:]))[0].numpy() / operator.norm_bound
        for c in range(2):  # each coil for itself
            h[c] += update(np.concatenate([h[c], projected[c], g[c]]), network.dual[i])
        back = operator.adjoint(torch.from_numpy(h[None, :, :2]))[0].numpy() / operator.norm_bound
        f = f + update(np.concatenate([f, back]), network.primal[i])
    np.testing.assert_allclose(network(y, operator)[0].detach().numpy(), f[:2], atol=1e-12)


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_published_size_and_start() -> None:
    network = LearnedPrimalDual()
    # convolutions 7-32-32-5 and 6-32-32-5 with biases, 32 slopes after the first two; the paper rounds to 2.4e5
    dual = 9 * (7 * 32 + 32 * 32 + 32 * 5) + 32 + 32 + 5 + 2 * 32
    primal = 9 * (6 * 32 + 32 * 32 + 32 * 5) + 32 + 32 + 5 + 2 * 32
    assert count(network) == 10 * (dual + primal) == 253_220
    assert abs(count(network) / 2.4e5 - 1) < 0.06
    assert count(LearnedPrimalDual(share_weights=True)) == dual + primal
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            bound = math.sqrt(6 / (9 * (module.in_channels + module.out_channels)))
            assert 0.9 * bound < float(module.weight.detach().abs().max()) <= bound
            assert not module.bias.any()
        if isinstance(module, nn.PReLU):
            assert not module.weight.any()
    assert torch.equal(network.dual[0][0].weight, LearnedPrimalDual().dual[0][0].weight)
    assert not torch.equal(network.dual[0][0].weight, LearnedPrimalDual(seed=1).dual[0][0].weight)


def test_shared_weights_are_those_of_every_iteration() -> None:
    operator = mri()
    options = {"memory": 2, "channels": 3, "image_channels": 2, "data_channels": 2}
    shared = randomized(LearnedPrimalDual(3, share_weights=True, **options))
    free = LearnedPrimalDual(3, **options).double()
    for i in range(3):
        free.dual[i].load_state_dict(shared.dual[0].state_dict())
        free.primal[i].load_state_dict(shared.primal[0].state_dict())
    y = operator(torch.randn(2, 2, 7, 9, dtype=torch.float64))
    assert torch.equal(shared(y, operator), free(y, operator))


@pytest.mark.parametrize("start", ["zero", "naive"])
@pytest.mark.parametrize("kind", ["ct", "mri", "identity"])
def test_gradient_against_finite_differences(kind: str, start: Any) -> None:
    if kind == "ct":
        pytest.importorskip("astra")
        operator: LinearOperator = RayTransform(ParallelBeam.equispaced((5, 7), 1.0, 3), cache=False)
    else:
        operator = mri() if kind == "mri" else Identity()
    channels = 2 if kind == "mri" else 1
    options: dict[str, Any] = {"image_channels": channels, "data_channels": channels, "start": start}
    network = randomized(LearnedPrimalDual(2, memory=2, channels=3, **options))
    x = torch.rand(2, *(operator.domain_shape or (1, 5, 7)), dtype=torch.float64)
    y = operator(x)
    loss = (network(y, operator) - x).square().mean()
    loss.backward()
    for p in network.parameters():
        direction = torch.randn(p.shape, dtype=torch.float64)
        step, values = 1e-6, []
        for sign in (1, -1):
            with torch.no_grad():
                p.add_(direction, alpha=sign * step)
                values.append(float((network(y, operator) - x).square().mean()))
                p.sub_(direction, alpha=sign * step)
        expected = (values[0] - values[1]) / (2 * step)
        assert float((p.grad * direction).sum()) == pytest.approx(expected, rel=1e-4, abs=1e-8)


def test_images_of_a_batch_and_coils_are_independent() -> None:
    operator = mri((7, 9), coils=4)
    network = randomized(LearnedPrimalDual(3, image_channels=2, data_channels=2, channels=4, memory=3))
    y = operator(torch.randn(3, 2, 7, 9, dtype=torch.float64))
    x = network(y, operator)
    assert x.shape == (3, 2, 7, 9)
    alone = torch.cat([network(one[None], operator) for one in y])
    torch.testing.assert_close(x, alone, rtol=1e-12, atol=1e-12)
    order = [2, 0, 3, 1]
    permuted = CartesianMRI(operator.mask, simulated_sensitivities(4, (7, 9))[order])
    torch.testing.assert_close(network(y[:, order], permuted), x, rtol=1e-10, atol=1e-10)


def test_units_of_the_operator_do_not_matter() -> None:
    """A and y times 10: the same image, since both are divided by the norm."""
    kernel = torch.tensor([[0.0, 1, 0], [1, 2, 1], [0, 1, 0]], dtype=torch.float64)
    network = randomized(LearnedPrimalDual(2, memory=2, channels=3))
    x = torch.rand(1, 1, 8, 7, dtype=torch.float64)
    found = []
    for scale in (0.1, 1.0):
        blur = Blur(scale * kernel, (1, 8, 7))
        found.append(network(blur(x), blur))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"iterations": 0}, "iterations is 0, but must be at least 1"),
        ({"memory": 0}, "memory is 0"),
        ({"channels": -1}, "channels is -1"),
        ({"image_channels": 0}, "image_channels is 0"),
        ({"start": "fbp"}, "start is 'fbp'; valid are 'zero' and 'naive'"),
    ],
)
def test_arguments_out_of_range(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LearnedPrimalDual(**options)


def test_what_does_not_fit_is_refused() -> None:
    operator, y = mri(), torch.zeros(1, 3, 2, 7, 9)
    network = LearnedPrimalDual(1, image_channels=2, data_channels=2)
    with pytest.raises(ValueError, match="LinearOperator that measured the data, got NoneType"):
        network(y, None)
    with pytest.raises(ValueError, match=r"got data of shape \(1, 3, 2, 7, 8\), torch.float32; expected real"):
        network(y[..., :8], operator)
    with pytest.raises(ValueError, match="got data of shape"):
        network(y[:0], operator)
    with pytest.raises(ValueError, match=r"torch\.int64; expected real"):
        network(y.long(), operator)
    with pytest.raises(ValueError, match=r"is for images \(1, height, width\) \(image_channels\)"):
        LearnedPrimalDual(1)(y, operator)
    with pytest.raises(ValueError, match=r"\(data_channels\), but CartesianMRI makes"):
        LearnedPrimalDual(1, image_channels=2)(y, operator)
    nothing = CartesianMRI(torch.zeros(7, 9, dtype=torch.bool))
    with pytest.raises(ValueError, match="the norm of CartesianMRI is 0"):
        network(y[:, :1], nothing)
    flat: Tensor = torch.zeros(1, 5)
    with pytest.raises(ValueError, match="is for images"):
        network(flat, Identity())


@pytest.mark.parametrize("network", [LearnedPrimalDual(1, 1, 4, start="naive"), UNet(2, 4)])
def test_files_of_older_networks_start_from_what_they_learned_from(
    network: LearnedPrimalDual | UNet, tmp_path: Path
) -> None:
    """The ramp was sampled in frequency before there was a choice."""
    path = save_regularizer(network, tmp_path / "network.safetensors")
    assert network.ramp == "space"
    assert load_reconstructor(path)[0].ramp == "space"
    head = json.loads(path.with_suffix(".json").read_text())
    assert head["arguments"].pop("ramp") == "space"
    path.with_suffix(".json").write_text(json.dumps(head))
    assert load_reconstructor(path)[0].ramp == "frequency"


def test_the_shipped_network_starts_from_the_older_ramp() -> None:
    network = load_reconstructor(Path(models.__file__).parent / "pretrained" / "lpd_ct.safetensors")[0]
    assert isinstance(network, LearnedPrimalDual)
    assert network.ramp == "frequency"

"""UNet: starts at the plain reconstruction, sizes, symmetries, gradients, what it does not take."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from models import UNet
from recon.operators import (
    Blur,
    CartesianMRI,
    FilteredBackProjection,
    Identity,
    ParallelBeam,
    RayTransform,
)
from recon.operators.mri.sensitivity import simulated_sensitivities
from recon.reconstruction.reconstructor import naive_reconstruction
from tests.models.networks.test_learned_primal_dual import mri, randomized


def test_size() -> None:
    def block(a: int, b: int) -> int:
        return 9 * a * b + b + 9 * b * b + b

    down = block(1, 16) + block(16, 32) + block(32, 64) + block(64, 128)
    up = block(32, 16) + block(64, 32) + block(128, 64)
    transposed = sum(4 * 2 * n * n + n for n in (16, 32, 64))
    assert sum(p.numel() for p in UNet().parameters()) == down + up + transposed + 17 == 481_745
    assert sum(p.numel() for p in UNet(scales=3).parameters()) == 116_753


@pytest.mark.parametrize("filter", ["ram-lak", "hann"])
def test_starts_at_filtered_back_projection(filter: Any) -> None:
    pytest.importorskip("astra")
    operator = RayTransform(ParallelBeam.equispaced((13, 18), 1.0, 9), cache=False)
    y = operator(torch.rand(2, 1, 13, 18))
    expected = FilteredBackProjection(operator, filter, 0.8)(y)
    assert torch.equal(UNet(filter=filter, frequency_scaling=0.8)(y, operator), expected)
    other = RayTransform(ParallelBeam.equispaced((13, 18), 1.0, 10), cache=False)  # another filter is made for it
    assert UNet()(other(torch.rand(1, 1, 13, 18)), other).shape == (1, 1, 13, 18)


def test_starts_at_the_zero_filled_image() -> None:
    operator = mri((7, 9))
    y = operator(torch.randn(2, 2, 7, 9, dtype=torch.float64))
    found = UNet(image_channels=2, data_channels=2).double()(y, operator)
    torch.testing.assert_close(found, operator.adjoint(y), rtol=1e-9, atol=1e-12)


def test_plain_reconstruction_has_the_scale_of_the_image() -> None:
    full = CartesianMRI(torch.ones(6, 6, dtype=torch.bool), 5 * simulated_sensitivities(2, (6, 6)))
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(naive_reconstruction(full(x), full), x)
    assert naive_reconstruction(x, Identity()) is x
    blur = Blur(torch.full((1, 1), 3.0), (2, 6, 6)).double()
    torch.testing.assert_close(naive_reconstruction(blur(x), blur), x)


@pytest.mark.parametrize("shape", [(16, 16), (17, 23), (5, 8), (1, 3)])
def test_any_size(shape: tuple[int, int]) -> None:
    network = randomized(UNet(scales=3, channels=4))
    x = torch.rand(3, 1, *shape, dtype=torch.float64)
    found = network(x, Identity())
    assert found.shape == x.shape
    alone = torch.cat([network(one[None], Identity()) for one in x])
    torch.testing.assert_close(found, alone, rtol=1e-12, atol=1e-12)


def test_shifts_by_the_coarsest_pixel() -> None:
    """Inside, where no boundary is seen, a shift by 2^(scales - 1) pixels of the image is one of the result."""
    network = randomized(UNet(scales=3, channels=4))
    x = torch.rand(1, 1, 96, 96, dtype=torch.float64)
    a, b = network(x, Identity()), network(x.roll((4, 8), (2, 3)), Identity())
    inside = slice(40, 56)
    torch.testing.assert_close(b[..., inside, inside], a.roll((4, 8), (2, 3))[..., inside, inside])
    c = network(x.roll(1, 3), Identity()).roll(-1, 3)
    assert not torch.allclose(c[..., inside, inside], a[..., inside, inside])


def test_gradient_against_finite_differences() -> None:
    network = randomized(UNet(scales=2, channels=2))
    x = torch.rand(2, 1, 5, 6, dtype=torch.float64)
    network(x, Identity()).square().mean().backward()
    for p in network.parameters():
        direction, step, values = torch.randn(p.shape, dtype=torch.float64), 1e-6, []
        for sign in (1, -1):
            with torch.no_grad():
                p.add_(direction, alpha=sign * step)
                values.append(float(network(x, Identity()).square().mean()))
                p.sub_(direction, alpha=sign * step)
        expected = (values[0] - values[1]) / (2 * step)
        assert float((p.grad * direction).sum()) == pytest.approx(expected, rel=1e-4, abs=1e-8)


def test_seeds() -> None:
    def weights(network: nn.Module) -> torch.Tensor:
        return torch.cat([p.flatten() for p in network.parameters()])

    assert torch.equal(weights(UNet()), weights(UNet()))
    assert not torch.equal(weights(UNet()), weights(UNet(seed=1)))


def test_what_it_does_not_take() -> None:
    with pytest.raises(ValueError, match="scales is 0, but must be at least 1"):
        UNet(scales=0)
    with pytest.raises(ValueError, match=r"frequency_scaling is 1.5, but must be in \(0, 1\]"):
        UNet(frequency_scaling=1.5)
    pytest.importorskip("astra")
    operator = RayTransform(ParallelBeam.equispaced((8, 8), 1.0, 4), cache=False)
    with pytest.raises(ValueError, match=r"filter is .* but must be one of"):
        UNet(filter="ramp")(operator(torch.rand(1, 1, 8, 8)), operator)  # type: ignore[arg-type]

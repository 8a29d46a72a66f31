from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torchmetrics.functional.image import peak_signal_noise_ratio

from recon.metrics import psnr, ssim


def images() -> tuple[torch.Tensor, torch.Tensor]:
    target = torch.rand(3, 2, 20, 24, dtype=torch.float64)
    return target + 0.1 * torch.randn_like(target), target


def test_psnr_of_a_constant_difference() -> None:
    x = torch.zeros(2, 1, 4, 5)
    target = torch.stack([torch.full((1, 4, 5), 0.1), torch.full((1, 4, 5), 0.01)])
    torch.testing.assert_close(psnr(x, target), torch.tensor([20.0, 40.0], dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        psnr(x, target, 10.0), torch.tensor([40.0, 60.0], dtype=torch.float64), atol=1e-5, rtol=0
    )


def test_values_are_not_clipped_and_images_not_mixed() -> None:
    x, target = images()
    for i in range(3):
        expected = peak_signal_noise_ratio(x[i], target[i], data_range=1.0)
        assert psnr(x, target)[i].item() == pytest.approx(expected.item(), abs=1e-6)
    assert x.max() > 1  # or nothing was tested


def test_ssim_is_the_mean_of_its_formula_where_the_window_lies_in_the_image() -> None:
    x, target = images()
    offset = torch.arange(-5, 6, dtype=torch.float64)
    window = torch.exp(-(offset**2) / (2 * 1.5**2))
    window = torch.outer(window, window) / window.sum() ** 2

    def mean(t: torch.Tensor) -> torch.Tensor:
        return F.conv2d(t.flatten(0, 1)[:, None], window[None, None]).view(3, -1)

    a, b = mean(x), mean(target)
    variance_a, variance_b, covariance = mean(x * x) - a * a, mean(target**2) - b * b, mean(x * target) - a * b
    value = (2 * a * b + 0.01**2) * (2 * covariance + 0.03**2)
    value = value / ((a * a + b * b + 0.01**2) * (variance_a + variance_b + 0.03**2))
    torch.testing.assert_close(ssim(x, target), value.mean(1))


def test_equal_images() -> None:
    _, target = images()
    assert psnr(target, target).tolist() == [math.inf] * 3
    torch.testing.assert_close(ssim(target, target), torch.ones(3, dtype=torch.float64))


def test_float32_and_gradients_are_accepted() -> None:
    x, target = images()
    for metric in (psnr, ssim):
        value = metric(x.float().requires_grad_(), target.float())
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, metric(x, target), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_bad_input(metric: object) -> None:
    assert callable(metric)
    x = torch.zeros(1, 1, 16, 16)
    with pytest.raises(
        ValueError, match=r"shape \(1, 1, 16, 16\) cannot be compared with one of shape \(1, 1, 16, 15\)"
    ):
        metric(x, x[..., :15])
    with pytest.raises(ValueError, match="must have the shape"):
        metric(x[0], x[0])
    with pytest.raises(ValueError, match="must have the shape"):
        metric(x[:0], x[:0])
    with pytest.raises(ValueError, match="data_range is 0"):
        metric(x, x, 0)


def test_ssim_of_images_smaller_than_its_window() -> None:
    x = torch.zeros(1, 1, 10, 30)
    with pytest.raises(ValueError, match="at least 11x11 pixels, but got 10x30"):
        ssim(x, x)

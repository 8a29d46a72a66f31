"""Ridge regularizers whose filters couple the channels of an image."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from models import ICNN, FieldsOfExperts, InitialFilters, NoiseConditioned, WeaklyConvexRidge
from models.files.storage import load_regularizer, save_regularizer
from models.training.callbacks import draw_filters
from tests.lower_level.problems import normal, perturb
from tests.lower_level.regularizer_checks import assert_batch, assert_derivatives
from tests.models.regularizers.coupled import NAMES, coupled


@pytest.mark.parametrize("kernels", ["best", "off"])
@pytest.mark.parametrize("name", NAMES)
def test_derivatives(name: str, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECON_KERNELS", kernels)
    for seed, scale in enumerate([0.01, 1.0, 10.0]):
        regularizer, x = coupled(name, seed), normal(2, 3, 5, 7, seed=seed, scale=scale)
        assert_derivatives(regularizer, x, rtol=1e-9)
        assert_batch(regularizer, x)


def test_value_by_the_definition() -> None:
    """sum_k sum_p psi_k(sum_a (c_ka * x_a)_p), channel by channel and pixel by pixel."""
    regularizer, x = coupled("crr"), normal(1, 3, 4, 5)
    kernels, *profile = regularizer.current()
    total = 0.0
    for top in range(2):
        for left in range(3):
            window = x[0, :, top : top + 3, left : left + 3]
            u = torch.stack([sum((c[a] * window[a]).sum() for a in range(3)) for c in kernels])
            total += float(regularizer.value(u[None, :, None], profile).sum())
    assert float(regularizer(x).detach()) == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("kernels", ["best", "off"])
def test_filters_of_single_channels_are_those_of_gray_images(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECON_KERNELS", kernels)
    gray = perturb(FieldsOfExperts(4, 3, log_width=-1.0).double(), 0, 0.3)
    colour = FieldsOfExperts(12, 3, log_width=-1.0, initial_filters=InitialFilters("normal", in_channels=3)).double()
    assert isinstance(gray, FieldsOfExperts)
    with torch.no_grad():
        colour.weight.zero_()
        for a in range(3):
            colour.weight[4 * a : 4 * a + 4, a] = gray.weight
        colour.log_scale.copy_(gray.log_scale)
        colour.log_weights.copy_(gray.log_weights.repeat(3))
        colour.log_widths.copy_(gray.log_widths.repeat(3))
    x, v = normal(2, 3, 9, 8), normal(2, 3, 9, 8, seed=1)
    for mine, other in zip(colour.value_and_grad(x), gray.value_and_grad(x), strict=True):
        torch.testing.assert_close(mine, other)
    torch.testing.assert_close(colour.hessian(x)(v), gray.hessian(x)(v))
    assert colour.smoothness() == pytest.approx(gray.smoothness(), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_every_channel_has_mean_zero(name: str) -> None:
    regularizer = coupled(name)
    with torch.no_grad():
        for p in regularizer.factors if regularizer.composed else [regularizer.weight]:
            p.add_(3.0)
    kernels = regularizer.kernels().detach()
    assert kernels.shape == (4, 3, 3, 3)
    assert float(kernels.sum((2, 3)).abs().max()) < 1e-12
    x = normal(2, 3, 6, 7)
    shifted = x + torch.tensor([1.0, -2.0, 5.0]).view(3, 1, 1)
    torch.testing.assert_close(regularizer(shifted), regularizer(x), rtol=1e-9, atol=1e-12)
    if regularizer.unit_norm:
        torch.testing.assert_close(kernels.flatten(1).norm(dim=1), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_images_of_other_channels_are_refused(channels: int) -> None:
    regularizer, x = coupled("foe_l1"), torch.zeros(1, channels, 5, 5, dtype=torch.float64)
    for call in (regularizer, regularizer.value_and_grad, regularizer.hessian):
        with pytest.raises(
            ValueError, match=f"couples 3 channels .in_channels., but the images have {channels}; valid"
        ):
            call(x)
    assert coupled("foe_l1").value_and_grad(torch.zeros(0, 3, 5, 5, dtype=torch.float64))[0].shape == (0,)


def test_networks_and_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="in_channels is 3, but networks take channels one by one"):
        ICNN(4, 3, initial_filters=InitialFilters(in_channels=3))
    with pytest.raises(ValueError, match="in_channels is 0"):
        InitialFilters(in_channels=0)


@pytest.mark.parametrize("kind", ["dct", "multiscale", "normal"])
@pytest.mark.parametrize("channels", [2, 3, 5])
def test_initial_filters(kind: str, channels: int) -> None:
    kernels = InitialFilters(kind, 1, in_channels=channels).make(12, 4)
    assert kernels.shape == (12, channels, 4, 4)
    assert float(kernels.sum((2, 3)).abs().max()) < 1e-12
    assert int(torch.linalg.matrix_rank(kernels.flatten(1))) == 12
    # as large as those of Xavier: 2 / (K + C) for each of C channels
    assert 0.5 < float(kernels.square().sum()) / (12 * 2 * channels / (12 + channels)) < 2
    if kind != "normal":
        # half of the filters see what all channels have in common, the others what they have not
        assert bool((kernels[:6] == kernels[:6, :1]).all())
        assert float(kernels[6:].sum(1).abs().max()) < 1e-12
        cosines = InitialFilters(kind, 1).make(6, 4)
        shapes = kernels[:6, 0] / kernels[:6, 0].flatten(1).norm(dim=1)[:, None, None]
        torch.testing.assert_close(shapes, cosines / cosines.flatten(1).norm(dim=1)[:, None, None])


def test_the_colours_of_initial_filters() -> None:
    """R - B, and R - 2 G + B."""
    kernels = InitialFilters("dct", in_channels=3).make(4, 3)
    ratios = kernels[:, :, 0, 0] / kernels[:, :1, 0, 0]
    torch.testing.assert_close(ratios[2], torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(ratios[3], torch.tensor([1.0, -2.0, 1.0], dtype=torch.float64), atol=1e-12, rtol=0)


def test_composed_filters_are_one_convolution_after_another() -> None:
    regularizer, x = coupled("composed"), normal(1, 3, 6, 7)
    first, second = (f.detach() for f in regularizer.factors)
    assert first.shape == (3, 3, 2, 2)
    u = F.conv2d(F.conv2d(x, first - first.mean((2, 3), keepdim=True)), second)
    found = F.conv2d(x, regularizer.kernels().detach())
    torch.testing.assert_close(
        found / found.flatten(2).norm(dim=2)[:, :, None, None], u / u.flatten(2).norm(dim=2)[:, :, None, None]
    )


@pytest.mark.parametrize("kernels", ["best", "off"])
def test_noise_levels(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECON_KERNELS", kernels)
    model = perturb(NoiseConditioned(coupled("wcrr"), 0.4).double(), 0, 0.2)
    x = normal(3, 3, 5, 6)
    at = model.at(torch.tensor([0.1, 0.02, 0.3], dtype=torch.float64))
    assert_derivatives(at, x, rtol=1e-9)
    assert_batch(model.at(0.1), x)


def test_files(tmp_path: Path) -> None:
    made = NoiseConditioned(
        WeaklyConvexRidge(4, 3, initial_filters=InitialFilters("multiscale", channels=(2,), in_channels=3)), 0.2
    )
    path = save_regularizer(made, tmp_path / "colour")
    found, _ = load_regularizer(path)
    x = normal(1, 3, 6, 6).float()
    torch.testing.assert_close(found.at(0.1)(x), made.at(0.1)(x), rtol=0, atol=0)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_filters_are_drawn(channels: int) -> None:
    """In colour, if there are three channels: the first filters are gray, the others are not."""
    picture = draw_filters(FieldsOfExperts(4, 3, initial_filters=InitialFilters(in_channels=channels)))
    assert picture.ndim == 3
    left = picture[:, : picture.shape[1] // 2].astype(int)
    assert (int(abs(left[..., 0] - left[..., 2]).max()) > 50) == (channels == 3)

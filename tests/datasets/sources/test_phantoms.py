"""Phantoms: reproducible, in their range, and shaped as they should be."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from datasets.readers.pictures import DataError
from datasets.sources.images import ImageSource, stack_images
from datasets.sources.phantoms import RandomEllipses, SheppLogan, _add_ellipse


def test_ellipses_depend_on_seed_and_number_alone() -> None:
    few, many = RandomEllipses(2, 32, seed=5), RandomEllipses(4, 32, seed=5)
    assert isinstance(few, ImageSource)
    for index in range(2):
        torch.testing.assert_close(few[index], many[index], rtol=0, atol=0)
    torch.testing.assert_close(many.subset(2)[0], many[2], rtol=0, atol=0)
    pictures = [*many, *RandomEllipses(4, 32, seed=6)]
    assert all((a != b).any() for i, a in enumerate(pictures) for b in pictures[:i])


def test_ellipses_are_pictures() -> None:
    source = RandomEllipses(8, 48)
    batch = stack_images(source, source.names)
    assert batch.shape == (8, 1, 48, 48)
    assert batch.dtype == torch.float64
    assert batch.min() == 0
    assert batch.max() <= 1
    assert (batch.std(dim=(1, 2, 3)) > 0.03).all()
    assert batch[:, :, :6, :6].abs().max() == 0  # outside of the disc
    whole = RandomEllipses(8, 48, interior=False)
    assert torch.stack(list(whole))[:, :, :6, :6].max() > 0
    assert not RandomEllipses(1, 16, n_ellipses=0)[0].any()


def test_resolution_changes_the_grid_and_not_the_picture() -> None:
    coarse, fine = RandomEllipses(1, 32, oversampling=4)[0], RandomEllipses(1, 64, oversampling=2)[0]
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(fine, 2), coarse)


@pytest.mark.parametrize("angle", [0.0, 0.4, 2.0])
def test_area_and_axes_of_an_ellipse(angle: float) -> None:
    axis = (2 * np.arange(400) + 1) / 400 - 1
    picture = np.zeros((400, 400))
    _add_ellipse(picture, axis, 2.0, np.array([0.5, 0.2]), np.array([0.1, -0.3]), angle)
    cell = (2 / 400) ** 2
    assert picture.sum() * cell == pytest.approx(2 * math.pi * 0.5 * 0.2, rel=0.01)
    x, y = np.meshgrid(axis - 0.1, axis + 0.3, indexing="ij")
    along = x * math.cos(angle) + y * math.sin(angle)
    mass = picture / picture.sum()
    assert (mass * x).sum() == pytest.approx(0, abs=1e-3)
    assert (mass * along**2).sum() == pytest.approx(0.5**2 / 4, rel=0.02)


def test_ellipse_that_lies_outside_or_has_no_width() -> None:
    axis = (2 * np.arange(20) + 1) / 20 - 1
    picture = np.zeros((20, 20))
    _add_ellipse(picture, axis, 1.0, np.array([0.1, 0.1]), np.array([3.0, 3.0]), 0.0)
    _add_ellipse(picture, axis, 1.0, np.array([0.5, 0.0]), np.array([0.01, 0.02]), 0.3)
    assert not picture.any()


def test_shepp_logan() -> None:
    head = SheppLogan(128)[0]
    assert head.shape == (1, 128, 128)
    assert head.min() >= 0
    assert 0.9 < head.max() <= 1
    assert head[0, 64, 64].item() == pytest.approx(0.2, abs=0.05)
    assert SheppLogan()[0].shape == (1, 400, 400)
    assert SheppLogan().names == ["shepp_logan"]
    with pytest.raises(DataError, match="resolution is 512; valid for the Shepp-Logan phantom are 1 to 400"):
        SheppLogan(512)


@pytest.mark.parametrize("name", ["count", "resolution", "oversampling"])
def test_counts_out_of_range(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0, but must be at least 1"):
        RandomEllipses(**{"count": 1, name: 0})


def test_other_arguments_out_of_range() -> None:
    with pytest.raises(ValueError, match="n_ellipses is -1"):
        RandomEllipses(1, n_ellipses=-1)
    with pytest.raises(ValueError, match="got -1"):
        RandomEllipses(1, seed=-1)

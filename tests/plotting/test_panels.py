"""Images beside one another without matplotlib."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from recon.plotting.panels import Panel, Square, side_by_side

WIDTH, TEXT, GAP = 440, 40, 8


def drawn(*panels: Panel, zoom: Square | None = None) -> np.ndarray:
    with Image.open(io.BytesIO(side_by_side(panels, zoom))) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def test_images_stand_side_by_side_as_they_are() -> None:
    """Each pixel is a block of its gray value or colour; values beyond [0, 1] are the ends."""
    gray = torch.tensor([[0.0, 0.2], [0.6, 7.0]])
    page = drawn(Panel("gray", gray), Panel("colour", torch.stack([gray, 0 * gray, -gray])))
    assert page.shape == (WIDTH + 2 * TEXT, 2 * (WIDTH + GAP) + GAP, 3)
    block = WIDTH // 2
    for (i, j), value in np.ndenumerate(np.array([[0, 51], [153, 255]])):
        top, left = TEXT + i * block, GAP + j * block
        assert (page[top : top + block, left : left + block] == value).all()
        colour = page[top : top + block, WIDTH + GAP + left : WIDTH + GAP + left + block]
        assert (colour == [value, 0, 0]).all()


def test_titles_and_notes_stand_above_and_below() -> None:
    dark = [int((drawn(Panel(title, torch.ones(4, 4), note)) < 128).sum()) for title, note in (("", ""), ("a", "b"))]
    assert dark[0] == 0
    assert dark[1] > 20
    page = drawn(Panel("title", torch.ones(4, 4)))
    assert (page[TEXT:] == 255).all()


def test_a_detail_is_enlarged_in_the_corner_that_is_farthest_from_it() -> None:
    image = torch.zeros(44, 44)
    image[2:6, 3:7] = 1.0
    size = 184  # 42 % of the width
    for flip, (rows, columns) in {
        (): (slice(-size, None), slice(-size, None)),
        (0,): (slice(None, size), slice(-size, None)),
        (1,): (slice(-size, None), slice(None, size)),
    }.items():
        top, left = (38 if 0 in flip else 2), (37 if 1 in flip else 3)
        page = drawn(Panel("", image.flip(flip)), zoom=Square(top, left, 4))
        corner = page[TEXT : TEXT + WIDTH, GAP : GAP + WIDTH][rows, columns]
        assert (corner[5:-5, 5:-5] == 255).all()


def test_nothing_is_no_comparison() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        side_by_side([])
    with pytest.raises(ValueError, match=r"noisy: cannot show an image of shape \(2, 4, 4\)"):
        side_by_side([Panel("noisy", torch.zeros(2, 4, 4))])

"""Images beside one another, drawn without matplotlib, which takes long to import."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from recon.files import check_finite

ACCENT = "#FFD000"
#: of every image in a comparison, in pixels: its width, the lines of text above and below it, the gap to the next one
_WIDTH, _TEXT, _GAP = 440, 40, 8
#: side of an enlarged detail, relative to the width of the image
_INSET = 0.42


class Square(NamedTuple):
    """A square part of an image, in pixels."""

    top: int
    left: int
    side: int


@dataclass(frozen=True)
class Panel:
    """One image of a comparison: ``(height, width)``, ``(1, ...)`` or ``(3, ...)``; ``note`` goes below it."""

    title: str
    image: Tensor
    note: str = ""

    def pixels(self) -> np.ndarray:
        """As matplotlib wants it: (height, width), or (height, width, 3).

        Raises
        ------
        ValueError
            the image has another shape, or values that are NaN or infinite.
        """
        image = self.image.detach().cpu().double().numpy()
        if image.ndim == 3 and image.shape[0] == 1:
            image = image[0]
        elif image.ndim == 3 and image.shape[0] == 3:
            image = np.moveaxis(image, 0, -1)
        if image.ndim != 2 and not (image.ndim == 3 and image.shape[-1] == 3):
            raise ValueError(f"{self.title}: cannot show an image of shape {tuple(self.image.shape)}")
        check_finite(image, f"picture of {self.title}")
        return image


def busiest_square(image: Tensor, side: int) -> Square:
    """The square of an image ``(channel, height, width)`` with the largest sum of squared differences: for a zoom.

    Raises
    ------
    ValueError
        the square does not fit into the image.
    """
    height, width = image.shape[-2:]
    if not 2 <= side <= min(height, width):
        raise ValueError(f"a square of side {side} does not fit into {height}x{width} pixels")
    values = image.detach().cpu().double().numpy().reshape(-1, height, width).mean(0)
    change = np.diff(values, axis=0)[:, :-1] ** 2 + np.diff(values, axis=1)[:-1] ** 2
    # an isolated strong edge should not win against texture
    total = np.pad(np.sqrt(change), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    n = side - 1
    sums = total[n:, n:] - total[:-n, n:] - total[n:, :-n] + total[:-n, :-n]
    top, left = np.unravel_index(int(sums.argmax()), sums.shape)
    return Square(int(top), int(left), side)


def side_by_side(panels: Sequence[Panel], zoom: Square | None = None) -> bytes:
    """A PNG file of images of one size with values in [0, 1], titles above them, notes below, and an enlarged detail.

    Parameters
    ----------
    panels
        at least one; values beyond [0, 1] are shown as its ends.
    zoom
        the square to enlarge, in the corner that is farthest from it.

    Raises
    ------
    ValueError
        there is nothing to show, or a shape is not an image's.
    """
    if not panels:
        raise ValueError("a comparison needs at least one image")
    shown = [_shown(panel.pixels(), zoom) for panel in panels]
    height = max(image.height for image in shown)
    page = Image.new("RGB", (len(panels) * (_WIDTH + _GAP) + _GAP, height + 2 * _TEXT), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(0.6 * _TEXT)
    for k, (panel, image) in enumerate(zip(panels, shown, strict=True)):
        left = _GAP + k * (_WIDTH + _GAP)
        page.paste(image, (left, _TEXT))
        for text, top in ((panel.title, 0), (panel.note, _TEXT + height)):
            draw.text((left + _WIDTH / 2, top + _TEXT / 2), text, "black", font, anchor="mm")
    buffer = io.BytesIO()
    page.save(buffer, "png")
    return buffer.getvalue()


def _shown(pixels: np.ndarray, zoom: Square | None) -> Image.Image:
    """The image as wide as all are, with its detail."""
    image = Image.fromarray((255 * np.clip(pixels, 0, 1)).round().astype(np.uint8)).convert("RGB")
    scale = _WIDTH / image.width
    made = image.resize((_WIDTH, round(scale * image.height)), Image.Resampling.NEAREST)
    if zoom is None:
        return made
    top, left, side = zoom
    size, draw = round(_INSET * _WIDTH), ImageDraw.Draw(made)
    detail = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.NEAREST)
    corner = (
        _WIDTH - size if left + side / 2 < image.width / 2 else 0,
        0 if top + side / 2 >= image.height / 2 else made.height - size,
    )
    made.paste(detail, corner)
    draw.rectangle((scale * left, scale * top, scale * (left + side), scale * (top + side)), outline=ACCENT, width=2)
    draw.rectangle((*corner, corner[0] + size - 1, corner[1] + size - 1), outline=ACCENT, width=3)
    return made

"""Pictures for papers and logs. Figures are objects of their own: no state of pyplot, no display is needed."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter
from torch import Tensor

from recon.bilevel import Progress, Record
from recon.errors import at_least
from recon.files import write_files
from recon.plotting.panels import ACCENT, Panel, Square

#: colours that are told apart in print and by colour-blind readers (Okabe and Ito 2008)
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_SMALL, _NORMAL = 8.0, 9.0


def filter_grid(kernels: Tensor, columns: int | None = None, gap: int = 1) -> np.ndarray:
    """Filters side by side in one picture with values in [0, 1], gray, or in colour for filters of three channels.

    Parameters
    ----------
    kernels
        ``(K, h, w)``, ``(K, 1, h, w)`` or ``(K, 3, h, w)``. Each is scaled by its own largest absolute value; 0 becomes
        0.5.
    columns
        number of columns; about the square root of K by default.
    gap
        white pixels between filters and around them.

    Returns
    -------
    np.ndarray
        ``(rows * (h + gap) + gap, columns * (w + gap) + gap)``, and a last axis of colours where there are any.

    Raises
    ------
    ValueError
        another shape, or no filter.
    """
    k = kernels.detach().cpu().double().numpy()
    if k.ndim == 4 and k.shape[1] in (1, 3):
        k = k[:, 0] if k.shape[1] == 1 else np.moveaxis(k, 1, -1)
    elif k.ndim != 3:
        k = k[:0]
    if k.size == 0:
        raise ValueError(
            f"filters must have the shape (K, h, w), (K, 1, h, w) or (K, 3, h, w), but got {tuple(kernels.shape)}"
        )
    at_least(1, columns=columns)
    count, height, width = k.shape[:3]
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    grid = np.ones((rows * (height + gap) + gap, columns * (width + gap) + gap, *k.shape[3:]))
    for i, kernel in enumerate(k):
        top, left = gap + (i // columns) * (height + gap), gap + (i % columns) * (width + gap)
        scale = np.abs(kernel).max() or 1.0
        grid[top : top + height, left : left + width] = 0.5 + 0.5 * kernel / scale
    return grid


def comparison_figure(
    rows: Sequence[Sequence[Panel]],
    zooms: Sequence[Square | None] | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """Images side by side, titles above the first row, notes below every image, enlarged details in a corner.

    Parameters
    ----------
    rows
        at least one panel each; the images of a row have one size.
    zooms
        for every row the square to enlarge, or ``None``.
    value_range
        shown from black to white; values beyond are shown as these.

    Raises
    ------
    ValueError
        there is nothing to show, a shape is not an image's, or not one zoom is given per row.
    """
    if not rows or not all(rows):
        raise ValueError("a comparison needs at least one row with at least one image")
    if zooms is not None and len(zooms) != len(rows):
        raise ValueError(f"{len(zooms)} zooms were given for {len(rows)} rows")
    columns, width = max(map(len, rows)), 2.2
    pixels = [[panel.pixels() for panel in row] for row in rows]
    heights = [width * row[0].shape[0] / row[0].shape[1] + 0.25 for row in pixels]
    figure = Figure(figsize=(columns * width + 0.1, sum(heights) + 0.25), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)  # type: ignore[union-attr, call-arg]
    axes = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    for i, row in enumerate(rows):
        for j, ax in enumerate(axes[i]):
            if j >= len(row):
                ax.set_axis_off()
                continue
            _show(ax, np.clip(pixels[i][j], *value_range), value_range, zooms[i] if zooms is not None else None)
            ax.set_xlabel(row[j].note, fontsize=_NORMAL, labelpad=2)
            if i == 0:
                ax.set_title(row[j].title, fontsize=_NORMAL + 1, pad=4)
    return figure


def training_figure(runs: Mapping[str, Sequence[Record]]) -> Figure:
    """Loss with its certified interval, accuracies and step sizes, each against the evaluations per image.

    Parameters
    ----------
    runs
        for every name in the legend the records of one training, from the first iteration on.

    Raises
    ------
    ValueError
        there is no run, or one without a record.
    """
    if not runs or not all(runs.values()):
        raise ValueError("a picture of the training needs at least one run with at least one record")
    figure = Figure(figsize=(9.6, 2.9), layout="constrained")
    loss, accuracy, step = figure.subplots(1, 3)
    for (name, records), color in zip(runs.items(), _cycle(len(runs)), strict=True):
        cost = [r.evaluations for r in records]
        loss.fill_between(cost, [r.lower for r in records], [r.upper for r in records], color=color, alpha=0.25, lw=0)
        loss.plot(cost, [r.loss for r in records], ".-", color=color, lw=1.2, ms=4, label=name)
        accuracy.plot(cost, _positive([r.epsilon for r in records]), color=color, lw=1.3)
        accuracy.plot(cost, _positive([r.delta for r in records]), color=color, lw=1.0, ls="--")
        accepted = [r for r in records if r.progress is Progress.ACCEPTED]
        step.plot([r.evaluations for r in accepted], [r.step for r in accepted], ".", color=color, ms=5)
    loss.set_title("loss and certified interval", fontsize=_NORMAL)
    loss.legend(frameon=False, fontsize=_SMALL)
    accuracy.set_title("lower-level accuracy", fontsize=_NORMAL)
    accuracy.plot([], [], color="0.3", lw=1.3, label=r"solution, $\epsilon$")
    accuracy.plot([], [], color="0.3", lw=1.0, ls="--", label=r"adjoint, $\delta$")
    accuracy.legend(frameon=False, fontsize=_SMALL)
    step.set_title(r"accepted step size $\alpha$", fontsize=_NORMAL)
    for ax in (loss, accuracy, step):
        _style(ax, "evaluations per image")
        ax.set_xscale("log")
        _log_scale(ax)
    return figure


def filters_figure(kernels: Tensor, u: Tensor, potentials: Tensor, order: Tensor | None = None) -> Figure:
    """Learned filters beside the potentials psi_k that belong to them.

    Filters are shown at the same contrast, so potentials should be those of the filters divided by their norms.

    Parameters
    ----------
    kernels
        ``(K, h, w)`` or ``(K, 3, h, w)``;
    u
        ``(n,)``, responses of c_k / ||c_k||;
    potentials
        ``(K, n)``, psi_k(||c_k|| u).
    order
        a permutation of the filters, the most important first; the order of their numbers by default.

    Raises
    ------
    ValueError
        the shapes do not belong together.
    """
    if potentials.shape != (kernels.shape[0], *u.shape):
        raise ValueError(
            f"{kernels.shape[0]} filters and {tuple(u.shape)} arguments need potentials of shape "
            f"({kernels.shape[0]}, {u.shape[0]}), but got {tuple(potentials.shape)}"
        )
    if order is not None:
        kernels, potentials = kernels[order], potentials[order]
    grid = filter_grid(kernels, columns=math.ceil(math.sqrt(1.5 * len(kernels))))
    ratio = grid.shape[1] / grid.shape[0]
    figure = Figure(figsize=(3.0 * ratio + 3.9, 3.3), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3.0 * ratio, 3.5))
    left.imshow(grid, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    left.set_axis_off()
    left.set_title(r"filters $c_k / \Vert c_k\Vert$", fontsize=_NORMAL)
    shades = np.linspace(0.15, 0.75, len(kernels))
    for values, shade in zip(potentials.detach().cpu().double().numpy(), shades, strict=True):
        right.plot(u.detach().cpu().double().numpy(), values, color=_blend(COLORS[0], shade), lw=1.0)
    right.set_title(r"potentials $\psi_k(\Vert c_k\Vert\, u)$", fontsize=_NORMAL)
    _style(right, "response $u$ of the filter")
    right.margins(x=0)
    right.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    right.yaxis.get_offset_text().set_fontsize(_SMALL)
    return figure


def save_figure(figure: Figure, path: str | Path, dpi: int = 200) -> None:
    """Write a figure, in the format that the suffix of ``path`` names, completely or not at all.

    Raises
    ------
    ValueError
        a format that matplotlib does not know.
    OSError
        the file cannot be written.
    """
    path = Path(path)
    write_files({path: figure_bytes(figure, path.suffix.removeprefix(".") or "png", dpi)})


def figure_bytes(figure: Figure, format: str = "png", dpi: int = 200) -> bytes:
    """The content of a picture file with the figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=format, dpi=dpi)
    return buffer.getvalue()


# --- details ---------------------------------------------------------------------------------------------------------


def _show(ax: Axes, image: np.ndarray, value_range: tuple[float, float], zoom: Square | None) -> None:
    low, high = value_range
    if image.ndim == 3:  # matplotlib scales gray images only
        image = (image - low) / (high - low)
    show = partial(Axes.imshow, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    show(ax, image)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    if zoom is None:
        return
    height, width = image.shape[:2]
    top, left, side = zoom
    ax.add_patch(Rectangle((left - 0.5, top - 0.5), side, side, fill=False, ec=ACCENT, lw=0.9))
    # in the corner of the image that is farthest from the detail
    size = 0.42
    corner_x = 1 - size if left + side / 2 < width / 2 else 0.0
    corner_y = 0.0 if top + side / 2 < height / 2 else 1 - size * width / height
    inset = ax.inset_axes((corner_x, corner_y, size, size * width / height))
    show(inset, image[top : top + side, left : left + side])
    inset.set(xticks=[], yticks=[])
    inset.spines[:].set(color=ACCENT, linewidth=1.2)


def _style(ax: Axes, xlabel: str) -> None:
    ax.set_xlabel(xlabel, fontsize=_NORMAL)
    ax.tick_params(labelsize=_SMALL)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, color="0.9", lw=0.6)
    ax.set_axisbelow(True)


def _log_scale(ax: Axes) -> None:
    """A logarithmic ordinate; with plain numbers at 1, 2, 5 if it spans little, so that it always has labels."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    if high / low < 100:
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 4, 6) if high / low < 10 else (1, 2, 5)))
        ax.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        ax.yaxis.set_minor_formatter(NullFormatter())


def _positive(values: Sequence[float]) -> list[float]:
    """What a logarithmic axis can show; gaps elsewhere."""
    return [v if 0 < v < math.inf else math.nan for v in values]


def _cycle(count: int) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(count)]


def _blend(color: str, share: float) -> tuple[float, ...]:
    """The colour mixed with ``share`` of white."""
    rgb = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return tuple(c + share * (1 - c) for c in rgb)

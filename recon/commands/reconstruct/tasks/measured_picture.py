"""Pictures of reconstructions of measured data: one gray scale, in their unit."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from recon.plotting.panels import Panel


def measured_figure(panels: Sequence[Panel], value_range: tuple[float, float], unit: str) -> Figure:
    """Reconstructions side by side, with the scale of their gray values beside them.

    Parameters
    ----------
    panels
        at least one gray image each; sizes may differ.
    value_range
        shown from black to white; values beyond are shown as these.
    unit
        of the values, for the scale.

    Raises
    ------
    ValueError
        there is nothing to show, or a shape is not an image's.
    """
    if not panels:
        raise ValueError("a picture of reconstructions needs at least one image")
    pixels = [panel.pixels() for panel in panels]
    width = 3.4
    height = width * max(image.shape[0] / image.shape[1] for image in pixels) + 0.6
    figure = Figure(figsize=(len(panels) * width + 0.8, height), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, panel, image in zip(axes, panels, pixels, strict=True):
        shown = ax.imshow(image, cmap="gray", vmin=value_range[0], vmax=value_range[1], interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        ax.set_title(panel.title, fontsize=10, pad=4)
        ax.set_xlabel(panel.note, fontsize=9, labelpad=2)
    scale = figure.colorbar(shown, ax=list(axes), fraction=0.04, pad=0.01)
    scale.ax.tick_params(labelsize=8)
    scale.set_label(unit, fontsize=8)
    return figure

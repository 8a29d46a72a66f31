from __future__ import annotations

import errno
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recon.bilevel import CertifiedLoss, Progress, Record
from recon.plotting.figures import comparison_figure, filter_grid, filters_figure, save_figure, training_figure
from recon.plotting.panels import Panel, Square, busiest_square


def records(count: int = 5) -> list[Record]:
    return [
        Record(
            i,
            CertifiedLoss(5 / i, 4.9 / i, 5.2 / i),
            0.1 / i,
            0.05 / i,
            float("inf"),
            1.0,
            1,
            10.0 * i,
            1 / i,
            Progress.ACCEPTED,
        )
        for i in range(1, count + 1)
    ]


def test_filter_grid() -> None:
    kernels = torch.zeros(5, 2, 3)
    kernels[0, 0, 0], kernels[1, 1, 2], kernels[1, 0, 0] = 4.0, -2.0, 1.0
    grid = filter_grid(kernels, columns=2)
    assert grid.shape == (3 * 3 + 1, 2 * 4 + 1)
    assert grid[1, 1] == 1.0  # each filter has its own scale
    assert grid[2, 7] == 0.0
    assert grid[1, 5] == 0.75
    assert grid[4, 1] == 0.5  # a filter of zeros
    assert np.all(grid[0] == 1)  # gaps
    assert np.all(grid[:, 4] == 1)
    np.testing.assert_array_equal(filter_grid(kernels[:, None], columns=2), grid)
    assert filter_grid(kernels).shape == (2 * 3 + 1, 3 * 4 + 1)
    colour = filter_grid(torch.stack([kernels, -kernels, 0 * kernels], 1), columns=2)
    np.testing.assert_array_equal(colour[..., 0], grid)
    assert colour[1, 1].tolist() == [1.0, 0.0, 0.5]


@pytest.mark.parametrize("shape", [(3, 3), (2, 2, 3, 3), (0, 3, 3)])
def test_filter_grid_of_something_else(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="filters must have the shape"):
        filter_grid(torch.zeros(shape))


def test_busiest_square() -> None:
    image = torch.zeros(1, 20, 30)
    image[:, 8:14, 17:23] = torch.rand(6, 6)
    square = busiest_square(image, 8)
    assert square.side == 8
    assert 6 <= square.top <= 8
    assert 15 <= square.left <= 17
    with pytest.raises(ValueError, match="side 21 does not fit into 20x30"):
        busiest_square(image, 21)


def test_comparison(tmp_path: Path) -> None:
    gray, color = torch.rand(1, 32, 40), torch.rand(3, 24, 24)
    rows = [[Panel("noisy", gray, "20.00 dB"), Panel("TV", gray[0])], [Panel("noisy", 2 * color - 0.5)]]
    figure = comparison_figure(rows, [Square(2, 3, 8), None])
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles == ["noisy", "TV"]
    save_figure(figure, tmp_path / "new" / "comparison.png", dpi=50)
    with Image.open(tmp_path / "new" / "comparison.png") as image:
        assert image.size[0] > 100
    save_figure(figure, tmp_path / "comparison.pdf")
    assert (tmp_path / "comparison.pdf").read_bytes().startswith(b"%PDF")


def test_pictures_do_not_need_pyplot(tmp_path: Path) -> None:
    before = "matplotlib.pyplot" in sys.modules
    save_figure(training_figure({"TV": records()}), tmp_path / "training.png", dpi=50)
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_comparison_of_nothing() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        comparison_figure([])
    with pytest.raises(ValueError, match="at least one image"):
        comparison_figure([[]])
    with pytest.raises(ValueError, match="2 zooms were given for 1 rows"):
        comparison_figure([[Panel("a", torch.zeros(4, 4))]], [None, None])
    with pytest.raises(ValueError, match=r"noisy: cannot show an image of shape \(2, 4, 4\)"):
        comparison_figure([[Panel("noisy", torch.zeros(2, 4, 4))]])


def test_training(tmp_path: Path) -> None:
    figure = training_figure({"TV": records(1), "FoE": records(30)})
    assert [ax.get_xlabel() for ax in figure.axes] == ["evaluations per image"] * 3
    save_figure(figure, tmp_path / "training.png", dpi=50)
    with pytest.raises(ValueError, match="at least one record"):
        training_figure({"TV": []})
    with pytest.raises(ValueError, match="at least one run"):
        training_figure({})


def test_filters_and_potentials(tmp_path: Path) -> None:
    u = torch.linspace(-1, 1, 21)
    potentials = torch.arange(1.0, 6.0)[:, None] * u.abs()
    figure = filters_figure(torch.rand(5, 3, 3), u, potentials, order=torch.arange(4, -1, -1))
    lines = figure.axes[1].get_lines()
    assert len(lines) == 5
    assert max(np.asarray(lines[0].get_ydata())) == 5
    save_figure(figure, tmp_path / "filters.png", dpi=50)
    with pytest.raises(ValueError, match=r"need potentials of shape \(5, 21\)"):
        filters_figure(torch.rand(5, 3, 3), u, potentials[:4])


def test_full_disk_leaves_no_part_of_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("recon.files.os.fsync", full)
    with pytest.raises(OSError, match=r"a\.png: cannot be written \(No space left on device\)"):
        save_figure(comparison_figure([[Panel("a", torch.zeros(4, 4))]]), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())

"""The same bits with any number of threads, in any batch, whatever the layout of the images in memory is."""

from __future__ import annotations

import pytest
import torch

from models.regularizers.kernels import calls
from tests.lower_level.problems import normal
from tests.models.regularizers.kernels.cases import MAKERS, everything, make


@pytest.mark.parametrize("name", ["weakly convex smoothed_l1", "splines in registers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threads", [2, 5])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_number_of_threads(
    level: str, name: str, dtype: torch.dtype, threads: int, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    regularizer = make(name, 7, 4, dtype, channels)
    x, v = normal(2, 2, 75, 70).to(dtype), normal(2, 2, 75, 70, seed=1).to(dtype)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    expected = everything(regularizer, x, v)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for name, mine in everything(regularizer, x, v).items():
        assert torch.equal(mine, expected[name]), name


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", MAKERS)
def test_any_batch(level: str, name: str, channels: int) -> None:
    regularizer = make(name, 5, 3, torch.float32, channels)
    x, v = normal(3, channels, 40, 19).float(), normal(3, channels, 40, 19, seed=1).float()
    together = everything(regularizer, x, v)
    for i in range(3):
        alone = everything(regularizer, x[i : i + 1], v[i : i + 1])
        for what in ("value", "gradient", "Hessian", "maximum"):
            assert torch.equal(alone[what], together[what][i : i + 1]), what


@pytest.mark.parametrize("channels", [1, 3])
def test_any_layout(level: str, channels: int) -> None:
    regularizer = make("student_t", 5, 3, torch.float32, channels)
    x, v = normal(2, 3, 9, 20).float(), normal(2, 3, 9, 20, seed=1).float()
    expected = everything(regularizer, x, v)
    wide = normal(2, 3, 20, 18).float()
    wide[:, :, :, ::2] = x.transpose(2, 3)
    layouts = {
        "channels last": x.to(memory_format=torch.channels_last),
        "a view": wide[:, :, :, ::2].transpose(2, 3),
        "with a graph": x.clone().requires_grad_(True),
    }
    for layout, same in layouts.items():
        for name, mine in everything(regularizer, same, v).items():
            assert torch.equal(mine, expected[name]), (layout, name)
            assert not mine.requires_grad, (layout, name)


def test_images_are_not_written_to(level: str) -> None:
    regularizer, x, v = make("log_cosh", 5, 3, torch.float32), normal(2, 1, 9, 20).float(), normal(2, 1, 9, 20).float()
    before = x.clone(), v.clone()
    everything(regularizer, x, v)
    assert torch.equal(x, before[0])
    assert torch.equal(v, before[1])


def test_no_more_threads_than_units_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """One small image is one unit, and no pool of threads is asked for."""

    def refuse(threads: int, process: int) -> None:
        raise AssertionError("a pool for one unit of work")

    monkeypatch.setattr(calls, "thread_pool", refuse)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    make("log_cosh", 5, 3, torch.float32).value_and_grad(normal(1, 1, 34, 9).float())

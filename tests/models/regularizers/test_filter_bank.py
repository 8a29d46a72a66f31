"""The filter bank: its norm bound against dense matrices, its blocks, and its patches."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import models.regularizers.filter_bank as filter_bank
from models.regularizers.fields_of_experts import FieldsOfExperts
from models.regularizers.filter_bank import (
    blocks,
    frequency_response,
    make_filters,
    patches,
    spectral_bound,
    sum_patches,
)
from models.regularizers.initial import InitialFilters
from tests.lower_level.problems import normal


def gram(kernels: Tensor, weights: Tensor, height: int, width: int) -> Tensor:
    """sum_k w_k C_k^T C_k for images of this size, dense."""
    n = height * width
    basis = torch.eye(n, dtype=kernels.dtype).view(n, 1, height, width)
    c = F.conv2d(basis, kernels[:, None]).flatten(2)  # (n, K, positions)
    return torch.einsum("nkp,k,mkp->nm", c, weights, c)


@given(
    seed=st.integers(0, 10_000),
    filters=st.integers(1, 4),
    size=st.integers(2, 5),
    height=st.integers(5, 9),
    width=st.integers(5, 9),
)
def test_spectral_bound_holds(seed: int, filters: int, size: int, height: int, width: int) -> None:
    kernels, weights = normal(filters, size, size, seed=seed), normal(filters, seed=seed + 1).exp()
    top = float(torch.linalg.matrix_norm(gram(kernels, weights, height, width), 2))
    assert top <= float(spectral_bound(kernels, weights)) * (1 + 1e-12)


@pytest.mark.parametrize("kind", ["normal", "dct", "difference"])
def test_spectral_bound_is_tight_for_larger_images(kind: str) -> None:
    if kind == "difference":
        kernels = torch.tensor([[[1.0, -1.0], [0.0, 0.0]]], dtype=torch.float64)
    else:
        kernels = make_filters(kind, 3, 3, seed=4)
    weights = torch.linspace(1, 2, len(kernels), dtype=torch.float64)
    top, bound = (
        float(torch.linalg.matrix_norm(gram(kernels, weights, 20, 23), 2)),
        float(spectral_bound(kernels, weights)),
    )
    assert top <= bound <= 1.1 * top


@given(seed=st.integers(0, 10_000), rows=st.integers(1, 6), cols=st.integers(1, 6))
def test_grid_factor_covers_all_frequencies(seed: int, rows: int, cols: int) -> None:
    """Frequencies between those of the grid do not exceed its maximum by more than the factor."""
    kernel = normal(1, rows, cols, seed=seed)
    response = frequency_response(kernel)
    fine = torch.fft.fft2(kernel, s=(31 * rows * 7, 31 * cols * 7)).abs().square().max()
    assert float(fine) <= response.factor * float(response.spectrum(torch.ones(1)).max()) * (1 + 1e-12)
    assert 1 <= response.factor <= 1.05


@given(seed=st.integers(0, 10_000), filters=st.integers(1, 4), rows=st.integers(1, 6), cols=st.integers(1, 6))
def test_spectra_are_those_of_the_filters_on_the_fine_grid(seed: int, filters: int, rows: int, cols: int) -> None:
    """Refined from the coarse grid they are what a transform on the fine one gives, and so are their derivatives."""
    kernels, weights = normal(filters, rows, cols, seed=seed), normal(2, filters, seed=seed + 1).exp()
    leaves = [kernels.requires_grad_(True), weights.requires_grad_(True)]
    found = frequency_response(kernels).spectrum(weights)
    fine = weights @ torch.fft.rfft2(kernels, s=(16 * rows, 16 * cols)).abs().square().flatten(1)
    torch.testing.assert_close(found, fine)
    back = normal(*fine.shape, seed=seed + 2)
    for mine, other in zip(*(torch.autograd.grad((v * back).sum(), leaves) for v in (found, fine)), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("transposed", [False, True])
def test_spectral_bound_covers_a_maximum_between_the_frequencies_of_the_grid(transposed: bool) -> None:
    """Along either axis: filters that pass one frequency only, in the middle of two that the bound looks at."""
    size = 6
    frequency = 2 * math.pi * (4 * size + 0.5) / (16 * size)
    phases = frequency * torch.arange(size, dtype=torch.float64)
    kernels = torch.stack([phases.cos(), phases.sin()])[:, None]
    waves = torch.exp(-1j * phases)
    top = float((kernels[:, 0] * waves).sum(1).abs().square().sum())
    assert top <= float(spectral_bound(kernels.mT if transposed else kernels, torch.ones(2)))


def test_spectral_bound_of_several_weights_and_filters_that_act_on_different_frequencies() -> None:
    kernels = make_filters("dct", 4, 3, seed=0)
    weights = normal(5, 4, seed=1).exp()
    together = spectral_bound(kernels, weights)
    torch.testing.assert_close(together, torch.stack([spectral_bound(kernels, w) for w in weights]))
    # not the sum of the single norms
    assert float(together[0]) < 0.9 * float(
        sum(spectral_bound(kernels[k : k + 1], weights[0, k : k + 1]) for k in range(4))
    )


@pytest.mark.parametrize("kind", ["dct", "multiscale", "normal"])
def test_initial_filters_are_independent_and_have_mean_zero(kind: str) -> None:
    kernels = make_filters(kind, 8, 5, seed=1)
    assert kernels.shape == (8, 5, 5)
    assert float(kernels.sum((1, 2)).abs().max()) < 1e-12
    assert int(torch.linalg.matrix_rank(kernels.flatten(1))) == 8
    assert 0.5 < float(kernels.square().sum()) / (8 * 2 / 9) < 2


def test_multiscale_filters_grow_from_the_middle() -> None:
    kernels = make_filters("multiscale", 3 + 8 + 15, 4, seed=0)
    assert not kernels[:3, [0, 3]].any()
    assert kernels[:3, 1:3, 1:3].all()
    assert not kernels[3:11, 3].any()
    assert kernels[11:, 3].any()


@pytest.mark.parametrize(("kind", "number"), [("dct", 9), ("multiscale", 12)])
def test_more_cosines_than_there_are(kind: str, number: int) -> None:
    with pytest.raises(ValueError, match=f"{kind} has {number - 1} filters of 3x3 pixels, {number} were asked for"):
        make_filters(kind, number, 3, seed=0)


@given(batch=st.integers(1, 7), rows=st.integers(1, 40), cols=st.integers(1, 40), block=st.integers(1, 600))
def test_blocks_cover_every_pixel_once(batch: int, rows: int, cols: int, block: int) -> None:
    count = torch.zeros(batch, rows, dtype=torch.int64)
    for i, j, r, s in blocks(batch, rows, cols, block):
        assert 0 <= i < j <= batch
        assert 0 <= r < s <= rows
        assert (j - i) * (s - r) * cols <= max(block, cols)
        count[i:j, r:s] += 1
    assert bool((count == 1).all())


@given(
    seed=st.integers(0, 1000),
    height=st.integers(3, 9),
    width=st.integers(4, 9),
    rows=st.integers(1, 3),
    cols=st.integers(1, 4),
)
def test_patches_and_sum_patches_are_transposed(seed: int, height: int, width: int, rows: int, cols: int) -> None:
    x, size = normal(2, 3, height, width, seed=seed), (rows, cols)
    columns = patches(x, size)
    p = normal(*columns.shape, seed=seed + 1)
    torch.testing.assert_close((columns * p).sum(), (x * sum_patches(p, (height, width), size)).sum())
    kernel = normal(1, 3, rows, cols, seed=seed + 3)
    torch.testing.assert_close(kernel.flatten(1) @ columns, F.conv2d(x, kernel).flatten(2))


def everything(channels: int) -> list[Tensor]:
    initial = InitialFilters(in_channels=channels)
    regularizer = FieldsOfExperts(
        3, 3, log_weight=0, log_width=-1, weak_convexity=0.5, initial_filters=initial
    ).double()
    x, v = normal(3, 2, 9, 7, seed=1), normal(3, 2, 9, 7, seed=2)
    keep = torch.tensor([2, 0])
    value, grad = regularizer.value_and_grad(x)
    hessian = regularizer.hessian(x)
    maximum = regularizer.filtered_maximum(v)
    return [value, grad, hessian(v), hessian.select(keep)(v[keep]), maximum, *regularizer.parameter_vjp(x, v)]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("block", [1, 7, 40, 90, 10**6])
def test_results_do_not_depend_on_the_size_of_blocks(
    block: int, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECON_KERNELS", "off")  # which have blocks of their own
    expected = everything(channels)
    monkeypatch.setattr(filter_bank, "BLOCK", block)
    for mine, reference in zip(everything(channels), expected, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_are_the_same_to_the_bit_with_any_number_of_threads(
    threads: int, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECON_KERNELS", "off")
    monkeypatch.setattr(filter_bank, "BLOCK", 7)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    expected = everything(channels)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for mine, reference in zip(everything(channels), expected, strict=True):
        assert torch.equal(mine, reference)


def test_initial_filters() -> None:
    for kind in ("dct", "normal"):
        filters = make_filters(kind, 8, 3, seed=3)
        assert filters.shape == (8, 3, 3)
        assert float(filters.sum((1, 2)).abs().max()) < 1e-14
        torch.testing.assert_close(filters, make_filters(kind, 8, 3, seed=3), rtol=0, atol=0)
    cosines = make_filters("dct", 8, 3, seed=0).flatten(1)
    off = cosines @ cosines.T - torch.diag((cosines @ cosines.T).diagonal())
    assert float(off.abs().max()) < 1e-14  # orthogonal
    with pytest.raises(ValueError, match="9 were asked for"):
        make_filters("dct", 9, 3, seed=0)
    with pytest.raises(ValueError, match="'wavelet'"):
        make_filters("wavelet", 2, 3, seed=0)

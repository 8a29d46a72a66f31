"""Banks of convolution filters: fast evaluation in cache-sized blocks, and a guaranteed bound of their norm.

(c_k * x)_p = sum_q c_k[q] x[p + q] wherever the filter lies within the image ("valid" correlation): no pixel outside
the image is made up, and every bank is a part of the convolution on the infinite grid, which bounds its norm.
Filters of C channels couple those of images: c_k * x = sum_a c_ka * x_a.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

# Filtered pixels of a block. A block's patches and filtered images (about 100 values per pixel in single precision)
# then stay in the cache of one core. Measured best between 2,000 and 8,000 on CPUs with 1 to 2 MB of cache per core.
BLOCK = 4096

Result = TypeVar("Result")


class Response(NamedTuple):
    r"""\|c^_k\|^2 of filters c_k of s x t pixels, ``(K, 2 s, t + 1)`` in float64: one half of a grid of frequencies.

    These are trigonometric polynomials of degrees s - 1 and t - 1, which 2 s and 2 t points in one variable determine.
    So are the products conj(c^_ka) c^_kb of filters with C channels, ``(K, C, C, 2 s, t + 1)``, complex.
    """

    power: Tensor

    def spectrum(self, weights: Tensor) -> Tensor:
        """sum_k w_k |c^_k|^2 on a grid that is eight times as fine, ``(..., K) -> (..., frequencies)``, float64.

        One half of the grid: the other one is equal. Weights and filters are combined where they are small; what is
        refined is one polynomial, not K. Differentiable in both. With C channels, ``(..., frequencies C)``: the
        eigenvalues of the C x C matrices sum_k w_k conj(c^_k) c^_k^T.
        """
        rows, cols = self.power.shape[-2], 2 * (self.power.shape[-1] - 1)
        weights = weights.double().to(self.power.dtype)
        coarse = (weights @ self.power.flatten(1)).unflatten(-1, self.power.shape[1:])
        # its coefficients, of both signs, of which the highest ones, s and t, are zero
        found = torch.fft.irfft2(coarse, s=(rows, cols))
        found = found.roll((rows // 2, cols // 2), (-2, -1))
        fine = F.pad(found, (0, 7 * cols, 0, 7 * rows)).roll((-(rows // 2), -(cols // 2)), (-2, -1))
        values = torch.fft.rfft2(fine).flatten(-2)
        if self.power.ndim == 3:
            return values.real
        matrices = values.movedim(-1, -3)
        finite = matrices.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)  # LAPACK raises errors for others
        found = torch.linalg.eigvalsh(torch.where(finite, matrices, 0.0))
        return torch.where(finite[..., 0], found, torch.nan).flatten(-2)

    @property
    def factor(self) -> float:
        r"""Of the supremum over all frequencies and the maximum of :meth:`spectrum`, at most, for weights >= 0.

        A trigonometric polynomial >= 0 of degree s - 1 in both variables is at most its maximum on M x M points over
        cos(pi (s - 1)/M)^2 (Ehlich and Zeller 1964). M = 16 s puts the factor below 1.04. With several channels, this
        holds of sum_k w_k \|v^T c^_k\|^2 for every v in C^C with \|\|v\|\| = 1, whose values are at most the largest
        eigenvalue, hence of the supremum over v, too, which is that eigenvalue.
        """
        rows, cols = self.power.shape[-2] // 2, self.power.shape[-1] - 1
        return 1 / (math.cos(math.pi * (rows - 1) / (16 * rows)) * math.cos(math.pi * (cols - 1) / (16 * cols)))


def frequency_response(kernels: Tensor) -> Response:
    """|c^_k|^2 of filters ``(K, s, t)``, products of the channels of ``(K, C, s, t)``; differentiable in them."""
    rows, cols = kernels.shape[-2:]
    transform = torch.fft.rfft2(kernels.double(), s=(2 * rows, 2 * cols))
    if kernels.ndim == 4:
        return Response(transform.conj()[:, :, None] * transform[:, None])
    return Response(transform.real.square() + transform.imag.square())


def spectral_bound(kernels: Tensor, weights: Tensor) -> Tensor:
    """A guaranteed and tight upper bound of ||sum_k w_k C_k^T C_k||, for weights ``(..., K)`` -> ``(...)``."""
    return weighted_supremum(frequency_response(kernels.detach()), weights)


def weighted_supremum(response: Response, weights: Tensor) -> Tensor:
    """:func:`spectral_bound` of kernels whose :func:`frequency_response` is known."""
    return response.factor * response.spectrum(weights.detach()).amax(-1)


def blocks(batch: int, rows: int, cols: int, size: float = BLOCK) -> Iterator[tuple[int, int, int, int]]:
    """Split ``batch`` filtered images of ``rows`` x ``cols`` into (first image, end, first row, end)."""
    images = int(max(1, min(size // (rows * cols), batch)))
    height = rows if images > 1 else int(max(1, min(rows, size // cols)))
    for i in range(0, batch, images):
        for r in range(0, rows, height):
            yield i, min(i + images, batch), r, min(r + height, rows)


def map_blocks(function: Callable[[int, int, int, int], Result], x: Tensor, size: tuple[int, int]) -> list[Result]:
    """``function(first image, end, first row, end)`` for every block of the filtered images of x, results in order.

    x has the shape (images, ..., height, width). On a CPU every thread takes its share of the blocks and works alone on
    each: operations on a block are too short to be shared, and threads that wait for each other in them cost a hundred
    times the work itself where other programs compete for the cores. On a GPU there is one block.
    """
    rows, cols = x.shape[-2] - size[0] + 1, x.shape[-1] - size[1] + 1
    work = list(blocks(len(x), rows, cols, math.inf if x.is_cuda else BLOCK))
    threads = 1 if x.is_cuda else max(1, min(torch.get_num_threads(), len(work)))

    def share(part: list[tuple[int, int, int, int]]) -> list[Result]:
        with torch.no_grad():  # off in every new thread
            return [function(*block) for block in part]

    if threads == 1:
        return share(work)
    bounds = [len(work) * k // threads for k in range(threads + 1)]
    parts = thread_pool(torch.get_num_threads(), os.getpid()).map(
        share, (work[a:b] for a, b in itertools.pairwise(bounds))
    )
    return list(itertools.chain.from_iterable(parts))


@functools.lru_cache(maxsize=1)
def thread_pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads that compute alone; ``process``, because a fork takes over the pool but not its threads."""
    return ThreadPoolExecutor(threads, "filter_bank", initializer=torch.set_num_threads, initargs=(1,))


def patches(x: Tensor, size: tuple[int, int]) -> Tensor:
    """All patches of ``(batch, channel, height, width)`` images as columns: ``(batch, patch values, positions)``."""
    windows = x.unfold(2, size[0], 1).unfold(3, size[1], 1)
    return windows.permute(0, 1, 4, 5, 2, 3).reshape(x.shape[0], x.shape[1] * size[0] * size[1], -1)


def sum_patches(columns: Tensor, shape: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The transpose of :func:`patches`, for images of height and width ``shape``."""
    return F.fold(columns, shape, size)


def check_image(x: Tensor, size: tuple[int, int], channels: int = 1) -> None:
    """Raise ``ValueError`` unless x is ``(batch, channel, height, width)``, no smaller than the filters, and fits them.

    Filters of one ``channels`` take images of any number of channels, one by one.
    """
    if x.ndim != 4:
        raise ValueError(f"images must have the shape (batch, channel, height, width), got {tuple(x.shape)}")
    if channels > 1 and x.shape[1] != channels:
        raise ValueError(
            f"the model couples {channels} channels (in_channels), but the images have {x.shape[1]}; valid are images "
            f"with {channels}, or a model with in_channels 1, which takes any images channel by channel"
        )
    if x.shape[2] < size[0] or x.shape[3] < size[1]:
        raise ValueError(f"images of {x.shape[2]}x{x.shape[3]} are smaller than the filters of {size[0]}x{size[1]}")


def make_filters(kind: str, filters: int, size: int, seed: int) -> Tensor:
    """Initial filters of mean zero, ``(filters, size, size)`` in float64; ``kind`` is normal, dct or multiscale.

    Raises
    ------
    ValueError
        for another kind, or more cosines than there are.
    """
    scale = (2 / (filters + 1)) ** 0.5
    if kind == "normal":
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(filters, size, size, dtype=torch.float64, generator=generator) * (scale / size)
        return weight - weight.mean((1, 2), keepdim=True)
    if kind not in ("dct", "multiscale"):
        raise ValueError(f"initial_filters is {kind!r}, but must be normal, dct or multiscale")
    sides = [size] if kind == "dct" else range(2, size + 1)
    available = size**2 - 1 if kind == "dct" else size * (size + 1) * (2 * size + 1) // 6 - size
    if filters > available:
        raise ValueError(f"{kind} has {available} filters of {size}x{size} pixels, {filters} were asked for")
    found, made = torch.zeros(filters, size, size, dtype=torch.float64), 0
    for side in sides:
        cosines = _cosines(side, min(side**2 - 1, filters - made))
        before = (size - side) // 2
        found[made : made + len(cosines), before : before + side, before : before + side] = cosines
        made += len(cosines)
        if made == filters:
            break
    return scale * found


def _cosines(size: int, count: int) -> Tensor:
    """The first discrete cosines of norm one without the constant, low frequencies first, ``(count, size, size)``."""
    points = math.pi * (torch.arange(size, dtype=torch.float64) + 0.5) / size
    lines = torch.cos(torch.arange(size)[:, None] * points)
    lines = lines / lines.norm(dim=1, keepdim=True)
    squares = torch.arange(size).square()
    order = torch.argsort((squares[:, None] + squares).flatten(), stable=True)[1 : count + 1]
    return lines[order // size][:, :, None] * lines[order % size][:, None, :]

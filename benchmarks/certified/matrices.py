"""Linear maps of images as matrices, from their definitions, in extended precision."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from benchmarks.certified.terms import LD, Array


def each_channel(matrix: Array, channels: int) -> Array:
    """The same matrix for every channel."""
    return np.kron(np.eye(channels, dtype=LD), matrix)


@lru_cache(maxsize=64)
def difference_matrices(shape: tuple[int, int], periodic: bool = False) -> tuple[Array, Array]:
    """Forward differences down the rows and along the columns, ``(H W, H W)`` each."""
    height, width = shape
    down, right = (np.zeros((height * width, height * width), dtype=LD) for _ in range(2))
    for i in range(height):
        for j in range(width):
            p = i * width + j
            for matrix, a, b, inside in (
                (down, (i + 1) % height, j, i + 1 < height),
                (right, i, (j + 1) % width, j + 1 < width),
            ):
                if inside or periodic:
                    matrix[p, a * width + b] += 1
                    matrix[p, p] -= 1
    return down, right


def correlation(kernel: Array, shape: tuple[int, int]) -> Array:
    """(c * x)_p = sum_q c[q] x[p + q] wherever the filter lies within the image."""
    return (kernel.reshape(-1) @ _shifts(kernel.shape, shape)).reshape(-1, shape[0] * shape[1])


@lru_cache(maxsize=256)
def _shifts(size: tuple[int, int], shape: tuple[int, int]) -> Array:
    """The matrices of filters with a single one, flat."""
    rows, cols = (n - s + 1 for n, s in zip(shape, size, strict=True))
    matrix = np.zeros((*size, rows, cols, *shape), dtype=LD)
    for a in range(size[0]):
        for b in range(size[1]):
            for i in range(rows):
                matrix[a, b, i, range(cols), i + a, np.arange(cols) + b] = 1
    return matrix.reshape(size[0] * size[1], -1)


def correlation_layer(kernels: Array, shape: tuple[int, int]) -> Array:
    """A layer of correlations, kernels ``(out, in, s, s)``, images ``(in, *shape)``."""
    return np.block([[correlation(k, shape) for k in row] for row in kernels])


def blur(kernel: Array, shape: tuple[int, int], reflect: bool) -> Array:
    """(A x)[p] = sum_q k[q] x[p - q], q from the centre of the kernel; x wraps around or is mirrored at its edges."""
    height, width = shape
    matrix = np.zeros((height * width, height * width), dtype=LD)

    def outside(i: int, n: int) -> int:
        if not reflect:
            return i % n
        i %= 2 * n
        return i if i < n else 2 * n - 1 - i

    rows, cols = kernel.shape
    for i in range(height):
        for j in range(width):
            for a in range(rows):
                for b in range(cols):
                    source = outside(i - a + rows // 2, height), outside(j - b + cols // 2, width)
                    matrix[i * width + j, source[0] * width + source[1]] += kernel[a, b]
    return matrix


def fourier_samples(mask: Array, maps: Array) -> Array:
    """Cartesian MRI as a real matrix: images and data are pairs of real and imaginary parts, origins at n // 2."""

    def transform(n: int) -> Array:
        k = (np.arange(n) - n // 2)[:, None] * (np.arange(n) - n // 2)[None]
        angle = 2 * np.arccos(LD(-1)) * (k % n).astype(LD) / n
        return (np.cos(angle) - 1j * np.sin(angle)) / np.sqrt(LD(n))

    height, width = mask.shape
    whole = np.kron(transform(height), transform(width)) * mask.reshape(-1, 1)
    parts = []
    for coil in maps:
        m = whole * coil.reshape(1, -1)
        parts.append(np.block([[m.real, -m.imag], [m.imag, m.real]]))
    return np.concatenate(parts)


def same_correlation(kernel: Array, shape: tuple[int, int]) -> Array:
    """(K p)[q] = sum_r k[r] p[q + r - s // 2], zero outside the image."""
    return (kernel.reshape(-1) @ _same_shifts(kernel.shape, shape)).reshape(shape[0] * shape[1], -1)


@lru_cache(maxsize=64)
def _same_shifts(size: tuple[int, int], shape: tuple[int, int]) -> Array:
    """The matrices of kernels with a single one, flat."""
    height, width = shape
    matrix = np.zeros((*size, height, width, height, width), dtype=LD)
    for a in range(size[0]):
        for b in range(size[1]):
            for i in range(height):
                for j in range(width):
                    p, q = i + a - size[0] // 2, j + b - size[1] // 2
                    if 0 <= p < height and 0 <= q < width:
                        matrix[a, b, i, j, p, q] = 1
    return matrix.reshape(size[0] * size[1], -1)

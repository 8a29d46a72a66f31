"""One picture from a file: values, shapes, and what happens to files that are no good."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from datasets.readers.pictures import LUMINANCE, DataError, read_image


def _random(shape: tuple[int, ...], dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


@pytest.mark.parametrize(("name", "dtype"), [("a.png", np.uint8), ("a.png", np.uint16), ("a.TIF", np.uint16)])
def test_integers_are_divided_by_their_largest_value(tmp_path: Path, name: str, dtype: type) -> None:
    pixels = _random((5, 7), dtype)
    pixels[0, :2] = 0, np.iinfo(dtype).max
    path = tmp_path / name
    if path.suffix == ".png":
        Image.fromarray(pixels).save(path)
    else:
        tifffile.imwrite(path, pixels)
    image = read_image(path)
    assert image.shape == (1, 5, 7)
    assert image.dtype == torch.float64
    assert image[0, 0, 0] == 0
    assert image[0, 0, 1] == 1
    np.testing.assert_array_equal(image[0].numpy(), pixels / np.iinfo(dtype).max)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_colour_tiff(tmp_path: Path, dtype: type, planar: str) -> None:
    pixels = _random((6, 5, 3))
    scaled = pixels / 255.0
    stored = (
        scaled.astype(np.float32) if dtype is np.float32 else pixels.astype(dtype) * (257 if dtype is np.uint16 else 1)
    )
    written = stored if planar == "contig" else np.moveaxis(stored, -1, 0)
    tifffile.imwrite(tmp_path / "a.tiff", written, photometric="rgb", planarconfig=planar)
    colour = read_image(tmp_path / "a.tiff", gray=False)
    np.testing.assert_allclose(colour.numpy(), np.moveaxis(scaled, -1, 0), atol=1e-7)
    gray = read_image(tmp_path / "a.tiff")
    np.testing.assert_allclose(gray[0].numpy(), scaled @ np.asarray(LUMINANCE), atol=1e-7)


def test_luminance_keeps_gray_values() -> None:
    assert sum(LUMINANCE) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped(tmp_path: Path, mode: str) -> None:
    pixels = _random((4, 4, len(mode)))
    Image.fromarray(pixels, mode=mode).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", gray=False)
    np.testing.assert_allclose(image.numpy(), np.moveaxis(pixels[..., :-1], -1, 0) / 255)


def test_palette_and_black_and_white(tmp_path: Path) -> None:
    black_white = _random((8, 8)) > 100
    Image.fromarray(black_white).save(tmp_path / "bw.png")
    np.testing.assert_array_equal(read_image(tmp_path / "bw.png")[0].numpy(), black_white)
    colour = Image.fromarray(_random((8, 8, 3))).quantize(16)
    colour.save(tmp_path / "p.png")
    expected = np.asarray(colour.convert("RGB")) / 255
    np.testing.assert_allclose(read_image(tmp_path / "p.png", gray=False).numpy(), np.moveaxis(expected, -1, 0))


@pytest.mark.parametrize("compression", ["raw", "packbits", "tiff_adobe_deflate", "tiff_lzw"])
def test_compressed_tiff(tmp_path: Path, compression: str) -> None:
    pixels = _random((20, 30))
    Image.fromarray(pixels).save(tmp_path / "a.tif", compression=compression)
    np.testing.assert_allclose(read_image(tmp_path / "a.tif")[0].numpy(), pixels / 255)


def test_inverted_tiff(tmp_path: Path) -> None:
    pixels = _random((9, 9))
    tifffile.imwrite(tmp_path / "a.tif", 255 - pixels, photometric="miniswhite")
    np.testing.assert_allclose(read_image(tmp_path / "a.tif")[0].numpy(), pixels / 255)


def test_jpeg(tmp_path: Path) -> None:
    smooth = np.tile(np.linspace(0, 255, 32).astype(np.uint8), (16, 1))
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    np.testing.assert_allclose(read_image(tmp_path / "a.jpg")[0].numpy(), smooth / 255, atol=0.02)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 3)])
def test_floating_point_is_taken_as_it_is(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(size=shape)
    np.save(tmp_path / "a.npy", values)
    image = read_image(tmp_path / "a.npy", gray=False)
    np.testing.assert_array_equal(image.numpy(), np.moveaxis(values.reshape(4, 6, -1), -1, 0))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "zip.tif", "a.npy"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_truncated_files_are_named(tmp_path: Path, name: str, kept: float) -> None:
    path, pixels = tmp_path / name, _random((64, 64))
    if name == "a.npy":
        np.save(path, pixels)
    elif name == "zip.tif":
        tifffile.imwrite(path, pixels, compression="zlib", rowsperstrip=8)
    elif name == "a.tif":
        tifffile.imwrite(path, pixels)
    else:
        Image.fromarray(pixels).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(DataError, match=rf"{name}: cannot be read"):
        read_image(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpeg", "a.tiff", "a.npy"])
def test_files_that_are_something_else_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("hello")
    with pytest.raises(DataError, match=rf"{name}: cannot be read"):
        read_image(tmp_path / name)


def test_damaged_png_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(_random((64, 64))).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.png: cannot be read"):
        read_image(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["a.tif", "a.npy"])
def test_values_that_are_not_finite_are_named(tmp_path: Path, value: float, name: str) -> None:
    values = np.zeros((4, 5), dtype=np.float32)
    values[1, 2] = value
    if name == "a.npy":
        np.save(tmp_path / name, values)
    else:
        tifffile.imwrite(tmp_path / name, values)
    with pytest.raises(DataError, match=rf"{name}: 1 of 20 values are NaN or infinite"):
        read_image(tmp_path / name)


def test_colour_png_of_16_bits_is_refused_rather_than_rounded(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + _random((5, 3), np.uint16).tobytes() for _ in range(4))
    header = struct.pack(">IIBBBBB", 5, 4, 16, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    with pytest.raises(DataError, match=r"a\.png: 16 bits per channel .* TIFF"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("values", [np.zeros((2, 3, 4, 5)), np.zeros(3), np.zeros((3, 4, 7)), np.zeros((0, 4))])
def test_arrays_of_other_shapes_are_named(tmp_path: Path, values: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(DataError, match=r"a\.npy: an array of shape"):
        read_image(tmp_path / "a.npy")


@pytest.mark.parametrize("values", [np.zeros((3, 3), np.int32), np.zeros((3, 3), np.complex64)])
def test_values_of_other_types_are_named(tmp_path: Path, values: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(DataError, match=r"a\.npy: values of type"):
        read_image(tmp_path / "a.npy")


def test_stacks_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", _random((4, 8, 8)), photometric="minisblack")
    with pytest.raises(DataError, match=r"a\.tif: holds a stack"):
        read_image(tmp_path / "a.tif")


def test_missing_file_and_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no\.png: no such file"):
        read_image(tmp_path / "no.png")
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match=r"a\.txt: unknown kind .*\.png"):
        read_image(tmp_path / "a.txt")

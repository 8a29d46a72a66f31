"""Folders, the built-in pictures, and the geometry of crops and batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.readers.pictures import DataError
from datasets.sources.images import BuiltinImages, ColourFolder, ImageFolder, center_crop, resize, stack_images


def _write(path: Path, height: int = 8, width: int = 8, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width), value, dtype=np.uint8)).save(path)


def test_folder_is_sorted_and_passes_over_what_is_no_image(tmp_path: Path) -> None:
    for value, name in enumerate(("c.jpg", "a.PNG", "b.tif", ".hidden.png", "inside/d.png")):
        _write(tmp_path / name, value=value)
    (tmp_path / "notes.txt").touch()
    folder = ImageFolder(tmp_path)
    assert [Path(name).name for name in folder.names] == ["a.PNG", "b.tif", "c.jpg"]
    assert len(list(folder)) == len(folder) == 3
    assert folder[1][0, 0, 0] == 2 / 255
    assert [Path(name).name for name in ImageFolder(tmp_path, recursive=True).names][-1] == "d.png"
    assert [Path(name).name for name in folder.subset(1).names] == ["b.tif", "c.jpg"]
    assert len(folder.subset(0, 2)) == 2


def test_single_file(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((3, 4)))
    assert ImageFolder(tmp_path / "a.npy")[0].shape == (1, 3, 4)


def test_builtin_pictures_in_colour() -> None:
    names: list[str] = []
    for split in ("train", "val", "test"):
        images = BuiltinImages(split, size=64, colour=True)
        names += images.names
        batch = stack_images(images, images.names)
        assert batch.shape == (len(images), 3, 64, 64)
        assert 0 <= float(batch.min()) < float(batch.max()) <= 1
        assert ((batch - batch.mean(1, keepdim=True)).flatten(1).std(dim=1) > 0.01).all()
    assert len(set(names)) == len(names) == 9
    gray, colour = BuiltinImages("test", size=64), BuiltinImages("test", size=64, colour=True)
    luminance = torch.tensor([0.2125, 0.7154, 0.0721], dtype=torch.float64)
    i, j = (images.names.index("chelsea") for images in (gray, colour))
    torch.testing.assert_close(torch.tensordot(luminance, colour[j], 1), gray[i][0])


def test_folders_in_colour_name_what_is_gray(tmp_path: Path) -> None:
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    _write(tmp_path / "b.png")
    folder = ColourFolder(tmp_path, crop_size=4)
    np.testing.assert_array_equal(folder[0].numpy() * 255, np.moveaxis(pixels[:, :4], -1, 0))
    with pytest.raises(DataError, match=r"b\.png: a gray picture among those in colour; leave it out, or take all in"):
        folder[1]


def test_missing_and_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        ImageFolder(tmp_path / "nowhere")
    (tmp_path / "readme.txt").touch()
    with pytest.raises(DataError, match=r"the folder has no image; looked for .*\.png"):
        ImageFolder(tmp_path)


def test_builtin_pictures() -> None:
    names: list[str] = []
    for split in ("train", "val", "test"):
        images = BuiltinImages(split, size=64)
        names += images.names
        batch = stack_images(images, images.names)
        assert batch.shape == (len(images), 1, 64, 64)
        assert batch.min() >= 0
        assert batch.max() <= 1
        assert (batch.std(dim=(1, 2, 3)) > 0.02).all()
    assert len(set(names)) == len(names)
    with pytest.raises(DataError, match="split is 'dev'; valid are train, val, test"):
        BuiltinImages("dev")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="chelsea: the picture has 300x451 pixels"):
        BuiltinImages("test", size=301)[1]


def test_center_crop() -> None:
    image = torch.arange(5 * 8.0).reshape(1, 5, 8)
    torch.testing.assert_close(center_crop(image, 3, "a"), image[:, 1:4, 2:5])
    with pytest.raises(DataError, match=r"a: the picture has 5x8 pixels.*6.*1 to 5"):
        center_crop(image, 6, "a")


def test_resize_keeps_constants_range_and_squares() -> None:
    constant = torch.full((1, 30, 20), 0.3, dtype=torch.float64)
    torch.testing.assert_close(resize(constant, 7, "a"), constant[:, :7, :7])
    image = torch.rand(1, 20, 30, dtype=torch.float64)
    torch.testing.assert_close(resize(image, 20, "a"), center_crop(image, 20, "a"), rtol=0, atol=0)
    # The checkerboard of one pixel averages out: without antialiasing it would leave stripes.
    checkerboard = (torch.arange(64)[:, None] + torch.arange(64)).remainder(2).double()[None]
    assert (resize(checkerboard, 16, "a") - 0.5).abs().max() < 0.1
    with pytest.raises(DataError, match="20x30"):
        resize(image, 21, "a")


def test_sources_check_their_sizes(tmp_path: Path) -> None:
    _write(tmp_path / "a.png", 10, 20)
    assert ImageFolder(tmp_path, crop_size=6)[0].shape == (1, 6, 6)
    assert ImageFolder(tmp_path, size=6)[0].shape == (1, 6, 6)
    with pytest.raises(DataError, match=r"a\.png: the picture has 10x20"):
        ImageFolder(tmp_path, crop_size=11)[0]
    with pytest.raises(DataError, match="exclude each other"):
        ImageFolder(tmp_path, size=5, crop_size=5)
    with pytest.raises(DataError, match="crop_size is 0"):
        ImageFolder(tmp_path, crop_size=0)


def test_batch_of_different_sizes_names_both_pictures(tmp_path: Path) -> None:
    for name, width in (("a.png", 8), ("b.png", 8), ("c.png", 9)):
        _write(tmp_path / name, 8, width)
    folder = ImageFolder(tmp_path)
    with pytest.raises(DataError, match=r"a\.png has 8x8 pixels, .*c\.png has 8x9 pixels; set patch_size or crop_size"):
        stack_images(folder, folder.names)
    with pytest.raises(DataError, match="no picture"):
        stack_images([], [])


def test_real_photographs(shared_data: Path) -> None:
    folder = ImageFolder(shared_data / "kodak_gray_96")
    batch = stack_images(folder, folder.names)
    assert batch.shape == (25, 1, 96, 96)
    assert batch.min() >= 0
    assert batch.max() <= 1

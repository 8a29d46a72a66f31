"""Small files that declare, or unpack to, very much are refused before anything is read. Limits here are megabytes."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from datasets import DataError, read_dicom, read_image
from datasets.kspace.files import read_kspace
from datasets.readers.hdf5 import find_dataset, open_hdf5, read_fastmri
from datasets.readers.limits import inflated_size, load_array, load_arrays
from datasets.scans.reading import read_counts, read_numbers
from models.files.checkpoints import CheckpointError, load_checkpoint
from models.files.storage import ModelFileError, load_model
from recon.limits import memory_limit, parse_memory, set_memory_limit

LIMIT = 20_000_000
SIDE = 4_000  # 16 million values: 128 MB as float64


@pytest.fixture(autouse=True)
def _limit() -> Iterator[None]:
    set_memory_limit(LIMIT)
    yield
    set_memory_limit(None)


def hdf5(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str = "u1", **options: Any) -> None:
    """Datasets without values: nothing is stored, and zeros are read."""
    h5py = pytest.importorskip("h5py", reason="needs the extra data")
    with h5py.File(path, "w") as file:
        for name, shape in shapes.items():
            file.create_dataset(name, shape, dtype, **options)


def dxchange(path: Path) -> None:
    hdf5(path, {"exchange/data": (SIDE, 1, SIDE), "exchange/data_white": (1, 1, SIDE), "exchange/theta": (SIDE,)})


def many_angles(path: Path) -> None:
    hdf5(path, {"exchange/data": (4, 1, 4), "exchange/data_white": (1, 1, 4), "exchange/theta": (SIDE**2,)})


def large_chunk(path: Path) -> None:
    """A row is small, but lies in a chunk with all others."""
    shape = (4, SIDE**2 // 16, 4)
    hdf5(path, {"exchange/data": shape}, chunks=shape, compression="gzip")


def fastmri(path: Path) -> None:
    hdf5(path, {"kspace": (1, 4, 1_000, 1_000)}, "c8")


def tiff(path: Path) -> None:
    tifffile.imwrite(path, np.zeros((SIDE, SIDE), np.uint8), compression="zlib")


def png(path: Path) -> None:
    Image.new("L", (SIDE, SIDE)).save(path)


def npy_header(shape: str, descr: str = "'<f8'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text + b"\n"


def npz(path: Path) -> None:
    np.savez_compressed(path, sinogram=np.zeros((SIDE, SIDE), np.uint8), angles=np.arange(3.0))


def many_arrays(path: Path) -> None:
    """None is too large alone."""
    np.savez_compressed(path, **{f"a{k}": np.zeros(10**6) for k in range(3)})


def matlab(path: Path) -> None:
    scipy = pytest.importorskip("scipy.io")
    content = {"CtDataFull": {"sinogram": np.zeros((SIDE, SIDE), np.uint8)}}
    scipy.savemat(path, content, do_compression=True)


def empty_structures(path: Path) -> None:
    """A million structures without a field take no bytes."""
    flags, shape = struct.pack("<IIII", 6, 8, 2, 0), struct.pack("<IIii", 5, 8, 1_000, 1_000)
    name = struct.pack("<II", 1, 16) + b"CtDataFull".ljust(16, b"\0")
    fields = struct.pack("<HHi", 5, 4, 8) + struct.pack("<II", 1, 0)
    content = flags + shape + name + fields
    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
    path.write_bytes(header + struct.pack("<II", 14, len(content)) + content)


def dicom(path: Path, deflated: bool = False, **elements: Any) -> None:
    pydicom = pytest.importorskip("pydicom", reason="needs the extra data")
    dataset = pydicom.Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = pydicom.uid.CTImageStorage, "1.2.3"
    dataset.Modality, dataset.PixelSpacing = "CT", [1.0, 1.0]
    dataset.RescaleSlope, dataset.RescaleIntercept = "1", "0"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = SIDE, SIDE, 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelData = bytes(LIMIT + 2 if deflated else 2)
    dataset.update(elements)
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    kinds = pydicom.uid.DeflatedExplicitVRLittleEndian, pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.TransferSyntaxUID = kinds[0] if deflated else kinds[1]
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)


BOMBS: dict[str, tuple[str, Callable[[Path], None], Callable[[Path], Any]]] = {
    "dxchange": ("a.h5", dxchange, read_counts),
    "many angles": ("a.h5", many_angles, lambda path: read_counts(path, dark=0.0)),
    "large chunk": ("a.h5", large_chunk, read_counts),
    "fastmri": ("a.h5", fastmri, read_fastmri),
    "tiff": ("a.tif", tiff, read_image),
    "png": ("a.png", png, read_image),
    "npz": ("a.npz", npz, read_numbers),
    "many arrays": ("a.npz", many_arrays, read_numbers),
    "matlab": ("a.mat", matlab, read_numbers),
    "empty structures": ("a.mat", empty_structures, read_numbers),
    "dicom": ("a.dcm", dicom, read_dicom),
    "deflated dicom": ("a.dcm", lambda path: dicom(path, deflated=True), read_dicom),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(tmp_path: Path, name: str) -> None:
    file, write, read = BOMBS[name]
    path = tmp_path / file
    write(path)
    assert path.stat().st_size < 300_000
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=rf"{file}: .* would take .* but the limit is 20 MB") as caught:
            read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "--max-memory" in str(caught.value)
    assert peak < LIMIT


@pytest.mark.parametrize("name", ["tiff", "png"])
def test_smaller_ones_are_read(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "SIDE", 40)
    file, write, read = BOMBS[name]
    write(tmp_path / file)
    assert read(tmp_path / file).shape == (1, 40, 40)


def test_selections_of_large_datasets(tmp_path: Path) -> None:
    """A slice of a file that is larger than memory is read, with the bounds of the selection."""
    hdf5(tmp_path / "a.h5", {"data": (1_000, 1_000, 100)})
    with open_hdf5(tmp_path / "a.h5") as file:
        data = find_dataset(file, "data", tmp_path / "a.h5")
        assert (data.shape, data.ndim, len(data)) == ((1_000, 1_000, 100), 3, 1_000)
        assert data[3].shape == (1_000, 100)
        assert data[:, 2].shape == (1_000, 100)
        assert data[-1, ..., 5:7].shape == (1_000, 2)
        for whole in (np.asarray, lambda d: d[()], lambda d: d[...], lambda d: d[:, ::2], lambda d: d[[0, 1]]):
            with pytest.raises(DataError, match="/data of shape"):
                whole(data)


@pytest.mark.parametrize(
    "content",
    [
        npy_header("(1000000000000,)"),
        npy_header("(4, 5)") + bytes(100),
        npy_header("(99999999999999999999999, 9999999999999999999999)"),
        npy_header("(-1, 3)") + bytes(24),
        npy_header("(2,)", "'|O'") + bytes(16),
        npy_header("(2,)", "'<q9'") + bytes(16),
        npy_header("(" * 5000),
        npy_header("(2,)", "[('a', '<f8'), ('a', '<f8')]") + bytes(32),
        npy_header("{}"),
        npy_header("(1.5,)") + bytes(16),
        npy_header("(True, 2)")[:-4],
        b"\x93NUMPY\x03\x00\xff\xff\xff\xff",
        b"\x93NUMPY\x09\x00",
        b"\x93NUMPY",
        b"",
        b"\x80\x04cos\nsystem\n.",
    ],
)
def test_hostile_npy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    for read in (load_array, read_image, read_kspace, lambda path: read_numbers(path, np.arange(3.0), None, 1.0)):
        with pytest.raises(DataError, match=r"a\.npy: "):
            read(tmp_path / "a.npy")


def test_hostile_npz(tmp_path: Path) -> None:
    """A header that declares more than the member holds; a member that is no array; an archive that is none."""
    for content in (npy_header("(10000000,)"), b"nothing"):
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("sinogram.npy", content)
        with pytest.raises(DataError, match=r"a\.npz: cannot be read"):
            load_arrays(tmp_path / "a.npz", "sinogram")
    whole = (tmp_path / "a.npz").read_bytes()
    for end in range(0, len(whole), 7):
        (tmp_path / "a.npz").write_bytes(whole[:end])
        with pytest.raises(DataError, match=r"a\.npz: "):
            load_arrays(tmp_path / "a.npz", "sinogram")


def test_checkpoints_that_unpack_to_more(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(LIMIT + 1))
    with pytest.raises(CheckpointError, match=r"a\.ckpt: unpacked, it would take 20 MB"):
        load_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ModelFileError, match=r"a\.ckpt: unpacked, it would take 20 MB"):
        load_model(tmp_path / "a.ckpt")


def test_the_size_of_a_stream() -> None:
    content = np.random.default_rng(0).bytes(3_000_000)
    assert inflated_size(zlib.compress(content)) == len(content)
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    raw = stream.compress(bytes(3_000_000)) + stream.flush()
    assert inflated_size(raw, raw=True) == 3_000_000
    assert LIMIT < inflated_size(zlib.compress(bytes(2 * LIMIT))) < LIMIT + 2**21
    with pytest.raises(zlib.error):
        inflated_size(io.BytesIO(b"no stream").getvalue())


def test_amounts_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    amounts = {"4": 4e9, "4GB": 4e9, " 0.5 g": 5e8, "500MB": 5e8, "2tb": 2e12, "64kB": 64e3}
    assert {text: parse_memory(text) for text in amounts} == amounts
    for text in ("", "0", "-1", "nan", "inf", "4 apples", "1.2.3", "B", "1e3"):
        with pytest.raises(ValueError, match="valid are amounts of memory"):
            parse_memory(text)
    set_memory_limit(None)
    assert 0 < memory_limit() < 1e15
    monkeypatch.setenv("RECON_MAX_MEMORY", "3MB")
    assert memory_limit() == 3e6
    monkeypatch.setenv("RECON_MAX_MEMORY", "much")
    with pytest.raises(ValueError, match="RECON_MAX_MEMORY is 'much'"):
        memory_limit()


@pytest.mark.parametrize(("place", "value"), [(17, 0x3F), (16, 99), (48, 77), (24, 9), (32, 1)])
def test_matlab_files_that_would_end_the_process(tmp_path: Path, place: int, value: int) -> None:
    """A complex array without imaginary part, unknown classes and types, wrong dimensions: scipy trusts them."""
    scipy = pytest.importorskip("scipy.io")
    path = tmp_path / "a.mat"
    scipy.savemat(path, {"x": np.ones((2, 3))})
    content = bytearray(path.read_bytes())
    content[128 + place] = value
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"a\.mat: cannot be read as a MATLAB file"):
        read_numbers(path)

"""``recon reconstruct`` on pictures whose scan or k-space is simulated: what is simulated, written and refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from datasets import read_dicom
from datasets.physics import MU_UNIT, attenuation_to_hu, hu_to_attenuation
from recon.operators import ParallelBeam
from tests.commands.reconstruct.slices import refused, run, write_slice

CT = ("--task", "ct", "--method", "tv", "--views", "24")


@pytest.fixture
def ct_slice(tmp_path: Path) -> Path:
    pytest.importorskip("astra", reason="needs the extra ct")
    write_slice(tmp_path / "slice.dcm")
    return tmp_path / "slice.dcm"


def test_ct_slice(ct_slice: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The slice is its own reference, and the result is a slice in HU of the same patient and place."""
    status, output, report = run(ct_slice, *CT, "--photons", "1e5")
    assert status == 0
    assert "scan of the picture on the same pixels, 100000 photons for each ray, seed 0" in report["simulated"]
    assert "simulated data: scan of the picture" in capsys.readouterr().out
    assert report["psnr"] > report["baseline_psnr"] + 2
    assert report["details"]["geometry"]["pixel_size"] == [2, 2]
    assert report["details"]["geometry"]["angles_degrees"] == pytest.approx(7.5 * np.arange(24))
    assert report["residual"] == pytest.approx(report["noise"], rel=0.03)
    image, back = np.load(output / "slice.npy"), read_dicom(output / "slice.dcm", clip=None)
    assert np.abs(back.image.numpy() - attenuation_to_hu(torch.from_numpy(image)).numpy()).max() <= 0.5
    assert (back.patient, back.pixel_size) == ("anna", (2.0, 2.0))
    true = hu_to_attenuation(read_dicom(ct_slice).image).numpy()
    assert np.sqrt(((image - true) ** 2).mean()) < 0.2 * true.std()


def test_reduced_slice_keeps_its_field_of_view(ct_slice: Path) -> None:
    _, output, report = run(ct_slice, *CT[:2], "--method", "fbp", "--views", "8", "--noise", "0.01", "--size", "16")
    assert report["details"]["geometry"]["pixel_size"] == [4, 4]
    assert read_dicom(output / "slice.dcm").pixel_size == (4.0, 4.0)


def test_noise_is_that_of_the_seed_and_the_line_integrals(ct_slice: Path) -> None:
    """Noise of the level that is stated, the same for the same seed."""
    images = []
    for seed in ("1", "1", "2"):
        _, output, report = run(ct_slice, *CT, "--noise", "0.05", "--weight", "0.1", "--seed", seed)
        images.append(np.load(output / "slice.npy"))
        assert report["noise"] == pytest.approx(0.05)
    assert np.array_equal(images[0], images[1])
    assert not np.allclose(images[0], images[2])


def test_angle_range_and_geometry_file(ct_slice: Path) -> None:
    options = ("--task", "ct", "--method", "fbp", "--noise", "0.01")
    _, _, report = run(ct_slice, *options, "--views", "4", "--angle-range", "10", "50")
    assert report["details"]["geometry"]["angles_degrees"] == pytest.approx([10, 20, 30, 40])
    geometry = ct_slice.with_name("geometry.yaml")
    geometry.write_text(yaml.safe_dump(ParallelBeam.equispaced((16, 16), 3.0, 10).to_dict()))
    _, _, report = run(ct_slice, *options, "--geometry", str(geometry), "--views", "5")
    assert report["details"]["geometry"]["angles_degrees"] == pytest.approx([0, 36, 72, 108, 144])
    assert report["shape"] == [16, 16]


def test_pictures_and_folders(ct_slice: Path) -> None:
    """Pictures on [0, 1] are µ / 0.0814 mm^-1 on a field of view of 300 mm; a folder is one problem after the other."""
    folder = ct_slice.parent / "pictures"
    folder.mkdir()
    values = np.zeros((16, 16))
    values[4:12, 4:12] = 0.2
    Image.fromarray((255 * values).astype(np.uint8)).save(folder / "a.png")
    np.save(folder / "b.npy", values)
    _, output, report = run(folder, "--task", "ct", "--method", "fbp", "--views", "40", "--noise", "0.001")
    assert [entry["name"] for entry in report["images"]] == ["a", "b"]
    assert report["details"]["geometry"]["pixel_size"] == pytest.approx([300 / 16] * 2)
    assert np.load(output / "b.npy")[6:10, 6:10].mean() == pytest.approx(0.2 * MU_UNIT, rel=0.05)
    assert not (output / "a.dcm").exists()


@pytest.mark.parametrize("mask", ["random", "equispaced", "radial", "poisson"])
def test_mr_slice(tmp_path: Path, mask: str) -> None:
    values = write_slice(tmp_path / "slice.dcm", 48, "MR")
    options = ("--task", "mri", "--method", "tv", "--mask", mask, "--acceleration", "2", "--coils", "3", "--seed", "3")
    status, output, report = run(tmp_path / "slice.dcm", *options, "--noise", "5")
    assert status == 0
    assert f"mask {mask}" in report["simulated"]
    assert report["details"]["sampling"]["acceleration"] == pytest.approx(2, rel=0.05)
    assert report["details"]["sampling"]["coils"] == 3
    assert (report["noise"], report["noise_rule"]) == (pytest.approx(5), "given")
    assert report["residual"] == pytest.approx(5, rel=0.03)
    assert report["psnr"] > report["baseline_psnr"] + 2
    image = np.abs(np.load(output / "slice.npy"))
    assert np.sqrt(((image - values) ** 2).mean()) < 0.2 * values.std()
    back = read_dicom(output / "slice.dcm", "MR").image.numpy()
    assert np.abs(back - image).max() <= 1e-4 * image.max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--views", "8"), "give its noise, either --noise .* or --photons"),
        (("--noise", "0.01"), "give --views"),
        (("--views", "8", "--noise", "1", "--photons", "9"), "--noise and --photons exclude each other"),
        (("--views", "8", "--noise", "1", "--reference", "x.npy"), "--reference does not go with"),
        (("--views", "8", "--noise", "1", "--counts", "--photons", "3"), "exclude each other"),
        (("--views", "8", "--photons", "1e-9"), "no ray has a photon left"),
        (("--views", "8", "--noise", "1", "--size", "64"), "less than the square of side 64"),
        (("--views", "8", "--noise", "1", "--index", "1"), "there is no slice 1"),
        (("--views", "8", "--noise", "1", "--mask", "radial"), "--mask belongs to --task mri"),
        (("--views", "8", "--noise", "1", "--angle-range", "90", "0"), "START < STOP"),
        (("--views", "8", "--noise", "1", "--angle-range", "0", "400"), "START < STOP"),
        (("--views", "8", "--noise", "1", "--seed", "-1"), "--seed is -1, but must be at least 0"),
    ],
)
def test_refused_for_ct(ct_slice: Path, options: tuple[str, ...], message: str) -> None:
    refused(message, ct_slice, "--task", "ct", "--method", "tv", *options)


def test_refused_for_mri(tmp_path: Path) -> None:
    write_slice(tmp_path / "mr.dcm", modality="MR")
    mri = ("--task", "mri", "--method", "tv")
    refused("give its --noise .* 1 % of the largest value", tmp_path / "mr.dcm", *mri)
    refused("--nonnegative does not go with MRI", tmp_path / "mr.dcm", *mri, "--noise", "1", "--nonnegative")
    refused("acceleration is 0.5", tmp_path / "mr.dcm", *mri, "--noise", "1", "--acceleration", "0.5")
    refused("modality is MR; valid is CT", tmp_path / "mr.dcm", *CT, "--noise", "1")
    np.save(tmp_path / "negative.npy", -np.ones((8, 8)))
    refused("magnitudes of an MRI picture are not negative", tmp_path / "negative.npy", *mri, "--noise", "1")
    np.save(tmp_path / "nan.npy", np.full((8, 8), np.nan))
    refused("64 of 64 values are NaN", tmp_path / "nan.npy", *mri, "--noise", "1")
    (tmp_path / "empty").mkdir()
    refused("empty: the folder has no image", tmp_path / "empty", *mri, "--noise", "1")
    np.save(tmp_path / "kspace.npy", np.ones((8, 8), dtype=complex))
    refused("--coils does not go with .*measured", tmp_path / "kspace.npy", "--method", "tv", "--coils", "2")
    refused("holds complex values, as k-space does; use --task mri", tmp_path / "kspace.npy", *CT, "--noise", "1")


@pytest.mark.parametrize("acceleration", ["0", "-2", "0.5", "nan", "inf"])
def test_accelerations_below_one_are_refused(tmp_path: Path, acceleration: str):
    np.save(tmp_path / "picture.npy", np.ones((16, 16)))
    more = ("--task", "mri", "--method", "tv", "--noise", "0.1", "--acceleration", acceleration)
    refused("--acceleration .* at least 1", tmp_path / "picture.npy", *more)

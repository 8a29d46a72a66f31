"""``recon reconstruct``: nonnegativity, photons, single precision, LoDoPaB-CT, fastMRI and trained models."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import SheppLogan
from datasets.physics import MU_UNIT, transmission_counts
from datasets.readers.hdf5 import LODOPAB_MU_MAX
from datasets.scans.scan import lodopab_geometry
from models import FieldsOfExperts, TotalVariation
from models.files.storage import save_regularizer
from recon.lower_level import LBFGS, Energy, ProjectedLBFGS, WeightedSquaredL2
from recon.operators import CartesianMRI, ParallelBeam, RayTransform, channels_to_complex, complex_to_channels
from recon.operators.mri.sampling import random_lines
from tests.commands.reconstruct.slices import refused, run

SIZE, VIEWS, PHOTONS = 32, 24, 300.0
GEOMETRY = ParallelBeam.equispaced((SIZE, SIZE), 2.0, VIEWS)
SMALL = ("--size", str(SIZE), "--pixel-size", "2")
FIXED = ("--weight", "0.05", "--smoothing", "0.001", "--mu", "0.01")


def write_scan(path: Path, values: torch.Tensor) -> Path:
    spacing = GEOMETRY.detector_spacing
    np.savez(path, sinogram=values.numpy(), angles=np.asarray(GEOMETRY.angles), detector_spacing=spacing)
    return path


@pytest.fixture
def counts(tmp_path: Path) -> Path:
    """Photons that arrived, their line integrals in ``integrals.npz``, and the truth in ``true.npy``."""
    pytest.importorskip("astra", reason="needs the extra ct")
    mu = MU_UNIT * SheppLogan(SIZE)[0].double()
    photons = transmission_counts(RayTransform(GEOMETRY)(mu[None])[0, 0], PHOTONS, 0, 0)
    assert float(photons.min()) > 0
    write_scan(tmp_path / "integrals.npz", torch.log(PHOTONS / photons))
    np.save(tmp_path / "true.npy", mu[0].numpy())
    return write_scan(tmp_path / "counts.npz", photons)


def weighted_energy(counts: Path) -> Energy:
    """1/2 sum_j w_j ((A x)_j - y_j)^2 + 0.05 TV(x) + 0.005 ||x||^2 with w = photons / mean, built by hand."""
    with np.load(counts) as file:
        photons = torch.from_numpy(file["sinogram"])
    y = torch.log(PHOTONS / photons)[None, None] / MU_UNIT
    tv = TotalVariation(math.log(0.05), math.log(0.001 / MU_UNIT)).double().requires_grad_(False)
    return Energy(y, tv, RayTransform(GEOMETRY), WeightedSquaredL2((photons / photons.mean())[None]), mu=0.01)


@pytest.mark.parametrize("constraint", [(), ("--nonnegative",)])
def test_certificate_with_photons(counts: Path, constraint: tuple[str, ...]) -> None:
    """||x - x^|| <= error against the minimizer of the weighted energy, over x >= 0 or everywhere."""
    _, output, report = run(counts, *SMALL, *FIXED, "--method", "tv", "--photons", "300", "--counts", *constraint)
    energy = weighted_energy(counts)
    solve = ProjectedLBFGS() if constraint else LBFGS()
    exact = MU_UNIT * solve(energy, torch.zeros(1, 1, SIZE, SIZE, dtype=torch.float64), 1e-6).x[0, 0]
    image = torch.from_numpy(np.load(output / "counts.npy"))
    assert 0 < float((image - exact).norm()) <= report["error"] <= report["accuracy"]
    assert report["nonnegative"] is bool(constraint)
    assert (float(image.min()) >= 0) is bool(constraint)


def test_photons_give_weights_and_the_level_of_the_noise(counts: Path) -> None:
    """The residual of the truth is at the level, and so is the solution's; counts give what integrals do."""
    with np.load(counts) as file:
        photons = torch.from_numpy(file["sinogram"])
    options = (*SMALL, "--method", "tv", "--photons", "300", "--nonnegative")
    _, output, report = run(counts, *options, "--counts")
    assert report["noise"] == pytest.approx(float(photons.mean()) ** -0.5)
    truth = torch.from_numpy(np.load(counts.with_name("true.npy")))[None, None]
    difference = RayTransform(GEOMETRY)(truth)[0, 0] - torch.log(PHOTONS / photons)
    level = float((photons / photons.mean() * difference.square()).mean().sqrt())
    assert report["noise"] == pytest.approx(level, rel=0.05)
    assert report["residual"] == pytest.approx(report["noise"], rel=0.03)
    by_counts = np.load(output / "counts.npy")
    _, output, _ = run(counts.with_name("integrals.npz"), *options)
    assert np.allclose(np.load(output / "integrals.npy"), by_counts, atol=1e-8)


def test_weights_help(counts: Path) -> None:
    """With the best weight of TV for either, rays weighted by their photons give the better picture."""
    sweep = (*SMALL, "--method", "tv", "--choose", "sweep", "--reference", str(counts.with_name("true.npy")))
    integrals = counts.with_name("integrals.npz")
    _, _, plain = run(integrals, *sweep)
    _, _, weighted = run(integrals, *sweep, "--photons", "300")
    assert weighted["psnr"] > plain["psnr"]


def test_refused_counts(counts: Path) -> None:
    integrals = counts.with_name("integrals.npz")
    refused("--counts needs --photons", counts, *SMALL, "--method", "tv", "--counts")
    refused("--photons is -3.0, but must be positive", counts, *SMALL, "--method", "tv", "--photons", "-3")
    negative = write_scan(counts.with_name("negative.npz"), -torch.ones(VIEWS, GEOMETRY.detector_pixels))
    refused("counts of -1", negative, *SMALL, "--method", "tv", "--photons", "3", "--counts")
    wrong = counts.with_name("wrong.npz")
    angles = np.rad2deg(np.asarray(GEOMETRY.angles))
    values = np.load(integrals)["sinogram"]
    np.savez(wrong, sinogram=values, angles=angles, detector_spacing=2.0)
    refused("If these are degrees", wrong, *SMALL, "--method", "fbp")
    np.savez(wrong, sinogram=values, angles_degrees=np.asarray(GEOMETRY.angles), detector_spacing=2.0)
    refused("look like radians", wrong, *SMALL, "--method", "fbp")
    np.savez(wrong, data=values)
    refused("has no array 'sinogram'; it has data", wrong, *SMALL, "--method", "fbp")


def test_single_precision_states_what_it_can(counts: Path) -> None:
    """Rounding errors times ||A||^2 / mu exceed 1 % of the image: the default says so, and is reached."""
    options = (*SMALL, "--method", "tv", "--weight", "0.05")
    status, _, double = run(counts.with_name("integrals.npz"), *options)
    assert (status, double["accuracy_rule"]) == (0, "1 % of the norm of the first guess")
    status, _, single = run(counts.with_name("integrals.npz"), *options, "--dtype", "float32")
    assert (status, single["status"]) == (0, "converged")
    assert "5 times the rounding errors of float32" in single["accuracy_rule"]
    assert single["error"] <= single["accuracy"]
    assert double["accuracy"] < single["accuracy"] < 10 * double["accuracy"]
    accuracy = ("--accuracy", str(single["accuracy"] / 30), "--dtype", "float32")
    status, _, floor = run(counts.with_name("integrals.npz"), *options, *accuracy)
    assert (status, floor["status"], floor["accuracy_rule"]) == (1, "precision floor", "given")


def test_lodopab(tmp_path: Path) -> None:
    """Observations count lengths in m and µ in units of µ_max; the ground truth is the file beside."""
    h5py = pytest.importorskip("h5py", reason="needs the extra data")
    pytest.importorskip("astra", reason="needs the extra ct")
    phantom = SheppLogan(362)[0].double()
    views, size = list(range(0, 1000, 50)), lodopab_geometry().range_shape[1:]
    observation = np.zeros((2, *size), dtype=np.float32)
    exact = RayTransform(lodopab_geometry().select(views))(phantom[None])[0, 0].numpy()
    observation[1, views] = exact / 1000
    data, truth = tmp_path / "observation_test_000.hdf5", tmp_path / "ground_truth_test_000.hdf5"
    for path, values in ((data, observation), (truth, np.stack([0 * phantom[0].numpy(), phantom[0].numpy()]))):
        with h5py.File(path, "w") as file:
            file["data"] = values
    options = ("--method", "tv", "--weight", "0.01", "--mu", "1", "--accuracy", "1", "--index", "1", "--views", "20")
    status, output, report = run(data, *options)
    assert status == 0
    assert report["name"] == "observation_test_000_1"
    assert report["residual"] < 0.02 * LODOPAB_MU_MAX * np.sqrt((exact**2).mean())
    assert report["psnr"] > report["baseline_psnr"] + 3
    mean = LODOPAB_MU_MAX * float(phantom.mean())
    assert np.load(output / "observation_test_000_1.npy").mean() == pytest.approx(mean, rel=0.02)
    refused_options = ("--method", "fbp", "--index", "2", "--output", str(tmp_path / "other"))
    with pytest.raises(ValueError, match="entry 2 of shape"):
        run(data, *refused_options)


def test_fastmri(tmp_path: Path) -> None:
    """k-space, mask and target of slice 1 of a fastMRI file of the single-coil track."""
    h5py = pytest.importorskip("h5py", reason="needs the extra data")
    picture = torch.cat([SheppLogan(48)[0].double(), torch.zeros(1, 48, 48, dtype=torch.float64)])
    mask = random_lines((48, 48), 2.0, 16, 0)
    full = channels_to_complex(CartesianMRI(torch.ones_like(mask))(picture[None]))[0]
    kspace = np.stack([np.zeros((48, 48)), 1e-4 * full[0].numpy()]).astype(np.complex64)
    with h5py.File(tmp_path / "file.h5", "w") as file:
        file["kspace"], file["mask"] = kspace, mask[0].numpy()
        file["reconstruction_esc"] = 1e-4 * np.stack([picture[0].numpy()] * 2)
    status, _, report = run(tmp_path / "file.h5", "--method", "tv", "--noise", "1e-6", "--index", "1")
    assert status == 0
    assert report["details"]["sampling"]["acceleration"] == pytest.approx(2)
    assert report["psnr"] > report["baseline_psnr"] + 3
    with h5py.File(tmp_path / "empty.h5", "w") as file:
        file["images"] = kspace
    with pytest.raises(ValueError, match="has no dataset"):
        run(tmp_path / "empty.h5", "--method", "tv")


@pytest.mark.parametrize("task", ["ct", "mri"])
def test_trained_model(counts: Path, task: str) -> None:
    """Fields of Experts in CT and MRI: the weight that fits the noise, and a certified solution."""
    regularizer = FieldsOfExperts(filters=4, size=3).double()
    model = save_regularizer(regularizer, counts.with_name("foe"), {"mu": 0.02})
    data, noise = counts.with_name("integrals.npz"), ("--photons", "300")
    if task == "mri":
        picture = SheppLogan(48)[0].double()
        operator = CartesianMRI(random_lines((48, 48), 2.0, 16, 0))
        y = operator(complex_to_channels(picture.to(torch.complex128)))
        y = y + 0.02 * torch.randn(y.shape, dtype=y.dtype) * operator.mask
        data, noise = counts.with_name("kspace.npy"), ("--noise", "0.02")
        np.save(data, channels_to_complex(y[0]).numpy())
    size = SMALL if task == "ct" else ()
    status, _, report = run(data, *size, "--model", str(model), "--choose", "discrepancy", *noise)
    assert (status, report["regularizer"], report["mu"]) == (0, "FieldsOfExperts", 0.02)
    assert report["residual"] == pytest.approx(report["noise"], rel=0.03)
    assert report["error"] <= report["accuracy"]

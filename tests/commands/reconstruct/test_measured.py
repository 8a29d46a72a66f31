"""``recon reconstruct`` for CT and MRI: what it writes, certifies, chooses and refuses."""

from __future__ import annotations

import errno
import math
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml

from datasets import SheppLogan
from datasets.kspace.noise import estimate_noise
from datasets.physics import MU_UNIT
from models import TotalVariation
from models.files.storage import save_regularizer
from recon.commands.reconstruct.main import guessed_task, main
from recon.lower_level import LBFGS, Energy
from recon.operators import CartesianMRI, ParallelBeam, RayTransform, channels_to_complex, simulated_sensitivities
from recon.operators.mri.sampling import random_lines
from recon.reconstruction.noise import sinogram_noise
from recon.reconstruction.variational import Weighted
from tests.commands.reconstruct.slices import refused, run

SIZE, VIEWS = 32, 24
GEOMETRY = ParallelBeam.equispaced((SIZE, SIZE), 2.0, VIEWS)
SIGMA = 0.02


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A noisy sinogram with its geometry, and the true attenuation in 1/mm beside it."""
    pytest.importorskip("astra", reason="needs the extra ct")
    mu = MU_UNIT * SheppLogan(SIZE)[0].double()
    z = RayTransform(GEOMETRY)(mu[None])[0, 0]
    z = z + SIGMA * torch.randn(z.shape, generator=torch.Generator().manual_seed(0), dtype=z.dtype)
    np.savez(
        tmp_path / "scan.npz",
        sinogram=z.numpy(),
        angles=np.asarray(GEOMETRY.angles),
        detector_spacing=GEOMETRY.detector_spacing,
    )
    np.save(tmp_path / "true.npy", mu[0].numpy())
    return tmp_path / "scan.npz"


@pytest.fixture
def kspace(tmp_path: Path) -> Path:
    """Noisy k-space of four coils, on a scale of its own, and the true picture beside it."""
    picture = SheppLogan(48)[0].double()
    operator = CartesianMRI(random_lines((48, 48), 2.0, 16, 0), simulated_sensitivities(4, (48, 48)))
    y = operator(torch.cat([picture, torch.zeros_like(picture)])[None])
    noise = 0.01 * torch.randn(y.shape, generator=torch.Generator().manual_seed(0), dtype=y.dtype)
    y = 1000 * (y + noise * operator.mask)
    np.save(tmp_path / "kspace.npy", channels_to_complex(y[0]).numpy().astype(np.complex64))
    np.save(tmp_path / "true.npy", 1000 * picture[0].numpy())
    return tmp_path / "kspace.npy"


SMALL = ("--size", str(SIZE), "--pixel-size", "2")


def test_ct_tv_beats_fbp_and_fits_the_noise(scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, output, report = run(
        scan, *SMALL, "--method", "tv", "--noise", str(SIGMA), "--reference", str(scan.with_name("true.npy"))
    )
    assert status == 0
    assert report["task"] == "ct"
    assert report["residual"] == pytest.approx(SIGMA, rel=0.03)
    assert min(abs(trial["value"] / SIGMA - 1) for trial in report["weight_trials"]) < 0.02
    assert report["psnr"] > report["baseline_psnr"] + 2
    assert "maximum of the reference" in report["psnr_convention"]
    assert report["details"]["geometry"]["type"] == "parallel"
    assert report["unit"] == "1/mm"
    files = ["report.json", "scan.npy", "scan.tif", "scan_comparison.png", "summary.json"]
    assert sorted(p.name for p in output.iterdir()) == files
    image = np.load(output / "scan.npy")
    assert np.allclose(tifffile.imread(output / "scan.tif"), image, atol=1e-6)
    true = np.load(scan.with_name("true.npy"))
    assert np.sqrt(((image - true) ** 2).mean()) < 0.2 * true.std()
    assert "converged" in capsys.readouterr().out


def test_ct_certificate_holds(scan: Path) -> None:
    """||x - x^|| <= error in the unit of the file, against a minimizer that is computed far more accurately."""
    _, output, report = run(scan, *SMALL, "--method", "tv", "--weight", "0.5", "--smoothing", "0.001", "--mu", "0.01")
    assert report["weight_rule"] == "given"
    regularizer = TotalVariation(math.log(0.5), math.log(0.001 / MU_UNIT)).double()
    with np.load(scan) as file:
        y = torch.from_numpy(file["sinogram"])[None, None] / MU_UNIT
    operator = RayTransform(GEOMETRY)
    exact = LBFGS()(Energy(y, regularizer, operator, mu=0.01), operator.adjoint(y) * 0, 1e-6).x[0, 0]
    distance = float((torch.from_numpy(np.load(output / "scan.npy")) - MU_UNIT * exact).norm())
    assert 0 < distance <= report["error"] <= report["accuracy"]


def test_ct_discrepancy_with_a_model_error(scan: Path) -> None:
    """Where noise is stated far too small, the report says so, and the weight still is a sensible one."""
    _, _, report = run(scan, *SMALL, "--method", "tv", "--noise", "0.0005")
    assert "the model does not explain the data" in report["weight_rule"]
    assert report["residual"] > 0.0005


def test_ct_sweep(scan: Path) -> None:
    reference = ("--reference", str(scan.with_name("true.npy")))
    _, _, report = run(scan, *SMALL, "--method", "tv", "--choose", "sweep", *reference)
    assert report["psnr"] >= max(t["value"] for t in report["weight_trials"]) - 0.2


def test_ct_sweep_without_a_reference(scan: Path) -> None:
    refused("--choose sweep compares with a reference", scan, "--method", "tv", "--choose", "sweep")


def test_ct_views(scan: Path) -> None:
    _, _, report = run(scan, *SMALL, "--method", "fbp", "--angle-range", "0", "90", "--views", "6")
    assert report["details"]["geometry"]["angles_degrees"] == pytest.approx([0, 15, 30, 45, 60, 75])
    assert report["status"] == "direct"
    assert report["error"] is None


def test_ct_geometry_file(scan: Path) -> None:
    """A bare array with the geometry in YAML gives what the .npz gives."""
    _, output, _ = run(scan, *SMALL, "--method", "fbp")
    expected = np.load(output / "scan.npy")
    with np.load(scan) as file:
        np.save(scan.with_name("bare.npy"), file["sinogram"])
    geometry = scan.with_name("geometry.yaml")
    geometry.write_text(yaml.safe_dump(GEOMETRY.to_dict()))
    _, output, _ = run(scan.with_name("bare.npy"), "--task", "ct", "--method", "fbp", "--geometry", str(geometry))
    assert np.allclose(np.load(output / "bare.npy"), expected)


def test_ct_geometry_that_does_not_fit(scan: Path) -> None:
    geometry = scan.with_name("geometry.yaml")
    geometry.write_text(yaml.safe_dump(ParallelBeam.equispaced((8, 8), 2.0, VIEWS).to_dict()))
    refused(r"scan\.npz: its sinogram has the shape", scan, "--method", "fbp", "--geometry", str(geometry))
    geometry.write_text("type: helix")
    refused(r"geometry\.yaml: geometry type must be one of", scan, "--method", "fbp", "--geometry", str(geometry))
    geometry.write_text("a: [")
    refused(r"geometry\.yaml: cannot be read as YAML", scan, "--method", "fbp", "--geometry", str(geometry))


def test_trained_model_is_taken_as_trained(scan: Path) -> None:
    metadata = {"operator": "recon.operators.RayTransform", "mu": 0.05}
    model = save_regularizer(TotalVariation(-0.5, -3.0).double(), scan.with_name("tv"), metadata)
    _, _, report = run(scan, *SMALL, "--model", str(model))
    assert (report["weight"], report["weight_rule"], report["mu"]) == (1.0, "as trained", 0.05)
    assert report["method"] == "model"


def test_mri(kspace: Path) -> None:
    reference = ("--reference", str(kspace.with_name("true.npy")))
    status, output, report = run(kspace, "--method", "tv", *reference)
    assert status == 0
    assert report["task"] == "mri"
    assert report["noise"] == pytest.approx(10, rel=0.5)  # edges add to it at this size
    assert report["psnr"] > report["baseline_psnr"] + 2
    assert report["details"]["sampling"]["acceleration"] == pytest.approx(2)
    image = np.load(output / "kspace.npy")
    assert np.iscomplexobj(image)
    assert np.allclose(tifffile.imread(output / "kspace.tif"), np.abs(image), rtol=1e-5, atol=1e-3)
    assert report["error"] <= report["accuracy"]
    assert report["mu"] == pytest.approx(1e-3, rel=1e-6)


def test_mri_zero_filled(kspace: Path) -> None:
    _, output, report = run(kspace, "--method", "zero_filled")
    assert report["evaluations"] == 0
    assert np.load(output / "kspace.npy").shape == (48, 48)


def test_accuracy_that_is_not_reached(kspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, report = run(kspace, "--method", "tv", "--weight", "0.01", "--max-evaluations", "3")
    assert status == 1
    assert report["converged"] is False
    assert report["error"] > report["accuracy"]
    assert "1 of 1 reconstructions did not reach their accuracy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "fbp", "--task", "mri"), "--method fbp does not go with --task mri"),
        ((), "give either --model or --method"),
        (("--method", "tv", "--weight", "-1"), "--weight is -1.0, but must be positive"),
        (("--method", "tv", "--noise", "nan"), "--noise is nan"),
        (("--method", "tv", "--weight", "1", "--choose", "discrepancy"), "exclude each other"),
        (("--method", "tv", "--views", "3"), "--views belongs to --task ct"),
        (("--method", "tv", "--index", "2"), "there is no slice 2"),
        (("--method", "zero_filled", "--weight", "2"), "--weight belongs to --method tv and to --model"),
        (("--method", "zero_filled", "--nonnegative"), "--nonnegative belongs to --method tv"),
        (("--method", "tv", "--device", "meta"), "--device meta cannot be used"),
        (("--method", "tv", "--weight", "1e9"), r"certifies no better than .* % of the image; use"),
    ],
)
def test_options_that_do_not_fit(kspace: Path, options: tuple[str, ...], message: str) -> None:
    refused(message, kspace, *options)


def test_views_that_are_not_there(scan: Path) -> None:
    refused("there are only 24", scan, "--method", "fbp", "--views", "25")
    refused("no view lies between 200 and 300", scan, "--method", "fbp", "--angle-range", "200", "300")
    refused(r"--size is 0", scan, "--method", "fbp", "--size", "0")


def test_reference_of_another_size(scan: Path) -> None:
    np.save(scan.with_name("large.npy"), np.ones((64, 64)))
    refused(
        "the reference has 64x64 pixels",
        scan,
        *SMALL,
        "--method",
        "fbp",
        "--reference",
        str(scan.with_name("large.npy")),
    )


def test_data_without_noise_and_a_geometry_that_cannot_be(scan: Path) -> None:
    with np.load(scan) as old:
        values = dict(old)
    values["sinogram"] = np.ones_like(values["sinogram"])
    np.savez(scan, **values)
    refused(r"scan\.npz: the noise is 0 .* give --noise or --weight", scan, *SMALL, "--method", "tv")
    values["sinogram"] = values["sinogram"][:, :1]
    np.savez(scan, **values)
    refused(r"scan\.npz: ", scan, *SMALL, "--method", "fbp")


def test_truncated_and_missing_files(scan: Path, kspace: Path) -> None:
    scan.write_bytes(scan.read_bytes()[:100])
    refused(r"scan\.npz: cannot be read", scan, "--method", "fbp")
    refused("no such file", scan.with_name("nothing.mat"), "--method", "fbp")


def test_kspace_without_centre(kspace: Path) -> None:
    values = np.load(kspace)
    values[:, 20:28, 20:28] = 0
    np.save(kspace, values)
    refused(r"kspace\.npy: the fully sampled centre of k-space has", kspace, "--method", "tv")


def test_full_disk(kspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("recon.files.os.fsync", full)
    refused(r"cannot be written \(No space left on device\)", kspace, "--method", "zero_filled", kind=OSError)


def test_guessed_tasks(kspace: Path) -> None:
    assert guessed_task([kspace], None) == "mri"
    assert guessed_task([kspace.with_name("true.npy")], None) == "denoising"
    assert guessed_task([Path("x.mat")], None) == "ct"
    with pytest.raises(ValueError, match="belong to different tasks"):
        guessed_task([kspace, Path("x.mat")], None)


def test_noise_estimates() -> None:
    generator = torch.Generator().manual_seed(0)
    views, pixels = torch.linspace(0, 1, 90).double()[:, None], torch.linspace(-1, 1, 120).double()[None]
    smooth = 3 * torch.exp(-((pixels - 0.3 * torch.sin(6 * views)) ** 2))
    noisy = smooth + 0.05 * torch.randn(smooth.shape, generator=generator, dtype=torch.float64)
    assert sinogram_noise(noisy) == pytest.approx(0.05, rel=0.1)
    mask = torch.ones(64, 64, dtype=torch.bool)
    y = 0.3 * torch.randn(2, 2, 64, 64, generator=generator, dtype=torch.float64)
    y[..., 28:36, 28:36] += 100
    assert estimate_noise(channels_to_complex(y), mask).level == pytest.approx(0.3, rel=0.1)


def test_weighted_regularizer() -> None:
    inner = TotalVariation(0.3, -2.0).double()
    x, v = torch.randn(2, 2, 1, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    same = TotalVariation(0.3 + math.log(2.5), -2.0).double()
    weighted = Weighted(inner, 2.5)
    assert torch.allclose(weighted(x), same(x))
    assert torch.allclose(weighted.grad(x), same.grad(x))
    assert torch.allclose(weighted.hessian(x)(v), same.hessian(x)(v), rtol=1e-5)
    assert weighted.smoothness() == pytest.approx(same.smoothness(), rel=1e-5)


def test_documented_operator(capsys: pytest.CaptureFixture[str]) -> None:
    """The code of docs/own_operator.md runs as it is printed there."""
    page = (Path(__file__).parents[3] / "docs" / "own_operator.md").read_text()
    exec(page.split("```python")[1].split("```")[0], {"__name__": "page"})
    assert "certified: ||x - x^|| <= " in capsys.readouterr().out


@pytest.mark.slow
def test_htc_agrees_with_the_organisers(shared_data: Path, tmp_path: Path) -> None:
    """TV of 60 views over the full angle, and a threshold, give the organisers' segmentation: Dice >= 0.95."""
    io = pytest.importorskip("scipy.io")
    folder = shared_data / "htc2022"
    if not folder.is_dir():
        pytest.skip(f"real data: no folder {folder}")
    options = ["--method", "tv", "--size", "512", "--views", "60", "--weight", "0.3"]
    data = str(folder / "htc2022_ta_full.mat")
    assert main(["--data", data, "--output", str(tmp_path), *options]) == 0
    image = np.load(tmp_path / "htc2022_ta_full.npy")
    truth = io.loadmat(folder / "htc2022_ta_full_recon_fbp_seg.mat")["reconFullFbpSeg"] > 0
    found = image > 0.5 * np.quantile(image, 0.9)
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) >= 0.95


@pytest.mark.parametrize("name", ["[red]x", "x[bold]", "a [b] ü"])
def test_brackets_in_names_are_no_markup(scan: Path, name: str, capsys: pytest.CaptureFixture[str]):
    data = scan.rename(scan.with_name(f"{name}.npz"))
    status, output, _ = run(data, "--method", "fbp", "--size", "16")
    assert status == 0
    assert (output / f"{name}.npy").is_file()
    assert name in capsys.readouterr().out


def test_a_picture_larger_than_the_memory_is_refused(scan: Path):
    refused("memory", scan, "--method", "tv", "--size", "1000000")

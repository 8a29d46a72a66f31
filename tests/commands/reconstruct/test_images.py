"""``recon reconstruct``: what it writes, what it certifies, and what it refuses."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import read_dicom
from models import FieldsOfExperts, InitialFilters, NoiseConditioned, TotalVariation, WeaklyConvexRidge
from models.files.storage import load_regularizer, save_regularizer
from recon.commands.reconstruct.main import main
from recon.lower_level import LBFGS, Energy, ProjectedLBFGS, TotalVariationProblem, TotalVariationSolver
from recon.reconstruction.boundary import middle, mirrored
from recon.reconstruction.noise import image_noise


@pytest.fixture
def model(tmp_path: Path) -> Path:
    metadata = {"operator": "Identity", "fidelity": "SquaredL2", "mu": 0.0}
    return save_regularizer(TotalVariation(-2.0, -3.0), tmp_path / "tv", metadata)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Noisy images of different sizes and kinds with their true images in ``true``."""
    folders = tmp_path / "noisy", tmp_path / "true"
    for folder in folders:
        folder.mkdir()
    generator = np.random.default_rng(0)
    for name, shape in {"a": (24, 30), "b": (20, 16), "color": (16, 18, 3)}.items():
        true = np.linspace(0, 1, int(np.prod(shape))).reshape(shape).round(1)
        noisy = true + 0.1 * generator.standard_normal(shape)
        Image.fromarray((255 * true).astype(np.uint8)).save(folders[1] / f"{name}.png")
        np.save(folders[0] / f"{name}.npy", noisy)
    return folders[0]


def run(model: Path, data: Path, *more: str) -> tuple[int, Path]:
    output = model.parent / "results"
    return main(["--model", str(model), "--data", str(data), "--output", str(output), *more]), output


def test_folder_with_references(model: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, output = run(model, data, "--reference", str(data.parent / "true"), "--accuracy", "1e-3")
    assert status == 0
    names = [f"{n}{s}" for n in ("a", "b", "color") for s in (".npy", ".png", "_comparison.png")]
    assert sorted(p.name for p in output.iterdir()) == sorted([*names, "report.json", "summary.json"])
    report = json.loads((output / "report.json").read_text())
    assert report["converged"] is True
    for entry in report["images"]:
        assert entry["strong_convexity"] == 1
        assert (entry["weight"], entry["weight_rule"]) == (1, "as trained")
        assert entry["status"] == "converged"
        assert 0 < entry["error"] <= 1e-3
        assert entry["error_rms_per_pixel"] == pytest.approx(entry["error"] / np.prod(entry["shape"]) ** 0.5)
        assert entry["psnr"] > entry["baseline_psnr"] > 15
        assert 0 < entry["ssim"] <= 1
        assert entry["evaluations"] > 1
    assert "converged" in capsys.readouterr().out


@pytest.fixture
def coupled(tmp_path: Path) -> Path:
    """A model that couples red, green and blue, for all noise levels up to 0.3."""
    initial = InitialFilters("multiscale", in_channels=3)
    inner = WeaklyConvexRidge(8, 3, log_weight=-2.5, log_width=-3.0, initial_filters=initial, unit_norm=True)
    metadata = {"operator": "Identity", "fidelity": "SquaredL2", "mu": 0.0}
    return save_regularizer(NoiseConditioned(inner, 0.3), tmp_path / "coupled", metadata)


def test_pictures_in_colour_by_a_model_that_couples_channels(coupled: Path, data: Path) -> None:
    """The noise is estimated; what is written is in colour, and as close to the minimizer as certified."""
    rows, cols = np.mgrid[:40, :44] / 44
    true = np.stack([rows, 0.5 * rows + 0.5 * (cols > 0.5), 1 - rows], -1)
    noisy = true + 0.08 * np.random.default_rng(1).standard_normal(true.shape)
    Image.fromarray((255 * true).round().astype(np.uint8)).save(data.parent / "true" / "photo.png")
    np.save(data / "photo.npy", noisy)
    reference = data.parent / "true" / "photo.png"
    status, output = run(coupled, data / "photo.npy", "--reference", str(reference), "--accuracy", "1e-3")
    assert status == 0
    (entry,) = json.loads((output / "report.json").read_text())["images"]
    assert entry["shape"] == [3, 40, 44]
    assert entry["noise_level"] == pytest.approx(0.08, rel=0.1)
    assert entry["psnr"] > entry["baseline_psnr"] + 2
    x, y = (torch.from_numpy(np.load(p)).movedim(2, 0)[None] for p in (output / "photo.npy", data / "photo.npy"))
    regularizer = load_regularizer(coupled)[0].double().at(entry["noise_level"])
    whole = mirrored(y, regularizer.margin)
    exact = middle(LBFGS()(Energy(whole, regularizer), whole, 1e-8).x, (40, 44))
    assert float((x - exact).norm()) <= entry["error"] <= 1e-3
    assert np.asarray(Image.open(output / "photo.png")).shape == (40, 44, 3)
    comparison = np.asarray(Image.open(output / "photo_comparison.png")).astype(int)
    assert float(np.abs(comparison[..., 0] - comparison[..., 2]).max()) > 100


def test_gray_pictures_are_refused_by_a_model_that_couples_channels(coupled: Path, data: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.npy: the model couples 3 channels .in_channels., but the images have 1"):
        run(coupled, data / "a.npy", "--noise", "0.1")


def test_certificate_holds(model: Path, data: Path) -> None:
    """||x - x^|| <= error against the minimizer, computed far more accurately."""
    _, output = run(model, data, "--accuracy", "1e-2")
    for entry in json.loads((output / "report.json").read_text())["images"]:
        x, y = (torch.from_numpy(np.load(p)) for p in (output / f"{entry['name']}.npy", Path(entry["data"])))
        x, y = (t[None, None] if t.ndim == 2 else t.movedim(2, 0)[None] for t in (x, y))
        exact = LBFGS()(Energy(y, TotalVariation(-2.0, -3.0).double()), y, 1e-9).x
        assert float((x - exact).norm()) <= entry["error"] <= 1e-2
        picture = np.asarray(Image.open(output / f"{entry['name']}.png"), dtype=float) / 255
        assert np.abs(picture - x[0].movedim(0, 2).numpy().clip(0, 1).reshape(picture.shape)).max() <= 0.5 / 255 + 1e-9


def test_single_files_without_reference(model: Path, data: Path) -> None:
    status, output = run(model, data / "a.npy", "--dtype", "float32")
    assert status == 0
    assert np.load(output / "a.npy").dtype == np.float32
    (entry,) = json.loads((output / "report.json").read_text())["images"]
    assert entry["psnr"] is None
    status = main(
        ["--model", str(model), "--data", str(data / "a.npy"), str(data / "b.npy"), "--output", str(output / "two")]
    )
    assert status == 0
    assert (output / "two" / "b.png").is_file()


def test_single_reference_of_another_name(model: Path, data: Path) -> None:
    reference = (data.parent / "true" / "a.png").rename(data.parent / "clean.png")
    status, output = run(model, data / "a.npy", "--reference", str(reference))
    assert status == 0
    assert json.loads((output / "report.json").read_text())["images"][0]["reference"] == str(reference)


def test_accuracy_that_is_not_reached(model: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, output = run(model, data, "--max-evaluations", "2", "--accuracy", "1e-6")
    assert status == 1
    report = json.loads((output / "report.json").read_text())
    assert report["converged"] is False
    assert {entry["status"] for entry in report["images"]} == {"iteration limit"}
    assert all(entry["error"] > 1e-6 for entry in report["images"])
    assert "3 of 3 images did not reach the accuracy 1e-06: a (iteration limit)" in capsys.readouterr().err


def test_precision_floor(model: Path, data: Path) -> None:
    status, output = run(model, data, "--dtype", "float32", "--accuracy", "1e-12")
    assert status == 1
    report = json.loads((output / "report.json").read_text())
    assert {entry["status"] for entry in report["images"]} == {"precision floor"}


def test_dicom_in_and_out(model: Path) -> None:
    """CT slices come back as Hounsfield units in a derived series; what cannot be told apart by TV stays."""
    pydicom = pytest.importorskip("pydicom")
    source = Path(pydicom.data.get_testdata_file("CT_small.dcm"))
    status, output = run(model, source)
    assert status == 0
    assert (output / "CT_small.npy").is_file()
    before, after = read_dicom(source), read_dicom(output / "CT_small.dcm")
    assert after.patient == before.patient
    assert after.series != before.series
    expected = 4071 * np.load(output / "CT_small.npy") - 1000
    assert np.abs(after.image.numpy() - expected.clip(-1024, 3071)).max() <= 0.51
    assert float((after.image - before.image).abs().mean()) > 1


def refused(match: str, model: Path, data: Path, *more: str, kind: type[Exception] = ValueError) -> None:
    """The program ends with this message and leaves no file behind."""
    with pytest.raises(kind, match=match):
        run(model, data, *more)
    output = model.parent / "results"
    assert not output.exists() or not list(output.iterdir())


def test_truncated_png(model: Path, data: Path) -> None:
    content = (data.parent / "true" / "a.png").read_bytes()
    (data / "c.png").write_bytes(content[: len(content) // 2])
    refused(r"c\.png: cannot be read as an image", model, data)


def test_nan(model: Path, data: Path) -> None:
    np.save(data / "c.npy", np.full((8, 8), np.nan))
    refused(r"c\.npy: 64 of 64 values are NaN", model, data)


def test_empty_folder(model: Path, data: Path) -> None:
    empty = data.parent / "empty"
    empty.mkdir()
    refused("the folder has no image", model, empty)
    refused("no such file or folder", model, data / "nowhere")


def test_references_that_do_not_fit(model: Path, data: Path) -> None:
    true = data.parent / "true"
    (true / "b.png").unlink()
    refused(r"true: has no reference for .*b\.npy; its name must be b", model, data, "--reference", str(true))
    Image.new("L", (4, 4)).save(true / "b.png")
    refused(r"b\.png: has the shape \(1, 4, 4\)", model, data, "--reference", str(true))


def test_names_that_collide(model: Path, data: Path) -> None:
    Image.new("L", (16, 16)).save(data / "a.png")
    refused(r"a\.npy and .*a\.png have the same name", model, data)


def test_input_is_not_overwritten(model: Path, data: Path) -> None:
    before = (data / "a.npy").read_bytes()
    with pytest.raises(ValueError, match=r"a\.npy: is an input and would be overwritten"):
        main(["--model", str(model), "--data", str(data), "--output", str(data)])
    assert (data / "a.npy").read_bytes() == before


def test_wrong_models(model: Path, data: Path) -> None:
    refused("no such file", model.with_name("nothing"), data, kind=FileNotFoundError)
    model.write_bytes(b"nothing")
    refused("not a safetensors file", model, data)


def test_model_of_another_problem(model: Path, data: Path) -> None:
    other = save_regularizer(TotalVariation(), data.parent / "ct", {"operator": "recon.operators.Tomography"})
    refused(r"trained with the operator recon\.operators\.Tomography; this program denoises", other, data)
    other = save_regularizer(TotalVariation(), data.parent / "ct", {"mu": -1.0})
    refused("mu is -1.0", other, data)


def test_model_without_strong_convexity(data: Path) -> None:
    student = FieldsOfExperts(2, size=3, potential="student_t", log_scale=3.0, log_width=-5.0)
    model = save_regularizer(student, data.parent / "student")
    refused(r"student\.safetensors: a certificate needs a strongly convex energy", model, data)


def test_image_smaller_than_the_filters(data: Path) -> None:
    model = save_regularizer(FieldsOfExperts(2, size=7), data.parent / "foe")
    np.save(data / "0.npy", np.zeros((2, 2)))  # mirrored: 4x4
    refused(r"0\.npy: ", model, data / "0.npy")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--accuracy", "0", "--accuracy is 0.0, but must be positive"),
        ("--accuracy", "nan", "must be positive and finite"),
        ("--max-evaluations", "0", "must be at least 1"),
        ("--device", "nothing", "--device nothing cannot be used here"),
    ],
)
def test_values_out_of_range(model: Path, data: Path, option: str, value: str, message: str) -> None:
    refused(message, model, data, option, value)


def test_output_that_is_a_file(model: Path, data: Path) -> None:
    (data.parent / "results").write_text("")
    with pytest.raises(OSError, match="results"):
        run(model, data)


def test_full_disk(model: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("recon.files.os.fsync", full)
    refused(r"a\.png: cannot be written \(No space left on device\)", model, data, kind=OSError)


def run_tv(data: Path, *more: str, method: str = "tv") -> tuple[int, Path, list[dict[str, Any]]]:
    output = data.parent / "results"
    status = main(["--method", method, "--data", str(data), "--output", str(output), *more])
    return status, output, json.loads((output / "report.json").read_text())["images"]


def test_tv_by_the_discrepancy_principle(data: Path) -> None:
    """Without a model: the residual is as large as the noise that is stated, in every image."""
    status, _, entries = run_tv(data, "--noise", "0.1", "--reference", str(data.parent / "true"))
    assert status == 0
    for entry in entries:
        assert (entry["regularizer"], entry["smoothing"]) == ("PlainTotalVariation", 0)
        assert entry["minimizer"] == "isotropic total variation, not smoothed"
        assert 0 < entry["error_unsmoothed"] == entry["error"] <= 0.01
        assert entry["grade"] == "proved"
        assert entry["residual"] == pytest.approx(0.1, rel=0.03)
        assert entry["psnr"] > entry["baseline_psnr"] + 3


def test_tv_by_a_sweep(data: Path) -> None:
    reference = ("--reference", str(data.parent / "true"))
    _, _, swept = run_tv(data, "--choose", "sweep", *reference)
    _, _, given = run_tv(data, "--weight", "0.3", *reference)
    for best, entry in zip(swept, given, strict=True):
        assert (entry["weight"], entry["weight_rule"]) == (0.3, "given")
        assert best["psnr"] >= entry["psnr"] - 0.05
        assert len(best["weight_trials"]) > 4


def test_nonnegative_images(data: Path) -> None:
    """The certificate is that of the minimizer over x >= 0; without the constraint there are negative values."""
    options = ("--weight", "0.02", "--smoothing", "0.05")
    _, output, _ = run_tv(data / "a.npy", *options, method="smoothed-tv")
    assert np.load(output / "a.npy").min() < 0
    status, output, (entry,) = run_tv(data / "a.npy", *options, "--nonnegative", method="smoothed-tv")
    x, y = (torch.from_numpy(np.load(p))[None, None] for p in (output / "a.npy", data / "a.npy"))
    tv = TotalVariation(np.log(0.02), np.log(0.05)).double().requires_grad_(False)
    exact = ProjectedLBFGS()(Energy(y, tv), y, 1e-9).x
    assert status == 0
    assert float(x.min()) >= 0
    assert float((x - exact).norm()) <= entry["error"] <= 1e-2


@pytest.mark.parametrize(
    "options", [(), ("--anisotropic",), ("--nonnegative",), ("--mu", "0.5"), ("--dtype", "float32")]
)
def test_images_are_denoised_by_the_exact_minimizer(data: Path, options: tuple[str, ...]) -> None:
    status, output, (entry,) = run_tv(data / "color.npy", "--weight", "0.1", "--accuracy", "1e-3", *options)
    y = torch.from_numpy(np.load(data / "color.npy")).movedim(2, 0)[None]
    mu = 0.5 if "--mu" in options else 0.0
    low = 0.0 if "--nonnegative" in options else -np.inf
    # 1/2 (x - y)^2 + mu/2 x^2 is (1 + mu)/2 (x - y / (1 + mu))^2 and a constant
    problem = TotalVariationProblem(y / (1 + mu), 0.1 / (1 + mu), None, "--anisotropic" not in options, low)
    exact = TotalVariationSolver()(problem, 1e-5)
    x = torch.from_numpy(np.load(output / "color.npy")).movedim(2, 0)[None]
    assert status == 0
    assert float((x - exact.x).norm()) <= entry["error"] + 1e-5
    assert entry["error"] <= 1e-3
    assert entry["strong_convexity"] == 1 + mu
    report = json.loads((output / "report.json").read_text())
    assert "not smoothed" in report["certificate"]
    assert ("anisotropic" in entry["minimizer"]) == ("--anisotropic" in options)


def test_smoothed_images_say_how_far_the_minimizer_without_smoothing_is(data: Path) -> None:
    options = ("--weight", "0.1", "--accuracy", "1e-4")
    _, output, (entry,) = run_tv(data / "a.npy", *options, "--smoothing", "1e-3", method="smoothed-tv")
    x, y = (torch.from_numpy(np.load(p))[None, None] for p in (output / "a.npy", data / "a.npy"))
    exact = TotalVariationSolver()(TotalVariationProblem(y, 0.1), 1e-5)
    away = float((x - exact.x).norm())
    assert entry["error"] < away - 1e-5  # it is the distance to another minimizer
    assert away <= entry["error_unsmoothed"] + 1e-5
    assert entry["error_unsmoothed"] <= entry["error"] + np.sqrt(0.1 * 0.31e-3 * x.numel())
    assert entry["minimizer"].startswith("smoothed total variation")


def test_images_that_do_not_fit_the_options(data: Path, model: Path) -> None:
    for options, message in (
        ((), "give either --model or --method tv"),
        (("--method", "tv", "--model", str(model)), "give either --model or --method tv"),
        (("--method", "tv", "--choose", "sweep"), "give --reference"),
        (("--method", "tv", "--photons", "3"), "--photons belongs to --task ct"),
        (("--method", "tv", "--index", "1"), "an image file holds one image"),
        (("--method", "tv", "--smoothing", "0.1"), "--smoothing belongs to --method smoothed-tv"),
        (("--method", "smoothed-tv", "--anisotropic"), "--anisotropic belongs to --method tv"),
        (("--method", "fbp", "--task", "denoising"), "valid are tv and smoothed-tv"),
    ):
        with pytest.raises(ValueError, match=message):
            main(["--data", str(data), "--output", str(data.parent / "results"), *options])


@pytest.mark.parametrize("level", [0.02, 0.1])
def test_noise_of_larger_images_is_estimated_where_there_is_least_texture(level: float) -> None:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(1, 200, 240, generator=generator, dtype=torch.float64)
    assert image_noise(level * noise) == pytest.approx(level, rel=0.04)
    texture = torch.zeros_like(noise)  # in half of the picture
    texture[..., 120:] = torch.rand(1, 200, 120, generator=generator, dtype=torch.float64)
    assert image_noise(level * noise + texture) == pytest.approx(level, rel=0.06)


def test_image_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    smooth = torch.linspace(0, 1, 64).double()[:, None] * torch.linspace(0, 1, 80).double()
    noisy = smooth + 0.05 * torch.randn(3, 64, 80, generator=generator, dtype=torch.float64)
    assert image_noise(noisy) == pytest.approx(0.05, rel=0.1)
    with pytest.raises(ValueError, match="2x80 pixels is too small"):
        image_noise(noisy[:, :2])

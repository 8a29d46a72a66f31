"""``recon reconstruct`` with networks: what they return, what they were trained for, options they have not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models import LearnedPrimalDual, UNet
from models.files.setting import describe_operator
from models.files.storage import load_reconstructor, save_regularizer
from recon.commands.reconstruct.options import parser
from recon.commands.reconstruct.tasks import TASKS
from recon.commands.reconstruct.tasks.task import Job
from recon.operators import Identity, LinearOperator, ParallelBeam, RayTransform
from recon.reconstruction.problem import Problem
from recon.reconstruction.reconstructor import Reconstructor
from tests.commands.reconstruct.slices import refused, run, write_slice
from tests.lower_level.problems import normal, smooth_image
from tests.models.networks.test_learned_primal_dual import randomized

CT = ("--task", "ct", "--views", "12", "--noise", "0.01", "--seed", "3")
MRI = ("--task", "mri", "--noise", "5")


def saved(network: Reconstructor, path: Path, operator: LinearOperator | None, noise: dict[str, Any]) -> Path:
    metadata = {} if operator is None else {"setting": {"operator": describe_operator(operator), "noise": noise}}
    return save_regularizer(randomized(network), path, metadata)


def denoiser(folder: Path, operator: LinearOperator | None) -> Path:
    return saved(UNet(scales=2), folder / "unet", operator, {"kind": "gaussian", "sigma": 0.1})


def projector(views: int = 12) -> RayTransform:
    return RayTransform(ParallelBeam.equispaced((32, 32), 2.0, views))


def problem_of(data: Path, task: str, options: tuple[str, ...], dtype: str = "float64") -> Problem:
    args = parser(TASKS).parse_args(["--data", str(data), "--output", "-", *options])
    args.dtype = dtype
    return TASKS[task](args).problem(Job(0, data, None))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    y = 0.5 + 0.3 * smooth_image(1, 1, 13, 10, seed=3)[0, 0] + normal(13, 10, scale=0.1)
    np.save(tmp_path / "noisy.npy", y.numpy())
    return tmp_path / "noisy.npy"


@pytest.fixture
def ct_slice(tmp_path: Path) -> Path:
    pytest.importorskip("astra", reason="needs the extra ct")
    write_slice(tmp_path / "slice.dcm")
    return tmp_path / "slice.dcm"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pictures_are_denoised(
    tmp_path: Path, picture: Path, dtype: torch.dtype, capsys: pytest.CaptureFixture[str]
) -> None:
    network = randomized(UNet(scales=2)).to(dtype)
    setting = {"operator": describe_operator(Identity()), "noise": {"kind": "gaussian", "sigma": 0.1}}
    model = save_regularizer(network, tmp_path / "unet", {"setting": setting})
    options = ("--model", str(model), "--noise", "0.1", "--reference", str(picture))
    status, output, report = run(picture, *options)
    assert status == 0
    y = torch.from_numpy(np.load(picture))[None, None].to(dtype)
    expected = network(y, Identity())[0, 0].detach()
    np.testing.assert_array_equal(np.load(output / "noisy.npy"), expected.numpy())
    assert (report["status"], report["dtype"]) == ("not certified", str(dtype).removeprefix("torch."))
    assert report["error"] is report["evaluations"] is report["weight"] is report["accuracy"] is None
    assert report["certificate"].startswith("nothing is certified")
    assert report["regularizer"] == "UNet"
    assert report["warnings"] == []
    assert report["residual"] == pytest.approx(float((expected - y).double().square().mean().sqrt()), rel=1e-5)
    assert (output / "noisy.png").is_file()
    assert (output / "noisy_comparison.png").is_file()
    assert "not certified" in capsys.readouterr().out.replace("\n", " ")


def test_other_noise_is_a_warning(tmp_path: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = denoiser(tmp_path, Identity())
    _, _, report = run(picture, "--model", str(model), "--noise", "0.2")
    assert report["warnings"] == [
        f"the noise of {picture}, standard deviation 0.2 (given), is not that of the training of {model}, 0.1"
    ]
    assert "is not that of the training" in capsys.readouterr().err


@pytest.mark.parametrize("options", [CT, (*CT, "--photons")])
def test_simulated_scans(tmp_path: Path, ct_slice: Path, options: tuple[str, ...]) -> None:
    photons = options[-1] == "--photons"
    options = ("--task", "ct", "--views", "12", "--photons", "1e5") if photons else options
    noise = {"kind": "gaussian, relative to the mean", "relative_sigma": 0.01}
    model = saved(LearnedPrimalDual(iterations=2), tmp_path / "lpd", projector(), noise)
    status, output, report = run(ct_slice, "--model", str(model), *options)
    assert status == 0
    problem = problem_of(ct_slice, "ct", options)
    x = load_reconstructor(model)[0](problem.y, problem.operator)
    np.testing.assert_allclose(np.load(output / "slice.npy"), problem.picture(x).numpy(), rtol=1e-9, atol=1e-12)
    assert report["method"] == "model"
    assert report["status"] == "not certified"
    assert report["error"] is report["evaluations"] is report["mu"] is None
    assert report["psnr"] is not None
    assert (output / "slice.dcm").is_file()
    assert any("does not use the photons" in text for text in report["warnings"]) == photons


@pytest.mark.parametrize(("operator", "difference"), [("views", "geometry"), ("identity", "operator.class")])
def test_another_operator(tmp_path: Path, ct_slice: Path, operator: str, difference: str) -> None:
    trained: LinearOperator = projector(9) if operator == "views" else Identity()
    model = saved(LearnedPrimalDual(iterations=1), tmp_path / "lpd", trained, {"kind": "gaussian", "sigma": 0.1})
    refused(f"another operator than that of .*{difference}.*--unchecked", ct_slice, "--model", str(model), *CT)
    status, _, report = run(ct_slice, "--model", str(model), *CT, "--unchecked")
    assert status == 0
    assert any("another operator" in text for text in report["warnings"])


def test_unknown_operator(tmp_path: Path, picture: Path) -> None:
    model = denoiser(tmp_path, None)
    refused("does not say for which operator", picture, "--model", str(model))
    _, _, report = run(picture, "--model", str(model), "--unchecked")
    assert len(report["warnings"]) == 1


def test_k_space(tmp_path: Path) -> None:
    write_slice(tmp_path / "slice.dcm", modality="MR")
    options = (*MRI, "--mask", "random", "--acceleration", "2")
    problem = problem_of(tmp_path / "slice.dcm", "mri", options)
    network = LearnedPrimalDual(iterations=2, image_channels=2, data_channels=2)
    noise = {"kind": "gaussian", "sigma": problem.noise.deviation}
    model = saved(network, tmp_path / "lpd", problem.operator, noise)
    status, output, report = run(tmp_path / "slice.dcm", "--model", str(model), *options)
    assert status == 0
    assert report["warnings"] == []
    x = problem.scale * load_reconstructor(model)[0](problem.y, problem.operator)[0].detach()
    np.testing.assert_allclose(np.load(output / "slice.npy"), torch.complex(x[0], x[1]).numpy(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "option",
    [
        ("--weight", "1"),
        ("--choose", "discrepancy"),
        ("--mu", "0.1"),
        ("--smoothing", "0.1"),
        ("--accuracy", "0.1"),
        ("--nonnegative",),
        ("--max-evaluations", "10"),
        ("--dtype", "float64"),
        ("--plain",),
    ],
)
def test_options_of_energies_are_refused(tmp_path: Path, picture: Path, option: tuple[str, ...]) -> None:
    model = denoiser(tmp_path, Identity())
    refused(
        f"{option[0]} does not go with .*unet.*which holds a network, UNet", picture, "--model", str(model), *option
    )


def test_colour_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "colour.npy", np.random.default_rng(0).random((12, 12, 3)))
    model = denoiser(tmp_path, Identity())
    refused("colour.npy: .*channel", tmp_path / "colour.npy", "--model", str(model))


def test_unchecked_belongs_to_networks(picture: Path) -> None:
    refused("--unchecked belongs to --model", picture, "--method", "tv", "--unchecked")
    refused("--unchecked belongs to networks", picture, "--model", "foe_bsd", "--unchecked")

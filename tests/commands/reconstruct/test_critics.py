"""``recon reconstruct`` with critics that are not convex: as their training stopped the descent, nothing certified."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models import ConvolutionalCritic
from models.files.storage import save_regularizer
from models.training.adversarial import AdversarialModule
from tests.commands.reconstruct.slices import refused, run
from tests.lower_level.problems import normal, smooth_image

STEPS = 4
CT = ("--task", "ct", "--views", "12", "--noise", "0.05")
MRI = ("--task", "mri", "--noise", "0.02")


def critic(folder: Path, channels: int = 1, **metadata: object) -> Path:
    model = ConvolutionalCritic(channels, (3, 3), 3, log_scale=1.0)
    return save_regularizer(model, folder / "critic", {"descent_iterations": STEPS, "ramp": "space", **metadata})


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    y = (0.5 + 0.3 * smooth_image(1, 1, 12, 12, seed=3)[0, 0] + normal(12, 12, scale=0.1)).clamp(min=0)
    np.save(tmp_path / "noisy.npy", y.numpy())
    return tmp_path / "noisy.npy"


def test_pictures_are_those_of_the_module(picture: Path, tmp_path: Path) -> None:
    status, output, report = run(picture, "--model", str(critic(tmp_path)))
    assert status == 0
    module = AdversarialModule(ConvolutionalCritic(1, (3, 3), 3, log_scale=1.0), descent_iterations=STEPS).double()
    x = module.reconstruct(torch.from_numpy(np.load(picture))[None, None]).x
    np.testing.assert_array_equal(np.load(output / "noisy.npy"), x[0, 0].detach().numpy())
    assert (report["status"], report["error"], report["grade"]) == ("not certified", None, None)
    assert (report["evaluations"], report["strong_convexity"], report["converged"]) == (STEPS, None, True)
    assert report["certificate"].startswith("nothing is certified where status says `not certified`")


@pytest.mark.parametrize(("options", "channels"), [(CT, 1), (MRI, 2)], ids=["ct", "mri"])
def test_measured_data_are_reconstructed(
    picture: Path, tmp_path: Path, options: tuple[str, ...], channels: int
) -> None:
    pytest.importorskip("astra", reason="needs the extra ct")
    status, output, report = run(picture, *options, "--model", str(critic(tmp_path, channels)))
    assert status == 0
    assert (report["status"], report["error"], report["accuracy"]) == ("not certified", None, None)
    assert (report["mu"], report["evaluations"], report["weight_rule"]) == (0, STEPS, "as trained")
    assert np.isfinite(np.load(output / "noisy.npy")).all()


def test_weights_and_nonnegative_images(picture: Path, tmp_path: Path) -> None:
    pytest.importorskip("astra", reason="needs the extra ct")
    given = ("--model", str(critic(tmp_path)), "--nonnegative")
    status, output, report = run(picture, *CT, *given, "--weight", "3")
    assert status == 0
    assert (report["weight"], report["nonnegative"]) == (3, True)
    assert np.load(output / "noisy.npy").min() >= 0
    true = tmp_path / "true" / "noisy.npy"
    true.parent.mkdir()
    np.save(true, (0.5 + 0.3 * smooth_image(1, 1, 12, 12, seed=3)[0, 0]).numpy())
    status, _, report = run(picture, *given, "--choose", "sweep", "--reference", str(true))
    assert status == 0
    assert len(report["weight_trials"]) >= 5


def test_critics_that_do_not_say_when_to_stop_are_refused(picture: Path, tmp_path: Path) -> None:
    path = save_regularizer(ConvolutionalCritic(1, (3, 3), 3), tmp_path / "critic", {})
    refused("a certificate needs a strongly convex energy", picture, "--model", str(path))

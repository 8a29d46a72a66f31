"""``recon reconstruct`` with saddle-point models: certified and plain, pictures and CT, weights, bad input."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models import Convexity, LearnedTV, TotalVariation
from models.files.storage import load_model, save_regularizer
from models.training.saddle import SaddleModule
from recon.bilevel import MAID
from recon.lower_level import PDHG, SaddlePoint
from recon.operators import Blur, LinearOperator
from recon.operators.checks import check_adjoint
from tests.commands.reconstruct.slices import refused, run
from tests.lower_level.problems import normal, smooth_image
from tests.models.training.test_bilevel_module import Tiny, trainer

SETTINGS = {"log_weight": -1.5, "convexity": Convexity(0.3, 0.2), "smoothing": 0.1}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    metadata = {"operator": "recon.operators.Identity"}
    return save_regularizer(LearnedTV(**SETTINGS), tmp_path / "ltv", metadata)  # type: ignore[arg-type]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """In colour, noisy."""
    y = 0.5 + 0.3 * smooth_image(1, 3, 12, 10, seed=3)[0] + normal(3, 12, 10, scale=0.1)
    np.save(tmp_path / "noisy.npy", np.moveaxis(y.numpy(), 0, -1))
    return tmp_path / "noisy.npy"


def loaded(path: Path) -> LearnedTV:
    found = load_model(path)[0].double()
    assert isinstance(found, LearnedTV)
    return found


def tight(saddle: SaddlePoint, accuracy: float = 1e-8, certified: bool = True) -> Tensor:
    """The image in the saddle point, from zero and with other steps than the program."""
    z = torch.zeros(saddle_batch(saddle), saddle.g.size + saddle.f.size, dtype=torch.float64)
    found = PDHG(300_000, adaptive=False, certified=certified)(saddle, *saddle.split(z), accuracy)
    assert found.converged
    return saddle.image(found.x)


def saddle_batch(saddle: SaddlePoint) -> int:
    centres = (
        part.centre for f in (saddle.g, saddle.f) for part in getattr(f, "parts", [f]) if hasattr(part, "centre")
    )
    return next(len(c) for c in centres if isinstance(c, Tensor))


@pytest.mark.parametrize("plain", [False, True])
def test_denoising_channel_by_channel(model: Path, picture: Path, plain: bool) -> None:
    """The saddle point of each channel; in the plain form, to the residuals, and no distance is claimed."""
    status, output, report = run(picture, "--model", str(model), "--accuracy", "1e-3", *(["--plain"] if plain else []))
    assert status == 0
    assert (report["status"], report["regularizer"], report["plain"]) == ("converged", "LearnedTV", plain)
    y = torch.from_numpy(np.moveaxis(np.load(picture), -1, 0).copy())[:, None]
    with torch.no_grad():
        exact = tight(loaded(model).saddle_point(y, plain), 1e-5 if plain else 1e-8, not plain)
    x = torch.from_numpy(np.moveaxis(np.load(output / "noisy.npy"), -1, 0).copy())[:, None]
    distance = float((x - exact).norm())
    if plain:
        assert report["error"] is None
        assert "no distance to x^ is certified" in report["certificate"]
        assert distance <= 1e-2
    else:
        assert distance <= report["error"] <= 1e-3
        assert report["strong_convexity"] == pytest.approx(0.2)  # of the field; 1 of the image
        assert "saddle point" in report["certificate"]


def test_weights_of_pictures(model: Path, picture: Path) -> None:
    """Discrepancy: the residual is the noise. A weight: what the model multiplied by it gives."""
    status, _, report = run(picture, "--model", str(model), "--choose", "discrepancy", "--noise", "0.1")
    assert status == 0
    assert report["residual"] == pytest.approx(0.1, rel=0.03)
    assert len(report["weight_trials"]) >= 2
    _, output, report = run(picture, "--model", str(model), "--weight", "3", "--accuracy", "1e-3")
    y = torch.from_numpy(np.moveaxis(np.load(picture), -1, 0).copy())[:, None]
    heavier = loaded(model)
    heavier.multiply(3.0)
    with torch.no_grad():
        exact = tight(heavier.saddle_point(y))
    x = torch.from_numpy(np.moveaxis(np.load(output / "noisy.npy"), -1, 0).copy())[:, None]
    assert float((x - exact).norm()) <= report["error"] <= 1e-3
    assert (report["weight"], report["weight_rule"]) == (3, "given")


class Scaled(LinearOperator):
    """A / c."""

    def __init__(self, operator: LinearOperator, c: float) -> None:
        super().__init__(operator.domain_shape, operator.range_shape, operator.norm_bound / c)
        self.operator, self.c = operator, c

    def _forward(self, x: Tensor) -> Tensor:
        return self.operator(x) / self.c

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.operator.adjoint(y) / self.c


@pytest.mark.parametrize("norm", ["smoothed", "huber"])
def test_the_weight_multiplies_the_whole_regularizer(norm: str) -> None:
    """w R(u) + 1/2||Au - y||^2 + (mu/2)||u||^2 is w times R(u) + 1/2||(Au - y)/sqrt(w)||^2 + (mu/2w)||u||^2."""
    weight, shape = 5.0, (1, 6, 5)
    blur = Blur(torch.full((3, 3), 1 / 9), shape).double()
    y = 0.5 + 0.3 * smooth_image(2, *shape, seed=4)
    one = LearnedTV(**SETTINGS, norm=norm).double()  # type: ignore[arg-type]
    one.image_convexity = 0.4 / weight
    other = copy.deepcopy(one)
    other.image_convexity = 0.4
    other.multiply(weight)
    one.measured_by(Scaled(blur, weight**0.5))
    other.measured_by(blur)
    with torch.no_grad():
        expected, found = tight(one.saddle_point(y / weight**0.5)), tight(other.saddle_point(y))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


def test_whitened_operator() -> None:
    weights = normal(1, 6, 5, seed=2).abs()
    blur = Blur(torch.full((3, 3), 1 / 9), (1, 6, 5)).double()
    operator = weights.sqrt() * blur
    x = normal(2, 1, 6, 5)
    torch.testing.assert_close(operator(x), weights.sqrt() * blur(x))
    check_adjoint(operator, dtype=torch.float64)
    assert float(operator(x).norm()) <= operator.norm_bound * float(x.norm())


CT = ("--task", "ct", "--views", "12", "--dtype", "float64")


@pytest.fixture
def phantom(tmp_path: Path) -> Path:
    pytest.importorskip("astra", reason="needs the extra ct")
    np.save(tmp_path / "phantom.npy", (0.5 + 0.3 * smooth_image(1, 1, 12, 12, seed=3)[0, 0]).numpy())
    return tmp_path / "phantom.npy"


@pytest.mark.parametrize("noise", [("--noise", "0.02"), ("--photons", "1e4")])
def test_ct_is_certified(model: Path, phantom: Path, noise: tuple[str, str]) -> None:
    """Two solutions are as near to one another as their certificates say, from different accuracies."""
    images, errors = [], []
    for accuracy in ("5e-3", "1e-4"):
        options = (
            "--model",
            str(model),
            *noise,
            "--weight",
            "200",
            "--mu",
            "5",
            "--accuracy",
            accuracy,
            "--max-evaluations",
            "40000",
        )
        status, output, report = run(phantom, *CT, *options)
        assert status == 0
        assert report["error"] <= float(accuracy)
        assert (report["mu"], report["weight"], report["plain"]) == (5, 200, False)
        images.append(np.load(output / "phantom.npy"))
        errors.append(report["error"])
    assert np.linalg.norm(images[0] - images[1]) <= sum(errors)
    assert report["strong_convexity"] == 5
    assert report["residual"] > 0


def test_ct_weight_by_discrepancy_and_plain_form(model: Path, phantom: Path) -> None:
    options = ("--model", str(model), "--noise", "0.05")
    status, _, report = run(phantom, *CT, *options, "--choose", "discrepancy")
    assert status == 0
    assert report["residual"] == pytest.approx(0.05, rel=0.05)
    assert report["mu"] > 0
    status, _, plain = run(phantom, *CT, *options, "--plain", "--weight", str(report["weight"]), "--accuracy", "0.05")
    assert status == 0
    assert plain["error"] is None
    assert plain["plain"] is True
    assert plain["mu"] == 0
    assert plain["accuracy_rule"].endswith("of the residuals")


def test_a_checkpoint_of_training(tmp_path: Path, picture: Path) -> None:
    """What ``recon fit`` leaves behind is what is reconstructed with."""
    fitting = trainer(tmp_path, 1)
    module = SaddleModule(LearnedTV(**SETTINGS), partial(MAID, lr=0.3))  # type: ignore[arg-type]
    fitting.fit(module, datamodule=Tiny(sigma=0.1, dtype="float64"))
    fitting.save_checkpoint(tmp_path / "last.ckpt")
    status, output, report = run(picture, "--model", str(tmp_path / "last.ckpt"), "--accuracy", "1e-3")
    assert status == 0
    y = torch.from_numpy(np.moveaxis(np.load(picture), -1, 0).copy())[:, None]
    module.regularizer.measured_by(None)  # type: ignore[operator]
    module.reconstruction_accuracy = 1e-6
    x = torch.from_numpy(np.moveaxis(np.load(output / "noisy.npy"), -1, 0).copy())[:, None]
    assert float((x - module.reconstruct(y).x).norm()) <= report["error"] + 3e-6


def test_what_is_refused(model: Path, picture: Path, tmp_path: Path) -> None:
    given = ("--model", str(model))
    refused(
        "--nonnegative does not go with .*ltv.*, which holds a saddle-point model", picture, *given, "--nonnegative"
    )
    refused("--smoothing belongs to --method smoothed-tv", picture, *given, "--smoothing", "0.1")
    refused("LearnedTV has no mu for denoising", picture, *given, "--mu", "0.1")
    refused("--plain belongs to --model with a saddle-point model", picture, "--method", "tv", "--plain")
    energy = save_regularizer(TotalVariation(-2.0, -3.0), tmp_path / "tv", {"operator": "Identity"})
    refused(
        "--plain belongs to saddle-point models; .*tv.* holds a regularizer", picture, "--model", str(energy), "--plain"
    )
    np.save(tmp_path / "thin.npy", np.zeros((2, 9)))
    refused(
        r"thin\.npy: interpolation kernels of 3x3 are larger than images of 2x9",
        tmp_path / "thin.npy",
        *given,
        "--noise",
        "1",
    )


def test_complex_images_are_refused(model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "picture.npy", np.ones((12, 12)))
    options = ("--task", "mri", "--model", str(model), "--noise", "0.01")
    refused(r"picture\.npy: learned total variation needs images of the shape", tmp_path / "picture.npy", *options)

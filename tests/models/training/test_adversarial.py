"""Adversarial training: objective, penalty, weight, tuning, resume; descent with early stopping."""

from __future__ import annotations

import itertools
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from datasets import TomographyDataModule
from models import ICNN, ConvexRidge, ConvolutionalCritic, LeakyReLU
from models.files.arguments import typed_arguments
from models.files.checkpoints import AtomicCheckpointIO, CheckpointError
from models.files.storage import load_regularizer
from models.training.adversarial import AdversarialModule
from models.training.callbacks import LastCheckpoint
from models.training.critic import AdversarialObjective, CriticAdam, published_weight
from recon import metrics
from recon.lower_level import LBFGS, Energy, Regularizer, SquaredL2, WeightedSquaredL2
from recon.lower_level.solvers.descent import descend
from recon.operators import (
    Blur,
    CartesianMRI,
    FilteredBackProjection,
    ParallelBeam,
    RayTransform,
    simulated_sensitivities,
)
from recon.reconstruction.early_stopped import TIKHONOV, critic_reconstruction
from recon.reconstruction.weight import best_weight
from tests.lower_level.problems import perturb, smooth_image
from tests.lower_level.regularizer_checks import assert_batch, assert_parameter_derivatives
from tests.models.training.test_bilevel_module import Tiny, assert_same, trainer


class Linear(Regularizer):
    """R(x) = e^theta_0 <a, x>, whose gradient is e^theta_0 a everywhere."""

    def __init__(self, side: int = 6) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.a = nn.Parameter(torch.randn(1, side, side, generator=generator, dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.log_scale.exp() * (self.a * x).flatten(1).sum(1)

    def convexity(self) -> float:
        return 0.0


def pictures(count: int = 3, side: int = 10, sigma: float = 0.2) -> tuple[Tensor, Tensor]:
    x = smooth_image(count, 1, side, side, seed=1)
    return x, x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=x.dtype)


def icnn(seed: int = 0, **options: Any) -> ICNN:
    arguments = {"filters": 4, "size": 3, "inner_size": 3, "width": 0.1, "activation": "smooth"} | options
    made = perturb(ICNN(**typed_arguments(ICNN, arguments)).double(), seed, 0.2)
    assert isinstance(made, ICNN)
    return made


def critic(seed: int = 0) -> ConvolutionalCritic:
    return ConvolutionalCritic(filters=(3, 4, 5), size=3, seed=seed).double()


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5])
def test_penalty_of_a_linear_critic(factor: float) -> None:
    r"""grad C = c a with \|\|a\|\| = 1: penalty gamma (c - 1)_+^2, gradient in theta_0 2 gamma (c - 1)_+ c."""
    x, y = pictures(side=6)
    made = Linear()
    objective = AdversarialObjective(made, x, y, penalty=7.0)
    with torch.no_grad():
        made.a.mul_(factor * objective.weight / made.a.norm())
    value, gradient = objective._penalty(x)
    assert value == pytest.approx(7 * max(factor - 1, 0) ** 2, abs=1e-12)
    assert float(gradient[1]) == pytest.approx(14 * max(factor - 1, 0) * factor, abs=1e-12)


@pytest.mark.parametrize("make", [icnn, critic])
def test_gradient_of_the_objective(make: Any) -> None:
    """Against double backward through the formula as it is written, and that against differences."""
    x, y = pictures()
    made = make()
    objective = AdversarialObjective(made, x, y, penalty=3.0)
    objective.calibrate()
    with torch.no_grad():
        objective.scale += 0.5  # gradients above 1: the penalty counts
    index, t = torch.tensor([2, 0]), torch.tensor([0.3, 0.9], dtype=torch.float64)

    def plain() -> Tensor:
        u, v, s = x[index], y[index], t[:, None, None, None]
        z = (s * u + (1 - s) * v).requires_grad_(True)
        (g,) = torch.autograd.grad(made(z).sum() / objective.weight, z, create_graph=True)
        excess = (g.flatten(1).norm(dim=1) - 1).clamp_min(0)
        assert float(excess.detach().max()) > 0.1
        return (made(u).mean() - made(v).mean()) / objective.weight + 3.0 * excess.square().mean()

    value, gradient = objective.gradient(index, t)
    expected = plain()
    assert value == pytest.approx(float(expected.detach()), rel=1e-10)
    for mine, automatic in zip(gradient, torch.autograd.grad(expected, made.trainable()), strict=True):
        torch.testing.assert_close(mine, automatic, rtol=1e-8, atol=1e-10)
    h, directions = 1e-6, [torch.randn_like(p) for p in made.trainable()]
    values = []
    for step in (h, -2 * h):
        with torch.no_grad():
            for p, d in zip(made.trainable(), directions, strict=True):
                p.add_(step * d)
        values.append(float(plain().detach()))
    slope = sum(float((g * d).sum()) for g, d in zip(gradient, directions, strict=True))
    assert (values[0] - values[1]) / (2 * h) == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_the_optimal_critic_between_two_points() -> None:
    r"""All v = x + d: the linear critic tends to d, up to the excess 1/(2 gamma) that the penalty allows."""
    x = torch.zeros(2, 1, 6, 6, dtype=torch.float64)
    y = x.clone()
    y[:, 0, 2:4, 1:3] = 0.5  # ||d|| = 1
    made = Linear()
    objective = AdversarialObjective(made, x, y, penalty=20.0)
    objective.calibrate()
    adam = CriticAdam(made.trainable(), lr=0.1, lr_decay=0.3)
    losses = [adam.step(objective=objective).loss for _ in range(600)]
    gradient = (made.grad(x)[0] / objective.weight).detach()
    # min over c of -c ||d|| + 20 (c - 1)^2: c = 1 + 1/40, value -c + 1/80 ... = -1 - 1/80
    assert losses[-1] == pytest.approx(-1 - 1 / 80, abs=2e-3)
    torch.testing.assert_close(gradient, (1 + 1 / 40) * (y - x)[0], rtol=0, atol=0.02)


def test_calibrated_gradients_have_norm_one() -> None:
    x, y = pictures()
    made = critic()
    objective = AdversarialObjective(made, x, y)
    objective.calibrate()
    norms = made.grad((x + y) / 2).flatten(1).norm(dim=1) / objective.weight
    assert float(norms.mean()) == pytest.approx(1.0)


@pytest.mark.parametrize("fidelity", [SquaredL2(), SquaredL2(3.0), "weighted"])
def test_published_weight(fidelity: Any) -> None:
    """Against dense matrices."""
    x, _ = pictures(2, 6)
    operator = Blur(torch.tensor([[0.0, 1, 0], [1, 2, 1], [0, 1, 1]]) / 7, (1, 6, 6)).double()
    y = operator(x) + 0.1 * torch.randn(2, 1, 6, 6, dtype=torch.float64)
    weights = torch.ones(1, 6, 6, dtype=torch.float64)
    if fidelity == "weighted":
        weights = torch.rand(1, 6, 6, dtype=torch.float64)
        fidelity = WeightedSquaredL2(weights)
    elif fidelity.weight != 1:
        weights = weights * fidelity.weight
    matrix = torch.stack([operator(e.view(1, 1, 6, 6)).flatten() for e in torch.eye(36, dtype=torch.float64)], 1)
    residual = x.flatten(1) @ matrix.T - y.flatten(1)
    expected = ((weights.flatten() * residual) @ matrix).norm(dim=1).mean()
    assert published_weight(operator, fidelity, x, y) == pytest.approx(float(expected), rel=1e-10)


def test_what_the_critic_learns_from() -> None:
    operator = RayTransform(ParallelBeam.equispaced((12, 12), 1.0, 9), cache=False)
    x = smooth_image(3, 1, 12, 12, seed=0)
    y = operator(x) + 0.1
    found = AdversarialObjective(critic(1), x, y, operator).naive
    torch.testing.assert_close(found, FilteredBackProjection(operator, "ram-lak")(y))


def test_convolutional_critic() -> None:
    made = critic(1)
    x = smooth_image(3, 1, 9, 8, seed=2)
    assert_batch(made, x)
    assert_parameter_derivatives(made, x, torch.randn_like(x))
    grad = made.grad(x)
    v, h = torch.randn_like(x), 1e-5
    slope = (made(x + h * v) - made(x - h * v)) / (2 * h)
    torch.testing.assert_close(slope, (grad * v).flatten(1).sum(1), rtol=1e-6, atol=1e-8)
    assert made.convexity() == -math.inf
    for wrong in ({"size": 4}, {"filters": ()}, {"width": 0.0}, {"slope": 1.0}, {"channels": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ConvolutionalCritic(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="images have the shape"):
        made(x.repeat(1, 2, 1, 1))


def test_best_weight_of_a_known_function() -> None:
    for optimum in (1e-3, 0.7, 40.0):
        weight, tried = best_weight(lambda w, best=optimum: -abs(math.log(w / best)), 1.0)
        assert optimum / math.sqrt(2) <= weight <= optimum * math.sqrt(2)
        assert len(tried) < 20
        assert max(tried, key=lambda t: t[1])[0] == pytest.approx(weight)
    with pytest.raises(ValueError, match="still grows"):
        best_weight(lambda w: w, 1.0)
    with pytest.raises(ValueError, match="NaN"):
        best_weight(lambda w: math.nan, 1.0)
    with pytest.raises(ValueError, match="first weight is 0"):
        best_weight(lambda w: w, 0.0)


def test_descent_reaches_the_minimizer_of_a_convex_energy() -> None:
    _, y = pictures()
    energy = Energy(y, icnn(log_scale=-1.0), mu=0.1)
    expected = LBFGS()(energy, y, 1e-8).x
    values: list[Tensor] = []
    x, grad = descend(energy, y, 300, lambda now: values.append(energy.value_and_grad(now.x)[0]))
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(grad, energy.grad(x))
    assert len(values) == 301
    assert all((b <= a).all() for a, b in itertools.pairwise(values))


def fit(
    folder: Path, epochs: int, resume: Path | None = None, make: Any = None, **options: Any
) -> tuple[AdversarialModule, Path]:
    path = folder / "last.ckpt"
    made = make() if make is not None else ICNN(filters=4, size=3, activation=LeakyReLU(width=0.05, kind="smooth"))
    module = AdversarialModule(made, mu=0.1, descent_iterations=15, **{"tune_images": 2} | options)
    fitting = trainer(
        folder, epochs, enable_checkpointing=True, callbacks=[LastCheckpoint(path)], plugins=[AtomicCheckpointIO()]
    )
    fitting.fit(module, datamodule=Tiny(sigma=0.1), ckpt_path=resume)
    return module, path


@pytest.mark.parametrize("images", [2, None])
def test_resume_is_bit_identical(tmp_path: Path, images: int | None) -> None:
    whole, _ = fit(tmp_path / "whole", 6, tune_images=images)
    _, path = fit(tmp_path / "parts", 3, tune_images=images)
    resumed, _ = fit(tmp_path / "parts", 6, path, tune_images=images)
    assert resumed.record == whole.record
    assert resumed.weight == whole.weight
    assert_same(dict(resumed.regularizer.state_dict()), dict(whole.regularizer.state_dict()))


def test_training_tells_true_images_from_noisy_ones_and_stays_convex(tmp_path: Path) -> None:
    module, path = fit(tmp_path, 40)
    x, y = Tiny(sigma=0.1).train_tensors()
    assert bool((module.regularizer(x) < module.regularizer(y)).all())
    assert module.record is not None
    assert module.record.loss < 0
    # convex along segments
    a, b = smooth_image(4, 1, 16, 16, seed=1), torch.randn(4, 1, 16, 16, dtype=torch.float64)
    middle = module.regularizer((a + b) / 2)
    assert bool((middle <= (module.regularizer(a) + module.regularizer(b)) / 2 + 1e-12).all())
    # certified, and better than the data
    found = module.reconstruct(y)
    assert bool((found.error <= module.reconstruction_accuracy).all())
    assert float(metrics.psnr(found.x, x).mean()) > float(metrics.psnr(y, x).mean()) + 0.5
    # the file holds the regularizer with the tuned weight
    saved, _ = load_regularizer(path)
    assert_same(dict(saved.state_dict()), dict(module.regularizer.state_dict()))
    best = max(value for _, value in module.trials)
    assert dict(module.trials)[module.weight] == best  # type: ignore[index]


def test_tuning_finds_the_best_weight(tmp_path: Path) -> None:
    """R = e^theta_0 1/2||x||^2: the minimizer is y / (1 + weight), which is best for y = 4x where the weight is 3."""

    class Quadratic(Regularizer):
        def __init__(self) -> None:
            super().__init__()
            self.log_scale = nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return 0.5 * self.log_scale.exp() * x.square().flatten(1).sum(1)

        def convexity(self) -> float:
            return float(self.log_scale.exp())

        smoothness = convexity

    module = AdversarialModule(Quadratic(), reconstruction_accuracy=1e-6)
    with pytest.raises(ValueError, match="fit the module first"):
        module.tune_weight(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4))
    module.weight = 1.0
    x = smooth_image(1, 1, 8, 8, seed=1)
    weight = module.tune_weight(x, 4 * x)
    assert 3 / math.sqrt(2) <= weight <= 3 * math.sqrt(2)
    assert float(module.regularizer.convexity()) == pytest.approx(weight)


def test_a_critic_that_is_not_convex_is_not_certified(tmp_path: Path) -> None:
    module, path = fit(tmp_path, 5, make=lambda: ConvolutionalCritic(filters=(4, 4, 4), size=3))
    y = Tiny(sigma=0.1).train_tensors()[1]
    found = module.reconstruct(y)
    assert bool(found.error.isinf().all())
    assert 1 <= module.descent_iterations <= 15
    energy = Energy(y, module.regularizer, mu=0.1)
    torch.testing.assert_close(found.x, descend(energy, y, module.descent_iterations)[0])
    again = AdversarialModule(ConvolutionalCritic(filters=(4, 4, 4), size=3), mu=0.1)
    trainer(tmp_path, 1).test(again, datamodule=Tiny(sigma=0.1, test="builtin"), ckpt_path=path, verbose=False)
    assert (again.weight, again.descent_iterations) == (module.weight, module.descent_iterations)


def test_checkpoints_of_critics_of_the_older_filtered_back_projection(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They learned from other images than a resumed training would show them; descent would start elsewhere."""

    def run(make: Any, resume: Path | None = None, test: bool = False) -> Path:
        path, module = tmp_path / "last.ckpt", AdversarialModule(make(), tune_images=None, descent_iterations=2)
        data = TomographyDataModule(size=16, views=8, limit=2, relative_sigma=0.03, cache=False)
        fitting = trainer(
            tmp_path,
            3 if resume else 2,
            enable_checkpointing=True,
            callbacks=[LastCheckpoint(path)],
            plugins=[AtomicCheckpointIO()],
        )
        if test:
            fitting.test(module, datamodule=data, ckpt_path=resume, verbose=False)
        else:
            fitting.fit(module, datamodule=data, ckpt_path=resume)
        return path

    for make, warned in ((partial(ConvolutionalCritic, filters=(3, 3), size=3), True), (icnn, False)):
        path = run(make)
        run(make, path, test=True)
        assert "sampled in frequency" not in caplog.text
        content = torch.load(path, weights_only=True)
        assert content["bilevel"]["adversarial"].pop("ramp") == "space"
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=r"last\.ckpt: is of critics .* sampled in frequency.*; train anew"):
            run(make, path)
        run(make, path, test=True)
        assert ("its descent starts from these" in caplog.text) == warned
        caplog.clear()


def loader(x: Tensor, y: Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(x, y, torch.arange(len(x))), batch_size=len(x))


def test_bad_input(tmp_path: Path) -> None:
    x, y = pictures()
    with pytest.raises(ValueError, match="tuned on validation data, but there are none"):
        trainer(tmp_path).fit(AdversarialModule(icnn()), loader(x, y))
    bad = y.clone()
    bad[1, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="data: image 1 holds values that are NaN"):
        trainer(tmp_path).fit(AdversarialModule(icnn(), tune_images=None), loader(x, bad))
    with pytest.raises(ValueError, match="no noise at all"):
        trainer(tmp_path).fit(AdversarialModule(icnn(), tune_images=None), loader(x, x))
    smaller = y[..., :8]
    with pytest.raises(ValueError, match="the operator must be that of the data"):
        trainer(tmp_path).fit(AdversarialModule(icnn(), tune_images=None), loader(x, smaller))
    with pytest.raises(ValueError, match="no parameter log_scale"):
        AdversarialModule(ConvexRidge())
    module = AdversarialModule(icnn())
    module.weight = 1.0
    with pytest.raises(ValueError, match="there are 0 true images"):
        module.tune_weight(x[:0], y[:0])
    with pytest.raises(ValueError, match="NaN or infinite"):
        module.tune_weight(x, bad)
    for options in ({"penalty": -1.0}, {"tune_images": 0}, {"descent_iterations": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} is "):
            AdversarialModule(icnn(), **options)  # type: ignore[arg-type]
    for wrong in ({"lr": 0.0}, {"batch_size": 0}, {"lr_decay": -1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is "):
            CriticAdam(icnn().trainable(), **wrong)  # type: ignore[arg-type]


def test_checkpoints_of_other_methods(tmp_path: Path) -> None:
    from tests.models.training.test_bilevel_module import fit_foe

    _, path = fit_foe(tmp_path, 1)
    from models import FieldsOfExperts

    module = AdversarialModule(FieldsOfExperts(filters=2, size=3), mu=0.1)
    with pytest.raises(CheckpointError, match="not a checkpoint of adversarial training"):
        trainer(tmp_path, 2).fit(module, datamodule=Tiny(), ckpt_path=path)


def test_arguments_are_known_to_lightning() -> None:
    assert issubclass(AdversarialModule, pl.LightningModule)


def test_critics_learn_from_data_that_are_inverted() -> None:
    mask = torch.rand((8, 8), generator=torch.Generator().manual_seed(3)) < 0.5
    operator = CartesianMRI(mask, simulated_sensitivities(3, (8, 8))).double()
    y = operator(torch.randn(2, 2, 8, 8, dtype=torch.float64)) + 0.1 * mask
    matrix = torch.stack([operator(e.view(1, 2, 8, 8)).flatten() for e in torch.eye(128, dtype=torch.float64)], 1)
    normal = matrix.T @ matrix + TIKHONOV * operator.norm_bound**2 * torch.eye(128, dtype=torch.float64)
    expected = torch.linalg.solve(normal, matrix.T @ y.flatten(1).T).T.view(2, 2, 8, 8)
    # the residual of CG is 1e-3 of A^T y, and errors are up to the condition number larger
    found = critic_reconstruction(y, operator)
    residual = (normal @ (found - expected).flatten(1).T).norm(dim=0)
    assert bool((residual <= 1.001e-3 * operator.adjoint(y).flatten(1).norm(dim=1)).all())
    assert float((found - expected).norm()) < 0.2 * float(expected.norm())
    assert not bool(critic_reconstruction(torch.zeros_like(y), operator).any())

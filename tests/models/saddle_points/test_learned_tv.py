"""Learned discretisations of the total variation: kernels, problem, derivatives, certificates, training, bad input."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor

from models import LearnedTV, TotalVariation
from models.files.arguments import typed_arguments
from models.files.checkpoints import CheckpointError
from models.files.storage import ModelFileError, load_model, load_regularizer, save_regularizer
from models.saddle_points.learned_tv import InterpolationMap
from models.training.callbacks import ImageLogger
from models.training.saddle import SaddleModule
from recon.bilevel import MAID, Accuracy, InexactAdam, LineSearch, Piggyback, SaddleObjective
from recon.lower_level import LBFGS, PDHG, Energy, SaddleModel, SaddlePoint
from recon.lower_level.saddle.maps import SaddleMap, check_transpose, power_method
from recon.operators import Blur, LinearOperator, ParallelBeam, RayTransform
from tests.lower_level.problems import normal, smooth_image
from tests.models.training.test_bilevel_module import Tiny, assert_same, trainer

SHAPE = (1, 7, 6)


def model(**options: Any) -> LearnedTV:
    settings: dict[str, Any] = {"log_weight": -1.5, "dual_convexity": 0.3, "field_convexity": 0.2, "smoothing": 0.1}
    return LearnedTV(**typed_arguments(LearnedTV, settings | options)).double()


def data(count: int = 2, shape: tuple[int, int, int] = SHAPE) -> tuple[Tensor, Tensor]:
    target = 0.5 + 0.3 * smooth_image(count, *shape, seed=3)
    return target, target + normal(count, *shape, scale=0.15)


@pytest.mark.parametrize(("kernels", "size", "shape"), [(1, 1, (1, 1, 4)), (3, 3, SHAPE), (2, 5, (1, 5, 9))])
def test_map_is_its_definition(kernels: int, size: int, shape: tuple[int, int, int]) -> None:
    """Du - K^T v with K p correlations of zero-padded components; transpose, bound and absolute sums of its matrix."""
    operator = InterpolationMap(normal(2, kernels, size, size, scale=0.5), shape)
    k = SaddleMap(operator)
    check_transpose(k)
    with torch.no_grad():
        matrix = k(torch.eye(k.domain_size, dtype=torch.float64)).T
    assert torch.linalg.matrix_norm(matrix, 2) <= k.norm_bound * (1 + 1e-12)
    assert power_method(k) <= k.norm_bound
    sums = k.absolute_sums()
    assert sums is not None
    columns, rows = sums
    assert (matrix.abs().sum(0) <= columns + 1e-12).all()
    assert (matrix.abs().sum(1) <= rows + 1e-12).all()
    p = normal(1, 2, *shape[1:], seed=5)
    half = size // 2
    padded = F.pad(p, (half, half, half, half))
    expected = torch.zeros(2, kernels, *shape[1:], dtype=torch.float64)
    for a in range(size):
        for b in range(size):
            moved = padded[0, :, None, a : a + shape[1], b : b + shape[2]]
            expected += operator.kernels[:, :, a, b, None, None] * moved
    torch.testing.assert_close(operator.interpolate(p.flatten(1)), expected.reshape(1, -1))


def test_single_precision_with_an_operator_that_has_buffers_in_double_precision() -> None:
    """The kernel of a blur is in float64 whatever the images are in."""
    target, _ = data()
    blur = Blur(0.8, SHAPE, "reflect")
    y = (blur(target) + normal(*target.shape, seed=4, scale=0.05)).float()
    single = model(image_convexity=0.3).float()
    single.measured_by(blur)
    objective = SaddleObjective(single, target.float(), y)
    evaluation = objective.evaluate(Accuracy(1e-3, 1e-3))
    assert evaluation.x.dtype == torch.float32
    assert bool((evaluation.error <= 1e-3).all())


@pytest.mark.parametrize("initial", ["averages", "random"])
def test_kernels_keep_their_sum(initial: Any) -> None:
    learned = model(initial=initial, kernels=4)
    with torch.no_grad():
        start = learned.kernels.clone()
        learned.raw += normal(*learned.raw.shape)
    torch.testing.assert_close(start.sum((2, 3)), torch.ones(2, 4, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(learned.kernels.sum((2, 3)), torch.ones(2, 4, dtype=torch.float64))
    free = model(initial=initial, kernels=4, sum_constraint=False)
    assert torch.equal(free.kernels, free.raw)


def test_condats_averages_interpolate_linear_fields_exactly() -> None:
    """p_1 lives at (i + 1/2, j), p_2 at (i, j + 1/2): on each grid both are the values of the linear field there."""
    learned = model(kernels=4)
    k = InterpolationMap(learned.kernels.detach(), (1, 6, 6))
    i, j = (t.double() for t in torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij"))

    def field(row: Tensor, column: Tensor) -> Tensor:
        return 2 * row - 3 * column + 1

    p = torch.stack([field(i + 0.5, j), field(i, j + 0.5)])
    found = k.interpolate(p.reshape(1, -1)).view(2, 4, 6, 6)[..., 1:-1, 1:-1]
    for number, (row, column) in enumerate([(0.5, 0.0), (0.0, 0.5), (0.0, 0.0), (0.5, 0.5)]):
        expected = field(i + row, j + column)[1:-1, 1:-1]
        for component in range(2):
            torch.testing.assert_close(found[component, number], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("plain", [True, False])
def test_identity_is_the_isotropic_total_variation(plain: bool) -> None:
    """The plain form agrees with a nearly unsmoothed TV; so does the regularized one with small regularization."""
    _, y = data()
    small = {} if plain else {"dual_convexity": 1e-3, "field_convexity": 1e-3, "smoothing": 1e-4}
    learned = model(kernels=1, size=1, initial="identity", log_weight=-2.0, **small)
    with torch.no_grad():
        saddle = learned.saddle_point(y, plain)
        solver = PDHG(200_000, diagonal=True, certified=False)
        x = saddle.image(solver(saddle, *saddle.split(torch.zeros(2, 42 * 5, dtype=torch.float64)), 1e-7).x)
    exact = LBFGS()(Energy(y, TotalVariation(-2.0, -9.0).double()), y, 1e-5).x
    assert float((x - exact).norm()) <= 5e-3 * float((y - exact).norm())


@pytest.mark.parametrize("kind", ["smoothed", "fair", "huber", "blur", "ct"])
def test_hypergradients_agree_with_finite_differences(kind: str) -> None:
    measured = kind in ("blur", "ct")
    norm = kind if kind in ("fair", "huber") else "smoothed"
    learned = model(kernels=3, norm=norm, image_convexity=0.1 if measured else 0)
    target, y = data()
    if measured:
        learned.measured_by(operator := measurement(kind))
        y = operator(y)
    accuracy = Accuracy(1e-12, 1e-12)

    def loss() -> float:
        return SaddleObjective(learned, target, y, solver=PDHG(diagonal=True)).evaluate(accuracy, None, False).value

    of = SaddleObjective(learned, target, y, solver=PDHG(diagonal=True))
    found = of.hypergradient(of.evaluate(accuracy), accuracy, bound=True)
    assert found.error < 1e-5 or kind == "huber"
    direction = normal(len(found.z), seed=7)
    h, start = 1e-5, torch.nn.utils.parameters_to_vector(of.params).detach()
    values = []
    for sign in (1, -1):
        torch.nn.utils.vector_to_parameters(start + sign * h * direction, of.params)
        values.append(loss())
    expected = (values[0] - values[1]) / (2 * h)
    assert float(found.z @ direction) == pytest.approx(expected, rel=1e-6)


def test_bound_of_hypergradients_and_certified_distance_hold() -> None:
    target, y = data()
    learned = model()
    of = SaddleObjective(learned, target, y)
    best = of.evaluate(Accuracy(1e-11, 1e-11))
    exact = of.hypergradient(best, Accuracy(1e-11, 1e-11)).z
    for eps in (1e-1, 1e-3):
        accuracy = Accuracy(eps, eps)
        at = SaddleObjective(learned, target, y).evaluate(accuracy)
        n = of.saddle_point(slice(0, 1)).g.size
        saddle, x, best_x = of.saddle_point(slice(0, 2)), at.x[:, :n], best.x[:, :n]
        assert saddle.spread == pytest.approx((1 / 0.2) ** 0.5)
        assert ((x - best_x).norm(dim=1) <= saddle.spread * at.error).all()
        assert ((saddle.image(x) - saddle.image(best_x)).flatten(1).norm(dim=1) <= at.error).all()
        found = of.hypergradient(at, accuracy, bound=True)
        assert found.certified
        assert float((found.z - exact).norm()) <= found.error


@pytest.mark.parametrize("kind", ["denoising", "blur", "ct"])
def test_bound_of_hypergradients_in_random_cases(kind: str) -> None:
    """Random kernels, weights, data and accuracies: omega is never below the error, and finite."""
    ratios: list[float] = []
    for seed in range(20):
        learned = model(
            kernels=2, initial="random", norm=("fair", "smoothed")[seed % 2], image_convexity=0.2, seed=seed
        )
        target = 0.5 + 0.3 * smooth_image(1, *SHAPE, seed=seed)
        y = target + normal(1, *SHAPE, seed=seed + 100, scale=0.2)
        if kind != "denoising":
            learned.measured_by(operator := measurement(kind))
            y = operator(y)
        of = SaddleObjective(learned, target, y, solver=PDHG(diagonal=True))
        tight = Accuracy(1e-10, 1e-10)
        exact = of.hypergradient(of.evaluate(tight), tight).z
        for eps in (1.0, 1e-2):
            accuracy = Accuracy(eps, eps)
            found = of.hypergradient(of.evaluate(accuracy), accuracy, bound=True)
            assert found.certified
            ratios.append(float((found.z - exact).norm()) / found.error)
    assert 1e-7 < max(ratios) <= 1


@pytest.mark.parametrize("lr", [1e4, 1e12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_maid_recovers_from_absurd_steps(lr: float, dtype: torch.dtype) -> None:
    """Weights that overflow, kernels of any size: the trial is refused, and the loss descends in the end."""
    target, y = (t.to(dtype) for t in data(1, (1, 8, 8)))
    learned = model(kernels=2).to(dtype)
    of = SaddleObjective(learned, target, y, solver=PDHG(2000, diagonal=True))
    optimizer = MAID(of.params, lr=lr, line_search=LineSearch(trials=60))
    records = [optimizer.step(objective=of) for _ in range(3)]
    assert all(bool(torch.isfinite(p).all()) for p in of.params)
    assert records[-1].upper < records[0].upper
    assert all(r.lower <= r.loss <= r.upper for r in records)


def test_the_result_does_not_depend_on_the_initial_accuracy() -> None:
    target, y = data(2)
    found = []
    for accuracy in (1e2, 1.0, 1e-3, 1e-6):
        learned = model(kernels=1, size=1, initial="identity", learn_kernels=False)
        of = SaddleObjective(learned, target, y, solver=PDHG(diagonal=True))
        optimizer = MAID(of.params, solution_accuracy=accuracy, adjoint_accuracy=accuracy, tolerance=1e-4)
        while not optimizer.step(objective=of).finished:
            pass
        found.append(float(learned.log_weight.detach()))
    assert found == pytest.approx([found[0]] * 4, abs=1e-2)


def measurement(kind: str) -> LinearOperator:
    """A blur, or the rays of a small scan."""
    if kind == "blur":
        return Blur(torch.full((3, 3), 1 / 9), SHAPE).double()
    return RayTransform(ParallelBeam.equispaced(SHAPE[1:], 1.0, 5), cache=False).double()


def test_fit_and_resume_are_the_method(tmp_path: Path) -> None:
    """Training by Lightning is the method alone, and a resumed run makes the same iterations."""

    def module() -> SaddleModule:
        return SaddleModule(model(kernels=2), partial(MAID, lr=0.3), PDHG(diagonal=True))

    whole = module()
    fitting = trainer(tmp_path, 4)
    fitting.fit(whole, datamodule=Tiny(sigma=0.1, dtype="float64"))
    x, y = Tiny(sigma=0.1, dtype="float64").train_tensors()
    alone = model(kernels=2)
    of = SaddleObjective(alone, x, y, solver=PDHG(diagonal=True))
    method = MAID(of.params, lr=0.3)
    records = [method.step(objective=of) for _ in range(4)]
    assert whole.record == records[-1]
    assert records[-1].loss < records[0].loss
    assert_same(whole.regularizer.state_dict(), alone.state_dict())
    assert float(fitting.callback_metrics["val_error"]) <= whole.reconstruction_accuracy

    checkpoint = tmp_path / "last.ckpt"
    half = trainer(tmp_path, 2)
    half.fit(module(), datamodule=Tiny(sigma=0.1, dtype="float64"))
    half.save_checkpoint(checkpoint)
    resumed = module()
    trainer(tmp_path, 4).fit(
        resumed, datamodule=Tiny(sigma=0.1, dtype="float64"), ckpt_path=str(checkpoint), weights_only=True
    )
    assert resumed.record == records[-1]
    other = SaddleModule(model(kernels=2), partial(MAID, lr=0.3), PDHG(diagonal=True), Piggyback(iterations=5))
    with pytest.raises(CheckpointError, match=r"piggyback\.iterations is nothing there, but 5 here"):
        trainer(tmp_path, 4).fit(
            other, datamodule=Tiny(sigma=0.1, dtype="float64"), ckpt_path=str(checkpoint), weights_only=True
        )


def test_kernels_are_among_the_pictures_of_training(tmp_path: Path) -> None:
    """A row for each component, a column for each kernel, pixels twelve times as large, one of white between them."""
    fitting = trainer(tmp_path, 1, logger=CSVLogger(tmp_path), callbacks=[ImageLogger(1)])
    module = SaddleModule(model(kernels=2), partial(MAID, lr=0.3), PDHG(diagonal=True))
    fitting.fit(module, datamodule=Tiny(sigma=0.1, dtype="float64"))
    folder = Path(str(fitting.log_dir)) / "images"
    assert (folder / "reconstruction_0.png").is_file()
    with Image.open(folder / "filters.png") as picture:
        assert picture.size == (12 * 9, 12 * 9)
        pixels = np.asarray(picture)[::12, ::12]
    assert (pixels[0] == 255).all()
    assert isinstance(module.regularizer, LearnedTV)
    k = module.regularizer.kernels.detach()[1, 0]
    expected = 255 * (0.5 + 0.5 * k / k.abs().max())
    np.testing.assert_allclose(pixels[5:8, 1:4], expected.numpy(), atol=0.51)


def test_fixed_iterations_by_adam(tmp_path: Path) -> None:
    module = SaddleModule(model(kernels=2), partial(InexactAdam, lr=0.05), piggyback=Piggyback(iterations=30))
    losses = []
    module.log = lambda name, value, **_: losses.append(float(value)) if name == "loss" else None  # type: ignore[method-assign]
    trainer(tmp_path, 4).fit(module, datamodule=Tiny(sigma=0.1, dtype="float64"))
    assert losses[-1] < losses[0]


def test_the_module_takes_over_the_operator_of_the_data(tmp_path: Path) -> None:
    blur = Blur(torch.full((3, 3), 1 / 9), (1, 16, 16))
    module = SaddleModule(model(image_convexity=0.05), partial(MAID, lr=0.3))
    trainer(tmp_path, 1).fit(module, datamodule=Tiny(sigma=0.05, dtype="float64", operator=blur.double()))
    assert isinstance(module.operator, Blur)
    assert module.record is not None
    assert not any("kernel" in name for name in module.regularizer.state_dict())

    class Denoiser(SaddleModel):
        def saddle_point(self, y: Tensor) -> SaddlePoint:
            raise AssertionError

    with pytest.raises(ValueError, match="Denoiser takes no operator"):
        SaddleModule(Denoiser(), operator=blur)


def test_saved_models_come_back(tmp_path: Path) -> None:
    learned = model(kernels=3, initial="random", size=5)
    path = save_regularizer(learned, tmp_path / "tv")
    found, _ = load_model(path)
    assert isinstance(found, LearnedTV)
    assert_same(found.state_dict(), learned.state_dict())
    with pytest.raises(ModelFileError, match="holds a saddle-point model, LearnedTV"):
        load_regularizer(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernels": 0}, "kernels is 0"),
        ({"size": 4}, "size of kernels is 4, but must be odd"),
        ({"initial": "other"}, "initial is 'other', but must be one of identity, averages, random"),
        ({"initial": "identity", "kernels": 2}, "identity is one kernel"),
        ({"kernels": 5}, "averages are at most 4 kernels"),
        ({"dual_convexity": 0.0}, r"dual_convexity is 0\.0, but must be positive"),
        ({"field_convexity": -1.0}, r"field_convexity is -1\.0"),
        ({"image_convexity": -1.0}, r"image_convexity is -1\.0"),
        ({"norm": "l1"}, "norm is 'l1'"),
        ({"log_weight": float("nan")}, "log_weight is nan"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**options)


def test_bad_data() -> None:
    learned = model(size=5)
    with pytest.raises(ValueError, match="kernels of 5x5 are larger than images of 7x4"):
        learned.saddle_point(torch.zeros(1, 1, 7, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"\(1, height, width\), not \(3, 8, 8\)"):
        learned.saddle_point(torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    learned.measured_by(Blur(torch.full((3, 3), 1 / 9), (1, 8, 8)).double())
    with pytest.raises(ValueError, match=r"\(1, 9, 9\), but those of A are \(1, 8, 8\)"):
        learned.saddle_point(torch.zeros(1, 1, 9, 9, dtype=torch.float64))
    y = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    of = SaddleObjective(learned, y, y)
    with pytest.raises(ValueError, match="strongly convex g"):  # no image_convexity
        of.evaluate(Accuracy(1.0, 1.0))

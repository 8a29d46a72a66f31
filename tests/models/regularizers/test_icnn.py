"""Input convex networks as regularizers: derivatives, constants, and the parametrization."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from models import ICNN
from models.files.arguments import typed_arguments
from models.files.storage import load_regularizer, save_regularizer
from recon.lower_level import Regularizer
from tests.lower_level.problems import normal, norms, perturb, smooth_image
from tests.lower_level.regularizer_checks import (
    assert_batch,
    assert_derivatives,
    assert_hessian_bounds,
    assert_hessian_variation,
    assert_parameter_derivatives,
)


def make(seed: int = 0, **options: object) -> ICNN:
    arguments = {"filters": 4, "size": 3, "width": 0.3, "log_weight": -1.0} | options
    made = perturb(ICNN(**typed_arguments(ICNN, arguments)).double(), seed, 0.3)  # type: ignore[arg-type]
    assert isinstance(made, ICNN)
    return made


VARIANTS = [
    {"activation": "smooth"},
    {"activation": "smooth", "layers": 2, "inner_size": 2, "slope": 0.0},
    {"activation": "smooth", "layers": 3, "zero_mean": False},
    {"activation": "huber"},
    {"activation": "huber", "layers": 2, "inner_size": 2, "slope": 0.0},
]


@pytest.mark.parametrize("options", VARIANTS)
def test_derivatives(options: dict[str, object]) -> None:
    regularizer = make(1, **options)
    x = smooth_image(2, 2, 8, 7, seed=2)
    if options["activation"] == "smooth":
        assert_derivatives(regularizer, x)
    else:  # finite differences of gradients miss the jumps of second derivatives; the rest is exact
        expected = Regularizer.value_and_grad(regularizer, x)
        for mine, automatic in zip(regularizer.value_and_grad(x), expected, strict=True):
            torch.testing.assert_close(mine, automatic, rtol=1e-10, atol=1e-12)
        v = normal(*x.shape, seed=5)
        product = Regularizer.hessian(regularizer, x)(v)
        torch.testing.assert_close(regularizer.hessian(x)(v), product, rtol=1e-10, atol=1e-11)
        assert_parameter_derivatives(regularizer, x, v)
    assert_batch(regularizer, x)


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("seed", [0, 1])
def test_hessian_between_its_bounds(options: dict[str, object], seed: int) -> None:
    regularizer = make(seed, **options)
    low, high = assert_hessian_bounds(regularizer, smooth_image(1, 1, 6, 6, seed=seed))
    assert low >= -1e-12
    assert high >= 1e-3 * regularizer.smoothness()  # a bound, not an astronomical number
    assert regularizer.rounding_gain() <= regularizer.smoothness()


@pytest.mark.parametrize("options", VARIANTS[:3])
@pytest.mark.parametrize("seed", [0, 1])
def test_hessian_variation(options: dict[str, object], seed: int) -> None:
    regularizer = make(seed, **options)
    x, w = smooth_image(2, 1, 7, 6, seed=seed), normal(2, 1, 7, 6, seed=seed + 5)
    used = 0.0
    for scale in (1.0, 0.1, 1e-3):
        e = scale * normal(2, 1, 7, 6, seed=seed + 9)
        used = max(used, assert_hessian_variation(regularizer, x, w, e)[1])
    assert used > 1e-5


def test_huber_has_no_constant_of_the_third_derivative() -> None:
    assert make().hessian_variation(normal(1, 1, 6, 6)) is None


@pytest.mark.parametrize("options", [*VARIANTS, {"width": 0.0}, {"width": 0.0, "layers": 2}])
def test_convex_at_any_parameters(options: dict[str, object]) -> None:
    """Along segments, with parameters far from the initial ones."""
    for seed in range(5):
        regularizer = perturb(make(seed, **options), seed, 2.0)
        a, b = normal(20, 1, 7, 7, seed=seed), normal(20, 1, 7, 7, seed=seed + 1, scale=2)
        with torch.no_grad():
            middle, ends = regularizer((a + b) / 2), (regularizer(a) + regularizer(b)) / 2
        assert bool((middle <= ends * (1 + 1e-12) + 1e-12).all())
        assert bool((ends - middle > 1e-6 * ends).any())


def test_subgradient_of_the_network_with_kinks() -> None:
    regularizer = make(3, width=0.0, layers=2)
    a, b = normal(30, 1, 7, 7, seed=1), normal(30, 1, 7, 7, seed=2)
    (at_a, grad), at_b = regularizer.value_and_grad(a), regularizer.value_and_grad(b)[0]
    assert bool((at_b >= at_a + (grad * (b - a)).flatten(1).sum(1) - 1e-10).all())
    assert regularizer.smoothness() == math.inf


def test_smoothing_is_uniformly_close() -> None:
    """sigma_w lies at most w/2 below the leaky ReLU, and every layer adds up what the last one lost."""
    x = normal(3, 1, 8, 8, seed=4)
    sharp = make(2, width=0.0)
    for width in (0.1, 0.01):
        smooth = make(2, width=width)
        smooth.load_state_dict(sharp.state_dict())
        with torch.no_grad():
            gap = sharp(x) - smooth(x)
            sizes, positions = smooth._sizes(), 36
            assert sizes is not None
            most = 0.5 * width * float((sizes.weights[0].sum() + smooth.weights().sum()) * positions)
        assert bool((gap >= 0).all())
        assert bool((gap <= most).all())
        assert float(norms(gap[:, None]).max()) > 0


def test_channels_are_independent_and_constants_invisible() -> None:
    regularizer = make(1)
    x = normal(2, 2, 7, 7, seed=3)
    with torch.no_grad():
        total = regularizer(x)
        single = regularizer(x[:, :1]) + regularizer(x[:, 1:])
        torch.testing.assert_close(total, single)
        torch.testing.assert_close(regularizer(x + 3.0), total)
        assert not torch.allclose(make(1, zero_mean=False)(x + 3.0), make(1, zero_mean=False)(x))


def test_saved_and_loaded(tmp_path: Path) -> None:
    regularizer = make(1, layers=2, inner_size=2)
    loaded, _ = load_regularizer(save_regularizer(regularizer, tmp_path / "icnn"))
    x = normal(2, 1, 8, 8, seed=3)
    torch.testing.assert_close(loaded(x), regularizer(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filters": 0}, "filters is 0"),
        ({"layers": 0}, "layers is 0"),
        ({"slope": 1.0}, "slope is 1"),
        ({"slope": -0.1}, "slope is -0.1"),
        ({"width": -1.0}, "width is -1"),
        ({"width": 0.0, "activation": "smooth"}, "positive for 'smooth'"),
        ({"activation": "relu"}, "activation is 'relu'"),
        ({"mixing": 1.0}, "mixing is 1"),
    ],
)
def test_bad_arguments(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ICNN(**typed_arguments(ICNN, options))  # type: ignore[arg-type]


def test_images_that_are_too_small() -> None:
    with pytest.raises(ValueError, match="smaller than the filters of 5x5"):
        make(layers=2, inner_size=2)(normal(1, 1, 4, 9))

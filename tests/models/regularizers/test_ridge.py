"""What all regularizers with filters share: their derivatives, parametrization, cache and refusals."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.regularizers import ridge
from models.regularizers.filter_bank import Response, frequency_response
from models.regularizers.ridge import RidgeRegularizer
from recon.lower_level import Regularizer
from tests.lower_level.problems import make, normal
from tests.lower_level.regularizer_checks import assert_batch, assert_derivatives, assert_hessian_bounds

NAMES = ["foe_l1", "foe_student", "foe_weak_log_cosh", "multi_weak_max", "crr", "wcrr"]
ALL = [*NAMES, "foe_log_cosh", "foe_weak_l1", "multi_max", "multi_norm", "multi_weak_norm"]


@pytest.fixture(params=NAMES)
def regularizer(request: pytest.FixtureRequest) -> RidgeRegularizer:
    made = make(request.param)
    assert isinstance(made, RidgeRegularizer)
    return made


@pytest.mark.parametrize("shape", [(3, 1, 5, 7), (2, 2, 6, 5)])
@pytest.mark.parametrize("name", ALL)
def test_derivatives(name: str, shape: tuple[int, ...]) -> None:
    for seed, scale in enumerate([0.01, 1.0, 10.0]):
        regularizer = make(name, seed)
        x = normal(*shape, seed=seed, scale=scale)
        assert_derivatives(regularizer, x)
        assert_batch(regularizer, x)
    assert_derivatives(make(name), torch.ones(shape, dtype=torch.float64))
    assert_derivatives(make(name, 5, scale=2.0), normal(*shape, seed=5), rtol=1e-8)


@pytest.mark.parametrize("name", ALL)
@given(seed=st.integers(0, 10_000), spread=st.floats(0, 3), log_scale=st.floats(-5, 3), channels=st.integers(1, 2))
def test_hessian_is_symmetric_and_within_its_bounds(
    name: str, seed: int, spread: float, log_scale: float, channels: int
) -> None:
    regularizer = make(name, seed, spread)
    assert_hessian_bounds(regularizer, normal(2, channels, 4, 5, seed=seed, scale=math.exp(log_scale)))


def test_filters_have_mean_zero_whatever_the_parameters_are(regularizer: RidgeRegularizer) -> None:
    with torch.no_grad():
        regularizer.weight.add_(7.0)
    assert float(regularizer.kernels().detach().sum((1, 2)).abs().max()) < 1e-12
    x = normal(2, 1, 6, 7)
    torch.testing.assert_close(regularizer(x + 3.0), regularizer(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1, 2, 8), (1, 1, 8, 2), (2, 1, 1, 1)])
def test_images_smaller_than_the_filters_are_refused(
    regularizer: RidgeRegularizer, shape: tuple[int, int, int, int]
) -> None:
    x = torch.zeros(shape, dtype=torch.float64)
    for call in (regularizer, regularizer.value_and_grad, regularizer.grad, regularizer.hessian):
        with pytest.raises(ValueError, match=f"{shape[2]}x{shape[3]} are smaller than the filters of 3x3"):
            call(x)
    with pytest.raises(ValueError, match="batch, channel, height, width"):
        regularizer(torch.zeros(8, 8, dtype=torch.float64))


def test_images_of_the_size_of_the_filters_are_fine(regularizer: RidgeRegularizer) -> None:
    x = normal(2, 1, 3, 3)
    torch.testing.assert_close(regularizer.value_and_grad(x)[0], regularizer(x).detach())


@pytest.mark.parametrize("how", ["in place", "data in place", "data replaced", "vector", "state", "optimizer"])
def test_results_follow_every_change_of_the_parameters(regularizer: RidgeRegularizer, how: str) -> None:
    x = normal(1, 1, 6, 6)
    before = regularizer.value_and_grad(x)[0]
    parameters = list(regularizer.parameters())
    for repeat in range(3):
        if how == "in place":
            with torch.no_grad():
                for p in parameters:
                    p.mul_(1.1)
        elif how == "data in place":
            for p in parameters:
                p.data.mul_(1.1)
        elif how == "data replaced":
            for p in parameters:
                p.data = 1.1 * p.data
        elif how == "vector":
            vector = torch.nn.utils.parameters_to_vector(parameters).detach()
            torch.nn.utils.vector_to_parameters(1.1 * vector, parameters)
        elif how == "state":
            state = {k: 1.1 * v for k, v in copy.deepcopy(regularizer.state_dict()).items()}
            regularizer.load_state_dict(state)
        else:
            optimizer = torch.optim.SGD(parameters, lr=0.1)
            regularizer(x).sum().backward()
            optimizer.step()
        value, grad = regularizer.value_and_grad(x)
        expected = Regularizer.value_and_grad(regularizer, x)
        torch.testing.assert_close(value, expected[0])
        torch.testing.assert_close(grad, expected[1])
        assert float((value - before).abs()) > 1e-6, repeat
        before = value


def test_precision_follows_the_module(regularizer: RidgeRegularizer) -> None:
    x = normal(2, 1, 6, 7)
    value, grad = regularizer.value_and_grad(x)
    single = copy.deepcopy(regularizer).float()
    single_value, single_grad = single.value_and_grad(x.float())
    assert single_grad.dtype == torch.float32
    assert single_value.dtype == torch.float64  # sums are accumulated in double precision
    torch.testing.assert_close(single_value, value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(single_grad.double(), grad, rtol=1e-4, atol=1e-5)


def test_one_image_of_nan_does_not_touch_the_others(regularizer: RidgeRegularizer) -> None:
    x = normal(3, 1, 6, 7)
    bad = x.clone()
    bad[1, 0, 2, 2] = math.nan
    good = torch.tensor([0, 2])
    for mine, expected in zip(regularizer.value_and_grad(bad), regularizer.value_and_grad(x), strict=True):
        assert not bool(torch.isfinite(mine[1]).all())
        torch.testing.assert_close(mine[good], expected[good], rtol=1e-13, atol=1e-13)
    v = normal(3, 1, 6, 7, seed=1)
    torch.testing.assert_close(
        regularizer.hessian(bad)(v)[good], regularizer.hessian(x)(v)[good], rtol=1e-12, atol=1e-12
    )


def test_filtered_maximum(regularizer: RidgeRegularizer) -> None:
    w = normal(3, 2, 7, 6)
    kernels = regularizer.kernels().detach()
    u = torch.nn.functional.conv2d(w.view(6, 1, 7, 6), kernels[:, None]).abs().amax((2, 3))
    torch.testing.assert_close(regularizer.filtered_maximum(w), u.view(3, 2, -1).amax(1))


@pytest.mark.parametrize("name", NAMES)
def test_bad_sizes_are_refused(name: str) -> None:
    cls = type(make(name))
    with pytest.raises(ValueError, match="at least one filter"):
        cls(filters=0)
    with pytest.raises(ValueError, match="at least 2x2"):
        cls(size=1)


def test_spectra_are_computed_once_for_every_value_of_the_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    regularizer, calls = make("foe_l1"), list[torch.Tensor]()

    def counted(kernels: torch.Tensor) -> Response:
        calls.append(kernels)
        return frequency_response(kernels)

    monkeypatch.setattr(ridge, "frequency_response", counted)
    assert isinstance(regularizer, RidgeRegularizer)
    before = [regularizer.smoothness() for _ in range(3)]
    assert len(calls) == 1
    assert len(set(before)) == 1
    regularizer.weight.data *= 2  # no version counter notices
    assert regularizer.smoothness() == pytest.approx(4 * before[0], rel=1e-12)
    assert len(calls) == 2

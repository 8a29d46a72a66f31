"""Regularizers that know the noise level: their formula, derivatives, and what they refuse."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import ConvexRidge, FieldsOfExperts, NoiseConditioned, TotalVariation
from models.regularizers.noise_level import OFFSET
from models.regularizers.ridge import RidgeRegularizer
from recon.lower_level import Regularizer
from tests.lower_level.problems import normal
from tests.lower_level.regularizer_checks import assert_batch, assert_derivatives
from tests.models.regularizers.noisy import INNER, conditioned

#: of the images below: knots lie in between, some are equal, and the ends of the range
LEVELS = [0.3, 0.02, 0.11, 0.3, 0.5]
SHAPE = (5, 1, 6, 7)


@pytest.fixture(params=["best", "off"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the compiled kernels, and without."""
    monkeypatch.setenv("RECON_KERNELS", request.param)
    return str(request.param)


def by_hand(model: NoiseConditioned, sigma: float) -> Tensor:
    """s_k: log s_k is interpolated in log(sigma + o) by hand, from knot to knot."""
    offset = OFFSET * model.largest
    ends = [math.log(s + offset) for s in (model.smallest, model.largest)]
    count = model.log_gains.shape[1]
    places = [ends[0] + (ends[1] - ends[0]) * j / (count - 1) for j in range(count)]
    t = math.log(sigma + offset)
    weights = [max(0.0, 1 - abs(t - p) / (places[1] - places[0])) for p in places]
    return torch.exp(model.log_gains.detach() @ torch.tensor(weights, dtype=model.log_gains.dtype))


def gained(regularizer: RidgeRegularizer, s: Tensor, x: Tensor) -> Tensor:
    """sum_k sum_p s_k^-2 psi_k(s_k (c_k * x)_p), as it is written."""
    kernels, *profile = (t.detach() for t in regularizer.own_tensors())
    u = F.conv2d(x.reshape(-1, 1, *x.shape[2:]), kernels[:, None]).flatten(2)
    terms = regularizer.value(regularizer.per_filter(s)[:, None] * u, profile).detach() / s.square()[:, None]
    return terms.reshape(len(x), -1).sum(1)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", [n for n in INNER if n != "icnn"])
def test_the_value_is_that_of_the_formula(name: str, channels: int, kernels: str) -> None:
    model, x = conditioned(name), normal(5, channels, 6, 7, scale=0.5)
    assert isinstance(model.regularizer, RidgeRegularizer)
    expected = torch.cat([gained(model.regularizer, by_hand(model, s), x[i : i + 1]) for i, s in enumerate(LEVELS)])
    at = model.at(torch.tensor(LEVELS, dtype=torch.float64))
    torch.testing.assert_close(at(x).detach(), expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(at.value_and_grad(x)[0], expected, rtol=1e-11, atol=1e-12)
    assert (
        float(
            (gained(model.regularizer, torch.ones(model.regularizer.gain_count(), dtype=x.dtype), x) - expected)
            .abs()
            .max()
        )
        > 1e-2
    )


def test_the_value_of_a_network_is_that_of_the_formula(kernels: str) -> None:
    model, x = conditioned("icnn"), normal(*SHAPE, scale=0.5)
    expected = []
    for i, sigma in enumerate(LEVELS):
        first, second = by_hand(model, sigma)
        expected.append(model.regularizer(first * x[i : i + 1]).detach() / (first * second))
    at = model.at(torch.tensor(LEVELS, dtype=x.dtype))
    torch.testing.assert_close(at(x).detach(), torch.cat(expected), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(at.value_and_grad(x)[0], torch.cat(expected), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.02, 0.021, 0.1, 0.33, 0.4999, 0.5])
def test_logarithms_of_gains_are_interpolated(sigma: float) -> None:
    model = conditioned("crr")
    torch.testing.assert_close(model.gains(sigma).detach(), by_hand(model, sigma), rtol=1e-12, atol=0)


def test_gains_at_the_knots_are_the_learned_ones() -> None:
    model = conditioned("crr")
    offset = OFFSET * 0.5
    places = torch.logspace(math.log10(0.02 + offset), math.log10(0.5 + offset), 4, dtype=torch.float64) - offset
    for j, sigma in enumerate(places.clamp(0.02, 0.5).tolist()):
        torch.testing.assert_close(model.gains(sigma), model.log_gains[:, j].exp(), rtol=1e-9, atol=0)


@pytest.mark.parametrize(("smallest", "reference"), [(0.0, None), (0.02, 0.02), (0.02, 0.3), (0.1, 0.5)])
def test_it_begins_as_scaled_by_the_noise_level(smallest: float, reference: float | None) -> None:
    """s_k = (reference + o) / (sigma + o): for o = 0, R_sigma(x) = sigma^2 / reference^2 R(reference x / sigma)."""
    inner = INNER["crr"]().double()
    model = NoiseConditioned(inner, 0.5, smallest, reference).double()
    middle = 0.5 * (smallest + 0.5) if reference is None else reference
    assert model.typical_noise == middle
    x, offset = normal(*SHAPE, scale=0.4), OFFSET * 0.5
    for sigma in (smallest, 0.2, middle, 0.5):
        s = (middle + offset) / (sigma + offset)
        torch.testing.assert_close(
            model.gains(sigma), torch.full((3,), s, dtype=torch.float64), rtol=2e-6, atol=0, check_dtype=False
        )
        torch.testing.assert_close(model.at(sigma)(x), inner(s * x) / s**2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", INNER)
def test_derivatives(name: str, kernels: str) -> None:
    """Against automatic differentiation of the value, and that against finite differences; the gains are in it."""
    for seed, scale in enumerate([0.1, 1.0]):
        model = conditioned(name, seed)
        assert_derivatives(model.at(0.13), normal(3, 1, 6, 7, seed=seed, scale=scale), rtol=1e-9)
        assert_batch(model.at(0.13), normal(3, 1, 6, 7, seed=seed, scale=scale))
        mixed = model.at(torch.tensor(LEVELS, dtype=torch.float64))
        assert_derivatives(mixed, normal(5, 2, 6, 7, seed=seed, scale=scale), rtol=1e-9)


@pytest.mark.parametrize("name", INNER)
def test_derivatives_in_single_precision(name: str, kernels: str) -> None:
    model = conditioned(name)
    single = copy.deepcopy(model).float()
    x, w = normal(*SHAPE, scale=0.5), normal(*SHAPE, seed=1)
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    mine, exact = single.at(levels), model.at(levels)
    value, grad = mine.value_and_grad(x.float())
    assert value.dtype == torch.float64
    assert grad.dtype == torch.float32
    torch.testing.assert_close(value, exact.value_and_grad(x)[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(grad.double(), exact.grad(x), rtol=1e-3, atol=1e-3)
    for a, b in zip(mine.parameter_vjp(x.float(), w.float()), exact.parameter_vjp(x, w), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=1e-2, atol=1e-3 * float(b.abs().max() + 1))


@pytest.mark.parametrize("name", ["foe_l1", "foe_weak", "wcrr", "composed", "icnn"])
@pytest.mark.parametrize("frozen", ["gains", "all but gains", "one of the inner", "all but one of the inner", "all"])
def test_parts_may_be_frozen(name: str, frozen: str, kernels: str) -> None:
    model = conditioned(name)
    inner = list(model.regularizer.parameters())
    still = {
        "gains": [model.log_gains],
        "all but gains": inner,
        "one of the inner": inner[:1],
        "all but one of the inner": [model.log_gains, *inner[1:]],
        "all": [model.log_gains, *inner],
    }[frozen]
    for p in still:
        p.requires_grad_(False)
    x, w = normal(*SHAPE), normal(*SHAPE, seed=1)
    for at, size in ((model.at(torch.tensor(LEVELS)), 5), (model.at(0.2), 2)):
        x, w = x[:size], w[:size]
        learned = [p for p in model.parameters() if p.requires_grad]
        assert len(learned) == len(inner) + 1 - len(still)
        assert [id(p) for p in at.trainable()] == [id(p) for p in learned]
        found = at.parameter_vjp(x, w)
        if learned:
            expected = Regularizer.parameter_vjp(at, x, w)
            for a, b, p in zip(found, expected, learned, strict=True):
                assert a.shape == p.shape
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
            assert any(float(b.abs().max()) > 1e-6 for b in expected)
        else:
            assert found == ()


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 1, 0, 2, 3], [3, 3, 0, 2, 1]])
def test_images_of_a_batch_have_their_own_levels(name: str, order: list[int], kernels: str) -> None:
    """In any order, they are what each would be alone with its level."""
    model, x = conditioned(name), normal(*SHAPE)[order]
    v, sigma = normal(*SHAPE, seed=1), torch.tensor(LEVELS)[order]
    at = model.at(sigma)
    assert at.levels == pytest.approx(sigma.tolist())
    value, grad = at.value_and_grad(x)
    product, forward = at.hessian(x)(v), at(x).detach()
    total = [torch.zeros_like(p) for p in at.trainable()]
    for i in range(5):
        alone, one = model.at(float(sigma[i])), slice(i, i + 1)
        expected = alone.value_and_grad(x[one])
        torch.testing.assert_close(value[one], expected[0], rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(forward[one], expected[0], rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(grad[one], expected[1], rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(product[one], alone.hessian(x[one])(v[one]), rtol=1e-11, atol=1e-12)
        for sum_, part in zip(total, alone.parameter_vjp(x[one], v[one]), strict=True):
            sum_ += part
    for a, b in zip(at.parameter_vjp(x, v), total, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["wcrr", "icnn"])
def test_images_can_be_selected(name: str, kernels: str) -> None:
    model, x, v = conditioned(name), normal(*SHAPE), normal(*SHAPE, seed=1)
    at = model.at(torch.tensor(LEVELS))
    product, grad = at.hessian(x)(v), at.grad(x)
    hessian = at.hessian(x)
    for index in (torch.tensor([4, 1, 1]), torch.tensor([2]), slice(1, 4), slice(3, None), torch.tensor([3, 0])):
        part = at.select(index)
        assert part.levels == torch.tensor(at.levels, dtype=torch.float64)[index].tolist()
        torch.testing.assert_close(part.grad(x[index]), grad[index], rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(part.hessian(x[index])(v[index]), product[index], rtol=1e-11, atol=1e-12)
        if isinstance(index, Tensor):
            torch.testing.assert_close(hessian.select(index)(v[index]), product[index], rtol=1e-11, atol=1e-12)
    twice = at.select(slice(1, 5)).select(torch.tensor([3, 0]))
    assert twice.levels == [at.levels[4], at.levels[1]]
    again = hessian.select(torch.tensor([4, 2, 1])).select(torch.tensor([2, 0]))
    torch.testing.assert_close(again(v[[1, 4]]), product[[1, 4]], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(hessian(v), product, rtol=0, atol=0)
    one = model.at(0.1)
    assert one.select(torch.tensor([0, 0, 5])) is one


def test_batches_of_another_size_are_refused() -> None:
    at, x = conditioned("crr").at(torch.tensor([0.1, 0.2, 0.1])), normal(*SHAPE)
    same = conditioned("crr").at(torch.tensor([0.1, 0.1]))
    for wrong, count in ((at, 3), (same, 2)):
        for call in (wrong, wrong.value_and_grad, wrong.grad, wrong.hessian, lambda x, r=wrong: r.parameter_vjp(x, x)):
            with pytest.raises(ValueError, match=f"noise levels of {count} images, but 5 images"):
                call(x)


# --- parameters that change ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["foe_weak", "crr", "icnn"])
@pytest.mark.parametrize("which", ["gains", "inner"])
@pytest.mark.parametrize("how", ["in place", "data", "data replaced", "state", "optimizer"])
def test_results_follow_every_change_of_the_parameters(name: str, which: str, how: str) -> None:
    model, x = conditioned(name), normal(*SHAPE)
    at = model.at(torch.tensor(LEVELS))
    parameters = [model.log_gains] if which == "gains" else list(model.regularizer.parameters())
    before, bound = at.value_and_grad(x)[0], at.smoothness()
    for repeat in range(2):
        for p in parameters:
            if how == "in place":
                with torch.no_grad():
                    p.mul_(1.1)
            elif how == "data":
                p.data.mul_(1.1)
            elif how == "data replaced":
                p.data = 1.1 * p.data
        if how == "state":
            state = copy.deepcopy(model.state_dict())
            for key, tensor in state.items():
                if (key == "log_gains") == (which == "gains"):
                    tensor.mul_(1.1)
            model.load_state_dict(state)
        elif how == "optimizer":
            optimizer = torch.optim.SGD(parameters, lr=0.02)
            optimizer.zero_grad()
            at(x).sum().backward()
            optimizer.step()
        value, grad = at.value_and_grad(x)
        assert float((value - before).abs().max()) > 1e-6, repeat
        expected = Regularizer.value_and_grad(at, x)
        fresh = copy.deepcopy(model).at(torch.tensor(LEVELS))
        torch.testing.assert_close(value, expected[0], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(grad, expected[1], rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(grad, fresh.grad(x), rtol=1e-12, atol=1e-13)
        assert at.smoothness() == pytest.approx(fresh.smoothness(), rel=1e-12)
        before = value
    if which == "inner":
        assert at.smoothness() != bound


@pytest.mark.parametrize("name", ["crr", "icnn"])
def test_the_type_of_the_module_may_change(name: str) -> None:
    model = conditioned(name, dtype=torch.float32)
    at, x = model.at(torch.tensor(LEVELS)), normal(*SHAPE)
    single = at.grad(x.float())
    model.double()
    found = at.grad(x)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, Regularizer.value_and_grad(at, x)[1], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found, single.double(), rtol=1e-3, atol=1e-3)


def test_copies_are_independent() -> None:
    model, x = conditioned("crr"), normal(*SHAPE)
    at = model.at(torch.tensor(LEVELS))
    before = at.grad(x)
    other = copy.deepcopy(at)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.3)
    assert float((other.grad(x) - before).abs().max()) > 1e-4
    torch.testing.assert_close(other.grad(x), Regularizer.value_and_grad(other, x)[1], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(at.grad(x), before, rtol=0, atol=0)
    assert {id(p) for p in at.parameters()} == {id(p) for p in model.parameters()}


def test_models_are_pickled() -> None:
    model, x = conditioned("crr"), normal(*SHAPE)
    at = model.at(torch.tensor(LEVELS))
    expected = at.grad(x)
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    loaded = torch.load(stream, weights_only=False)
    torch.testing.assert_close(loaded.at(torch.tensor(LEVELS)).grad(x), expected, rtol=0, atol=0)
    again = pickle.loads(pickle.dumps(at))
    torch.testing.assert_close(again.grad(x), expected, rtol=0, atol=0)
    with torch.no_grad():
        for p in again.parameters():
            p.add_(0.2)
    torch.testing.assert_close(again.grad(x), Regularizer.value_and_grad(again, x)[1], rtol=1e-10, atol=1e-12)


def test_names_of_the_parameters() -> None:
    model = conditioned("crr")
    inner = {f"regularizer.{name}": tensor for name, tensor in model.regularizer.state_dict().items()}
    state = model.state_dict()
    assert state.keys() == {"log_gains", *inner}
    assert state["log_gains"].shape == (3, 4)
    assert conditioned("icnn").log_gains.shape == (2, 4)
    assert [id(p) for p in model.trainable()] == [id(p) for p in model.parameters()]
    assert model.margin == model.at(0.1).margin == model.regularizer.margin


# --- what is refused -------------------------------------------------------------------------------------------------


def test_the_ends_of_the_range_may_be_given_in_single_precision() -> None:
    """The nearest numbers to them lie outside by a rounding."""
    model = NoiseConditioned(ConvexRidge(3, 3), 50 / 255, 1 / 254)
    ends = torch.tensor([50 / 255, 1 / 254])
    assert float(ends[0]) > 50 / 255 or float(ends[1]) < 1 / 254
    assert model.at(ends).levels == [50 / 255, 1 / 254]


@pytest.mark.parametrize(
    ("sigma", "value"),
    [
        (0.6, "0.6"),
        (0.0199, "0.0199"),
        (-0.1, "-0.1"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (torch.tensor([0.1, 0.7]), "0.7"),
        (torch.tensor([]), "missing"),
    ],
)
def test_levels_outside_of_the_range_are_refused(sigma: float | Tensor, value: str) -> None:
    with pytest.raises(ValueError, match=rf"the noise level is {value}, but the model is for standard deviations from"):
        conditioned("crr").at(sigma)


def test_without_a_level_nothing_is_computed() -> None:
    model, x = conditioned("crr"), normal(*SHAPE)
    calls = (model, model.value_and_grad, model.hessian, lambda x: model.parameter_vjp(x, x), lambda x: model.at(None))
    for call in calls:
        with pytest.raises(ValueError, match="depends on the noise level of the images, which is not known"):
            call(x)
    with pytest.raises(ValueError, match="which is not known"):
        model.grad(x)
    plain = ConvexRidge(3, 3)
    assert plain.at(0.1) is plain.at(None) is plain


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"largest": 0.0}, "needs 0 <= smallest < largest < inf"),
        ({"largest": 0.5, "smallest": 0.5}, "from 0.5 to 0.5"),
        ({"largest": 0.5, "smallest": -0.1}, "from -0.1 to 0.5"),
        ({"largest": math.inf}, "to inf"),
        ({"largest": math.nan}, "to nan"),
        ({"largest": 0.5, "reference": 0.6}, "reference is 0.6, but must lie between 0.0 and 0.5"),
        ({"largest": 0.5, "smallest": 0.1, "reference": 0.05}, "reference is 0.05"),
        ({"largest": 0.5, "reference": math.nan}, "reference is nan"),
        ({"largest": 0.5, "knots": 1}, "knots is 1, but must be at least 2"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoiseConditioned(FieldsOfExperts(3, 3), **arguments)  # type: ignore[arg-type]


def test_regularizers_of_another_kind_are_refused() -> None:
    for wrong in (TotalVariation(), conditioned("crr"), None):
        with pytest.raises(ValueError, match=f"{type(wrong).__name__} knows no noise level; valid are ridge"):
            NoiseConditioned(wrong, 0.5)  # type: ignore[arg-type]

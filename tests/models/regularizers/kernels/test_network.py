"""Input convex networks in the compiled kernels compute what the code in torch does, and in the same places."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from models import ICNN, LeakyReLU
from models.files.shipped import locate
from models.files.storage import load_regularizer
from models.regularizers.kernels import Network, compiled_network, library
from recon.lower_level import Energy, Regularizer
from recon.lower_level.batch import per_image_norm
from tests.lower_level.problems import normal, norms, perturb, smooth_image

DTYPES = [torch.float32, torch.float64]
#: relative to the largest entry; of derivatives in parameters, which are sums over pixels and may cancel, the second
TOLERANCES = {torch.float32: (2e-6, 2e-5), torch.float64: (1e-14, 1e-13)}
KINDS = ["huber", "smooth"]


def make(
    dtype: torch.dtype, kind: str = "smooth", filters: int = 5, size: int = 3, layers: int = 1, inner: int = 3
) -> ICNN:
    """A network whose numbers all differ."""
    made = ICNN(filters, size, layers, inner, LeakyReLU(0.2, 0.3, kind), log_weight=-1.0)
    perturbed = perturb(made.to(dtype), filters + size + inner, 0.3)
    assert isinstance(perturbed, ICNN)
    return perturbed


def everything(network: ICNN, x: Tensor, v: Tensor) -> dict[str, Tensor]:
    value, grad = network.value_and_grad(x)
    found = {"value": value, "gradient": grad, "grad": network.grad(x), "Hessian": network.hessian(x)(v)}
    names = [name for name, _ in network.named_parameters()]
    return found | dict(zip(names, network.parameter_vjp(x, v), strict=True))


def by_torch(network: ICNN, x: Tensor, v: Tensor, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    with monkeypatch.context() as context:
        context.setenv(library.SWITCH, "off")
        return everything(network, x, v)


def compare(network: ICNN, x: Tensor, v: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    assert network._network(x) is not None
    found, expected = everything(network, x, v), by_torch(network, x, v, monkeypatch)
    entries, sums = TOLERANCES[x.dtype]
    derivatives = [name for name, _ in network.named_parameters()]
    largest = max((float(expected[name].abs().max()) for name in derivatives), default=0.0)
    for name, right in expected.items():
        mine = found[name]
        assert (mine.shape, mine.dtype) == (right.shape, right.dtype), name
        if not right.numel():
            continue
        size = largest if name in derivatives else float(right.abs().max())
        if name == "Hessian":  # sigma'' may be nearly zero at all pixels
            size = max(size, network.smoothness() * float(v.abs().max()) / 10)
        error, bound = float((mine - right).abs().max()), (sums if name in derivatives else entries) * size
        assert error <= bound, (name, error, bound)


SHAPES = [
    (1, 2, 1, 1, (1, 1, 2, 2)),  # one pixel, of the least image
    (5, 3, 1, 1, (2, 3, 3, 40)),  # one row, channels
    (7, 4, 1, 2, (3, 1, 41, 6)),
    (16, 5, 1, 5, (1, 1, 41, 145)),  # as shipped: several units, a second strip in either precision
    (4, 2, 1, 4, (1, 1, 37, 20)),
    (3, 3, 1, 6, (1, 1, 9, 30)),
    (3, 2, 2, 3, (1, 2, 24, 70)),
    (2, 2, 3, 7, (1, 1, 40, 40)),
    (3, 9, 1, 2, (1, 1, 30, 31)),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("filters", "size", "layers", "inner", "shape"), SHAPES)
def test_values_and_derivatives_are_those_of_torch(
    level: str,
    kind: str,
    dtype: torch.dtype,
    filters: int,
    size: int,
    layers: int,
    inner: int,
    shape: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = make(dtype, kind, filters, size, layers, inner)
    compare(network, normal(*shape).to(dtype), normal(*shape, seed=1).to(dtype), monkeypatch)


@pytest.mark.parametrize("name", ["icnn_bsd", "icnn_bsd_25", "icnn_ct", "icnn_mri", "icnn_ar_ct"])
def test_shipped_networks(level: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = load_regularizer(locate(name))[0].double()
    assert isinstance(network, ICNN)
    compare(network, smooth_image(1, 1, 50, 61), normal(1, 1, 50, 61, seed=1), monkeypatch)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    filters=st.integers(1, 14),
    size=st.integers(2, 6),
    layers=st.integers(1, 3),
    inner=st.integers(1, 7),
    more=st.tuples(st.integers(0, 40), st.integers(0, 140)),
    batch=st.integers(0, 3),
    single=st.booleans(),
)
def test_all_shapes(
    level: str,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    filters: int,
    size: int,
    layers: int,
    inner: int,
    more: tuple[int, int],
    batch: int,
    single: bool,
) -> None:
    filters = min(filters, 2 * (size**2 - 1))  # there are no more initial ones
    network = make(torch.float32 if single else torch.float64, kind, filters, size, layers, inner)
    least = size + layers * (inner - 1)
    x, v = (normal(batch, 1, least + more[0], least + more[1], seed=i).to(network.weight) for i in (0, 1))
    compare(network, x, v, monkeypatch)


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_derivatives_are_those_of_automatic_differentiation(level: str, kind: str) -> None:
    network, x, v = make(torch.float64, kind), normal(2, 2, 20, 19), normal(2, 2, 20, 19, seed=1)
    for mine, right in zip(network.value_and_grad(x), Regularizer.value_and_grad(network, x), strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(network.hessian(x)(v), Regularizer.hessian(network, x)(v), rtol=1e-10, atol=1e-11)
    for mine, right in zip(network.parameter_vjp(x, v), Regularizer.parameter_vjp(network, x, v), strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-9, atol=1e-9)


def test_derivatives_of_what_is_learned_alone(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = make(torch.float64), normal(1, 1, 12, 12)
    network.weight.requires_grad_(False)
    network.biases[1].requires_grad_(False)
    found = network.parameter_vjp(x, x)
    monkeypatch.setenv(library.SWITCH, "off")
    for mine, right in zip(found, network.parameter_vjp(x, x), strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-11, atol=1e-11)


def test_hessian_of_some_of_the_images(level: str) -> None:
    network, x, v = make(torch.float64), normal(4, 2, 20, 9), normal(4, 2, 20, 9, seed=1)
    hessian = network.hessian(x)
    everywhere = hessian(v)
    for kept in ([2], [3, 0], [-1, 1], [0, 1, 2, 3]):
        index = torch.tensor(kept)
        assert torch.equal(hessian.select(index)(v[index]), everywhere[index])
    for other in (v.float(), v[:, :, :8], v[:1]):
        with pytest.raises(RuntimeError, match=r"takes torch\.float64 of shape \(8, 20, 9\)"):
            hessian(other)
    with pytest.raises(IndexError, match="at 8 images"):
        hessian.select(torch.tensor([4]))(v[:1])


# --- the same bits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [2, 5])
def test_any_number_of_threads(level: str, dtype: torch.dtype, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network = make(dtype, layers=2)
    x, v = normal(2, 2, 57, 150).to(dtype), normal(2, 2, 57, 150, seed=1).to(dtype)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    expected = everything(network, x, v)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for name, mine in everything(network, x, v).items():
        assert torch.equal(mine, expected[name]), name


def test_any_batch(level: str) -> None:
    network, x, v = make(torch.float32), normal(3, 1, 40, 19).float(), normal(3, 1, 40, 19, seed=1).float()
    together = everything(network, x, v)
    for i in range(3):
        alone = everything(network, x[i : i + 1], v[i : i + 1])
        for what in ("value", "gradient", "Hessian"):
            assert torch.equal(alone[what], together[what][i : i + 1]), what


def test_any_layout_and_images_are_not_written_to(level: str) -> None:
    network, x, v = make(torch.float32), normal(2, 3, 9, 20).float(), normal(2, 3, 9, 20, seed=1).float()
    expected, wide = everything(network, x, v), normal(2, 3, 20, 18).float()
    wide[:, :, :, ::2] = x.transpose(2, 3)
    layouts = {
        "channels last": x.to(memory_format=torch.channels_last),
        "a view": wide[:, :, :, ::2].transpose(2, 3),
        "with a graph": x.clone().requires_grad_(True),
    }
    for layout, same in layouts.items():
        before = same.detach().clone()
        for name, mine in everything(network, same, v).items():
            assert torch.equal(mine, expected[name]), (layout, name)
            assert not mine.requires_grad, (layout, name)
        assert torch.equal(same.detach(), before)


# --- hostile images --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, "largest", "root of the largest", "least", "denormal"])
def test_one_hostile_pixel(
    level: str, kind: str, dtype: torch.dtype, bad: float | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = torch.finfo(dtype)
    numbers = {"largest": info.max, "least": info.tiny, "denormal": info.tiny * info.eps}
    numbers["root of the largest"] = 2 * math.sqrt(info.max)
    network = make(dtype, kind)
    x, v = normal(2, 1, 40, 23).to(dtype), normal(2, 1, 40, 23, seed=1).to(dtype)
    x[0, 0, 18, 17] = numbers[bad] if isinstance(bad, str) else bad  # in rows of two units
    found, expected = everything(network, x, v), by_torch(network, x, v, monkeypatch)
    for what in ("value", "gradient", "Hessian"):
        for special in (torch.isnan, torch.isinf):
            assert torch.equal(special(found[what]), special(expected[what])), (what, special)
        finite = expected[what].isfinite()
        mine, right = found[what][finite].double(), expected[what][finite].double()
        if len(right):
            assert float((mine - right).abs().max()) <= 1e2 * info.eps * float(right.abs().max()), what


def test_squares_that_overflow_in_the_last_layer(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """u_0 = 10^19 and u_1 = 16 u_0 are numbers, and u_1^2 is none: R is infinite, and its gradient is not."""
    network, x = ICNN(1, 2, zero_mean=False, activation=LeakyReLU(0.2, 0.3, "smooth")), torch.full((1, 1, 2, 2), 1e19)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
        network.log_inner[0].fill_(math.log(16.0))
    found, expected = everything(network, x, x), by_torch(network, x, x, monkeypatch)
    assert found["value"].isinf().all()
    for what in ("value", "gradient", "Hessian"):
        torch.testing.assert_close(found[what], expected[what])


def test_infinity_is_not_subtracted_from_itself(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows at once take differences of rows; with positive filters, the gradient is finite."""
    network, x = ICNN(1, 2, 1, 5, LeakyReLU(0.2, 0.3), zero_mean=False), normal(1, 1, 20, 20).float()
    with torch.no_grad():
        network.weight.fill_(0.5)
    x[..., 9, 9] = math.inf
    found, expected = everything(network, x, x.clamp(max=1)), by_torch(network, x, x.clamp(max=1), monkeypatch)
    for what in ("gradient", "Hessian"):
        assert found[what].isfinite().all()
        torch.testing.assert_close(found[what], expected[what])


@pytest.mark.parametrize("kind", KINDS)
def test_nan_reaches_what_depends_on_it_and_nothing_else(level: str, kind: str) -> None:
    """A gradient at p depends on patches around it, twice the reach of the network wide; 5 + 5 - 1 and back."""
    network = make(torch.float32, kind, size=4, inner=3)
    x, v = normal(2, 1, 50, 160).float(), normal(2, 1, 50, 160, seed=1).float()
    clean = everything(network, x, v)
    x[1, 0, 30, 130] = math.nan
    found = everything(network, x, v)
    for what in ("value", "gradient", "Hessian"):
        assert torch.equal(found[what][0], clean[what][0])
    for what in ("gradient", "Hessian"):
        reached = torch.zeros(50, 160, dtype=torch.bool)
        reached[25:36, 125:136] = True
        assert torch.equal(found[what][1, 0].isnan(), reached)
        # strips with such pixels are computed row by row, to the last digits
        torch.testing.assert_close(found[what][1, 0][~reached], clean[what][1, 0][~reached], rtol=1e-4, atol=1e-5)


def test_what_is_not_for_the_kernels_is_left_to_torch(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal(1, 1, 9, 9).float()
    assert make(torch.float32)._network(x) is not None
    kinked = ICNN(3, 3, activation=LeakyReLU(0.2, 0.0))
    infinite, huge = make(torch.float32), make(torch.float32)
    with torch.no_grad():
        infinite.biases[0][1], huge.log_inner[0][0, 0] = math.inf, 80.0
    for network in (kinked, infinite, huge):
        assert network._network(x) is None
        for name, mine in everything(network, x, x).items():
            torch.testing.assert_close(mine, by_torch(network, x, x, monkeypatch)[name], rtol=0, atol=0, equal_nan=True)
    assert make(torch.float64)._network(x) is None


def test_activations_of_a_subclass_are_its_own(level: str) -> None:
    class Doubled(ICNN):
        def responses(self, x: Tensor) -> list[Tensor]:
            return [2 * u for u in super().responses(x)]

    assert Doubled(3, 3)._network(normal(1, 1, 9, 9).float()) is None


@pytest.mark.parametrize("call", [Regularizer.grad, ICNN.value_and_grad, ICNN.hessian])
@pytest.mark.parametrize(
    "x", [torch.ones(1, 1, 4, 9), torch.ones(1, 9, 9), torch.ones(1, 1, 9, 9, dtype=torch.float64), torch.ones(9)]
)
def test_other_images_are_refused_as_by_torch(
    level: str, call: Callable[[ICNN, Tensor], object], x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    for switch in (level, "off"):
        monkeypatch.setenv(library.SWITCH, switch)
        with pytest.raises((ValueError, RuntimeError)) as error:
            call(make(torch.float32), x)
        said.append(str(error.value))
    assert said[0] == said[1]


# --- rounding --------------------------------------------------------------------------------------------------------


def evaluate(activation: LeakyReLU, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """sigma_1(2^10 + sigma_0(u)) and its derivatives in u: networks of one pixel, whose filters and weights are 1."""
    kernel = torch.zeros(1, 1, 2, 2, dtype=u.dtype)
    kernel[0, 0, 0, 0] = 1
    zeros, one = torch.zeros(1, dtype=u.dtype), torch.ones(1, 1, 1, dtype=u.dtype)
    x, v = torch.zeros(len(u), 1, 2, 2, dtype=u.dtype), torch.zeros(len(u), 2, 2, dtype=u.dtype)
    x[:, 0, 0, 0], v[:, 0, 0] = u, 1
    network = compiled_network(x, [kernel, one[None]], [zeros, zeros + 2**10], one, activation)
    assert isinstance(network, Network)
    value, grad = network.value_and_grad(x[:, 0])
    return value, grad[:, 0, 0], network.product(v, network.curvature(x[:, 0]), None)[:, 0, 0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_activations_to_a_few_units_in_the_last_place(level: str, kind: str, dtype: torch.dtype) -> None:
    """Against extended precision."""
    activation = LeakyReLU(0.2, 0.25, kind)
    u = torch.cat([torch.linspace(-100, 100, 2001), torch.logspace(-12, 0, 300), -torch.logspace(-12, 0, 300)]).to(
        dtype
    )
    found, t, w = evaluate(activation, u), u.numpy().astype(np.longdouble), np.longdouble(0.25)

    def sigma(t: np.ndarray, s: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rest, s_exact = np.longdouble(1 - s), np.longdouble(s)
        root = np.sqrt(t * t + w * w)
        if kind == "smooth":
            rho, first, second = (t + root - w) / 2, (1 + t / root) / 2, w * w / root**3 / 2
        else:
            inner = np.clip(t, 0, w)
            rho, first, second = inner**2 / (2 * w) + np.maximum(t - w, 0), inner / w, ((t > 0) & (t < w)) / w
        return s_exact * t + rest * rho, s_exact + rest * first, rest * second

    z, z1, z2 = sigma(t, 0.2)
    top, top1, top2 = sigma(z + 1024, 0.0)
    eps = torch.finfo(dtype).eps
    bounds = (6 * eps * 1200, 6 * eps, 6 * eps * (0.8 / 0.25))
    for mine, right, bound in zip(found, (top, top1 * z1, top2 * z1**2 + top1 * z2), bounds, strict=True):
        assert np.abs(mine.double().numpy() - right).max() <= bound


@pytest.mark.parametrize("inner", [2, 3, 4, 5])
@pytest.mark.parametrize("bias", [0.0, 5.0])
def test_rounding_errors_are_those_of_the_model(level: str, inner: int, bias: float) -> None:
    for seed in range(3):
        network = perturb(ICNN(8, 5, 1, inner), seed, 0.3).requires_grad_(False)
        network.biases[0].add_(bias)  # type: ignore[operator]
        for scale in (1e-6, 1e-1, 10.0):
            x = (scale * smooth_image(1, 1, 24, 24, seed=seed)).float()
            energies = Energy(x, network), Energy(x.double(), copy.deepcopy(network).double())
            computed, exact = energies[0].grad(x), energies[1].grad(x.double())
            assert norms(computed.double() - exact) <= energies[0].rounding(x, per_image_norm(computed))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inner", [2, 3, 4, 5])
def test_two_rows_at_once_are_off_by_the_proved_bound(level: str, dtype: torch.dtype, inner: int) -> None:
    """|error| <= 3.06 gamma ||h|| ||patch|| in each row (docs/mathematics.md), here their sum, of filters with signs.

    z = 64 + 2^k x for one pixel x, and R = sigma_1(W z) of one filter at a time, at images of two pixels of W z.
    """
    filters, width = 4, 2.0**-20
    inside = normal(filters, filters, inner, inner, seed=3).to(dtype)
    kernel = torch.zeros(filters, 1, 2, 2, dtype=dtype)
    kernel[:, 0, 0, 0] = torch.tensor([1.0, 2.0, 4.0, 8.0])
    images = normal(1, 1, 40, 40, seed=4).to(dtype)[0, 0].unfold(0, inner + 2, 1).unfold(1, inner + 1, 1)
    images = images.reshape(-1, 1, inner + 2, inner + 1)
    zero = torch.zeros(filters, dtype=dtype)
    z = torch.nn.functional.conv2d(images.double(), kernel.double()) + 64 - width / 2
    u = torch.nn.functional.conv2d(z, inside.double())
    for k in range(filters):
        only = (torch.arange(filters) == k).to(dtype)[:, None, None]
        network = compiled_network(images, [kernel, inside], [zero + 64, zero], only, LeakyReLU(0.0, width))
        assert network is not None
        exact = (u[:, k] - width / 2).clamp(min=0).sum((1, 2))
        size = inside[k].double().norm() * z.flatten(1).norm(dim=1)
        bound = 2 * 3.06 * (filters * inner**2 + 12) * torch.finfo(dtype).eps / 2 * size
        error, away = (network.value_and_grad(images[:, 0])[0] - exact).abs(), (u[:, k].abs() > 1e-3).all(2).all(1)
        assert bool((error <= bound)[away].all())

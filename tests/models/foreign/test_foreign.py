"""Models of other programs: their energies against direct evaluation, proved bounds, and files that are refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.files.storage import load_regularizer, save_regularizer
from models.foreign import Foreign, ForeignError, load_foreign
from models.foreign import files as limits
from recon.lower_level import LBFGS, Energy, NotStronglyConvexError, Regularizer
from tests.models.foreign.checkpoints import crr_gradient, wcrr_gradient, write_crr, write_pylopt, write_wcrr

SIGMA = 25 / 255


def pictures() -> Tensor:
    return torch.rand(2, 1, 19, 17, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def check_values(regularizer: Regularizer, x: Tensor) -> None:
    """Values change along a line as the integral of the directional derivative (Simpson's rule on many pieces)."""
    other = 0.1 * x
    steps = 400
    t = torch.linspace(0, 1, 2 * steps + 1, dtype=torch.float64)
    slopes = torch.stack([(regularizer.grad(x + s * (other - x)) * (other - x)).sum((1, 2, 3)) for s in t])
    weights = torch.ones(len(t), dtype=torch.float64)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    integral = (weights[:, None] * slopes).sum(0) / (6 * steps)
    torch.testing.assert_close(regularizer(other) - regularizer(x), integral, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(regularizer.value_and_grad(x)[0], regularizer(x))


def check_hessian(regularizer: Regularizer, x: Tensor, seed: int) -> None:
    """Products with the Hessian are finite differences of gradients where no response crosses a knot."""
    v = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(seed))
    h = 1e-7
    difference = (regularizer.grad(x + h * v) - regularizer.grad(x - h * v)) / (2 * h)
    product = regularizer.hessian(x)(v)
    # some of thousands of responses do cross one
    near = ((difference - product).abs() < 1e-5 * product.abs().max()).double().mean()
    assert near > 0.95
    curvature = (v * product).sum((1, 2, 3)) / v.square().sum((1, 2, 3))
    assert bool((curvature <= regularizer.smoothness()).all())
    assert bool((curvature >= regularizer.convexity()).all())


@pytest.mark.parametrize(("lmbd", "mu"), [(None, None), (7.0, 0.6)])
def test_crr(tmp_path: Path, lmbd: float | None, mu: float | None) -> None:
    state, x = write_crr(tmp_path), pictures()
    found = load_foreign(tmp_path, SIGMA, lmbd, mu)
    strength = lmbd or float(state["lmbd"])
    expected = crr_gradient(state, x, strength, mu or float(state["mu"].double()))
    torch.testing.assert_close(found.regularizer.grad(x), expected, rtol=1e-9, atol=1e-12)
    check_values(found.regularizer, x)
    check_hessian(found.regularizer, x, 0)
    assert found.regularizer.convexity() == 0.0
    assert found.regularizer.hessian_variation(x) is None
    assert ("of the file" in found.parameters) == (lmbd is None)


@pytest.mark.parametrize("rho", [0.0, 1.0])
def test_wcrr(tmp_path: Path, rho: float) -> None:
    state, x = write_wcrr(tmp_path, rho=rho), pictures()
    found = load_foreign(tmp_path, SIGMA, 0.8)
    expected = wcrr_gradient(state, x, 255 * SIGMA, 0.8, rho)
    torch.testing.assert_close(found.regularizer.grad(x), expected, rtol=1e-9, atol=1e-12)
    check_values(found.regularizer, x)
    check_hessian(found.regularizer, x, 1)
    modulus = found.regularizer.convexity()
    assert modulus == 0.0 if rho == 0 else -0.8 * 1.04 <= modulus < 0


def test_wcrr_with_a_proved_modulus_that_is_not_positive_certifies_nothing(tmp_path: Path) -> None:
    """Where phi_- has slope 1 and phi_+ slope 0, the modulus is 1 - ||W||^2: not proved positive."""
    state = write_wcrr(tmp_path)
    line = torch.linspace(-0.1, 0.1, 21)[None]
    state["activation_ccv.coefficients"], state["activation_cvx.coefficients"] = line, torch.zeros_like(line)
    content = torch.load(tmp_path / "checkpoints" / "checkpoint_10.pth", weights_only=True)
    torch.save(content | {"state_dict": state}, tmp_path / "checkpoints" / "checkpoint_11.pth")
    x, found = pictures(), load_foreign(tmp_path, SIGMA).regularizer
    assert -1.05 < found.convexity() <= -1
    with pytest.raises(NotStronglyConvexError, match="modulus known for LinearSplineRidge"):
        LBFGS()(Energy(x, found), x, torch.tensor(1.0))
    assert Energy(x, load_foreign(tmp_path, SIGMA, 0.9).regularizer).strong_convexity > 0


def test_pylopt(tmp_path: Path) -> None:
    filters, weights = write_pylopt(tmp_path)
    found, x = load_foreign(tmp_path, 0.1, 3.0), pictures()
    u = F.conv2d(x, filters)
    expected = 0.1**2 * 3.0 * (torch.log(1 + u.square()) * weights.exp()[:, None, None]).sum((1, 2, 3))
    torch.testing.assert_close(found.regularizer(x), expected)
    norm = sum(
        w * torch.fft.fft2(f, s=(64, 64)).abs().square()
        for w, f in zip(0.01 * 3.0 * weights.exp() / 4, filters[:, 0], strict=True)
    )
    assert isinstance(norm, Tensor)
    largest = float(norm.max())
    assert 1.05 * largest >= -found.regularizer.convexity() >= largest


def test_certified_minimizers_are_within_the_bound(tmp_path: Path) -> None:
    """Distance to a far more accurate minimizer, in both precisions."""
    write_crr(tmp_path)
    y, found = pictures(), load_foreign(tmp_path, SIGMA, 20.0).regularizer
    exact = LBFGS()(Energy(y, found), y, torch.full((2,), 1e-10)).x
    rough = LBFGS()(Energy(y, found), y, torch.full((2,), 1e-2))
    assert rough.converged
    assert bool(((rough.x - exact).flatten(1).norm(dim=1) <= rough.error).all())
    single = LBFGS()(Energy(y.float(), found.float()), y.float(), torch.full((2,), 1e-3))
    assert single.converged
    assert bool(((single.x.double() - exact).flatten(1).norm(dim=1) <= single.error).all())


def test_interior_pixels_agree_with_layers_padded_by_zeros(tmp_path: Path) -> None:
    """The original pads every layer: the same gradient further from the boundary than twice the filters reach."""
    state, x = write_crr(tmp_path), pictures()
    layers = [v.double() for k, v in state.items() if "original" in k]
    layers = [v - v.mean((1, 2, 3), keepdim=True) for v in layers]
    found = load_foreign(tmp_path, SIGMA)
    u = x
    for layer in layers:
        u = F.conv2d(u, layer, padding=1)
    profile = found.regularizer
    v = profile.slope(u.flatten(2), profile.current()[1:]).view_as(u)  # type: ignore[operator]
    for layer in reversed(layers):
        v = F.conv_transpose2d(v, layer, padding=1)
    inner = (slice(None), slice(None), slice(4, -4), slice(4, -4))
    torch.testing.assert_close(found.regularizer.grad(x)[inner], v[inner], rtol=1e-9, atol=1e-12)
    assert (found.regularizer.grad(x) - v).abs().max() > 1e-3


def test_the_latest_checkpoint_is_taken_and_one_can_be_named(tmp_path: Path) -> None:
    write_crr(tmp_path)
    first = tmp_path / "checkpoints" / "checkpoint_10.pth"
    shutil.copy(first, tmp_path / "checkpoints" / "checkpoint_9.pth")
    content = torch.load(first, weights_only=True)
    content["state_dict"]["lmbd"] = torch.tensor(9.0)
    torch.save(content, tmp_path / "checkpoints" / "checkpoint_100.pth")
    assert "λ 9" in load_foreign(tmp_path, SIGMA).parameters
    assert "λ 2.5" in load_foreign(first, SIGMA).parameters


class Creates:
    """A pickle of this runs a program when it is loaded by an unrestricted loader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.path}'",)


def test_pickled_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    write_crr(tmp_path)
    mark = tmp_path / "mark"
    torch.save({"state_dict": {}, "config": Creates(mark)}, tmp_path / "checkpoints" / "checkpoint_10.pth")
    with pytest.raises(ForeignError, match=r"holds objects that could run code; only tensors, numbers"):
        load_foreign(tmp_path, SIGMA)
    assert not mark.exists()
    (tmp_path / "checkpoints" / "checkpoint_10.pth").write_bytes(pickle.dumps(Creates(mark)))
    with pytest.raises(ForeignError, match=r"is no archive of torch.save"):
        load_foreign(tmp_path, SIGMA)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Creates(mark)))  # what the file would have done
    assert mark.exists()


def changed(folder: Path, **entries: Any) -> Foreign:
    """Load after entries of the state dictionary were set, or removed (None)."""
    path = folder / "checkpoints" / "checkpoint_10.pth"
    content = torch.load(path, weights_only=True)
    state = content["state_dict"] | {name.replace("__", "."): value for name, value in entries.items()}
    torch.save(content | {"state_dict": {k: v for k, v in state.items() if v is not None}}, path)
    return load_foreign(folder, SIGMA)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"lmbd": None}, "its state_dict lacks lmbd; needed are exactly"),
        ({"bias": torch.zeros(4)}, "has also bias"),
        ({"mu": torch.ones(2)}, r"mu has the shape \(2,\), but must have \(\)"),
        ({"mu": torch.tensor(float("nan"))}, "mu holds values that are NaN or infinite"),
        ({"mu": torch.tensor(3)}, "mu is no dense tensor of floating-point numbers"),
        ({"mu": 3.0}, "mu is no dense tensor of floating-point numbers"),
        ({"activation__coefficients_vect": torch.zeros(45)}, r"has the shape \(45,\), but must have \(44,\)"),
    ],
)
def test_state_dictionaries_of_another_kind(tmp_path: Path, entries: dict[str, Any], message: str) -> None:
    write_crr(tmp_path)
    with pytest.raises(ForeignError, match=message):
        changed(tmp_path, **entries)


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        ("activation_params", "name", "ReLU", "only splines on filters of one channel"),
        ("activation_params", "n_knots", 10, "n_knots is 10 and kernel_size 3, but both must be odd"),
        ("activation_params", "degree", 3, "activation_params has degree, which is not known"),
        ("activation_params", "knots_range", "wide", "knots_range is 'wide', but must be a number"),
        ("net_params", "channels", [3, 4], "only splines on filters of one channel"),
        ("net_params", "kernel_size", 1e9, "kernel_size is 1000000000.0, but must be a number between 2 and 31"),
    ],
)
def test_configurations_of_another_kind(tmp_path: Path, section: str, name: str, value: object, message: str) -> None:
    write_crr(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config[section][name] = value
    path.write_text(json.dumps(config))
    with pytest.raises(ForeignError, match=message):
        load_foreign(tmp_path, SIGMA)


def test_limits_and_what_does_not_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wcrr(tmp_path / "wcrr")
    write_pylopt(tmp_path / "pylopt")
    with pytest.raises(ForeignError, match=r"is for noise of 0/255 to 30/255, but sigma is 51/255"):
        load_foreign(tmp_path / "wcrr", 0.2)
    with pytest.raises(ForeignError, match="mu is a parameter of CRR-NN only"):
        load_foreign(tmp_path / "wcrr", SIGMA, mu=2.0)
    with pytest.raises(ForeignError, match="hold no regularization parameter lam; give it by --lmbd"):
        load_foreign(tmp_path / "pylopt", SIGMA)
    with pytest.raises(ValueError, match=r"lmbd is -1.0, but must be positive"):
        load_foreign(tmp_path / "wcrr", SIGMA, -1.0)
    with pytest.raises(FileNotFoundError, match="no such file or folder; valid are folders of CRR-NN"):
        load_foreign(tmp_path / "nothing", SIGMA)
    with pytest.raises(ForeignError, match=r"no config\.json belongs to it"):
        load_foreign(tmp_path, SIGMA)
    (tmp_path / "pylopt" / "student_t.pt").unlink()
    spline = {"initialisation_dict": {}, "state_dict": {"nodal_values": torch.zeros(6, 5)}}
    torch.save(spline, tmp_path / "pylopt" / "spline.pt")
    with pytest.raises(ForeignError, match="of PyLOpt's potentials only Student-t is read, no splines"):
        load_foreign(tmp_path / "pylopt", SIGMA, 1.0)
    monkeypatch.setattr(limits, "LARGEST", 1000)
    with pytest.raises(ForeignError, match=r"kB, but the limit of such files is 1 kB"):
        load_foreign(tmp_path / "wcrr", SIGMA)
    monkeypatch.setattr(limits, "LARGEST", 64e6)
    monkeypatch.setattr(limits, "LARGEST_UNPACKED", 1000)
    with pytest.raises(ForeignError, match=r"unpacked, it would take .* kB, but the limit is 1 kB"):
        load_foreign(tmp_path / "wcrr", SIGMA)
    (tmp_path / "wcrr" / "config.json").write_text("{")
    with pytest.raises(ForeignError, match="is no JSON file"):
        load_foreign(tmp_path / "wcrr", SIGMA)


def test_filters_without_mean_zero_are_not_those_of_pylopt(tmp_path: Path) -> None:
    write_pylopt(tmp_path)
    content = torch.load(tmp_path / "filters.pt", weights_only=True)
    content["state_dict"]["filter_tensor"][2] += 0.01
    torch.save(content, tmp_path / "filters.pt")
    with pytest.raises(ForeignError, match="filter 2 has no mean of zero"):
        load_foreign(tmp_path, SIGMA, 1.0)


def test_numbers_that_overflow(tmp_path: Path) -> None:
    state = write_wcrr(tmp_path / "wcrr")
    path = tmp_path / "wcrr" / "checkpoints" / "checkpoint_10.pth"
    torch.save({"state_dict": state | {"mu_": torch.tensor(1000.0)}}, path)
    with pytest.raises(
        ForeignError, match=r"checkpoint_10.pth: filters or profiles hold values that are NaN or infinite"
    ):
        load_foreign(tmp_path / "wcrr", SIGMA)
    state["spline_scaling.coefficients"] = torch.full((5, 7), 800.0)
    torch.save({"state_dict": state}, path)
    with pytest.raises(ForeignError, match=r"checkpoint_10.pth: "):
        load_foreign(tmp_path / "wcrr", SIGMA)
    write_pylopt(tmp_path / "pylopt")
    content = torch.load(tmp_path / "pylopt" / "student_t.pt", weights_only=True)
    content["state_dict"]["weight_tensor"][1] = 101
    torch.save(content, tmp_path / "pylopt" / "student_t.pt")
    with pytest.raises(ForeignError, match="values beyond 100, but must hold logarithms of weights"):
        load_foreign(tmp_path / "pylopt", SIGMA, 1.0)


def test_an_imported_model_is_saved_as_any_other(tmp_path: Path) -> None:
    write_wcrr(tmp_path)
    found = load_foreign(tmp_path, SIGMA, 0.9).regularizer
    again, _ = load_regularizer(save_regularizer(found, tmp_path / "saved", {"mu": 0.0}))
    torch.testing.assert_close(again.grad(pictures()), found.grad(pictures()), rtol=0, atol=0)
    assert again.convexity() == found.convexity()

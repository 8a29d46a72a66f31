"""The campaign against the certificates: some 200 of its problems, and whether it would notice what is wrong."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.certificates import Group, campaign, main, plan
from benchmarks.certified import formulas, problems, terms
from benchmarks.certified.checks import Check
from benchmarks.certified.kinds import KINDS
from benchmarks.certified.networks import relaxed_network
from benchmarks.certified.newton import minimize
from benchmarks.certified.operators import OPERATORS
from benchmarks.certified.saddles import learned_tv
from recon.bilevel import energy_objective
from recon.lower_level import Energy, energy

pytest.importorskip("astra", reason="needs the extra ct")


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"large"}))
def test_no_claim_is_refuted(kind: str) -> None:
    """Ten problems or so of every kind: 240 in all."""
    rows, refuted = campaign(plan(10, [kind]), seed=1)
    assert not refuted
    assert rows[-1]["problems"] >= 4
    assert rows[-1]["checks"] >= rows[-1]["unknown"] + 10


def test_no_claim_about_four_million_pixels_is_refuted() -> None:
    rows, refuted = campaign([Group("large", "float32", 1)], seed=0)
    assert not refuted
    assert rows[-1]["checks"] == 5


def test_what_is_proved_is_in_double_precision() -> None:
    rows, _ = campaign(plan(60, ["identity", "blur", "own_matrix"]), seed=2)
    proved = {row["dtype"]: 0 for row in rows}
    for row in rows:
        proved[row["dtype"]] += row["proved"]
    assert proved["float32"] == 0
    assert proved["float64"] > 0


def _twice_the_modulus(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Energy.require_strong_convexity
    monkeypatch.setattr(Energy, "require_strong_convexity", lambda self: 2 * right(self))


def _no_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Energy.rounding_model

    def nothing(self: Energy, x: torch.Tensor) -> energy.Rounding:
        model = right(self, x)
        return energy.Rounding(0 * model.fixed, 0 * model.pull, 0.0, 0.0, 0.0, 0.0)

    monkeypatch.setattr(Energy, "rounding_model", nothing)


def _no_rounding_of_adjoints(monkeypatch: pytest.MonkeyPatch) -> None:
    right = energy.conjugate_gradients
    monkeypatch.setattr(energy, "conjugate_gradients", lambda *a, **k: right(*a, **k | {"rounding": 0.0}))
    monkeypatch.setattr(Energy, "adjoint_rounding", lambda self, x, w, norm, lipschitz: 0 * norm)


def _small_omega(monkeypatch: pytest.MonkeyPatch) -> None:
    right = energy_objective.error_bound

    def wrong(*arguments: Any) -> Any:
        found = right(*arguments)
        return found._replace(omega=1e-3 * found.omega)

    monkeypatch.setattr(energy_objective, "error_bound", wrong)


def _parameters_that_are_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda self, state: None)


@pytest.mark.parametrize(
    ("wrong", "kind", "dtype", "first"),
    [
        (_twice_the_modulus, "identity", "float64", 0),
        (_no_rounding, "own_matrix", "float32", 1),
        (_no_rounding, "odl_single", "float64", 3),
        (_no_rounding_of_adjoints, "blur", "float32", 0),
        (_small_omega, "learning", "float64", 0),
        (_parameters_that_are_not_loaded, "resumed", "float64", 3),
    ],
)
def test_what_is_wrong_is_refuted(
    monkeypatch: pytest.MonkeyPatch, wrong: Callable[[pytest.MonkeyPatch], None], kind: str, dtype: str, first: int
) -> None:
    """Without one of its terms, or with a wrong one, a certificate does not hold."""
    wrong(monkeypatch)
    refuted = campaign([Group(kind, dtype, first + i) for i in range(2)], seed=0)[1]
    assert any(row["what"] != "failed" for row in refuted)


@pytest.mark.parametrize("name", problems.REGULARIZERS | problems.GROUPED)
def test_formulas_of_regularizers(name: str) -> None:
    """Gradients are those of the project, products and Hessians their derivatives; in one and in two channels."""
    rng = np.random.default_rng(3)
    for image in ((1, 5, 6), (2, 4, 5)):
        regular = (problems.REGULARIZERS | problems.GROUPED)[name](rng, image, torch.float64)
        term = regular.build(formulas.as_parameters(regular.regularizer))
        x, v = (rng.normal(size=(2, math.prod(image))).astype(terms.LD) for _ in range(2))
        project = regular.regularizer.value_and_grad(torch.from_numpy(x.astype(float)).view(2, *image))[1]
        np.testing.assert_allclose(term.grad(x).astype(float), project.detach().flatten(1).numpy(), atol=1e-11)
        _assert_derivatives(term, x, v)


def _assert_derivatives(term: terms.Term | terms.Energy, x: Any, v: Any) -> None:
    h = terms.LD(2.0**-20)
    moved = (term.grad(x + h * v) - term.grad(x - h * v)) / (2 * h)
    scale = 1 + float(np.abs(moved).max())
    np.testing.assert_allclose(term.product(x, v).astype(float), moved.astype(float), atol=1e-5 * scale)
    dense = np.einsum("bij,bj->bi", term.dense(x), v.astype(float))
    np.testing.assert_allclose(dense, term.product(x, v).astype(float), atol=1e-12 * scale)


@pytest.mark.parametrize("name", sorted(set(OPERATORS) - {"ray_matrix", "ray_odl"}))
def test_matrices_of_operators(name: str) -> None:
    """Those of ray transforms are read off from the operators."""
    measured = OPERATORS[name](np.random.default_rng(5))
    x = np.random.default_rng(6).normal(size=(2, math.prod(measured.image)))
    data = measured.operator(torch.from_numpy(x).view(2, *measured.image)).flatten(1).numpy()
    expected = x @ measured.matrix.T.astype(float)
    tolerance = 1e-5 if name == "odl_single" else 1e-12
    np.testing.assert_allclose(data, expected, atol=tolerance * float(np.abs(expected).max()))


@pytest.mark.parametrize("make", [learned_tv, relaxed_network])
def test_formulas_of_saddle_points(make: Any) -> None:
    """g(x) + f(Kx): gradients are those of the project, products and Hessians their derivatives."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        problem = make(rng, torch.float64, 2)
        energy, dual = problem.build(formulas.as_parameters(problem.model))
        x, v = (rng.normal(size=(2, problem.unknowns)).astype(terms.LD) for _ in range(2))
        saddle = problem.model.saddle_point(problem.y)
        point = torch.from_numpy(x.astype(float))
        slope = saddle.f.grad(saddle.operator(point)).detach()
        gradient = (saddle.g.grad(point) + saddle.operator.transpose(slope)).detach().numpy()
        np.testing.assert_allclose(energy.grad(x).astype(float), gradient, atol=1e-10)
        np.testing.assert_allclose(dual(x).astype(float), slope.numpy(), atol=1e-10)
        _assert_derivatives(energy, x, v)


def test_references_know_their_own_error() -> None:
    """Minimizers of quadratic energies are known; over x >= 0 so are those of separable ones."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(9, 6)).astype(terms.LD)
    y = rng.normal(size=(3, 9)).astype(terms.LD)
    found = minimize(terms.Energy(terms.quadratic(matrix, y), terms.ridge(0.1, 6)), np.ones((3, 6)))
    hessian = (matrix.T @ matrix).astype(float) + 0.1 * np.eye(6)
    exact = np.linalg.solve(hessian, (y @ matrix).astype(float)[..., None])[..., 0]
    np.testing.assert_allclose(found.x.astype(float), exact, rtol=1e-12)
    assert bool((found.accuracy < 1e-15).all())
    z = rng.normal(size=(3, 6)).astype(terms.LD)
    positive = minimize(terms.Energy(terms.quadratic(np.eye(6, dtype=terms.LD), z)), np.ones((3, 6)), True)
    np.testing.assert_array_equal(positive.x, np.maximum(z, 0))


def test_margins() -> None:
    assert Check("error", 1.0, 2.0, 0.5).margin == pytest.approx(1 / 1.5 - 1)
    assert Check("error", 1.0, 2.0, 0.5).refuted
    assert not Check("error", 1.0, 2.0, 1.5).refuted  # the reference is not accurate enough
    assert Check("error", 1.0, 2.0, 3.0).margin == math.inf
    assert Check("error", math.nan, 2.0, 3.0).refuted
    assert not Check("omega", 1.0, 2.0, 0.0, counts=False).refuted


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--problems", "12", "--kinds", "identity", "--output", str(tmp_path)]) == 0
    with (tmp_path / "certificates.csv").open() as file:
        assert [row["kind"] for row in csv.DictReader(file)] == ["identity", "identity", "all"]
    assert not (tmp_path / "certificates_refuted.csv").exists()
    capsys.readouterr()
    assert main(["--again", "mask/float64/3"]) == 0
    assert "mask/float64/3  error  claimed" in capsys.readouterr().out
    for wrong in (["--again", "mask/float16/3"], ["--kinds", "masks"], ["--problems", "0"]):
        with pytest.raises(SystemExit):
            main(wrong)


def test_claims_that_are_refuted_end_in_a_list_and_in_the_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _twice_the_modulus(monkeypatch)
    options = ["--problems", "12", "--kinds", "identity", "--dtype", "float64", "--output", str(tmp_path)]
    assert main(options) == 1
    with (tmp_path / "certificates_refuted.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert all(float(row["claimed"]) < float(row["true"]) for row in rows)

"""Beside other programs: goals that all reach, processes that take turns, and who is absent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.peers import denoising, filters, ridge, tomography
from benchmarks.peers.turns import Array, Competitor, NotReachedError, count, in_turns, last, relative_distance
from recon.operators import RayTransform
from tests.models.foreign.checkpoints import write_crr, write_pylopt

ALPHA = 0.1


def halves() -> Iterator[Array]:
    """1, 1/2, 1/4, ..."""
    x = np.ones(3)
    while True:
        yield x
        x = x / 2


def test_iterates_are_counted_to_the_goal() -> None:
    assert count(halves(), 0.25, lambda x: float(x.max())) == 3
    np.testing.assert_array_equal(last(halves(), 3), 0.25 * np.ones(3))
    with pytest.raises(NotReachedError, match="after 10 iterations"):
        count(halves(), 1e-9, lambda x: float(x.max()), limit=10)


def test_the_distance_of_a_batch_is_that_of_its_worst_image() -> None:
    reference = np.ones((2, 3, 4))
    x = reference.copy()
    x[1] *= 1.5
    assert relative_distance(x, reference) == pytest.approx(0.5)


def test_the_reference_is_the_minimizer() -> None:
    y = np.zeros((6, 8))
    y[:, 4:] = 1.0
    x = denoising.reference(y, ALPHA, 1e-6)
    # the jump loses alpha on each side, shared by the four pixels of a row
    expected = np.where(np.arange(8) < 4, ALPHA / 4, 1 - ALPHA / 4) * np.ones((6, 1))
    np.testing.assert_allclose(x, expected, atol=1e-5)


def test_processes_reach_the_same_goal_in_turns_and_say_who_is_absent(tmp_path: Path) -> None:
    y = np.random.default_rng(0).random((16, 16)).astype(np.float32)
    path = tmp_path / "problem.npz"
    np.savez(path, y=y, alpha=np.float64(ALPHA), reference=denoising.reference(y, ALPHA, 1e-6))
    names = ["recon", "fgp", "skimage", "nobody"]
    found = in_turns([Competitor(name, "benchmarks.peers.denoising", name) for name in names[:3]], path, 1e-2, 2, 1)
    absent = Competitor("nobody", "benchmarks.peers.denoising", "fgp", python="/bin/false")
    found |= in_turns([absent], path, 1e-2, 2, 1)
    for name in names[:3]:
        assert len(found[name].seconds) == 2
        assert found[name].distance <= 1e-2
    assert found["nobody"].missing == "ended with status 1"
    assert np.isnan(found["nobody"].minimum)


def test_gradients_of_others_are_those_of_the_reference() -> None:
    rng = np.random.default_rng(0)
    x, kernels = rng.random((12, 13)).astype(np.float32), rng.standard_normal((4, 3, 3)).astype(np.float32)
    kernels -= kernels.mean((1, 2), keepdims=True)
    problem, expected = {"x": x, "kernels": kernels}, filters.reference(x, kernels)
    for setup in (filters.recon, filters.conv2d_pair):
        np.testing.assert_allclose(setup(problem, 0.0, lambda x: 0.0)(), expected, atol=1e-4)


def test_the_matrix_of_others_is_that_of_the_ray_transform() -> None:
    """ASTRA's pictures lie a quarter turn from everyone else's."""
    pytest.importorskip("astra", reason="needs the extra ct")
    operator = RayTransform(tomography.geometry(12, 9), cache=False)
    picture = np.random.default_rng(0).random((12, 12))
    expected = operator(torch.from_numpy(picture)[None, None]).numpy().ravel()
    found = tomography.sparse_matrix(12, 9, "float64") @ picture.ravel()
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.max())


def test_the_reference_of_tomography_is_the_minimizer(tmp_path: Path) -> None:
    """Its gap is small, and it is kept."""
    pytest.importorskip("astra", reason="needs the extra ct")
    matrix = tomography.sparse_matrix(12, 9, "float64")
    y = matrix @ tomography.phantom(12).ravel()
    x, moved, gap = tomography.reference(y, 0.05, 12, 9, tmp_path)
    assert moved <= 1e-4
    assert 0 <= gap <= 1e-3
    again, _, _ = tomography.reference(y, 0.05, 12, 9, tmp_path)
    np.testing.assert_array_equal(again, x)


def test_the_solvers_of_ridge_regularizers_reach_the_certified_minimizer(tmp_path: Path) -> None:
    """Through layers and through composed filters: one minimizer, of which the gradient vanishes."""
    write_crr(tmp_path)
    noisy = np.random.default_rng(0).random((14, 13)).astype(np.float32)
    found = ridge.problem(tmp_path, 0.1, 8.0, noisy)
    problem = {name: np.asarray(value) for name, value in found.items()}
    reference = problem.pop("reference")

    def distance(x: Array) -> float:
        return relative_distance(x, reference)

    assert relative_distance(problem["y"], reference) > 0.01
    for setup in (ridge.recon, ridge.recon_counted, ridge.accelerated, ridge.adaptive):
        assert distance(setup(problem, 1e-4, distance)()) <= 1e-4
    y, gradient, _ = ridge._gradient(problem)
    assert float(gradient(torch.from_numpy(reference)[None, None].float()).norm()) < 1e-4 * float(y.norm())


def test_only_ridge_regularizers_of_others_take_part(tmp_path: Path) -> None:
    write_pylopt(tmp_path)
    with pytest.raises(ValueError, match="is PyLOpt, but this benchmark is of CRR-NN and WCRR-NN"):
        ridge.problem(tmp_path, 0.1, 1.0, np.zeros((9, 9), np.float32))

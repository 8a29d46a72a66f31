"""Symmetries of scans: what is stored, and that it is the whole matrix."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

pytest.importorskip("astra", reason="needs the extra ct")

from recon.operators.tomography.beams import FanBeam, Geometry, ParallelBeam
from recon.operators.tomography.matrix import build as build_module
from recon.operators.tomography.matrix import sparse
from recon.operators.tomography.matrix.build import build
from recon.operators.tomography.matrix.folding import ALL as MOTIONS
from recon.operators.tomography.matrix.folding import IDENTITY, TOLERANCE, Folding, fold
from recon.operators.tomography.matrix.memory import check_memory
from recon.operators.tomography.matrix.projector import FoldedMatrix, ProjectorMatrix
from recon.operators.tomography.matrix.sparse import SparseMatrix
from recon.operators.tomography.ray_transform import RayTransform
from tests.operators.tomography.scans import FAN

LARGE_FAN = {"source_distance": 60.0, "detector_distance": 40.0}
SCANS: dict[str, tuple[Geometry, int, float]] = {  # motions, stored rays at most
    "parallel": (ParallelBeam.equispaced((12, 12), 1.0, 20), 8, 0.16),
    "parallel, odd": (ParallelBeam.equispaced((13, 13), 0.7, 40, detector_pixels=27, detector_spacing=0.7), 8, 0.16),
    "parallel, not from 0": (ParallelBeam.equispaced((12, 12), 1.0, 12, start=math.pi / 24), 8, 0.14),
    "parallel, whole turn": (ParallelBeam.equispaced((12, 12), 1.0, 20, arc=2 * math.pi), 8, 0.15),
    "parallel, both ends": (ParallelBeam((12, 12), 1.0, tuple(np.linspace(0, math.pi, 25)), 20, 1.0), 8, 0.15),
    "parallel, oblong": (ParallelBeam.equispaced((13, 8), (0.7, 1.3), 18), 4, 0.29),
    "parallel, offset of the detector": (ParallelBeam.equispaced((12, 12), 1.0, 16, detector_offset=0.25), 2, 0.6),
    "parallel, offset of the image": (
        replace(ParallelBeam.equispaced((12, 12), 1.0, 16), image_offset=(0.3, 0.3)),
        2,
        0.6,
    ),
    "parallel, odd number of views": (ParallelBeam.equispaced((12, 12), 1.0, 9), 4, 0.3),
    "parallel, limited": (ParallelBeam.equispaced((12, 12), 1.0, 30, start=0.3, arc=2.0), 2, 0.55),
    "fan": (FanBeam.equispaced((12, 12), 1.0, 24, **LARGE_FAN), 8, 0.16),
    "fan, not from 0": (FanBeam.equispaced((12, 12), 1.0, 24, start=0.1, **LARGE_FAN), 4, 0.25),
    "fan, offset of the detector": (FanBeam.equispaced((12, 12), 1.0, 24, detector_offset=0.3, **LARGE_FAN), 4, 0.25),
}


def whole(geometry: Geometry, projector: str) -> FoldedMatrix:
    """All rows, as ASTRA has them."""
    rays = math.prod(geometry.range_shape)
    height, width = geometry.image_shape
    folding = Folding((height, width), (IDENTITY,), np.arange(rays), np.arange(rays))
    arrays = build(geometry, projector, folding)
    shape = (rays, height * width)
    return FoldedMatrix(SparseMatrix(arrays["indptr"], arrays["indices"], arrays["values"], shape), folding)


def lengths(geometry: Geometry) -> NDArray[np.float64]:
    """The lengths of intersection of every ray with every pixel, ``(rays, pixels)``, in double precision."""
    points, directions = (a.reshape(-1, 1, 2) for a in geometry.rays())
    x, y = geometry.pixel_positions()
    centres = np.stack(np.meshgrid(x, y, indexing="ij"), -1).reshape(1, -1, 2)
    half = np.asarray(geometry.pixel_size) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = np.stack([(centres - half - points) / directions, (centres + half - points) / directions])
    return np.asarray(np.maximum(np.fmin.reduce(ends.max(0), -1) - np.fmax.reduce(ends.min(0), -1), 0.0))


@pytest.mark.parametrize("name", SCANS)
def test_symmetries_are_found(name: str) -> None:
    geometry, motions, share = SCANS[name]
    folding = fold(geometry)
    assert len(folding.motions) == motions
    assert len(folding.rows) <= share * len(folding.slots)


@pytest.mark.parametrize("name", SCANS)
def test_of_every_projector_it_is_the_whole_matrix(name: str) -> None:
    """ASTRA computes in single precision: entries of 1 are off by 2e-5, lengths of intersection by more, see below."""
    geometry, _, _ = SCANS[name]
    for projector in ("linear", "strip") if geometry.kind == "parallel" else ():
        found, expected = ProjectorMatrix(geometry, projector, cache=False).matrix.dense(), whole(geometry, projector)
        torch.testing.assert_close(found, expected.dense(), rtol=0, atol=1e-4 * float(expected.dense().max()))


@pytest.mark.parametrize("name", SCANS)
def test_lengths_of_intersection_are_as_near_to_exact_as_those_of_astra(name: str) -> None:
    """Except along edges of pixels, where they may be those of either side: there they are ASTRA's."""
    geometry, _, _ = SCANS[name]
    matrix = ProjectorMatrix(geometry, "line", cache=False).matrix
    found, theirs, exact = matrix.dense().numpy(), whole(geometry, "line").dense().numpy(), lengths(geometry)
    along = (np.abs(theirs - exact) > 0.1).any(1)
    np.testing.assert_allclose(found[along], theirs[along], rtol=1e-4, atol=1e-4)
    error, allowed = (np.abs(a - exact)[~along].max() for a in (found, theirs))
    assert error <= allowed * (1 + 1e-6)


@pytest.mark.parametrize("name", SCANS)
@pytest.mark.parametrize("kernels", ["best", "off"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_pair_is_adjoint_to_rounding(
    name: str, kernels: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECON_KERNELS", kernels)
    geometry, _, _ = SCANS[name]
    matrix = ProjectorMatrix(geometry, cache=False)
    x = torch.randn(5, *geometry.domain_shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    y = torch.randn(5, *geometry.range_shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    ax, aty, dense = matrix.forward(x), matrix.backward(y), matrix.matrix.dense()
    u = torch.finfo(dtype).eps
    difference = (ax.double() * y).flatten(1).sum(1) - (x.double() * aty).flatten(1).sum(1)
    assert (difference.abs() <= 4 * u * ax.flatten(1).norm(dim=1) * y.flatten(1).norm(dim=1)).all()
    torch.testing.assert_close(ax.flatten(1).double(), x.flatten(1).double() @ dense.T, rtol=0, atol=64 * u)
    torch.testing.assert_close(aty.flatten(1).double(), y.flatten(1).double() @ dense, rtol=0, atol=256 * u)


def test_a_batch_has_the_bits_of_its_images() -> None:
    if sparse.compiled() is None:
        pytest.skip("nothing has been compiled")
    for geometry, _, _ in SCANS.values():
        matrix = ProjectorMatrix(geometry, cache=False)
        x = torch.randn(11, *geometry.domain_shape, generator=torch.Generator().manual_seed(0))
        y = matrix.forward(x)
        torch.testing.assert_close(y, torch.cat([matrix.forward(a[None]) for a in x]), rtol=0, atol=0)
        back = torch.cat([matrix.backward(a[None]) for a in y])
        torch.testing.assert_close(matrix.backward(y), back, rtol=0, atol=0)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.sampled_from([(6, 6), (7, 7), (6, 9)]),
    views=st.lists(st.integers(0, 47), min_size=1, max_size=20, unique=True),
    detectors=st.integers(1, 12),
    offset=st.sampled_from([0.0, 0.4]),
    fan=st.booleans(),
    line=st.booleans(),
)
def test_every_ray_is_stored_or_the_image_of_one_that_is(
    shape: tuple[int, int], views: list[int], detectors: int, offset: float, fan: bool, line: bool
) -> None:
    """Of any views, also such that have only a part of their mirror images: the ray that a motion makes is that ray."""
    angles = tuple(math.pi * k / 24 for k in sorted(views))
    kind = FanBeam if fan else ParallelBeam
    geometry = kind(shape, 1.0, angles, detectors, 0.9, offset, **(FAN if fan else {}))  # type: ignore[arg-type]
    folding = fold(geometry, line)
    assert len(set(folding.slots)) == len(folding.slots)
    assert folding.slots.min() >= 0
    stored, motion = np.divmod(folding.slots, len(folding.motions))
    np.testing.assert_array_equal(folding.rows[stored[folding.rows]], folding.rows)
    points, directions = (a.reshape(-1, 2) for a in geometry.rays())
    for ray in range(len(folding.slots)):
        source, moved = folding.rows[stored[ray]], folding.motions[motion[ray]]
        point, direction = moved.point(*points[source]), np.asarray(moved.point(*directions[source]))
        away = np.asarray(point) - points[ray]
        along = directions[ray]
        assert abs(direction[0] * along[1] - direction[1] * along[0]) <= 1e-11
        assert abs(away[0] * along[1] - away[1] * along[0]) <= 1e-10


def test_motions_are_those_of_the_square() -> None:
    for first in MOTIONS:
        for second in MOTIONS:
            expected = first.point(*second.point(0.3, 0.7))
            assert first.after(second).point(0.3, 0.7) == expected
    for motion in MOTIONS:
        c, s = motion.point(math.cos(0.4), math.sin(0.4))
        angle = float(motion.angle(0.4))
        assert (math.cos(angle), math.sin(angle)) == pytest.approx((c, s))


def test_angles_that_only_almost_have_symmetries_have_none() -> None:
    geometry = ParallelBeam.equispaced((12, 12), 1.0, 20)
    moved = tuple(angle + 100 * TOLERANCE * k**2 for k, angle in enumerate(geometry.angles))
    assert len(fold(replace(geometry, angles=moved)).rows) >= 0.5 * len(moved) * geometry.detector_pixels


@pytest.mark.parametrize("name", SCANS)
def test_the_bound_of_the_norm_counts_all_terms_of_sums(name: str) -> None:
    """Of A x, and of A^T y, to which all motions of the image contribute."""
    matrix = ProjectorMatrix(SCANS[name][0], cache=False).matrix
    there = matrix.dense() != 0
    assert matrix.terms >= int(there.sum(1).max()) + int(there.sum(0).max())


@pytest.mark.parametrize("name", SCANS)
def test_rounding_in_single_precision_is_within_the_model(name: str) -> None:
    """Of A^T A x by u ||A||^2 ||x||, see ``LinearOperator.rounding_factor``."""
    operator = RayTransform(SCANS[name][0], cache=False)
    x = torch.rand(1, *SCANS[name][0].domain_shape, dtype=torch.float64).float()
    exact = operator.adjoint(operator(x.double()))
    error = float((operator.adjoint(operator(x)).double() - exact).norm())
    model = operator.rounding_factor * operator.unit_roundoff(torch.float32) * operator.norm_bound**2
    assert error <= model * float(x.double().norm())


def test_lodopab_takes_less_than_a_gigabyte_and_an_eighth_of_its_rows() -> None:
    spacing = 260 * 2**0.5 / 513
    geometry = ParallelBeam.equispaced((362, 362), 260 / 362, 1000, detector_pixels=513, detector_spacing=spacing)
    folding = fold(geometry)
    assert len(folding.rows) <= 0.126 * len(folding.slots)
    assert check_memory(geometry, folding=folding) < 0.5e9


def test_only_views_that_are_stored_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    views: list[float] = []
    block = build_module._astra_block

    def noted(geometry: Geometry, projector: str) -> object:
        views.extend(geometry.angles)
        return block(geometry, projector)

    monkeypatch.setattr(build_module, "_astra_block", noted)
    ProjectorMatrix(ParallelBeam.equispaced((12, 12), 1.0, 20), cache=False)
    assert len(views) == 6  # of 0, 9, ..., 171 degrees those up to 45

from __future__ import annotations

import copy
import gc
import math
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("astra", reason="needs the extra ct")

from recon.operators import check_adjoint
from recon.operators.tomography.beams import ConeBeam, FanBeam, Geometry, ParallelBeam
from recon.operators.tomography.cuda import vectors_3d
from recon.operators.tomography.ray_transform import RayTransform
from tests.operators.checks import assert_adjoint, assert_operator, random_data, random_image
from tests.operators.tomography.scans import ALL, FAN, OBLONG, SQUARE, chords, disc, relative


def transform(geometry: Geometry, projector: str | None = None) -> RayTransform:
    return RayTransform(geometry, projector=projector, cache=False)


@pytest.mark.parametrize("name", ALL)
def test_is_a_linear_operator_with_exact_adjoint_and_proven_norm(name: str) -> None:
    geometry = ALL[name]
    # The finite differences of assert_operator are slow for many pixels.
    small = replace(geometry, image_shape=(5, 6), angles=geometry.angles[::3])
    operator = transform(small)
    assert operator.norm_bound_certified
    assert_operator(operator, tightness=1e-3)
    assert_adjoint(transform(geometry))
    assert check_adjoint(transform(geometry), dtype=torch.float32) <= 1e-5


@pytest.mark.parametrize("name", SQUARE)
def test_agrees_with_odl(name: str) -> None:
    ours, odl = transform(SQUARE[name]), RayTransform(SQUARE[name], "odl")
    x, y = random_image(ours), random_data(ours)
    assert relative(ours(x), odl(x)) <= 1e-5
    assert relative(ours.adjoint(y), odl.adjoint(y)) <= 1e-5
    assert not odl.norm_bound_certified
    assert odl.mismatch() <= 1e-5
    assert ours.mismatch() <= 1e-12
    assert odl.norm_bound == pytest.approx(ours.norm_bound, rel=0.02)


def test_odl_with_an_offset_is_a_part_of_a_wider_detector() -> None:
    """ODL's CPU call ignores the offset; an offset of two pixels is a wider detector without its last four."""
    centred = ParallelBeam.equispaced((13, 12), 0.7, 10, start=0.05, detector_pixels=29, detector_spacing=0.8)
    shifted = replace(centred, detector_pixels=25, detector_offset=-2 * 0.8)
    x = random_image(transform(centred))
    assert relative(transform(shifted)(x), RayTransform(centred, "odl")(x)[..., :-4]) <= 1e-5


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("projector", ["linear", "line", "strip"])
def test_projects_a_disc_to_its_chords(name: str, projector: str) -> None:
    coarse = ALL[name]
    if coarse.kind == "fan" and projector != "line":
        pytest.skip("fan beams have the line projector only")
    # The same scan with finer pixels and rays: the error left is that of the discretization.
    geometry = replace(
        coarse,
        image_shape=tuple(6 * n for n in coarse.image_shape),
        pixel_size=tuple(p / 6 for p in coarse.pixel_size),
        detector_pixels=6 * coarse.detector_pixels,
        detector_spacing=coarse.detector_spacing / 6,
    )
    centre, radius, value = (1.1, -0.7), 2.6, 0.02
    found = transform(geometry, projector)(disc(geometry, centre, radius, value))
    expected = chords(geometry, centre, radius, value)
    assert relative(found, expected) <= 0.02
    # No bias: shifts and scales would show here
    assert float(found.sum() / expected.sum()) == pytest.approx(1.0, abs=3e-3)


@pytest.mark.parametrize("name", OBLONG)
def test_a_wrong_geometry_fails_the_chord_test(name: str) -> None:
    geometry = OBLONG[name]
    fine = replace(
        geometry,
        image_shape=tuple(6 * n for n in geometry.image_shape),
        pixel_size=tuple(p / 6 for p in geometry.pixel_size),
    )
    found = transform(fine)(disc(fine, (1.1, -0.7), 2.6, 0.02))
    assert relative(found, chords(replace(fine, detector_offset=0.0), (1.1, -0.7), 2.6, 0.02)) > 0.05
    assert relative(found, chords(fine, (-0.7, 1.1), 2.6, 0.02)) > 0.05


@settings(max_examples=10)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    pixel=st.tuples(st.floats(0.3, 2.0), st.floats(0.3, 2.0)),
    views=st.integers(1, 6),
    detectors=st.integers(1, 12),
    offset=st.floats(-3, 3),
    start=st.floats(-3, 3),
    fan=st.booleans(),
)
def test_adjoint_and_norm_bound_for_any_scan(
    shape: tuple[int, int],
    pixel: tuple[float, float],
    views: int,
    detectors: int,
    offset: float,
    start: float,
    fan: bool,
) -> None:
    options = {"detector_pixels": detectors, "detector_spacing": 0.9, "detector_offset": offset, "start": start}
    if fan:
        geometry: Geometry = FanBeam.equispaced(shape, pixel, views, **FAN, **options)  # type: ignore[arg-type]
    else:
        geometry = ParallelBeam.equispaced(shape, pixel, views, **options)  # type: ignore[arg-type]
    operator = transform(geometry)
    assert_adjoint(operator)
    exact = float(torch.linalg.matrix_norm(operator.projector_matrix.matrix.dense(), 2))
    assert exact <= operator.norm_bound * (1 + 1e-13)


def test_fan_beam_from_far_away_is_parallel() -> None:
    parallel = ParallelBeam.equispaced((12, 14), 1.0, 9, start=0.03, detector_offset=0.3, detector_pixels=25)
    shared = {name: getattr(parallel, name) for name in ("image_shape", "pixel_size", "angles", "detector_pixels")}
    fan = FanBeam(**shared, detector_spacing=1.0, detector_offset=0.3, source_distance=1e5, detector_distance=0.0)
    x = disc(parallel, (1.0, 2.0), 4.0, 1.0)
    assert relative(transform(fan)(x), transform(parallel, "line")(x)) <= 1e-2


def test_copies_keep_working() -> None:
    operator = transform(SQUARE["fan"])
    x = random_image(operator)
    torch.testing.assert_close(copy.deepcopy(operator)(x), operator(x), rtol=0, atol=0)


def test_memory_is_given_back_at_once() -> None:
    operator = transform(SQUARE["fan"])
    matrix = weakref.ref(operator.projector_matrix)
    gc.disable()
    try:
        del operator
        assert matrix() is None
    finally:
        gc.enable()


def test_inference_mode_first_and_gradients_later() -> None:
    operator = transform(SQUARE["parallel"])
    x = random_image(operator)
    with torch.inference_mode():
        operator(x)
    x.requires_grad_()
    operator(x).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * operator.adjoint(operator(x.detach())))


def test_data_of_another_scan_are_refused() -> None:
    operator = transform(SQUARE["parallel"])
    with pytest.raises(ValueError, match=r"got shape \(1, 1, 9, 17\) in the range, expected \(batch, 1, 10, 17\)"):
        operator.adjoint(torch.zeros(1, 1, 9, 17))


def test_what_odl_gets_wrong_is_refused() -> None:
    with pytest.raises(ValueError, match="square pixels"):
        RayTransform(OBLONG["fan, oblong"], "odl")
    with pytest.raises(ValueError, match="ignores the detector offset"):
        RayTransform(OBLONG["parallel, offset"], "odl")


CONE = ConeBeam.equispaced(
    (6, 8, 10), 1.0, 7, **FAN, detector_pixels=(9, 17), detector_spacing=1.5, detector_offset=(0.3, -0.4)
)


def test_wrong_backends_are_refused() -> None:
    with pytest.raises(ValueError, match=r"backend is .* but must be one of matrix"):
        RayTransform(SQUARE["fan"], "gpu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="projector can be chosen"):
        RayTransform(SQUARE["fan"], "odl", projector="line")
    with pytest.raises(ValueError, match="projector for fan beams must be one of line"):
        transform(SQUARE["fan"], "strip")
    with pytest.raises(ValueError, match="expected a geometry"):
        RayTransform({"type": "fan"})  # type: ignore[arg-type]
    for backend in ("matrix", "odl"):
        with pytest.raises(ValueError, match="astra_cuda"):
            RayTransform(CONE, backend)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_said_clearly() -> None:
    with pytest.raises(ValueError, match="needs an NVIDIA GPU"):
        RayTransform(SQUARE["parallel"], "astra_cuda")


def test_angles_of_skimage_are_a_quarter_turn_behind() -> None:
    """What docs/geometry.md says: phi = theta + pi/2."""
    from skimage.transform import radon

    theta = np.arange(0.0, 90.0, 15.0)
    size = 61  # odd: skimage rotates about pixel size // 2
    geometry = ParallelBeam((size, size), 1.0, tuple(np.deg2rad(theta) + math.pi / 2), size, 1.0)
    image = disc(geometry, (8.0, -13.0), 9.0, 1.0)
    theirs = torch.from_numpy(radon(image[0, 0].numpy(), theta=theta, circle=True)).T[None, None]
    assert relative(transform(geometry)(image), theirs) <= 0.02


# --- on a GPU ---


@pytest.mark.parametrize("name", ["parallel, oblong", "fan, oblong", "cone"])
def test_geometry_for_the_gpu_is_that_of_odl(name: str) -> None:
    """What can be checked without a GPU: ODL's vectors for ASTRA, up to the order of its axes in 3D."""
    from odl.applications.tomo.backends import astra_setup

    geometry = CONE if name == "cone" else ALL[name]
    odl_geometry = geometry.to_odl()[1]
    found = vectors_3d(geometry).reshape(-1, 4, 3)
    if name == "cone":
        theirs = astra_setup.astra_conebeam_3d_geom_to_vec(odl_geometry).reshape(-1, 4, 3)
        # there (Z, Y, X) = our (x, y, z) and u runs along z; here (X, Y, Z) = our (y, x, z)
        np.testing.assert_allclose(found, theirs[:, [0, 1, 3, 2]][..., [1, 2, 0]], atol=1e-12)
        return
    kind = "fanflat_2d_geom_to_conebeam_vec" if geometry.kind == "fan" else "parallel_2d_geom_to_parallel3d_vec"
    theirs = getattr(astra_setup, f"astra_{kind}")(odl_geometry).reshape(-1, 4, 3)
    if geometry.kind == "parallel":  # the detector may be anywhere along the rays
        theirs[:, 1] -= (theirs[:, 1] * theirs[:, 0]).sum(-1, keepdims=True) * theirs[:, 0]
    np.testing.assert_allclose(found[:, :3], theirs[:, :3], atol=1e-12)
    np.testing.assert_allclose(found[:, 3], np.broadcast_to([0, 0, geometry.pixel_size[0]], found[:, 3].shape))


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_cuda
@pytest.mark.parametrize("name", ALL)
def test_matrix_on_the_gpu(name: str) -> None:
    operator = transform(ALL[name])
    x, y = random_image(operator), random_data(operator)
    assert relative(operator(x.cuda()).cpu(), operator(x)) <= 1e-12
    assert relative(operator.adjoint(y.cuda()).cpu(), operator.adjoint(y)) <= 1e-12
    assert check_adjoint(operator, device="cuda") <= 1e-10


@needs_cuda
@pytest.mark.parametrize("name", ALL)
def test_astra_cuda_projects_a_disc_to_its_chords(name: str) -> None:
    coarse = ALL[name]
    geometry = replace(
        coarse,
        image_shape=tuple(6 * n for n in coarse.image_shape),
        pixel_size=tuple(p / 6 for p in coarse.pixel_size),
        detector_pixels=6 * coarse.detector_pixels,
        detector_spacing=coarse.detector_spacing / 6,
    )
    cuda, matrix = RayTransform(geometry, "astra_cuda"), transform(geometry)
    first, second = ((1.1, -0.7), 2.6, 0.02), ((-1.0, 0.2), 1.5, 0.03)
    x = torch.cat([disc(geometry, *first), disc(geometry, *second)]).float().cuda()
    expected = torch.cat([chords(geometry, *first), chords(geometry, *second)])
    assert relative(cuda(x).cpu(), expected) <= 0.02
    # the back-projection has the scale of the transpose, and images of a batch do not see each other
    y = expected.float().cuda()
    assert relative(cuda.adjoint(y).cpu(), matrix.adjoint(expected)) <= 0.02
    assert not cuda.norm_bound_certified
    assert cuda.mismatch() <= 0.05
    assert cuda.norm_bound == pytest.approx(matrix.norm_bound, rel=0.05)


@needs_cuda
def test_astra_cuda_cone_beam() -> None:
    """The central row of a centred cone beam is a fan beam; a ball at the centre projects to its chords."""
    geometry = replace(
        CONE,
        image_shape=(48, 48, 48),
        pixel_size=(0.25,) * 3,
        detector_pixels=(65, 81),
        detector_spacing=(0.5, 0.5),
        detector_offset=(0.6, -0.4),
    )
    operator = RayTransform(geometry, "astra_cuda")
    axis = (np.arange(48 * 3) - 71.5) / 12
    inside = (axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None] ** 2) <= 16.0
    ball = torch.from_numpy(inside.reshape(48, 3, 48, 3, 48, 3).mean((1, 3, 5)) * 0.02)[None].float().cuda()
    v = (np.arange(65) - 32) * 0.5 + 0.6
    u = geometry.detector_positions()
    length = 50.0
    square = u[None] ** 2 + v[:, None] ** 2
    distance_squared = 30.0**2 * square / (square + length**2)
    expected = 2 * 0.02 * np.sqrt(np.maximum(16.0 - distance_squared, 0.0))
    found = operator(ball).cpu()[0]
    assert found.shape == (65, 7, 81)
    assert relative(found, torch.from_numpy(expected)[:, None].expand(-1, 7, -1)) <= 0.02
    assert operator.mismatch() <= 0.05
    assert math.isfinite(operator.norm_bound)

"""The ODL adapter against ODL's own results, dense matrices, and operators that have to be refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import odl
import pytest
import torch
from torch import Tensor

from recon.operators import FiniteDifferences, ODLOperator, check_adjoint
from tests.operators.checks import assert_adjoint, assert_linear, assert_operator, random_data, random_image

RNG = np.random.default_rng(0)
MATRIX = RNG.standard_normal((4, 6))
# Cells of volume 0.1 (5 x 4 pixels of 0.2 x 0.5), 0.025 and, for the weighted ones, different in every pixel.
COARSE = odl.uniform_discr([0, 0], [1, 2], (5, 4))
FINE = odl.uniform_discr([0, 0], [1, 2], (10, 8))
TORCH = odl.uniform_discr([0, 0], [1, 2], (5, 4), impl="pytorch")
COMPLEX = odl.uniform_discr([0, 0], [1, 2], (5, 4), dtype="complex128")


class WeightedMatrix(odl.Operator):  # type: ignore[misc]
    """x -> M x between arbitrary spaces, with the adjoint that ODL's definition asks for: W_X^{-1} M^T W_Y."""

    def __init__(self, matrix: np.ndarray, domain: Any, range: Any) -> None:
        super().__init__(domain=domain, range=range, linear=True)
        self.matrix = matrix

    def _call(self, x: Any) -> Any:
        return self.range.element((self.matrix @ flat(x)).reshape(self.range.shape))

    @property
    def adjoint(self) -> odl.Operator:
        gram_x, gram_y = gram(self.domain), gram(self.range)
        return WeightedMatrix(np.linalg.inv(gram_x) @ self.matrix.T @ gram_y, self.range, self.domain)


def flat(element: Any) -> np.ndarray:
    return np.asarray(element.asarray()).reshape(-1)


def gram(space: Any) -> np.ndarray:
    """The Gram matrix of the unit vectors, by the inner product of ODL itself."""
    units = [space.element(row.reshape(space.shape)) for row in np.eye(math.prod(space.shape))]
    return np.array([[u.inner(v) for u in units] for v in units])


def apply_odl(operator: odl.Operator, image: Tensor) -> np.ndarray:
    """ODL on one image, with the channel axis of single images removed."""
    array = image.numpy()
    if not isinstance(operator.domain, odl.ProductSpace) and len(operator.domain.shape) == 2:
        array = array[0]
    result = operator(operator.domain.element(array))
    return np.asarray(result.asarray() if isinstance(operator.range, odl.ProductSpace) else result.data)


OPERATORS: dict[str, Callable[[], odl.Operator]] = {
    "matrix": lambda: odl.MatrixOperator(MATRIX),
    "matrix on weighted spaces": lambda: WeightedMatrix(
        MATRIX, odl.rn(6, weighting=RNG.uniform(0.5, 2, 6)), odl.rn(4, weighting=RNG.uniform(0.5, 2, 4))
    ),
    "matrix, array to constant weights": lambda: WeightedMatrix(
        MATRIX, odl.rn((2, 3), weighting=RNG.uniform(0.5, 2, (2, 3))), odl.uniform_discr(0, 3, 4)
    ),
    "matrix, constant to array weights": lambda: WeightedMatrix(
        MATRIX, odl.uniform_discr([0, 0], [1, 3], (2, 3)), odl.rn(4, weighting=RNG.uniform(0.5, 2, 4))
    ),
    "matrix, cell volumes": lambda: WeightedMatrix(RNG.standard_normal((80, 20)), COARSE, FINE),
    "gradient": lambda: odl.Gradient(COARSE, pad_mode="symmetric"),
    # Two by two pixels: ODL needs milliseconds for a gradient with its PyTorch backend.
    "gradient, torch": lambda: odl.Gradient(odl.uniform_discr([0, 0], [1, 3], (2, 2), impl="pytorch")),
    "gradient of a vector field": lambda: odl.DiagonalOperator(odl.Gradient(COARSE), 2),
    "divergence": lambda: odl.Divergence(range=COARSE),
    "laplacian": lambda: odl.Laplacian(COARSE),
    "scaling": lambda: odl.ScalingOperator(COARSE, -3.0),
    "scaling, torch": lambda: odl.ScalingOperator(TORCH, -3.0),
    "identity, which returns its argument": lambda: odl.IdentityOperator(COARSE),
    "multiplication": lambda: odl.MultiplyOperator(COARSE.element(RNG.uniform(-1, 1, (5, 4)))),
    "resizing": lambda: odl.ResizingOperator(COARSE, ran_shp=(7, 8)),
    "sampling": lambda: odl.SamplingOperator(COARSE, [[0, 1, 2], [1, 2, 3]]),
    "composition": lambda: odl.Divergence(range=COARSE) @ odl.Gradient(COARSE) + 2 * odl.IdentityOperator(COARSE),
    "volume": lambda: odl.PartialDerivative(odl.uniform_discr([0, 0, 0], [1, 1, 1], (2, 3, 2)), axis=1),
    "zero": lambda: odl.ZeroOperator(COARSE),
    "real part": lambda: odl.RealPart(COMPLEX),
    "complex embedding": lambda: odl.ComplexEmbedding(COARSE),
    "complex matrix": lambda: odl.MatrixOperator(MATRIX + 1j * MATRIX[::-1]),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_contract_and_agreement_with_odl(name: str) -> None:
    reference = OPERATORS[name]()
    operator = ODLOperator(reference)
    assert operator.norm_bound_certified
    assert_operator(operator)
    x = random_image(operator, batch=3)
    assert operator.range_shape is not None
    for image, result in zip(x, operator(x), strict=True):
        np.testing.assert_allclose(result.numpy().reshape(-1), apply_odl(reference, image).reshape(-1), rtol=1e-13)


def test_shapes() -> None:
    shapes = {name: ODLOperator(make()) for name, make in OPERATORS.items()}
    assert shapes["gradient"].domain_shape == (1, 5, 4)
    assert shapes["gradient"].range_shape == (2, 5, 4)
    assert shapes["matrix"].domain_shape == (6,)
    assert shapes["matrix"].range_shape == (4,)
    assert shapes["volume"].domain_shape == (2, 3, 2)
    assert shapes["gradient of a vector field"].range_shape == (2, 2, 5, 4)


def test_weighted_product_space() -> None:
    power = odl.ProductSpace(odl.rn(3, weighting=[1.0, 2.0, 3.0]), 2, weighting=[0.5, 4.0])
    operator = ODLOperator(WeightedMatrix(RNG.standard_normal((4, 6)), power, odl.rn(4, weighting=2.0)))
    assert operator.domain_shape == (2, 3)
    assert_operator(operator)


def test_gradient_is_the_difference_operator_divided_by_the_pixel_sizes() -> None:
    operator, differences = ODLOperator(odl.Gradient(COARSE, pad_mode="symmetric")), FiniteDifferences((1, 5, 4))
    x = random_image(operator)
    pixel = torch.tensor([0.2, 0.5], dtype=torch.float64).reshape(2, 1, 1)
    torch.testing.assert_close(operator(x), differences(x) / pixel)
    y = random_data(operator)
    torch.testing.assert_close(operator.adjoint(y), differences.adjoint(y / pixel))


@pytest.mark.parametrize("impl", ["numpy", "pytorch"])
def test_single_precision_spaces(impl: str) -> None:
    space = odl.uniform_discr([0, 0], [1, 2], (5, 4), dtype="float32", impl=impl)
    operator = ODLOperator(odl.Gradient(space))
    assert check_adjoint(operator) < 1e-6
    assert operator(random_image(operator)).dtype == torch.float64
    assert operator(random_image(operator, dtype=torch.float32)).dtype == torch.float32


def test_results_share_no_memory_with_inputs_and_inputs_may_be_strided() -> None:
    operator = ODLOperator(odl.IdentityOperator(COARSE))
    x = random_image(operator)
    result = operator(x)
    result.zero_()
    assert float(x.abs().min()) > 0.0
    strided = random_image(operator).transpose(-1, -2).contiguous().transpose(-1, -2)
    assert torch.equal(operator(strided), strided)
    shared = x[:1].expand(3, -1, -1, -1)
    assert torch.equal(operator(shared), shared)


def test_nan_passes_through() -> None:
    operator = ODLOperator(odl.ScalingOperator(COARSE, 2.0))
    x = random_image(operator)
    x[0, 0, 0, 0] = math.nan
    assert int(operator(x).isnan().sum()) == 1


def test_large_operators_have_an_honest_estimate() -> None:
    space = odl.uniform_discr([0, 0], [40, 50], (40, 50))  # unit pixels
    operator = ODLOperator(odl.Gradient(space, pad_mode="symmetric"))
    exact = FiniteDifferences((1, 40, 50)).norm_bound
    assert not operator.norm_bound_certified
    assert operator.lower_bound == 0.0
    assert exact * (1 - 1e-12) <= operator.norm_bound <= 1.08 * exact
    assert_adjoint(operator)
    assert_linear(operator)
    given = ODLOperator(odl.Gradient(space, pad_mode="symmetric"), norm_bound=math.sqrt(8))
    assert given.norm_bound_certified
    assert given.norm_bound == math.sqrt(8)


def test_given_bounds() -> None:
    assert ODLOperator(odl.ScalingOperator(COARSE, 3.0), norm_bound=3.0, lower_bound=3.0).lower_bound == 3.0
    with pytest.raises(ValueError, match=r"norm_bound=2.9 is too small for ScalingOperator"):
        ODLOperator(odl.ScalingOperator(COARSE, 3.0), norm_bound=2.9)
    with pytest.raises(ValueError, match="lower_bound"):
        ODLOperator(odl.ScalingOperator(COARSE, 3.0), norm_bound=3.0, lower_bound=4.0)


@pytest.mark.parametrize("space", [COARSE, COMPLEX], ids=["real", "complex"])
def test_the_fourier_transform_of_odl_is_refused(space: Any) -> None:
    # Its adjoint is its inverse F^H / N, where its spaces ask for F^H / cell volume: wrong by the factor
    # N / cell volume, which is N^2 on the unit square and 20 / 0.1 here.
    fourier = odl.trafos.DiscreteFourierTransform(space)
    with pytest.raises(ValueError, match=r"adjoint that ODL gives for DiscreteFourierTransform .* is wrong: .* 0.99"):
        ODLOperator(fourier)
    unchecked = ODLOperator(odl.trafos.DiscreteFourierTransform(COMPLEX), check_adjoint=False)
    y = random_data(unchecked)
    wrong, exact = unchecked.adjoint(y), torch.fft.ifft2(y, norm="forward")
    torch.testing.assert_close(200 * wrong, exact)
    assert unchecked.norm_bound == pytest.approx(math.sqrt(20))


def test_other_wrong_adjoints_are_refused() -> None:
    with pytest.raises(ValueError, match="adjoint that ODL gives for Resampling"):
        ODLOperator(odl.Resampling(COARSE, FINE, interp="linear"))
    # The adjoint of MatrixOperator ignores the weights of its spaces.
    matrix = odl.MatrixOperator(MATRIX, domain=odl.rn(6, weighting=2.0), range=odl.rn(4, weighting=3.0))
    with pytest.raises(ValueError, match="adjoint_weighted=False fits"):
        ODLOperator(matrix)
    assert_operator(ODLOperator(matrix, adjoint_weighted=False))
    almost = WeightedMatrix(MATRIX, odl.rn(6), odl.rn(4))
    almost_adjoint = WeightedMatrix(MATRIX.T * (1 + 1e-6), odl.rn(4), odl.rn(6))

    class Almost(WeightedMatrix):
        adjoint = almost_adjoint

    with pytest.raises(ValueError, match="tolerance 1e-08"):
        ODLOperator(Almost(almost.matrix, almost.domain, almost.range))
    ODLOperator(Almost(almost.matrix, almost.domain, almost.range), adjoint_tolerance=1e-5)


class NoAdjoint(odl.Operator):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(COARSE, COARSE, linear=True)

    def _call(self, x: Any) -> Any:
        return x


def test_unsupported_operators() -> None:
    with pytest.raises(TypeError, match=r"odl\.Operator"):
        ODLOperator(np.eye(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"PowerOperator .* is not linear"):
        ODLOperator(odl.PowerOperator(COARSE, 2))
    with pytest.raises(ValueError, match="has no adjoint"):
        ODLOperator(NoAdjoint())
    with pytest.raises(ValueError, match=r"the range of InnerProductOperator .* expected a tensor space"):
        ODLOperator(odl.InnerProductOperator(COARSE.one()))
    with pytest.raises(ValueError, match="not a power of one space"):
        ODLOperator(odl.BroadcastOperator(odl.IdentityOperator(COARSE), odl.Gradient(COARSE)))
    with pytest.raises(ValueError, match="exponent 1"):
        ODLOperator(odl.IdentityOperator(odl.rn(3, exponent=1)))
    with pytest.raises(ValueError, match="dtype int"):
        ODLOperator(odl.IdentityOperator(odl.tensor_space(3, dtype="int64")))


def test_wrong_input() -> None:
    operator = ODLOperator(odl.Gradient(COARSE))
    with pytest.raises(ValueError, match=r"got shape \(5, 4\) in the domain, expected \(batch, 1, 5, 4\)"):
        operator(torch.zeros(5, 4))
    with pytest.raises(ValueError, match=r"got shape \(1, 1, 5, 4\) in the range, expected \(batch, 2, 5, 4\)"):
        operator.adjoint(torch.zeros(1, 1, 5, 4))
    with pytest.raises(ValueError, match="expected a complex dtype"):
        ODLOperator(odl.RealPart(COMPLEX))(torch.zeros(1, 1, 5, 4))

"""Any linear operator of ODL as a torch module with the Euclidean transpose and derivatives of every order."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from odl.core.operator.operator import Operator
from odl.core.space.base_tensors import Tensor as TensorElement
from odl.core.space.base_tensors import TensorSpace
from odl.core.space.pspace import ProductSpace, ProductSpaceElement
from odl.core.space.weightings.weighting import ArrayWeighting, ConstWeighting
from torch import Tensor

from recon.operators import checks
from recon.operators.checks import adjoint_mismatch, check_bounds, lanczos_norm_bound
from recon.operators.linear import LinearOperator, Shape, apply_linear, real_size

# Below this many real unknowns and matrix entries the norm is computed exactly from the dense matrix.
_DENSE_UNKNOWNS = 1024
_DENSE_ENTRIES = 2**21


class ODLOperator(LinearOperator):
    """Adapter for a linear ``odl.Operator`` between tensor spaces, discretizations or power spaces of these.

    Shapes. A space with two axes is a single-channel image: ``(1, *space.shape)``. A power space of k images, e.g. the
    range of ``odl.Gradient``, has k channels: ``(k, height, width)``. Every other space keeps its own shape. Spaces
    with complex dtype take complex tensors. Results have the dtype and device of the input, but no more digits than
    the space's dtype, in which ODL computes: :meth:`unit_roundoff` tells certificates so. CPU data enters ODL without
    a copy if dtypes agree; ODL is called image by image.

    Transpose. ODL's adjoint A* belongs to the inner products ``<u, v>_X = v^H W_X u`` of the spaces, W diagonal: cell
    volumes (constants) or arrays of weights. ``<A x, y>_Y = <x, A* y>_X`` for all x, y says ``A^H W_Y = W_X A*``, so

        A^H = W_X A* W_Y^{-1},

    and its real part where the domain is real and the range complex. ``adjoint`` is this map. Derivatives use it too:
    it is tested at construction. (ODL 1.0.0 itself does not always keep to its definition: the adjoint of
    ``odl.MatrixOperator`` is the plain transpose between weighted spaces too, which ``adjoint_weighted=False`` accepts;
    those of its Fourier transforms and of ``odl.Resampling`` are no adjoints and are refused.)

    Bounds. A ``norm_bound`` or ``lower_bound`` that is given counts as proven by the caller, after a test by
    :func:`recon.operators.check_bounds`. A norm that is not given is exact and certified (as is ``lower_bound``)
    for up to 1024 unknowns and 2^21 matrix entries, from the singular values of the dense matrix. Larger operators are
    known only through products, and fewer products than unknowns prove no upper bound: then it is
    :func:`recon.operators.lanczos_norm_bound` (40 forward and adjoint calls, wrong with probability 1e-10) and
    ``norm_bound_certified`` is False.

    Parameters
    ----------
    odl_operator
        linear, with an adjoint, between the spaces named above ("numpy" or "pytorch" backend).
    norm_bound
        proven upper bound of the Euclidean spectral norm, if known. ODL's own ``norm`` is another one, of the
        weighted norms.
    check_adjoint
        whether to test the adjoint and the bounds that are given, with seeded random vectors. What the test of the
        adjoint tolerates beyond rounding errors enters residuals, ``adjoint_mismatch``.
    adjoint_tolerance
        largest accepted mismatch of :func:`recon.operators.check_adjoint`; by default 1e-8 for double precision
        spaces and 1e-5 for single precision.
    lower_bound
        proven m with ``||A x|| >= m ||x||``; by default from the dense matrix, or 0.
    adjoint_weighted
        False if ``odl_operator.adjoint`` is the Euclidean transpose although the spaces are weighted; W_X and W_Y
        are then ignored.

    Raises
    ------
    TypeError
        if ``odl_operator`` is not an ``odl.Operator``.
    ValueError
        if it is not linear, has no adjoint or one that fails the test, or if a space is not supported.
    BoundError
        (a ValueError) if a bound that was given is refuted; the error has the vector.
    """

    def __init__(
        self,
        odl_operator: Operator,
        norm_bound: float | None = None,
        check_adjoint: bool = True,
        adjoint_tolerance: float | None = None,
        lower_bound: float | None = None,
        adjoint_weighted: bool = True,
    ) -> None:
        if not isinstance(odl_operator, Operator):
            raise TypeError(f"expected an odl.Operator, got {type(odl_operator).__name__}")
        name = _name(odl_operator)
        if not odl_operator.is_linear:
            raise ValueError(f"{name} is not linear")
        domain = _SpaceLayout.of(odl_operator.domain, f"the domain of {name}")
        range_ = _SpaceLayout.of(odl_operator.range, f"the range of {name}")
        super().__init__(domain.shape, range_.shape, norm_bound or 0.0, lower_bound=0.0)
        try:
            odl_adjoint = odl_operator.adjoint
        except NotImplementedError as error:
            raise ValueError(f"{name} has no adjoint in ODL") from error
        self.complex_domain, self.complex_range = domain.is_complex, range_.is_complex
        self.odl_operator = odl_operator
        self._odl_adjoint = odl_adjoint
        self._domain_layout, self._range_layout = domain, range_
        # of real numbers, the less precise one
        self._precision = max((side.dtype.to_real() for side in (domain, range_)), key=lambda d: torch.finfo(d).eps)
        self._weights: tuple[float | Tensor, float | Tensor] = (domain.weight, range_.weight)
        if not adjoint_weighted:
            self._weights = (1.0, 1.0)

        if check_adjoint:
            tolerance = adjoint_tolerance
            if tolerance is None:
                tolerance = 1e-8 if self._precision == torch.float64 else 1e-5
            self._test_adjoint(tolerance)
        self._set_bounds(norm_bound, lower_bound)
        if check_adjoint and (norm_bound is not None or lower_bound):
            check_bounds(self, name=name)
        if check_adjoint and self.norm_bound > 0:
            self.adjoint_mismatch = adjoint_mismatch(self)

    def unit_roundoff(self, dtype: torch.dtype) -> float:
        """The larger one of u of ``dtype`` and of the spaces that ODL computes in."""
        return max(super().unit_roundoff(dtype), super().unit_roundoff(self._precision))

    def _forward(self, x: Tensor) -> Tensor:
        return apply_linear(x, self._matvec, self._rmatvec)

    def _adjoint(self, y: Tensor) -> Tensor:
        return apply_linear(y, self._rmatvec, self._matvec)

    def _matvec(self, x: Tensor) -> Tensor:
        return _apply(self.odl_operator, x, self._domain_layout, self._range_layout)

    def _rmatvec(self, y: Tensor) -> Tensor:
        w_x, w_y = self._weights
        if isinstance(w_x, float) and isinstance(w_y, float):
            # Constants: one scalar factor, and none where both spaces have the same one.
            z = _apply(self._odl_adjoint, y, self._range_layout, self._domain_layout)
            return z if w_x == w_y else z * (w_x / w_y)
        z = _apply(self._odl_adjoint, y / _like(w_y, y), self._range_layout, self._domain_layout)
        return z * _like(w_x, y)

    def _test_adjoint(self, tolerance: float) -> None:
        try:
            mismatch = checks.check_adjoint(self)
        except NotImplementedError as error:  # some ODL adjoints exist as objects but cannot be evaluated
            raise ValueError(f"the adjoint of {_name(self.odl_operator)} is not implemented in ODL") from error
        if not mismatch <= tolerance:
            hint = ""
            weights, self._weights = self._weights, (1.0, 1.0)
            if checks.check_adjoint(self) <= tolerance:
                hint = "; it is the Euclidean transpose instead, so adjoint_weighted=False fits"
            self._weights = weights
            raise ValueError(
                f"the adjoint that ODL gives for {_name(self.odl_operator)} is wrong: |<Ax, y> - <x, A*y>| is "
                f"{mismatch:.3g} ||Ax|| ||y|| for random x and y, tolerance {tolerance:.3g}{hint}"
            )

    def _set_bounds(self, norm_bound: float | None, lower_bound: float | None) -> None:
        unknowns, data = (real_size(side.shape, side.is_complex) for side in (self._domain_layout, self._range_layout))
        if norm_bound is None and unknowns <= _DENSE_UNKNOWNS and unknowns * data <= _DENSE_ENTRIES:
            smallest, largest = self._singular_values()
            norm_bound = largest
            lower_bound = smallest if lower_bound is None else lower_bound
        elif norm_bound is None:
            norm_bound = lanczos_norm_bound(self)
            self.norm_bound_certified = False
        if not 0.0 <= (lower_bound or 0.0) <= norm_bound:
            raise ValueError(f"need 0 <= lower_bound <= norm_bound, got {lower_bound} and {norm_bound}")
        self.norm_bound, self.lower_bound = float(norm_bound), float(lower_bound or 0.0)

    def _singular_values(self) -> tuple[float, float]:
        """Return bounds below the smallest and above the largest singular value, from the dense real matrix."""
        assert self.domain_shape is not None
        n = math.prod(self.domain_shape)
        basis = torch.eye(n, dtype=torch.complex128 if self.complex_domain else torch.float64)
        if self.complex_domain:
            basis = torch.cat([basis, 1j * basis])
        with torch.no_grad():
            images = self(basis.reshape(-1, *self.domain_shape))
        matrix = (torch.view_as_real(images) if images.is_complex() else images).reshape(len(basis), -1)
        values = torch.linalg.svdvals(matrix)
        epsilon = torch.finfo(self._precision).eps
        # ||M - A|| <= sqrt(rank) eps ||A|| for entries of relative accuracy eps, and as much for the decomposition.
        slack = 8.0 * math.sqrt(max(matrix.shape)) * epsilon * float(values[0])
        smallest = float(values[-1]) if matrix.shape[1] >= matrix.shape[0] else 0.0
        return max(smallest - slack, 0.0), float(values[0]) + slack


@dataclass(frozen=True)
class _SpaceLayout:
    """How the elements of one ODL space lie in a tensor, and the weight of its inner product."""

    space: TensorSpace | ProductSpace
    shape: Shape  # of one image of the tensor
    weight: float | Tensor  # of every entry; a tensor has shape `shape`, float64
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, space: TensorSpace | ProductSpace, name: str) -> _SpaceLayout:
        """Describe the space; ``name`` is for errors.

        Raises
        ------
        ValueError
            if the space is not supported.
        """
        leaf = _check_space(space, name)
        shape = tuple(int(n) for n in space.shape)
        weight = _weight(space, name)
        if len(shape) == 2 and space is leaf:
            shape = (1, *shape)
            weight = weight if isinstance(weight, float) else weight[None]
        dtype = getattr(torch, str(leaf.dtype_identifier))
        return cls(space, shape, weight, dtype, torch.device(leaf.device))

    @property
    def is_complex(self) -> bool:
        return self.dtype.is_complex

    def element(self, image: Tensor) -> TensorElement | ProductSpaceElement:
        """Return the ODL element that shares memory with ``image`` (shape of the space, its dtype and device)."""
        return _element(self.space, image)


def _check_space(space: TensorSpace | ProductSpace, name: str) -> TensorSpace:
    """Return the tensor space at the bottom of ``space``, or raise ValueError if it is not supported."""
    if isinstance(space, ProductSpace):
        if len(space) == 0 or not space.is_power_space:
            raise ValueError(f"{name} is {space}, not a power of one space: its parts cannot be stacked")
        return _check_space(space[0], name)
    if not isinstance(space, TensorSpace):
        raise ValueError(f"{name} is {space}: expected a tensor space, a discretization or a power of one")
    if space.impl not in ("numpy", "pytorch"):
        raise ValueError(f'{name} has the backend {space.impl!r}: expected "numpy" or "pytorch"')
    if space.dtype_identifier not in ("float32", "float64", "complex64", "complex128"):
        raise ValueError(f"{name} has dtype {space.dtype_identifier}: expected single or double precision floating")
    if len(space.shape) == 0:
        raise ValueError(f"{name} has no axes")
    return space


def _weight(space: TensorSpace | ProductSpace, name: str) -> float | Tensor:
    """Return the diagonal of W: a number, or a tensor of the shape of the space."""
    weighting = space.weighting
    if weighting.exponent != 2.0:
        raise ValueError(f"{name} has exponent {weighting.exponent}: only exponent 2 has an inner product")
    own: float | Tensor
    if isinstance(weighting, ConstWeighting):
        own = float(weighting.const)
    elif isinstance(weighting, ArrayWeighting):
        array = getattr(weighting.array, "data", weighting.array)  # an ODL element, NumPy array or tensor
        if not isinstance(array, Tensor):
            array = torch.from_numpy(np.array(weighting.array, dtype=np.float64))
        own = array.detach().to("cpu", torch.float64)
    else:
        raise ValueError(f"{name} has the weighting {type(weighting).__name__}: expected a constant or an array")
    if isinstance(space, ProductSpace):
        parts = _weight(space[0], name)
        if isinstance(own, float) and isinstance(parts, float):
            own = own * parts
        else:
            # One weight for each component times the weights inside, which are the same in all components.
            components = torch.as_tensor(own, dtype=torch.float64).expand(len(space))
            inner = torch.as_tensor(parts, dtype=torch.float64).expand(tuple(space[0].shape))
            own = components.reshape(-1, *[1] * inner.ndim) * inner
    values = torch.as_tensor(own)
    if not bool((torch.isfinite(values) & (values > 0)).all()):
        raise ValueError(f"{name} has weights that are not positive and finite")
    return own


def _like(weight: float | Tensor, x: Tensor) -> float | Tensor:
    return weight if isinstance(weight, float) else weight.to(x.device, x.real.dtype if x.is_complex() else x.dtype)


def _apply(operator: Operator, x: Tensor, source: _SpaceLayout, target: _SpaceLayout) -> Tensor:
    """Return ``operator`` applied to every image of the batch, in new memory, with precision and device of ``x``."""
    images = x.detach().to(source.device, source.dtype).contiguous().reshape(-1, *source.space.shape)
    real = x.real.dtype if x.is_complex() else x.dtype
    dtype = real.to_complex() if target.is_complex else real
    result = torch.empty((len(x), *target.shape), dtype=dtype, device=x.device)
    slots = result.reshape(-1, *target.space.shape)
    for image, slot in zip(images, slots, strict=True):
        # Not operator(x, out=...): that compares whole arrays afterwards, and fails if they contain NaN.
        _copy(operator(source.element(image)), slot)
    return result


def _element(space: TensorSpace | ProductSpace, image: Tensor) -> TensorElement | ProductSpaceElement:
    if isinstance(space, ProductSpace):
        return space.element([_element(part, component) for part, component in zip(space.spaces, image, strict=True)])
    return space.element(image if space.impl == "pytorch" else image.numpy())


def _copy(element: TensorElement | ProductSpaceElement, slot: Tensor) -> None:
    if isinstance(element, ProductSpaceElement):
        for part, component in zip(element.parts, slot, strict=True):
            _copy(part, component)
        return
    data = element.data if isinstance(element.data, Tensor) else torch.from_numpy(np.ascontiguousarray(element.data))
    # A real domain keeps the real part: the transpose with respect to Re <., .>.
    slot.copy_(data.real if data.is_complex() and not slot.is_complex() else data)


def _name(operator: Operator) -> str:
    text = f"{type(operator).__name__} ({operator.domain} -> {operator.range})"
    text = " ".join(text.split())
    return text if len(text) <= 200 else text[:197] + "..."

"""Total variation with learned discretisation, as a saddle-point problem (Chambolle and Pock 2021)."""

from __future__ import annotations

import copy
import math
from dataclasses import astuple, dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.regularizers.filter_bank import spectral_bound
from recon.errors import at_least, instance, not_negative, one_of, positive
from recon.lower_level import (
    Blocks,
    FairNorm,
    Functional,
    HuberNorm,
    NotStronglyConvexError,
    SaddleMap,
    SaddleModel,
    SaddlePoint,
    SmoothedNorm,
    Squared,
    Vanishing,
)
from recon.operators import FiniteDifferences, Identity, LinearOperator, Restriction, stack

#: Condat's (2017) averages to the edges below and right of a pixel, to its centre, and to its corner: for each grid
#: (offset in rows, offset in columns) of the values of the first and of the second component that are averaged
_AVERAGES = (
    (((0, 0),), ((0, 0), (0, -1), (1, 0), (1, -1))),
    (((0, 0), (-1, 0), (0, 1), (-1, 1)), ((0, 0),)),
    (((0, 0), (-1, 0)), ((0, 0), (0, -1))),
    (((0, 0), (0, 1)), ((0, 0), (1, 0))),
)


class InterpolationMap(LinearOperator):
    """(u, v) -> Du - K^T v for images u, ``(1, H, W)``, and fields v, ``(2, J, H, W)``: v_j interpolates p by K_j.

    (K p)[c, j] = k[c, j] * p[c] is the correlation of the component c of p, zero outside the image, with the kernel
    k[c, j]. D are forward differences with Neumann boundary. (u, v) is one flat vector.

    Parameters
    ----------
    kernels : Tensor
        k, ``(2, J, s, s)``, s odd.
    shape : tuple of int
        ``(1, H, W)``.

    Raises
    ------
    ValueError
        The kernels are larger than the image.
    NotStronglyConvexError
        They are not finite: a trial of a line search may meet such.
    """

    def __init__(self, kernels: Tensor, shape: tuple[int, ...]) -> None:
        components, count, size, _ = kernels.shape
        if min(shape[1:]) < size:
            raise ValueError(f"interpolation kernels of {size}x{size} are larger than images of {shape[1]}x{shape[2]}")
        differences, pixels = FiniteDifferences(shape), math.prod(shape[1:])
        # ||K||^2 is the larger one of both components: they do not mix
        weights = kernels.new_ones(count, dtype=torch.float64)
        interpolation = max(float(spectral_bound(k, weights)) for k in kernels)
        if not math.isfinite(interpolation):
            raise NotStronglyConvexError("norms of the interpolation kernels are not finite")
        norm = math.sqrt(differences.norm_bound**2 + interpolation * (1 + 1e-12))
        super().__init__(((1 + 2 * count) * pixels,), (2, *shape[1:]), norm)
        self.kernels, self.count, self.differences, self.pixels = kernels, count, differences, pixels
        self.height, self.width = shape[1:]
        self.field_shape = (components, count, self.height, self.width)

    def interpolate(self, p: Tensor) -> Tensor:
        """K p, flat: ``(batch, 2 H W) -> (batch, 2 J H W)``."""
        size = self.kernels.shape[-1]
        fields = p.reshape(-1, 2, self.height, self.width)
        return F.conv2d(fields, self.kernels.reshape(-1, 1, size, size), padding=size // 2, groups=2).flatten(1)

    def gather(self, v: Tensor) -> Tensor:
        """K^T v, ``(batch, 2, H, W)``, for flat v."""
        size = self.kernels.shape[-1]
        fields = v.reshape(-1, 2 * self.count, self.height, self.width)
        kernels = self.kernels.reshape(-1, 1, size, size)
        return F.conv_transpose2d(fields, kernels, padding=size // 2, groups=2)

    def _forward(self, x: Tensor) -> Tensor:
        image = x[:, : self.pixels].reshape(-1, 1, self.height, self.width)
        return self.differences(image) - self.gather(x[:, self.pixels :])

    def _adjoint(self, y: Tensor) -> Tensor:
        return torch.cat([self.differences.adjoint(y).flatten(1), -self.interpolate(y)], 1)

    def absolute_sums(self) -> tuple[Tensor, Tensor]:
        """4 for the image, delta_j = max_c sum |k[c, j]| for v_j, and 2 + sum_j delta_j for p."""
        sums = self.kernels.detach().abs().sum((2, 3)).amax(0)
        fields = sums.view(1, -1, 1).expand(2, -1, self.pixels).flatten()
        return torch.cat([sums.new_full((self.pixels,), 4.0), fields]), (2 + sums.sum()).expand(self.range_shape or ())

    def tensors(self) -> list[tuple[Tensor, float]]:
        """The derivative in one entry is <v[c, j], shifted p[c]>: at most s^2 ||v||^2 ||p||^2 is the sum of squares."""
        return [(self.kernels, float(self.kernels.shape[-1]))]


@dataclass(frozen=True)
class InitialKernels:
    """Interpolation kernels that learning starts from. Kernels that are equal would stay so.

    Parameters
    ----------
    kind
        ``identity``: one kernel, the isotropic total variation of forward differences; ``averages``: the first of
        Condat's averages to edges below and right, centre and corner of pixels; ``random``: identities and normal
        numbers with standard deviation 0.3/s.
    seed
        of the random ones.
    """

    kind: Literal["identity", "averages", "random"] = "averages"
    seed: int = 0

    def make(self, count: int, size: int) -> Tensor:
        """``(2, count, size, size)``, kernels that sum to one (``random``: up to what is random).

        Raises
        ------
        ValueError
            for another kind, or one that has not so many kernels or not of this size.
        """
        one_of(("identity", "averages", "random"), initial=self.kind)
        centre = size // 2
        kernels = torch.zeros(2, count, size, size)
        if self.kind == "averages":
            if count > len(_AVERAGES) or size < 3:
                raise ValueError(
                    f"averages are at most {len(_AVERAGES)} kernels of at least 3x3 pixels, but {count} of "
                    f"{size}x{size} were asked for"
                )
            for j, components in enumerate(_AVERAGES[:count]):
                for c, offsets in enumerate(components):
                    for row, column in offsets:
                        kernels[c, j, centre + row, centre + column] = 1 / len(offsets)
            return kernels
        kernels[:, :, centre, centre] = 1
        if self.kind == "random":
            kernels += 0.3 / size * torch.randn(kernels.shape, generator=torch.Generator().manual_seed(self.seed))
        elif count != 1:
            raise ValueError(f"identity is one kernel, but {count} were asked for; they would stay equal")
        return kernels


@dataclass(frozen=True)
class Convexity:
    """The moduli of the saddle-point problem of :class:`LearnedTV`.

    Parameters
    ----------
    dual
        e > 0, of the dual variable p.
    field
        mu_v > 0, of the fields v.
    image
        mu >= 0, of the image, which a certificate needs if A is not the identity.

    Raises
    ------
    ValueError
        one is out of its range.
    """

    dual: float = 0.1
    field: float = 0.05
    image: float = 0.0

    def __post_init__(self) -> None:
        positive(dual_convexity=self.dual, field_convexity=self.field)
        not_negative(image_convexity=self.image)


class LearnedTV(SaddleModel):
    r"""lambda TV_K(u) + 1/2 \|\|Au - y\|\|^2, TV_K(u) = min_v { sum_j \|\|v_j\|\|_{2,1} : K^T v = Du }, K learned.

    The saddle-point problem, with e the strong convexity of p, mu_v that of v and phi a smoothed norm:

        min_{u,v} max_p <Du - K^T v, p> - (e/2) \|\|p\|\|^2 + lambda sum phi(v_j) + (mu_v/2) \|\|v\|\|^2
                        + 1/2 \|\|Au - y\|\|^2 + (mu/2) \|\|u\|\|^2;

    if A is not the identity, the data are one more dual variable. It is what :meth:`saddle_point` gives: strongly
    convex and concave, with certificates for u. ``plain=True``: e = mu_v = 0 and the norm itself.

    Kernels: k[c, j] for the component c of the dual field. With ``sum_constraint`` they are
    raw - mean(raw) + 1/s^2 and sum to one, which makes the discretisation consistent; lambda = e^``log_weight``.

    Parameters
    ----------
    kernels
        J, the number of interpolated fields.
    size
        s, odd.
    initial
        what K is before anything is learned.
    log_weight
        initial log lambda.
    learn_kernels, learn_weight
        whether K and lambda are learned.
    sum_constraint
        see above.
    convexity
        e, mu_v and mu.
    norm, smoothing
        phi is sqrt(\|v\|^2 + nu^2) - nu for ``smoothed``, \|v\| - nu log(1 + \|v\|/nu) for ``fair``, whose prox is
        several times cheaper, or Huber's function, quadratic for \|v\| <= nu lambda, for ``huber``, which has no
        goal-oriented certificates; nu = ``smoothing``.

    A is the identity by default, see :meth:`measured_by`, and not saved with the model.

    Raises
    ------
    ValueError
        an argument is out of its range; for kernels larger than the image and data of another shape when they are used.
    """

    image_convexity: float

    def __init__(
        self,
        kernels: int = 4,
        size: int = 3,
        initial: InitialKernels = InitialKernels(),
        log_weight: float = -2.5,
        learn_kernels: bool = True,
        learn_weight: bool = True,
        sum_constraint: bool = True,
        convexity: Convexity = Convexity(),
        norm: Literal["smoothed", "fair", "huber"] = "smoothed",
        smoothing: float = 0.01,
    ) -> None:
        super().__init__()
        instance(InitialKernels, initial=initial)
        instance(Convexity, convexity=convexity)
        at_least(1, kernels=kernels)
        if size < 1 or size % 2 == 0:
            raise ValueError(f"the size of kernels is {size}, but must be odd and positive")
        if not math.isfinite(log_weight):
            raise ValueError(f"log_weight is {log_weight}, but must be finite")
        positive(smoothing=smoothing)
        one_of(("smoothed", "fair", "huber"), norm=norm)
        self.size, self.norm, self.smoothing, self.sum_constraint = size, norm, smoothing, sum_constraint
        self.dual_convexity, self.field_convexity, self.image_convexity = astuple(convexity)
        self.raw = nn.Parameter(initial.make(kernels, size), requires_grad=learn_kernels)
        self.log_weight = nn.Parameter(torch.tensor(float(log_weight)), requires_grad=learn_weight)
        self._operator: tuple[LinearOperator, ...] = ()

    def measured_by(self, operator: LinearOperator | None) -> None:
        """Set A; None is the identity. A stays no part of the module: it is not saved, nor moved between devices."""
        self._operator = () if operator is None or isinstance(operator, Identity) else (operator,)

    def copied(self) -> Self:
        """A copy with parameters of its own, and with the same A."""
        return copy.deepcopy(self, {id(self._operator): self._operator})

    def multiply(self, weight: float) -> None:
        """Make R(u) = min_v max_p <Du - K^T v, p> - (e/2)||p||^2 + lambda phi(v) + (mu_v/2)||v||^2 ``weight`` times it.

        With p' = weight p: e is divided, lambda and mu_v are multiplied by it; Huber's nu, which belongs to 1/(2 nu)
        ||v||^2, is divided.
        """
        with torch.no_grad():
            self.log_weight.add_(math.log(weight))
        self.dual_convexity /= weight
        self.field_convexity *= weight
        if self.norm == "huber":
            self.smoothing /= weight

    @property
    def kernels(self) -> Tensor:
        """k, ``(2, J, s, s)``."""
        if not self.sum_constraint:
            return self.raw
        return self.raw - self.raw.mean((2, 3), keepdim=True) + 1 / self.size**2

    def saddle_point(self, y: Tensor, plain: bool = False) -> SaddlePoint:
        """The problems of the data ``y``, ``(batch, *range_shape of A)``; ``plain``: without regularization."""
        operator = self._operator[0] if self._operator else None
        shape = tuple(y.shape[1:]) if operator is None else operator.domain_shape
        if operator is not None and (operator.range_shape is None or tuple(y.shape[1:]) != operator.range_shape):
            raise ValueError(f"data have the shape {tuple(y.shape[1:])}, but those of A are {operator.range_shape}")
        if shape is None or len(shape) != 3 or shape[0] != 1:
            raise ValueError(f"learned total variation needs images of the shape (1, height, width), not {shape}")
        k: LinearOperator
        k = first = InterpolationMap(self.kernels, tuple(shape))
        e, mu_v, nu = (0.0, 0.0, 0.0) if plain else (self.dual_convexity, self.field_convexity, self.smoothing)
        weight = self.log_weight.exp()
        field: Functional
        if plain or self.norm == "huber":
            field = HuberNorm(first.field_shape, weight, nu, mu=mu_v)
        else:
            field = (FairNorm if self.norm == "fair" else SmoothedNorm)(first.field_shape, weight, nu, mu=mu_v)
        f: Functional = Vanishing(2 * first.pixels) if plain else Squared(2 * first.pixels, 1 / e)
        data = y.flatten(1)
        if operator is None:
            image = Squared(first.pixels, 1.0, data)
        else:
            image = Squared(first.pixels, self.image_convexity)
            k = stack([first, operator @ Restriction(image.size + field.size, shape)])
            f = Blocks([f, Squared(data.shape[1], 1.0, data)])
        return SaddlePoint(SaddleMap(k), Blocks([image, field]), f, tuple(shape), check=False)

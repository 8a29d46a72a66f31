"""Regularizers that know the noise level of every image: one model for all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from models.regularizers.rescalable import Rescalable
from recon.errors import at_least
from recon.lower_level import HessianMap, HessianVariation, JacobianBounds, Regularizer

#: of the largest noise level: this is added to a level before its logarithm is taken
OFFSET = 0.04

NO_LEVEL = (
    "the regularizer depends on the noise level of the images, which is not known: regularizer.at(sigma) in Python; "
    "for training, data with a range of sigma"
)


class NoiseConditioned(Regularizer):
    r"""R_sigma(x) = sum_k sum_p s_k(sigma)^-2 psi_k(s_k(sigma) (c_k * x)_p): one regularizer for all noise levels.

    c_k and psi_k are those of a ridge regularizer, and its properties are those of R_sigma: convexity, the modulus of
    weak convexity and the bound of the Hessian do not depend on s_k > 0 (Goujon, Neumayer, Unser 2024). With o =
    ``OFFSET`` ``largest``, log s_k is piecewise linear in log(sigma + o) with learned values at equally spaced knots;
    it begins as s_k = (reference + o) / (sigma + o). Of an ICNN, R_sigma(x) = R(s_1 x) / (s_1 s_2).

    What depends on images needs their noise levels: :meth:`at`.

    Parameters
    ----------
    regularizer
        with the c_k and psi_k: a ridge regularizer or an :class:`models.ICNN`.
    largest, smallest
        the range of standard deviations of the noise, in the unit of the images.
    reference
        at which R_sigma begins as the regularizer itself; the middle of the range by default.
    knots
        number of learned values for each k, at least 2.

    Raises
    ------
    ValueError
        a number is out of range, or the regularizer is of another kind.
    """

    def __init__(
        self,
        regularizer: Rescalable,
        largest: float,
        smallest: float = 0.0,
        reference: float | None = None,
        knots: int = 8,
    ) -> None:
        super().__init__()
        if not isinstance(regularizer, Rescalable):
            raise ValueError(
                f"{type(regularizer).__name__} knows no noise level; valid are ridge regularizers "
                "(models.FieldsOfExperts, models.MultivariateFieldsOfExperts, models.ConvexRidge, "
                "models.WeaklyConvexRidge) and models.ICNN"
            )
        if not 0 <= smallest < largest < math.inf:
            raise ValueError(f"noise levels from {smallest} to {largest}: needs 0 <= smallest < largest < inf")
        reference = 0.5 * (smallest + largest) if reference is None else reference
        if not smallest <= reference <= largest:
            raise ValueError(f"reference is {reference}, but must lie between {smallest} and {largest}")
        at_least(2, knots=knots)
        self.regularizer, self.margin = regularizer, regularizer.margin
        self.smallest, self.largest, self.knots = float(smallest), float(largest), knots
        self.typical_noise = reference
        first, middle, last = (math.log(s + OFFSET * largest) for s in (smallest, reference, largest))
        initial = middle - torch.linspace(first, last, knots, dtype=torch.float64)
        rows = regularizer.gain_count()
        self.log_gains = nn.Parameter(initial.to(torch.get_default_dtype()).repeat(rows, 1))

    @property
    def in_channels(self) -> int:
        return self.regularizer.in_channels

    def check_level(self, sigma: Tensor | float) -> Tensor:
        """The noise levels in float64, one-dimensional.

        Raises
        ------
        ValueError
            one is outside of the range.
        """
        levels = torch.as_tensor(sigma, dtype=torch.float64).detach().reshape(-1).cpu()
        inside = levels.clamp(self.smallest, self.largest)
        wrong = levels[~((levels - inside).abs() <= 1e-7 * inside)]  # the ends of the range in single precision are in
        if len(wrong) or not len(levels):
            value = f"{float(wrong[0]):g}" if len(wrong) else "missing"
            raise ValueError(
                f"the noise level is {value}, but the model is for standard deviations from {self.smallest:g} to "
                f"{self.largest:g}"
            )
        return inside

    def gains(self, level: float) -> Tensor:
        """s_k at a noise level, ``(K,)``, differentiable in the parameters."""
        first, last = (math.log(s + OFFSET * self.largest) for s in (self.smallest, self.largest))
        position = (math.log(level + OFFSET * self.largest) - first) / (last - first) * (self.knots - 1)
        left = min(int(max(position, 0.0)), self.knots - 2)
        share = position - left
        return torch.exp((1 - share) * self.log_gains[:, left] + share * self.log_gains[:, left + 1])

    def at(self, sigma: Tensor | float | None) -> AtNoiseLevels:
        """R_sigma for images with these noise levels: a number for any images, or ``(batch,)``.

        Raises
        ------
        ValueError
            a noise level is outside of the range, or nothing is known.
        """
        if sigma is None:
            raise ValueError(NO_LEVEL)
        levels, which = torch.unique(self.check_level(sigma), return_inverse=True)
        return AtNoiseLevels(self, _Parts(self, levels.tolist()), which.tolist())

    def forward(self, x: Tensor) -> Tensor:
        raise ValueError(NO_LEVEL)

    value_and_grad = hessian = forward  # type: ignore[assignment]

    def parameter_vjp(self, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        raise ValueError(NO_LEVEL)

    def convexity(self) -> float:
        """The modulus for all noise levels, with what rounding errors of gains take from it if it is negative."""
        return min(0.0, self.regularizer.convexity()) * (1 + self.regularizer.gain_rounding())


class _Parts:
    """The regularizers at some noise levels, made when they are needed, for as long as the parameters stay."""

    def __init__(self, owner: NoiseConditioned, levels: list[float]) -> None:
        self.owner, self.levels = owner, levels
        self._made: dict[int, Rescalable] = {}
        self._belongs: tuple[list[Tensor], Tensor] | None = None

    def __reduce__(self) -> tuple[type[_Parts], tuple[NoiseConditioned, list[float]]]:
        return _Parts, (self.owner, self.levels)  # copies and files make their own

    def get(self, number: int) -> Rescalable:
        """The regularizer at the noise level of this number."""
        owner, own = self.owner, self.owner.regularizer
        table = own.current()
        if self._belongs is None or self._belongs[0] is not table or not self._belongs[1].equal(owner.log_gains):
            self._made, self._belongs = {}, (table, owner.log_gains.detach().clone())
        if number not in self._made:
            level = self.levels[number]

            def effective() -> list[Tensor]:
                return own.rescaled(own.effective(), owner.gains(level))

            with torch.no_grad():
                tensors = own.rescaled(table, owner.gains(level))
            self._made[number] = own.copy_at(effective, tensors)
        return self._made[number]


class AtNoiseLevels(Regularizer):
    """:class:`NoiseConditioned` for images with known noise levels; its parameters are those of that.

    Parameters
    ----------
    conditioned
        R_sigma.
    parts
        the regularizers at the noise levels that there are.
    which
        their numbers, image by image; those of any number of images if all are the same.
    """

    def __init__(self, conditioned: NoiseConditioned, parts: _Parts, which: Sequence[int]) -> None:
        super().__init__()
        self.conditioned, self.margin = conditioned, conditioned.margin
        self._parts, self._which = parts, list(which)
        self._groups: dict[int, list[int]] = {}
        for image, number in enumerate(self._which):
            self._groups.setdefault(number, []).append(image)

    @property
    def in_channels(self) -> int:
        return self.conditioned.in_channels

    @property
    def levels(self) -> list[float]:
        """The noise levels, image by image."""
        return [self._parts.levels[number] for number in self._which]

    def select(self, index: Tensor | slice) -> Self:
        if len(self._which) == 1:
            return self  # of any images
        which = self._which[index] if isinstance(index, slice) else torch.tensor(self._which)[index.cpu()].tolist()
        return type(self)(self.conditioned, self._parts, which)

    def trainable(self) -> list[nn.Parameter]:
        return self.conditioned.trainable()

    def _by_level(self, x: Tensor) -> Iterable[tuple[Rescalable, Tensor | slice]]:
        """The regularizers with the images that they belong to."""
        if len(self._groups) == 1:
            if len(self._which) not in (1, len(x)):
                self._mismatch(x)
            return [(self._parts.get(self._which[0]), slice(None))]
        if len(self._which) != len(x):
            self._mismatch(x)
        return [(self._parts.get(number), _index(images)) for number, images in self._groups.items()]

    def _mismatch(self, x: Tensor) -> None:
        raise ValueError(f"noise levels of {len(self._which)} images, but {len(x)} images")

    def forward(self, x: Tensor) -> Tensor:
        found = [part(x[index]) for part, index in self._by_level(x)]
        return found[0] if len(found) == 1 else torch.cat(found)[self._order(x)]

    def _order(self, x: Tensor) -> Tensor:
        """Where the images are in the groups, one after another."""
        return torch.argsort(torch.tensor([i for images in self._groups.values() for i in images], device=x.device))

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = [part.value_and_grad(x[index]) for part, index in self._by_level(x)]
        if len(found) == 1:
            return found[0]
        order = self._order(x)
        return torch.cat([value for value, _ in found])[order], torch.cat([grad for _, grad in found])[order]

    def hessian(self, x: Tensor) -> HessianMap:
        """v -> R_sigma''(x) v, image by image with its own level."""
        maps = [(part.hessian(x[index]), index) for part, index in self._by_level(x)]
        if len(maps) == 1:
            return maps[0][0]
        group, place = [0] * len(x), [0] * len(x)
        for number, images in enumerate(self._groups.values()):
            for k, image in enumerate(images):
                group[image], place[image] = number, k

        def apply(v: Tensor, kept: Tensor | None) -> Tensor:
            """The products of the images ``kept``, each by the map of its level."""
            images = list(range(len(x))) if kept is None else kept.tolist()
            out = torch.empty_like(v)
            for number, (part, _) in enumerate(maps):
                rows = [row for row, image in enumerate(images) if group[image] == number]
                if rows:
                    own = part.select(torch.tensor([place[images[row]] for row in rows], device=v.device))
                    index = _index(rows)
                    out[index] = own(v[index])
            return out

        return HessianMap(apply)

    def parameter_vjp(self, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        """Level by level in the tensors that R_sigma is made of; from there at once."""
        conditioned, own = self.conditioned, self.conditioned.regularizer
        numbers = list(self._groups)
        with torch.enable_grad():
            leaves = [t.detach().clone().requires_grad_(True) for t in own.current()]
            outputs, grads = [], []
            for number, (part, index) in zip(numbers, self._by_level(x), strict=True):
                gains = conditioned.gains(self._parts.levels[number])
                outputs += own.rescaled(leaves, gains)
                grads += part.derivative(x[index], w[index])
            wanted = [*leaves, conditioned.log_gains] if conditioned.log_gains.requires_grad else leaves
            found = torch.autograd.grad(outputs, wanted, grads, allow_unused=True, materialize_grads=True)
        learned = own.trainable()
        by_parameter = {}
        if learned:
            by_parameter = dict(zip(map(id, learned), own.chain(list(found[: len(leaves)])), strict=True))
        if len(found) > len(leaves):
            by_parameter[id(conditioned.log_gains)] = found[-1]
        return tuple(by_parameter[id(p)] for p in self.trainable())

    # --- constants: of all images ------------------------------------------------------------------------------------

    def smoothness(self) -> float:
        return max(self._parts.get(number).smoothness() for number in self._groups)

    def rounding_gain(self) -> float:
        return max(self._parts.get(number).rounding_gain() for number in self._groups)

    def rounding_offset(self, x: Tensor) -> float:
        return max(float(self._parts.get(number).rounding_offset(x)) for number in self._groups)

    def convexity(self) -> float:
        return self.conditioned.convexity()

    def hessian_variation(self, w: Tensor) -> HessianVariation | None:
        """Those of the regularizers at the levels, image by image; None if one of them has none."""
        found = [part.hessian_variation(w[index]) for part, index in self._by_level(w)]
        if None in found:
            return None
        if len(found) == 1:
            return found[0]
        order = self._order(w)
        return HessianVariation(
            *(torch.cat([getattr(f, n) for f in found])[order] for n in ("relative", "lipschitz", "concavity"))
        )

    def jacobian_bounds(self, x: Tensor, w: Tensor, radius: Tensor) -> JacobianBounds:
        """Estimates, image by image: see :class:`recon.lower_level.Regularizer`."""
        if len(self._which) == 1:
            return super().jacobian_bounds(x, w, radius)
        parts = [
            Regularizer.jacobian_bounds(self.select(slice(i, i + 1)), x[i : i + 1], w[i : i + 1], radius[i : i + 1])
            for i in range(len(x))
        ]
        return JacobianBounds(torch.cat([p.norm for p in parts]), torch.cat([p.variation for p in parts]), False)


def _index(images: list[int]) -> Tensor | slice:
    """A slice where the images are neighbours: no copy."""
    if images[-1] - images[0] == len(images) - 1:
        return slice(images[0], images[-1] + 1)
    return torch.tensor(images)

"""Networks that reconstruct in one pass: the interface, and the plain reconstructions that they start from."""

from __future__ import annotations

import weakref
from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from recon.errors import at_least
from recon.lower_level import Recreatable
from recon.operators import FilteredBackProjection, Identity, LinearOperator, RayTransform

RampName = Literal["space", "frequency"]
FilterName = Literal["ram-lak", "shepp-logan", "cosine", "hamming", "hann"]

# Filters of filtered back-projection, by operator: they take longer to make than to apply.
_PROJECTIONS: weakref.WeakKeyDictionary[LinearOperator, dict[tuple[str, float, str], FilteredBackProjection]]
_PROJECTIONS = weakref.WeakKeyDictionary()


class Reconstructor(Recreatable):
    """A network x = F_theta(y, A), with the arguments of DeepInverse's ``model(y, physics)``.

    Subclasses implement ``reconstruct``; what is checked here holds for all of them. The operator is an argument and
    no part of the network: it is not in the state dict, and one network can be applied with several.

    Parameters
    ----------
    image_channels
        channels of the images, 2 for complex ones.
    data_channels
        channels of the data, the third axis from behind; 2 for complex ones.

    Raises
    ------
    ValueError
        a number of channels is less than 1.
    """

    older_arguments: ClassVar[dict[str, object]] = {}
    """What arguments were worth before they existed: for files that do not have them."""

    def __init__(self, image_channels: int = 1, data_channels: int = 1) -> None:
        super().__init__()
        at_least(1, image_channels=image_channels, data_channels=data_channels)
        self.image_channels, self.data_channels = image_channels, data_channels

    def forward(self, y: Tensor, operator: LinearOperator) -> Tensor:
        """Reconstruct ``(batch, image_channels, height, width)`` from data y, ``(batch, *range_shape)``.

        Raises
        ------
        ValueError
            the operator is missing or of another kind, or y or the channels do not fit it.
        """
        name = type(self).__name__
        if not isinstance(operator, LinearOperator):
            raise ValueError(f"{name} needs the LinearOperator that measured the data, got {type(operator).__name__}")
        if operator.complex_domain or operator.complex_range:
            raise ValueError(f"{name} takes complex numbers as two channels, but {type(operator).__name__} is complex")
        data, image = operator.range_shape or tuple(y.shape[1:]), operator.domain_shape or tuple(y.shape[1:])
        if tuple(y.shape[1:]) != data or len(y) == 0 or not y.is_floating_point():
            expected = ", ".join(map(str, data))
            raise ValueError(
                f"{name}: got data of shape {tuple(y.shape)}, {y.dtype}; expected real (batch, {expected})"
            )
        if len(image) != 3 or image[0] != self.image_channels:
            raise ValueError(
                f"{name} is for images ({self.image_channels}, height, width) (image_channels), "
                f"but {type(operator).__name__} takes {image}"
            )
        if len(data) < 3 or data[-3] != self.data_channels:
            raise ValueError(
                f"{name} is for data (..., {self.data_channels}, height, width) (data_channels), "
                f"but {type(operator).__name__} makes {data}"
            )
        return self.reconstruct(y, operator)

    @abstractmethod
    def reconstruct(self, y: Tensor, operator: LinearOperator) -> Tensor:
        """As ``forward``, of arguments that fit."""

    def trainable(self) -> list[nn.Parameter]:
        """The parameters that are learned."""
        return [p for p in self.parameters() if p.requires_grad]


@torch.no_grad()
def naive_reconstruction(
    y: Tensor, operator: LinearOperator, filter: str = "hann", frequency_scaling: float = 1.0, ramp: str = "space"
) -> Tensor:
    """The plain reconstruction of data y: no prior, no iteration; no gradient passes.

    Filtered back-projection for parallel and fan beams, y itself where A is the identity, and A^T y / ||A||^2 else,
    with the operator's bound of the norm; for MRI, where it is 1, the zero-filled reconstruction.

    Parameters
    ----------
    y
        ``(batch, *range_shape)``.
    operator
        A.
    filter, frequency_scaling, ramp
        see :class:`recon.operators.FilteredBackProjection`.

    Raises
    ------
    ValueError
        an unknown filter, a scaling out of range, cone beams, or an operator of norm 0.
    """
    if isinstance(operator, Identity):
        return y
    if isinstance(operator, RayTransform):
        made = _PROJECTIONS.setdefault(operator, {})
        key = (filter, frequency_scaling, ramp)
        if key not in made:
            made[key] = FilteredBackProjection(operator, filter, frequency_scaling, ramp=ramp)
        return made[key](y).to(y.dtype)
    return operator.adjoint(y) / positive_norm(operator) ** 2


def positive_norm(operator: LinearOperator) -> float:
    """The operator's bound of ||A||.

    Raises
    ------
    ValueError
        it is 0.
    """
    if not operator.norm_bound > 0:
        raise ValueError(f"the norm of {type(operator).__name__} is 0: its data say nothing about the image")
    return operator.norm_bound

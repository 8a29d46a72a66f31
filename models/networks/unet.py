"""Post-processing: a plain reconstruction, and a small network that removes its artefacts."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from recon.errors import at_least
from recon.operators import LinearOperator
from recon.reconstruction.reconstructor import FilterName, RampName, Reconstructor, naive_reconstruction

_MOST_SCALES = 16


class UNet(Reconstructor):
    r"""x = x_0 + U(x_0), x_0 the filtered back-projection (CT), zero-filled (MRI) or noisy (denoising) image.

    U is a small U-Net (Ronneberger et al. 2015) in the residual form of Jin, McCann, Froustey and Unser 2017, Deep
    Convolutional Neural Network for Inverse Problems in Imaging, IEEE TIP 26. At scale s = 0, 1, ... there are two
    convolutions of 3 x 3 pixels with ``channels`` 2^s channels and ReLU on the way down and on the way up; maxima over
    2 x 2 pixels lead to the next scale, transposed convolutions back. 481,745 parameters with the defaults, a hundredth
    of the published network, and 116,753 with 3 scales. Without normalization: mini-batches are small, and the values
    of images have a meaning. The last convolution starts at 0, so that training starts at x_0.

    Images of sides that 2^(scales - 1) does not divide are continued at the boundary, and cut afterwards. Nothing of
    the data is seen after x_0, so nothing makes the result fit them.

    Parameters
    ----------
    scales, channels
        see above.
    filter, frequency_scaling, ramp
        of the filtered back-projection, see :class:`recon.operators.FilteredBackProjection`; files without ``ramp``
        have learned from "frequency".
    image_channels, data_channels
        see :class:`recon.reconstruction.reconstructor.Reconstructor`; 2 and 2 for MRI.
    seed
        of the weights (He et al. 2015, uniform).

    Raises
    ------
    ValueError
        a number is less than 1, or there are more than 16 scales.
    """

    older_arguments: ClassVar[dict[str, object]] = {"ramp": "frequency"}

    def __init__(
        self,
        scales: int = 4,
        channels: int = 16,
        filter: FilterName = "hann",
        frequency_scaling: float = 1.0,
        image_channels: int = 1,
        data_channels: int = 1,
        seed: int = 0,
        ramp: RampName = "space",
    ) -> None:
        super().__init__(image_channels, data_channels)
        at_least(1, scales=scales, channels=channels)
        if scales > _MOST_SCALES:
            raise ValueError(f"scales is {scales}, but must be at most {_MOST_SCALES}: sides are halved at each")
        if not 0 < frequency_scaling <= 1:
            raise ValueError(f"frequency_scaling is {frequency_scaling}, but must be in (0, 1]")
        self.filter, self.frequency_scaling, self.ramp = filter, frequency_scaling, ramp
        sizes = [channels * 2**s for s in range(scales)]
        inputs = [image_channels, *sizes[:-1]]
        self.down = nn.ModuleList(_block(before, after) for before, after in zip(inputs, sizes, strict=True))
        self.upsample = nn.ModuleList(nn.ConvTranspose2d(2 * n, n, 2, stride=2) for n in sizes[:-1])
        self.up = nn.ModuleList(_block(2 * n, n) for n in sizes[:-1])
        self.last = nn.Conv2d(channels, image_channels, 1)
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu", generator=generator)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.last.weight)

    def reconstruct(self, y: Tensor, operator: LinearOperator) -> Tensor:
        """x_0 + U(x_0), ``(batch, image_channels, height, width)``, from y, ``(batch, *range_shape)``."""
        start = naive_reconstruction(y, operator, self.filter, self.frequency_scaling, self.ramp)
        return start + self.correction(start)

    def correction(self, x: Tensor) -> Tensor:
        """U(x), of the shape of x."""
        height, width = x.shape[2:]
        multiple = 2 ** (len(self.down) - 1)
        x = functional.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")
        levels = []
        for s, block in enumerate(self.down):
            x = block(functional.max_pool2d(x, 2) if s else x)
            levels.append(x)
        for s in reversed(range(len(self.up))):
            x = self.up[s](torch.cat([levels[s], self.upsample[s](x)], 1))
        return self.last(x)[:, :, :height, :width]


def _block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.Conv2d(after, after, 3, padding=1), nn.ReLU()
    )

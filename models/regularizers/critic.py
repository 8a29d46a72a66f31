"""A plain convolutional critic as a regularizer (Lunz, Öktem and Schönlieb 2018, section 4)."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.regularizers.leaky_relu import LeakyReLU
from recon.errors import positive
from recon.lower_level import Regularizer


class ConvolutionalCritic(Regularizer):
    r"""R(x) = e^{theta_0} <b, mean_p z_L(x)_p>, z_l = sigma(W_l z_{l-1} + b_l), z_0 = x.

    The layers are zero-padded convolutions, the first two with stride 1 and the others with stride 2, as those of the
    published network (16, 32, 32, 64, 64, 128 filters of 5x5 and a dense layer of 256). Here there are fewer, and the
    mean over the pixels takes the place of the dense layers, so that images may have any size. sigma is a leaky ReLU,
    smoothed so that R has the gradient that its penalty and the descent need everywhere.

    R is not convex, and no modulus of weak convexity is known: ``convexity()`` is minus infinity, and nothing that is
    computed with it is certified. Derivatives are automatic.

    Parameters
    ----------
    channels
        of the images.
    filters
        of the layers, at least one.
    size
        side length of the filters, odd.
    slope, width
        of the leaky ReLU, see :class:`models.regularizers.leaky_relu.LeakyReLU`.
    log_scale
        initial theta_0.
    seed
        of W_l, b.

    Raises
    ------
    ValueError
        a number is out of range.
    """

    def __init__(
        self,
        channels: int = 1,
        filters: tuple[int, ...] = (16, 32, 32, 64, 64),
        size: int = 5,
        slope: float = 0.1,
        width: float = 0.02,
        log_scale: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if channels < 1 or not filters or min(filters) < 1:
            raise ValueError(
                f"channels ({channels}) and filters ({filters}) must be at least 1, and one layer at least"
            )
        if size < 1 or size % 2 == 0:
            raise ValueError(f"size is {size}, but must be odd and positive")
        positive(width=width)
        self.channels, self.size = channels, size
        self.sigma = LeakyReLU(slope, width, "smooth")
        generator, dtype = torch.Generator().manual_seed(seed), torch.get_default_dtype()

        def normal(*shape: int) -> nn.Parameter:
            # of He et al.: the responses keep their size from layer to layer
            deviation = math.sqrt(2 / math.prod(shape[1:]))
            return nn.Parameter((deviation * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype))

        counts = (channels, *filters)
        self.kernels = nn.ParameterList(normal(after, before, size, size) for before, after in pairwise(counts))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(n, dtype=dtype)) for n in filters)
        self.head = normal(1, filters[-1])
        self.log_scale = nn.Parameter(torch.tensor(float(log_scale)))

    def forward(self, x: Tensor) -> Tensor:
        """R(x), ``(batch, channels, height, width) -> (batch,)``.

        Raises
        ------
        ValueError
            images of another number of channels.
        """
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(f"images have the shape {tuple(x.shape)}, but must be (batch, {self.channels}, H, W)")
        z = x
        for layer, (kernel, bias) in enumerate(zip(self.kernels, self.biases, strict=True)):
            z = self.sigma.value(F.conv2d(z, kernel, bias, stride=1 if layer < 2 else 2, padding=self.size // 2))
        return self.log_scale.exp() * F.linear(z.mean((2, 3)), self.head)[:, 0]

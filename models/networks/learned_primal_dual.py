"""The learned primal-dual method: a primal-dual iteration whose proximal steps are small networks."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from recon.errors import at_least
from recon.operators import LinearOperator
from recon.reconstruction.reconstructor import RampName, Reconstructor, naive_reconstruction, positive_norm

_MOST_ITERATIONS = 10_000


class LearnedPrimalDual(Reconstructor):
    r"""Unrolled iterations with memory (Adler and Öktem 2018, Learned Primal-dual Reconstruction, IEEE TMI 37, Alg. 3).

    With K = A / ||A|| and g = y / ||A||, f and h with ``memory`` images and data each, for i = 1, ..., ``iterations``

        h_i = h_{i-1} + Gamma_i(h_{i-1}, K f_{i-1}^(2), g),
        f_i = f_{i-1} + Lambda_i(f_{i-1}, K^T h_i^(1)),

    and x = f^(1). Gamma_i and Lambda_i are convolutions of 3 x 3 pixels, to ``channels``, to ``channels``, and to the
    channels of h or f, with a PReLU after the first two. As published: weights by Glorot and Bengio (uniform), biases
    and slopes of the PReLU (one for each channel) 0, all zero at the start. 253,220 parameters with the defaults (the
    paper: 2.4e5). ||A|| is the operator's bound of it.

    Data with further axes in front of their channels, such as the coils of MRI ``(coils, 2, height, width)``, go
    through Gamma one by one, as a larger batch: A^T combines them with the sensitivities. So the network does not
    depend on the number of coils or their order, and one coil teaches what is needed for all. Stacked as channels, they
    would have a network for one coil array only, with weights that grow with it.

    Parameters
    ----------
    iterations, channels
        see above.
    memory
        images in f, data in h; with 1, f^(1) stands for f^(2).
    share_weights
        whether all iterations have the same Gamma and Lambda.
    start
        of f: ``"zero"``, or ``"naive"``, filtered back-projection (Hann) for CT and A^T y / ||A||^2 else, in all
        ``memory`` images.
    image_channels, data_channels
        see :class:`recon.reconstruction.reconstructor.Reconstructor`; 2 and 2 for MRI.
    seed
        of the weights.
    ramp
        of the filtered back-projection, see :class:`recon.operators.FilteredBackProjection`; files without it have
        learned from "frequency".

    Raises
    ------
    ValueError
        a number is less than 1, or there are more than 10,000 iterations; an unknown start.
    """

    older_arguments: ClassVar[dict[str, object]] = {"ramp": "frequency"}

    def __init__(
        self,
        iterations: int = 10,
        memory: int = 5,
        channels: int = 32,
        share_weights: bool = False,
        start: Literal["zero", "naive"] = "zero",
        image_channels: int = 1,
        data_channels: int = 1,
        seed: int = 0,
        ramp: RampName = "space",
    ) -> None:
        super().__init__(image_channels, data_channels)
        at_least(1, iterations=iterations, memory=memory, channels=channels)
        if iterations > _MOST_ITERATIONS:  # shared weights cost nothing in a file
            raise ValueError(f"iterations is {iterations}, but must be at most {_MOST_ITERATIONS}")
        if start not in ("zero", "naive"):
            raise ValueError(f"start is {start!r}; valid are 'zero' and 'naive'")
        self.iterations, self.memory, self.start, self.ramp = iterations, memory, start, ramp
        generator = torch.Generator().manual_seed(seed)
        f, h = memory * image_channels, memory * data_channels
        duals, primals = [], []
        for _ in range(1 if share_weights else iterations):
            duals.append(_update(h + 2 * data_channels, channels, h, generator))
            primals.append(_update(f + image_channels, channels, f, generator))
        self.dual, self.primal = nn.ModuleList(duals), nn.ModuleList(primals)

    def reconstruct(self, y: Tensor, operator: LinearOperator) -> Tensor:
        """f^(1) after all iterations, ``(batch, image_channels, height, width)``, from y, ``(batch, *range_shape)``."""
        norm = positive_norm(operator)
        # axes in front of the channels join the batch
        g = (y / norm).reshape(-1, *y.shape[-3:])
        h = g.new_zeros(len(g), self.memory * self.data_channels, *g.shape[2:])
        f = self._start(y, operator)
        first, second = slice(0, self.image_channels), slice(self.image_channels, 2 * self.image_channels)
        evaluated = second if self.memory > 1 else first
        for i in range(self.iterations):
            k = i % len(self.dual)
            projected = (operator(f[:, evaluated]) / norm).reshape(g.shape)
            h = h + self.dual[k](torch.cat([h, projected, g], 1))
            back = operator.adjoint(h[:, : self.data_channels].reshape(y.shape)) / norm
            f = f + self.primal[k](torch.cat([f, back], 1))
        return f[:, first]

    def _start(self, y: Tensor, operator: LinearOperator) -> Tensor:
        if self.start == "naive":
            return naive_reconstruction(y, operator, ramp=self.ramp).repeat(1, self.memory, 1, 1)
        shape = operator.domain_shape or tuple(y.shape[1:])
        return y.new_zeros(len(y), self.memory * self.image_channels, *shape[1:])


def _update(inputs: int, channels: int, outputs: int, generator: torch.Generator) -> nn.Sequential:
    """Three convolutions with PReLUs in between; the residual connection is in the iteration."""
    layers: list[nn.Module] = []
    sizes = [inputs, channels, channels, outputs]
    for before, after in pairwise(sizes):
        convolution = nn.Conv2d(before, after, 3, padding=1)
        nn.init.xavier_uniform_(convolution.weight, generator=generator)
        nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
        layers += [convolution, nn.PReLU(after, init=0.0)]
    return nn.Sequential(*layers[:-1])

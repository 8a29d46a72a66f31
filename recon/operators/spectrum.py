"""Complex numbers that operators are made of, and keep to themselves."""

from __future__ import annotations

import torch
from torch import Tensor


class Spectrum:
    """Complex numbers in double precision, copied once for each dtype and device that they are used with.

    No buffer of a module: ``Module.to(torch.float32)`` would drop their imaginary part, and casts forth and back would
    lose digits.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self._copies: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def like(self, x: Tensor) -> Tensor:
        """With the device and the precision of the real tensor x."""
        key = (x.dtype, x.device)
        if key not in self._copies:
            # Outside inference mode, even if called in it: autograd could not save an inference tensor later.
            with torch.inference_mode(False):
                self._copies[key] = self.values.to(x.device, x.dtype.to_complex())
        return self._copies[key]

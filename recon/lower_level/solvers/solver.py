"""What a solver of energies is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from recon.lower_level.energy import Energy
from recon.lower_level.solution import Solution


class Solver(ABC):
    """Minimizes energies, ``solver(energy, x0, accuracy) -> Solution``. Configurations take subclasses of it."""

    @abstractmethod
    def __call__(self, energy: Energy, x0: Tensor, accuracy: float | Tensor) -> Solution:
        """Minimize h from ``x0`` to certified distance ``accuracy`` (a number, or one per image)."""

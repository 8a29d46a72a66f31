"""Spot checks of the moduli that regularizers claim, on gradients that solvers compute anyway."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from recon.lower_level.batch import per_image_dot, per_image_norm
from recon.lower_level.contract import SLACK, Claims, ContractError, contradiction
from recon.lower_level.regularizer import Regularizer

#: gradients of a regularizer between two spot checks, at most: each costs about as much as one
EVERY = 256

Iterate = tuple[Tensor, Tensor]


class Watch:
    """When the moduli of a regularizer are looked at: at its first two gradients, then ever less often.

    It counts over all energies with the same regularizer, as most of them are solved in few steps.
    """

    def __init__(self) -> None:
        self.count, self.next = 0, 1

    def due(self) -> bool:
        """Whether the gradient that is computed now belongs to a spot check."""
        self.count += 1
        return self.count >= self.next

    def compare(self, regularizer: Regularizer, claims: Claims, before: Iterate, now: Iterate, noise: Tensor) -> None:
        r"""Refute the ``claims`` by two iterates (x, grad R(x)) whose gradients are wrong by ``noise`` at most.

        Per image. With s and y the changes of both,

            <s, y> >= m \|\|s\|\|^2 - noise \|\|s\|\|   and   \|\|y\|\| <= L \|\|s\|\| + noise

        if the claims hold. Where one does not, :func:`recon.lower_level.contract.contradiction` decides.

        Raises
        ------
        ContractError
            it names the regularizer, the claim, and what was found.
        """
        self.next = min(4 * self.count, self.count + EVERY)
        s, y = now[0] - before[0], now[1] - before[1]
        length, change, product = per_image_norm(s), per_image_norm(y), per_image_dot(s, y)
        m, bound, _ = claims
        # -inf and inf claim nothing, and may give NaN here, which is not less either
        concave = product < (m - SLACK * abs(m)) * length.square() - noise * length
        steep = change > (1 + SLACK) * bound * length + noise
        suspect = torch.nonzero(concave | steep).flatten()
        if not suspect.numel():
            return
        i = suspect[:1]
        found = contradiction(regularizer.select(i), claims, before[0][i], s[i])
        if found is not None:
            raise ContractError(found)


_WATCHES: WeakKeyDictionary[Regularizer, Watch] = WeakKeyDictionary()


def watch_of(regularizer: Regularizer) -> Watch:
    """The one watch of a regularizer."""
    return _WATCHES.setdefault(regularizer, Watch())

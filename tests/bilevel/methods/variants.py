"""MAID and PublishedMAID from the same start: what differs is how accuracies are chosen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from recon.bilevel import MAID, Accelerations, LineSearch, PublishedMAID
from recon.bilevel.methods.certified_descent import CertifiedDescent


def variant(
    params: Iterable[Tensor],
    accuracy: str = "predicted",
    certificate: str = "goal_oriented",
    direction: str = "lbfgs",
    **options: Any,
) -> CertifiedDescent:
    """MAID, or (accuracy ``schedule``) PublishedMAID with the same accelerations, first step and first accuracies."""
    if accuracy == "predicted":
        return MAID(params, certificate, direction, **options)
    start = {"lr": 0.1, "solution_accuracy": 1.0, "adjoint_accuracy": 1.0, "line_search": LineSearch()}
    own = Accelerations(certificate, direction, largest_growth=4.0)
    return PublishedMAID(params, accelerations=own, **start | options)

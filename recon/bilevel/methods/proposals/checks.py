"""The options of checks."""

from __future__ import annotations

from dataclasses import dataclass

from recon.errors import at_least, fraction


@dataclass(frozen=True)
class Checks:
    """When points that were proposed are checked, and what is asked of them.

    Parameters
    ----------
    cost : float
        Evaluations of the proposer as a multiple of those of all checks: 4 leaves a fifth of all evaluations to
        certificates.
    promise : float
        The share of what a step of the fallback promises to first order by which the loss has to fall.
    rejections : int
        Points that may be rejected before the fallback makes a step.
    average : float
        The share of the steps of a pass, its last ones, whose mean is proposed; 0 proposes the last point itself, as
        does every proposer that makes no passes. The proposer goes on from where it was.
    delta : float
        0 certifies every accepted point by all images. In (0, 1), a sample of them may do: with probability 1 - delta
        all accepted points of the whole run have a smaller loss.
    sample : int
        Images of the first sample, which is doubled until the statistical part of the bound is small enough.
    seed : int
        Of the samples.

    Raises
    ------
    ValueError
        An option is out of range.
    """

    cost: float = 4.0
    promise: float = 1e-4
    rejections: int = 3
    average: float = 0.5
    delta: float = 0.0
    sample: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(0, "checks.", cost=self.cost)
        fraction("checks.", promise=self.promise)
        at_least(1, "checks.", rejections=self.rejections)
        at_least(2, "checks.", sample=self.sample)
        for name, value in {"average": self.average, "delta": self.delta}.items():
            if not 0 <= value < 1:
                raise ValueError(f"checks.{name} is {value}, but must be at least 0 and less than 1")

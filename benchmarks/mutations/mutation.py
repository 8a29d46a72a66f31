"""The mutations of :mod:`benchmarks.mutations`: one for every term and constant of the bounds, and a few more.

``why``: set where a mutation changes nothing that tests can see, or where the bound stays true without it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """``old``, which occurs exactly once in ``file``, becomes ``new``; one of ``tests`` ought to fail."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    why: str = ""


BOUNDS = "tests/bilevel/test_tight_bounds.py"
PARTS = "tests/bilevel/test_proved_parts.py"
ACCEPTANCE = "tests/bilevel/methods/test_tight_acceptance.py"
PROPOSALS = "tests/bilevel/methods/proposals"
SADDLE = "tests/bilevel/test_tight_saddle.py"
ROUNDING = "tests/lower_level/test_tight_rounding.py"
CONSTANTS = "tests/models/regularizers/test_tight_constants.py"
COUPLED = "tests/models/regularizers/test_coupled_bounds.py"
MULTIVARIATE = "tests/models/regularizers/test_multivariate.py"
POTENTIALS = "tests/models/regularizers/test_potentials.py::test_constants_are_true_and_tight"


def mutations_of(
    file: str, tests: tuple[str, ...] | str, *changes: tuple[str, str] | tuple[str, str, str]
) -> list[Mutation]:
    tests = (tests,) if isinstance(tests, str) else tests
    return [Mutation(file, c[0], c[1], tests, c[2] if len(c) == 3 else "") for c in changes]

"""The empirical Bernstein inequality without replacement: what it says, and that every term of it is needed."""

from __future__ import annotations

import math

import pytest
import torch

from recon.bilevel.methods.proposals.sampling import KAPPA, deviation, order, share_of


def numbers(count: int, kind: str) -> torch.Tensor:
    """Of an interval of length 1: half of them 0 and 1, one in fifty 1, or evenly spread."""
    generator = torch.Generator().manual_seed(5)
    if kind == "even":
        return torch.rand(count, generator=generator, dtype=torch.float64)
    return (torch.rand(count, generator=generator) < {"half": 0.5, "rare": 0.02}[kind]).double()


@pytest.mark.parametrize("kind", ["half", "rare", "even"])
@pytest.mark.parametrize(("count", "n"), [(200, 20), (200, 150), (2000, 100)])
def test_the_mean_of_all_is_hardly_ever_larger_than_the_bound(kind: str, count: int, n: int) -> None:
    values, delta = numbers(count, kind), 0.2
    wrong = 0
    for check in range(500):
        sample = values[order(count, 3, check)[:n]]
        wrong += bool(values.mean() > sample.mean() + deviation(sample, count, 1.0, delta))
    assert wrong <= delta * 500


def test_the_bound_by_hand() -> None:
    sample, log = torch.tensor([0.0, 1.0, 0.0, 1.0]), math.log(5 / 0.1)
    rest = KAPPA * 2.0 * log / 4
    few = 0.5 * math.sqrt(2 * (1 - 3 / 10) * log / 4) + rest
    many = 0.5 * math.sqrt(2 * (1 - 4 / 7) * (1 + 1 / 4) * log / 4) + rest
    assert deviation(sample, 10, 2.0, 0.1) == pytest.approx(few)
    assert deviation(sample, 7, 2.0, 0.1) == pytest.approx(many)
    assert pytest.approx(7 / 3 + 3 / 2**0.5) == KAPPA
    assert deviation(sample, 4, 2.0, 0.1) == 0.0


def test_without_its_range_the_bound_would_be_wrong() -> None:
    """One number of 100 is 1: most samples of 20 have no spread at all, and a mean below that of all."""
    values, delta = torch.zeros(100, dtype=torch.float64), 0.05
    values[0] = 1.0
    samples = [values[order(100, 1, check)[:20]] for check in range(300)]
    blind = sum(bool(values.mean() > s.mean() + deviation(s, 100, 0.0, delta)) for s in samples)
    right = sum(bool(values.mean() > s.mean() + deviation(s, 100, 1.0, delta)) for s in samples)
    assert blind > 10 * delta * 300
    assert right == 0


def test_without_its_spread_the_bound_would_be_wrong() -> None:
    """Where n is large, the term of the range is far below the spread of the mean."""
    values, delta = numbers(40_000, "half"), 0.2
    blind, wrong = 0, 0
    for check in range(200):
        sample = values[order(len(values), 2, check)[:4000]]
        whole = deviation(sample, len(values), 1.0, delta)
        rest = whole - deviation(sample, len(values), 0.0, delta)
        blind += bool(values.mean() > sample.mean() + rest)
        wrong += bool(values.mean() > sample.mean() + whole)
    assert blind > 0.3 * 200
    assert wrong <= delta * 200


def test_all_looks_of_all_checks_together_may_fail_with_delta() -> None:
    shares = [share_of(0.05, check, look) for check in range(1, 2000) for look in range(1, 40)]
    assert sum(shares) <= 0.05
    assert sum(shares) == pytest.approx(0.05, rel=1e-3)
    assert share_of(0.05, 1, 1) > share_of(0.05, 1, 2) > share_of(0.05, 2, 2) > 0


def test_samples_are_without_replacement_and_new_at_every_check() -> None:
    orders = [order(50, 0, check) for check in range(3)]
    assert all(sorted(o.tolist()) == list(range(50)) for o in orders)
    assert not torch.equal(orders[0], orders[1])
    assert torch.equal(order(50, 0, 2), orders[2])
    assert not torch.equal(order(50, 1, 2), orders[2])

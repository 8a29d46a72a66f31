"""Searches for the best weight."""

from __future__ import annotations

import math

import pytest

from recon.reconstruction.weight import best_point


@pytest.mark.parametrize("top", [(1.3, -2.2), (-3.9, 0.1), (0.0,), (2.2, 1.1, -0.7)])
def test_the_best_point_is_found_within_half_of_the_last_step(top: tuple[float, ...]) -> None:
    tried: list[tuple[float, ...]] = []

    def quality(point: tuple[float, ...]) -> float:
        tried.append(point)
        return -sum((p - t) ** 2 for p, t in zip(point, top, strict=True))

    found, value = best_point(quality, (0.0,) * len(top), (1.0, 0.5), 0.0, 6.0)
    assert max(abs(p - t) for p, t in zip(found, top, strict=True)) <= 0.25 + 1e-12
    assert value == quality(found)
    assert len(set(tried[:-1])) == len(tried) - 1  # none twice


def test_the_search_stays_where_it_may_go_and_asks_for_a_gain() -> None:
    assert best_point(lambda p: p[0], (0.0,), (1.0,), 0.0, 3.0)[0] == (3.0,)
    assert best_point(lambda p: 0.1 * p[0], (0.0,), (1.0,), 0.2, 3.0)[0] == (0.0,)
    assert best_point(lambda p: -math.inf, (0.0,), (1.0,), 0.01, 3.0) == ((0.0,), -math.inf)

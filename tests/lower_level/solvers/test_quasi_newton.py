"""The compact L-BFGS matrix against the two-loop recursion of the textbooks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from recon.lower_level.solvers.quasi_newton import InverseHessian
from tests.lower_level.problems import normal


def two_loops(g: Tensor, pairs: list[tuple[Tensor, Tensor]], gamma: float) -> Tensor:
    """Nocedal and Wright, algorithm 7.4; pairs from the oldest to the newest."""
    q, factors = g.clone(), []
    for s, y in reversed(pairs):
        a = (s @ q) / (s @ y)
        factors.append(a)
        q = q - a * y
    if pairs:
        s, y = pairs[-1]
        gamma = float((s @ y) / (y @ y))
    r = gamma * q
    for (s, y), a in zip(pairs, reversed(factors), strict=True):
        r = r + s * (a - (y @ r) / (s @ y))
    return r


def fill(
    memory: int, rounds: list[list[bool]], n: int, seed: int
) -> tuple[InverseHessian, list[list[tuple[Tensor, Tensor]]]]:
    """A history in which image i takes part in round j if ``rounds[j][i]``, and the same as lists of pairs."""
    batch = len(rounds[0])
    a = normal(batch, n, n, seed=seed)
    a = a @ a.mT + torch.eye(n, dtype=torch.float64)
    history, lists = InverseHessian(torch.zeros(batch, n, dtype=torch.float64), memory), [[] for _ in range(batch)]
    for j, takes in enumerate(rounds):
        rows = torch.nonzero(torch.tensor(takes)).flatten()
        s = normal(batch, n, seed=seed + 1 + j)
        y = (a @ s[..., None])[..., 0]
        history.update(rows, s[rows], y[rows])
        for i in rows.tolist():
            lists[i] = [*lists[i], (s[i], y[i])][-memory:]
    return history, lists


@given(
    seed=st.integers(0, 10_000),
    memory=st.integers(1, 4),
    rounds=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=11),
)
def test_equals_the_two_loop_recursion(seed: int, memory: int, rounds: list[list[bool]]) -> None:
    """With ring buffers that wrap around, and images that skip updates or have none."""
    history, lists = fill(memory, rounds, 6, seed)
    g, gamma = normal(3, 6, seed=seed + 99), torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)
    mine = history.apply(g, gamma)
    for i in range(3):
        expected = two_loops(g[i], lists[i], float(gamma[i]))
        torch.testing.assert_close(mine[i], expected, rtol=1e-7, atol=1e-8)
    index = torch.tensor([2, 0])
    kept = (tensor[index] for tensor in history.state_dict().values())
    history = InverseHessian.of(*kept)
    torch.testing.assert_close(history.apply(g[index], gamma[index]), mine[index], rtol=1e-12, atol=1e-12)
    # and goes on after the selection
    s = normal(2, 6, seed=seed + 100)
    history.update(torch.tensor([1]), s[1:], 2 * s[1:])
    lists[0] = [*lists[0], (s[1], 2 * s[1])][-memory:]
    after = history.apply(g[index], gamma[index])
    torch.testing.assert_close(after[1], two_loops(g[0], lists[0], float(gamma[0])), rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(after[0], mine[2], rtol=1e-12, atol=1e-12)


def test_secant_equation_of_the_newest_pair() -> None:
    history, lists = fill(3, [[True]] * 7, 5, seed=1)
    s, y = lists[0][-1]
    torch.testing.assert_close(history.apply(y[None], torch.ones(1))[0], s, rtol=1e-8, atol=1e-9)


def test_states_are_taken_over() -> None:
    history, _ = fill(3, [[True, False], [True, True]], 5, seed=2)
    other = InverseHessian(torch.zeros(2, 5, dtype=torch.float64), 7)
    other.load_state_dict({k: v.clone() for k, v in history.state_dict().items()})
    g, gamma = normal(2, 5, seed=3), torch.ones(2, dtype=torch.float64)
    torch.testing.assert_close(other.apply(g, gamma), history.apply(g, gamma), rtol=0, atol=0)
    assert other.memory == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_empty_history_scales(dtype: torch.dtype) -> None:
    history = InverseHessian(torch.zeros(2, 4, dtype=dtype), 3)
    history.update(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4, dtype=dtype), torch.zeros(0, 4, dtype=dtype))
    g = normal(2, 4, dtype=dtype)
    mine = history.apply(g, torch.tensor([0.5, 2.0]))
    assert mine.dtype == dtype
    torch.testing.assert_close(mine, g * torch.tensor([[0.5], [2.0]], dtype=dtype))

"""The kinds of problems of the campaign: what is drawn at random, and which claims are checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.certified import problems
from benchmarks.certified.checks import Check
from benchmarks.certified.energies import check_energy, random_solver
from benchmarks.certified.large import check_large
from benchmarks.certified.learning import Learned, check_learning, check_resumed, make_learned
from benchmarks.certified.networks import relaxed_network
from benchmarks.certified.operators import OPERATORS, Rng
from benchmarks.certified.problems import GROUPED, REGULARIZERS, Problem, random_problem
from benchmarks.certified.saddles import check_saddle, learned_saddle, learned_tv

Kind = Callable[[Rng, torch.dtype], Iterable[Check]]


def _draw(
    rng: Rng,
    dtype: torch.dtype,
    operators: Sequence[str],
    regularizers: Sequence[str] = tuple(REGULARIZERS),
    batch: int = 6,
    **options: Any,
) -> Problem:
    operator, regularizer = str(rng.choice(list(operators))), str(rng.choice(list(regularizers)))
    return random_problem(rng, OPERATORS[operator](rng), (REGULARIZERS | GROUPED)[regularizer], dtype, batch, **options)


def operator_kind(name: str, rng: Rng, dtype: torch.dtype) -> Iterable[Check]:
    """Energies with one kind of operator, and every fidelity but Kullback-Leibler, regularizer and solver."""
    return check_energy(rng, _draw(rng, dtype, [name]), random_solver(rng))


def kullback(rng: Rng, dtype: torch.dtype) -> Iterable[Check]:
    """Kullback-Leibler, often with counts near the background."""
    operators = ("identity", "blur", "mask", "own_matrix", "ray_matrix", "ray_odl")
    return check_energy(rng, _draw(rng, dtype, operators, kl=True), random_solver(rng))


def network(rng: Rng, dtype: torch.dtype) -> Iterable[Check]:
    """Input convex networks, and images near zero, where their gradients cancel."""
    scale = 1.0 if rng.integers(2) else float(10 ** rng.uniform(-4, 2))
    problem = _draw(rng, dtype, ("identity", "blur", "mask", "own_matrix", "mri"), ["network"], scale=scale)
    if rng.integers(2):
        problem = replace(problem, y=problem.y * 10.0 ** rng.uniform(-8, -1))
    return check_energy(rng, problem, random_solver(rng))


def multivariate(rng: Rng, dtype: torch.dtype) -> Iterable[Check]:
    """Potentials of four responses, and images of any size."""
    scale = 1.0 if rng.integers(2) else float(10 ** rng.uniform(-4, 2))
    operators = ("identity", "blur", "mask", "own_matrix", "mri", "ray_matrix")
    return check_energy(rng, _draw(rng, dtype, operators, tuple(GROUPED), scale=scale), random_solver(rng))


def multivariate_learning(rng: Rng, dtype: torch.dtype) -> Iterable[Check]:
    """Intervals of the loss and hypergradients of their parameters."""
    problem = _draw(rng, dtype, ("identity", "blur", "mask", "own_matrix"), tuple(GROUPED), 4)
    return check_learning(rng, make_learned(rng, problem))


def primal_dual(rng: Rng, dtype: torch.dtype) -> Iterable[Check]:
    """The solver of networks by their primal-dual form."""
    measured = OPERATORS[str(rng.choice(["identity", "blur", "mask", "mri"]))](rng)
    problem = random_problem(rng, measured, partial(problems.network, huber=True), dtype, 6)
    problem = replace(problem, fitted=problems.plain_square(float(problem.fitted.bounds[1])))
    return check_energy(rng, problem, random_solver(rng, "primal_dual"), adjoint=False)


def nonnegative(rng: Rng, dtype: torch.dtype) -> Iterable[Check]:
    """Minimizers over x >= 0, often with pixels at zero."""
    kl = rng.random() < 0.3
    operators = ("identity", "blur", "mask", "own_matrix", "ray_matrix", "ray_odl") + (() if kl else ("differences",))
    problem = _draw(rng, dtype, operators, kl=kl)
    return check_energy(rng, problem, random_solver(rng, "nonnegative"), nonnegative=True)


def scale(rng: Rng, dtype: torch.dtype) -> Iterable[Check]:
    """Images from 1e-24 to 1e6; the regularizer is in the units of the image, or not."""
    measured = OPERATORS[str(rng.choice(["identity", "blur", "mask", "own_matrix", "mri", "odl_double"]))](rng)
    make = REGULARIZERS[str(rng.choice(list(REGULARIZERS)))]
    problem = random_problem(rng, measured, make, dtype, 6, float(10.0 ** rng.uniform(-24, 6)))
    if rng.integers(2):
        regular = make(rng, measured.image, dtype)
        if regular.concavity <= problem.regular.concavity:
            problem = replace(problem, regular=regular)
    return check_energy(rng, problem, random_solver(rng))


def parameters(rng: Rng, dtype: torch.dtype) -> Iterable[Check]:
    """Parameters of another precision than the data."""
    other = torch.float32 if dtype == torch.float64 else torch.float64
    problem = _draw(rng, dtype, ("identity", "blur", "mask", "mri"), ["tv"])
    problem = replace(problem, regular=problems.total_variation(rng, problem.measured.image, other))
    return check_energy(rng, problem, random_solver(rng))


def _learning(rng: Rng, dtype: torch.dtype) -> Problem:
    operators = ("identity", "blur", "mask", "own_matrix", "mri", "ray_matrix", "ray_odl", "odl_single")
    regularizers = ("tv", "tv", "experts", "experts", "weak experts", "splines", "weak splines", "network")
    return _draw(rng, dtype, operators, regularizers, 4)


def learning(rng: Rng, dtype: torch.dtype) -> Iterable[Check]:
    """Objectives of learning: intervals of the loss, and hypergradients."""
    problem = _learning(rng, dtype)
    if rng.random() < 0.15:
        problem = _draw(rng, dtype, ("identity", "blur", "mask", "own_matrix"), batch=4, kl=True)
    return check_learning(rng, make_learned(rng, problem))


def resumed(rng: Rng, dtype: torch.dtype) -> Iterable[Check]:
    """Runs of MAID that were saved, loaded and went on."""
    problem = _learning(rng, dtype)
    return check_resumed(rng, lambda numbers: make_learned(numbers, problem))


def saddle(make: Any, rng: Rng, dtype: torch.dtype) -> Iterable[Check]:
    """Saddle points by PDHG."""
    return check_saddle(rng, make(rng, dtype, 4))


def saddle_learning(make: Any, rng: Rng, dtype: torch.dtype) -> Iterable[Check]:
    """Objectives of learning with saddle points, and runs that were saved, loaded and went on."""
    problem = make(rng, dtype, 4)

    def learned(numbers: Rng) -> Learned:
        return learned_saddle(numbers, problem)

    return check_resumed(rng, learned) if rng.random() < 0.2 else check_learning(rng, learned(rng))


KINDS: dict[str, Kind] = {name: partial(operator_kind, name) for name in OPERATORS}
KINDS |= {
    "kullback": kullback,
    "network": network,
    "multivariate": multivariate,
    "multivariate_learning": multivariate_learning,
    "primal_dual": primal_dual,
    "nonnegative": nonnegative,
    "scale": scale,
    "parameters": parameters,
    "large": check_large,
    "learning": learning,
    "resumed": resumed,
    "saddle_tv": partial(saddle, learned_tv),
    "saddle_network": partial(saddle, relaxed_network),
    "saddle_tv_learning": partial(saddle_learning, learned_tv),
    "saddle_network_learning": partial(saddle_learning, relaxed_network),
}
#: images of a group, which are solved together
BATCH = {"large": 1} | {k: 4 for k in KINDS if "learning" in k or "saddle" in k or k == "resumed"}
#: how often a kind is drawn, relative to the others
SHARES = {"large": 0.02, "resumed": 0.5, "primal_dual": 0.5}

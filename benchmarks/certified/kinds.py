"""The kinds of problems of the campaign: what is drawn at random, and which claims are checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch

from benchmarks.certified import problems
from benchmarks.certified.energies import Check, check_energy, random_problem, solver_for
from benchmarks.certified.learning import check_learning
from benchmarks.certified.problems import OPERATORS, REGULARIZERS, Rng
from benchmarks.certified.saddles import check_saddle, check_saddle_learning, learned_tv, relaxed_network

Kind = Callable[[Rng, torch.dtype], Iterable[Check]]


def _regularizer(rng: Rng, among: tuple[str, ...] = tuple(REGULARIZERS)) -> Any:
    return REGULARIZERS[str(rng.choice(list(among)))]


def operator_kind(name: str, rng: Rng, dtype: torch.dtype) -> Iterable[Check]:
    """Energies with one kind of operator, and every fidelity but Kullback-Leibler, regularizer and solver."""
    problem = random_problem(rng, OPERATORS[name](rng), _regularizer(rng), dtype, BATCH["default"])
    yield from check_energy(rng, problem, solver_for(rng, name))


def kullback(rng: Rng, dtype: torch.dtype) -> Iterable[Check]:
    """Kullback-Leibler, often with counts near the background."""
    name = str(rng.choice(["identity", "blur", "mask", "own_matrix", "ray_matrix", "ray_odl"]))
    problem = random_problem(rng, OPERATORS[name](rng), _regularizer(rng), dtype, BATCH["default"], kl=True)
    yield from check_energy(rng, problem, solver_for(rng, "kullback"))


def network(rng: Rng, dtype: torch.dtype) -> Iterable[Check]:
    """Input convex networks, and images near zero, where their gradients cancel."""
    name = str(rng.choice(["identity", "blur", "mask", "own_matrix", "mri"]))
    scale = 1.0 if rng.integers(2) else float(10 ** rng.uniform(-4, 2))
    problem = random_problem(rng, OPERATORS[name](rng), problems.network, dtype, BATCH["default"], scale)
    if rng.integers(2):
        faint = 10.0 ** rng.uniform(-8, -1)
        problem = problems.replaced(problem, problem.y * faint)
    yield from check_energy(rng, problem, solver_for(rng, "network"))


def primal_dual(rng: Rng, dtype: torch.dtype) -> Iterable[Check]:
    """The solver of networks by their primal-dual form."""
    name = str(rng.choice(["identity", "blur", "mask", "mri"]))
    make = partial(problems.network, huber=True)
    problem = random_problem(rng, OPERATORS[name](rng), make, dtype, BATCH["default"])
    problem = problems.squares_only(problem)
    yield from check_energy(rng, problem, solver_for(rng, "primal_dual"), adjoint=False)


def nonnegative(rng: Rng, dtype: torch.dtype) -> Iterable[Check]:
    """Minimizers over x >= 0 with some pixels at zero."""
    name = str(rng.choice(["identity", "blur", "mask", "own_matrix", "differences", "ray_matrix", "ray_odl"]))
    kl = name not in ("differences",) and rng.random() < 0.3
    problem = random_problem(rng, OPERATORS[name](rng), _regularizer(rng), dtype, BATCH["default"], kl=kl)
    yield from check_energy(rng, problem, solver_for(rng, "nonnegative"), nonnegative=True)


def scale(rng: Rng, dtype: torch.dtype) -> Iterable[Check]:
    """Images from 1e-24 to 1e6; the regularizer is in the units of the image, or not."""
    name = str(rng.choice(["identity", "blur", "mask", "own_matrix", "mri", "odl_double"]))
    size = float(10.0 ** rng.uniform(-24, 6))
    make = _regularizer(rng)
    measured = OPERATORS[name](rng)
    problem = random_problem(rng, measured, make, dtype, BATCH["default"], size)
    if rng.integers(2):
        regular = make(rng, measured.image, dtype)
        if regular.concavity <= problem.regular.concavity:
            problem = problems.regularized(problem, regular)
    yield from check_energy(rng, problem, solver_for(rng, name))


def parameters(rng: Rng, dtype: torch.dtype) -> Iterable[Check]:
    """Parameters of another precision than the data."""
    other = torch.float32 if dtype == torch.float64 else torch.float64
    measured = OPERATORS[str(rng.choice(["identity", "blur", "mask", "mri"]))](rng)
    problem = random_problem(rng, measured, problems.total_variation, dtype, BATCH["default"])
    image = measured.image
    problem = problems.regularized(problem, problems.total_variation(rng, image, other))
    yield from check_energy(rng, problem, solver_for(rng, "parameters"))


def learning(rng: Rng, dtype: torch.dtype) -> Iterable[Check]:
    """Objectives of learning: intervals of the loss, and hypergradients."""
    name = str(rng.choice(["identity", "blur", "mask", "own_matrix", "mri", "ray_matrix", "ray_odl", "odl_single"]))
    kl = name != "mri" and rng.random() < 0.15
    make = _regularizer(rng, ("tv", "tv", "experts", "experts", "weak experts", "splines", "weak splines", "network"))
    problem = random_problem(rng, OPERATORS[name](rng), make, dtype, BATCH["learning"], kl=kl)
    yield from check_learning(rng, problem)


def saddle(make: Any, check: Any, rng: Rng, dtype: torch.dtype) -> Iterable[Check]:
    """Saddle points, or learning with them."""
    yield from check(rng, make(rng, dtype, BATCH["saddle_tv"]))


KINDS: dict[str, Kind] = {name: partial(operator_kind, name) for name in OPERATORS}
KINDS |= {
    "kullback": kullback,
    "network": network,
    "primal_dual": primal_dual,
    "nonnegative": nonnegative,
    "scale": scale,
    "parameters": parameters,
    "learning": learning,
    "saddle_tv": partial(saddle, learned_tv, check_saddle),
    "saddle_network": partial(saddle, relaxed_network, check_saddle),
    "saddle_tv_learning": partial(saddle, learned_tv, check_saddle_learning),
    "saddle_network_learning": partial(saddle, relaxed_network, check_saddle_learning),
}
#: problems of a group
_SADDLES = ("saddle_tv", "saddle_network", "saddle_tv_learning", "saddle_network_learning")
BATCH = {"default": 6, "learning": 4} | dict.fromkeys(_SADDLES, 4)
#: how often a kind is drawn, relative to the others
SHARES: dict[str, float] = {}

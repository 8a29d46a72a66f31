"""Lower-level solves: bits of x, certificates, status and evaluations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.golden_cases.common import (
    REGULARIZERS,
    Cases,
    Context,
    bits,
    exact,
    fidelity,
    normal,
    operators,
    pictures,
    regularizer,
    truth,
)
from models import (
    ICNN,
    Convexity,
    ICNNSaddle,
    InitialKernels,
    LeakyReLU,
    LearnedTV,
    NetworkIteration,
    PrimalDual,
)
from recon.lower_level import (
    FISTA,
    LBFGS,
    PDHG,
    Energy,
    ProjectedLBFGS,
    SaddleModel,
    SaddleSolution,
    Solution,
    Solver,
    conjugate_gradients,
    first_guess,
)
from recon.operators import Blur, LinearOperator

SINGLE, DOUBLE = torch.float32, torch.float64

SOLVERS: dict[str, Callable[[], Solver]] = {
    "lbfgs": lambda: LBFGS(max_iterations=2000),
    "lbfgs_plain": lambda: LBFGS(memory=3, max_iterations=2000, precondition=False),
    "lbfgs_uncertified": lambda: LBFGS(max_iterations=2000, certified=False),
    "lbfgs_3": lambda: LBFGS(max_iterations=3),
    "fista": lambda: FISTA(max_iterations=2000),
    "fista_backtracking": lambda: FISTA(max_iterations=2000, backtracking=True, initial_lipschitz=1.0),
    "descent": lambda: FISTA(max_iterations=300, accelerated=False),
    "projected": lambda: ProjectedLBFGS(max_iterations=2000),
    "projected_3": lambda: ProjectedLBFGS(max_iterations=3),
}

#: operator, fidelity, solver, type, accuracy: for every regularizer
COMMON = [
    ("identity", "l2", "lbfgs", DOUBLE, 1e-6),
    ("identity", "l2", "fista", SINGLE, 1e-2),
    ("blur", "weighted", "lbfgs", DOUBLE, 1e-4),
    ("mask", "l2", "fista", DOUBLE, 1e-3),
    ("mri_coils", "l2", "lbfgs", SINGLE, 1e-2),
    ("ray", "weighted", "lbfgs", DOUBLE, 1e-4),
    ("identity", "kl", "projected", DOUBLE, 1e-3),
    ("ray", "l2", "projected", DOUBLE, 1e-4),
]
#: for two of them: whatever solvers, operators and accuracies are left
MORE = [
    ("identity", "l2", "lbfgs_plain", DOUBLE, 1e-10),
    ("identity", "l2", "lbfgs", SINGLE, 1e-12),  # the precision floor
    ("blur_reflect", "l2", "fista_backtracking", DOUBLE, 1e-4),
    ("mri", "weighted", "descent", DOUBLE, 1e-3),
    ("mri", "l2", "lbfgs_plain", DOUBLE, 1e-6),
    ("mask", "kl", "lbfgs", DOUBLE, 1e-3),
    ("fan", "kl", "fista", DOUBLE, 1e-2),
    ("fan", "l2", "lbfgs_uncertified", SINGLE, 1e-2),
    ("ray", "l2", "lbfgs_3", DOUBLE, 1e-6),
    ("blur", "l2", "projected_3", DOUBLE, 1e-6),
    ("mask", "weighted", "projected", SINGLE, 1e-2),
]


def compute(context: Context) -> dict[str, Any]:
    cases, made = Cases(), operators()
    for name in REGULARIZERS:
        for setting in COMMON + (MORE if name in ("tv", "foe") else []):
            operator, data, solver, dtype, accuracy = setting
            label = f"{name} {operator} {data} {solver} {_word(dtype)} {accuracy:g}"
            cases.add(label, lambda n=name, o=made[operator], s=setting: _solve(n, o, *s[1:]))
    for operator, dtype in (("identity", DOUBLE), ("blur", SINGLE)):
        label = f"critic {operator} l2 lbfgs_uncertified {_word(dtype)}"
        cases.add(label, lambda o=made[operator], d=dtype: _solve("critic", o, "l2", "lbfgs_uncertified", d, 1e-2))
    _adjoints(cases, made)
    _learned_tv(cases, made)
    _networks(cases)
    return cases.results


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _energy(name: str, operator: LinearOperator, data: str, dtype: torch.dtype, batch: int) -> Energy:
    r = regularizer(name, dtype)
    with torch.no_grad():
        d, y = fidelity(data, operator(truth(operator, batch, dtype)))
    # mu outweighs what is concave in R where the data term is not strongly convex
    mu = 0.05 + (1.0 if name in ("foe_student", "foe_weak", "wcrr") else 0.0)
    return Energy(y, r, operator, d, mu)


def _solve(
    name: str, operator: LinearOperator, data: str, solver: str, dtype: torch.dtype, accuracy: float
) -> dict[str, Any]:
    batch = 1 if dtype == SINGLE else 3
    energy = _energy(name, operator, data, dtype, batch)
    goal = accuracy * torch.logspace(0, 1, batch, dtype=DOUBLE) if solver == "fista" else accuracy
    return _solution(SOLVERS[solver]()(energy, first_guess(operator, energy.y), goal))


def _solution(found: Solution | SaddleSolution) -> dict[str, Any]:
    result = {"x": bits(found.x), "first": exact(found.x.flatten()[:3])}
    names = ("error", "dual_error", "residual", "rounding", "grade", "status", "evaluations")
    result |= {n: exact(getattr(found, n)) for n in names if hasattr(found, n)}
    return result | {n: bits(getattr(found, n)) for n in ("y", "s", "gradient") if hasattr(found, n)}


def _adjoints(cases: Cases, made: dict[str, LinearOperator]) -> None:
    """Conjugate gradients: the adjoint equations of three energies, and the plain solver."""

    def adjoint(name: str, operator: LinearOperator, dtype: torch.dtype) -> dict[str, Any]:
        energy = _energy(name, operator, "l2", dtype, 2)
        x = first_guess(operator, energy.y)
        found = energy.solve_adjoint(x, normal(*x.shape, seed=9, dtype=dtype), torch.zeros_like(x), 1e-4, 500)
        names = ("residual_norm", "status", "evaluations")
        return {"w": bits(found.w), **{n: exact(getattr(found, n)) for n in names}}

    for name, operator, dtype in (("foe", "identity", DOUBLE), ("tv", "ray", DOUBLE), ("crr", "mri_coils", SINGLE)):
        cases.add(f"adjoint {name} {operator}", lambda n=name, o=made[operator], d=dtype: adjoint(n, o, d))

    def plain() -> dict[str, Any]:
        energy = _energy("icnn", made["blur"], "l2", DOUBLE, 2)
        x = first_guess(made["blur"], energy.y)
        found = conjugate_gradients(energy.hessian(x), energy.y, torch.zeros_like(x), 1e-6, 200)
        return {"w": bits(found.w), "residual": exact(found.residual_norm), "evaluations": exact(found.evaluations)}

    cases.add("conjugate gradients icnn blur", plain)


def _saddle(model: SaddleModel, y: Tensor, solver: PDHG, accuracy: float) -> dict[str, Any]:
    with torch.no_grad():
        saddle = model.saddle_point(y)
        z = model.initial(y)
    return _solution(solver(saddle, *saddle.split(z), accuracy))


def _learned_tv(cases: Cases, made: dict[str, LinearOperator]) -> None:
    """PDHG on learned total variation."""
    arguments = {"log_weight": -1.5, "convexity": Convexity(0.3, 0.2), "smoothing": 0.1}

    def solve(solver: PDHG, dtype: torch.dtype, accuracy: float, operator: str, **changes: Any) -> dict[str, Any]:
        model = LearnedTV(**(arguments | changes)).to(dtype)  # type: ignore[arg-type]
        model.measured_by(made[operator])
        x = truth(made[operator], 2, dtype)
        with torch.no_grad():
            exact_data = made[operator](x)
        y = exact_data + normal(*exact_data.shape, seed=7, scale=0.1, dtype=dtype)
        return _saddle(model, y, solver, accuracy)

    for norm in ("smoothed", "fair", "huber"):
        cases.add(f"learned tv {norm}", lambda n=norm: solve(PDHG(3000), DOUBLE, 1e-4, "identity", norm=n))
    for name, solver in {"diagonal": PDHG(3000, diagonal=True), "fixed steps": PDHG(3000, adaptive=False)}.items():
        cases.add(f"learned tv {name}", lambda s=solver: solve(s, DOUBLE, 1e-4, "identity"))
    uncertified = PDHG(3000, certified=False)
    cases.add("learned tv residuals", lambda: solve(uncertified, SINGLE, 1e-3, "identity", kernels=2))
    cases.add(
        "learned tv random",
        lambda: solve(PDHG(3000), DOUBLE, 1e-2, "identity", initial=InitialKernels("random"), size=5),
    )
    measured = Convexity(0.3, 0.2, 0.2)
    for operator in ("blur", "ray"):
        cases.add(f"learned tv {operator}", lambda o=operator: solve(PDHG(3000), DOUBLE, 1e-2, o, convexity=measured))
    cases.add("learned tv limit", lambda: solve(PDHG(10), DOUBLE, 1e-8, "identity"))

    def without_regularization() -> dict[str, Any]:
        model, y = LearnedTV(**arguments).double(), pictures(2, 1, 9, 8, seed=1)  # type: ignore[arg-type]
        with torch.no_grad():
            saddle, z = model.saddle_point(y, plain=True), model.initial(y)
        return _solution(PDHG(3000, certified=False)(saddle, *saddle.split(z), 1e-3))

    cases.add("learned tv plain form", without_regularization)


def _networks(cases: Cases) -> None:
    """The primal-dual forms of convex networks."""

    def network(dtype: torch.dtype, **arguments: Any) -> ICNN:
        return ICNN(4, 3, activation=LeakyReLU(width=0.05), log_weight=-2, **arguments).to(dtype)

    def y(dtype: torch.dtype) -> Tensor:
        return pictures(2, 1, 9, 11, seed=11, dtype=dtype) + normal(2, 1, 9, 11, seed=12, scale=0.1, dtype=dtype)

    def relaxed(dtype: torch.dtype, operator: LinearOperator | None, layers: int) -> dict[str, Any]:
        n = network(dtype, layers=layers, inner_size=3)
        model = ICNNSaddle(n, (1, 9, 11), operator, mu=0.2, relaxation=0.1, z_convexity=0.1)
        with torch.no_grad():
            data = y(dtype) if operator is None else operator(y(dtype))
        return _saddle(model, data, PDHG(3000), 1e-2)

    blur = Blur(0.7, (1, 9, 11))
    cases.add("icnn relaxed float64", lambda: relaxed(DOUBLE, None, 2))
    cases.add("icnn relaxed float32", lambda: relaxed(SINGLE, None, 1))
    cases.add("icnn relaxed blur", lambda: relaxed(DOUBLE, blur, 1))

    def primal_dual(solver: PrimalDual, dtype: torch.dtype, operator: LinearOperator | None) -> dict[str, Any]:
        with torch.no_grad():
            data = y(dtype) if operator is None else operator(y(dtype))
        energy = Energy(data, network(dtype, layers=2, inner_size=3), operator, mu=0.1)
        return _solution(solver(energy, y(dtype), 1e-2))

    cases.add("primal dual float64", lambda: primal_dual(PrimalDual(3000), DOUBLE, None))
    cases.add("primal dual float32", lambda: primal_dual(PrimalDual(3000, diagonal=False), SINGLE, None))
    cases.add("primal dual blur", lambda: primal_dual(PrimalDual(3000), DOUBLE, blur))
    cases.add("primal dual uncertified", lambda: primal_dual(PrimalDual(500, certified=False), DOUBLE, None))

    def iterated(adaptive: bool, dtype: torch.dtype) -> dict[str, Any]:
        model = ICNNSaddle(network(dtype, layers=2, inner_size=3), (1, 9, 11), data_weight=1.5, mu=0.1)
        iteration = NetworkIteration(model, y(dtype), y(dtype), adaptive)
        for _ in range(40):
            iteration.advance()
        upper, lower = iteration.bounds()
        return {"x": bits(iteration.image), "upper": exact(upper), "lower": exact(lower)}

    for adaptive in (True, False):
        for dtype in (DOUBLE, SINGLE):
            label = f"network iteration {'adaptive' if adaptive else 'fixed'} {_word(dtype)}"
            cases.add(label, lambda a=adaptive, d=dtype: iterated(a, d))

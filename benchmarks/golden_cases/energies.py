"""Values, gradients, Hessian products and bounds of regularizers, energies, operators, and hypergradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.golden_cases.common import (
    REGULARIZERS,
    Cases,
    Context,
    arguments,
    bits,
    exact,
    fidelity,
    normal,
    operators,
    pictures,
    regularizer,
    truth,
)
from benchmarks.golden_cases.methods import Objective, foe, learned_tv, piggyback, truncated, tv, unrolled
from models import ICNN, ICNNSaddle, LeakyReLU, LearnedTV
from recon.bilevel import Accuracy, BilevelObjective, NegativePSNR, SquaredError
from recon.lower_level import LBFGS, Energy, Grade, SaddlePoint, check_contract, projected_gradient
from recon.operators import (
    FilteredBackProjection,
    FiniteDifferences,
    LinearOperator,
    RayTransform,
    adjoint_mismatch,
    lanczos_norm_bound,
)
from recon.reconstruction import cropped, mirrored

NAMES = (*REGULARIZERS, "critic")


def compute(context: Context) -> dict[str, Any]:
    cases = Cases()
    for name in NAMES:
        for dtype in (torch.float64, torch.float32):
            label = f"{name} {str(dtype).removeprefix('torch.')}"
            cases.add(f"regularizer {label}", lambda n=name, d=dtype: _regularizer(n, d))
    made = {**operators(), "differences": FiniteDifferences((1, 9, 10)), "periodic": _periodic()}
    for name, operator in made.items():
        cases.add(f"operator {name}", lambda o=operator: _operator(o))
    for name in ("ray", "fan"):
        for window in ("ram-lak", "hann"):
            cases.add(f"fbp {name} {window}", lambda o=made[name], w=window: _fbp(o, w))
    for name, operator, data in _ENERGIES:
        cases.add(f"energy {name} {operator} {data}", lambda n=name, o=made[operator], d=data: _energy(n, o, d))
    cases.add("mirror", _mirror)
    _saddles(cases)
    _hypergradients(cases)
    return cases.results


def _periodic() -> LinearOperator:
    return FiniteDifferences((1, 7, 8), boundary="periodic")


_ENERGIES = [
    ("tv", "identity", "l2"),
    ("foe", "blur", "weighted"),
    ("foe_weak", "mask", "kl"),
    ("icnn", "ray", "l2"),
    ("crr", "mri_coils", "weighted"),
    ("critic", "fan", "kl"),
]


def _regularizer(name: str, dtype: torch.dtype) -> dict[str, Any]:
    r = regularizer(name, dtype)
    shape = (2, 1, 11, 9)
    x, v = pictures(*shape, seed=1, dtype=dtype), normal(*shape, seed=2, dtype=dtype)
    value, gradient = r.value_and_grad(x)
    hessian = r.hessian(x)
    result = {
        "value": exact(value),
        "forward": exact(r(x)),
        "gradient": bits(gradient),
        "gradient, first": exact(gradient.flatten()[:3]),
        "hessian": bits(hessian(v)),
        "hessian of one image": bits(hessian.select(torch.tensor([1]))(v[1:])),
        "parameter_vjp": [bits(t) for t in r.parameter_vjp(x, v)],
        "theta": [bits(p) for p in r.trainable()],
        "smoothness": exact(r.smoothness()),
        "convexity": exact(r.convexity()),
        "rounding_gain": exact(r.rounding_gain()),
        "rounding_offset": exact(float(r.rounding_offset(x))),
        "margin": r.margin,
        "arguments": exact(arguments(r)),
    }
    variation = r.hessian_variation(v)
    if variation is not None:
        result["variation"] = {n: exact(getattr(variation, n)) for n in ("relative", "lipschitz", "concavity")}
    bounds = r.jacobian_bounds(x, v, torch.tensor([1e-3, 1e-1], dtype=torch.float64))
    result["jacobian"] = {n: exact(getattr(bounds, n)) for n in ("norm", "variation", "certified")}
    check_contract(r, x)  # raises if it is refused
    return result


def _operator(operator: LinearOperator) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for dtype in (torch.float64, torch.float32):
        x = truth(operator, 2, dtype)
        y = operator(x)
        data = normal(*y.shape, seed=4, dtype=dtype)
        result |= {f"forward {dtype}": bits(y), f"adjoint {dtype}": bits(operator.adjoint(data))}
        result[f"unit {dtype}"] = exact(operator.unit_roundoff(dtype))
    names = ("norm_bound", "lower_bound", "rounding_factor", "adjoint_mismatch", "norm_bound_certified")
    result |= {n: exact(getattr(operator, n)) for n in (*names, "adjoint_exact", "domain_shape", "range_shape")}
    symbol = operator.normal_symbol()
    result["normal_symbol"] = None if symbol is None else bits(symbol.values)
    if operator.domain_shape is not None:
        result |= {"mismatch": exact(adjoint_mismatch(operator)), "lanczos": exact(lanczos_norm_bound(operator))}
    return result


def _fbp(operator: LinearOperator, window: str) -> dict[str, Any]:
    assert isinstance(operator, RayTransform)
    y = operator(truth(operator, 2, torch.float64))
    scaled = FilteredBackProjection(operator, window, 0.8, padding=False, ramp="frequency")
    return {"x": bits(FilteredBackProjection(operator, window)(y)), "scaled": bits(scaled(y))}


def _energy(name: str, operator: LinearOperator, data: str) -> dict[str, Any]:
    x = truth(operator, 2, torch.float64)
    fit, y = fidelity(data, operator(x))
    energy = Energy(y, regularizer(name), operator, fit, mu=0.3)
    value, gradient = energy.value_and_grad(x)
    v = normal(*x.shape, seed=6)
    size = gradient.flatten(1).norm(dim=1)
    preconditioner = energy.preconditioner(x)
    return {
        "value": exact(value),
        "gradient": bits(gradient),
        "hessian": bits(energy.hessian(x)(v)),
        "one image": bits(energy.select(torch.tensor([1])).grad(x[1:])),
        "strong_convexity": exact(energy.strong_convexity),
        "smoothness": exact(energy.smoothness),
        "rounding": exact(energy.rounding(x, size)),
        "product_rounding": exact(energy.product_rounding(x, size)),
        "adjoint_rounding": exact(energy.adjoint_rounding(x, v, size, size)),
        "basis": Grade(energy.basis).word,
        "preconditioned": None if preconditioner is None else bits(preconditioner(v)),
        "projected": bits(projected_gradient(x.clamp_min(0.4) - 0.4, gradient)),
    }


def _mirror() -> dict[str, Any]:
    y = pictures(2, 1, 7, 8, seed=30)
    wide = mirrored(y, 3)
    solution = LBFGS()(Energy(wide, regularizer("foe"), mu=0.1), wide, 1e-4)
    small = cropped(solution, (7, 8))
    return {"wide": bits(wide), "x": bits(small.x), "error": exact(small.error), "grade": exact(small.grade)}


def _saddles(cases: Cases) -> None:
    """Moduli, products and distances of saddle-point problems."""
    y = pictures(2, 1, 9, 8, seed=40)
    network = ICNN(3, 3, layers=2, inner_size=3, activation=LeakyReLU(width=0.05), log_weight=-2).double()
    models = {
        "icnn": ICNNSaddle(network, (1, 9, 8), mu=0.2, relaxation=0.1, z_convexity=0.1),
        **{f"learned tv {n}": LearnedTV(2, norm=n).double() for n in ("smoothed", "fair", "huber")},  # type: ignore[arg-type]
    }
    for name, model in models.items():

        def facts(model: Any = model) -> dict[str, Any]:
            with torch.no_grad():
                return _saddle(model.saddle_point(y))

        cases.add(f"saddle point {name}", facts)


def _saddle(saddle: SaddlePoint) -> dict[str, Any]:
    x = normal(2, saddle.operator.domain_size, seed=41, scale=0.2)
    dual = 0.05 * normal(2, saddle.operator.range_size, seed=42, scale=0.2)
    sums = saddle.operator.absolute_sums()
    scalars = ("convexity", "dual_convexity", "image_convexity", "norm", "spread", "pixels")
    moduli = ("smoothness", "hessian_lipschitz")
    return {
        "K x": bits(saddle.operator(x)),
        "K^T y": bits(saddle.operator.transpose(dual)),
        "sums": None if sums is None else [bits(t) for t in sums],
        "prox g": bits(saddle.g.prox(x, torch.full((2, 1), 0.3, dtype=torch.float64))),
        **{n: exact(getattr(saddle, n)) for n in scalars},
        **{f"{part} {n}": exact(getattr(getattr(saddle, part), n)) for part in "gf" for n in moduli},
    }


def _hypergradients(cases: Cases) -> None:
    def evaluated(objective: Objective, accuracy: Accuracy, second: bool) -> dict[str, Any]:
        evaluation = objective.evaluate(accuracy, None, second)
        bound = not isinstance(objective, BilevelObjective) or objective.unrolled_steps is None
        gradient = objective.hypergradient(evaluation, accuracy, bound=bound)
        finer = objective.refine(evaluation, accuracy.scaled(0.1))
        wanted = objective.accuracy_for(finer, 1e-3) if bound else None
        scalars = ("value", "lower", "upper", "rounding", "grade")
        tensors = ("error", "adjoint_residual", "slope", "sensitivity", "weight", "status", "error_rounding")
        return {
            "z": bits(gradient.z),
            "z, first": exact(gradient.z[:3]),
            **{n: exact(getattr(gradient, n)) for n in ("error", "rounding", "grade")},
            "evaluation": {n: exact(evaluation.state_dict()[n]) for n in (*scalars, *tensors)},
            "x": bits(evaluation.x),
            "w": bits(gradient.evaluation.adjoint.w),
            "refined": {n: exact(getattr(finer, n)) for n in scalars} | {"x": bits(finer.x)},
            "wanted": None if wanted is None else [exact(wanted.solution), exact(wanted.adjoint)],
            "evaluations": exact(objective.evaluations),
        }

    for make in (tv, foe, learned_tv, piggyback, truncated, unrolled):
        for accuracy in (Accuracy(1e-1, 1e-1), Accuracy(1e-5, 1e-4)):
            for second in (True, False):
                label = f"hypergradient {make.__name__} {accuracy.solution:g} {'goal-oriented' if second else 'first'}"
                cases.add(label, lambda k=make, a=accuracy, s=second: evaluated(k(), a, s))
    for name in NAMES[:-1]:
        cases.add(f"hypergradient of {name}", lambda n=name: evaluated(_denoising(n), Accuracy(1e-3, 1e-3), True))
    cases.add("losses", _losses)


def _denoising(name: str) -> BilevelObjective:
    target = pictures(2, 1, 9, 10, seed=50)
    y: Tensor = target + normal(*target.shape, seed=51, scale=0.1)
    return BilevelObjective(regularizer(name), target, y, mu=1.0 if name in ("foe_student", "wcrr") else 0.0)


def _losses() -> dict[str, Any]:
    x, target = pictures(2, 1, 9, 10, seed=60), pictures(2, 1, 9, 10, seed=61)
    result: dict[str, Any] = {}
    for loss in (SquaredError(), SquaredError(2), NegativePSNR(), NegativePSNR(1, 2.0)):
        value = loss.value(x, target)
        name = f"{type(loss).__name__} {loss.margin}"
        outer = [exact(loss.outer(value, target)), exact(loss.outer_slope(value, target))]
        result[name] = [exact(value), bits(loss.grad(x, target)), *outer]
    return result

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
ACCEPTANCE = "tests/bilevel/test_tight_acceptance.py"
SADDLE = "tests/bilevel/test_tight_saddle.py"
ROUNDING = "tests/lower_level/test_tight_rounding.py"
CONSTANTS = "tests/models/test_tight_constants.py"
POTENTIALS = "tests/models/test_potentials.py::test_constants_are_true_and_tight"


def _of(file: str, tests: tuple[str, ...] | str, *changes: tuple[str, str] | tuple[str, str, str]) -> list[Mutation]:
    tests = (tests,) if isinstance(tests, str) else tests
    return [Mutation(file, c[0], c[1], tests, c[2] if len(c) == 3 else "") for c in changes]


MUTATIONS: list[Mutation] = [
    *_of(
        "recon/bilevel/hypergradient.py",
        BOUNDS,
        ("per_error = gain * (smoothness + lipschitz) + bounds.variation", "per_error = gain * smoothness"),
        ("gain * (smoothness + lipschitz)", "gain * smoothness"),
        ("gain * (smoothness + lipschitz)", "gain * lipschitz"),
        ("(smoothness + lipschitz) + bounds.variation", "(smoothness + lipschitz)"),
        ("(smoothness + lipschitz) + bounds.variation", "(smoothness + lipschitz) + 0.5 * bounds.variation"),
        ("per_error * error + gain * residual + rounding", "per_error * error + rounding"),
        ("per_error * error + gain * residual + rounding", "per_error * error + gain * residual"),
        ("per_error * error + gain * residual + rounding", "gain * residual + rounding"),
        ("gain = bounds.norm / energy.require_strong_convexity()", "gain = bounds.norm"),
        ("bounds.norm / energy.require", "1 / energy.require"),
        ("rounding = gain * energy.adjoint_rounding(x, w, residual, lipschitz) + own", "rounding = own"),
        (
            "gain * energy.adjoint_rounding(x, w, residual, lipschitz) + own",
            "gain * energy.adjoint_rounding(x, w, residual, lipschitz)",
        ),
        ("energy.unit(x.dtype) * (SUMMATION * size", "energy.unit(x.dtype) * (size"),
        (" + bounds.variation * per_image_norm(x))", ")"),
        ("size = bounds.norm * per_image_norm(w)", "size = bounds.norm"),
        ("certified = bounds.certified and energy.fidelity.quadratic", "certified = True"),
        ("return 2.0 ** -math.ceil(", "return 2.0 ** -math.floor("),
        ("step = 1 / energy.smoothness", "step = 1.5 / energy.smoothness"),
        ("for _ in range(steps - 1):\n        w =", "for _ in range(steps):\n        w ="),
        ("2 * per_image_norm(change) / per_image_norm(step)", "1 * per_image_norm(change) / per_image_norm(step)"),
    ),
    *_of(
        "recon/bilevel/certificate.py",
        BOUNDS,
        ("below = slope * error\n", "below = 0.5 * slope * error\n"),
        (
            "Interval(loss, below, below + 0.5 * smoothness * error.square(), modelled)",
            "Interval(loss, below, below, modelled)",
        ),
        ("below + 0.5 * smoothness * error.square(), modelled)", "below + 0.5 * error.square(), modelled)"),
        ("Interval(value, low, low + 0.5 * smoothness * error.square()", "Interval(value, low, low"),
        (
            "Interval(value, low, low + 0.5 * smoothness * error.square()",
            "Interval(value, low, low + 0.25 * smoothness * error.square()",
        ),
        ("low = adjoint * error + middle_term", "low = middle_term"),
        (
            "low = adjoint * error + middle_term(variation, norm, energy.data_convexity, error) + pairing",
            "low = adjoint * error + pairing",
        ),
        ("energy.data_convexity, error) + pairing", "energy.data_convexity, error)"),
        ("adjoint_residual + energy.adjoint_rounding(x, w, adjoint_residual, lipschitz)", "adjoint_residual"),
        ("noise = SUMMATION * unit_roundoff(torch.float64) * self.value.abs()", "noise = 0 * self.value.abs()"),
        ("norm, size, proved = computed + rounding,", "norm, size, proved = computed,"),
        (
            "middle_term(variation, norm, energy.data_convexity, error) +",
            "middle_term(variation, norm, energy.smoothness, error) +",
        ),
        ("value = loss - per_image_dot", "value = loss + per_image_dot"),
        ("rounding * (8 / x[0].numel() ** 0.5) + systematic", "systematic"),
        ("rounding * (8 / x[0].numel() ** 0.5) + systematic", "rounding * (8 / x[0].numel() ** 0.5)"),
        (
            "systematic = 4 * energy.unit(x.dtype) * (norm + per_image_norm(data))",
            "systematic = 4 * energy.unit(x.dtype) * norm",
        ),
        ("curvature = modulus - variation.concavity", "curvature = modulus + 0 * variation.concavity"),
        ("residual / (2 * curvature.clamp_min(1e-300))", "residual / (4 * curvature.clamp_min(1e-300))"),
        (
            "variation.relative * (residual * s - curvature * s * s)",
            "variation.relative * (0.5 * residual * s - curvature * s * s)",
        ),
        ("(residual * s - curvature * s * s)", "(residual * s - 2 * curvature * s * s)"),
        (
            "torch.minimum(relative, 0.5 * variation.lipschitz * error.square())",
            "torch.minimum(relative, 0.25 * variation.lipschitz * error.square())",
        ),
        ("s = torch.minimum(inner, error)", "s = inner.clamp_max(1e-3)"),
        ("return 0.5 * smoothness * rounding * (2 * error - rounding)", "return 0 * rounding"),
        ("mine = torch.less_equal(*lengths)", "mine = torch.greater(*lengths)"),
    ),
    *_of(
        "recon/bilevel/objective.py",
        BOUNDS,
        ("omega = weight * found.omega + weight_error * (found.size + found.omega)", "omega = weight * found.omega"),
        ("weight_error * (found.size + found.omega)", "weight_error * found.size"),
        ("weight_error * (found.size + found.omega)", "weight_error * found.omega"),
        ("omega = weight * found.omega +", "omega = found.omega +"),
        ("modelled = (weight + weight_error) * found.rounding", "modelled = weight * found.rounding"),
        ("self.loss.outer_slope(value - interval.below, target)", "self.loss.outer_slope(value, target)"),
        (
            "self.loss.outer_slope(value + interval.above, target)",
            "self.loss.outer_slope(value, target)",
            "dg/dq of the only loss with an outer function is convex in q: it falls less to the right than to the left",
        ),
        (
            "interval.value - interval.below, interval.value + interval.above",
            "interval.value, interval.value + interval.above",
        ),
        (
            "interval.value - interval.below, interval.value + interval.above",
            "interval.value - interval.below, interval.value",
        ),
        ("lower=mean - below, upper=mean + above", "lower=mean - below, upper=mean + 0.5 * above"),
        ("lower=mean - below, upper=mean + above", "lower=mean, upper=mean + above"),
        ("self.loss.quadratic and self.fidelity.quadratic:", "self.fidelity.quadratic:"),
        ("self.loss.quadratic and self.fidelity.quadratic:", "self.loss.quadratic:"),
        (
            "(self.error <= accuracy.solution) & (self.adjoint_residual <= accuracy.adjoint)",
            "self.error <= accuracy.solution",
        ),
        ("return bool(solved.all())", "return bool(solved.any())"),
        ('{"grade": torch.maximum(grade, own)}', '{"grade": own}'),
    ),
    *_of(
        "recon/bilevel/maid.py",
        ACCEPTANCE,
        (
            'if new.upper + options["armijo"] * step * slope <= current.lower:\n                self',
            'if new.value + options["armijo"] * step * slope <= current.lower:\n                self',
        ),
        (
            'if new.upper + options["armijo"] * step * slope <= current.lower:\n                self',
            'if new.upper + options["armijo"] * step * slope <= current.value:\n                self',
        ),
        (
            'if new.upper + options["armijo"] * step * slope <= current.lower:\n                self',
            "if new.upper <= current.lower:\n                self",
        ),
        (
            'if new.upper + options["armijo"] * step * slope <= current.lower:\n                self',
            'if new.upper + options["armijo"] * slope <= current.lower:\n                self',
        ),
        (
            'new is not None and new.upper + options["armijo"] * step * slope <= current.lower',
            'new is not None and new.value + options["armijo"] * step * slope <= current.lower',
        ),
        (
            'new is not None and new.upper + options["armijo"] * step * slope <= current.lower',
            'new is not None and new.upper + options["armijo"] * step * slope <= current.value',
        ),
        (
            'new is not None and new.upper + options["armijo"] * step * slope <= current.lower',
            "new is not None and new.upper <= current.lower",
        ),
        (
            'margin, floor = options["slack"] * 0.5 * step * slope, False',
            'margin, floor = options["slack"] * step * slope, False',
        ),
        (
            'gradient.error <= (1 - options["eta"]) * float(gradient.z.norm())',
            "gradient.error <= float(gradient.z.norm())",
        ),
        (
            'gradient.error <= (1 - options["eta"]) * float(gradient.z.norm())',
            'gradient.error <= options["eta"] * float(gradient.z.norm())',
        ),
        (
            'while float(self._progress["z"].norm()) <= tolerance:',
            'while float(self._progress["z"].norm()) <= 2 * tolerance:',
        ),
        ('(self._progress["z"] - z).norm()) <= 0.1 * tolerance', '(self._progress["z"] - z).norm()) <= tolerance'),
        ('return float(self._progress["z"].norm()) <= tolerance\n', "return True\n"),
        ('step *= options["step_shrink"]\n            if current', "step *= 1.0\n            if current"),
    ),
    *_of(
        "recon/bilevel/hoag.py",
        ACCEPTANCE,
        ("SLACK * accuracy.solution + before", "before"),
        ("before * (SLACK + 1) * length", "before * SLACK * length"),
        (" - length**2 / lr", ""),
        ("current.value + INCREASE * abs(current.value)", "current.value + 2 * INCREASE * abs(current.value)"),
        ("lr / SHORTER if", "lr if"),
    ),
    *_of(
        "recon/lower_level/energy.py",
        ROUNDING,
        ("self.operator.lower_bound**2 *", "self.operator.lower_bound *"),
        ("self.operator.norm_bound**2 *", "self.operator.norm_bound *"),
        ("self.data_convexity = data + mu", "self.data_convexity = data + 2 * mu"),
        ("self.data_convexity + regularizer.convexity()", "self.data_convexity + 1.1 * regularizer.convexity()"),
        ("self.smoothness = rest + regularizer.smoothness()", "self.smoothness = rest"),
        ("rest = self._data_gain + mu", "rest = self._data_gain"),
        ("pull = self._pull.maximum(self._data_gain * size)", "pull = self._data_gain * size"),
        ("pull = self._pull.maximum(self._data_gain * size)", "pull = self._pull"),
        ("self._pull = self.operator.norm_bound *", "self._pull ="),
        ("self._cancelled = self.operator.norm_bound *", "self._cancelled ="),
        ("pull + self.unit(x.dtype) * self._cancelled", "pull"),
        ("data + unit_roundoff(x.dtype) * self._offset + self._own", "data + self._own"),
        ("self._offset + self._own_rounding(x, size, grad_norm)", "self._offset"),
        ("self._data_unit(x.dtype) * self._data_gain * size + self._own", "self._own"),
        ("+ 4 * self.unit(x.dtype) * moved", ""),
        (
            "+ 4 * self.unit(x.dtype) * moved",
            "+ self.unit(x.dtype) * moved",
        ),
        ("(self._own_gain * size + SUMMATION * grad_norm) + lost", "(self._own_gain * size + SUMMATION * grad_norm)"),
        ("(self._own_gain * size + SUMMATION * grad_norm)", "(SUMMATION * grad_norm)"),
        ("(self._own_gain * size + SUMMATION * grad_norm)", "(self._own_gain * size + grad_norm)"),
        ("(self._data_gain + self._own_gain + 1) * underflow(x)", "underflow(x)"),
        ("self._own_gain = mu + (gain", "self._own_gain = (gain"),
        ("10 * max(1.0, self.strong_convexity)", "max(1.0, self.strong_convexity)"),
        ("10 * max(1.0, self.strong_convexity)", "10"),
        ("return max(unit_roundoff(dtype), self.operator.unit_roundoff(dtype))", "return unit_roundoff(dtype)"),
        ("self.unit(dtype) * self.operator.rounding_factor + self", "self.unit(dtype) + self"),
        ("self.operator.rounding_factor + self.operator.adjoint_mismatch", "self.operator.rounding_factor"),
        (
            "rounding = unit_roundoff(x.dtype) * self._own_gain + self._data_unit(x.dtype) * self._data_gain",
            "rounding = unit_roundoff(x.dtype) * self._own_gain",
        ),
        (
            "rounding = unit_roundoff(x.dtype) * self._own_gain + self._data_unit(x.dtype) * self._data_gain",
            "rounding = self._data_unit(x.dtype) * self._data_gain",
        ),
        ("and not operator.adjoint_mismatch and self.gain_known", "and self.gain_known"),
        ("and not operator.adjoint_mismatch and self.gain_known", "and not operator.adjoint_mismatch"),
        ("dtype if self.unit(dtype) <= unit_roundoff(dtype) else torch.float32", "dtype"),
    ),
    *_of(
        "recon/lower_level/precision.py",
        ROUNDING,
        ("SUMMATION = 8.0", "SUMMATION = 4.0"),
        ("torch.finfo(dtype).eps / 2", "torch.finfo(dtype).eps / 4"),
        (" * math.sqrt(x[0].numel() if len(x) else 0)", ""),
        ("max(torch.finfo(x.dtype).tiny, math.sqrt(torch.finfo(torch.float64).tiny))", "torch.finfo(x.dtype).tiny"),
        (
            "max(torch.finfo(x.dtype).tiny, math.sqrt(torch.finfo(torch.float64).tiny))",
            "math.sqrt(torch.finfo(torch.float64).tiny)",
        ),
    ),
    *_of(
        "recon/lower_level/data_fidelity.py",
        ROUNDING,
        ("y[0].numel() ** 0.5 + 3 * per_image_norm(y) / self.background", "3 * per_image_norm(y) / self.background"),
        ("y[0].numel() ** 0.5 + 3 * per_image_norm(y) / self.background", "y[0].numel() ** 0.5"),
        ("+ 3 * per_image_norm(y) / self.background", "+ 1 * per_image_norm(y) / self.background"),
    ),
    *_of(
        "recon/lower_level/stopping.py",
        ROUNDING,
        ("error = norm / modulus + rounding", "error = norm / modulus"),
        ("error = norm / modulus + rounding", "error = norm + rounding"),
        ("rounding = energy.rounding(x, norm) / modulus", "rounding = energy.rounding(x, norm)"),
        ("status[norm + rounding <= self.scale * self.accuracy]", "status[norm <= self.scale * self.accuracy]"),
        ("status[norm + rounding <= self.scale * self.accuracy]", "status[norm + rounding <= self.accuracy]"),
        ("status[norm <= rounding] = Status.PRECISION_FLOOR", "status[norm <= 2 * rounding] = Status.PRECISION_FLOOR"),
        ("(norm <= 1000 * rounding)", "(norm <= 2000 * rounding)"),
        ("(self.stale >= PATIENCE) & (norm", "(norm"),
        ("better = norm <= 0.9 * self.best", "better = norm <= 0.5 * self.best"),
        ("status[~torch.isfinite(norm)] = Status.NOT_FINITE", "pass"),
        ("self.scale = self.mu if certified else 1.0", "self.scale = self.mu"),
    ),
    *_of(
        "recon/lower_level/cg.py",
        ROUNDING,
        ("drift = noise * per_image_norm(w)\n    previous", "drift = 0 * per_image_norm(w)\n    previous"),
        ("norm = per_image_norm(residual) + drift", "norm = per_image_norm(residual)"),
        ("drift[active] += gap", "drift[active] += 0 * gap"),
        ("(per_image_norm(w) + 2 * step.abs() * per_image_norm(p))", "(2 * step.abs() * per_image_norm(p))"),
        (
            "(per_image_norm(w) + 2 * step.abs() * per_image_norm(p))",
            "(per_image_norm(w) + step.abs() * per_image_norm(p))",
        ),
        ("(per_image_norm(w) + 2 * step.abs() * per_image_norm(p))", "per_image_norm(w)"),
        ("doubtful = ~(gap <= 0.01 * goal[active])", "doubtful = ~(gap <= 1 * goal[active])"),
        ("drift[index] = noise * per_image_norm(w[index])", "drift[index] = 0"),
        ("& (norm <= goal)] = Status.CONVERGED", "& (norm <= 2 * goal)] = Status.CONVERGED"),
    ),
    *_of(
        "recon/bilevel/saddle_objective.py",
        SADDLE,
        ("low = (adjoint + rounding(big_x, adjoint) + moved) * whole + middle + spread", "low = middle + spread"),
        (
            "low = (adjoint + rounding(big_x, adjoint) + moved) * whole + middle + spread",
            "low = adjoint * whole + spread",
        ),
        ("Interval(value, low, low + 0.5 * l_g * error.square(), modelled)", "Interval(value, low, low, modelled)"),
        ("t = t_g + torch.where(t_f > 0, known**2 * t_f, 0.0)", "t = torch.where(t_f > 0, known**2 * t_f, 0.0)"),
        ("t = t_g + torch.where(t_f > 0, known**2 * t_f, 0.0)", "t = t_g"),
        ("known**2 * t_f", "known * t_f"),
        (
            "self.loss.value(image, self.target[c]) + per_image_dot",
            "self.loss.value(image, self.target[c]) - per_image_dot",
        ),
        (
            "return math.sqrt(saddle.image_convexity *",
            "return 1 * (saddle.image_convexity *",
            "how accurate adjoints are asked to be, no bound",
        ),
    ),
    *_of(
        "recon/lower_level/batch.py",
        "tests/lower_level/test_precision.py::test_norms_and_inner_products_of_single_precision_images",
        (
            "norm = torch.linalg.vector_norm(head, dim=2).double().square().sum(1)",
            "norm = torch.linalg.vector_norm(head, dim=2).square().sum(1).double()",
        ),
        ("norm = norm + tail.double().square().sum(1)", "norm = norm"),
    ),
    *_of(
        "recon/lower_level/grade.py",
        "tests/lower_level/test_grade.py",
        ("SHARE = 1e-3", "SHARE = 1e-1"),
        ("modelled = ~(rounding <= SHARE * bound) |", "modelled = torch.zeros_like(bound, dtype=torch.bool) |"),
        ("| (torch.finfo(dtype).eps > torch.finfo(torch.float64).eps)", ""),
        ("torch.where(torch.isfinite(bound), grade, int(Grade.ESTIMATED))", "grade"),
    ),
    *_of(
        "recon/lower_level/nonnegative.py",
        "tests/lower_level/test_nonnegative.py::test_the_certificate_holds_at_any_point",
        ("torch.where(x > 0, grad, grad.clamp_max(0))", "torch.where(x > 0, grad, grad.clamp_min(0))"),
        ("torch.where(x > 0, grad, grad.clamp_max(0))", "torch.where(x > 0, grad, 0 * grad)"),
        ("torch.where(x > 0, grad, grad.clamp_max(0))", "grad.clamp_max(0)"),
    ),
    *_of(
        "recon/lower_level/saddle_point.py",
        SADDLE,
        ("return (scaled_p + root) / (2 * math.sqrt(primal)),", "return scaled_p / math.sqrt(primal),"),
        ("return (scaled_p + root) / (2 * math.sqrt(primal)),", "return (scaled_p + root) / 2,"),
        ("(scaled_d + root) / (2 * math.sqrt(dual))", "scaled_d / math.sqrt(dual)"),
        ("(scaled_d + root) / (2 * math.sqrt(dual))", "(scaled_d + root) / (4 * math.sqrt(dual))"),
        ("root = torch.hypot(scaled_p, scaled_d)", "root = torch.maximum(scaled_p, scaled_d)"),
        ("p / math.sqrt(primal), d / math.sqrt(dual)", "p, d / math.sqrt(dual)"),
        ("math.sqrt(self.image_convexity / self.convexity)", "(self.image_convexity / self.convexity)"),
        ("return 1 / self.f.smoothness", "return 2 / self.f.smoothness"),
        (
            "(2 * smoothness * gap).sqrt() * error + 0.5 * smoothness * error.square()",
            "0.5 * smoothness * error.square()",
        ),
        (
            "(2 * smoothness * gap).sqrt() * error + 0.5 * smoothness * error.square()",
            "(smoothness * gap).sqrt() * error",
        ),
        ("4 * eps * (n_kty + self.norm * n_y)", "4 * eps * n_kty"),
        ("4 * eps * (n_x + self.g.conjugate_terms(-kty))", "4 * eps * n_x"),
        ("moved = n_kx + self.norm * n_x + self.f.conjugate_terms(y)", "moved = n_kx + self.norm * n_x"),
        (
            "moved = n_kx + self.norm * n_x + self.f.conjugate_terms(y)",
            "moved = self.norm * n_x + self.f.conjugate_terms(y)",
        ),
        ("noise = noise + _moved(f, self.f.smoothness, 4 * eps * moved)", "noise = noise"),
    ),
    *_of(
        "recon/lower_level/pdhg.py",
        SADDLE,
        ("distances(primal + noise[0], dual + noise[1],", "distances(primal, dual,"),
        ("error, proved = error / iteration.saddle.spread,", "error, proved = error / iteration.saddle.spread**2,"),
        ("by_gap = (2 * (gap + noise) / image).sqrt()", "by_gap = ((gap + noise) / image).sqrt()"),
        (
            "torch.fmin(dual_error, (2 * (gap + noise) / iteration.dual).sqrt())",
            "torch.fmin(dual_error, ((gap + noise) / iteration.dual).sqrt())",
        ),
        ("unit * (norm * y + self.largest[0] * x), unit", "unit * (self.largest[0] * x), unit"),
        ("unit * (norm * y + self.largest[0] * x), unit", "unit * (norm * y), unit"),
        ("unit * (norm * x + self.largest[1] * y + terms)", "unit * (norm * x + self.largest[1] * y)"),
        ("unit * (norm * x + self.largest[1] * y + terms)", "unit * (self.largest[1] * y + terms)"),
        ("p, d = (self.x - x) / self.tau, self.s - kx", "p, d = (self.x - x), self.s - kx"),
    ),
    *_of(
        "recon/bilevel/piggyback.py",
        SADDLE,
        (
            "residual = torch.stack([at.residual + rounding, at.residual])",
            "residual = torch.stack([at.residual, at.residual])",
        ),
        (
            "((curvature + norm**2 / dual) * per_image_norm(at.X) + at.residual)",
            "(curvature * per_image_norm(at.X) + at.residual)",
        ),
        (
            "((curvature + norm**2 / dual) * per_image_norm(at.X) + at.residual)",
            "((norm**2 / dual) * per_image_norm(at.X) + at.residual)",
        ),
        (
            "a = ((t_g + at.smoothness / saddle.spread) * eps + norm * t_f * eps_s)",
            "a = (t_g * eps + norm * t_f * eps_s)",
        ),
        (
            "a = ((t_g + at.smoothness / saddle.spread) * eps + norm * t_f * eps_s)",
            "a = ((at.smoothness / saddle.spread) * eps + norm * t_f * eps_s)",
        ),
        (
            "a = ((t_g + at.smoothness / saddle.spread) * eps + norm * t_f * eps_s)",
            "a = ((t_g + at.smoothness / saddle.spread) * eps)",
        ),
        ("* eps + norm * t_f * eps_s) / math", "* eps + t_f * eps_s) / math"),
        ("eps_s, dual_error = norm * eps,", "eps_s, dual_error = eps,"),
        ("d_x = solved + (a + root) / (2 * math.sqrt(primal))", "d_x = (a + root) / (2 * math.sqrt(primal))"),
        ("d_x = solved + (a + root) / (2 * math.sqrt(primal))", "d_x = solved + a / (2 * math.sqrt(primal))"),
        ("moved = 4 * unit * (t_g[0] + norm**2 * t_f[0])", "moved = 4 * unit * (norm**2 * t_f[0])"),
        ("moved = 4 * unit * (t_g[0] + norm**2 * t_f[0])", "moved = 4 * unit * t_g[0]"),
        (
            "residual = torch.stack([residual[0] + moved, residual[1]])",
            "residual = torch.stack([residual[0], residual[1]])",
        ),
        ("b = at.dual_smoothness * dual_error / math.sqrt(dual)", "b = 0 * dual_error"),
        ("move = n_big_y * eps +", "move ="),
        ("n_y * d_x + (n_big_x + d_x) * dual_error", "(n_big_x + d_x) * dual_error"),
        ("n_y * d_x + (n_big_x + d_x) * dual_error", "n_y * d_x"),
        ("d_q = norm * d_x +", "d_q = d_x +"),
        ("omega + gain * (n * d_w + v * radius)", "omega + gain * (v * radius)"),
        ("omega + gain * (n * d_w + v * radius)", "omega + gain * (n * d_w)"),
        ("whole = whole + own + SUMMATION * unit * size", "whole = whole + own"),
        ("whole = whole + own + SUMMATION * unit * size", "whole = whole + SUMMATION * unit * size"),
        (
            "by_gradient = torch.stack([distance + rounding, distance]) + moved",
            "by_gradient = torch.stack([distance + rounding, distance])",
        ),
        ("saddle.norm * eps / dual\n", "eps / dual\n"),
    ),
    *_of(
        "models/total_variation.py",
        CONSTANTS,
        ("return 8 * float(weight / nu)", "return 4 * float(weight / nu)"),
        ("lipschitz = 8 * weight", "lipschitz = 4 * weight"),
        ("(1.5 / 1.25**2.5) / nu**2 * top", "(1.0 / 1.25**2.5) / nu**2 * top"),
        ("HessianVariation(1.5 / nu * top", "HessianVariation(1.0 / nu * top"),
        ("HessianVariation(1.5 / nu * top", "HessianVariation(0.75 / nu * top"),
        ("2**0.5 * rate * per_image_norm(w)", "0.9 * rate * per_image_norm(w)"),
        ("norm = torch.hypot(first + rate * radius, second + rate * radius)", "norm = torch.hypot(first, second)"),
        ("norm = torch.hypot(first + rate * radius, second + rate * radius)", "norm = first + rate * radius"),
    ),
    *_of(
        "models/fields_of_experts.py",
        CONSTANTS,
        ("return -self.weak_convexity\n", "return -0.9 * self.weak_convexity\n"),
        ("return -self.weak_convexity\n", "return 0.0\n"),
        (
            "spectral_bound(kernels, (self.potential.concavity * weight / width)[:, 0])",
            "spectral_bound(kernels, (0.5 * self.potential.concavity * weight / width)[:, 0])",
        ),
        ("third = sum(self.potential.third_bound *", "third = sum(0.9 * self.potential.third_bound *"),
        ("self.potential.self_concordance * (top / width", "0.9 * self.potential.self_concordance * (top / width"),
        ("concavity = self.weak_convexity * (1 + relative[1]", "concavity = self.weak_convexity * (0 + relative[1]"),
        (
            "concavity = self.weak_convexity * (1 + relative[1]",
            "concavity = self.weak_convexity * (1 + 0 * relative[1]",
        ),
        ("budget = rho * shares / total", "budget = 1.1 * rho * shares / total"),
        ("return (profile[0] / profile[1])[:, 0]", "return (0.9 * profile[0] / profile[1])[:, 0]"),
    ),
    *_of(
        "models/potentials.py",
        POTENTIALS,
        (
            "slope_bound, third_bound, concavity = 1.0, 1.5 / 1.25**2.5, 0.0",
            "slope_bound, third_bound, concavity = 1.0, 1.3 / 1.25**2.5, 0.0",
        ),
        (
            "self_concordance, slope_width_bound, curvature_width_bound = 1.5,",
            "self_concordance, slope_width_bound, curvature_width_bound = 1.0,",
        ),
        ("1.0, 4 / 27**0.5, 0.0", "1.0, 3 / 27**0.5, 0.0"),
        ("= 0.5, 1.4572, 0.125", "= 0.5, 1.2, 0.125"),
        ("= 0.5, 1.4572, 0.125", "= 0.5, 1.4572, 0.1"),
        ("= 2.0, 0.4478, 1.0", "= 1.5, 0.4478, 1.0"),
        ("= math.inf, 0.25, 1.0", "= math.inf, 0.2, 1.0"),
    ),
]

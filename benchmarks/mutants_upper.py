"""Mutations of the bounds and criteria of the upper level, see :mod:`benchmarks.mutations`."""

from __future__ import annotations

from benchmarks.mutation import ACCEPTANCE, BOUNDS, Mutation, mutations_of

UPPER: list[Mutation] = [
    *mutations_of(
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
    *mutations_of(
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
    *mutations_of(
        "recon/bilevel/evaluation.py",
        BOUNDS,
        ("omega = weight * found.omega + weight_error * (found.size + found.omega)", "omega = weight * found.omega"),
        ("weight_error * (found.size + found.omega)", "weight_error * found.size"),
        ("weight_error * (found.size + found.omega)", "weight_error * found.omega"),
        ("omega = weight * found.omega +", "omega = found.omega +"),
        ("modelled = (weight + weight_error) * found.rounding", "modelled = weight * found.rounding"),
        (
            "(self.error <= accuracy.solution) & (self.adjoint_residual <= accuracy.adjoint)",
            "self.error <= accuracy.solution",
        ),
        ("return bool(solved.all())", "return bool(solved.any())"),
    ),
    *mutations_of(
        "recon/bilevel/objective.py",
        BOUNDS,
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
        ('{"grade": torch.maximum(grade, own)}', '{"grade": own}'),
    ),
    *mutations_of(
        "recon/bilevel/methods/maid.py",
        ACCEPTANCE,
        (
            "if new.upper + search.armijo * step * slope <= current.lower",
            "if new.value + search.armijo * step * slope <= current.lower",
        ),
        (
            "if new.upper + search.armijo * step * slope <= current.lower",
            "if new.upper + search.armijo * step * slope <= current.value",
        ),
        ("if new.upper + search.armijo * step * slope <= current.lower", "if new.upper <= current.lower"),
        (
            "if new.upper + search.armijo * step * slope <= current.lower",
            "if new.upper + search.armijo * slope <= current.lower",
        ),
        ("margin, floor = slack * 0.5 * step * slope, False", "margin, floor = slack * step * slope, False"),
    ),
    *mutations_of(
        "recon/bilevel/methods/published_maid.py",
        ACCEPTANCE,
        (
            "new is not None and new.upper + search.armijo * step * slope <= current.lower",
            "new is not None and new.value + search.armijo * step * slope <= current.lower",
        ),
        (
            "new is not None and new.upper + search.armijo * step * slope <= current.lower",
            "new is not None and new.upper + search.armijo * step * slope <= current.value",
        ),
        (
            "new is not None and new.upper + search.armijo * step * slope <= current.lower",
            "new is not None and new.upper <= current.lower",
        ),
        (
            "gradient.error <= (1 - schedule.eta) * float(gradient.z.norm())",
            "gradient.error <= float(gradient.z.norm())",
        ),
        (
            "gradient.error <= (1 - schedule.eta) * float(gradient.z.norm())",
            "gradient.error <= schedule.eta * float(gradient.z.norm())",
        ),
        ("step *= search.shrink\n            if current", "step *= 1.0\n            if current"),
    ),
    *mutations_of(
        "recon/bilevel/methods/certified_descent.py",
        ACCEPTANCE,
        (
            'while float(self.progress["z"].norm()) <= tolerance:',
            'while float(self.progress["z"].norm()) <= 2 * tolerance:',
        ),
        ('(self.progress["z"] - z).norm()) <= 0.1 * tolerance', '(self.progress["z"] - z).norm()) <= tolerance'),
        ('return float(self.progress["z"].norm()) <= tolerance\n', "return True\n"),
    ),
    *mutations_of(
        "recon/bilevel/methods/hoag.py",
        ACCEPTANCE,
        ("SLACK * accuracy.solution + before", "before"),
        ("before * (SLACK + 1) * length", "before * SLACK * length"),
        (" - length**2 / lr", ""),
        ("current.value + INCREASE * abs(current.value)", "current.value + 2 * INCREASE * abs(current.value)"),
        ("lr / SHORTER if", "lr if"),
    ),
]

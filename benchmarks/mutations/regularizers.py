"""Mutations of the constants of regularizers, see :mod:`benchmarks.mutations`."""

from __future__ import annotations

from benchmarks.mutations.mutation import CONSTANTS, COUPLED, POTENTIALS, Mutation, mutations_of

REGULARIZERS: list[Mutation] = [
    *mutations_of(
        "models/regularizers/noise_level.py",
        ("tests/models/regularizers/test_noise_level.py", "tests/models/regularizers/test_noise_level_constants.py"),
        ("return max(self._parts.get(number).smoothness()", "return min(self._parts.get(number).smoothness()"),
        ("return max(self._parts.get(number).rounding_gain()", "return min(self._parts.get(number).rounding_gain()"),
        ("(1 - share) * self.log_gains[:, left] + share *", "share * self.log_gains[:, left] + (1 - share) *"),
        (" or not self._belongs[1].equal(owner.log_gains)", ""),
        ("self._belongs[0] is not table or ", "", "the copies notice new parameters by themselves, at a higher cost"),
        ("own = part.select(torch.tensor([place[images[row]]", "own = part.select(torch.tensor([place[row]"),
        ("torch.cat([value for value, _ in found])[order]", "torch.cat([value for value, _ in found])"),
        ("min(0.0, self.regularizer.convexity())", "0.0"),
    ),
    *mutations_of(
        "models/regularizers/ridge.py",
        ("tests/models/regularizers/test_noise_level.py", "tests/models/regularizers/test_noise_level_constants.py"),
        ("gains.square()[:, None]", "gains[:, None]"),
    ),
    *mutations_of(
        "models/regularizers/icnn.py",
        ("tests/models/regularizers/test_noise_level.py", "tests/models/regularizers/test_noise_level_constants.py"),
        ("weights / gains.prod()", "weights / gains[0]"),
    ),
    *mutations_of(
        "models/regularizers/initial.py",
        "tests/models/regularizers/test_composed_filters.py",
        ("factor.flip(2, 3)", "factor"),
        (
            "(factors[0] - factors[0].mean((2, 3), keepdim=True))",
            "factors[0]",
            "the composed filters are centred again",
        ),
    ),
    *mutations_of(
        "models/regularizers/total_variation.py",
        "tests/models/regularizers/test_total_variation.py",
        ("length * (nu / root) * (nu / (root + length))", "length * (nu / root) * (nu / (2 * root))"),
        ("length * (nu / root) * (nu / (root + length))", "length * (nu / (root + length))"),
    ),
    *mutations_of(
        "models/regularizers/total_variation.py",
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
    *mutations_of(
        "models/regularizers/icnn.py",
        "tests/models/regularizers/test_icnn_rounding.py",
        (" + self._cancelled(sizes))", ")"),
        ("2 * math.sqrt(1 + sizes", "math.sqrt(1 + sizes"),
        ("2 * math.sqrt(9 + self", "math.sqrt(9 + self"),
        ("m @ (errors + 12 * u.abs()) + own", "own"),
        ("m @ (errors + 12 * u.abs())", "m @ (12 * u.abs())"),
        ("m @ (errors + 12 * u.abs())", "m @ errors"),
        ("own * (m @ z.abs() + bias.abs())", "own * (m @ z + bias).abs()"),
        ("own * (m @ z.abs() + bias.abs())", "own * bias.abs()"),
        ("own * (m @ z.abs() + bias.abs())", "own * (m @ z.abs())"),
        ("curvature_beyond(u.abs() - errors / (2 * count))", "curvature_beyond(u.abs())"),
        ("count += own + 12\n", "count += 2 * own + 12\n"),
        ("u, product = m @ z + bias, m @ product", "u = m @ z + bias"),
        ("total += float(gain * (", "total = float(gain * ("),
        ("(t.sqrt() * curvature * errors)", "(curvature * errors)"),
    ),
    *mutations_of(
        "models/regularizers/leaky_relu.py",
        "tests/models/regularizers/test_icnn_rounding.py",
        ("return self.curvature(t.clamp_min(0))", "return self.curvature(t)"),
        ("return (t < self.width).to(t) * self.curvature_bound", "return self.curvature(t)"),
    ),
    *mutations_of(
        "models/regularizers/fields_of_experts.py",
        CONSTANTS,
        ("return -self.weak_convexity\n", "return -0.9 * self.weak_convexity\n"),
        ("return -self.weak_convexity\n", "return 0.0\n"),
        (
            "self.spectral_bound((self.potential.concavity * weight / width)[:, 0])",
            "self.spectral_bound((0.5 * self.potential.concavity * weight / width)[:, 0])",
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
    *mutations_of(
        "models/regularizers/filter_bank.py",
        "tests/models/regularizers/test_filter_bank.py",
        ("return response.factor * response.spectrum", "return response.spectrum"),
        ("* math.cos(math.pi * (cols - 1) / (16 * cols)))", ")"),
        ("return 1 / (math.cos(math.pi * (rows - 1) / (16 * rows)) *", "return 1 / ("),
    ),
    *mutations_of(
        "models/regularizers/filter_bank.py",
        COUPLED,
        (
            "torch.linalg.eigvalsh(torch.where(finite, matrices, 0.0))",
            "torch.where(finite, matrices, 0.0).diagonal(dim1=-2, dim2=-1).real",
        ),
        (
            "return Response(transform.conj()[:, :, None] * transform[:, None])",
            "return Response(0.99 * transform.conj()[:, :, None] * transform[:, None])",
        ),
    ),
    *mutations_of(
        "models/regularizers/ridge.py",
        COUPLED,
        ("self.kernel_size[0] * self.in_channels**0.5 * u", "self.kernel_size[0] * u"),
        ("self.kernel_size[0] * self.in_channels**0.5 * u", "self.in_channels**0.5 * u"),
        ("** 2 * (1 + u) ** 4 - 1", "** 2 - 1"),
    ),
    *mutations_of(
        "models/regularizers/potentials.py",
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

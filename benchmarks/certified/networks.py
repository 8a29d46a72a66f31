class EpigraphDistance(Term):
    """dist((L x + b)_j, epi sigma)^2 / (2 eps), summed over pairs (u_j, z_j): L is ``(2, pairs, n)``, b for u."""

    def __init__(self, matrix: Array, bias: Array, slope: float, width: float, eps: float) -> None:
        self.matrix, self.bias, self.s, self.w, self.eps = matrix, bias, LD(slope), LD(width), LD(eps)
        self.sigma = formulas.leaky(slope, width, False)
        self.double = matrix.astype(np.float64)

    def _nearest(self, x: Array) -> tuple[Array, Array, Array, Array]:
        """u - t, z - sigma(t), the slope at t and the curvature there; zero distances inside."""
        u, z = x @ self.matrix[0].T + self.bias, x @ self.matrix[1].T
        value, first, second = self.sigma
        # (t - u) + (sigma(t) - z) sigma'(t) grows with t where sigma(t) > z: bisection between the flat pieces
        left, right = (u + self.s * z) / (1 + self.s**2), (u + z + (1 - self.s) * self.w / 2) / 2
        low, high = 0 * u, 0 * u + self.w
        for _ in range(80):
            t = (low + high) / 2
            above = (t - u) + (value(t) - z) * first(t) > 0
            low, high = np.where(above, low, t), np.where(above, t, high)
        t = np.where(left <= 0, left, np.where(right >= self.w, right, (low + high) / 2))
        outside = z < value(u)
        bend = np.where(outside & (left > 0) & (right < self.w), second(np.clip(t, self.w / 2**60, None)), 0)
        return np.where(outside, u - t, 0), np.where(outside, z - value(t), 0), first(t), bend

    def _parts(self, x: Array) -> tuple[Array, Array, Array]:
        """(I - P')/eps for every pair: the entries uu, uz, zz."""
        du, dz, slope, bend = self._nearest(x)
        distance = np.sqrt(du**2 + dz**2)
        length = np.sqrt(1 + slope**2)
        part = distance * bend / length**3
        across, active = part / (1 + part), (distance > 0).astype(LD)
        nu, nz = slope / length, -1 / length
        uu, uz, zz = nu * nu + across * nz * nz, nu * nz * (1 - across), nz * nz + across * nu * nu
        return active * uu / self.eps, active * uz / self.eps, active * zz / self.eps

    def dual(self, x: Array) -> Array:
        """The gradient in (u, z)."""
        du, dz, *_ = self._nearest(x)
        return np.concatenate([du, dz], 1) / self.eps

    def grad(self, x: Array) -> Array:
        du, dz, *_ = self._nearest(x)
        return (du @ self.matrix[0] + dz @ self.matrix[1]) / self.eps

    def product(self, x: Array, v: Array) -> Array:
        uu, uz, zz = self._parts(x)
        a, b = v @ self.matrix[0].T, v @ self.matrix[1].T
        return (uu * a + uz * b) @ self.matrix[0] + (uz * a + zz * b) @ self.matrix[1]

    def dense(self, x: Array) -> Array:
        uu, uz, zz = (t.astype(np.float64) for t in self._parts(x))
        a, b = self.double
        mixed = np.einsum("bm,mi,mj->bij", uz, a, b, optimize=True)
        pure = [np.einsum("bm,mi,mj->bij", w, m, m, optimize=True) for w, m in ((uu, a), (zz, b))]
        return sum(pure) + mixed + mixed.transpose(0, 2, 1)

    def size(self, x: Array) -> Array:
        top = float(np.linalg.norm(self.double))
        inner = norm(x @ self.matrix[0].T) + norm(x @ self.matrix[1].T) + norm(self.bias + 0 * (x @ self.matrix[0].T))
        return top * inner / self.eps


def relaxed_network(rng: Rng, dtype: torch.dtype, batch: int) -> SaddleProblem:
    """Networks of one or two hidden layers whose constraints are relaxed."""
    image: Shape = (1, int(rng.integers(4, 6)), int(rng.integers(4, 6)))
    name = str(rng.choice(["identity", "mask"]))
    kept = rng.random(image) < 0.7
    matrix = np.diag(kept.reshape(-1).astype(LD)) if name == "mask" else np.eye(math.prod(image), dtype=LD)
    operator: LinearOperator = Mask(torch.from_numpy(kept)) if name == "mask" else Identity()
    measured = Measured(operator, matrix, image)
    layers, slope, width = int(rng.integers(1, 3)), float(rng.choice([0.0, 0.2])), float(10.0 ** rng.uniform(-2, 0))
    net = ICNN(
        filters=int(rng.integers(1, 3)),
        size=2,
        layers=layers,
        slope=slope,
        width=width,
        activation="huber",
        log_weight=rng.uniform(-4, 0),
        initial_filters="normal",
        zero_mean=bool(rng.integers(2)),
        seed=int(rng.integers(1000)),
    ).to(dtype)
    with torch.no_grad():
        for p in net.parameters():
            p += 0.2 * torch.from_numpy(np.asarray(rng.normal(size=tuple(p.shape)))).to(p)
    eps, bent = float(10.0 ** rng.uniform(-1.5, 0)), float(10.0 ** rng.uniform(-1.5, 0))
    c, mu = float(rng.choice([1.0, 3.0])), float(rng.choice([0.0, 0.1]))
    mu = mu if name == "identity" else 0.3
    model = ICNNSaddle(net, image, operator, mu, c, eps, bent)
    truth, y = _data(rng, measured, batch, dtype)
    build = _network_builder(net, measured, y, (mu, c, eps, bent))
    return SaddleProblem(model, y, truth, build, _unknowns(net, image), f"relaxed network {name} eps={eps:.3g}")


def _unknowns(net: ICNN, image: Shape) -> int:
    shape, total = image[1:], math.prod(image)
    for kernel in net.convolutions()[:-1]:
        shape = shape[0] - kernel.shape[2] + 1, shape[1] - kernel.shape[3] + 1
        total += kernel.shape[0] * math.prod(shape)
    return total


def _network_builder(
    net: ICNN, measured: Measured, y: Tensor, weights: tuple[float, float, float, float]
) -> Callable[[formulas.Parameters], tuple[Energy, Callable[[Array], Array]]]:
    mu, c, eps, bent = weights
    plain = isinstance(measured.operator, Identity)
    image, layers, unknowns = measured.image, net.layers, _unknowns(net, measured.image)
    slope, width, centred = net.hidden.slope, net.hidden.width, net.zero_mean
    data, n = extended(y).reshape(len(y), -1), math.prod(image)
    first = np.eye(n, unknowns, dtype=LD)
    rest = np.eye(unknowns - n, unknowns, n, dtype=LD)
    a, zero = measured.matrix @ first, LD(0) * data[:, :1]

    def build(theta: formulas.Parameters) -> tuple[Energy, Callable[[Array], Array]]:
        weight = theta["network.weight"]
        kernels = [weight - weight.mean((2, 3), keepdims=True) if centred else weight]
        kernels += [np.exp(theta[f"network.log_inner.{i}"]) for i in range(layers)]
        shape, before, start = image[1:], first, n
        terms: list[Any] = []
        for i, k in enumerate(kernels):
            layer = formulas.correlation_layer(k, shape) @ before
            shape = shape[0] - k.shape[2] + 1, shape[1] - k.shape[3] + 1
            bias = np.repeat(theta[f"network.biases.{i}"], shape[0] * shape[1])
            if i < layers:
                before = np.eye(len(layer), unknowns, start, dtype=LD)
                start += len(layer)
                terms.append(EpigraphDistance(np.stack([layer, before]), bias, slope, width, eps))
                continue
            strength = np.exp(theta["network.log_scale"] + theta["network.log_weights"])
            strength = np.repeat(strength, shape[0] * shape[1])
            _, rise, curve = formulas.leaky(0.0, width, False)

            def last(u: Array, bias: Array = bias, strength: Array = strength, rise: Any = rise) -> Array:
                return strength * rise(u + bias)

            def bend(u: Array, bias: Array = bias, strength: Array = strength, curve: Any = curve) -> Array:
                return strength * curve(u + bias)

            terms.append(Composed(layer, last, bend, bias))
        outer = terms[-1]
        energy = Energy(*terms, quadratic(a, data, LD(c)), quadratic(first, zero, LD(mu)), quadratic(rest, zero, bent))

        def dual(x: Array) -> Array:
            parts = [t.dual(x) for t in terms[:-1]] + [outer.slope(x @ outer.matrix.T)]
            return np.concatenate(parts if plain else [*parts, LD(c) * (x @ a.T - data)], 1)

        return energy, dual

    return build



"""Input convex networks in their primal-dual form: saddle-point problems, and a solver of energies that uses it."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from models.regularizers.filter_bank import spectral_bound
from models.regularizers.icnn import ICNN
from recon.errors import at_least, not_negative, positive
from recon.lower_level import (
    PDHG,
    Blocks,
    Energy,
    Functional,
    NotStronglyConvexError,
    SaddleMap,
    SaddleModel,
    SaddlePoint,
    SaddleSolution,
    Snapshot,
    Solution,
    Solver,
    Squared,
    SquaredL2,
    Status,
    per_image_norm,
)
from recon.lower_level.saddle.epigraph import Epigraph, ReLUSum, Shifted
from recon.lower_level.solvers.iterate import Callback
from recon.lower_level.solvers.stopping import certificate
from recon.operators import Identity, LinearOperator


class NetworkMap(LinearOperator):
    """K(x, z_0, ..., z_{L-1}) = ((V x, z_0), (W_1 z_0, z_1), ..., W_L z_{L-1}, A x), A only if there is an operator.

    Norms of the blocks give norms and steps: those of W are the norms of the sums of their kernels, which is exact for
    positive kernels on large images, that of V is a maximum over frequencies (:func:`spectral_bound`).

    Parameters
    ----------
    kernels : list of Tensor
        V, W_1, ..., W_L.
    image_shape : tuple of int
        ``(channel, height, width)``.
    data : SaddleMap, optional
        A.

    Raises
    ------
    ValueError
        Images are smaller than the filters.
    NotStronglyConvexError
        Kernels are not finite: a trial of a line search may meet such.
    """

    def __init__(self, kernels: list[Tensor], image_shape: tuple[int, int, int], data: SaddleMap | None = None) -> None:
        channels, rows, cols = image_shape
        shapes: list[tuple[int, ...]] = []
        for kernel in kernels:
            rows, cols = rows - kernel.shape[2] + 1, cols - kernel.shape[3] + 1
            if rows < 1 or cols < 1:
                raise ValueError(f"images of {image_shape[1]}x{image_shape[2]} are smaller than the network's filters")
            shapes.append((channels, kernel.shape[0], rows, cols))
        counts = [math.prod(s) for s in shapes]
        domain_sizes = [math.prod(image_shape), *counts[:-1]]
        range_sizes = [2 * n for n in counts[:-1]] + [counts[-1]] + ([data.range_size] if data else [])
        with torch.no_grad():
            first = math.sqrt(float(spectral_bound(kernels[0][:, 0], torch.ones(len(kernels[0])))))
            sums = [k.detach().double().sum((2, 3)) for k in kernels[1:]]
        if not (math.isfinite(first) and all(bool(torch.isfinite(m).all()) for m in sums)):
            raise NotStronglyConvexError("norms of the layers of the network are not finite")
        norms = [first, *(float(torch.linalg.matrix_norm(m, 2)) * (1 + 1e-12) for m in sums)]
        table = _block_norms(norms, data)
        norm = float(torch.linalg.matrix_norm(table, 2))
        known = data is None or math.isfinite(data.norm_bound)
        super().__init__((sum(domain_sizes),), (sum(range_sizes),), norm, norm_bound_certified=known)
        self.kernels, self.image_shape, self.shapes, self.norms = kernels, image_shape, shapes, norms
        self.domain_sizes, self.range_sizes, self.data, self.table = domain_sizes, range_sizes, data, table
        if data is not None:
            a = data.operator
            self.adjoint_exact, self.rounding_factor = a.adjoint_exact, max(1.0, a.rounding_factor)
            self.adjoint_mismatch = a.adjoint_mismatch and a.adjoint_mismatch * a.norm_bound / norm

    def unit_roundoff(self, dtype: torch.dtype) -> float:
        own = super().unit_roundoff(dtype)
        return own if self.data is None else max(own, self.data.operator.unit_roundoff(dtype))

    def _forward(self, x: Tensor) -> Tensor:
        image, *hidden = x.split(self.domain_sizes, 1)
        batch = len(x) * self.image_shape[0]
        inputs = [image.reshape(batch, 1, *self.image_shape[1:])]
        inputs += [z.reshape(batch, *s[1:]) for z, s in zip(hidden, self.shapes, strict=False)]
        parts: list[Tensor] = []
        for layer, (kernel, value) in enumerate(zip(self.kernels, inputs, strict=True)):
            parts.append(F.conv2d(value, kernel).reshape(len(x), -1))
            if layer < len(hidden):
                parts.append(hidden[layer])
        if self.data is not None:
            parts.append(self.data(image))
        return torch.cat(parts, 1)

    def _adjoint(self, y: Tensor) -> Tensor:
        parts = y.split(self.range_sizes, 1)
        batch, own, found = len(y) * self.image_shape[0], None, []
        for layer, (kernel, shape) in enumerate(zip(self.kernels, self.shapes, strict=True)):
            above, after = (
                parts[layer].split(math.prod(shape), 1) if layer < len(self.kernels) - 1 else (parts[layer], None)
            )
            back = F.conv_transpose2d(above.reshape(batch, *shape[1:]), kernel).reshape(len(y), -1)
            found.append(back if own is None else back + own)
            own = after
        if self.data is not None:
            found[0] = found[0] + self.data.transpose(parts[-1])
        return torch.cat(found, 1)

    def absolute_sums(self) -> tuple[Tensor, Tensor] | None:
        """Sums of the norms of blocks: the steps 1/sum are as safe as with entries (Pock and Chambolle 2011, Lemma 2).

        They are larger, since norms are smaller than sums of entries. Pairs of an epigraph get the larger one of two.
        """
        if not self.norm_bound_certified:
            return None
        rows = self.table.sum(1)
        hidden = len(self.kernels) - 1
        per_block = [float(torch.maximum(rows[2 * i], rows[2 * i + 1])) for i in range(hidden)]
        per_block += rows[2 * hidden :].tolist()
        like = self.like()
        columns = torch.cat(
            [like.new_full((n,), float(t)) for n, t in zip(self.domain_sizes, self.table.sum(0), strict=True)]
        )
        return columns, torch.cat([like.new_full((n,), t) for n, t in zip(self.range_sizes, per_block, strict=True)])

    def tensors(self) -> list[tuple[Tensor, float]]:
        # every tap is a shift, of norm at most one, of each channel onto each
        return [(k, math.sqrt(k.shape[2] * k.shape[3])) for k in self.kernels]


def _block_norms(norms: list[float], data: SaddleMap | None) -> Tensor:
    """The norms of the blocks of K, ``(blocks of y, blocks of x)``; pairs (W_l z_{l-1}, z_l) are two blocks."""
    hidden = len(norms) - 1
    table = torch.zeros(2 * hidden + 1 + bool(data), hidden + 1, dtype=torch.float64)
    for layer, norm in enumerate(norms):
        table[2 * layer, layer] = norm
        if layer < hidden:
            table[2 * layer + 1, layer + 1] = 1.0
    if data is not None:
        table[-1, 0] = data.operator.norm_bound
    return table


class ICNNSaddle(SaddleModel):
    r"""(c/2)||Ax - y||^2 + (mu/2)||x||^2 + R(x) for an input convex network R, in its primal-dual form.

        min_{x, z} max  D(Ax, y) + (mu/2)||x||^2 + a^T sigma_1(W_L z_{L-1} + b_L)
            subject to  (V x + b_0, z_0) and (W_l z_{l-1} + b_l, z_l) in the epigraph of sigma_0

    (Ehrhardt, Mukherjee, Wong 2024). Exact, since a and W_l are not negative and sigma_1 does not decrease: lowering
    z_l to sigma_0(W_l z_{l-1} + b_l) lowers the sum. This object and ``network`` have the same parameters.

    With ``relaxation`` eps > 0 constraints become squared distances / (2 eps), and every z_l gets a quadratic term
    (z_convexity/2)||z_l||^2: g is then strongly convex, f smooth, and all certificates of saddle points apply, to this
    slightly different problem. Derivatives by piggyback need it. Without, x can be certified by
    :class:`PrimalDual`, from the gradient of the network itself.

    Parameters
    ----------
    network
        R, with an activation of the kind ``huber``.
    image_shape
        ``(channel, height, width)``.
    operator
        A, the identity by default.
    mu
        weight of the quadratic term.
    data_weight
        c > 0.
    relaxation, z_convexity
        see above.

    Raises
    ------
    ValueError
        for other activations, sizes that do not fit, and values out of range.
    """

    def __init__(
        self,
        network: ICNN,
        image_shape: tuple[int, int, int],
        operator: LinearOperator | None = None,
        mu: float = 0.0,
        data_weight: float = 1.0,
        relaxation: float = 0.0,
        z_convexity: float = 0.0,
    ) -> None:
        super().__init__()
        if network.hidden.kind != "huber":
            raise ValueError(f"the primal-dual form is that of the activation 'huber', not {network.hidden.kind!r}")
        not_negative(mu=mu, relaxation=relaxation, z_convexity=z_convexity)
        positive(data_weight=data_weight)
        self.network, self.mu, self.data_weight = network, mu, data_weight
        self.channels, height, width = image_shape
        self.image_shape = (self.channels, height, width)
        self.relaxation, self.z_convexity = relaxation, z_convexity
        self.data = None if operator is None or isinstance(operator, Identity) else SaddleMap(operator, image_shape)

    def saddle_point(self, y: Tensor) -> SaddlePoint:
        """The problem in (x, z) of the data y, ``(batch, ...)``, at the current parameters of the network."""
        network = self.network
        k = NetworkMap(network.convolutions(), self.image_shape, self.data)
        sigma, f, g = network.hidden, list[Functional](), list[Functional]()
        for shape, bias in zip(k.shapes[:-1], network.biases, strict=False):
            constraint = Epigraph(math.prod(shape), sigma.slope, sigma.width, self.relaxation)
            f.append(Shifted(constraint, bias[:, None, None], shape))
        outer = ReLUSum(k.shapes[-1], network.weights(), network.outer.width)
        f.append(Shifted(outer, network.biases[-1][:, None, None], k.shapes[-1]))
        data, pixels = y.flatten(1), k.domain_sizes[0]
        if self.data is None:
            # (c/2)||x - y||^2 + (mu/2)||x||^2 up to a constant
            weight = self.data_weight + self.mu
            g.append(Squared(pixels, weight, self.data_weight / weight * data))
        else:
            g.append(Squared(pixels, self.mu))
            f.append(Squared(self.data.range_size, self.data_weight, data))
        g.append(Squared(sum(k.domain_sizes[1:]), self.z_convexity))
        return SaddlePoint(SaddleMap(k), Blocks(g), Blocks(f), self.image_shape, check=False)

    def hidden(self, x: Tensor) -> Tensor:
        """(x, z) with z_l = sigma_0 of their arguments, flat: what is feasible, and best for this x."""
        with torch.no_grad():
            z = [self.network.hidden.value(u) for u in self.network.responses(x)[:-1]]
        return torch.cat([x.flatten(1), *(t.reshape(len(x), -1) for t in z)], 1)


class PrimalDual(Solver):
    r"""A solver of energies whose regularizer is an :class:`models.ICNN`, by PDHG on its primal-dual form.

    ``solver(energy, x0, accuracy) -> Solution``, like :class:`recon.lower_level.LBFGS`. PDHG runs until its residuals
    are small, then h itself says what is certified, \|\|grad h(x)\|\| / mu at the very x, and residuals ten times
    smaller are asked for where this is not enough. Steps come from the norms of the blocks of K and are balanced by
    the residuals. Evaluations: products with K, K^T and gradients of h.

    Parameters
    ----------
    max_iterations
        of PDHG, all runs together.
    diagonal
        whether steps come from the blocks of K; else all are one number.
    certified
        False: PDHG runs once, to residuals of ``accuracy``, which is all that is possible for width 0.

    Raises
    ------
    ValueError
        max_iterations is less than 1.
    """

    def __init__(self, max_iterations: int = 100_000, diagonal: bool = True, certified: bool = True) -> None:
        at_least(1, max_iterations=max_iterations)
        self.max_iterations, self.diagonal, self.certified = max_iterations, diagonal, certified

    @torch.no_grad()
    def __call__(
        self, energy: Energy, x0: Tensor, accuracy: float | Tensor, callback: Callback | None = None
    ) -> Solution:
        """Minimize h from ``x0`` to a certified distance ``accuracy`` (a number, or one per image).

        ``callback`` is told the steps of PDHG, by which nothing is certified yet, see :class:`Solver`.

        Raises
        ------
        ValueError
            if R is no ICNN, or D not (c/2)||Ax - y||^2; :class:`NotStronglyConvexError` if a certificate is asked for
            and h has no positive modulus.
        """
        energy.check_start(x0)
        model = saddle_model(energy, x0)
        saddle = model.saddle_point(energy.y)
        modulus = energy.require_strong_convexity() if self.certified else energy.strong_convexity
        goal = torch.as_tensor(accuracy, dtype=torch.float64, device=x0.device).expand(len(x0))
        if not bool((goal > 0).all()):
            raise ValueError(f"the accuracy asked for is {float(goal.min()):g}, but must be positive")
        if self.certified and not math.isfinite(energy.smoothness):
            raise ValueError("networks of width 0 have no gradient that certifies x: use certified=False or a width")
        x = model.hidden(x0)
        y = x.new_zeros(len(x), saddle.operator.range_size)
        spent = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        residual, left, steps = modulus * goal if self.certified else goal, self.max_iterations, 0
        while True:
            found = PDHG(max(left, 1), diagonal=self.diagonal, certified=False)(
                saddle, x, y, residual, callback and partial(_told, callback, steps, spent)
            )
            steps += int(found.evaluations.max()) - 1
            spent, left = spent + found.evaluations, left - int(found.evaluations.max())
            solution = self._certified(energy, saddle, found, goal, spent, modulus)
            running = solution.status == Status.ITERATION_LIMIT
            exhausted = (found.status != Status.CONVERGED).all() or left <= 0
            if not self.certified or not bool(running.any()) or bool(exhausted):
                return solution
            x, y, residual = found.x, found.y, torch.where(running, 0.1 * residual, residual)

    def _certified(
        self, energy: Energy, saddle: SaddlePoint, found: SaddleSolution, goal: Tensor, spent: Tensor, modulus: float
    ) -> Solution:
        x, status = saddle.image(found.x), found.status.clone()
        gradient = energy.grad(x)
        norm = per_image_norm(gradient)
        known = modulus > 0 and math.isfinite(energy.smoothness)
        error, rounding, grade = certificate(energy, x, norm, modulus if known else math.nan)
        if self.certified:
            status = torch.where(error <= goal, int(Status.CONVERGED), status)
            late = (error > goal) & (status == Status.CONVERGED)
            status = torch.where(late, int(Status.ITERATION_LIMIT), status)
        status = torch.where(torch.isfinite(norm), status, int(Status.NOT_FINITE))
        return Solution(x, gradient, error, status, spent + 1, rounding, grade)


def _told(callback: Callback, steps: int, spent: Tensor, now: Snapshot) -> None:
    """Tell the callback of a run of PDHG that others went before."""
    callback(replace(now, iteration=steps + now.iteration, evaluations=spent + now.evaluations))


def saddle_model(energy: Energy, like: Tensor) -> ICNNSaddle:
    """The exact primal-dual form of an energy for images of the shape of ``like``; raises ValueError if it has none."""
    if not isinstance(energy.regularizer, ICNN):
        raise ValueError(f"the primal-dual form is that of an ICNN, not of {type(energy.regularizer).__name__}")
    if type(energy.fidelity) is not SquaredL2:
        raise ValueError(f"the primal-dual form needs the fidelity SquaredL2, not {type(energy.fidelity).__name__}")
    channel, height, width = like.shape[1:]
    return ICNNSaddle(energy.regularizer, (channel, height, width), energy.operator, energy.mu, energy.fidelity.weight)

"""Large images: rounding errors of sums over millions of pixels, against references of a single row.

Total variation of an image whose rows are all the same is that of one row, and its minimizer has equal rows: a problem
of a few pixels is the reference for one of millions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from benchmarks.certified import problems
from benchmarks.certified.checks import Check, check_errors
from benchmarks.certified.learning import Learned, Loss
from benchmarks.certified.newton import minimize_near
from benchmarks.certified.operators import Measured, Rng
from benchmarks.certified.terms import LD, extended, norm
from recon.bilevel import BilevelObjective, Differentiation
from recon.bilevel.evaluation import Accuracy
from recon.bilevel.loss import SquaredError
from recon.lower_level import LBFGS
from recon.lower_level.grade import Grade
from recon.operators import Identity

#: as many as in an image of 2048 x 2048, where sums in single precision go wrong
PIXELS = {torch.float32: 2**22, torch.float64: 2**20}


def check_large(rng: Rng, dtype: torch.dtype) -> Iterable[Check]:
    """Denoising from a random start: the distance, the interval of the loss, and omega."""
    width = int(rng.integers(16, 65))
    rows = PIXELS[dtype] // width
    measured = Measured(Identity(), np.eye(width, dtype=LD), (1, 1, width))
    row = problems.random_problem(rng, measured, problems.total_variation, dtype, 1)
    row = replace(row, fitted=problems.plain_square(1.0))

    def tall(x: Tensor) -> Tensor:
        return x.expand(1, 1, rows, width).contiguous()

    model, loss = row.regular.regularizer, SquaredError()
    objective = BilevelObjective(
        model,
        tall(row.truth),
        tall(row.y),
        mu=row.mu,
        loss=loss,
        solver=LBFGS(40),
        differentiation=Differentiation(max_adjoint_iterations=40),
    )
    size = float(objective.target.double().norm())
    accuracy = size * 10.0 ** rng.uniform(-9 if dtype == torch.float32 else -14, -1)
    noise = size / math.sqrt(rows * width) * 10.0 ** rng.uniform(-3, 0) * torch.randn(1, 1, rows, width)
    start = replace(objective.start(), x=objective.y + noise.to(dtype))
    goal = Accuracy(accuracy, accuracy)
    evaluation = objective.evaluate(goal, start)
    at = minimize_near(row.energy(), extended(evaluation.x)[0, 0, :1])
    note, word = f"{rows} rows of {width} asked {accuracy / size:.3g}", Grade(evaluation.grade).word
    distance = norm((extended(evaluation.x).reshape(rows, width) - at.x).reshape(1, -1))
    own = math.sqrt(rows) * at.accuracy
    yield from check_errors(evaluation.error, evaluation.error_rounding, evaluation.grade, distance, own, note)
    single = Loss(loss, np.ones((1, width)), extended(row.truth.flatten(1)))
    exact, uncertain = rows * single.value(at.x)[0], rows * single.uncertainty(at)
    value = LD(evaluation.value)
    yield Check("below", float(value - LD(evaluation.lower)), float(value - exact), uncertain, note, word)
    yield Check("above", float(LD(evaluation.upper) - value), float(exact - value), uncertain, note, word)
    found = objective.hypergradient(evaluation, goal, bound=True)
    gradient, uncertain = Learned(objective, model, single, row.energy, width, note).hypergradient(at)
    true = float(norm((extended(found.z) - rows * gradient)[None])[0])
    yield Check("omega", found.error, true, rows * uncertain, note, found.grade.word, counts=found.certified)

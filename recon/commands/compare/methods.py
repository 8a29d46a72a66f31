"""The methods of ``recon compare``: plain ones, total variation, models from files, and models that are trained."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets import DenoisingDataModule
from models import TotalVariation
from models.files.setting import describe_setting, setting_difference
from models.files.storage import load_model
from models.files.trust import Trusted
from models.training.precision import cast
from recon.commands.reconstruct.regularized import metadata_mu
from recon.lower_level import LBFGS, Energy, Grade, Regularizer, SquaredL2, Status, first_guess
from recon.lower_level.solvers.descent import descend
from recon.metrics import psnr
from recon.names import current_name, public_name
from recon.operators import Identity, LinearOperator, RayTransform
from recon.operators.tomography.fbp import FILTERS
from recon.reconstruction import cropped, mirrored
from recon.reconstruction.early_stopped import critic_reconstruction
from recon.reconstruction.reconstructor import Reconstructor, naive_reconstruction

log = logging.getLogger(__name__)

BASELINES = ("fbp", "zero_filled", "tv")
SCALINGS = (1.0, 0.8, 0.7, 0.6, 0.5, 0.4)
#: steps of the search for the logarithms of weight and smoothing of TV, and the gain in dB below which it halves them
STEPS, GAIN = (1.0, 0.5), 0.01
#: how far the search goes from where it starts
FARTHEST = 6.0
#: mu of TV relative to ||A||^2 where A is not the identity
MU = 1e-5


@dataclass(frozen=True)
class Found:
    """A reconstruction ``(1, channel, height, width)``; error: certified ||x - x^||, infinite if nothing is.

    grade: what it rests on.
    """

    x: Tensor
    error: float
    evaluations: float | None
    grade: Grade = Grade.ESTIMATED


@dataclass(frozen=True)
class Method:
    """What is compared, and what it cost to get it; None is unknown.

    description: class, and what was chosen on validation data. training_*: those of the choice for baselines.
    """

    reconstruct: Callable[[Tensor], Found]
    description: str
    parameters: int
    training_seconds: float | None = None
    training_evaluations: float | None = None


@dataclass(frozen=True)
class Task:
    """What all methods share: the data with their operator, and the accuracy of whatever can be certified.

    accuracy: of ||x - x^|| of a whole picture. validation_images: how many of the first ones choices are made on.
    """

    module: DenoisingDataModule
    operator: LinearOperator
    accuracy: float
    validation_images: int

    def validation(self) -> list[tuple[Tensor, Tensor]]:
        """Pairs (x, y) with a batch axis."""
        samples: Any = self.module.val_dataloader().dataset
        count = min(self.validation_images, len(samples))
        return [(samples[i].x[None], samples[i].y[None]) for i in range(count)]

    def mean_psnr(self, images: list[Tensor], data: list[tuple[Tensor, Tensor]]) -> float:
        """Of what people look at, range 1, in dB."""
        show = self.operator.display
        values = [float(psnr(show(z), show(x).to(z.dtype))) for z, (x, _) in zip(images, data, strict=True)]
        return math.fsum(values) / len(values)


def baseline(entry: Mapping[str, Any], task: Task) -> Method:
    """The method of an entry ``baseline: ...``, with what is best on validation data.

    Raises:
        ValueError: it does not go with the operator, or no weight of TV could be tried.
    """
    begin, kind = time.perf_counter(), entry["baseline"]
    if kind == "fbp":
        return _projection(task, begin)
    if kind == "zero_filled":

        def back(y: Tensor) -> Found:
            return Found(naive_reconstruction(y, task.operator), math.inf, None)

        return Method(back, "zero-filled", 0)
    return _total_variation(entry, task, begin)


def check_baseline(kind: str, operator: LinearOperator) -> None:
    """Raise ``ValueError`` if the baseline does not go with the operator."""
    name = type(operator).__name__
    if kind not in BASELINES:
        raise ValueError(f"there is no baseline {kind!r}; valid are {', '.join(BASELINES)}")
    if kind == "fbp" and not isinstance(operator, RayTransform):
        raise ValueError(f"the baseline fbp is for ray transforms, not for {name}; use zero_filled")
    if kind == "zero_filled" and isinstance(operator, (RayTransform, Identity)):
        raise ValueError(f"the baseline zero_filled is not for {name}; use {'fbp' if name != 'Identity' else 'tv'}")


def _projection(task: Task, begin: float) -> Method:
    data = task.validation()

    def value(choice: tuple[str, float]) -> float:
        return task.mean_psnr([naive_reconstruction(y, task.operator, *choice) for _, y in data], data)

    best = max(product(FILTERS, SCALINGS), key=value)

    def reconstruct(y: Tensor) -> Found:
        return Found(naive_reconstruction(y, task.operator, *best), math.inf, None)

    return Method(reconstruct, f"FBP, {best[0]}, frequencies up to {best[1]:g}", 0, time.perf_counter() - begin)


def _total_variation(entry: Mapping[str, Any], task: Task, begin: float) -> Method:
    """Weight and smoothing by search along the axes; every trial is certified to the accuracy of the comparison."""
    data, evaluations = task.validation(), 0.0
    mu = 0.0 if isinstance(task.operator, Identity) else MU * task.operator.norm_bound**2
    mu = float(entry.get("mu", mu))
    tried: dict[tuple[float, float], float] = {}
    starts: list[Tensor | None] = [None] * len(data)

    def value(point: tuple[float, float]) -> float:
        nonlocal evaluations, starts
        if point not in tried:
            found = [
                solve(_fixed_tv(point, y.dtype), task.operator, mu, y, task.accuracy, start)
                for (_, y), start in zip(data, starts, strict=True)
            ]
            # neighbours have minimizers nearby; those of data that are images may be mirrored at the boundary
            starts = [None if isinstance(task.operator, Identity) else f.x for f in found]
            evaluations += sum(f.evaluations or 0.0 for f in found) / len(data)
            certified = all(f.error <= task.accuracy for f in found)
            tried[point] = task.mean_psnr([f.x for f in found], data) if certified else -math.inf
        return tried[point]

    start = best = _balanced(task.operator, data), -6.0
    for step in STEPS:
        while True:
            near = [(best[0] + a * step, best[1] + b * step) for a, b in ((1, 0), (-1, 0), (0, 1), (0, -1))]
            near = [p for p in near if max(abs(s - t) for s, t in zip(p, start, strict=True)) <= FARTHEST]
            found = max([best, *near], key=value)
            if not value(found) > value(best) + GAIN:
                break
            best = found
    if value(best) == -math.inf:
        raise ValueError(
            f"no total variation near the weight {math.exp(best[0]):.3g} could be solved to the certified accuracy "
            f"{task.accuracy:.3g}; give a larger accuracy or another mu"
        )
    text = f"TV, weight {math.exp(best[0]):.3g}, smoothing {math.exp(best[1]):.3g}, mu {mu:.3g}"
    regularizers = {dtype: _fixed_tv(best, dtype) for dtype in (torch.float32, torch.float64)}

    def reconstruct(y: Tensor) -> Found:
        return solve(regularizers[y.dtype], task.operator, mu, y, task.accuracy)

    return Method(reconstruct, text, 2, time.perf_counter() - begin, evaluations)


def _fixed_tv(point: tuple[float, float], dtype: torch.dtype) -> TotalVariation:
    return TotalVariation(*point).to(dtype).requires_grad_(False)


@torch.no_grad()
def _balanced(operator: LinearOperator, data: list[tuple[Tensor, Tensor]]) -> float:
    """Where the search starts: log of the weight at which both gradients have one norm at the true images, rounded."""
    ratios = []
    for x, y in data:
        prior = _fixed_tv((0.0, -6.0), x.dtype).value_and_grad(x)[1].norm()
        ratios.append(float(operator.adjoint(operator(x) - y).norm() / prior.clamp(min=1e-12)))
    mean = math.fsum(ratios) / len(ratios)
    return float(round(math.log(mean))) if mean > 0 else -5.0


@torch.no_grad()
def solve(
    regularizer: Regularizer,
    operator: LinearOperator,
    mu: float,
    y: Tensor,
    accuracy: float,
    start: Tensor | None = None,
) -> Found:
    """The minimizer for data y of one picture, certified; data that are images are mirrored at the boundary.

    ``start``: a first guess of the minimizer, of what is mirrored.

    Raises:
        ValueError: the energy is not strongly convex, or the solver met values that are not finite.
    """
    margin = regularizer.margin if isinstance(operator, Identity) else 0
    energy = Energy(mirrored(y, margin), regularizer, operator, mu=mu)
    solution = LBFGS()(energy, first_guess(energy.operator, energy.y) if start is None else start, accuracy)
    if Status(int(solution.status[0])) is Status.NOT_FINITE:
        raise ValueError(f"{type(regularizer).__name__}: the energy has values that are not finite")
    if margin:
        solution = cropped(solution, (y.shape[2], y.shape[3]))
    return Found(solution.x, float(solution.error[0]), float(solution.evaluations[0]), Grade(int(solution.grade[0])))


def load_method(file: Path, task: Task, unchecked: bool = False, trust: Iterable[Trusted] = ()) -> Method:
    """The method of a model in a file, see :func:`models.files.storage.load_model`.

    Args:
        file: of the model. task: what it is applied to.
        unchecked: whether a model whose file does not say what it was trained for is accepted.
        trust: what its class may come from, if it is none of this project.

    Raises:
        ValueError: the model was trained for another operator or noise, on patients of the test, with another fidelity,
            or does not say so; it is a saddle-point model, or nothing says how to apply it.
        FileNotFoundError: a file is missing.
    """
    model, metadata = load_model(file, trust)
    _check_setting(file, metadata, task, unchecked)
    _check_learned_from(file, metadata, task)
    model.requires_grad_(False).eval()
    tensors = [*model.parameters(), *model.buffers()]
    dtype = next((t.dtype for t in tensors if t.is_floating_point()), task.module.dtype)
    operator = task.operator
    if dtype != task.module.dtype:
        operator = copy.deepcopy(operator)
        cast(operator, dtype)
    reconstruct: Callable[[Tensor], Found]
    if isinstance(model, Reconstructor):
        reconstruct = _pass(model, operator, dtype)
    elif isinstance(model, Regularizer):
        reconstruct = _minimizer(file, model, metadata, operator, task)
    else:
        raise ValueError(
            f"{file}: holds a saddle-point model, {type(model).__name__}; comparisons take regularizers of energies "
            "and networks that reconstruct"
        )
    training = metadata.get("training")
    training = training if isinstance(training, Mapping) else {}
    count = sum(p.numel() for p in model.parameters())
    return Method(
        reconstruct, type(model).__name__, count, _number(training, "seconds"), _number(training, "evaluations")
    )


def _pass(network: Reconstructor, operator: LinearOperator, dtype: torch.dtype) -> Callable[[Tensor], Found]:
    @torch.no_grad()
    def reconstruct(y: Tensor) -> Found:
        return Found(network(y.to(dtype), operator), math.inf, None)

    return reconstruct


def _minimizer(
    file: Path, regularizer: Regularizer, metadata: dict[str, Any], operator: LinearOperator, task: Task
) -> Callable[[Tensor], Found]:
    """Certified minimizers where the energy is strongly convex, else the descent that the file describes."""
    mu, fidelity = metadata_mu(metadata, str(file)), metadata.get("fidelity")
    if fidelity is not None and current_name(str(fidelity)) != public_name(SquaredL2()):
        raise ValueError(f"{file}: was trained with {fidelity}; comparisons take {public_name(SquaredL2())} only")
    dtype = next(regularizer.parameters()).dtype
    x = task.validation()[0][1].to(dtype)
    convex = Energy(x, regularizer, operator, mu=mu).strong_convexity > 0
    steps = metadata.get("descent_iterations")
    if not convex and not isinstance(steps, int):
        raise ValueError(
            f"{file}: the energy of {type(regularizer).__name__} is not strongly convex with mu = {mu:g}, and the file "
            "has no descent_iterations, after how many steps to stop; train it with a larger mu"
        )
    if not convex and isinstance(operator, RayTransform) and "ramp" not in metadata:
        log.warning(
            "%s: learned from filtered back-projections with the ramp sampled in frequency; its descent starts from "
            "today's, 38 HU darker; train anew for figures of its own",
            file,
        )

    @torch.no_grad()
    def reconstruct(y: Tensor) -> Found:
        y = y.to(dtype)
        if convex:
            return solve(regularizer, operator, mu, y, task.accuracy)
        margin = regularizer.margin if isinstance(operator, Identity) else 0
        energy = Energy(mirrored(y, margin), regularizer, operator, mu=mu)
        z = descend(energy, critic_reconstruction(energy.y, energy.operator), int(steps or 0))[0]
        inside = z[..., margin : margin + y.shape[2], margin : margin + y.shape[3]] if margin else z
        return Found(inside, math.inf, float(steps or 0))

    return reconstruct


def _check_setting(file: Path, metadata: Mapping[str, Any], task: Task, unchecked: bool) -> None:
    saved = metadata.get("setting")
    if not isinstance(saved, Mapping):
        if not unchecked:
            raise ValueError(
                f"{file}: the model does not say for which operator and noise it was trained (metadata.setting); write "
                "`unchecked: true` beside `model` if you know that they are those of the comparison"
            )
        return
    current = describe_setting(task.operator, task.module)
    difference = setting_difference(saved, current)
    if difference is not None:
        raise ValueError(f"{file}: the model was trained for another problem than this comparison: {difference}")
    theirs, mine = saved.get("data") or {}, current["data"] or {}
    if theirs.get("train") is not None and theirs["train"] == mine.get("test") != mine.get("train"):
        raise ValueError(f"{file}: the model was trained on {theirs['train']}, the test data of the comparison")
    # one folder that is split by patients: the same patients are held out by the same split only
    if theirs.get("train") == mine.get("train") and task.module.knows_patients:
        for name in ("fractions", "seed", "val", "test"):
            if theirs.get(name) != mine.get(name):
                raise ValueError(
                    f"{file}: the model was trained on another split of {mine['train']}, perhaps on patients of the "
                    f"test: {name} is {theirs.get(name)} there, but {mine.get(name)} here"
                )


def _number(values: Mapping[str, Any], name: str) -> float | None:
    value = values.get(name)
    return float(value) if isinstance(value, (int, float)) else None


def _check_learned_from(file: Path, metadata: Mapping[str, Any], task: Task) -> None:
    """Raise ``ValueError`` if the file says that the model has learned from test data; older files do not say."""
    learned = metadata.get("learned_from")
    if learned is None:
        return
    if not isinstance(learned, list) or not all(isinstance(entry, str) for entry in learned):
        raise ValueError(f"{file}: metadata.learned_from is no list of fingerprints; train the model again")
    shared = len(set(learned) & set(task.module.fingerprints("test")))
    if shared:
        raise ValueError(
            f"{file}: the model has learned from {shared} of the patients or pictures of the test; results on them are "
            "no test. Name other data as test, or train the model on others"
        )

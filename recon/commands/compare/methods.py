"""The methods of ``recon compare``: plain ones, total variation, models from files, and models that are trained."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from datasets import SimulatedDataModule
from models import TotalVariation
from models.files.setting import describe_setting, setting_difference
from models.files.storage import Model, load_model
from models.files.trust import Trusted
from models.training.precision import cast
from recon.commands.compare.configuration import Entry
from recon.commands.configuration.data import Samples, samples_of
from recon.commands.reconstruct.regularized import metadata_mu
from recon.lower_level import Grade, SaddleModel, SquaredL2, Status
from recon.metrics import psnr
from recon.names import current_name, public_name
from recon.operators import Identity, LinearOperator, RayTransform
from recon.operators.tomography.fbp import FILTERS
from recon.reconstruction import (
    Data,
    Direct,
    EarlyStopped,
    Network,
    Reconstruction,
    Reconstructor,
    Regularized,
    Request,
    Saddle,
    Variational,
    of_energy,
)
from recon.reconstruction import Method as ReconstructionMethod
from recon.reconstruction.reconstructor import naive_reconstruction
from recon.reconstruction.variational import energy_of
from recon.reconstruction.weight import best_point

log = logging.getLogger(__name__)

BASELINES = ("fbp", "zero_filled", "tv")
SCALINGS = (1.0, 0.8, 0.7, 0.6, 0.5, 0.4)
#: steps of the search for the logarithms of weight and smoothing of TV, and the gain in dB below which it halves them
STEPS, GAIN = (1.0, 0.5), 0.01
#: how far the search goes from where it starts
FARTHEST = 6.0
#: of one saddle point at most
SADDLE_EVALUATIONS = 100_000
#: what models may have been trained with where rays are weighted
WEIGHTED = "recon.lower_level.WeightedSquaredL2"
#: mu of TV relative to ||A||^2 where A is not the identity
MU = 1e-5


class Reconstruct(Protocol):
    """``reconstruct(y, weights=None) -> Found``."""

    def __call__(self, y: Tensor, weights: Tensor | None = None) -> Found: ...


@dataclass(frozen=True)
class Found:
    """A reconstruction ``(1, channel, height, width)``; error: certified ||x - x^||, infinite if nothing is.

    grade: what it rests on.
    """

    x: Tensor
    error: float
    evaluations: float | None
    grade: Grade = Grade.ESTIMATED

    @staticmethod
    def of(made: Reconstruction) -> Found:
        """What is compared of a reconstruction."""
        solution = made.solution
        evaluations = None if not isinstance(made, Regularized) else float(solution.evaluations[0])
        return Found(solution.x, float(solution.error[0]), evaluations, Grade(int(solution.grade[0])))


@dataclass(frozen=True)
class Method:
    """What is compared, and what it cost to get it; None is unknown.

    reconstruct: of data y and their weights, None where all count the same. description: class, and what was chosen on
    validation data. training_*: those of the choice for baselines.
    """

    reconstruct: Reconstruct
    description: str
    parameters: int
    training_seconds: float | None = None
    training_evaluations: float | None = None


@dataclass(frozen=True)
class Task:
    """What all methods share: the data with their operator, and the accuracy of whatever can be certified.

    accuracy: of ||x - x^|| of a whole picture. validation_images: how many of the first ones choices are made on.
    nonnegative: whether energies are minimized over x >= 0. weighted: whether rays are weighted by their photons.
    """

    module: SimulatedDataModule
    operator: LinearOperator
    accuracy: float
    validation_images: int
    nonnegative: bool = False
    weighted: bool = False

    def tested(self) -> Samples:
        """The data of the test."""
        return samples_of(self.module.test_dataloader())

    def validation(self) -> list[tuple[Tensor, Tensor]]:
        """Pairs (x, y) with a batch axis."""
        samples = samples_of(self.module.val_dataloader())
        count = min(self.validation_images, len(samples))
        return [(samples[i].x[None], samples[i].y[None]) for i in range(count)]

    def weights(self, y: Tensor) -> Tensor | None:
        """Inverse variances of data y relative to their mean, if rays are weighted.

        To first order they are the numbers of photons of the rays, as for ``recon reconstruct --photons``.

        Raises
        ------
        ValueError
            the noise is none of photons.
        """
        if not self.weighted:
            return None
        noise = self.module.noise()
        if noise.get("kind") != "photons":
            raise ValueError(f"weighted is true, but the noise is none of photons: {noise}; leave it out")
        photons = torch.exp(-float(str(noise["mu_unit"])) * y)
        return photons / photons.mean()

    def request(self) -> Request:
        """What is asked of every reconstruction."""
        return Request(self.accuracy, nonnegative=self.nonnegative)

    def mean_psnr(self, images: list[Tensor], data: list[tuple[Tensor, Tensor]]) -> float:
        """Of what people look at, range 1, in dB."""
        show = self.operator.display
        values = [float(psnr(show(z), show(x).to(z.dtype))) for z, (x, _) in zip(images, data, strict=True)]
        return math.fsum(values) / len(values)


def baseline(entry: Entry, task: Task) -> Method:
    """The method of an entry ``baseline: ...``, with what is best on validation data.

    Raises
    ------
    ValueError
        it does not go with the operator, or no weight of TV could be tried.
    """
    begin, kind = time.perf_counter(), entry["baseline"]
    if kind == "fbp":
        return _projection(task, begin)
    if kind == "zero_filled":
        return Method(_applied(Direct(), task.operator, task), "zero-filled", 0)
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
    text = f"FBP, {best[0]}, frequencies up to {best[1]:g}"
    return Method(_applied(Direct(*best), task.operator, task), text, 0, time.perf_counter() - begin)


def _total_variation(entry: Entry, task: Task, begin: float) -> Method:
    """Weight and smoothing by search along the axes; every trial is certified to the accuracy of the comparison."""
    data, evaluations = task.validation(), 0.0
    mu = 0.0 if isinstance(task.operator, Identity) else MU * task.operator.norm_bound**2
    mu = float(entry.get("mu", mu))
    starts: list[Tensor | None] = [None] * len(data)

    def value(point: tuple[float, ...]) -> float:
        nonlocal evaluations, starts
        found = [
            _applied(Variational(_fixed_tv(point, y.dtype), mu), task.operator, task, start)(y, task.weights(y))
            for (_, y), start in zip(data, starts, strict=True)
        ]
        # neighbours have minimizers nearby; those of data that are images may be mirrored at the boundary
        starts = [None if isinstance(task.operator, Identity) else f.x for f in found]
        evaluations += sum(f.evaluations or 0.0 for f in found) / len(data)
        certified = all(f.error <= task.accuracy for f in found)
        return task.mean_psnr([f.x for f in found], data) if certified else -math.inf

    best, quality = best_point(value, (_balanced(task.operator, data), -6.0), STEPS, GAIN, FARTHEST)
    if quality == -math.inf:
        raise ValueError(
            f"no total variation near the weight {math.exp(best[0]):.3g} could be solved to the certified accuracy "
            f"{task.accuracy:.3g}; give a larger accuracy or another mu"
        )
    text = f"TV, weight {math.exp(best[0]):.3g}, smoothing {math.exp(best[1]):.3g}, mu {mu:.3g}"
    regularizers = {dtype: _fixed_tv(best, dtype) for dtype in (torch.float32, torch.float64)}

    def reconstruct(y: Tensor, weights: Tensor | None = None) -> Found:
        return _applied(Variational(regularizers[y.dtype], mu), task.operator, task)(y, weights)

    return Method(reconstruct, text, 2, time.perf_counter() - begin, evaluations)


def _fixed_tv(point: tuple[float, ...], dtype: torch.dtype) -> TotalVariation:
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


def _applied(
    method: ReconstructionMethod, operator: LinearOperator, task: Task, start: Tensor | None = None
) -> Reconstruct:
    """The method with the operator, as the task asks for; in the precision of the data it is given.

    What it raises, ValueError: the energy has values that are not finite.
    """

    @torch.no_grad()
    def reconstruct(y: Tensor, weights: Tensor | None = None) -> Found:
        problem = Data(y=y, operator=operator, weights=weights, start=start, sigma=task.module.noise_level)
        made = method.reconstruct(problem, task.request())
        if isinstance(made, Regularized) and int(made.solution.status[0]) == Status.NOT_FINITE:
            raise ValueError(f"{type(made.solver.regularizer).__name__}: the energy has values that are not finite")
        return Found.of(made)

    return reconstruct


def load_method(file: Path, task: Task, unchecked: bool = False, trust: Iterable[Trusted] = ()) -> Method:
    """The method of a model in a file, see :func:`models.files.storage.load_model`.

    Parameters
    ----------
    file
        of the model.
    task
        what it is applied to.
    unchecked
        whether a model whose file does not say what it was trained for is accepted.
    trust
        what its class may come from, if it is none of this project.

    Raises
    ------
    ValueError
        the model was trained for another operator or noise, on patients of the test, with another fidelity, or does not
        say so; or nothing says how to apply it.
    FileNotFoundError
        a file is missing.
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
    applied = _applied(_method(file, model, metadata, operator, dtype, task), operator, task)

    def reconstruct(y: Tensor, weights: Tensor | None = None) -> Found:
        return applied(y.to(dtype), None if weights is None else weights.to(dtype))

    training = metadata.get("training")
    training = training if isinstance(training, Mapping) else {}
    count = sum(p.numel() for p in model.parameters())
    return Method(
        reconstruct, type(model).__name__, count, _number(training, "seconds"), _number(training, "evaluations")
    )


def _method(
    file: Path, model: Model, metadata: dict[str, object], operator: LinearOperator, dtype: torch.dtype, task: Task
) -> ReconstructionMethod:
    """Certified minimizers and saddle points, networks, and the descent that the file describes for what is not convex.

    Raises
    ------
    ValueError
        the model was trained with another fidelity, has no place for what the task asks, or nothing says when descent
        is to stop.
    """
    if isinstance(model, Reconstructor):
        return Network(model)
    y = task.validation()[0][1]
    problem = Data(y=y.to(dtype), operator=operator, weights=task.weights(y), sigma=task.module.noise_level)
    if isinstance(model, SaddleModel):
        saddle = Saddle(model, max_evaluations=SADDLE_EVALUATIONS)
        try:
            saddle.solver(problem, task.nonnegative, None).strong_convexity(1.0)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        return saddle
    mu, steps = metadata_mu(metadata, str(file)), metadata.get("descent_iterations")
    fidelity = current_name(str(metadata.get("fidelity", public_name(SquaredL2()))))
    valid = [public_name(SquaredL2()), *([WEIGHTED] if task.weighted else [])]
    if fidelity not in valid:
        raise ValueError(
            f"{file}: was trained with {metadata['fidelity']}; comparisons take {' and '.join(valid)} only"
        )
    steps = steps if isinstance(steps, int) else None
    method = of_energy(problem, model, mu, steps)
    if isinstance(method, Variational) and not energy_of(problem, model, mu).strong_convexity > 0:
        raise ValueError(
            f"{file}: the energy of {type(model).__name__} is not strongly convex with mu = {mu:g}, and the file "
            "has no descent_iterations, after how many steps to stop; train it with a larger mu"
        )
    if isinstance(method, EarlyStopped) and isinstance(operator, RayTransform) and "ramp" not in metadata:
        log.warning(
            "%s: learned from filtered back-projections with the ramp sampled in frequency; its descent starts from "
            "today's, 38 HU darker; train anew for figures of its own",
            file,
        )
    return method


def _check_setting(file: Path, metadata: Mapping[str, object], task: Task, unchecked: bool) -> None:
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


def _number(values: Mapping[str, object], name: str) -> float | None:
    value = values.get(name)
    return float(value) if isinstance(value, (int, float)) else None


def _check_learned_from(file: Path, metadata: Mapping[str, object], task: Task) -> None:
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

"""What the figure learns from, how, and the tables and models that it writes."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np
import torch
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm
from rich.console import Console
from torch import Tensor

from datasets import DenoisingDataModule, PatchPictures
from models import Convexity, InitialKernels, LearnedTV
from models.files.storage import load_model, save_regularizer
from recon.bilevel import (
    MAID,
    Accuracy,
    DivergedError,
    InexactAdam,
    NegativePSNR,
    Piggyback,
    Record,
    SaddleObjective,
    Training,
)
from recon.commands.output.tables import read, table
from recon.commands.reproduce.listing import data_folder
from recon.files import write_files
from recon.lower_level import PDHG, NotStronglyConvexError
from recon.metrics import psnr

SIGMA = 0.1
METHODS = {"standard": "standard TV", "fixed": "non-adaptive", "adaptive": "adaptive"}
#: certified ||u - u^|| of the pictures that PSNRs are computed of
ACCURACY = 0.1


class Regularization(TypedDict):
    """What makes the problem strongly convex and concave, see :class:`models.LearnedTV`."""

    dual_convexity: float
    field_convexity: float
    norm: Literal["smoothed", "fair", "huber"]
    smoothing: float


class Row(TypedDict):
    """A method, in results.csv."""

    method: str
    psnr: float
    evaluations: float
    seconds: float


#: the same for all methods
REGULARIZATION: Regularization = {"dual_convexity": 0.03, "field_convexity": 0.01, "norm": "fair", "smoothing": 0.002}
learned_tv = partial(LearnedTV, convexity=Convexity(dual=0.03, field=0.01), norm="fair", smoothing=0.002)


@dataclass(frozen=True)
class Scale:
    """How much is computed.

    patches, patch_size: to learn from. kernels, size: of the model. budget: evaluations of one training.
    For the sensitivity: ``share`` of this budget, initial accuracies (all with the first step 0.1) and first steps (all
    from the accuracy 1) of MAID; piggyback iterations and steps of Adam (all pairs).
    """

    patches: int
    patch_size: int
    kernels: int
    size: int
    budget: float
    share: float
    accuracies: tuple[float, ...]
    first_steps: tuple[float, ...]
    piggyback: tuple[int, ...]
    steps: tuple[float, ...]


SCALES = {
    "quick": Scale(12, 32, 4, 3, 2500.0, 0.5, (1.0, 1e-1, 1e-2, 1e-3), (0.1,), (10, 100), (1e-3, 1e-2)),
    "paper": Scale(
        20, 48, 4, 7, 30_000.0, 0.5, (1.0, 1e-1, 1e-2, 1e-3), (0.01, 0.1, 1.0), (10, 100), (1e-3, 1e-2, 1e-1)
    ),
}


@dataclass(frozen=True)
class Data:
    """True and noisy patches to learn from, and pictures that are held out, ``(N, 1, height, width)``."""

    x: Tensor
    y: Tensor
    held_x: Tensor
    held_y: Tensor

    def learning(self, model: LearnedTV, iterations: int | None = None) -> SaddleObjective:
        """Minus the mean PSNR of the patches, the lower level solved by accuracy or ``iterations``."""
        return SaddleObjective(
            model, self.x, self.y, NegativePSNR(), PDHG(diagonal=True), Piggyback(None, "cg", iterations)
        )

    def reconstructions(self, model: LearnedTV) -> Tensor:
        """The held-out pictures, denoised, certified to ``ACCURACY``."""
        of = SaddleObjective(model, self.held_x, self.held_y, NegativePSNR(), PDHG(diagonal=True), chunk_size=4)
        return of.image(of.evaluate(Accuracy(ACCURACY, 1.0), None, goal_oriented=False))

    def psnr(self, model: LearnedTV) -> float:
        """The mean PSNR of the held-out pictures."""
        return float(psnr(self.reconstructions(model), self.held_x).mean())


def load(scale: str) -> Data:
    """``quick``: built-in pictures. ``paper``: Kodak pictures in ``$RECON_DATA/kodak_gray_96``, 20 to learn from.

    Raises
    ------
    ValueError
        if they are not there.
    """
    size = SCALES[scale]
    pictures = PatchPictures(size=96, patch_size=size.patch_size, n_patches=size.patches)
    module = DenoisingDataModule(sigma=SIGMA, pictures=pictures, dtype="float32")
    if scale == "paper":
        folder = data_folder("kodak_gray_96")
        pictures = replace(pictures, size=None, limit=20)
        module = DenoisingDataModule(str(folder), "rest", sigma=SIGMA, pictures=pictures, dtype="float32")
    x, y = module.train_tensors()
    module.setup("validate")
    held = [(sample.x, sample.y) for sample in module.val_dataloader()]
    return Data(x, y, torch.cat([a for a, _ in held]), torch.cat([b for _, b in held]))


def results_of(output: Path) -> list[Row]:
    """The methods that are finished."""
    path = output / "results.csv"
    return [
        {
            "method": row["method"],
            "psnr": float(row["psnr"]),
            "evaluations": float(row["evaluations"]),
            "seconds": float(row["seconds"]),
        }
        for row in (read(path) if path.is_file() else [])
    ]


def train(size: Scale, data: Data, output: Path) -> None:
    """Standard TV, non-adaptive and adaptive training: tables, models and an example; see the module."""
    results = results_of(output)
    training: list[Mapping[str, object]] = []
    if (output / "training.csv").is_file():
        training += read(output / "training.csv")
    example = {"true": data.held_x[0], "noisy": data.held_y[0]}
    log_weight = math.nan
    for method in METHODS:
        if any(row["method"] == method for row in results):
            model = saved(output / method)
        else:
            begin, records = time.perf_counter(), []
            if method == "standard":
                model = best_standard(data)
            else:
                model = start(size, log_weight)
                records = learn(data, model, method, size.budget)
            names = ("iteration", "evaluations", "loss", "lower", "upper", "epsilon")
            values = attrgetter(*names)
            training += [{"method": method, **dict(zip(names, values(r), strict=True))} for r in records]
            row: Row = {
                "method": method,
                "psnr": data.psnr(model),
                "evaluations": records[-1].evaluations if records else 0.0,
                "seconds": round(time.perf_counter() - begin, 1),
            }
            results = sorted([*results, row], key=lambda r: list(METHODS).index(r["method"]))
            save_regularizer(model, output / method, {"sigma": SIGMA})
            write_files(
                {output / "results.csv": table(results)}
                | ({output / "training.csv": table(training)} if training else {})
            )
        if method == "standard":
            log_weight = float(model.log_weight.detach())
        example[method] = data.reconstructions(model)[0]
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{k: v.detach().numpy() for k, v in example.items()})
    write_files({output / "example.npz": buffer.getvalue()})
    console = Console()
    for row in results:
        console.print(
            f"{METHODS[row['method']]}: {row['psnr']:.2f} dB, {row['evaluations']:.0f} evaluations, "
            f"{row['seconds']:.0f} s",
            highlight=False,
        )


def saved(path: Path) -> LearnedTV:
    """The model of a finished run.

    Raises
    ------
    ValueError
        if it is of another kind.
    """
    model, _ = load_model(path.with_suffix(".safetensors"))
    if not isinstance(model, LearnedTV):
        raise ValueError(f"{path}: holds {type(model).__name__}, but must hold LearnedTV")
    return model


def start(size: Scale, log_weight: float) -> LearnedTV:
    """What learning starts from: averages, with the best weight of standard TV."""
    return learned_tv(size.kernels, size.size, InitialKernels("averages"), log_weight)


def best_standard(data: Data) -> LearnedTV:
    """Standard TV with the weight that is best for the held-out pictures themselves."""
    best: tuple[float, LearnedTV] | None = None
    for step in range(16):
        model = learned_tv(1, 1, InitialKernels("identity"), -3.0 + 0.1 * step, learn_kernels=False)
        value = data.psnr(model)
        if best is None or value > best[0]:
            best = value, model
    assert best is not None
    return best[1]


def learn(
    data: Data,
    model: LearnedTV,
    method: str,
    budget: float,
    accuracy: float = 1.0,
    step: float | None = None,
    piggyback: int = 100,
) -> list[Record]:
    """Learn by MAID from an initial accuracy, or by Adam with a fixed number of piggyback iterations.

    Stops after the iteration that reaches ``budget`` evaluations.
    """
    optimizer: MAID | InexactAdam
    if method == "adaptive":
        of = data.learning(model)
        optimizer = MAID(of.params, lr=step or 0.1, solution_accuracy=accuracy, adjoint_accuracy=accuracy)
    else:
        of = data.learning(model, piggyback)
        optimizer = InexactAdam(of.params, lr=step or 1e-2, batch_size=len(data.x))
    run = Training(of, optimizer)
    bar = Tqdm(total=round(budget), desc=METHODS[method], leave=False)

    def show(record: Record) -> None:
        bar.update(round(record.evaluations) - bar.n)
        bar.set_postfix_str(f"PSNR {-record.loss:.3f} dB, iteration {record.iteration}")

    run.descend(budget, after=show)
    bar.close()
    return run.records


def sensitivity(size: Scale, data: Data, output: Path) -> None:
    """Final PSNR and evaluations over initial accuracies, steps and numbers of iterations; a row for each run."""
    path = output / "sensitivity.csv"
    earlier = read(path) if path.is_file() else []
    rows: list[Mapping[str, object]] = [*earlier]
    log_weight = float(saved(output / "standard").log_weight.detach())
    runs = [("adaptive", accuracy, 0.1) for accuracy in size.accuracies]
    runs += [("adaptive", 1.0, step) for step in size.first_steps if ("adaptive", 1.0, step) not in runs]
    runs += [("fixed", float(number), step) for number in size.piggyback for step in size.steps]
    done = {(row["method"], float(row["accuracy_or_iterations"]), float(row["step"])) for row in earlier}
    for method, value, step in runs:
        if (method, value, step) in done:
            continue
        model = start(size, log_weight)
        given = {"accuracy": value} if method == "adaptive" else {"piggyback": int(value)}
        row: dict[str, object] = {"method": method, "accuracy_or_iterations": value, "step": step}
        try:
            records = learn(data, model, method, size.share * size.budget, step=step, **given)
            row |= {"psnr": data.psnr(model), "evaluations": records[-1].evaluations}
        except (DivergedError, NotStronglyConvexError):  # nothing certifies that Adam converges
            row |= {"psnr": math.nan, "evaluations": 0.0}
        rows.append(row)
        write_files({path: table(rows)})

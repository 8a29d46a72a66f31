"""Learned discretisations of the total variation: standard TV, fixed numbers of iterations, and MAID.

``run`` writes results.csv (methods), training.csv (their iterations), sensitivity.csv, the models, and example.npz;
``plot`` draws reconstructions.png, filters.png, training.png and sensitivity.png from these.

``quick`` shows that everything runs and how little the initial accuracy matters. Its few patches, of textures, say
nothing of which method is better: the held-out pictures are of another kind, and standard TV gets its weight from them.
"""

from __future__ import annotations

import io
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
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
from recon.commands.output.runs import finite
from recon.commands.output.summary import write_summary
from recon.commands.output.tables import claim, read, table
from recon.files import write_files
from recon.lower_level import PDHG, NotStronglyConvexError
from recon.metrics import psnr
from recon.plotting import COLORS, Panel, busiest_square, comparison_figure, filter_grid, save_figure

SIGMA = 0.1
METHODS = {"standard": "standard TV", "fixed": "non-adaptive", "adaptive": "adaptive"}
#: certified ||u - u^|| of the pictures that PSNRs are computed of
ACCURACY = 0.1
#: the regularization that makes the problem strongly convex and concave, the same for all methods
REGULARIZATION = {"dual_convexity": 0.03, "field_convexity": 0.01, "norm": "fair", "smoothing": 0.002}
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
    source: dict[str, Any] = {}
    pictures = PatchPictures(size=96, patch_size=size.patch_size, n_patches=size.patches)
    if scale == "paper":
        folder = Path(os.environ.get("RECON_DATA", "data")) / "kodak_gray_96"
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; set RECON_DATA to a folder that has kodak_gray_96")
        source = {"train": str(folder), "val": "rest"}
        pictures = replace(pictures, size=None, limit=20)
    module = DenoisingDataModule(sigma=SIGMA, pictures=pictures, dtype="float32", **source)
    x, y = module.train_tensors()
    module.setup("validate")
    held = [(sample.x, sample.y) for sample in module.val_dataloader()]
    return Data(x, y, torch.cat([a for a, _ in held]), torch.cat([b for _, b in held]))


def run(scale: str, output: Path) -> None:
    """Learn, write what the figures show into ``output``, and draw them. Goes on where it was interrupted.

    Raises
    ------
    ValueError
        another scale, no data, or a folder with the results of other settings.
    OSError
        files cannot be written.
    """
    if scale not in SCALES:
        raise ValueError(f"scale is {scale!r}, but must be one of {', '.join(SCALES)}")
    begin, data = time.perf_counter(), load(scale)
    claim(output, {"figure": "tv-discretisation", "scale": scale, **asdict(SCALES[scale]), **REGULARIZATION})
    train(SCALES[scale], data, output)
    sensitivity(SCALES[scale], data, output)
    plot(output)
    rows = read(output / "results.csv")
    means = {row["method"]: finite({key: float(row[key]) for key in ("psnr", "evaluations")}) for row in rows}
    numbers = {"figure": "tv-discretisation", "scale": scale, "methods": means}
    write_summary(output, "reproduce tv-discretisation", time.perf_counter() - begin, "finished", numbers)


def train(size: Scale, data: Data, output: Path) -> None:
    """Standard TV, non-adaptive and adaptive training: tables, models and an example; see the module."""
    results = read(output / "results.csv") if (output / "results.csv").is_file() else []
    training = read(output / "training.csv") if (output / "training.csv").is_file() else []
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
            training += [{"method": method} | {name: getattr(r, name) for name in names} for r in records]
            row: dict[str, Any] = {
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
    arrays: dict[str, Any] = {k: v.detach().numpy() for k, v in example.items()}
    np.savez(buffer, **arrays)
    write_files({output / "example.npz": buffer.getvalue()})
    console = Console()
    for row in results:
        console.print(
            f"{METHODS[row['method']]}: {float(row['psnr']):.2f} dB, {float(row['evaluations']):.0f} evaluations, "
            f"{float(row['seconds']):.0f} s",
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
    rows = read(path) if path.is_file() else []
    log_weight = float(saved(output / "standard").log_weight.detach())
    runs = [("adaptive", accuracy, 0.1) for accuracy in size.accuracies]
    runs += [("adaptive", 1.0, step) for step in size.first_steps if ("adaptive", 1.0, step) not in runs]
    runs += [("fixed", float(number), step) for number in size.piggyback for step in size.steps]
    done = {(row["method"], float(row["accuracy_or_iterations"]), float(row["step"])) for row in rows}
    for method, value, step in runs:
        if (method, value, step) in done:
            continue
        model = start(size, log_weight)
        given = {"accuracy": value} if method == "adaptive" else {"piggyback": int(value)}
        row: dict[str, Any] = {"method": method, "accuracy_or_iterations": value, "step": step}
        try:
            records = learn(data, model, method, size.share * size.budget, step=step, **given)
            row |= {"psnr": data.psnr(model), "evaluations": records[-1].evaluations}
        except (DivergedError, NotStronglyConvexError):  # nothing certifies that Adam converges
            row |= {"psnr": math.nan, "evaluations": 0.0}
        rows.append(row)
        write_files({path: table(rows)})


# --- pictures --------------------------------------------------------------------------------------------------------


def plot(output: Path) -> None:
    """Draw the figures from the files in ``output``.

    Raises
    ------
    ValueError
        if a file is missing.
    """
    missing = [
        name
        for name in ("results.csv", "training.csv", "sensitivity.csv", "example.npz")
        if not (output / name).is_file()
    ]
    if missing:
        raise ValueError(f"{output}: has no {', '.join(missing)}; run without --plot-only first")
    save_figure(_reconstructions(output), output / "reconstructions.png")
    save_figure(_filters(output), output / "filters.png")
    save_figure(_training(read(output / "training.csv")), output / "training.png")
    save_figure(_sensitivity(read(output / "sensitivity.csv")), output / "sensitivity.png")


def _reconstructions(output: Path) -> Figure:
    with np.load(output / "example.npz") as arrays:
        images = {name: torch.from_numpy(arrays[name]) for name in ("noisy", *METHODS, "true")}
    true = images.pop("true")
    panels = [
        Panel(METHODS.get(name, name), image, f"{float(psnr(image[None], true[None])):.2f} dB")
        for name, image in images.items()
    ]
    return comparison_figure([[*panels, Panel("true image", true)]], [busiest_square(true, true.shape[-1] // 4)])


def _filters(output: Path) -> Figure:
    figure = Figure(figsize=(7.5, 2.8), layout="constrained")
    models = {name: saved(output / name) for name in METHODS}
    largest = max(model.size for model in models.values())
    for ax, (name, title) in zip(figure.subplots(1, len(METHODS)), METHODS.items(), strict=True):
        # one size for all: the standard discretisation is a single one in a field of zeros
        margin = (largest - models[name].size) // 2
        kernels = F.pad(models[name].kernels.detach(), [margin] * 4)
        ax.imshow(filter_grid(kernels.flatten(0, 1), kernels.shape[1]), cmap="gray", vmin=0, vmax=1)
        ax.set_title(f"{title}, λ = {float(models[name].log_weight.detach().exp()):.3f}", fontsize=9)
        ax.set(xticks=[], yticks=[])
    return figure


def _training(rows: Sequence[Mapping[str, Any]]) -> Figure:
    figure = Figure(figsize=(4.6, 3.0), layout="constrained")
    ax = figure.subplots()
    for color, method in zip(COLORS, ("fixed", "adaptive"), strict=False):
        own = [row for row in rows if row["method"] == method]
        cost = [float(row["evaluations"]) for row in own]
        ax.plot(cost, [-float(row["loss"]) for row in own], ".-", ms=3, color=color, label=METHODS[method])
    ax.set(xscale="log", xlabel="evaluations per image", ylabel="PSNR of the training patches in dB")
    ax.legend(frameon=False)
    return figure


def _sensitivity(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Final PSNR over steps: a colour for each initial accuracy or number of iterations, a marker for each method."""
    figure = Figure(figsize=(7.0, 3.4), layout="constrained")
    ax = figure.subplots()
    colors = iter(COLORS)
    for method, style in (("adaptive", "o-"), ("fixed", "s--")):
        for value in sorted({float(row["accuracy_or_iterations"]) for row in rows if row["method"] == method}):
            own = [r for r in rows if r["method"] == method and float(r["accuracy_or_iterations"]) == value]
            points = sorted((float(r["step"]), float(r["psnr"])) for r in own)
            label = f"adaptive, ε₀ = {value:g}" if method == "adaptive" else f"non-adaptive, {value:g} iterations"
            diverged = [f"{step:g}" for step, quality in points if not math.isfinite(quality)]
            label += f" (diverged: {', '.join(diverged)})" if diverged else ""
            ax.plot(*zip(*points, strict=True), style, color=next(colors, "#000000"), mfc="none", label=label)
    counts = [float(row["evaluations"]) for row in rows]
    ax.set_title(f"{min(counts):.0f} to {max(counts):.0f} evaluations per image", fontsize=9)
    ax.set(xscale="log", xlabel="first step of MAID, step of Adam", ylabel="PSNR of held-out pictures in dB")
    figure.legend(frameon=False, fontsize=8, loc="outside right upper")
    return figure

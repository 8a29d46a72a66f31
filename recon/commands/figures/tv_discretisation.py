"""Learned discretisations of the total variation: standard TV, fixed numbers of iterations, and MAID.

``run`` writes results.csv (methods), training.csv (their iterations), sensitivity.csv, the models, and example.npz;
``plot`` draws reconstructions.png, filters.png, training.png and sensitivity.png from these.

``quick`` shows that everything runs and how little the initial accuracy matters. Its few patches, of textures, say
nothing of which method is better: the held-out pictures are of another kind, and standard TV gets its weight from them.
"""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm
from rich.console import Console
from torch import Tensor

from datasets import DenoisingDataModule
from models import LearnedTV
from models.storage import load_model, save_regularizer
from recon.bilevel import MAID, Accuracy, InexactAdam, NegativePSNR, Piggyback, Record, SaddleObjective
from recon.files import write_files
from recon.lower_level import PDHG
from recon.metrics import psnr
from recon.plotting import COLORS, Panel, busiest_square, comparison_figure, filter_grid, save_figure

SIGMA = 0.1
METHODS = {"standard": "standard TV", "fixed": "non-adaptive", "adaptive": "adaptive"}
#: certified ||u - u^|| of the pictures that PSNRs are computed of
ACCURACY = 0.1
#: the regularization that makes the problem strongly convex and concave, the same for all methods
REGULARIZATION: dict[str, Any] = {"dual_convexity": 0.1, "field_convexity": 0.02, "smoothing": 0.003}


@dataclass(frozen=True)
class Scale:
    """How much is computed.

    patches, patch_size: to learn from. iterations, fixed_iterations: of MAID, of Adam.
    For the sensitivity: ``share`` of these iterations, initial accuracies and first steps of MAID; piggyback iterations
    and steps of Adam.
    """

    patches: int
    patch_size: int
    kernels: int
    size: int
    iterations: int
    fixed_iterations: int
    share: float
    accuracies: tuple[float, ...]
    first_steps: tuple[float, ...]
    piggyback: tuple[int, ...]
    steps: tuple[float, ...]


SCALES = {
    "quick": Scale(12, 32, 4, 3, 6, 20, 0.5, (1.0, 1e-1, 1e-2, 1e-3), (0.1,), (10, 100), (1e-3, 1e-2)),
    "paper": Scale(
        40, 48, 4, 5, 200, 500, 0.5, (1.0, 1e-1, 1e-2, 1e-3), (0.01, 0.1, 1.0), (10, 100, 1000), (1e-3, 1e-2, 1e-1)
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

    Raises ``ValueError`` if they are not there.
    """
    size = SCALES[scale]
    source: dict[str, Any] = {"size": 96}
    if scale == "paper":
        folder = Path(os.environ.get("RECON_DATA", "data")) / "kodak_gray_96"
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; set RECON_DATA to a folder that has kodak_gray_96")
        source = {"train": str(folder), "limit": 20, "val": "rest"}
    module = DenoisingDataModule(
        sigma=SIGMA, patch_size=size.patch_size, n_patches=size.patches, dtype="float32", **source
    )
    x, y = module.train_tensors()
    module.setup("validate")
    held = [(sample.x, sample.y) for sample in module.val_dataloader()]
    return Data(x, y, torch.cat([a for a, _ in held]), torch.cat([b for _, b in held]))


def run(scale: str, output: Path) -> None:
    """Learn, write what the figures show into ``output``, and draw them.

    Raises:
        ValueError: another scale, or no data.
        OSError: files cannot be written.
    """
    if scale not in SCALES:
        raise ValueError(f"scale is {scale!r}, but must be one of {', '.join(SCALES)}")
    train(scale, output)
    plot(output)


def train(scale: str, output: Path) -> None:
    """Everything that takes time; see the module."""
    size, data = SCALES[scale], load(scale)
    models = {"standard": best_standard(data)}
    training: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = [
        {"method": "standard", "psnr": data.psnr(models["standard"]), "evaluations": 0.0, "seconds": 0.0}
    ]
    log_weight = float(models["standard"].log_weight.detach())
    for method, iterations in (("fixed", size.fixed_iterations), ("adaptive", size.iterations)):
        model = start(size, log_weight)
        begin = time.perf_counter()
        records = learn(data, model, method, iterations)
        seconds = time.perf_counter() - begin
        models[method] = model
        results.append(
            {
                "method": method,
                "psnr": data.psnr(model),
                "evaluations": records[-1].evaluations,
                "seconds": round(seconds, 1),
            }
        )
        names = ("iteration", "evaluations", "loss", "lower", "upper", "epsilon")
        training += [{"method": method} | {name: getattr(r, name) for name in names} for r in records]
        write_files({output / "results.csv": table(results), output / "training.csv": table(training)})
    example = {"true": data.held_x[0], "noisy": data.held_y[0]}
    for name, model in models.items():
        save_regularizer(model, output / name, {"sigma": SIGMA})
        example[name] = data.reconstructions(model)[0]
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {k: v.detach().numpy() for k, v in example.items()}
    np.savez(buffer, **arrays)
    write_files({output / "example.npz": buffer.getvalue()})
    sensitivity(data, size, log_weight, output / "sensitivity.csv")
    console = Console()
    for row in results:
        console.print(
            f"{METHODS[row['method']]}: {row['psnr']:.2f} dB, {row['evaluations']:.0f} evaluations", highlight=False
        )


def start(size: Scale, log_weight: float) -> LearnedTV:
    """What learning starts from: averages, with the best weight of standard TV."""
    return LearnedTV(size.kernels, size.size, "averages", log_weight, **REGULARIZATION)


def best_standard(data: Data) -> LearnedTV:
    """Standard TV with the weight that is best for the held-out pictures themselves."""
    best: tuple[float, LearnedTV] | None = None
    for step in range(16):
        model = LearnedTV(1, 1, "identity", -3.0 + 0.1 * step, learn_kernels=False, **REGULARIZATION)
        value = data.psnr(model)
        if best is None or value > best[0]:
            best = value, model
    assert best is not None
    return best[1]


def learn(
    data: Data,
    model: LearnedTV,
    method: str,
    iterations: int,
    accuracy: float = 1.0,
    step: float | None = None,
    piggyback: int = 100,
) -> list[Record]:
    """Learn by MAID from an initial accuracy, or by Adam with a fixed number of piggyback iterations."""
    optimizer: MAID | InexactAdam
    if method == "adaptive":
        of = data.learning(model)
        optimizer = MAID(of.params, lr=step or 0.1, solution_accuracy=accuracy, adjoint_accuracy=accuracy)
    else:
        of = data.learning(model, piggyback)
        optimizer = InexactAdam(of.params, lr=step or 1e-2, batch_size=len(data.x))
    records: list[Record] = []
    bar = Tqdm(range(iterations), desc=METHODS[method], leave=False)
    for _ in bar:
        records.append(optimizer.step(objective=of))
        bar.set_postfix_str(f"PSNR {-records[-1].loss:.3f} dB, evaluations {records[-1].evaluations:.0f}")
        if records[-1].finished:
            break
    bar.close()
    return records


def sensitivity(data: Data, size: Scale, log_weight: float, path: Path) -> None:
    """Final PSNR and evaluations over initial accuracies, steps and numbers of iterations; a row for each run."""
    rows: list[dict[str, Any]] = []
    adaptive = [("adaptive", accuracy, step) for accuracy in size.accuracies for step in size.first_steps]
    fixed = [("fixed", float(number), step) for number in size.piggyback for step in size.steps]
    for method, value, step in adaptive + fixed:
        model = start(size, log_weight)
        if method == "adaptive":
            records = learn(data, model, method, round(size.share * size.iterations), value, step)
        else:
            count = round(size.share * size.fixed_iterations)
            records = learn(data, model, method, count, step=step, piggyback=int(value))
        rows.append(
            {
                "method": method,
                "accuracy_or_iterations": value,
                "step": step,
                "psnr": data.psnr(model),
                "evaluations": records[-1].evaluations,
            }
        )
        write_files({path: table(rows)})


def table(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """CSV with a line of names."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


# --- pictures --------------------------------------------------------------------------------------------------------


def plot(output: Path) -> None:
    """Draw the figures from the files in ``output``.

    Raises ``ValueError`` if a file is missing.
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


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    return list(csv.DictReader(io.StringIO(path.read_text())))


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
    models: dict[str, LearnedTV] = {}
    for name in METHODS:
        model, _ = load_model(output / f"{name}.safetensors")
        if not isinstance(model, LearnedTV):
            raise ValueError(f"{output / name}: holds {type(model).__name__}, but must hold LearnedTV")
        models[name] = model
    largest = max(model.size for model in models.values())
    for ax, (name, title) in zip(figure.subplots(1, len(METHODS)), METHODS.items(), strict=True):
        # one size for all: the standard discretisation is a single one in a field of zeros
        margin = (largest - models[name].size) // 2
        kernels = F.pad(models[name].kernels.detach(), [margin] * 4)
        ax.imshow(filter_grid(kernels.flatten(0, 1), kernels.shape[1]), cmap="gray", vmin=0, vmax=1)
        ax.set_title(f"{title}, λ = {float(models[name].log_weight.detach().exp()):.3f}", fontsize=9)
        ax.set(xticks=[], yticks=[])
    return figure


def _training(rows: Sequence[Mapping[str, str]]) -> Figure:
    figure = Figure(figsize=(4.6, 3.0), layout="constrained")
    ax = figure.subplots()
    for color, method in zip(COLORS, ("fixed", "adaptive"), strict=False):
        own = [row for row in rows if row["method"] == method]
        cost = [float(row["evaluations"]) for row in own]
        ax.plot(cost, [-float(row["loss"]) for row in own], ".-", ms=3, color=color, label=METHODS[method])
    ax.set(xscale="log", xlabel="evaluations per image", ylabel="PSNR of the training patches in dB")
    ax.legend(frameon=False)
    return figure


def _sensitivity(rows: Sequence[Mapping[str, str]]) -> Figure:
    """Final PSNR against evaluations: a colour for each accuracy or number of iterations, a marker for each method."""
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    ax = figure.subplots()
    for method, marker in (("fixed", "s"), ("adaptive", "o")):
        values = sorted({float(row["accuracy_or_iterations"]) for row in rows if row["method"] == method})
        for color, value in zip(COLORS, values, strict=False):
            own = [r for r in rows if r["method"] == method and float(r["accuracy_or_iterations"]) == value]
            label = f"adaptive, ε₀ = {value:g}" if method == "adaptive" else f"{value:g} iterations"
            cost, quality = ([float(r[k]) for r in own] for k in ("evaluations", "psnr"))
            ax.plot(cost, quality, marker, color=color, mfc=color if method == "adaptive" else "none", label=label)
            for r, a, b in zip(own, cost, quality, strict=True):
                ax.annotate(f"{float(r['step']):g}", (a, b), xytext=(3, 3), textcoords="offset points", fontsize=6)
    ax.set(xscale="log", xlabel="evaluations per image (numbers: steps)", ylabel="PSNR of held-out pictures in dB")
    figure.legend(frameon=False, fontsize=8, loc="outside right upper")
    return figure

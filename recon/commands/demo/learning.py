"""What ``recon demo`` learns, denoises and draws."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor

from datasets import DenoisingDataModule, PatchPictures
from models import FieldsOfExperts, TotalVariation
from models.files.storage import save_regularizer
from models.regularizers.ridge import RidgeRegularizer
from models.training.bilevel import BilevelModule
from models.training.callbacks import IterationProgress
from recon.bilevel import MAID, Record
from recon.commands.fit.quiet import quiet
from recon.commands.output.summary import write_summary
from recon.lower_level import Grade, Regularizer
from recon.metrics import psnr, ssim
from recon.plotting.figures import comparison_figure, filters_figure, save_figure, training_figure
from recon.plotting.panels import Panel, busiest_square

SIGMA = 0.1
#: certified ||x - x^|| of the denoised pictures, over the whole picture
ACCURACY = 1e-2


@dataclass(frozen=True)
class Size:
    """How much is computed: training patches, side of the pictures, filters of the FoE, iterations of MAID."""

    patches: int = 64
    patch_size: int = 48
    picture_size: int = 256
    filters: int = 24
    filter_size: int = 5
    tv_iterations: int = 8
    foe_iterations: int = 42


QUICK = Size(patches=4, patch_size=24, picture_size=48, filters=4, filter_size=3, tv_iterations=2, foe_iterations=3)


@dataclass
class Run:
    """A regularizer, the records of its training, and how it denoised the test pictures."""

    name: str
    module: BilevelModule
    iterations: int
    records: list[Record] = field(default_factory=list)
    seconds: float = 0.0
    images: list[Tensor] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    grade: Grade = Grade.PROVED


@dataclass(frozen=True)
class TestPicture:
    """A picture that was not trained on, and its noisy version, both ``(1, channel, height, width)``."""

    name: str
    x: Tensor
    y: Tensor


class KeepRecords(pl.Callback):
    """Appends the record of every upper-level iteration to a list."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if isinstance(pl_module, BilevelModule) and pl_module.record is not None:
            self.records.append(pl_module.record)


def run(size: Size, output: Path) -> int:
    """Learn, denoise, draw; returns 0 if every picture is certified to the accuracy, else 1.

    Raises
    ------
    OSError
        the output cannot be written.
    """
    quiet()
    start = time.perf_counter()
    pictures = PatchPictures(size=size.picture_size, patch_size=size.patch_size, n_patches=size.patches)
    data = DenoisingDataModule(sigma=SIGMA, pictures=pictures, dtype="float32")
    tested = [
        TestPicture(name, sample.x, sample.y)
        for name, sample in zip(data.names("test"), data.test_dataloader(), strict=True)
    ]
    console = Console()
    runs = _runs(size)
    for run in runs:
        console.print(f"Learning {type(run.module.regularizer).__name__} from {size.patches} patches", highlight=False)
        learn(run, data)
        save_regularizer(run.module.regularizer, output / run.name.lower(), _metadata(run, size))
        denoise(run, tested)
    save_figure(_denoising_picture(runs, tested), output / "denoising.png")
    save_figure(training_figure({run.name: run.records for run in runs}), output / "training.png")
    save_figure(_filters_picture(runs[-1].module.regularizer), output / "filters.png")
    images, seconds = measure(runs, tested), time.perf_counter() - start
    missed = max(max(run.errors) for run in runs) > ACCURACY
    status = "accuracy not reached" if missed else "finished"
    write_summary(output, "demo", seconds, status, summarize(runs, images))
    console.print(_table(runs, images))
    console.print(f"{seconds:.0f} seconds; pictures, table and regularizers are in {output}")
    if missed:
        print(f"recon demo: a picture was not solved to the accuracy {ACCURACY:g}", file=sys.stderr)
        return 1
    return 0


def _runs(size: Size) -> list[Run]:
    # rho = 1/2: denoising stays 1/2-strongly convex, hence certified, and edges are kept better than by a convex R
    experts = FieldsOfExperts(size.filters, size.filter_size, log_width=-4.0, smallest_width=0.01, weak_convexity=0.5)
    return [
        Run("TV", BilevelModule(TotalVariation(), partial(MAID, lr=1.0, tolerance=0.02)), size.tv_iterations),
        Run("FoE", BilevelModule(experts, partial(MAID, tolerance=0.02), chunk_size=16), size.foe_iterations),
    ]


def learn(run: Run, data: DenoisingDataModule) -> None:
    """Learn the parameters of the regularizer; adds the records and the seconds to ``run``."""
    trainer = pl.Trainer(
        max_epochs=run.iterations,  # an epoch is one upper-level iteration on all patches
        accelerator="cpu",
        callbacks=[IterationProgress(), KeepRecords(run.records)],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    start = time.perf_counter()
    trainer.fit(run.module, datamodule=data)
    run.seconds = time.perf_counter() - start


def _metadata(run: Run, size: Size) -> dict[str, object]:
    """What is kept with a regularizer: the problem it was learned for, the data, and how far the training came."""
    last = run.records[-1]
    return {
        "operator": "Identity",
        "fidelity": "SquaredL2",
        "mu": 0.0,
        "sigma": SIGMA,
        "data": {"images": "scikit-image", "patches": size.patches, "patch_size": size.patch_size},
        "training": {
            "method": "MAID",
            "iterations": last.iteration,
            "evaluations": last.evaluations,
            "loss": last.loss,
            "lower": last.lower,
            "upper": last.upper,
        },
    }


def denoise(run: Run, pictures: Sequence[TestPicture]) -> None:
    """Denoise the pictures; adds the results and their certified errors to ``run``.

    In float64, which leaves no doubt that the accuracy can be reached; training is content with float32.
    """
    run.module.double()
    run.module.reconstruction_accuracy = ACCURACY
    for picture in pictures:
        result = run.module.reconstruct(picture.y.double())
        run.images.append(result.x)
        run.errors.append(float(result.error[0]))
        run.grade = max(run.grade, Grade(int(result.grade[0])))


def measure(runs: Sequence[Run], pictures: Sequence[TestPicture]) -> dict[str, dict[str, float]]:
    """PSNR and SSIM of every picture, by its name, of the data and of all runs: ``psnr_noisy``, ``ssim_tv``, ..."""
    candidates = {"noisy": [p.y for p in pictures]} | {run.name.lower(): run.images for run in runs}
    images: dict[str, dict[str, float]] = {p.name: {} for p in pictures}
    for name, results in candidates.items():
        for picture, x in zip(pictures, results, strict=True):
            images[picture.name][f"psnr_{name}"] = round(float(psnr(x, picture.x)), 3)
            images[picture.name][f"ssim_{name}"] = round(float(ssim(x, picture.x)), 4)
    return images


def means(images: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Of what was measured, over the pictures."""
    keys = next(iter(images.values()))
    return {key: round(sum(v[key] for v in images.values()) / len(images), 4) for key in keys}


def summarize(runs: Sequence[Run], images: Mapping[str, Mapping[str, float]]) -> dict[str, object]:
    """The numbers of ``summary.json``: means over the pictures, the cost and the certificates, and every picture."""
    summary: dict[str, object] = {**means(images)}
    for run in runs:
        last, name = run.records[-1], run.name.lower()
        summary |= {
            f"iterations_{name}": last.iteration,
            f"evaluations_{name}": round(last.evaluations, 1),
            f"seconds_{name}": round(run.seconds, 2),
            f"loss_{name}": {
                "value": last.loss,
                "lower": last.lower,
                "upper": last.upper,
                "grade": Grade(last.grade).word,
            },
            f"certified_error_{name}": max(run.errors),
            f"grade_{name}": run.grade.word,
        }
    summary["evaluations"] = round(sum(run.records[-1].evaluations for run in runs), 1)
    summary["certified_error"] = max(max(run.errors) for run in runs)
    return summary | {"sigma": SIGMA, "images": images}


def _denoising_picture(runs: Sequence[Run], pictures: Sequence[TestPicture]) -> Figure:
    rows, zooms = [], []
    for i, picture in enumerate(pictures):
        shown = [("noisy", picture.y), *((run.name, run.images[i]) for run in runs)]
        row = [Panel(title, x[0], f"{float(psnr(x, picture.x)):.2f} dB") for title, x in shown]
        rows.append([*row, Panel("true image", picture.x[0], picture.name)])
        zooms.append(busiest_square(picture.x[0], picture.x.shape[-1] // 5))
    return comparison_figure(rows, zooms)


@torch.no_grad()
def _filters_picture(regularizer: Regularizer) -> Figure:
    assert isinstance(regularizer, RidgeRegularizer)
    kernels, *profile = regularizer.current()
    u = torch.linspace(-0.5, 0.5, 401, dtype=kernels.dtype)
    norms = kernels.flatten(1).norm(dim=1, keepdim=True)
    potentials = regularizer.value(norms * u, profile)
    return filters_figure(kernels, u, potentials, order=potentials[:, -1].argsort(descending=True))


def _table(runs: Sequence[Run], images: Mapping[str, Mapping[str, float]]) -> Table:
    names = ["noisy", *(run.name.lower() for run in runs)]
    table = Table(title=f"Denoising, σ = {SIGMA}: PSNR in dB (SSIM)")
    table.add_column("image")
    for title in ("noisy", *(run.name for run in runs)):
        table.add_column(title, justify="right")
    for image, values in {**images, "mean": means(images)}.items():
        if image == "mean":
            table.add_section()
        table.add_row(image, *(f"{values[f'psnr_{n}']:.2f} ({values[f'ssim_{n}']:.3f})" for n in names))
    table.add_section()
    table.add_row("certified ‖x − x̂‖ ≤", "", *(f"{max(run.errors):.1e}" for run in runs))
    table.add_row("which is", "", *(run.grade.word for run in runs))
    table.add_row("iterations", "", *(f"{run.records[-1].iteration}" for run in runs))
    table.add_row("evaluations", "", *(f"{run.records[-1].evaluations:.0f}" for run in runs))
    table.add_row("seconds of training", "", *(f"{run.seconds:.1f}" for run in runs))
    return table

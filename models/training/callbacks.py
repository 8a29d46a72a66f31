"""What training shows and leaves behind: progress, pictures, checkpoints, predictions."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib.backends.backend_agg  # noqa: F401  # native code that loads in mid-training loses an interrupt
import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import Callback, Checkpoint, ProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from models.regularizers.ridge import RidgeRegularizer
from models.saddle_points.learned_tv import LearnedTV
from models.training.module import Prediction, ReconstructionModule
from models.training.supervised import SupervisedModule
from recon.bilevel import CertifiedProposals, Record
from recon.errors import at_least
from recon.files import write_files
from recon.plotting.figures import figure_bytes, filter_grid, filters_figure


class LastCheckpoint(Checkpoint):
    """Writes ``path`` after every n-th epoch and after the last, when everything is logged.

    An epoch is an iteration of an upper-level method, or a pass through the training set. At the end of an epoch, so
    that a resumed run starts with a whole one.
    """

    def __init__(self, path: str | Path, every_n_iterations: int = 1) -> None:
        at_least(1, every_n_iterations=every_n_iterations)
        self.path, self.every_n_iterations = Path(path), every_n_iterations
        self._written = -1

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if (trainer.current_epoch + 1) % self.every_n_iterations == 0 and trainer.global_step > 0:
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._written != trainer.global_step and trainer.global_step > 0:
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self._written = trainer.global_step


class IterationProgress(ProgressBar):
    """One line for the whole training: iterations, and what the module says about the last one.

    Between two checks of :class:`recon.bilevel.CertifiedProposals`, what its proposer does.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bar: Tqdm | None = None
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        limits = [n for n in (trainer.max_steps, trainer.max_epochs) if n is not None and n > 0]
        total = min(limits) if limits else None
        if isinstance(pl_module, SupervisedModule):  # many steps in an epoch
            total = pl_module.steps
        self._bar = Tqdm(
            total=total,
            initial=trainer.global_step,
            desc="fit",
            unit="it",
            disable=not self._enabled,
            dynamic_ncols=True,
        )
        for method in trainer.optimizers:
            if isinstance(method, CertifiedProposals):
                method.listener = self._proposed

    def _proposed(self, record: Record) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(f"proposing: loss {record.loss:.5g}, evaluations {record.evaluations:.0f}")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if self._bar is None:
            return
        if isinstance(pl_module, ReconstructionModule):
            self._bar.set_postfix_str(pl_module.progress(), refresh=False)
        self._bar.update(trainer.global_step - self._bar.n)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        """``_proposed`` does nothing from here."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class ImageLogger(Callback):
    """After every validation: reconstructions (true image, data, reconstruction), learned filters with their profiles.

    PNG files in the folder ``images`` of the first logger, overwritten every time, and the same in TensorBoard.

    Parameters
    ----------
    images
        number of reconstructions, the first of the validation set.
    """

    def __init__(self, images: int = 4) -> None:
        at_least(0, images=images)
        self.images = images
        self._shown = 0

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._shown = 0

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: Sequence[Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.sanity_checking or not isinstance(outputs, Prediction):
            return
        assert isinstance(pl_module, ReconstructionModule)  # what makes reconstructions
        target, x, data = pl_module.display(batch[0]), pl_module.display(outputs.x), batch[1]
        for i in range(min(len(target), self.images - self._shown)):
            row = [target[i], data[i], x[i]] if data.shape == target.shape else [target[i], x[i]]
            self._write(trainer, f"reconstruction_{self._shown}", to_pixels(torch.cat(row, dim=-1)))
            self._shown += 1

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or not isinstance(pl_module, ReconstructionModule):
            return
        regularizer = pl_module.learned
        if isinstance(regularizer, RidgeRegularizer):
            self._write(trainer, "filters", draw_filters(regularizer))
        elif isinstance(regularizer, LearnedTV):
            kernels = regularizer.kernels.detach()
            grid = filter_grid(kernels.flatten(0, 1), kernels.shape[1])  # a row for each component
            pixels = to_pixels(torch.from_numpy(grid)[None])
            self._write(trainer, "filters", np.kron(pixels, np.ones((12, 12), np.uint8)))

    def _write(self, trainer: pl.Trainer, name: str, pixels: np.ndarray) -> None:
        if trainer.log_dir is not None:
            write_files({Path(trainer.log_dir) / "images" / f"{name}.png": pixels})
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                layout = "HW" if pixels.ndim == 2 else "HWC"
                logger.experiment.add_image(name, pixels, trainer.global_step, dataformats=layout)


class PredictionWriter(Callback):
    """Writes every reconstruction of ``recon predict`` as ``.npy`` (float data) and ``.png`` (clipped to [0, 1])."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Prediction,
        batch: Sequence[Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(pl_module, ReconstructionModule)
        names = getattr(trainer.datamodule, "names", None)  # type: ignore[attr-defined]
        known = list(names("predict")) if names is not None else []
        for image, index in zip(outputs.x, batch[-1].tolist(), strict=True):
            label = f"{index:03d}" + (f"_{Path(known[index]).stem}" if index < len(known) else "")
            picture = to_pixels(pl_module.display(image[None])[0])
            write_files({self.folder / f"{label}.npy": image.cpu().numpy(), self.folder / f"{label}.png": picture})


def to_pixels(image: Tensor) -> np.ndarray:
    """(channels, H, W) with values in [0, 1], others clipped, to 8 bits: (H, W), or (H, W, 3) for three channels."""
    pixels = (255 * image.detach().cpu().double().clamp(0, 1)).round().to(torch.uint8)
    return (pixels.permute(1, 2, 0) if len(pixels) == 3 else pixels[0]).numpy()


@torch.no_grad()
def profile_curves(regularizer: RidgeRegularizer, u: torch.Tensor) -> torch.Tensor:
    """psi_k(u), ``(K, points)``; of filters in groups where the other responses of the group are zero."""
    kernels, *profile = (t.detach().cpu() for t in regularizer.current())
    curves = torch.zeros(len(kernels), len(u), dtype=u.dtype)
    for place in range(regularizer.group):
        responses = torch.zeros(1, *curves.shape, dtype=u.dtype)
        responses[:, place :: regularizer.group] = u
        curves[place :: regularizer.group] = regularizer.value(responses, profile)[0]
    return curves


def draw_filters(regularizer: RidgeRegularizer, width: float = 0.5) -> np.ndarray:
    """Filters c_k and profiles psi_k(u), |u| <= ``width``, as a picture (H, W, 3) of 8 bits."""
    kernels = regularizer.current()[0].detach().cpu()
    if regularizer.in_channels not in (1, 3):
        kernels = kernels.movedim(1, 2).flatten(2)  # channels that are no colours, side by side
    u = torch.linspace(-width, width, 401, dtype=kernels.dtype)
    picture = figure_bytes(filters_figure(kernels, u, profile_curves(regularizer, u)), dpi=100)
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))

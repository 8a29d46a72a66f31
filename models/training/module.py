"""What all Lightning modules of this project share: checkpoints of one problem; reconstruction, and its measures."""

from __future__ import annotations

import copy
import logging
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple, TypedDict

import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import OptimizerCallable
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from models.files.checkpoints import CheckpointError, describe, difference
from models.files.storage import specification
from models.training.precision import cast
from recon import metrics
from recon.lower_level import Regularizer, SaddleModel, Solution, Status
from recon.names import public_name
from recon.operators import Identity, LinearOperator
from recon.reconstruction import Data, Method, Reconstructor, Request

log = logging.getLogger(__name__)

#: of these the largest counts, of PSNR and SSIM the mean
LARGEST = ("error", "grade")


class Belongings(TypedDict, total=False):
    """What a checkpoint belongs to, from the first iteration on."""

    problem: dict[str, object]
    data: str
    objective: dict[str, float]
    record: dict[str, float | str] | None


class Prediction(NamedTuple):
    """x: reconstructions, ``(batch, channel, height, width)``; error: certified ||x - x^|| per image, float64.

    status, rounding and grade as in :class:`recon.lower_level.Solution`. The error is infinite, and the status
    ``CONVERGED``, where nothing is minimized and so nothing is certified.
    """

    x: Tensor
    error: Tensor
    status: Tensor
    rounding: Tensor
    grade: Tensor

    @classmethod
    def of(cls, solution: Solution) -> Prediction:
        """What is shown of a solution."""
        return cls(solution.x, solution.error, solution.status, solution.rounding, solution.grade)


def batch_weights(batch: tuple[Tensor, ...]) -> Tensor | None:
    """The field ``weights`` of a batch, of the shape of its data y; None if it has none."""
    return getattr(batch, "weights", None)


class ReconstructionModule(pl.LightningModule):
    """The part that does not depend on what is learned. Subclasses learn, and implement what is abstract here.

    A training needs the whole training set as one batch, which must be the same in every epoch. The module takes over
    the operator and the floating-point type (attributes ``operator``, ``dtype``) of the data module. Batches are
    ``(x, y, index)``, and ``(y, index)`` in prediction. A field ``sigma`` is the standard deviation of the noise of
    each image, for regularizers that depend on it. A batch with a field ``weights`` of the shape of y says how
    much each of its data counts: 0 where nothing was measured and y only stands in for it.
    """

    #: certified ||x - x^|| of the reconstructions, for what certifies
    reconstruction_accuracy: float | None = None
    #: the attribute that holds what is learned, and the entry of checkpoints that says what they belong to
    _part: str
    _entry: str
    #: what helps where the whole training set is too much
    _remedy: str

    def __init__(self, optimizer: OptimizerCallable, operator: LinearOperator | None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.make_optimizer, self.operator = optimizer, operator
        self.validated_iteration: int | None = None
        self._values: dict[str, list[Tensor]] = {}
        self._method: dict[str, object] = {}
        self._resumed: Belongings | None = None

    # --- what subclasses say -----------------------------------------------------------------------------------------

    @abstractmethod
    def method(self, problem: Data) -> Method:
        """How the data of a problem are reconstructed with what is learned."""

    @property
    @abstractmethod
    def iteration(self) -> int | None:
        """Iterations of the training so far, the abscissa of the logs; None if nothing was trained in this process."""

    @property
    @abstractmethod
    def learned(self) -> Regularizer | SaddleModel | Reconstructor:
        """What is learned, and written to a file after the training."""

    @abstractmethod
    def _problem(self) -> dict[str, object]:
        """Everything beside the model and the data that decides which numbers the next iteration produces."""

    @abstractmethod
    def _belongs_to(self) -> Belongings:
        """What a checkpoint belongs to; nothing before the first iteration."""

    @abstractmethod
    def progress(self) -> str:
        """The last iteration in one line."""

    @abstractmethod
    def summary(self) -> dict[str, object]:
        """The outcome of the training: status, iterations, loss, ..."""

    # --- set-up ------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Take over the operator and the floating-point type of the data module, before any checkpoint is read."""
        if self.trainer.world_size > 1:
            raise ValueError(f"one process must see all data, not {self.trainer.world_size}; set devices to 1")
        datamodule = self._datamodule
        operator = getattr(datamodule, "operator", None)
        if self.operator is None and operator is not None:
            if not isinstance(operator, LinearOperator):
                raise ValueError(
                    f"the operator of the data, {public_name(operator)}, is no recon.operators.LinearOperator; "
                    "give the model an operator of that kind that fits it"
                )
            # the data module measures on the CPU; its operator must not move to the accelerator with this module
            self.operator = copy.deepcopy(operator)
        dtype = getattr(datamodule, "dtype", None)
        if isinstance(dtype, torch.dtype):
            cast(self, dtype)

    @property
    def _datamodule(self) -> pl.LightningDataModule | None:
        """The data module; None for data that come by loaders alone."""
        found = getattr(self.trainer, "datamodule", None)
        return found if isinstance(found, pl.LightningDataModule) else None

    def noise_level(self, batch: tuple[Tensor, ...]) -> Tensor | float | None:
        """Standard deviation of the noise: of every image of the batch, or of all data of the data module, if known."""
        levels: Tensor | None = getattr(batch, "sigma", None)
        datamodule = None if self._trainer is None else self._datamodule
        return getattr(datamodule, "noise_level", None) if levels is None else levels

    @property
    def _operator(self) -> LinearOperator:
        return self.operator if self.operator is not None else Identity()

    # --- training ----------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer of theta."""
        params = self.learned.trainable()
        if not params:
            raise ValueError(f"{public_name(self.learned)} has no trainable parameter: nothing can be learned")
        optimizer = self.make_optimizer(params)
        # what was configured: the parameter groups change as methods adapt themselves
        kinds = (bool, int, float, str, dict, type(None))
        plain = {k: v for k, v in optimizer.defaults.items() if isinstance(v, kinds)}
        self._method = {"class": public_name(optimizer), **plain}
        return optimizer

    def _check_loader(self) -> None:
        batches = self.trainer.num_training_batches
        if batches != 1:
            raise ValueError(
                f"the whole training set must come as one batch, but the data come in {batches} batches; set "
                f"batch_size of the data to null, and {self._remedy}"
            )

    def _check_data(self, found: str) -> None:
        """Refuse other training data than those of the checkpoint that the training goes on from."""
        if self._resumed is not None and self._resumed["data"] != found:
            raise CheckpointError(
                f"{self._checkpoint_name}: belongs to other training data (or other noise) than these; "
                "resume with the data, noise and seed it was made with"
            )

    # --- reconstruction ----------------------------------------------------------------------------------------------

    @property
    def nonnegative(self) -> bool:
        """Whether reconstructions minimize over x >= 0."""
        return False

    def problem(self, y: Tensor, weights: Tensor | None = None, sigma: Tensor | float | None = None) -> Data:
        """Data y with what is known of them."""
        return Data(y=y, operator=self._operator, weights=weights, sigma=sigma)

    @torch.no_grad()
    def reconstruct(self, y: Tensor, weights: Tensor | None = None, sigma: Tensor | float | None = None) -> Prediction:
        """Images of data y, with certified errors where something is certified.

        Parameters
        ----------
        y : Tensor
            ``(batch, *range_shape)``.
        weights : Tensor, optional
            Of the same shape, >= 0, where not all data count 1. What does not compare Ax with y, such as networks,
            takes y as it is.
        sigma : Tensor or float, optional
            Standard deviation of the noise, image by image or of all, for what depends on it.

        Raises
        ------
        ValueError
            y is not data for the operator or the fidelity, which may know no weights, or nothing can be certified.
        """
        problem = self.problem(y, weights, sigma)
        request = Request(self.reconstruction_accuracy, nonnegative=self.nonnegative)
        made = self.method(problem).reconstruct(problem, request)
        if made.certifies:
            self._warn(made.solution.status)
        return Prediction.of(made.solution)

    def _warn(self, status: Tensor) -> None:
        """Warn of images that did not reach their accuracy."""
        worst = Status(int(status.max()))
        if worst is not Status.CONVERGED:
            reason = worst.name.lower().replace("_", " ")
            log.warning("accuracy %g was not reached (%s)", self.reconstruction_accuracy, reason)

    def display(self, x: Tensor) -> Tensor:
        """Images as people look at them, see :meth:`recon.operators.LinearOperator.display`."""
        return x if self.operator is None else self.operator.display(x)

    def forward(self, y: Tensor) -> Tensor:
        """The reconstructions of data y."""
        return self.reconstruct(y).x

    def validation_step(  # type: ignore[override]  # callbacks get the whole reconstruction
        self, batch: tuple[Tensor, Tensor, Tensor], batch_index: int
    ) -> Prediction:
        """Reconstruct, and note PSNR, SSIM (of magnitudes where images are complex), certified error and grade."""
        result = self.reconstruct(batch[1], batch_weights(batch), self.noise_level(batch))
        x, target = self.display(result.x), self.display(batch[0])
        values = {"psnr": metrics.psnr(x, target), "ssim": metrics.ssim(x, target)}
        values |= {"error": result.error, "grade": result.grade}
        for name, value in values.items():
            self._values.setdefault(name, []).append(value.double())
        return result

    test_step = validation_step  # type: ignore[assignment]

    def predict_step(self, batch: tuple[Tensor, ...], batch_index: int) -> Prediction:
        """Reconstruct; ``batch`` is (y, index), (y, weights, index) or (y, index, sigma)."""
        return self.reconstruct(batch[0], batch_weights(batch), self.noise_level(batch))

    def on_validation_epoch_end(self) -> None:
        """Log ``val_psnr``, ``val_ssim`` (means over the images), ``val_error`` and ``val_grade`` (maxima)."""
        self._summarize("val")
        self.validated_iteration = self.iteration

    def on_test_epoch_end(self) -> None:
        """Log ``test_psnr``, ``test_ssim``, ``test_error`` and ``test_grade``."""
        self._summarize("test")

    def _summarize(self, stage: str) -> None:
        values = {name: torch.cat(parts) for name, parts in self._values.items()}
        self._values = {}
        summary = {f"{stage}_{k}": v.max() if k in LARGEST else v.mean() for k, v in values.items()}
        for name, value in summary.items():
            self.log(name, value, logger=False)
        self._to_loggers({name: float(value) for name, value in summary.items()})

    def _to_loggers(self, values: dict[str, float]) -> None:
        """To all loggers as Python numbers: ``self.log`` would round them to float32. The abscissa is the iteration."""
        if self.trainer.sanity_checking:
            return
        step = self.iteration if self.iteration is not None else self.trainer.global_step
        for logger in self.trainer.loggers:
            logger.log_metrics(values, step=step)

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the checkpoint belongs to; parameters of what is learned only, operators can be large."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if k.startswith(f"{self._part}.")}
        checkpoint[self._entry] = {
            self._part: describe(self.learned),
            "specification": specification(self.learned),
            **self._belongs_to(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse checkpoints of another model; remember the rest until the data are there."""
        saved = checkpoint.get(self._entry)
        if saved is None:
            raise CheckpointError(f"{self._checkpoint_name}: not a checkpoint of {public_name(self)}")
        self._check_learned(saved[self._part])
        for name, value in self.state_dict().items():
            checkpoint["state_dict"].setdefault(name, value)
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            if "problem" not in saved:
                raise CheckpointError(f"{self._checkpoint_name}: was written before the first iteration; start anew")
            self._resumed = saved

    def _check_learned(self, saved: dict[str, object]) -> None:
        self._require(self._part, saved, describe(self.learned))

    @property
    def _checkpoint_name(self) -> str:
        path = self.trainer.ckpt_path if self._trainer is not None else None
        return str(path) if path else "the checkpoint"

    def _require(self, what: str, saved: Mapping[str, object], current: Mapping[str, object]) -> None:
        found = difference(saved, current, what if what != "problem" else "")
        if found:
            raise CheckpointError(f"{self._checkpoint_name}: belongs to another {what}: {found}")

"""Training of whatever an upper-level method can descend on, with its checkpoints and logs, in Lightning."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from models.files.checkpoints import CheckpointError, checksum, describe
from models.files.storage import specification
from models.training.module import ReconstructionModule, batch_weights
from recon.bilevel import Objective, Record
from recon.bilevel.methods.older import current_method
from recon.errors import positive
from recon.lower_level import Grade, Recreatable, Regularizer, SaddleModel
from recon.names import public_name
from recon.operators import Identity, LinearOperator

log = logging.getLogger(__name__)


class UpperLevelModule(ReconstructionModule):
    """Learns the parameters of a model by an upper-level method. Subclasses say what it minimizes, and reconstruct.

    One training step is one upper-level iteration on the whole training set, which the data loader serves as one
    batch ``(x, y, index)`` and which must be the same in every epoch: descent is certified for one fixed objective.
    The module takes over the floating-point type of the data module (its attribute ``dtype``).

    Parameters
    ----------
    regularizer : Regularizer or SaddleModel
        What is learned are its trainable parameters.
    optimizer : callable
        The upper-level method: parameters -> an optimizer whose ``step(objective=...)`` makes one iteration, returns a
        :class:`recon.bilevel.Record`, and keeps all that a resumed run needs in its ``state_dict()``.
    operator : LinearOperator, optional
        A; by default a copy of the data module's, or the identity.
    reconstruction_accuracy : float
        Certified ||x - x^|| of the reconstructions in validation, test and prediction.

    Raises
    ------
    ValueError
        A number is out of range; in training, data that do not fit, or a loader with more than one batch.
    CheckpointError
        (A ValueError) a checkpoint of another model or, in training, of another problem.
    """

    regularizer: Regularizer | SaddleModel
    #: what arguments were before they existed, for the problem of older checkpoints
    _older_problem: dict[str, Any] = {}  # noqa: RUF012

    def __init__(
        self,
        regularizer: Regularizer | SaddleModel,
        optimizer: OptimizerCallable,
        operator: LinearOperator | None,
        reconstruction_accuracy: float,
    ) -> None:
        super().__init__()
        positive(reconstruction_accuracy=reconstruction_accuracy)
        self.automatic_optimization = False
        self.regularizer, self.make_optimizer, self.operator = regularizer, optimizer, operator
        self.reconstruction_accuracy = reconstruction_accuracy
        self.objective: Objective | None = None
        self.record: Record | None = None
        self._method: dict[str, Any] = {}
        self._checksum: str | None = None
        self._weights: Tensor | None = None
        self._resumed: dict[str, Any] | None = None

    # --- what subclasses say -----------------------------------------------------------------------------------------

    @abstractmethod
    def _objective(self, x: Tensor, y: Tensor) -> Objective:
        """The learning problem of true images x and data y."""

    def _problem(self) -> dict[str, Any]:
        """Everything beside the model and the data that decides which numbers the next iteration produces."""
        return {
            "optimizer": self._method,
            "operator": describe(self.operator if self.operator is not None else Identity()),
            "dtype": str(next(self.regularizer.parameters()).dtype),
        }

    def metadata(self) -> dict[str, Any]:
        """What the files of the trained model say beside it, for whoever reconstructs with it."""
        return {}

    # --- training ----------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The upper-level method on theta."""
        params = self.regularizer.trainable()
        if not params:
            raise ValueError(f"{public_name(self.regularizer)} has no trainable parameter: nothing can be learned")
        optimizer = self.make_optimizer(params)
        # what was configured: the parameter groups change as the method adapts itself
        kinds = (bool, int, float, str, dict, type(None))
        plain = {k: v for k, v in optimizer.defaults.items() if isinstance(v, kinds)}
        self._method = {"class": public_name(optimizer), **plain}
        return optimizer

    def on_fit_start(self) -> None:
        """Refuse a checkpoint of another problem before its state reaches the optimizer."""
        if self._resumed is not None:
            saved = self._older_problem | self._resumed["problem"]
            saved |= {"optimizer": current_method(saved["optimizer"], self._method)}
            self._require("problem", saved, self._problem())

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_index: int) -> None:
        """One upper-level iteration; ``batch`` is the whole training set."""
        if self.objective is None:
            self.objective = self._start(batch)
        record = self.optimizers().step(objective=self.objective)  # type: ignore[union-attr]
        self.record = record
        for name, value in {"loss": record.loss, "lower": record.lower, "upper": record.upper}.items():
            # in float64 and for callbacks only: the loggers get the record itself below
            self.log(name, torch.tensor(value, dtype=torch.float64), logger=False, on_step=True, on_epoch=False)
        self._to_loggers(record_values(record))
        if record.finished:
            self.trainer.should_stop = True
            log.info("stopped after iteration %d: %s", record.iteration, record.progress.value)

    def _start(self, batch: tuple[Tensor, Tensor, Tensor]) -> Objective:
        batches = self.trainer.num_training_batches
        if batches != 1:
            raise ValueError(
                f"an upper-level iteration needs the whole training set, but the data come in {batches} batches; "
                "set batch_size of the data to null, and chunk_size of the model to save memory"
            )
        x, y = batch[0], batch[1]
        dtypes = {p.dtype for p in self.regularizer.parameters()}
        if dtypes != {x.dtype}:
            raise ValueError(
                f"the data are {x.dtype}, but the regularizer is {', '.join(map(str, dtypes))}; "
                "give the data module an attribute dtype, or cast the module"
            )
        self._weights = batch_weights(batch)
        objective = self._objective(x, y)
        if self._resumed is not None:
            if self._resumed["data"] != self._checksum_of(x, y):
                raise CheckpointError(
                    f"{self.trainer.ckpt_path}: belongs to other training data (or other noise) than these; "
                    "resume with the data, sigma and seed it was made with"
                )
            objective.load_state_dict(self._resumed["objective"])
            self._resumed = None
        return objective

    # --- what is shown of it -----------------------------------------------------------------------------------------

    @property
    def iteration(self) -> int | None:
        return self.record.iteration if self.record is not None else None

    @property
    def learned(self) -> Recreatable:
        return self.regularizer

    def progress(self) -> str:
        record = self.record
        if record is None:
            return ""
        interval = f"[{record.lower:.5g}, {record.upper:.5g}] ({Grade(record.grade).word})"
        return (
            f"loss {record.loss:.5g} in {interval}, ε {record.epsilon:.1e}, "
            f"δ {record.delta:.1e}, α {record.step:.1e}, evaluations {record.evaluations:.0f}"
        )

    def summary(self) -> dict[str, Any]:
        record = self.record
        assert record is not None
        return {
            "status": record.progress.value if record.finished else "iteration limit",
            "iterations": record.iteration,
            "loss": record.loss,
            "lower": record.lower,
            "upper": record.upper,
            "rounding": record.rounding if math.isfinite(record.rounding) else None,
            "grade": Grade(record.grade).word,
            "evaluations": record.evaluations,
            "gradient_norm": record.gradient_norm,
        }

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the counter and what the checkpoint belongs to; parameters of R only, operators can be large."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if k.startswith("regularizer.")}
        checkpoint["bilevel"] = {
            "regularizer": describe(self.regularizer),
            "specification": specification(self.regularizer),
        }
        if self.objective is not None:
            checkpoint["bilevel"] |= {
                "problem": self._problem(),
                "data": self._data_checksum(),
                "objective": self.objective.state_dict(),
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse checkpoints of another regularizer; remember the rest until the objective exists."""
        saved = checkpoint.get("bilevel")
        if saved is None:
            raise CheckpointError(f"{self._checkpoint_name}: not a checkpoint of {public_name(self)}")
        self._require("regularizer", saved["regularizer"], describe(self.regularizer))
        for name, value in self.state_dict().items():
            checkpoint["state_dict"].setdefault(name, value)
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            if "objective" not in saved:
                raise CheckpointError(f"{self._checkpoint_name}: was written before the first iteration; start anew")
            self._resumed = saved

    def _data_checksum(self) -> str:
        """Computed once: the data never change."""
        assert self.objective is not None
        if self._checksum is None:
            self._checksum = self._checksum_of(self.objective.target, self.objective.y)
        return self._checksum

    def _checksum_of(self, x: Tensor, y: Tensor) -> str:
        return checksum(x, y) if self._weights is None else checksum(x, y, self._weights)


def record_values(record: Record) -> dict[str, float]:
    """The numbers of a record by name; ``step`` becomes ``alpha``, as loggers take "step" for the abscissa."""
    values = record.line()
    values["alpha"] = values.pop("step")
    del values["iteration"]  # the abscissa
    return {name: float(value) for name, value in values.items() if not isinstance(value, str)}

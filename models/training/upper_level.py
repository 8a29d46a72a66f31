"""Training of whatever an upper-level method can descend on, with its checkpoints and logs, in Lightning."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor

from models.files.checkpoints import checksum, describe
from models.training.module import Belongings, ReconstructionModule, batch_weights
from recon.bilevel import Objective, Record
from recon.bilevel.methods.older import current_method
from recon.errors import positive
from recon.lower_level import Grade, Regularizer, SaddleModel
from recon.operators import LinearOperator

log = logging.getLogger(__name__)


class UpperLevelModule(ReconstructionModule):
    """Learns the parameters of a model by an upper-level method. Subclasses say what it minimizes, and reconstruct.

    One training step is one upper-level iteration on the whole training set, which the data loader serves as one
    batch ``(x, y, index)``: descent is certified for one fixed objective.

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
    _part, _entry = "regularizer", "bilevel"
    _remedy = "chunk_size of the model to save memory"
    #: what arguments were before they existed, for the problem of older checkpoints
    _older_problem: dict[str, object] = {}  # noqa: RUF012

    def __init__(
        self,
        regularizer: Regularizer | SaddleModel,
        optimizer: OptimizerCallable,
        operator: LinearOperator | None,
        reconstruction_accuracy: float,
    ) -> None:
        super().__init__(optimizer, operator)
        positive(reconstruction_accuracy=reconstruction_accuracy)
        self.regularizer = regularizer
        self.reconstruction_accuracy = reconstruction_accuracy
        self.objective: Objective | None = None
        self.record: Record | None = None
        self._checksum: str | None = None
        self._weights: Tensor | None = None
        self._levels: Tensor | float | None = None

    # --- what subclasses say -----------------------------------------------------------------------------------------

    @abstractmethod
    def _objective(self, x: Tensor, y: Tensor) -> Objective:
        """The learning problem of true images x and data y."""

    def _problem(self) -> dict[str, object]:
        return {
            "optimizer": self._method,
            "operator": describe(self._operator),
            "dtype": str(next(self.regularizer.parameters()).dtype),
        }

    def metadata(self) -> dict[str, object]:
        """What the files of the trained model say beside it, for whoever reconstructs with it."""
        return {}

    # --- training ----------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Refuse a checkpoint of another problem before its state reaches the optimizer."""
        if self._resumed is not None:
            saved = self._older_problem | self._resumed["problem"]
            optimizer = saved["optimizer"]
            assert isinstance(optimizer, dict)
            saved |= {"optimizer": current_method(optimizer, self._method)}
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
        self._check_loader()
        x, y = batch[0], batch[1]
        dtypes = {p.dtype for p in self.regularizer.parameters()}
        if dtypes != {x.dtype}:
            raise ValueError(
                f"the data are {x.dtype}, but the regularizer is {', '.join(map(str, dtypes))}; "
                "give the data module an attribute dtype, or cast the module"
            )
        self._weights, self._levels = batch_weights(batch), self.noise_level(batch)
        objective = self._objective(x, y)
        if self._resumed is not None:
            self._check_data(self._checksum_of(objective))
            objective.load_state_dict(self._resumed["objective"])
            self._resumed = None
        return objective

    # --- what is shown of it -----------------------------------------------------------------------------------------

    @property
    def iteration(self) -> int | None:
        return self.record.iteration if self.record is not None else None

    @property
    def learned(self) -> Regularizer | SaddleModel:
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

    def summary(self) -> dict[str, object]:
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
            "guarantee": record.guarantee,
            "evaluations": record.evaluations,
            "gradient_norm": record.gradient_norm,
        }

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def _belongs_to(self) -> Belongings:
        objective = self.objective
        if objective is None:
            return {}
        data = self._checksum_of(objective)
        record = self.record.line() if self.record is not None else None
        return {"problem": self._problem(), "data": data, "objective": objective.state_dict(), "record": record}

    def restore_record(self) -> None:
        """Take the last record from the checkpoint, where nothing was left to do after it; else nothing."""
        saved = self._resumed.get("record") if self._resumed is not None else None
        if self.record is None and saved is not None:
            self.record = Record.of_line(saved)

    def _checksum_of(self, objective: Objective) -> str:
        if self._checksum is None:  # computed once: the data never change
            data = [objective.target, objective.y, *(t for t in (self._weights, self._levels) if isinstance(t, Tensor))]
            self._checksum = checksum(*data)
        return self._checksum


def record_values(record: Record) -> dict[str, float]:
    """The numbers of a record by name; ``step`` becomes ``alpha``, as loggers take "step" for the abscissa."""
    values = record.line()
    values["alpha"] = values.pop("step")
    del values["iteration"]  # the abscissa
    return {name: float(value) for name, value in values.items() if not isinstance(value, str)}

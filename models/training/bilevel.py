"""Training of any regularizer by any upper-level method, and certified reconstruction with it, in Lightning."""

from __future__ import annotations

import dataclasses
import logging
import math
from enum import Enum
from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from models.files.checkpoints import CheckpointError, checksum, describe
from models.files.storage import specification
from models.training.module import Reconstruction, ReconstructionModule, batch_weights
from recon.bilevel import MAID, BilevelObjective, Record, SquaredError, UpperLoss
from recon.bilevel.objective import check_steps
from recon.lower_level import (
    LBFGS,
    DataFidelity,
    Grade,
    Recreatable,
    Regularizer,
    Solver,
    SquaredL2,
)
from recon.names import public_name
from recon.operators import Identity, LinearOperator
from recon.reconstruction import Data, Method, Variational

log = logging.getLogger(__name__)


__all__ = ["BilevelModule", "Reconstruction", "record_values"]


class BilevelModule(ReconstructionModule):
    """Learns theta in x^(theta) = argmin D(Ax, y) + R_theta(x) + (mu/2)||x||^2 by min_theta mean g(x^_i, x_i*).

    One training step is one upper-level iteration on the whole training set, which the data loader serves as one
    batch ``(x, y, index)`` and which must be the same in every epoch: descent is certified for one fixed objective.
    The module takes over the floating-point type of the data module (its attribute ``dtype``).

    Parameters
    ----------
    regularizer: R_theta; what is learned are its trainable parameters.
    optimizer: the upper-level method: parameters -> an optimizer whose ``step(objective=...)`` makes one iteration,
        returns a :class:`recon.bilevel.Record`, and keeps all that a resumed run needs in its ``state_dict()``.
    solver: of the lower level, in training and after it; L-BFGS by default.
    fidelity, mu: D and mu of the energy, see :class:`recon.lower_level.Energy`.
    operator: A; by default a copy of the data module's, or the identity.
    loss: g; 1/2||x - x*||^2 by default.
    chunk_size: images of the training set that are solved together; memory grows with it. All by default.
    reconstruction_accuracy: certified ||x - x^|| of the reconstructions in validation, test and prediction.
    adjoint_steps: K, to differentiate K steps of gradient descent instead of solving the adjoint equations (1: the
        one-step or Jacobian-free gradient). unrolled_steps: K, to differentiate through K steps of gradient descent
        from the first guess, which stand for the minimizer in training. See :class:`recon.bilevel.BilevelObjective`.

    Raises
    ------
    ValueError: a number is out of range; in training, data that do not fit, or a loader with more than one batch.
    CheckpointError: (a ValueError) a checkpoint of another regularizer or, in training, of another problem.
    """

    reconstruction_accuracy: float

    def __init__(
        self,
        regularizer: Regularizer,
        optimizer: OptimizerCallable = MAID,
        solver: Solver | None = None,
        fidelity: DataFidelity | None = None,
        operator: LinearOperator | None = None,
        mu: float = 0.0,
        loss: UpperLoss | None = None,
        chunk_size: int | None = None,
        reconstruction_accuracy: float = 1e-2,
        adjoint_steps: int | None = None,
        unrolled_steps: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 < reconstruction_accuracy < math.inf:
            raise ValueError(f"reconstruction_accuracy is {reconstruction_accuracy}, but must be positive and finite")
        if not 0 <= mu < math.inf:
            raise ValueError(f"mu is {mu}, but must be finite and not negative")
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size is {chunk_size}, but must be at least 1")
        check_steps(adjoint_steps, unrolled_steps)
        self.automatic_optimization = False
        self.regularizer, self.make_optimizer = regularizer, optimizer
        self.solver: Solver = solver if solver is not None else LBFGS()
        self.fidelity = fidelity if fidelity is not None else SquaredL2()
        self.operator = operator
        self.mu, self.chunk_size, self.reconstruction_accuracy = mu, chunk_size, reconstruction_accuracy
        self.loss = loss if loss is not None else SquaredError()
        self.adjoint_steps, self.unrolled_steps = adjoint_steps, unrolled_steps
        self.objective: BilevelObjective | None = None
        self.record: Record | None = None
        self._method: dict[str, Any] = {}
        self._checksum: str | None = None
        self._weights: Tensor | None = None
        self._resumed: dict[str, Any] | None = None

    # --- training ----------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The upper-level method on theta."""
        params = self.regularizer.trainable()
        if not params:
            raise ValueError(f"{public_name(self.regularizer)} has no trainable parameter: nothing can be learned")
        optimizer = self.make_optimizer(params)
        # what was configured: the parameter groups change as the method adapts itself
        plain = {k: v for k, v in optimizer.defaults.items() if isinstance(v, (bool, int, float, str, type(None)))}
        self._method = {"class": public_name(optimizer), **plain}
        return optimizer

    def on_fit_start(self) -> None:
        """Refuse a checkpoint of another problem before its state reaches the optimizer."""
        if self._resumed is not None:
            self._require("problem", self._resumed["problem"], self._problem())

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

    def _start(self, batch: tuple[Tensor, Tensor, Tensor]) -> BilevelObjective:
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

    def _objective(self, x: Tensor, y: Tensor) -> BilevelObjective:
        """The learning problem of true images x and data y."""
        return BilevelObjective(
            self.regularizer,
            x,
            y,
            self.operator,
            self._weighted(self._weights),
            self.mu,
            self.loss,
            self.solver,
            self.chunk_size,
            adjoint_steps=self.adjoint_steps,
            unrolled_steps=self.unrolled_steps,
        )

    def _weighted(self, weights: Tensor | None) -> DataFidelity:
        """D, with the weights of a batch if it has any.

        Raises:
            ValueError: D knows no weights.
        """
        return self.fidelity if weights is None else self.fidelity.weighted(weights)

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

    # --- reconstruction ----------------------------------------------------------------------------------------------

    def problem(self, y: Tensor, weights: Tensor | None = None) -> Data:
        return dataclasses.replace(super().problem(y, weights), term=self.fidelity)

    def method(self, problem: Data) -> Method:
        """Minimizers of the energies, with certified errors."""
        return Variational(self.regularizer, self.mu, self.solver)

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

    def _problem(self) -> dict[str, Any]:
        """Everything beside R and the data that decides which numbers the next iteration produces."""
        return {
            "optimizer": self._method,
            "solver": describe(self.solver),
            "fidelity": describe(self.fidelity),
            "operator": describe(self.operator if self.operator is not None else Identity()),
            "loss": describe(self.loss),
            "mu": float(self.mu),
            "adjoint_steps": self.adjoint_steps,
            "unrolled_steps": self.unrolled_steps,
            "dtype": str(next(self.regularizer.parameters()).dtype),
        }

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
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    values["alpha"] = values.pop("step")
    del values["iteration"]  # the abscissa
    return {k: float(v) for k, v in values.items() if not isinstance(v, Enum)}

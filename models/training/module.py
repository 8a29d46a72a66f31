"""What all Lightning modules of this project share: reconstruct in validation, test and prediction, and measure."""

from __future__ import annotations

import copy
import logging
from abc import abstractmethod
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor

from models.files.checkpoints import CheckpointError, difference
from models.training.precision import cast
from recon import metrics
from recon.lower_level import Recreatable, Solution, Status
from recon.names import public_name
from recon.operators import Identity, LinearOperator
from recon.reconstruction import Data, Method, Request

log = logging.getLogger(__name__)

#: of these the largest counts, of PSNR and SSIM the mean
LARGEST = ("error", "grade")


class Reconstruction(NamedTuple):
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
    def of(cls, solution: Solution) -> Reconstruction:
        """What is shown of a solution."""
        return cls(solution.x, solution.error, solution.status, solution.rounding, solution.grade)


def batch_weights(batch: tuple[Tensor, ...]) -> Tensor | None:
    """The field ``weights`` of a batch, of the shape of its data y; None if it has none."""
    return getattr(batch, "weights", None)


class ReconstructionModule(pl.LightningModule):
    """The part that does not depend on what is learned. Subclasses learn, and implement what is abstract here.

    The module takes over the operator and the floating-point type (attributes ``operator``, ``dtype``) of the data
    module. Batches are ``(x, y, index)``, and ``(y, index)`` in prediction. A batch with a field ``weights`` of the
    shape of y says how much each of its data counts: 0 where nothing was measured and y only stands in for it.
    """

    operator: LinearOperator | None
    #: certified ||x - x^|| of the reconstructions, for what certifies
    reconstruction_accuracy: float | None = None

    def __init__(self) -> None:
        super().__init__()
        self.validated_iteration: int | None = None
        self._values: dict[str, list[Tensor]] = {}

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
    def learned(self) -> Recreatable:
        """What is written to a file after the training."""

    @abstractmethod
    def progress(self) -> str:
        """The last iteration in one line."""

    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """The outcome of the training: status, iterations, loss, ..."""

    # --- set-up ------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Take over the operator and the floating-point type of the data module, before any checkpoint is read."""
        if self.trainer.world_size > 1:
            raise ValueError(f"one process must see all data, not {self.trainer.world_size}; set devices to 1")
        datamodule = getattr(self.trainer, "datamodule", None)
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

    # --- reconstruction ----------------------------------------------------------------------------------------------

    def problem(self, y: Tensor, weights: Tensor | None = None) -> Data:
        """Data y with what is known of them."""
        operator = self.operator if self.operator is not None else Identity()
        return Data(y=y, operator=operator, weights=weights)

    @torch.no_grad()
    def reconstruct(self, y: Tensor, weights: Tensor | None = None) -> Reconstruction:
        """Images of data y, with certified errors where something is certified.

        Parameters
        ----------
        y : Tensor
            ``(batch, *range_shape)``.
        weights : Tensor, optional
            Of the same shape, >= 0, where not all data count 1. What does not compare Ax with y, such as networks,
            takes y as it is.

        Raises
        ------
        ValueError
            y is not data for the operator or the fidelity, which may know no weights, or nothing can be certified.
        """
        problem = self.problem(y, weights)
        made = self.method(problem).reconstruct(problem, Request(self.reconstruction_accuracy))
        if made.certifies:
            self._warn(made.solution.status)
        return Reconstruction.of(made.solution)

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
    ) -> Reconstruction:
        """Reconstruct, and note PSNR, SSIM (of magnitudes where images are complex), certified error and grade."""
        result = self.reconstruct(batch[1], batch_weights(batch))
        x, target = self.display(result.x), self.display(batch[0])
        values = {"psnr": metrics.psnr(x, target), "ssim": metrics.ssim(x, target)}
        values |= {name: getattr(result, name) for name in LARGEST}
        for name, value in values.items():
            self._values.setdefault(name, []).append(value.double())
        return result

    test_step = validation_step  # type: ignore[assignment]

    def predict_step(self, batch: tuple[Tensor, ...], batch_index: int) -> Reconstruction:
        """Reconstruct; ``batch`` is (y, index), or (y, weights, index)."""
        return self.reconstruct(batch[0], batch_weights(batch))

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

    @property
    def _checkpoint_name(self) -> str:
        path = self.trainer.ckpt_path if self._trainer is not None else None
        return str(path) if path else "the checkpoint"

    def _require(self, what: str, saved: Any, current: Any) -> None:
        found = difference(saved, current, what if what != "problem" else "")
        if found:
            raise CheckpointError(f"{self._checkpoint_name}: belongs to another {what}: {found}")

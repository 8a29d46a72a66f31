"""Training of saddle-point models by any upper-level method, and certified reconstruction with them, in Lightning."""

from __future__ import annotations

from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor

from models.files.checkpoints import describe
from models.training.upper_level import UpperLevelModule
from recon.bilevel import MAID, Piggyback, SaddleObjective, SquaredError, UpperLoss
from recon.errors import at_least
from recon.lower_level import PDHG, SaddleModel
from recon.operators import LinearOperator
from recon.reconstruction import Data, Method, Saddle


class SaddleModule(UpperLevelModule):
    """Learns theta of a saddle-point model: x^(theta) is the image in the saddle point of the problem of data y.

    Training, logs and checkpoints are those of :class:`models.training.upper_level.UpperLevelModule`.

    Parameters
    ----------
    regularizer : SaddleModel
        What is learned are its trainable parameters. It brings its data term along, and takes A by ``measured_by``.
    optimizer : callable
        The upper-level method, as in :class:`models.BilevelModule`.
    solver : PDHG, optional
        Of saddle points; with adaptive steps by default.
    piggyback : Piggyback, optional
        Of adjoints; with a fixed number of iterations, of the saddle points in training, too.
    operator : LinearOperator, optional
        A; by default a copy of the data module's, or the identity.
    loss, chunk_size, reconstruction_accuracy
        As in :class:`models.BilevelModule`.
    plain : bool
        Whether to reconstruct with the plain form of the model, which is not strongly convex (training is as ever):
        ``reconstruction_accuracy`` is then that of the residuals, see :class:`recon.lower_level.PDHG` with
        ``certified=False``, and errors are infinite unless the primal-dual gap bounds them.

    Raises
    ------
    ValueError
        As in :class:`models.BilevelModule`; an operator is given, but the model takes none; there is no plain form.
    CheckpointError
        (A ValueError) a checkpoint of another model or, in training, of another problem.
    """

    regularizer: SaddleModel

    def __init__(
        self,
        regularizer: SaddleModel,
        optimizer: OptimizerCallable | None = None,
        solver: PDHG | None = None,
        piggyback: Piggyback | None = None,
        operator: LinearOperator | None = None,
        loss: UpperLoss | None = None,
        chunk_size: int | None = None,
        reconstruction_accuracy: float = 1e-2,
        plain: bool = False,
    ) -> None:
        super().__init__(regularizer, optimizer or MAID, operator, reconstruction_accuracy)
        at_least(1, chunk_size=chunk_size)
        self.loss = loss if loss is not None else SquaredError()
        self.chunk_size = chunk_size
        self.saddle_solver = solver if solver is not None else PDHG()
        self.piggyback = piggyback if piggyback is not None else Piggyback(self.saddle_solver)
        self.plain = plain
        if plain and not regularizer.has_plain_form:
            raise ValueError(f"{type(regularizer).__name__} has no plain form; set plain to false")
        self._measure()

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self._measure()

    def _measure(self) -> None:
        """Tell the model what A is."""
        if self.operator is not None:
            self.regularizer.measured_by(self.operator)

    def _objective(self, x: Tensor, y: Tensor) -> SaddleObjective:
        if self._weights is not None:
            raise ValueError("the training of saddle-point models knows no weights, which these data have")
        return SaddleObjective(self.regularizer, x, y, self.loss, self.saddle_solver, self.piggyback, self.chunk_size)

    def method(self, problem: Data) -> Method:
        """The images in the saddle points, with certified errors if not plain."""
        return Saddle(self.regularizer, plain=self.plain, minimize=self.saddle_solver)

    def _problem(self) -> dict[str, object]:
        own = {"solver": self.saddle_solver, "piggyback": self.piggyback, "loss": self.loss}
        return super()._problem() | {name: describe(part) for name, part in own.items()}

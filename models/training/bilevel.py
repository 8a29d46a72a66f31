"""Training of any regularizer by any upper-level method, and certified reconstruction with it, in Lightning."""

from __future__ import annotations

import dataclasses

from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor

from models.files.checkpoints import describe
from models.training.upper_level import UpperLevelModule
from recon.bilevel import MAID, BilevelObjective, Differentiation, SquaredError, UpperLoss
from recon.bilevel.energy_objective import IMPLICIT
from recon.errors import at_least, not_negative
from recon.lower_level import LBFGS, DataFidelity, ProjectedLBFGS, Regularizer, Solver, SquaredL2
from recon.names import public_name
from recon.operators import LinearOperator
from recon.reconstruction import Data, Method, Variational


class EnergyModule(UpperLevelModule):
    """The part that knows the energy D(Ax, y) + R(x) + (mu/2)||x||^2 of what is learned, and reconstructs with it.

    Parameters
    ----------
    regularizer, optimizer, operator, reconstruction_accuracy
        As in :class:`models.training.upper_level.UpperLevelModule`.
    solver : Solver, optional
        Of minimizers; L-BFGS by default. With :class:`recon.lower_level.ProjectedLBFGS` all reconstruction is over
        x >= 0.
    fidelity : DataFidelity, optional
        D; 1/2||Ax - y||^2 by default.
    mu : float
        Not negative.

    Raises
    ------
    ValueError
        A number is out of range.
    """

    regularizer: Regularizer
    reconstruction_accuracy: float

    def __init__(
        self,
        regularizer: Regularizer,
        optimizer: OptimizerCallable,
        solver: Solver | None,
        fidelity: DataFidelity | None,
        operator: LinearOperator | None,
        mu: float,
        reconstruction_accuracy: float,
    ) -> None:
        super().__init__(regularizer, optimizer, operator, reconstruction_accuracy)
        not_negative(mu=mu)
        self.solver: Solver = solver if solver is not None else LBFGS()
        self.fidelity = fidelity if fidelity is not None else SquaredL2()
        self.mu = mu

    def _weighted(self, weights: Tensor | None) -> DataFidelity:
        """D, with the weights of a batch if it has any.

        Raises
        ------
        ValueError
            D knows no weights.
        """
        return self.fidelity if weights is None else self.fidelity.weighted(weights)

    # --- reconstruction ----------------------------------------------------------------------------------------------

    @property
    def nonnegative(self) -> bool:
        """Whether the solver is one over x >= 0, :class:`recon.lower_level.ProjectedLBFGS`."""
        return isinstance(self.solver, ProjectedLBFGS)

    def problem(self, y: Tensor, weights: Tensor | None = None, sigma: Tensor | float | None = None) -> Data:
        return dataclasses.replace(super().problem(y, weights, sigma), term=self.fidelity)

    def method(self, problem: Data) -> Method:
        """Minimizers of the energies, with certified errors."""
        return Variational(self.regularizer, self.mu, minimize=self.solver, project=self.solver)

    # --- checkpoints and files ---------------------------------------------------------------------------------------

    def metadata(self) -> dict[str, object]:
        return {"mu": self.mu, "fidelity": public_name(self.fidelity)}

    def _problem(self) -> dict[str, object]:
        own = {"solver": describe(self.solver), "fidelity": describe(self.fidelity), "mu": float(self.mu)}
        return super()._problem() | own


class BilevelModule(EnergyModule):
    """Learns theta in x^(theta) = argmin D(Ax, y) + R_theta(x) + (mu/2)||x||^2 by min_theta mean g(x^_i, x_i*).

    Training, logs and checkpoints are those of :class:`models.training.upper_level.UpperLevelModule`: one training
    step is one upper-level iteration on the whole training set, which comes as one batch.

    Parameters
    ----------
    regularizer : Regularizer
        R_theta; what is learned are its trainable parameters.
    optimizer : callable
        The upper-level method, see :class:`models.training.upper_level.UpperLevelModule`.
    solver : Solver, optional
        Of the lower level, in training and after it; L-BFGS by default.
    fidelity : DataFidelity, optional
        D of the energy, see :class:`recon.lower_level.Energy`.
    operator : LinearOperator, optional
        A; by default a copy of the data module's, or the identity.
    mu : float
        Of the energy.
    loss : UpperLoss, optional
        g; 1/2||x - x*||^2 by default.
    chunk_size : int, optional
        Images of the training set that are solved together; memory grows with it. All by default.
    reconstruction_accuracy : float
        Certified ||x - x^|| of the reconstructions in validation, test and prediction.
    differentiation : Differentiation
        How minimizers are differentiated: adjoint equations, or steps of gradient descent.

    Raises
    ------
    ValueError
        A number is out of range; in training, data that do not fit, or a loader with more than one batch.
    CheckpointError
        (A ValueError) a checkpoint of another regularizer or, in training, of another problem.
    """

    _older_problem = {"max_adjoint_iterations": IMPLICIT.max_adjoint_iterations}  # noqa: RUF012

    def __init__(
        self,
        regularizer: Regularizer,
        optimizer: OptimizerCallable | None = None,
        solver: Solver | None = None,
        fidelity: DataFidelity | None = None,
        operator: LinearOperator | None = None,
        mu: float = 0.0,
        loss: UpperLoss | None = None,
        chunk_size: int | None = None,
        reconstruction_accuracy: float = 1e-2,
        differentiation: Differentiation = IMPLICIT,
    ) -> None:
        super().__init__(regularizer, optimizer or MAID, solver, fidelity, operator, mu, reconstruction_accuracy)
        at_least(1, chunk_size=chunk_size)
        self.loss = loss if loss is not None else SquaredError()
        self.chunk_size, self.differentiation = chunk_size, differentiation

    def _objective(self, x: Tensor, y: Tensor) -> BilevelObjective:
        return BilevelObjective(
            self.regularizer.at(self._levels),
            x,
            y,
            self.operator,
            self._weighted(self._weights),
            self.mu,
            self.loss,
            self.solver,
            self.chunk_size,
            self.differentiation,
        )

    def _problem(self) -> dict[str, object]:
        return super()._problem() | {"loss": describe(self.loss), **dataclasses.asdict(self.differentiation)}

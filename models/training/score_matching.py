"""Denoising score matching in Lightning: learns regularizers of denoising without solving a lower-level problem."""

from __future__ import annotations

from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor

from models.training.bilevel import EnergyModule
from recon.bilevel import ScoreMatchingAdam, ScoreMatchingObjective
from recon.errors import positive
from recon.lower_level import Regularizer, Solver
from recon.names import public_name
from recon.operators import Identity


class ScoreMatchingModule(EnergyModule):
    r"""Learns R by min_theta mean 1/2 \|\|grad R_theta(y_i) - c (y_i - x_i)\|\|^2, a cheap first stage of a training.

    See :class:`recon.bilevel.ScoreMatchingObjective`. One training step is one pass of mini-batches through the
    training set, which the loader serves as one batch. The loss is exact; it is another one than that of
    :class:`models.BilevelModule`, of which nothing is certified here. Reconstruction, with the energy
    1/2||x - y||^2 + R(x) + (mu/2)||x||^2, checkpoints and logs are those of that module, and validation certifies the
    errors of its reconstructions.

    Parameters
    ----------
    regularizer : Regularizer
        R_theta; what is learned are its trainable parameters.
    optimizer : callable
        :class:`recon.bilevel.ScoreMatchingAdam`, or another method for its objective.
    solver, mu, reconstruction_accuracy
        Of reconstructions, as in :class:`models.BilevelModule`.
    noise_factor : float
        c, positive.

    Raises
    ------
    ValueError
        A number is out of range; in training, data that are no images with noise, that have weights, or do not fit.
    CheckpointError
        (A ValueError) a checkpoint of another regularizer or, in training, of another problem.
    """

    def __init__(
        self,
        regularizer: Regularizer,
        optimizer: OptimizerCallable | None = None,
        solver: Solver | None = None,
        mu: float = 0.0,
        reconstruction_accuracy: float = 1e-2,
        noise_factor: float = 1.0,
    ) -> None:
        method = optimizer if optimizer is not None else ScoreMatchingAdam
        super().__init__(regularizer, method, solver, None, None, mu, reconstruction_accuracy)
        positive(noise_factor=noise_factor)
        self.noise_factor = noise_factor

    def _objective(self, x: Tensor, y: Tensor) -> ScoreMatchingObjective:
        if not isinstance(self._operator, Identity):
            raise ValueError(
                f"score matching takes images with noise, but these data come from {public_name(self._operator)}; "
                "train on data of datasets.DenoisingDataModule"
            )
        if self._weights is not None:
            raise ValueError("score matching knows no weights, which these data have; leave them out")
        return ScoreMatchingObjective(self.regularizer.at(self._levels), x, y, self.noise_factor)

    def _problem(self) -> dict[str, object]:
        return super()._problem() | {"noise_factor": float(self.noise_factor), "method": "score matching"}

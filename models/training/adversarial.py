"""Adversarial regularizers (Lunz, Öktem and Schönlieb 2018; convex: Mukherjee et al. 2021) in Lightning."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor

from models.files.checkpoints import CheckpointError, describe
from models.training.bilevel import EnergyModule
from models.training.callbacks import LastCheckpoint
from models.training.critic import AdversarialObjective, CriticAdam, scale_parameter
from recon import metrics
from recon.bilevel import SquaredError
from recon.errors import at_least, not_negative
from recon.lower_level import DataFidelity, Energy, Regularizer, Snapshot, Solver
from recon.lower_level.solvers.descent import descend
from recon.operators import Identity, LinearOperator, RayTransform
from recon.reconstruction import Data, Method, Variational, of_energy
from recon.reconstruction.early_stopped import critic_reconstruction
from recon.reconstruction.variational import energy_of
from recon.reconstruction.weight import best_weight

log = logging.getLogger(__name__)

#: accuracy of trials of the weight, relative to that of reconstructions
TRIAL_ACCURACY = 4.0


class AdversarialModule(EnergyModule):
    r"""Learns R as a critic: C = R / lambda is small on true images, large on naive reconstructions, 1-Lipschitz.

        min_theta mean C(x_i) - mean C(v_i) + penalty mean (\|\|grad C(z_i)\|\| - 1)_+^2,

    see :class:`models.training.critic.AdversarialObjective`. Training never solves a lower-level problem; everything
    else is as in :class:`models.BilevelModule`, whose reconstructions, checkpoints and logs it shares. One
    training step is one pass of mini-batches through the training set, which the loader serves as one batch.

    The weight lambda is multiplied into R (theta_0 in R = e^{theta_0} ...). Throughout the training it is the published
    one; in the end ``tune`` searches for the weight with the largest mean PSNR of reconstructions of validation data,
    within a factor of the square root of 2, rewrites the last checkpoint, and leaves R with that weight. A resumed
    training goes on with the published one.

    Reconstruction: where the energy is strongly convex, by ``solver``, certified. Otherwise by ``descent_iterations``
    steps of gradient descent from the naive reconstruction, with infinite errors and the status ``ITERATION_LIMIT``;
    with ``tune``, their number is the best one on the validation data, at most the one given.

    Parameters
    ----------
    regularizer : Regularizer
        R, with a parameter ``log_scale`` (or ``log_weight``) of one number. Convex: :class:`models.ICNN`.
    optimizer : callable
        As :class:`models.CriticAdam`.
    solver, fidelity, operator, mu, reconstruction_accuracy
        As in :class:`models.BilevelModule`.
    penalty : float
        Of gradients that are too large.
    tune_images : int, optional
        With how many validation images, the first ones, the weight is tuned in the end; None leaves the published one.
    descent_iterations : int
        For energies that are not convex.

    Raises
    ------
    ValueError
        A number is out of range; in training, data that do not fit or have no noise, or no validation data.
    CheckpointError
        (A ValueError) a checkpoint of another regularizer or, in training, of another problem.
    """

    def __init__(
        self,
        regularizer: Regularizer,
        optimizer: OptimizerCallable | None = None,
        solver: Solver | None = None,
        fidelity: DataFidelity | None = None,
        operator: LinearOperator | None = None,
        mu: float = 0.0,
        penalty: float = 10.0,
        tune_images: int | None = 4,
        descent_iterations: int = 200,
        reconstruction_accuracy: float = 1e-2,
    ) -> None:
        method = optimizer if optimizer is not None else CriticAdam
        super().__init__(regularizer, method, solver, fidelity, operator, mu, reconstruction_accuracy)
        not_negative(penalty=penalty)
        at_least(1, tune_images=tune_images, descent_iterations=descent_iterations)
        scale_parameter(regularizer)
        self.penalty, self.tune_images = penalty, tune_images
        self.most_iterations = self.descent_iterations = descent_iterations
        #: lambda of the published rule, and the one that R has now; set in training
        self.published_weight: float | None = None
        self.weight: float | None = None
        #: weights that were tried, with the mean PSNR in dB
        self.trials: list[tuple[float, float]] = []
        self._untuned: Tensor | None = None

    # --- training ----------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Refuse a checkpoint of another problem, and a training that could not be tuned in the end."""
        super().on_fit_start()
        if self.tune_images is not None:
            self._validation_data(self.tune_images)

    def _objective(self, x: Tensor, y: Tensor) -> AdversarialObjective:
        if self._weights is not None:
            raise ValueError("the adversarial training knows no weights, which these data have; leave them out")
        objective = AdversarialObjective(self.regularizer, x, y, self.operator, self.fidelity, self.penalty)
        if self._resumed is None:
            objective.calibrate()
        else:  # the same within rounding, which may depend on the machine
            objective.load_state_dict(self._resumed["objective"])
        self.published_weight = self.weight = objective.weight
        return objective

    def on_train_end(self) -> None:
        """Tune the weight, and rewrite the last checkpoint with it."""
        if self.tune_images is None or self.objective is None:
            return
        x, y = self._validation_data(self.tune_images)
        was_training = self.training
        self.eval()
        self.tune_weight(x, y)
        self.train(was_training)
        self.validated_iteration = None  # figures of the validation belonged to another weight
        for callback in self.trainer.checkpoint_callbacks:
            if isinstance(callback, LastCheckpoint):
                self.trainer.save_checkpoint(callback.path)

    def _validation_data(self, count: int) -> tuple[Tensor, Tensor]:
        """The first ``count`` true images and data of the validation set."""
        module = self._datamodule
        if module is not None and self.trainer.limit_val_batches:
            loaders: Any = module.val_dataloader()
        else:
            loaders = self.trainer.val_dataloaders
        images: list[Tensor] = []
        data: list[Tensor] = []
        for batch in loaders if loaders is not None else ():
            images += batch[0].split(1)
            data += batch[1].split(1)
            if len(images) >= count:
                break
        if not images:
            raise ValueError(
                "the weight is tuned on validation data, but there are none; name some, or set tune_images of the "
                "model to null for the published weight"
            )
        return torch.cat(images[:count]).to(self.device), torch.cat(data[:count]).to(self.device)

    @torch.no_grad()
    def tune_weight(self, x: Tensor, y: Tensor) -> float:
        """Multiply the weight with the largest mean PSNR into R; x are true images of data y, one at least.

        Trials start where the last one ended, and need not be as accurate as reconstructions (``TRIAL_ACCURACY``).

        Returns
        -------
        float
            The weight, and keeps it in ``weight``, what was tried in ``trials``, and how many steps of descent were
            best in ``descent_iterations``.

        Raises
        ------
        ValueError
            there are no images, images or data are not finite, or R is not trained yet.
        """
        if self.weight is None:
            raise ValueError("the weight of R is known in training only; fit the module first")
        if len(x) == 0 or len(x) != len(y):
            raise ValueError(f"there are {len(x)} true images and {len(y)} data to tune the weight with")
        if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
            raise ValueError("the images or data to tune the weight with hold values that are NaN or infinite")
        scale = scale_parameter(self.regularizer)
        untuned, first = scale.detach().clone(), self.weight
        self._untuned = untuned
        best_steps: dict[float, int] = {}
        last: Tensor | None = None

        def quality(weight: float) -> float:
            nonlocal last
            scale.copy_(untuned + math.log(weight / first))
            energy, start = self._energy(y)
            if energy.strong_convexity > 0:
                accuracy = TRIAL_ACCURACY * self.reconstruction_accuracy
                last = self.solver(energy, start if last is None else last, accuracy).x
                return float(metrics.psnr(self.display(self._inside(last, y)), self.display(x)).mean())
            steps = self._psnr_of_descent(x, y)
            best_steps[weight] = max(1, max(range(len(steps)), key=steps.__getitem__))
            return steps[best_steps[weight]]

        self.weight, self.trials = best_weight(quality, first)
        scale.copy_(untuned + math.log(self.weight / first))
        self.descent_iterations = best_steps.get(self.weight, self.most_iterations)
        log.info("weight %.4g by validation (%.4g by the published rule)", self.weight, first)
        return self.weight

    def _psnr_of_descent(self, x: Tensor, y: Tensor) -> list[float]:
        """The mean PSNR after 0, 1, ... steps."""
        energy, start = self._energy(y)
        target, found = self.display(x), []

        def note(snapshot: Snapshot) -> None:
            found.append(float(metrics.psnr(self.display(self._inside(snapshot.x, y)), target).mean()))

        descend(energy, start, self.most_iterations, note, self.nonnegative)
        return found

    # --- reconstruction ----------------------------------------------------------------------------------------------

    def _energy(self, y: Tensor) -> tuple[Energy, Tensor]:
        """The energy of data y, and the naive reconstruction; data that are images are mirrored as elsewhere."""
        problem = self.problem(y).mirrored(self.regularizer.margin)
        return energy_of(problem, self.regularizer, self.mu), critic_reconstruction(problem.y, problem.operator)

    def _inside(self, z: Tensor, y: Tensor) -> Tensor:
        """Without the mirrored boundary."""
        margin = self.regularizer.margin if self.operator is None or isinstance(self.operator, Identity) else 0
        return z[..., margin : margin + y.shape[2], margin : margin + y.shape[3]] if margin else z

    def method(self, problem: Data) -> Method:
        """Minimizers with certified errors where the energy is strongly convex, else early stopped descent."""
        method = of_energy(problem, self.regularizer, self.mu, self.descent_iterations)
        return super().method(problem) if isinstance(method, Variational) else method

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def extra_metadata(self) -> dict[str, object]:
        """What the files of the trained regularizer say beside the energy: weights, steps of descent, ramp of FBP."""
        return {
            "weight": self.weight,
            "published_weight": self.published_weight,
            "weight_rule": "largest mean PSNR on validation data" if self.trials else "mean ||A^T D'(Ax, y)||",
            "weight_trials": [{"weight": weight, "psnr": value} for weight, value in self.trials],
            "descent_iterations": self.descent_iterations,
            "ramp": "space",  # of critic_reconstruction; files without it are older, and learned from "frequency"
        }

    def metadata(self) -> dict[str, object]:
        return super().metadata() | self.extra_metadata()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the weights; ``untuned`` is the scale of R that training goes on with."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["bilevel"]["adversarial"] = self.extra_metadata() | {"untuned": self._untuned}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As the base class; in training, R has the published weight again."""
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint["bilevel"].get("adversarial")
        if saved is None:
            raise CheckpointError(f"{self._checkpoint_name}: not a checkpoint of adversarial training")
        self._check_ramp(saved)
        if self._resumed is not None:
            if saved["untuned"] is not None:
                scale = scale_parameter(self.regularizer)
                name = next(n for n, p in self.regularizer.named_parameters() if p is scale)
                checkpoint["state_dict"][f"regularizer.{name}"] = saved["untuned"]
            return
        self.weight, self.published_weight = saved["weight"], saved["published_weight"]
        self.trials = [(t["weight"], t["psnr"]) for t in saved["weight_trials"]]
        self.descent_iterations = int(saved["descent_iterations"])

    def _check_ramp(self, saved: dict[str, object]) -> None:
        """Refuse to go on, with other images, from what learned from the older filtered back-projection."""
        if "ramp" in saved or not isinstance(self.operator, RayTransform):
            return
        older = (
            f"{self._checkpoint_name}: is of critics that learned from filtered back-projections with the ramp sampled "
            "in frequency, 38 HU brighter than today's"
        )
        if self._resumed is not None:
            raise CheckpointError(f"{older}; train anew")
        if self.regularizer.convexity() < 0:  # others have minimizers that do not depend on the start
            log.warning("%s, and now its descent starts from these; train anew for figures of its own", older)

    def _problem(self) -> dict[str, object]:
        own = {"penalty": float(self.penalty), "method": "adversarial"}
        return super()._problem() | own | {"loss": describe(SquaredError())}  # it has none, but checkpoints say one

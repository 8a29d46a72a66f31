"""Supervised training of networks that reconstruct, in mini-batches, in Lightning."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from models.files.checkpoints import CheckpointError, checksum, describe
from models.files.setting import describe_setting, setting_difference
from models.training.module import Belongings, ReconstructionModule
from recon.bilevel.loss import check_finite
from recon.errors import at_least, one_of, positive
from recon.names import public_name
from recon.operators import LinearOperator
from recon.reconstruction import Data, Method, Network, Reconstructor

log = logging.getLogger(__name__)

_NUMBERS = 1_000_003  # sets passes and steps of different seeds apart


class PublishedAdam(torch.optim.Adam):
    """Adam with the numbers of Adler and Öktem 2018."""

    def __init__(
        self, params: Iterable[Tensor], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-8
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps)


class PassRecord(NamedTuple):
    """iteration: steps so far; loss, gradient_norm: means over the steps of the pass; lr: of its last step."""

    iteration: int
    loss: float
    lr: float
    gradient_norm: float
    finished: bool


class SupervisedModule(ReconstructionModule):
    r"""Learns theta in x = F_theta(y, A) by min_theta mean (F_theta(y_i, A) - x_i\*)^2, the mean also over pixels.

    The data loader serves the whole training set as one batch ``(x, y, index)``, as for
    :class:`models.BilevelModule`. One epoch is one pass through it, with a step of the optimizer for each
    mini-batch, in an order that ``seed`` and the number of the pass decide. Step k = 0, 1, ... has the learning rate
    lr (1 + cos(pi k / steps)) / 2 with the annealing ``"cosine"``, and a gradient whose norm is cut to
    ``gradient_clip``; training ends after ``steps`` of them. All this is a function of k, and what networks draw at
    random (dropout) of ``seed`` and k: a resumed training ends with the numbers of one that was not interrupted.

    Nothing is certified: reconstructions come with an infinite error. Defaults are those of Adler and Öktem 2018.

    Parameters
    ----------
    reconstructor
        F_theta; what is learned are its trainable parameters.
    optimizer
        parameters -> any optimizer of torch.
    operator
        A; by default a copy of the data module's, or the identity.
    batch_size
        images in a mini-batch; the last one of a pass may have fewer.
    steps
        of the optimizer, in the whole training.
    annealing
        of the learning rate, ``"cosine"`` or ``"none"``.
    gradient_clip
        largest norm of the gradient; None leaves it as it is.
    seed
        of the order of the images.

    Raises
    ------
    ValueError
        a number is out of range; in training, data that do not fit or are not finite, a loader with more than one
        batch, a loss or a gradient that is not finite.
    CheckpointError
        (a ValueError) a checkpoint of another network or, in training, of another problem.
    """

    _part, _entry = "reconstructor", "supervised"
    _remedy = "that of the model to the size of the mini-batches"

    def __init__(
        self,
        reconstructor: Reconstructor,
        optimizer: OptimizerCallable | None = None,
        operator: LinearOperator | None = None,
        batch_size: int = 1,
        steps: int = 100_000,
        annealing: Literal["cosine", "none"] = "cosine",
        gradient_clip: float | None = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer if optimizer is not None else PublishedAdam, operator)
        at_least(1, batch_size=batch_size, steps=steps)
        at_least(0, seed=seed)
        one_of(("cosine", "none"), annealing=annealing)
        positive(gradient_clip=gradient_clip)
        self.reconstructor = reconstructor
        self.batch_size, self.steps, self.annealing = batch_size, steps, annealing
        self.gradient_clip, self.seed = gradient_clip, seed
        self.record: PassRecord | None = None
        self._belongs: Belongings | None = None

    # --- training ----------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer of theta; its learning rates before annealing are kept as ``initial_lr``."""
        optimizer = super().configure_optimizers()
        betas = optimizer.defaults.get("betas")
        self._method["betas"] = list(betas) if betas else None
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return optimizer

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_index: int) -> None:
        """One pass, or what is left of it, through ``batch``, the whole training set."""
        x, y = batch[0], batch[1]
        if self._belongs is None:
            self._start(x, y)
        k = self.trainer.global_step
        number, begin = divmod(k, math.ceil(len(x) / self.batch_size))
        generator = torch.Generator().manual_seed(_NUMBERS * self.seed + number)
        order = torch.randperm(len(x), generator=generator).split(self.batch_size)[begin:]
        values = [self._descend(x[i], y[i], k + n) for n, i in enumerate(order[: max(self.steps - k, 0)])]
        if values:
            done = k + len(values)
            losses, norms = zip(*values, strict=True)
            loss, norm = (math.fsum(v) / len(values) for v in (losses, norms))
            self.record = PassRecord(done, loss, self._rate(done - 1), norm, done >= self.steps)
            self.log("loss", torch.tensor(loss, dtype=torch.float64), logger=False, on_step=True, on_epoch=False)
            self._to_loggers({"loss": loss, "lr": self.record.lr, "gradient_norm": norm})
        if k + len(values) >= self.steps:
            self.trainer.should_stop = True

    def _start(self, x: Tensor, y: Tensor) -> None:
        """Check the training set, and that a checkpoint belongs to it and to this problem."""
        self._check_loader()
        dtypes = {p.dtype for p in self.reconstructor.parameters()}
        if dtypes != {x.dtype} or x.dtype != y.dtype:
            raise ValueError(
                f"the images are {x.dtype} and the data {y.dtype}, but the network is "
                f"{', '.join(map(str, dtypes))}; give the data module an attribute dtype, or cast the module"
            )
        check_finite("true images", x)
        check_finite("data", y)
        belongs: Belongings = {"problem": self._problem(), "data": checksum(x, y)}
        if self._resumed is not None:
            self._check_problem(self._resumed["problem"], belongs["problem"])
            self._check_data(belongs["data"])
            self._resumed = None
        self._belongs = belongs
        passes, limit = math.ceil(self.steps * self.batch_size / len(x)), self.trainer.max_epochs
        if limit is not None and 0 <= limit < passes:
            log.warning(
                "max_epochs %d ends the training before its %d steps, which are %d passes", limit, self.steps, passes
            )

    def _check_problem(self, saved: dict[str, Any], current: dict[str, Any]) -> None:
        found = setting_difference(saved["setting"], current["setting"])
        if found is not None:
            raise CheckpointError(f"{self._checkpoint_name}: belongs to another problem: {found}")
        # the data of the setting: their checksum says more
        self._require("problem", saved | {"setting": None}, current | {"setting": None})

    def _descend(self, x: Tensor, y: Tensor, k: int) -> tuple[float, float]:
        """Step k of the optimizer; the loss before it, and the norm of its gradient."""
        optimizer: Any = self.optimizers()
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self._factor(k)
        found: list[tuple[float, float]] = []

        def closure() -> Tensor:
            optimizer.zero_grad()
            estimate = self.reconstructor(y, self._operator)
            if estimate.shape != x.shape:
                raise ValueError(
                    f"{public_name(self.reconstructor)} makes images of shape {tuple(estimate.shape)}; "
                    f"the true ones have {tuple(x.shape)}"
                )
            loss = (estimate - x).square().mean()
            self.manual_backward(loss)
            limit = math.inf if self.gradient_clip is None else self.gradient_clip
            norm = torch.nn.utils.clip_grad_norm_(self.reconstructor.trainable(), limit)
            found.append((float(loss.detach()), float(norm)))
            if not (math.isfinite(found[-1][0]) and math.isfinite(found[-1][1])):
                raise ValueError(
                    f"step {k + 1} of the training: the loss is {found[-1][0]:g} and the norm of its gradient "
                    f"{found[-1][1]:g}; start again with a smaller lr of the optimizer, or other initial parameters"
                )
            return loss

        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(_NUMBERS * self.seed + k)
            optimizer.step(closure=closure)
        return found[0]

    def _factor(self, k: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * k / self.steps)) if self.annealing == "cosine" else 1.0

    def _rate(self, k: int) -> float:
        optimizer: Any = self.optimizers()
        return float(optimizer.param_groups[0]["initial_lr"]) * self._factor(k)

    # --- what is shown of it -----------------------------------------------------------------------------------------

    @property
    def iteration(self) -> int | None:
        return self.record.iteration if self.record is not None else None

    @property
    def learned(self) -> Reconstructor:
        return self.reconstructor

    def progress(self) -> str:
        record = self.record
        return "" if record is None else f"loss {record.loss:.4g}, lr {record.lr:.1e}, |g| {record.gradient_norm:.1e}"

    def summary(self) -> dict[str, object]:
        record = self.record
        assert record is not None
        return {
            "status": "all steps made" if record.finished else "iteration limit",
            "iterations": record.iteration,
            "steps": self.steps,
            "loss": record.loss,
            "gradient_norm": record.gradient_norm,
            "parameters": sum(p.numel() for p in self.reconstructor.parameters()),
        }

    # --- reconstruction ----------------------------------------------------------------------------------------------

    def method(self, problem: Data) -> Method:
        """The network."""
        return Network(self.reconstructor)

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def _belongs_to(self) -> Belongings:
        return self._belongs or {}

    def _check_learned(self, saved: dict[str, object]) -> None:
        """Arguments that are younger than the checkpoint had the value ``older_arguments`` when it was trained."""
        current, older = describe(self.reconstructor), self.reconstructor.older_arguments
        changed = [name for name in older if name not in saved and older[name] != current.get(name)]
        if changed and saved.get("class") == current["class"]:
            remedy = " ".join(f"--model.reconstructor.init_args.{name} {older[name]}" for name in changed)
            raise CheckpointError(
                f"{self._checkpoint_name}: is older than the argument {' and '.join(changed)} of "
                f"{current['class']}; it has learned with {remedy}. Give this, or the same in the configuration"
            )
        self._require("reconstructor", _completed(saved, self.reconstructor), current)

    def _problem(self) -> dict[str, object]:
        return {
            "optimizer": self._method,
            "setting": describe_setting(self._operator, self._datamodule),
            "batch_size": self.batch_size,
            "steps": self.steps,
            "annealing": self.annealing,
            "gradient_clip": self.gradient_clip,
            "seed": self.seed,
            "dtype": str(next(self.reconstructor.parameters()).dtype),
        }


def _completed(saved: dict[str, object], network: nn.Module) -> dict[str, object]:
    """The description of a network with what its arguments, and those of its parts, were before they existed."""
    older = network.older_arguments if isinstance(network, Reconstructor) else {}
    found = older | saved
    for name, part in network.named_children():
        if isinstance(described := found.get(name), dict):
            found[name] = _completed(described, part)
    return found

"""Lightning's command line with this project's defaults: trainings, validations, tests and predictions."""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import pytorch_lightning as pl
import torch
from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.loggers.logger import Logger
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from datasets import SimulatedDataModule
from models.files.checkpoint_file import load_checkpoint
from models.files.checkpoints import BackgroundCheckpointIO
from models.files.setting import describe_setting
from models.files.storage import save_regularizer, specification
from models.training.callbacks import ImageLogger, IterationProgress, LastCheckpoint, PredictionWriter
from models.training.module import ReconstructionModule
from models.training.supervised import SupervisedModule
from models.training.upper_level import UpperLevelModule
from recon.commands.configuration.classes import check_classes
from recon.commands.configuration.older import check_options, read_older
from recon.commands.configuration.yaml_files import check_yaml, read_yaml
from recon.commands.errors import printable
from recon.commands.fit.metrics import MetricsFile, Stopwatch
from recon.commands.fit.quiet import quiet
from recon.commands.fit.stage import Stage
from recon.commands.output.lock import locked
from recon.commands.output.runs import (
    CHECKPOINTS,
    CONFIG,
    config_name,
    finite,
    latest_checkpoint,
    new_run,
    run_of_checkpoint,
)
from recon.commands.output.summary import write_summary
from recon.files import write_files
from recon.lower_level import Grade
from recon.names import public_name
from recon.operators import Identity

OUTPUTS = Path("outputs")

TRAINER_DEFAULTS: dict[str, object] = {
    "devices": 1,  # one process sees the whole training set
    "inference_mode": False,  # solvers may differentiate
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "max_epochs": 1000,
}


class ReconCLI(LightningCLI):
    """Every run has its own folder, ``outputs/<experiment>/version_<n>`` (``validate_<n>``, ``test_<n>``, ...).

    A run that is resumed (``--ckpt_path .../checkpoints/last.ckpt``, or just ``last``) goes on in its folder.
    ``--trainer.default_root_dir`` replaces ``outputs/<experiment>``.
    """

    run: Path
    held: contextlib.ExitStack
    resumed_step: int | None = None
    stopwatch: Stopwatch

    def __init__(self, *args: Any, held: contextlib.ExitStack, stage: Stage | None, **kwargs: Any) -> None:
        # of the folder; the base class does everything right here
        self.held, self.stage = held, stage
        super().__init__(*args, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--checkpoint_every", type=PositiveInt, default=1, help="Iterations between two writings of last.ckpt."
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse what is given, and check its classes; Lightning's own method warns if ``sys.argv`` is not empty."""
        self.config = parser.parse_args(args)
        slots = {"model": pl.LightningModule, "data": pl.LightningDataModule, "trainer": pl.Trainer}
        check_classes(self.config[self.config.subcommand], slots)

    def _parse_ckpt_path(self) -> None:
        """Nothing: checkpoints hold no configuration; what they belong to is checked when they are loaded."""

    def before_instantiate_classes(self) -> None:
        """Choose the folder of the run, and read a checkpoint once, so that errors come before the work."""
        settings = self.config[self.subcommand]
        files = settings.get("config") or []
        self.config_file = self.stage.config if self.stage else Path(str(files[0])) if files else None
        chosen = settings.trainer.default_root_dir
        root = Path(chosen) if chosen else OUTPUTS / config_name(self.config_file)
        checkpoint = settings.get("ckpt_path")
        if checkpoint in ("last", "best"):
            checkpoint = latest_checkpoint(root, checkpoint)
        run = None
        if checkpoint is not None:
            settings["ckpt_path"] = str(checkpoint)
            if self.subcommand == "fit" and (run := run_of_checkpoint(Path(checkpoint))) is not None:
                self.held.enter_context(locked(run))  # before it is read: another program may go on writing it
            step = load_checkpoint(checkpoint).get("global_step")
            if self.subcommand == "fit":
                self.resumed_step = step
        self._root = root
        self._resumed_run = run

    def instantiate_trainer(self, **kwargs: object) -> pl.Trainer:
        """Add loggers, checkpoints, pictures and the progress bar; what the configuration names stays."""
        self._begin = time.perf_counter()
        if self._resumed_run is not None:
            self.run = self._resumed_run
        elif self.stage is not None:
            self.run = self.stage.folder
            self.run.mkdir()
            self.held.enter_context(locked(self.run))
        else:
            self.run = new_run(self._root, "version" if self.subcommand == "fit" else str(self.subcommand))
            self.held.enter_context(locked(self.run))
        config = dict(self._get(self.config_init, "trainer"))
        callbacks, plugins = _as_list(config.get("callbacks")), _as_list(config.get("plugins"))
        if config.get("logger") in (None, True):
            kwargs["logger"] = self._loggers()
        if config.get("accelerator") == "auto":
            # Lightning would also choose Apple's GPUs, which know no float64
            kwargs["accelerator"] = "cuda" if torch.cuda.is_available() else "cpu"
        kwargs["default_root_dir"] = str(self.run)
        kwargs["callbacks"] = callbacks + self._callbacks(config, callbacks)
        kwargs["plugins"] = [*plugins, BackgroundCheckpointIO()]
        return super().instantiate_trainer(**kwargs)

    def _loggers(self) -> list[Logger]:
        loggers: list[Logger] = [MetricsFile(self.run, self.resumed_step if self._resumed_run else None)]
        if self.subcommand == "fit":
            loggers.append(TensorBoardLogger(str(self.run), name="", version="tensorboard"))
        return loggers

    def _callbacks(self, config: dict[str, object], given: list[Callback]) -> list[Callback]:
        if self.subcommand == "predict":
            return [PredictionWriter(self.run)]
        if self.subcommand != "fit":
            return []
        self.stopwatch = Stopwatch()
        callbacks: list[Callback] = [self.stopwatch]
        if not any(isinstance(callback, ImageLogger) for callback in given):
            callbacks.append(ImageLogger())
        if config.get("enable_progress_bar") is not False:
            callbacks.append(IterationProgress())
        if config.get("enable_checkpointing") is not False:
            folder = self.run / CHECKPOINTS
            best = ModelCheckpoint(
                folder,
                filename="best",
                monitor="val_psnr",
                mode="max",
                save_on_train_epoch_end=False,
                enable_version_counter=False,
            )
            every = self._get(self.config_init, "checkpoint_every")
            callbacks += [best, LastCheckpoint(folder / "last.ckpt", every)]
        return callbacks

    # --- fit ---------------------------------------------------------------------------------------------------------

    def _run_subcommand(self, subcommand: str) -> None:
        """Run; a new run that fails before it has a checkpoint leaves no folder behind."""
        try:
            super()._run_subcommand(subcommand)
        except BaseException:
            if self._resumed_run is None and not any(self.run.glob(f"{CHECKPOINTS}/*")):
                shutil.rmtree(self.run, ignore_errors=True)
            raise

    def before_fit(self) -> None:
        """Write the configuration in force, with all defaults, into the folder of the run."""
        if isinstance(self.model, ReconstructionModule):
            if self.stage is not None and self._resumed_run is None:
                self.stage.take_over(self.model.learned)
            specification(self.model.learned)  # what cannot be exported is refused before hours of training
        parser = self._parser(self.subcommand)
        settings = self.config[self.subcommand].clone()
        settings.pop("config", None)
        text = parser.dump(settings, skip_validation=True)
        write_files({self.run / CONFIG: text.encode()})

    def after_fit(self) -> None:
        """Export what was learned, write ``summary.json``, print the table."""
        if not isinstance(self.model, ReconstructionModule):
            return
        if self.stage is not None and isinstance(self.model, UpperLevelModule):
            self.model.restore_record()  # of a stage that was interrupted between its last iteration and its model
        if self.model.iteration is None:
            limit = f"max_epochs of the trainer is {self.trainer.max_epochs}; set it (and max_steps) higher"
            if isinstance(self.model, SupervisedModule) and (self.resumed_step or 0) >= self.model.steps:
                limit = f"steps of the model is {self.model.steps}, the end of its schedule"
            raise ValueError(
                f"nothing is left to do: the checkpoint has made {self.resumed_step or 0} iterations already, and "
                f"{limit}"
            )
        validated = self.model.validated_iteration == self.model.iteration
        if self.datamodule is not None and self.trainer.limit_val_batches and not validated:
            self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
        summary = self._summary(self.model)
        name = "regularizer" if isinstance(self.model, UpperLevelModule) else "reconstructor"
        save_regularizer(self.model.learned, self.run / f"{name}.safetensors", self._metadata(self.model))
        self._report(summary, self.stopwatch.seconds, str(summary.get("status", "finished")))

    def after_test(self) -> None:
        """Write ``summary.json`` and print the table: means of PSNR and SSIM, the largest certified error."""
        means = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        self._report(means, time.perf_counter() - self._begin, "finished")

    after_validate = after_test

    def _report(self, summary: Mapping[str, object], seconds: float, status: str) -> None:
        numbers = {name: value for name, value in summary.items() if name not in ("seconds", "status")}
        write_summary(self.run, str(self.subcommand), seconds, status, numbers)
        table = Table(title=escape(printable(self.run)), show_header=False)
        for name, value in summary.items():
            table.add_row(name, f"{value:.6g}" if isinstance(value, float) else escape(printable(value)))
        Console().print(table)

    def _metadata(self, model: ReconstructionModule) -> dict[str, object]:
        """What reconstruction needs beside the model, what it is for, and where it comes from."""
        operator = model.operator if model.operator is not None else Identity()
        content: dict[str, object] = {"operator": public_name(operator)}
        if isinstance(model, UpperLevelModule):
            content |= model.metadata()
        content["setting"] = describe_setting(operator, self.datamodule)
        if isinstance(self.datamodule, SimulatedDataModule):
            content["learned_from"] = self.datamodule.fingerprints("train")
        training = finite(self._summary(model))
        if self.stage is not None:
            content |= self.stage.metadata(training)
        return content | {"training": training}

    def _summary(self, model: ReconstructionModule) -> dict[str, object]:
        summary, metrics = model.summary(), self.trainer.callback_metrics
        for name in ("val_psnr", "val_ssim", "val_error"):
            if name in metrics:
                summary[name] = float(metrics[name])
        if math.isfinite(float(metrics.get("val_error", math.inf))):
            summary["val_grade"] = Grade(int(metrics["val_grade"])).word
        return summary | {
            "seconds": self.stopwatch.seconds,
            "regularizer" if isinstance(model, UpperLevelModule) else "reconstructor": public_name(model.learned),
            "config": str(self.config_file) if self.config_file is not None else None,
        }


class _Checked(Exception):
    """The end of a check, with the arguments as they were parsed."""

    def __init__(self, config: Namespace) -> None:
        super().__init__()
        self.config = config


class _CheckingCLI(ReconCLI):
    """Stops where the arguments are parsed and checked, and nothing is made yet."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        super().parse_arguments(parser, args)
        raise _Checked(self.config)


def check_cli(arguments: list[str]) -> Namespace:
    """Raise what :func:`run_cli` raises for ``arguments`` that it does not take; nothing is made or run.

    Returns
    -------
    Namespace
        The configuration of the subcommand, ``arguments[0]``, in force.
    """
    try:
        config = _make_cli(_CheckingCLI, arguments).config
    except _Checked as checked:
        config = checked.config
    found: Namespace = config[arguments[0]]
    return found


def run_cli(arguments: list[str], stage: Stage | None = None) -> ReconCLI:
    """Parse ``arguments`` (subcommand first) and run, perhaps as a stage of a training.

    Raises
    ------
    argparse.ArgumentError, ValueError, OSError
        what is wrong with the configuration, the data or the files; another program writes into the folder of the run.
    """
    return _make_cli(ReconCLI, arguments, stage)


def _make_cli(kind: type[ReconCLI], arguments: list[str], stage: Stage | None = None) -> ReconCLI:
    quiet()
    _speak()
    read_older()
    check_options(arguments)
    _check_order(arguments)
    _check_files(arguments)
    subcommands = ReconCLI.subcommands()
    with contextlib.ExitStack() as held:
        return kind(
            pl.LightningModule,
            pl.LightningDataModule,
            held=held,
            stage=stage,
            save_config_callback=None,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_kwargs={"exit_on_error": False, "prog": "recon"}
            | {name: {"exit_on_error": False} for name in subcommands},
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=arguments,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )


def _check_order(arguments: list[str]) -> None:
    """Refuse options in front of ``--config``: jsonargparse lets the file replace them without a word."""
    names = [argument.partition("=")[0] for argument in arguments]
    first = names.index("--config") if "--config" in names else 0
    for name in names[:first]:
        if name.partition(".")[0] in ("--model", "--data", "--trainer"):
            raise ValueError(f"{name} stands before --config, whose file could replace it; put it behind the file")


def _check_files(arguments: list[str]) -> None:
    """Refuse configurations, and files in place of their sections, that cannot be read or are small only as aliases."""
    for first, second in zip(arguments, [*arguments[1:], ""], strict=True):
        name, _, value = first.partition("=")
        if name == "--config" and (path := Path(value or second)).is_file():
            content = read_yaml(path)
            for section in content.values() if isinstance(content, dict) else ():
                if isinstance(section, str) and (path.parent / section).is_file():
                    check_yaml(path.parent / section)


class _ToStandardError(logging.StreamHandler[TextIO]):
    """Writes to what the standard error stream is when something is said, not when the handler was made."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def _speak() -> None:
    """Say on the standard error stream what the library says while it trains."""
    own = logging.getLogger("models")
    if not own.handlers:
        own.addHandler(_ToStandardError())
        own.setLevel(logging.INFO)


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]

"""Trainings in several stages, see :mod:`recon.commands.configuration.stages`: one run, a folder in it for each."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from jsonargparse import ArgumentParser, Namespace
from pytorch_lightning import LightningModule
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models.training.module import ReconstructionModule
from recon.commands.configuration.stages import STAGES, StageConfiguration, read_stages
from recon.commands.configuration.yaml_files import read_yaml
from recon.commands.errors import printable, sentence
from recon.commands.fit.cli import OUTPUTS, check_cli, run_cli
from recon.commands.fit.stage import Stage
from recon.commands.output.lock import locked
from recon.commands.output.runs import CHECKPOINTS, CONFIG, config_name, finite, new_run
from recon.commands.output.summary import SUMMARY, write_summary
from recon.commands.output.tables import table
from recon.files import write_files
from recon.names import public_name

#: of a row of the table, beside the name and the model of the stage
COLUMNS = ("iterations", "evaluations", "seconds", "loss", "lower", "upper", "grade", "val_psnr", "guarantee", "status")


@dataclass(frozen=True)
class StagedCommand:
    """A command whose configuration has stages.

    ``options`` are its arguments but the subcommand, the file with the stages, ``--ckpt_path`` and the root of runs;
    the file belongs at ``place`` of them.
    """

    subcommand: str
    file: Path
    place: int
    options: list[str]
    checkpoint: str | None
    root: Path
    stages: list[StageConfiguration]

    def arguments(self, config: Path) -> list[str]:
        """With the configuration of a stage in place of that of all."""
        return [self.subcommand, *self.options[: self.place], "--config", str(config), *self.options[self.place :]]


def run(arguments: list[str]) -> None:
    """Run the subcommand ``arguments[0]``: as :func:`recon.commands.fit.cli.run_cli` or, with stages, one by one.

    Subcommands other than ``fit`` take the configuration of the last stage.

    Raises
    ------
    argparse.ArgumentError, ValueError, OSError
        As ``run_cli``; stages that do not follow from each other; a run that cannot go on with these stages.
    """
    command = staged_command(arguments)
    if command is None:
        run_cli(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.yaml" for i in range(len(command.stages))]
        for file, stage in zip(files, command.stages, strict=True):
            file.write_text(yaml.safe_dump(stage.content, sort_keys=False))
        if command.subcommand == "fit":
            _fit(command, files)
            return
        rest = ["--trainer.default_root_dir", str(command.root)]
        if command.checkpoint is not None:
            rest += ["--ckpt_path", str(_checkpoint(command))]
        run_cli(command.arguments(files[-1]) + rest)


def staged_command(arguments: Sequence[str]) -> StagedCommand | None:
    """What the arguments ask for, if one of their configurations has stages; None else.

    Raises
    ------
    ValueError
        Several have stages, or the stages are none.
    OSError
        A configuration cannot be read.
    """
    places = [i for i, a in enumerate(arguments) if a.partition("=")[0] == "--config"]
    found: list[tuple[int, int, Path, list[StageConfiguration]]] = []
    for i in places:
        inside = "=" in arguments[i]
        value = arguments[i].partition("=")[2] if inside else "".join(arguments[i + 1 : i + 2])
        if Path(value).is_file() and (stages := read_stages(Path(value))) is not None:
            found.append((i, i + 1 if inside else i + 2, Path(value), stages))
    if not found:
        return None
    if len(found) > 1:
        raise ValueError(f"{' and '.join(str(f[2]) for f in found)}: both have stages; valid is one such file")
    begin, end, file, stages = found[0]
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False, exit_on_error=False)
    parser.add_argument("--ckpt_path")
    parser.add_argument("--trainer.default_root_dir", dest="root")
    before = parser.parse_known_args(arguments[1:begin])
    known, after = parser.parse_known_args(arguments[end:])
    if vars(before[0]) != {"ckpt_path": None, "root": None}:
        raise ValueError("--ckpt_path and --trainer.default_root_dir stand before --config; put them behind the file")
    trainer = stages[0].content.get("trainer")
    chosen = known.root or (trainer.get("default_root_dir") if isinstance(trainer, dict) else None)
    root = Path(str(chosen)) if chosen else OUTPUTS / config_name(file)
    return StagedCommand(arguments[0], file, len(before[1]), [*before[1], *after], known.ckpt_path, root, stages)


# --- checks before anything is computed ------------------------------------------------------------------------------


def _check(command: StagedCommand, files: Sequence[Path]) -> None:
    """Raise ``ValueError`` for a stage that ``recon fit`` refuses, or that does not follow from the one before."""
    shapes: dict[str, tuple[int, ...]] | None = None
    kind: type | None = None
    for stage, file in zip(command.stages, files, strict=True):
        name = f"{command.file}: stage {stage.name}"
        try:
            learned = _model(check_cli(command.arguments(file))["model"]).learned
        except (argparse.ArgumentError, ValueError, TypeError) as error:
            raise ValueError(f"{name}: {sentence(error)}") from error
        own = {key: tuple(p.shape) for key, p in learned.named_parameters()}
        part = "model.init_args.regularizer" if hasattr(learned, "convexity") else "model.init_args"
        if kind is not None and type(learned) is not kind:
            raise ValueError(
                f"{name}: {part} is {public_name(learned)}, but that of the stage before is {public_name(kind)}; a "
                "stage goes on with the parameters of the one before"
            )
        if shapes is not None and own != shapes:
            key = next(k for k in own.keys() | shapes.keys() if own.get(k) != shapes.get(k))
            raise ValueError(
                f"{name}: arguments of {part} change the parameter {key}, which has the shape {shapes.get(key)} in the "
                f"stage before and {own.get(key)} here; a stage goes on with the parameters of the one before"
            )
        kind, shapes = type(learned), own


def _model(section: Namespace) -> ReconstructionModule:
    """The module that a parsed section describes; nothing is computed."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--model", type=LightningModule)
    model = parser.instantiate(parser.parse_object({"model": section.as_dict()})).model
    if not isinstance(model, ReconstructionModule):
        raise ValueError(f"model is {public_name(model)}; stages need one of this project, e.g. models.BilevelModule")
    return model


# --- training --------------------------------------------------------------------------------------------------------


def _fit(command: StagedCommand, files: Sequence[Path]) -> None:
    if any(option.partition("=")[0] == "--print_config" for option in command.options):
        for own, file in zip(command.stages, files, strict=True):
            print(f"# stage {own.name}", flush=True)
            with contextlib.suppress(SystemExit):
                check_cli(command.arguments(file))
        return
    _check(command, files)
    if command.checkpoint is None:
        folder = new_run(command.root, "version")
    else:
        folder = _run_of(command)
    with locked(folder):
        stages = _stages(command, folder)
        if command.checkpoint is not None:
            _check_finished(command, folder, stages)
        content = {STAGES: [{"name": s.name, **s.content} for s in command.stages]}
        write_files({folder / CONFIG: yaml.safe_dump(content, sort_keys=False).encode()})
        for i, (stage, file) in enumerate(zip(stages, files, strict=True)):
            if stage.model_file is None:
                print(f"stage {i + 1} of {len(stages)}: {stage.configuration.name}", flush=True)
                _train(command, stage, file)
        _conclude(command, folder, stages)


def _stages(command: StagedCommand, folder: Path) -> list[Stage]:
    """The stages of a run, each with the one before."""
    stages: list[Stage] = []
    for i, own in enumerate(command.stages):
        place = folder / f"{i + 1}_{own.name}"
        stages.append(Stage(own, place, command.file, command.options, stages[-1] if stages else None))
    return stages


def _train(command: StagedCommand, stage: Stage, file: Path) -> None:
    """A stage, from its last checkpoint on if there is one; a run that has nothing at all yet leaves no folder."""
    arguments = command.arguments(file)
    checkpoint = stage.folder / CHECKPOINTS / "last.ckpt"
    if checkpoint.is_file():
        arguments += ["--ckpt_path", str(checkpoint)]
    elif stage.folder.exists():  # of a program that was killed before its first checkpoint
        shutil.rmtree(stage.folder)
    try:
        run_cli(arguments, stage)
    except BaseException:
        if stage.before is None and not stage.folder.exists():
            shutil.rmtree(stage.folder.parent, ignore_errors=True)
        raise


def _conclude(command: StagedCommand, folder: Path, stages: Sequence[Stage]) -> None:
    """Write the final model, ``stages.csv`` and ``summary.json`` of the run, and print the table."""
    model = stages[-1].model_file
    assert model is not None
    # the description, without which no program reads the tensors, last
    for file in (model, model.with_suffix(".json")):
        write_files({folder / file.name: file.read_bytes()})
    rows = [_row(stage) for stage in stages]
    write_files({folder / "stages.csv": table(rows)})
    seconds = sum(float(stage.summary()["seconds"]) for stage in stages)
    last = {key: rows[-1][key] for key in ("loss", "lower", "upper", "grade", "val_psnr", "guarantee")}
    numbers = {"config": str(command.file), "options": list(command.options), **last, "stages": rows}
    write_summary(folder, "fit", seconds, str(rows[-1]["status"]), numbers)
    shown = Table(title=escape(printable(folder)))
    for name in ("stage", "evaluations", "seconds", "loss", "in", "val_psnr", "guarantee"):
        shown.add_column(name)
    for row in rows:
        interval = f"[{_shown(row['lower'])}, {_shown(row['upper'])}]"
        values = [row[key] for key in ("stage", "evaluations", "seconds", "loss")]
        cells = [*map(_shown, values), interval, _shown(row["val_psnr"]), _shown(row["guarantee"])]
        shown.add_row(*map(escape, cells))
    Console().print(shown)


def _shown(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else "" if value is None else printable(value)


def _row(stage: Stage) -> dict[str, object]:
    summary, model = stage.summary(), stage.configuration.content.get("model")
    kind = model.get("class_path") if isinstance(model, Mapping) else model
    own = finite({key: summary.get(key) for key in COLUMNS})
    return {"stage": stage.configuration.name, "model": kind, **own}


# --- interrupted runs ------------------------------------------------------------------------------------------------


def _run_of(command: StagedCommand) -> Path:
    """The run that ``--ckpt_path`` asks to go on with: the newest one for ``last``, or that of a file in it.

    Raises
    ------
    FileNotFoundError
        There is none.
    ValueError
        It is no run with stages, or none that can go on.
    """
    given = str(command.checkpoint)
    if given == "best":
        raise ValueError("--ckpt_path best: a training in stages goes on from the last checkpoint; valid is `last`")
    if given == "last":
        runs = [path.parent for path in command.root.glob(f"version_*/{CONFIG}")]
        if not runs:
            raise FileNotFoundError(f"{command.root}: has no run with stages that could go on")
        folder = max(runs, key=lambda path: (path / CONFIG).stat().st_mtime)
    else:
        path = Path(given).resolve()
        if not path.exists():
            raise FileNotFoundError(f"{given}: no such file")
        folder = path if path.is_dir() else path.parent.parent.parent
    if not (folder / CONFIG).is_file() or STAGES not in read_yaml(folder / CONFIG):
        raise ValueError(f"{folder}: is no run of a training in stages; start anew without --ckpt_path")
    if (folder / SUMMARY).is_file():
        raise ValueError(f"{folder}: nothing is left to do: all stages are finished")
    return folder


def _check_finished(command: StagedCommand, folder: Path, stages: Sequence[Stage]) -> None:
    """Raise ``ValueError`` if a finished stage of the run is another one than that of the configuration."""
    before = read_yaml(folder / CONFIG)[STAGES]
    for i, stage in enumerate(stages):
        if i < len(before) and not (folder / f"{i + 1}_{before[i]['name']}" / SUMMARY).is_file():
            return
        name = stage.configuration.name
        saved = before[i] if i < len(before) else {}
        current = {"name": name, **stage.configuration.content}
        keys = [key for key in saved.keys() | current.keys() if saved.get(key) != current.get(key)]
        if keys:
            raise ValueError(
                f"{folder}: stage {i + 1}, {saved.get('name', 'which it does not have')}, was finished with another "
                f"{', '.join(sorted(keys))} than stage {name} of {command.file}; start anew without --ckpt_path"
            )
        theirs, mine = _of_problem(stage.history()[-1]["options"]), _of_problem(command.options)
        if theirs != mine:
            raise ValueError(
                f"{folder}: stage {name} was finished with the options {' '.join(theirs) or 'of its file'}, not "
                f"{' '.join(mine) or 'those of its file'}; start anew without --ckpt_path"
            )


def _of_problem(options: Sequence[str]) -> list[str]:
    """The options of model and data, with their values: those of the trainer may change."""
    found, taken = [], False
    for option in options:
        if option.startswith("--"):
            taken = option.startswith(("--model", "--data"))
        if taken:
            found.append(option)
    return found


def _checkpoint(command: StagedCommand) -> Path:
    """The file that ``--ckpt_path`` names, the newest one of the last stage for ``last`` and ``best``.

    Raises
    ------
    FileNotFoundError
        There is none.
    """
    given = str(command.checkpoint)
    if given not in ("last", "best"):
        return Path(given)
    stage = f"{len(command.stages)}_{command.stages[-1].name}"
    found = list(command.root.glob(f"version_*/{stage}/{CHECKPOINTS}/{given}.ckpt"))
    if not found:
        raise FileNotFoundError(f"{command.root}: no last stage there has written {given}.ckpt; give its path instead")
    return max(found, key=lambda path: path.stat().st_mtime)

"""A comparison from its configuration to its tables: method after method, those that are finished are kept."""

from __future__ import annotations

import argparse
import hashlib
import math
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import yaml
from rich.console import Console

from models.files.checkpoints import checksum
from models.files.shipped import locate
from recon.commands.compare.configuration import FLAGS, Comparison, Entry, read_mapping
from recon.commands.compare.methods import Method, Task, baseline, check_baseline, load_method
from recon.commands.compare.results import (
    Result,
    check_shown,
    measure,
    print_table,
    save,
    saved,
    write_pictures,
    write_tables,
)
from recon.commands.configuration.classes import named_classes
from recon.commands.configuration.data import Samples, data_section, make_data, operator_of, samples_of
from recon.commands.configuration.stages import STAGES
from recon.commands.errors import sentence
from recon.commands.output.one_by_one import Outcome, one_by_one
from recon.commands.output.runs import CHECKPOINTS, latest_checkpoint
from recon.commands.output.summary import write_summary
from recon.commands.output.tables import claim
from recon.files import write_files

#: certified ||x - x^|| by default, relative to the root of the number of values of a picture
ACCURACY = 4e-3
TRAINING = "training"


def compare(comparison: Comparison, output: Path) -> int:
    """Compare into the folder ``output``; returns 0, or 1 if some of several methods failed.

    Raises
    ------
    ValueError, OSError
        see :func:`recon.commands.compare.main.main`.
    """
    begin = time.perf_counter()
    task = make_task(comparison)
    entries = {name: identity(comparison, name) for name in comparison.methods}
    check(comparison, task)
    tested, tuned = task.tested(), samples_of(task.module.val_dataloader())
    settings = {
        "data": comparison.data,
        "test": _checksum(tested),
        "validation": _checksum(tuned),
        "training": hashlib.sha256("".join(task.module.fingerprints("train")).encode()).hexdigest(),
        "accuracy": task.accuracy,
        "validation_images": task.validation_images,
        **{flag: True for flag in FLAGS if getattr(comparison, flag)},
    }
    claim(output, settings)
    for name, entry in entries.items():
        claim(output / name, entry)

    def report(outcome: Outcome[Result]) -> None:
        if outcome.results:
            write_tables(outcome.results, output)
            _summarize(outcome, settings, output, time.perf_counter() - begin)

    outcome = one_by_one(
        {name: name for name in comparison.methods}, lambda name: _result(name, comparison, task, output), report
    )
    if outcome.results:
        print_table(outcome.results)
        write_pictures(outcome.results, task, output, comparison.show)
        _summarize(outcome, settings, output, time.perf_counter() - begin)
        print(f"tables and pictures are in {output}")
    outcome.print_failures("recon compare")
    return 1 if outcome.failures else 0


def _summarize(outcome: Outcome[Result], settings: Mapping[str, object], output: Path, seconds: float) -> None:
    """Write ``summary.json``: the settings, a row of means for each method, what failed and what is to come."""
    status = "incomplete" if outcome.pending else "failed" if outcome.failures else "finished"
    numbers = {"settings": dict(settings), "methods": [result.summary() for result in outcome.results]}
    write_summary(output, "compare", seconds, status, {**numbers, **outcome.entries()})


def _checksum(samples: Samples) -> str:
    return checksum(*(samples[i].x for i in range(len(samples))))


def _result(name: str, comparison: Comparison, task: Task, output: Path) -> Result:
    """What the folder of the method holds, or what comes into it now."""
    kept = saved(name, output / name, task.module.names("test"))
    if kept is not None:
        return kept
    Console().print(f"{name} ...", highlight=False)
    result = measure(name, make_method(name, comparison, task, output), task)
    save(result, output / name)
    return result


def make_task(comparison: Comparison) -> Task:
    """The data module with what all methods share.

    Raises
    ------
    ValueError
        the data cannot be used.
    """
    module = make_data(comparison.data)
    first = samples_of(module.test_dataloader())[0]
    accuracy = comparison.accuracy or ACCURACY * math.sqrt(first.x.numel())
    flags = (comparison.nonnegative, comparison.weighted)
    return Task(module, operator_of(module), accuracy, comparison.validation_images, *flags)


def check(comparison: Comparison, task: Task) -> None:
    """Refuse, before anything is computed, what could not be compared.

    Raises
    ------
    ValueError
        the test shares patients or pictures with training or validation data; a method does not fit.
    OSError
        a file is missing.
    """
    for part, word in (("train", "training"), ("val", "validation")):
        shared = task.module.shared_with_test(part)  # type: ignore[arg-type]
        if shared:
            raise ValueError(
                f"{len(shared)} patients or pictures of the test are in the {word} data, too, e.g. {shared[0]}; "
                "results on them are no test. Name other data as test, or leave test out"
            )
    check_shown(comparison.show, task)
    for entry in comparison.methods.values():
        if "baseline" in entry:
            check_baseline(entry["baseline"], task.operator)
        elif "model" in entry:
            _load(entry, comparison, task)
        else:
            _check_training(comparison, comparison.folder / entry["config"])


def _check_training(comparison: Comparison, path: Path) -> None:
    """Raise ``ValueError`` if ``recon fit`` does not take the configuration."""
    from recon.commands.fit.cli import check_cli  # Lightning takes seconds to import

    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "fit.yaml"
        config.write_text(yaml.safe_dump(_training(comparison, path), sort_keys=False))
        try:
            check_cli(["fit", "--config", str(config)])
        except (argparse.ArgumentError, ValueError) as error:
            raise ValueError(f"{path}: {sentence(error)}") from error


def identity(comparison: Comparison, name: str) -> dict[str, object]:
    """What the results of a method depend on beside the data.

    Raises
    ------
    ValueError
        its configuration has no model.
    OSError
        a file is missing.
    """
    entry = comparison.methods[name]
    if "model" in entry:
        file = locate(entry["model"], comparison.folder)
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file; `model` of {name} is the safetensors of a trained model")
        # mu and what else belongs to a model are in the file beside it
        files = [f for f in (file, file.with_suffix(".json")) if f.is_file()]
        return {**entry, "sha256": [hashlib.sha256(f.read_bytes()).hexdigest() for f in files]}
    if "config" in entry:
        return {**entry, "training": _training(comparison, comparison.folder / entry["config"])}
    return dict(entry)


# --- training --------------------------------------------------------------------------------------------------------


def make_method(name: str, comparison: Comparison, task: Task, output: Path) -> Method:
    """Load, choose or train a method.

    Raises
    ------
    ValueError, OSError
        see what does it.
    """
    entry = comparison.methods[name]
    if "baseline" in entry:
        return baseline(entry, task)
    if "model" in entry:
        return _load(entry, comparison, task)
    training = _training(comparison, comparison.folder / entry["config"])
    # what a configuration names is trusted, as it runs in any case
    return load_method(_trained(training, output / name), task, trust=named_classes(training["model"]))


def _load(entry: Entry, comparison: Comparison, task: Task) -> Method:
    file = locate(entry["model"], comparison.folder)
    return load_method(file, task, entry.get("unchecked", False), entry.get("trust", []))


def _training(comparison: Comparison, path: Path) -> dict[str, object]:
    """The configuration of a training with the data of the comparison, in the precision it has itself.

    Noise and pictures are the same in both precisions.
    """
    content = read_mapping(path)
    if not isinstance(content.get("model"), dict):
        raise ValueError(f"{path}: has no `model`; `config` names a configuration of recon fit")
    if STAGES in content:
        raise ValueError(
            f"{path}: has stages, each with data of its own; train it with recon fit, and name the "
            "regularizer.safetensors of the run as `model`"
        )
    own = data_section(content, path.parent)
    arguments = own.get("init_args") if isinstance(own, dict) else None
    data = dict(comparison.data["init_args"])
    if isinstance(arguments, dict) and "dtype" in arguments:
        data["dtype"] = arguments["dtype"]
    return {**content, "data": {**comparison.data, "init_args": data}}


def _trained(content: Mapping[str, object], folder: Path) -> Path:
    """The model of a finished training in ``folder``; trains, from the last checkpoint on, if there is none."""
    found = _exported(folder / TRAINING)
    if found is None:
        from recon.commands.fit.cli import run_cli  # Lightning takes seconds to import

        config = folder / "fit.yaml"
        write_files({config: yaml.safe_dump(dict(content), sort_keys=False).encode()})
        arguments = ["fit", "--config", str(config), "--trainer.default_root_dir", str(folder / TRAINING)]
        if any((folder / TRAINING).glob(f"*/{CHECKPOINTS}/last.ckpt")):
            arguments += ["--ckpt_path", str(latest_checkpoint(folder / TRAINING, "last"))]
        run_cli(arguments)
        found = _exported(folder / TRAINING)
    if found is None:
        raise ValueError(f"{folder / TRAINING}: the training wrote no model; delete the folder to start again")
    return found


def _exported(folder: Path) -> Path | None:
    found = [p for name in ("regularizer", "reconstructor") for p in folder.glob(f"*/{name}.safetensors")]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)

"""Configurations of older versions: classes by their older names, options where they were then."""

from __future__ import annotations

import functools
import logging
import pkgutil
from collections.abc import Iterable

import yaml
from jsonargparse import get_loader, set_loader

from models.files.arguments import current_arguments
from recon.bilevel import MAID, PublishedMAID
from recon.bilevel.methods.older import MOVED, options_of, place_of, warn_of
from recon.commands.configuration.classes import entries_of
from recon.names import current_name

log = logging.getLogger(__name__)

_METHODS = {cls.__name__: cls for cls in (MAID, PublishedMAID)}
_STEPS = ("adjoint_steps", "unrolled_steps")
#: what options of modules were called, and are called by now
_CALLED = {name: f"differentiation.{name}" for name in _STEPS} | {"tune": "tune_images"}


@functools.cache
def read_older() -> None:
    """Have jsonargparse read files of older versions, too, and warn of what they should say."""
    read = get_loader("yaml")
    set_loader("yaml", lambda text: current_configuration(read(text)), (yaml.YAMLError,))


def check_options(arguments: Iterable[str]) -> None:
    """Raise ``ValueError`` for an option of the command line that has another name by now."""
    for argument in arguments:
        option = argument.partition("=")[0]
        place, _, name = option.rpartition(".")
        if place in ("--model", "--model.init_args") and name in _CALLED:
            rest = "; null leaves the published weight" if name == "tune" else ""
            raise ValueError(f"{option} is {place}.{_CALLED[name]} by now{rest}")


def current_configuration(config: object) -> object:
    """A configuration, in plain values, with classes and options where they are by now, however deep.

    What has no place any more stays, for whoever refuses it, but not what a method did not use.

    Parameters
    ----------
    config : plain values
        As read from a file; it is not changed.
    """
    if isinstance(config, list):
        return [current_configuration(item) for item in config]
    if not isinstance(config, dict):
        return config
    found = {key: current_configuration(item) for key, item in config.items()}
    path, arguments = found.get("class_path"), found.get("init_args")
    if isinstance(path, str):
        found["class_path"] = path = _current_class(path)
        name = path.rpartition(".")[2]
        if isinstance(arguments, dict):
            model = current_name(path if "." in path else f"models.{name}")
            options = current_arguments(model, arguments, warn=True)
            found["init_args"] = _of_method(name, _of_module(name, options))
    return found


def _current_class(path: str) -> str:
    """The path, or the name of today if it is one of this project and nothing has it any more."""
    name = current_name(path)
    if name == path:
        return path
    try:
        pkgutil.resolve_name(path)  # imports modules of this project only: others have no other name
    except (ImportError, AttributeError):
        return name
    return path


def _of_method(name: str, given: dict[str, object]) -> dict[str, object]:
    """Options of MAID and PublishedMAID, which were all on one level."""
    cls = _METHODS.get(name)
    if cls is None:
        return given
    options, known = dict(given), options_of(cls)
    unused = options.get("accuracy") == "predicted"
    for name in [name for name in MOVED if name in options and not isinstance(options[name], dict)]:
        place = place_of(name, known)
        if place is not None:
            warn_of(name, place)
            value, (group, field) = options.pop(name), place
            options[group] = entries_of(options.get(group)) | {field: value}
        elif unused and name not in known:
            del options[name]
    if unused:
        del options["accuracy"]
    return options


def _of_module(name: str, given: dict[str, object]) -> dict[str, object]:
    """Without ``adjoint_steps`` and ``unrolled_steps`` of ``BilevelModule``, and ``tune`` of ``AdversarialModule``."""
    options = dict(given)
    steps = {key: options.pop(key) for key in _STEPS if name == "BilevelModule" and key in options}
    for key, value in steps.items():
        if value is not None:
            log.warning("%s of models.%s is %s by now", key, name, _CALLED[key])
            options["differentiation"] = entries_of(options.get("differentiation")) | {key: value}
    if name == "AdversarialModule" and not options.pop("tune", True):
        log.warning("tune of models.%s is tune_images by now, null for the published weight", name)
        options["tune_images"] = None
    return options

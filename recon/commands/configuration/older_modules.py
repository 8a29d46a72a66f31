"""Configurations of older versions, with options of the Lightning modules where they were then."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

log = logging.getLogger(__name__)

_STEPS = ("adjoint_steps", "unrolled_steps")
#: what options were called, and are called by now
_CALLED = {name: f"differentiation.{name}" for name in _STEPS} | {"tune": "tune_images"}


@functools.cache
def read_older_modules() -> None:
    """Have jsonargparse read files of older versions, too."""
    read = get_loader("yaml")
    set_loader("yaml", lambda text: current_modules(read(text)), (yaml.YAMLError,))


def check_options(arguments: Iterable[str]) -> None:
    """Raise ``ValueError`` for an option of the command line that has another name by now."""
    for argument in arguments:
        option = argument.partition("=")[0]
        place, _, name = option.rpartition(".")
        if place in ("--model", "--model.init_args") and name in _CALLED:
            rest = "; null leaves the published weight" if name == "tune" else ""
            raise ValueError(f"{option} is {place}.{_CALLED[name]} by now{rest}")


def current_modules(config: Any) -> Any:
    """A configuration, in plain values, with the options of modules where they are by now, however deep.

    Parameters
    ----------
    config : plain values
        As read from a file; it is not changed.

    Returns
    -------
    plain values
        Without ``adjoint_steps`` and ``unrolled_steps`` of ``BilevelModule``, and ``tune`` of ``AdversarialModule``.
    """
    if isinstance(config, list):
        return [current_modules(item) for item in config]
    if not isinstance(config, dict):
        return config
    found = {key: current_modules(item) for key, item in config.items()}
    name, options = str(found.get("class_path")).rpartition(".")[2], found.get("init_args")
    if not isinstance(options, dict):
        return found
    steps = {key: options.pop(key) for key in _STEPS if name == "BilevelModule" and key in options}
    for key, value in steps.items():
        if value is not None:
            log.warning("%s of models.%s is %s by now", key, name, _CALLED[key])
            options["differentiation"] = {**options.get("differentiation", {}), key: value}
    if name == "AdversarialModule" and not options.pop("tune", True):
        log.warning("tune of models.%s is tune_images by now, null for the published weight", name)
        options["tune_images"] = None
    return found

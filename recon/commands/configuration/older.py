"""Configurations of older versions, with all options of MAID on one level."""

from __future__ import annotations

import functools
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from recon.bilevel import MAID, PublishedMAID
from recon.bilevel.methods.older import MOVED, options_of, place_of, warn_of

_CLASSES = {cls.__name__: cls for cls in (MAID, PublishedMAID)}


@functools.cache
def read_older() -> None:
    """Have jsonargparse read files of older versions, too, and warn of what they should say."""
    read = get_loader("yaml")
    set_loader("yaml", lambda text: current_configuration(read(text)), (yaml.YAMLError,))


def current_configuration(config: Any) -> Any:
    """A configuration, in plain values, with the options of MAID and PublishedMAID where they are by now, however deep.

    What has no place any more stays, for whoever refuses it, but not what MAID did not use.
    """
    if isinstance(config, list):
        return [current_configuration(item) for item in config]
    if not isinstance(config, dict):
        return config
    found = {key: current_configuration(item) for key, item in config.items()}
    cls = _CLASSES.get(str(found.get("class_path")).rpartition(".")[2])
    if cls is None or not isinstance(found.get("init_args"), dict):
        return found
    options, known = dict(found["init_args"]), options_of(cls)
    unused = options.get("accuracy") == "predicted"
    for name in [name for name in MOVED if name in options and not isinstance(options[name], dict)]:
        place = place_of(name, known)
        if place is not None:
            warn_of(name, place)
            value, (group, field) = options.pop(name), place
            options[group] = {**options.get(group, {}), field: value}
        elif unused and name not in known:
            del options[name]
    if unused:
        del options["accuracy"]
    return found | {"init_args": options}

"""Options and states of upper-level methods as older versions wrote them, with all options on one level."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ParamSpec

P = ParamSpec("P")

#: where options are that had places of their own: the group and the name in it
MOVED = {
    "line_search": ("line_search", "trials"),
    "armijo": ("line_search", "armijo"),
    "step_shrink": ("line_search", "shrink"),
    "step_growth": ("line_search", "growth"),
    "largest_growth": ("line_search", "largest_growth"),
    "accuracy_shrink": ("schedule", "shrink"),
    "accuracy_growth": ("schedule", "growth"),
    "descent_check": ("schedule", "descent_check"),
    "eta": ("schedule", "eta"),
}
#: the groups that the options of a class are in
GROUPS = {"MAID": {"line_search"}, "PublishedMAID": {"line_search", "schedule"}}
#: what an option of MAID has become
SCHEDULED = "MAID with the accuracy schedule is PublishedMAID by now, with the same certificate and direction"


def takes_older(constructor: Callable[P, None]) -> Callable[P, None]:
    """A constructor that also takes options by their older names, and warns that it will not for long."""
    defaults = {name: p.default for name, p in inspect.signature(constructor).parameters.items()}

    @functools.wraps(constructor)
    def construct(*args: P.args, **options: P.kwargs) -> None:
        given: dict[str, Any] = options
        if given.get("accuracy") == "schedule" and "schedule" not in defaults:
            raise TypeError(SCHEDULED)
        for name, (group, field) in MOVED.items():
            if name in given and group in defaults and (name != group or isinstance(given[name], int)):
                _warn(name)
                value = given.pop(name)
                given[group] = replace(given.get(group, defaults[group]), **{field: value})
        constructor(*args, **options)

    return construct


def current_options(options: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Options that this or an older version wrote, as the ``known`` options of a method; what is gone is left out."""
    found = {k: v for k, v in options.items() if k in known and isinstance(v, dict) == isinstance(known[k], dict)}
    for name, (group, field) in MOVED.items():
        if isinstance(known.get(group), dict) and name in options and not isinstance(options[name], dict):
            found[group] = found.get(group, {}) | {field: options[name]}
    return found


def current_configuration(config: Any) -> Any:
    """A configuration, in plain values, with the options of MAID and PublishedMAID where they are by now, however deep.

    It warns of those that it moves. What has no place of its own any more stays, for whoever refuses it.
    """
    if isinstance(config, list):
        return [current_configuration(item) for item in config]
    if not isinstance(config, dict):
        return config
    found = {key: current_configuration(item) for key, item in config.items()}
    groups = GROUPS.get(str(found.get("class_path")).rpartition(".")[2])
    options = found.get("init_args")
    if groups is None or not isinstance(options, dict):
        return found
    predicted = options.get("accuracy", "predicted") == "predicted"
    options = {k: v for k, v in options.items() if k != "accuracy" or not predicted}
    for name, (group, field) in MOVED.items():
        if name not in options or isinstance(options[name], dict):
            continue
        if group in groups:
            _warn(name)
            value = options.pop(name)
            options[group] = {**options.get(group, {}), field: value}
        elif predicted:  # what MAID had, and did not use
            del options[name]
    return found | {"init_args": options}


def _warn(name: str) -> None:
    warnings.warn(f"the option {name} is called {'.'.join(MOVED[name])} by now", FutureWarning, stacklevel=3)


def current_method(saved: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of its method, ``class`` and options, in the words that the method itself has today."""
    scheduled = saved["class"].endswith(".MAID") and saved.get("accuracy") == "schedule"
    return current_options(saved, known) | {"class": "recon.bilevel.PublishedMAID" if scheduled else saved["class"]}


def current_state(state: Mapping[str, Any], known: Mapping[str, Any], own: Sequence[str]) -> dict[str, Any]:
    """A ``state_dict()`` that this or an older version wrote, for a method with ``known`` options, some its ``own``.

    Raises
    ------
    ValueError
        It is that of another method.
    """
    (group,) = state["param_groups"]
    if group.get("accuracy") == "schedule" and "schedule" not in known:
        raise ValueError(SCHEDULED)
    options = current_options(group, known)
    missing = [name for name in own if name not in options]
    if missing:
        raise ValueError(f"the state is that of another method: it has no {', '.join(missing)}")
    entries = {"method" if isinstance(key, str) else key: value for key, value in state["state"].items()}
    if "passes" in group:
        entries["method"] = {"iteration": group["passes"]}
    if "done" in entries.get("method", {}):
        entries["method"] = {"iteration" if k == "done" else k: v for k, v in entries["method"].items()}
    return {**state, "state": entries, "param_groups": [options | {"params": group["params"]}]}

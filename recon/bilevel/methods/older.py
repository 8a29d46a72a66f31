"""Options and states of upper-level methods as older versions wrote them, with all options on one level."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from typing import Any, ParamSpec

P = ParamSpec("P")

#: where options are that had places of their own: groups, and the name in there
MOVED = {
    "line_search": (("line_search", "trials"),),
    "armijo": (("line_search", "armijo"),),
    "step_shrink": (("line_search", "shrink"),),
    "step_growth": (("line_search", "growth"),),
    "accuracy_shrink": (("schedule", "shrink"),),
    "accuracy_growth": (("schedule", "growth"),),
    "descent_check": (("schedule", "descent_check"),),
    "eta": (("schedule", "eta"),),
    "slack": (("limits", "slack"),),
    "largest_growth": (("limits", "largest_growth"), ("accelerations", "largest_growth")),
    **{name: (("accelerations", name),) for name in ("certificate", "direction", "memory")},
}
#: options that older versions did not have, with what these did
ADDED = {"noise_share": 0.0}
#: what an option of MAID has become
SCHEDULED = "MAID with the accuracy schedule is PublishedMAID by now, its certificate and direction are accelerations"


def plain(option: object) -> object:
    """An option, a group as a dictionary."""
    return asdict(option) if is_dataclass(option) and not isinstance(option, type) else option


def place_of(name: str, options: Mapping[str, object]) -> tuple[str, str] | None:
    """Where an option that had a place of its own is among ``options``, some of which are groups; None if nowhere."""
    groups = {key: group for key, group in options.items() if isinstance(group, dict)}
    if name in options and name not in groups:
        return None
    return next(((group, field) for group, field in MOVED.get(name, ()) if field in groups.get(group, ())), None)


def options_of(constructor: Callable[..., object]) -> dict[str, object]:
    """The options of a constructor with their defaults, groups as dictionaries."""
    defaults = {name: p.default for name, p in inspect.signature(constructor).parameters.items()}
    return {name: plain(value) for name, value in defaults.items()}


def warn_of(name: str, place: tuple[str, str]) -> None:
    """Say where an option is by now."""
    warnings.warn(f"the option {name} is called {'.'.join(place)} by now", FutureWarning, stacklevel=3)


def takes_older(constructor: Callable[P, None]) -> Callable[P, None]:
    """A constructor that also takes options by their older names, and warns of it."""
    known, parameters = options_of(constructor), inspect.signature(constructor).parameters

    @functools.wraps(constructor)
    def construct(*args: P.args, **options: P.kwargs) -> None:
        given: dict[str, Any] = options
        if given.get("accuracy") == "schedule":
            raise TypeError(SCHEDULED)
        for name in [name for name in MOVED if name in given and not is_dataclass(given[name])]:
            if (place := place_of(name, known)) is not None:
                warn_of(name, place)
                value, (group, field) = given.pop(name), place
                given[group] = replace(given.get(group, parameters[group].default), **{field: value})
        constructor(*args, **options)

    return construct


def current_options(options: Mapping[str, Any], known: Mapping[str, object]) -> dict[str, Any]:
    """Options that this or an older version wrote, as the ``known`` options of a method; what is gone is left out."""
    found = {k: v for k, v in options.items() if k in known and isinstance(v, dict) == isinstance(known[k], dict)}
    for name in options.keys() - found.keys():
        if (place := place_of(name, known)) is not None:
            found[place[0]] = found.get(place[0], {}) | {place[1]: options[name]}
    return {name: value for name, value in ADDED.items() if name in known} | found


def current_method(saved: Mapping[str, Any], known: Mapping[str, object]) -> dict[str, object]:
    """What a checkpoint says of its method, ``class`` and options, in the words that the method itself has today."""
    scheduled = saved["class"].endswith(".MAID") and saved.get("accuracy") == "schedule"
    return current_options(saved, known) | {"class": "recon.bilevel.PublishedMAID" if scheduled else saved["class"]}


def current_state(state: Mapping[str, Any], known: Mapping[str, object], own: Sequence[str]) -> dict[str, object]:
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

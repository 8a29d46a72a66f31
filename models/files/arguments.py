"""Arguments of constructors as plain values, and what older versions called them.

Arguments that belong together are one dataclass, in files a dictionary: ``initial_filters: {kind: dct, seed: 0}``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import get_type_hints

from recon.lower_level import Regularizer
from recon.names import public_name

_FILTERS = {"initial_filters": "kind", "seed": "seed"}
#: for each model, and each group of its arguments: what its fields were called when they were arguments themselves
OLDER = {
    "models.ConvexRidge": {"initial_filters": _FILTERS},
    "models.FieldsOfExperts": {"initial_filters": _FILTERS},
    "models.ICNN": {
        "initial_filters": _FILTERS,
        "activation": {"activation": "kind", "slope": "slope", "width": "width"},
    },
    "models.LearnedTV": {
        "initial": {"initial": "kind", "seed": "seed"},
        "convexity": {"dual_convexity": "dual", "field_convexity": "field", "image_convexity": "image"},
    },
    "models.WeaklyConvexRidge": {"initial_filters": _FILTERS},
}


#: fields of groups that files leave out where they have this value, so that files are those of older versions
UNSAID = {"initial_filters": {"in_channels": 1}}

#: what the entry of a regularizer that is an argument of another one has
NESTED = {"class", "arguments"}


@dataclasses.dataclass(frozen=True)
class Nested:
    """A model that is an argument of another one, and not made yet."""

    cls: type
    arguments: dict[str, object]

    def make(self) -> object:
        """The model."""
        return self.cls(**made(self.arguments))


def made(arguments: Mapping[str, object]) -> dict[str, object]:
    """Arguments with models in the places of what they are made from."""
    return {name: value.make() if isinstance(value, Nested) else value for name, value in arguments.items()}


def plain_arguments(arguments: Mapping[str, object]) -> dict[str, object]:
    """Arguments with groups as dictionaries, and with class and arguments of regularizers."""
    from recon.bilevel.methods.older import plain  # not where models are only applied: all methods come with it

    found: dict[str, object] = {}
    for name, value in arguments.items():
        if isinstance(value, Regularizer):
            own = plain_arguments(value.constructor_arguments())
            found[name] = {"class": public_name(type(value)), "arguments": own}
        else:
            found[name] = plain(value)
            for field, usual in UNSAID.get(name, {}).items():
                group = found[name]
                if isinstance(group, dict) and group.get(field) == usual:
                    del group[field]
    return found


def current_arguments(model: str, given: Mapping[str, object], warn: bool = False) -> dict[str, object]:
    """Plain arguments of the model of that name (``models.ICNN``), from what this or an older version wrote.

    ``warn``: say where those of older versions are by now.
    """
    found = dict(given)
    for group, fields in OLDER.get(model, {}).items():
        for name, field in fields.items():
            if name in found and not isinstance(found[name], dict):
                value, others = found.pop(name), found.get(group)
                found[group] = {**(others if isinstance(others, dict) else {}), field: value}
                if warn:
                    from recon.bilevel.methods.older import warn_of

                    warn_of(name, (group, field))
    return found


def typed_arguments(
    cls: type, given: Mapping[str, object], find: Callable[[str], type] | None = None
) -> dict[str, object]:
    """Arguments for the constructor of ``cls`` from plain ones, those of older versions, too.

    Regularizers in the arguments are :class:`Nested`, of the class that ``find`` has for its name.

    Raises
    ------
    TypeError
        a group has no such field.
    """
    owner = next(base for base in cls.__mro__ if "__init__" in vars(base))
    found = current_arguments(public_name(owner), given)
    if any(isinstance(value, dict) for value in found.values()):
        for name, kind in get_type_hints(vars(owner)["__init__"]).items():
            fields = found.get(name)
            if dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(fields, dict):
                found[name] = kind(**fields)
            elif find is not None and isinstance(fields, dict) and set(fields) == NESTED:
                own = find(fields["class"])
                found[name] = Nested(own, typed_arguments(own, fields["arguments"], find))
    return found

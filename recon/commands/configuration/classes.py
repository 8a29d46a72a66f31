"""The classes that a configuration names are those that their places ask for, or nothing is made or called.

jsonargparse checks the places whose type is a class. Places whose type is a function that makes something
(``optimizer``), and those without a type, take whatever can be called, and it calls functions to make what they return.
Here every ``class_path``, however deep, has to be a subclass of a class in the annotation of its place, or a function
whose own annotation says that it returns one. What cannot be known to fit is refused.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import typing
from collections.abc import Callable, Iterable, Mapping

from jsonargparse import Namespace

Classes = tuple[type, ...]

# types of values, not of objects that a configuration describes
_PLAIN = {"builtins", "collections", "collections.abc", "numbers", "os", "pathlib", "types", "typing"}


def check_classes(config: Mapping[str, object] | Namespace, slots: Mapping[str, type]) -> None:
    """Raise ``ValueError`` if a class in the parsed ``config`` is none that its place asks for.

    ``slots``: what the entries of ``config`` are, or what makes them, by name.
    """
    entries = entries_of(config)
    for name, slot in slots.items():
        _check(entries.get(name), (slot,), name)


def named_classes(config: object) -> list[type]:
    """The classes that a configuration names, however deep, as far as they are imported already."""
    if isinstance(config, str):
        found = _find(config)
        return [found] if inspect.isclass(found) else []
    items = config.values() if isinstance(config, Mapping) else config if isinstance(config, (list, tuple)) else ()
    return [cls for item in items for cls in named_classes(item)]


def _check(value: object, allowed: Classes, name: str) -> None:
    entries = entries_of(value)
    path = entries.get("class_path")
    if isinstance(path, str):
        made = _find(path)
        _require(made, path, allowed, name)
        for part in ("init_args", "dict_kwargs"):
            for key, item in entries_of(entries.get(part)).items():
                _check_argument(item, made, key, (), f"{name}.{key}")
    elif entries:
        for key, item in entries.items():
            _check_argument(item, allowed, key, allowed, f"{name}.{key}")
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            _check(item, allowed, name)
    elif inspect.isroutine(value) or inspect.isclass(value):
        _require(value, f"{value.__module__}.{value.__qualname__}", allowed, name)


def _check_argument(value: object, makers: object, key: str, otherwise: Classes, name: str) -> None:
    """``value`` as the argument ``key`` of what makes its owner: a class, a function, or one of several classes."""
    allowed = otherwise
    for maker in makers if isinstance(makers, tuple) else (makers,):
        parameter, function = _parameter(maker, key)
        if parameter is not None:
            if value is parameter.default:  # the code's own choice
                return
            if parameter.annotation is not inspect.Parameter.empty:
                own = _classes(_resolved(parameter.annotation, function))
                _check_group(value, own, name)
                allowed = allowed + own
    _check(value, allowed, name)


def _check_group(value: object, allowed: Classes, name: str) -> None:
    """A place that takes a group of options, and no number: jsonargparse says nothing that could be understood."""
    if allowed and all(map(dataclasses.is_dataclass, allowed)) and isinstance(value, (bool, int, float, str)):
        valid = ", ".join(dict.fromkeys(field.name for group in allowed for field in dataclasses.fields(group)))
        raise ValueError(f"{name} is {value!r}, but must map options to their values; valid are {valid}")


def _require(made: object, path: str, allowed: Classes, name: str) -> None:
    result = made
    if inspect.isroutine(made):
        function = inspect.unwrap(made)
        try:
            result = _resolved(inspect.signature(function).return_annotation, function)
        except (TypeError, ValueError):  # builtins without a signature
            result = None
    if inspect.isclass(result) and issubclass(result, allowed):
        return
    valid = " and of ".join(dict.fromkeys(f"{c.__module__}.{c.__qualname__}" for c in allowed))
    raise ValueError(
        f"{name}: {path} cannot stand here; {f'valid are subclasses of {valid}' if valid else 'this takes no class'}"
    )


def entries_of(value: object) -> dict[str, object]:
    """What a mapping or a namespace holds, by name; nothing if it is neither."""
    if isinstance(value, Namespace):
        return dict(vars(value))
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else {}


def takes(maker: object, key: str) -> bool:
    """Whether a function, or a constructor and those that it passes ``**kwargs`` to, has a parameter of this name."""
    return _parameter(maker, key)[0] is not None


def _find(path: str) -> object:
    """What an import path names among the modules that parsing has imported; None if nothing."""
    parts = path.split(".")
    for i in range(len(parts) - 1, 0, -1):
        module = sys.modules.get(".".join(parts[:i]))
        if module is not None:
            thing: object = module
            for part in parts[i:]:
                thing = getattr(thing, part, None)
            return thing
    return None


def _parameter(maker: object, key: str) -> tuple[inspect.Parameter | None, Callable[..., object] | None]:
    """The parameter of a function, or of a constructor and those that it passes ``**kwargs`` to, and whose it is."""
    functions: list[Callable[..., object]] = [maker] if callable(maker) else []
    if inspect.isclass(maker):
        functions = [c.__dict__["__init__"] for c in maker.__mro__ if "__init__" in c.__dict__]
    for function in functions:
        function = inspect.unwrap(function)
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError):
            break
        if key in parameters:
            return parameters[key], function
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            break
    return None, None


def _resolved(annotation: object, function: object) -> object:
    """An annotation without strings; None where a name in it is not known at run time."""
    holder = type("Holder", (), {"__annotations__": {"slot": annotation}})
    try:
        return typing.get_type_hints(holder, getattr(function, "__globals__", {}))["slot"]
    except Exception:  # whatever the evaluation of a foreign annotation raises
        return None


def _classes(annotation: object) -> Classes:
    """All classes of objects in an annotation; of a function those of what it returns."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Callable:
        arguments = arguments[-1:]
    own: Iterable[object] = (annotation,) if origin is None else (origin,)
    found = [c for c in own if inspect.isclass(c) and c.__module__ not in _PLAIN]
    return tuple(found) + sum((_classes(a) for a in arguments), ())

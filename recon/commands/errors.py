"""Errors in one sentence: what is wrong, by its name in the configuration, and what would be valid."""

from __future__ import annotations

import importlib
import inspect
import re
import unicodedata

from recon.names import current_name

# Lines of jsonargparse's nested reports that say nothing about the cause.
_FILLERS = re.compile(
    r"Does not validate against any|Subtypes:|Errors:$|Given value type:|Expected a path but"
    r"|Expected a <class 'NoneType'>|Unable to parse config as|$"
)
_TORCH_MEMORY = "can't allocate memory: "
_KEY = re.compile(r'(?:.*?: )?Parser key "([^"]+)":\s*')
_CLASS = re.compile(r"Problem with given class_path '([^']+)':\s*")


def sentence(error: BaseException) -> str:
    """The message of an error in one line.

    Of jsonargparse's reports, which list every type that was tried, it keeps the path of the key and the causes.
    Nothing in it acts on a terminal, see :func:`printable`.
    """
    return printable(_sentence(error))


def printable(text: object) -> str:
    """Text for screens and pages: control characters, which may be commands to a terminal, are written as escapes.

    So are marks of direction, which change the order of what is read, and the bytes of names that are no text.
    """
    return "".join(_escaped(c) if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c for c in str(text))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", errors="backslashreplace").decode()


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        return f"not enough memory ({error})" if str(error) else "not enough memory"
    if isinstance(error, RecursionError):
        return "something is nested too deeply"
    text = str(error) or type(error).__name__
    if isinstance(error, RuntimeError) and _TORCH_MEMORY in text:  # between a place in C++ and a number
        return f"not enough memory ({text.partition(_TORCH_MEMORY)[2].partition('. ')[0]})"
    if "Parser key" in text or "Errors:" in text:
        return _condense(text)
    return " ".join(text.split())


def _condense(text: str) -> str:
    keys: list[str] = []
    causes: list[str] = []
    given, path = "", ""
    for line in text.splitlines():
        line = line.strip().removeprefix("- ")
        while match := _KEY.match(line):
            if not (keys and keys[-1].split(".")[-1] == match[1]):  # of a group, once from outside and once from inside
                keys.append(match[1])
            line = line[match.end() :]
        if match := _CLASS.match(line):
            path, line = match[1], line[match.end() :]
        if match := re.match(r"Given value: (.*)", line):
            # a nested argument shows the whole value again
            given = given if "(" in match[1] else f", got {match[1]}"
        elif not _FILLERS.match(line):
            cause = _clean(line, path)
            if cause not in causes:
                causes.append(cause)
    if not causes:
        return " ".join(text.split())
    found = "; or ".join(causes)
    if len(given) > 0 and "got " not in found and "valid are" not in found:
        found += given
    return f"{'.'.join(keys)}: {found}" if keys else found


def _clean(line: str, path: str) -> str:
    """One cause in plain words; ``path`` is the class whose arguments are reported on."""
    named = re.search(r"class_path='([^']+)'", line)
    line = re.sub(r"^Type \S*Callable\[.*?\] expects a function or a callable class: ", "", line)
    line = re.sub(r"\.* Got value: Namespace\(.*", "", line)
    line = re.sub(r"\.+ Got value: ", ", got ", line)
    line = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", line).replace("typing.", "")
    line = re.sub(r"^Expected an? ", "expected ", line)
    if path and current_name(path) != path and re.search(r"No module named|has no attribute|cannot import", line):
        return f"{path} is called {current_name(path)} by now"
    if match := re.search(r"module '([^']+)' has no attribute '([^']+)'", line):
        return f"{match[1]} has no {match[2]}{_members(match[1])}"
    if match := re.search(r"Option '([^']+)' is not accepted", line):
        return _no_option(match[1], named[1] if named else path)
    if match := re.search(r"Unable to load config ['\"](.*)['\"]", line):
        return f"{match[1]} is no group of options with their values"
    return line.rstrip(". ")


def _members(name: str) -> str:
    try:
        module = importlib.import_module(name)
    except ImportError:
        return ""
    names = [n for n in getattr(module, "__all__", []) if inspect.isclass(getattr(module, n, None))]
    return f"; valid are {', '.join(names)}" if names else ""


def _no_option(name: str, path: str) -> str:
    """That a class or function has no such option, and what it has."""
    from recon.bilevel.methods.older import SCHEDULED, options_of, place_of  # with torch, which takes seconds

    module, _, attribute = path.rpartition(".")
    try:
        known = options_of(getattr(importlib.import_module(module), attribute))
    except (ImportError, AttributeError, TypeError, ValueError):
        return f"{name!r} is no option"
    if (place := place_of(name, known)) is not None:
        return f"{name} is called {'.'.join(place)} by now"
    valid = ", ".join(n for n in known if n not in ("self", "params"))
    return f"{name!r} is no option of {path}; valid are {valid}" + (f"; {SCHEDULED}" if name == "accuracy" else "")

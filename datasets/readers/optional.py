"""Packages that only readers of medical and synchrotron data need: imported when they are used."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, purpose: str) -> ModuleType:
    """Import ``module`` for ``purpose``.

    Raises
    ------
    ImportError
        it is not installed; the message names the extra that brings it, `data`.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing(module.partition(".")[0], purpose, "data") from error


def missing(package: str, purpose: str, extra: str) -> ImportError:
    """The error that says how to install a package."""
    return ImportError(
        f"{purpose} needs the package {package}, which is not installed; install it with "
        f"`pip install 'recon-bilevel[{extra}]'` or `pip install {package}`"
    )

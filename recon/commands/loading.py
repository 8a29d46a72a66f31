"""The modules of a command, loaded without a search for garbage among them."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Within it, Python does not look for garbage, and never again among what is there at its end.

    Modules make a million objects that stay. To look through them again and again takes a tenth of the time that torch
    takes to load. Nothing changes where torch is loaded already: then a program of its own has called the command.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()

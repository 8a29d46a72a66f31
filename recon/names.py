"""Names of this project's classes in files: the package that a class belongs to and its own name, without modules.

Modules move, and what files say must stay true. So ``models.FieldsOfExperts`` is the name of the class wherever it is
defined, and what older versions wrote (``models.fields_of_experts.FieldsOfExperts``) means the same.
"""

from __future__ import annotations

import re

PACKAGES = ("recon.operators", "recon.lower_level", "recon.bilevel", "recon.reconstruction", "models", "datasets")

_OWN = re.compile(rf"({'|'.join(map(re.escape, PACKAGES))})\.(?:[a-z]\w*\.)*(.+)")

#: classes that have gone to another package, or have another name, since files were written with the first
RENAMED = {
    "models.Reconstructor": "recon.reconstruction.Reconstructor",
}


def public_name(thing: object) -> str:
    """Package and name of a class or function, or of the class of another object; of foreign ones with the module."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return current_name(f"{named.__module__}.{named.__qualname__}")


def current_name(name: str) -> str:
    """What a name that this or an older version wrote is called today; other texts as they are."""
    found = _OWN.fullmatch(name)
    if found is None:
        return name
    short = f"{found[1]}.{found[2]}"
    return RENAMED.get(short, short)

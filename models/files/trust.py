"""Which classes the file of a model may name: those of this project, and those of the user's that are trusted.

The name of a class in a file would otherwise choose what is imported, and modules run when they are imported, whatever
is done with the class afterwards. So names resolve in a table, and nothing else is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module

from recon.names import current_name, public_name

#: what makes a class one that files may name: the name of the module that defines it, or the class itself
Trusted = str | type

#: the models of this project, by the names in their files
OWN = frozenset(
    {
        "models.ConvexRidge",
        "models.ConvolutionalCritic",
        "models.FieldsOfExperts",
        "models.ICNN",
        "models.ICNNSaddle",
        "models.LearnedPrimalDual",
        "models.LearnedTV",
        "models.LinearSplineRidge",
        "models.MultivariateFieldsOfExperts",
        "models.NoiseConditioned",
        "models.TotalVariation",
        "models.UNet",
        "models.WeaklyConvexRidge",
    }
)


class UntrustedError(ValueError):
    """A name that is neither this project's nor of a trusted module."""


def find_class(name: str, trust: Iterable[Trusted] = ()) -> object:
    """The object of that name; ``None`` if the project or the trusted module has none.

    Only modules of the project and those in ``trust`` are imported, none inside them because a name asks for it.

    Raises
    ------
    UntrustedError
        the name is of another module.
    TypeError
        ``trust`` is one string.
    """
    if isinstance(trust, str):
        raise TypeError(f"trust is {trust!r}, but must be a list of modules or classes: [{trust!r}]")
    trusted = list(trust)
    for item in trusted:
        if isinstance(item, type) and name == public_name(item):
            return item
    if current_name(name) in OWN:  # whatever module older versions had it in
        name = current_name(name)
    module, _, attribute = name.rpartition(".")
    if name not in OWN and (not module or module not in trusted):
        own = ", ".join(sorted(n.rpartition(".")[2] for n in OWN))
        remedy = f"--trust {module}, or trust=[{module!r}] in Python" if module else "a name with its module"
        raise UntrustedError(
            f"names the class {name!r}, which is none of this project ({own}). Modules run when they are imported: "
            f"if you trust this one, say so by {remedy}"
        )
    try:
        return getattr(import_module(module), attribute, None)
    except ImportError:
        return None


def is_importable(cls: type) -> bool:
    """Whether the class is found under its name in files; nothing is imported."""
    module, _, attribute = public_name(cls).rpartition(".")
    return getattr(sys.modules.get(module), attribute, None) is cls

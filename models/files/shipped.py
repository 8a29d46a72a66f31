"""The trained models that come with the library: their names, their cards, and where a name is looked up.

A model is ``NAME.safetensors`` and ``NAME.json`` in the folder ``models/pretrained`` (:mod:`models.files.storage` reads
them), and its card ``NAME.md``: a title, a paragraph on what it is for, and then data, noise, operator, seed, command
and measured numbers.
"""

from __future__ import annotations

import difflib
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "pretrained"
_WEIGHTS, _CARD = ".safetensors", ".md"
_SUFFIXES = (_WEIGHTS, ".json", ".ckpt")


def names() -> list[str]:
    """The names of all models, sorted."""
    return sorted(path.stem for path in FOLDER.glob(f"*{_WEIGHTS}"))


def locate(model: str | Path, folder: Path = Path()) -> Path:
    """The file that a path, relative to ``folder``, or a name stands for.

    A name is a word without separators and without the suffix of a model file, unless ``folder`` holds a file of that
    name, or ``NAME.safetensors``.

    Raises
    ------
    FileNotFoundError
        there is no model of that name.
    """
    given = Path(model)
    path = folder / given
    is_path = str(model) != given.name or given.suffix in _SUFFIXES  # ./NAME is a path, and loses its dot in Path
    if is_path or path.is_file() or path.with_name(path.name + _WEIGHTS).is_file():
        return path
    return FOLDER / (_known(given.name) + _WEIGHTS)


def card(name: str) -> str:
    """The card of a model, as Markdown.

    Raises
    ------
    FileNotFoundError
        there is no model of that name.
    """
    return (FOLDER / (_known(name) + _CARD)).read_text(encoding="utf-8")


def purpose(name: str) -> str:
    """What the first paragraph of the card says, on one line."""
    paragraphs = card(name).split("\n\n")
    return " ".join(paragraphs[1].split())


def _known(name: str) -> str:
    known = names()
    if name in known:
        return name
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    nearest = f"did you mean {' or '.join(close)}? " if close else ""
    raise FileNotFoundError(
        f"{name}: no such file, and no model of that name comes with the library; {nearest}`recon models` lists all "
        f"{len(known)}"
    )

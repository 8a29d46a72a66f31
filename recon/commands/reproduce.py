"""``recon reproduce FIGURE --scale quick|paper``: compute the data of a figure, save them as CSV, and draw them."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from recon.commands import figures, race
from recon.files import prepare_folder

SCALES = ("quick", "paper")


def names() -> list[str]:
    """The figures that can be made."""
    return sorted({*_modules(), *race.names()})


def _modules() -> list[str]:
    """Those that are programs of their own; the others are runs that a configuration describes."""
    return [module.name.replace("_", "-") for module in pkgutil.iter_modules(figures.__path__)]


def main(argv: Sequence[str] | None = None) -> int:
    """Make a figure; returns 0.

    Raises:
        ValueError: there is no such figure or no data for it.
        OSError: the output cannot be written.
    """
    args = _parser().parse_args(argv)
    if args.figure not in names():
        raise ValueError(f"there is no figure {args.figure!r}; valid are {', '.join(names())}")
    output = args.output if args.output is not None else Path("outputs") / "reproduce" / f"{args.figure}-{args.scale}"
    if args.figure in _modules():
        module: Any = importlib.import_module(f"{figures.__name__}.{args.figure.replace('-', '_')}")
        run: Callable[[], None] = partial(module.run, args.scale, output)
        plot = getattr(module, "plot", None)
    else:
        run, plot = partial(race.run, args.figure, args.scale, output), race.plot
    if not args.plot_only:
        prepare_folder(output)
        run()
    elif plot is None:
        raise ValueError(f"{args.figure} cannot be drawn alone; leave out --plot-only")
    else:
        plot(output)
    print(f"data and figures are in {output}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="recon reproduce", description="Compute the data of a figure, and draw it.")
    parser.add_argument("figure", help=f"one of {', '.join(names())}")
    parser.add_argument(
        "--scale", choices=SCALES, default="quick", help="quick: built-in images, minutes; paper: hours"
    )
    parser.add_argument("--output", type=Path, help="folder (default: outputs/reproduce/FIGURE-SCALE)")
    parser.add_argument("--plot-only", action="store_true", help="draw again from the files in the folder")
    return parser

"""``recon reproduce FIGURE --scale quick|paper``: compute the data of a figure, save them as CSV, and draw them."""

from __future__ import annotations

import argparse
import importlib
import itertools
import pkgutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from recon.commands.output.lock import locked
from recon.commands.reproduce import figures, page, race, race_pictures

SCALES = ("quick", "paper")
ALL = "all"


def names() -> list[str]:
    """The figures that can be made."""
    return sorted({*_modules(), *race.names()})


def descriptions() -> dict[str, str]:
    """What each figure shows: the beginning of the docstring of its module, or of the comment in its configuration."""
    found = {}
    for name in names():
        if name in _modules():
            text = (_module(name).__doc__ or "").strip().partition("\n\n")[0]
        else:
            lines = (race.FOLDER / name / "quick.yaml").read_text().splitlines()
            text = " ".join(line[1:] for line in itertools.takewhile(lambda line: line.startswith("#"), lines))
            text = text.partition("  recon reproduce")[0]
        found[name] = " ".join(text.split())
    return found


def _module(name: str) -> Any:
    return importlib.import_module(f"{figures.__name__}.{name.replace('-', '_')}")


def _modules() -> list[str]:
    """Those that are programs of their own; the others are runs that a configuration describes."""
    return [module.name.replace("_", "-") for module in pkgutil.iter_modules(figures.__path__)]


def main(argv: Sequence[str] | None = None) -> int:
    """Make a figure, or all; returns 0, or 1 if one of all failed.

    Raises
    ------
    ValueError
        there is no such figure or no data for it.
    OSError
        the output cannot be written, or another program writes into its folder.
    """
    args = _parser().parse_args(argv)
    if not race.FOLDER.is_dir():
        raise ValueError(
            f"there is no folder {race.FOLDER}: figures need the checkout, installed by `pip install -e .`"
        )
    if args.figure not in (*names(), ALL):
        raise ValueError(f"there is no figure {args.figure!r}; valid are {', '.join((*names(), ALL))}")
    output = args.output if args.output is not None else Path("outputs") / "reproduce" / f"{args.figure}-{args.scale}"
    if args.figure == ALL:
        if args.plot_only:
            raise ValueError(f"{ALL} cannot be drawn alone; leave out --plot-only, finished figures are kept")
        with locked(output):
            failed = page.run(descriptions(), args.scale, output)
        print(f"the page is {output / 'index.html'}")
        return 1 if failed else 0
    if args.figure in _modules():
        module = _module(args.figure)
        run: Callable[[], None] = partial(module.run, args.scale, output)
        plot = getattr(module, "plot", None)
    else:
        run, plot = partial(race.run, args.figure, args.scale, output), race_pictures.plot
        if args.plot_only:
            race_pictures.check_settings(output, args.figure, args.scale)
    if args.plot_only and plot is None:
        raise ValueError(f"{args.figure} cannot be drawn alone; leave out --plot-only")
    with locked(output):
        if not args.plot_only:
            run()
        elif plot is not None:
            plot(output)
    print(f"data and figures are in {output}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="recon reproduce", description="Compute the data of a figure, and draw it.")
    parser.add_argument("figure", help=f"one of {', '.join(names())}, or all: with a page of them")
    parser.add_argument(
        "--scale",
        choices=SCALES,
        default="quick",
        help="quick: minutes, built-in images where $RECON_DATA has none; paper: hours",
    )
    parser.add_argument("--output", type=Path, help="folder (default: outputs/reproduce/FIGURE-SCALE)")
    parser.add_argument("--plot-only", action="store_true", help="draw again from the files in the folder")
    return parser

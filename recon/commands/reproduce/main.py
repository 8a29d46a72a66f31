"""``recon reproduce FIGURE --scale quick|paper``: compute the data of a figure, save them as CSV, and draw them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from recon.commands.reproduce import listing

SCALES = ("quick", "paper")
ALL = "all"
#: a command of its own: :mod:`recon.commands.reproduce.peers`
PEERS = "peers"


def main(argv: Sequence[str] | None = None) -> int:
    """Make a figure, or all; returns 0, or 1 if one of all failed.

    Raises
    ------
    ValueError
        there is no such figure or no data for it.
    OSError
        the output cannot be written, or another program writes into its folder.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == [PEERS]:
        from recon.commands.reproduce import peers

        return peers.main(words[1:])
    args = _parser().parse_args(words)
    from recon.commands.output.lock import locked  # all of these take seconds to import
    from recon.commands.reproduce import page, race, race_pictures

    if not listing.FOLDER.is_dir():
        raise ValueError(
            f"there is no folder {listing.FOLDER}: figures need the checkout, installed by `pip install -e .`"
        )
    if args.figure not in (*listing.names(), ALL):
        raise ValueError(f"there is no figure {args.figure!r}; valid are {', '.join((*listing.names(), ALL))}")
    output = args.output if args.output is not None else Path("outputs") / "reproduce" / f"{args.figure}-{args.scale}"
    if args.figure == ALL:
        if args.plot_only:
            raise ValueError(f"{ALL} cannot be drawn alone; leave out --plot-only, finished figures are kept")
        with locked(output):
            failed = page.run(listing.descriptions(), args.scale, output)
        print(f"the page is {output / 'index.html'}")
        return 1 if failed else 0
    if args.figure in listing.programs():
        module = listing.program(args.figure)
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
    names = ", ".join(listing.names())
    parser.add_argument("figure", help=f"one of {names}, or all: with a page of them; peers: see its --help")
    parser.add_argument(
        "--scale",
        choices=SCALES,
        default="quick",
        help="quick: minutes, built-in images where $RECON_DATA has none; paper: hours",
    )
    parser.add_argument("--output", type=Path, help="folder (default: outputs/reproduce/FIGURE-SCALE)")
    parser.add_argument("--plot-only", action="store_true", help="draw again from the files in the folder")
    return parser

"""``recon demo``: the whole line in two minutes, from built-in images to learned regularizers and certified pictures.

MAID learns total variation (TV) and a Fields of Experts (FoE) for denoising from patches of scikit-image's pictures.
Both then denoise pictures that they were not trained on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns 0 if every picture is certified to the accuracy, else 1.

    Raises
    ------
    OSError
        the output cannot be written, or another program writes into its folder.
    """
    args = _parser().parse_args(argv)
    from recon.commands.demo.learning import QUICK, Size, run  # torch takes seconds to import
    from recon.commands.output.lock import locked
    from recon.files import prepare_folder

    prepare_folder(args.output)
    with locked(args.output):
        return run(QUICK if args.quick_test else Size(), args.output)


def _parser() -> argparse.ArgumentParser:
    summary = "Learn regularizers from built-in images with MAID, and denoise other images with them; about 2 minutes."
    parser = argparse.ArgumentParser(prog="recon demo", description=summary)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for the results (default: demo)")
    parser.add_argument("--quick-test", action="store_true", help="tiny sizes: does it run? The results are poor.")
    return parser

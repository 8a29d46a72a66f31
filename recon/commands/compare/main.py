"""``recon compare --config FILE``: several methods on the same test images, as a table and as pictures.

The configuration has ``data`` as those of ``recon fit``, and ``methods``, which maps names to one of

    {baseline: fbp | zero_filled | tv}   with the filter, or the weight, that is best on validation data
    {model: FILE.safetensors or NAME}    trained before for this operator and noise
    {config: FILE.yaml}                  trained by ``recon fit`` on the data of the comparison

with paths relative to the configuration, `nonnegative: true` for minimizers over x >= 0, `weighted: true` for rays that
are weighted by their photons, and ``trust: [MODULE]`` beside a model whose class is one of your own. A
configuration is code: the classes that it names are imported and made. Operator, data, noise and measures are the same
for all methods, and so is the accuracy of whatever is certified. What is finished is kept: an interrupted comparison
goes on with the next method, and with the last checkpoint of a training.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from recon.commands.loading import loading

#: of the data, that the command line can name
FOLDERS = {"train": "training", "val": "validation", "test": "test"}


def main(argv: Sequence[str] | None = None) -> int:
    """Compare; returns 0, or 1 if some of several methods failed.

    Raises
    ------
    ValueError
        the configuration, a model, or the data cannot be used, or the data do not keep test and training apart.
    OSError
        a file is missing, the output cannot be written, or another program writes into its folder.
    """
    args = _parser().parse_args(argv)
    with loading():
        from recon.commands.compare.comparison import compare  # torch takes seconds to import
        from recon.commands.compare.configuration import read_comparison
        from recon.commands.output.lock import locked

    folders = {name: value for name, value in vars(args).items() if name in FOLDERS and value is not None}
    comparison = read_comparison(args.config, folders)
    output = args.output if args.output is not None else Path("outputs") / "compare" / args.config.stem
    with locked(output):
        return compare(comparison, output)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="recon compare", description="Compare methods on the same test images.")
    parser.add_argument("--config", type=Path, required=True, help="YAML with `data` and `methods`")
    for name, word in FOLDERS.items():
        parser.add_argument(f"--{name}", help=f"folder of {word} data, instead of that of the configuration")
    parser.add_argument("--output", type=Path, help="folder (default: outputs/compare/NAME_OF_CONFIG)")
    return parser

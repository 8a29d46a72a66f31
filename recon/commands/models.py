"""``recon models``: the trained models that come with the library, and their cards."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from recon.commands.loading import loading


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns 0.

    Raises
    ------
    FileNotFoundError
        there is no model of that name.
    ValueError
        the files of a model are damaged.
    """
    args = _parser().parse_args(argv)
    with loading():
        from rich.console import Console  # all of these take seconds to import
        from rich.markdown import Markdown
        from rich.table import Table

        from models.files import shipped
        from models.files.storage import load_model

    console = Console()
    if args.name is not None:
        text = shipped.card(args.name)
        # what is piped or redirected stays Markdown
        if console.is_terminal:
            console.print(Markdown(text))
        else:
            print(text, end="")
        return 0
    table = Table("name", "class", "parameters", "kB", "for", title=f"{shipped.FOLDER}")
    for name in shipped.names():
        file = shipped.locate(name)
        model, _ = load_model(file)
        count = sum(p.numel() for p in model.parameters())
        size = f"{file.stat().st_size / 1000:.0f}"
        table.add_row(name, type(model).__name__, f"{count:,}", size, shipped.purpose(name))
    console.print(table)
    print("A card: `recon models NAME`. To use one: `recon reconstruct --model NAME ...`.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="recon models",
        description="Trained models that come with the library: without a name the list of all, with a name its card "
        "(data, noise, operator, seed, the command that trained it, measured numbers).",
    )
    parser.add_argument("name", nargs="?", help="of the model whose card is wanted")
    return parser

"""``recon cache``: list or clear the projector matrices that are kept on disk."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns 0.

    Raises
    ------
    OSError
        a file cannot be removed.
    ValueError
        RECON_CACHE_GB is no number.
    """
    args = _parser().parse_args(argv)
    from recon.operators.tomography import cache as matrix_cache  # torch takes seconds to import

    folder = matrix_cache.cache_folder()
    if args.action == "clear":
        freed = matrix_cache.clear()
        print(f"{folder}: {_size(freed)} freed")
        return 0
    entries = matrix_cache.entries()
    total = sum(entry.size for entry in entries)
    print(f"{folder}: {_size(total)} of at most {_size(matrix_cache.size_limit())}")
    if entries:
        from rich.console import Console
        from rich.table import Table

        table = Table("size", "last used", "matrix")
        for entry in entries:
            used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
            table.add_row(_size(entry.size), used, entry.description)
        Console().print(table)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="recon cache",
        description="Projector matrices of computed tomography take seconds to a minute to build and are kept on disk, "
        "the least recently used removed first.",
        epilog="RECON_CACHE names the folder, RECON_CACHE_GB limits its size (10 by default).",
    )
    parser.add_argument("action", choices=("list", "clear"), help="show what is there, or remove all of it")
    return parser


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"

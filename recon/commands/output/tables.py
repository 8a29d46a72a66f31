"""Tables of numbers as CSV, and folders that hold results of one choice of settings only."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from recon.files import write_files


def claim(output: Path, settings: Mapping[str, object]) -> None:
    """Write ``settings`` into the folder, or see that they are those of the results in it.

    Raises
    ------
    ValueError
        if they are not.
    """
    path, mine = output / "settings.json", json.loads(json.dumps(settings))
    if not path.is_file():
        if (output / "results.csv").exists():
            raise ValueError(f"{output}: has results, but no settings.json that says of what; choose another folder")
        write_files({path: json.dumps(mine, indent=2).encode()})
        return
    try:
        theirs = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: is no JSON file ({error}); delete the folder, or choose another one") from error
    if theirs != mine:
        names = [name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)]
        raise ValueError(
            f"{output}: holds results of other settings ({', '.join(sorted(names))}); choose another folder"
        )


def table(rows: Sequence[Mapping[str, object]]) -> bytes:
    """CSV with a line of names."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file.

    Raises
    ------
    ValueError
        if it was cut off.
    """
    text = path.read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    if not rows or not text.endswith("\n") or any(None in row.values() or None in row for row in rows):
        raise ValueError(f"{path}: was cut off; delete it to compute it again")
    return rows

"""``recon reproduce all``: every figure, and one HTML page that shows what their folders hold.

``run`` makes each figure by a process of its own, as many at a time as there are cores, and writes ``NAME.json``
(seconds, machine, end) and ``NAME.log`` beside its folder; then index.html and summary.json. Figures that are finished
are kept, and those that were interrupted go on. Every number of ours on the page is read from a CSV file in a folder.
"""

from __future__ import annotations

import csv
import html
import io
import json
import math
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TypedDict

import yaml
from rich.console import Console

from recon.commands.errors import printable
from recon.commands.output.runs import write_json
from recon.commands.output.summary import write_summary
from recon.commands.output.tables import claim, read
from recon.commands.reproduce import listing
from recon.files import write_files

PUBLISHED = listing.FOLDER / "published.yaml"
#: the longest are begun first
LONG = ("foe-hoag", "accelerations", "tv-dfo", "ct", "foe-fixed", "foe-accuracy", "stochastic", "icnn-primal-dual")
#: rows of a CSV file that the page shows; the others are in the file
ROWS = 40
INTERRUPTED = None  # in place of an exit status
STYLE = """body{font:16px/1.45 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;font-size:.85rem;margin:.6rem 0}td,th{padding:.2rem .6rem;border-bottom:1px solid #ddd}
td,th{text-align:right}
td:first-child,th:first-child{text-align:left}
img{max-width:100%;margin:.4rem 0}
pre{background:#f6f6f6;padding:.8rem;overflow-x:auto}
h2{margin-top:3rem;border-top:2px solid #222;padding-top:1rem}.bad{color:#a00}"""


class Entry(TypedDict, total=False):
    """What the process of a figure came to; nothing if there was none."""

    figure: str
    seconds: float
    end: str
    machine: str


class Published(TypedDict, total=False):
    """A number of a paper, and where ours is, see :func:`compared`."""

    quantity: str
    published: str | float
    file: str
    column: str
    row: str | list[str]
    choose: str


class Compared(TypedDict):
    """A published number beside ours."""

    quantity: str
    published: str | float
    ours: float | None


def run(figures: Mapping[str, str], scale: str, output: Path) -> int:
    """Make the ``figures`` (names and descriptions) into folders of ``output``; returns how many failed.

    Raises
    ------
    ValueError
        the folder has figures of another scale.
    OSError
        a file cannot be written.
    """
    claim(output, {"figure": "all", "scale": scale})
    console = Console()
    names = [n for n in dict.fromkeys((*LONG, *sorted(figures))) if n in figures]
    waiting = [n for n in names if not finished(output, n)]
    running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    workers = max(1, os.cpu_count() or 1)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1") if workers > 1 else {}
    console.print(f"{len(figures) - len(waiting)} of {len(figures)} figures are finished", highlight=False)
    # a plain kill, too, has to end the processes of the figures
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                name = waiting.pop(0)
                console.print(f"{name} ... (log: {output / name}.log)", highlight=False)
                running[name] = (_begin(name, scale, output, threads), time.perf_counter())
            time.sleep(0.2)
            for name, (process, begin) in list(running.items()):
                code = process.poll()
                if code is not None:
                    del running[name]
                    _end(name, code, time.perf_counter() - begin, output)
                    console.print(f"{name}: {_entry(output, name)['end']}", highlight=False)
                    write_page(figures, scale, output)
    finally:
        signal.signal(signal.SIGTERM, before)
        for process, _ in running.values():
            process.terminate()
        for name, (process, begin) in running.items():
            process.wait()
            _end(name, INTERRUPTED, time.perf_counter() - begin, output)
    write_page(figures, scale, output)
    failed = [name for name in figures if not finished(output, name)]
    if failed:
        console.print(f"failed: {', '.join(failed)}; their logs are in {output}", highlight=False)
    return len(failed)


def _begin(name: str, scale: str, output: Path, threads: Mapping[str, str]) -> subprocess.Popen[bytes]:
    program = "import sys; from recon.commands.main import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["reproduce", name, "--scale", scale, "--output", str(output / name)]
    with (output / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **threads},
        )


def _end(name: str, code: int | None, seconds: float, output: Path) -> None:
    before = _entry(output, name)
    total = round(seconds + before.get("seconds", 0.0), 1)
    lines = (output / f"{name}.log").read_text(errors="replace").strip().splitlines()
    end = "finished" if code == 0 else f"failed: {printable(lines[-1]) if lines else f'exit status {code}'}"
    if code == INTERRUPTED:
        end = "interrupted"
    write_json(output / f"{name}.json", {"figure": name, "seconds": total, "end": end, "machine": machine()})


def finished(output: Path, name: str) -> bool:
    """Whether the figure was made and its tables are there and whole; otherwise its command makes what is missing."""
    tables = sorted((output / name).glob("*.csv"))
    return _entry(output, name).get("end") == "finished" and bool(tables) and not any(map(damage, tables))


def damage(path: Path) -> str:
    """What is wrong with a table, nothing if it is whole."""
    try:
        read(path)
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def _entry(output: Path, name: str) -> Entry:
    path = output / f"{name}.json"
    if not path.is_file():
        return {}
    try:
        entry: Entry = json.loads(path.read_text())
        if not isinstance(entry, dict):
            raise ValueError("no entries with names")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is no JSON file ({error}); delete it to make the figure again") from error
    return entry


def machine() -> str:
    """Processor, cores, Python and torch."""
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {platform.system()}, Python " + (
        f"{platform.python_version()}, torch {version('torch')}"
    )


# --- the page --------------------------------------------------------------------------------------------------------


def write_page(figures: Mapping[str, str], scale: str, output: Path) -> None:
    """Write index.html and summary.json from the folders of the figures in ``output``; cut-off tables are named."""
    published = yaml.safe_load(PUBLISHED.read_text())
    sections: list[str] = []
    summary: list[dict[str, object]] = []
    entries = {name: _entry(output, name) for name in figures}
    for name, description in figures.items():
        entry = entries[name]
        rows = compared(published.get(name, []), output / name)
        summary.append({"figure": name, "end": "not made", **entry, "published": rows})
        sections.append(_section(name, description, entry, rows, output))
    links = " · ".join(f'<a href="#{name}">{name}</a>' for name in figures)
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Figures, {scale} scale</title>'
        f"<style>{STYLE}</style><h1>Inexact algorithms for bilevel learning: the figures, {scale} scale</h1>"
        f"<p>Written by <code>recon reproduce all --scale {scale}</code>. Evaluations are gradients and Hessian-vector "
        "products per image, trials included; a run ends with the first iteration beyond its budget. Numbers are those "
        "of the CSV files that are linked; seconds and machine of a figure are those of its process.</p>"
        f"<p>{links}</p>{''.join(sections)}</html>\n"
    )
    write_files({output / "index.html": page.encode()})
    seconds = sum(entry.get("seconds", 0.0) for entry in entries.values())
    ends = [entry.get("end", "not made") for entry in entries.values()]
    missing = not {"not made", "interrupted"}.isdisjoint(ends)
    status = "incomplete" if missing else "finished" if set(ends) <= {"finished"} else "failed"
    numbers = {"figure": "all", "scale": scale, "figures": summary}
    write_summary(output, "reproduce all", seconds, status, numbers)


def compared(published: Sequence[Published], folder: Path) -> list[Compared]:
    """Published numbers with ours, from ``file``: column ``column`` of the row that has the value ``row`` first.

    Where ``row`` is a list, ours is the smallest of theirs, or with ``choose: max`` the largest. Ours is None where the
    file or a row is not there (yet), or the file was cut off.
    """
    rows: list[Compared] = []
    for entry in published:
        ours = None
        path = folder / str(entry.get("file", ""))
        if "file" in entry and path.is_file() and not damage(path):
            wanted = entry["row"] if isinstance(entry["row"], list) else [entry["row"]]
            values = {next(iter(r.values())): str(r.get(entry["column"]) or "nan") for r in read(path)}
            found = [float(values[str(row)]) for row in wanted if str(row) in values]
            found = [value for value in found if math.isfinite(value)]
            if len(found) == len(wanted):
                ours = max(found) if entry.get("choose") == "max" else min(found)
        rows.append({"quantity": entry["quantity"], "published": entry["published"], "ours": ours})
    return rows


def _section(name: str, description: str, entry: Entry, rows: Sequence[Compared], output: Path) -> str:
    end = str(entry.get("end", "not made yet"))
    about = f"{end}, {float(entry['seconds']):.0f} s, {entry['machine']}" if entry else end
    parts = [f'<h2 id="{name}">{name}</h2><p>{html.escape(description)}</p>']
    parts.append(f"<p{'' if end == 'finished' else ' class=bad'}>{html.escape(printable(about))}</p>")
    if rows:
        lines = [[r["quantity"], r["published"], "–" if r["ours"] is None else f"{r['ours']:.4g}"] for r in rows]
        parts.append(_html_table(["", "published", "here"], lines))
    folder = output / name
    about = _pictures(folder / "summary.json")
    if about:
        parts.append(f"<p>{html.escape(printable(about))}</p>")
    for path in sorted(folder.glob("*.png"), key=lambda p: (p.name != "loss.png", p.name)):
        parts.append(f'<div><img src="{name}/{path.name}" alt="{name}: {path.stem}" loading="lazy"></div>')
    for path in sorted(folder.glob("*.csv")):
        wrong = damage(path)
        content = [] if wrong else list(csv.reader(io.StringIO(path.read_text())))
        if wrong:
            parts.append(f"<p class=bad>{html.escape(printable(wrong))}</p>")
        if content:
            shown = [[_short(cell) for cell in line] for line in content[1 : ROWS + 1]]
            more = f", first {ROWS} of {len(content) - 1} rows" if len(content) - 1 > ROWS else ""
            table = _html_table(content[0], shown)
            link = f'<a href="{name}/{path.name}">{path.name}</a>{more}'
            opened = " open" if path.name in ("results.csv", "table.csv") else ""
            parts.append(f"<details{opened}><summary>{link}</summary>{table}</details>")
    if (folder / "settings.json").is_file():
        settings = html.escape((folder / "settings.json").read_text())
        parts.append(f"<details><summary>settings</summary><pre>{settings}</pre></details>")
    return "".join(parts)


def _pictures(path: Path) -> str:
    """How many pictures a race has, and from where."""
    try:
        summary = json.loads(path.read_text())
        return f"{int(summary['pictures'])} pictures, {summary['source']}." if "pictures" in summary else ""
    except (OSError, ValueError, TypeError):
        return ""


def _html_table(header: Sequence[object], lines: Sequence[Sequence[object]]) -> str:
    def row(cells: Sequence[object], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(printable(cell))}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{row(header, 'th')}{''.join(row(line, 'td') for line in lines)}</table>"


def _short(cell: str) -> str:
    try:
        return f"{float(cell):.5g}" if "." in cell or "e" in cell else cell
    except ValueError:
        return cell

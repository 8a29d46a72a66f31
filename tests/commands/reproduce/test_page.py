"""recon reproduce all: figures by processes, the page, what is kept, what fails."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from recon.commands.main import main
from recon.commands.reproduce import listing, page, race_plan

ROOT = Path(__file__).parents[3]


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two figures, of which the second fails; the list of those that were begun."""
    begun: list[str] = []

    def begin(name: str, scale: str, output: Path, threads: object) -> object:
        begun.append(name)
        folder = output / name
        folder.mkdir(exist_ok=True)
        if name == "good":
            (folder / "results.csv").write_text("run,psnr\nMAID <1>,27.4321987\n")
            (folder / "settings.json").write_text('{"scale": "quick"}')
            (folder / "loss.png").write_bytes(b"")
        (output / f"{name}.log").write_text("first\nrecon reproduce: no data\n" if name == "bad" else "done\n")

        class Process:
            def poll(self) -> int:
                return 0 if name == "good" else 1

        return Process()

    monkeypatch.setattr(page, "_begin", begin)
    monkeypatch.setattr(page, "PUBLISHED", tmp_path / "published.yaml")
    entry = {"quantity": "PSNR", "published": 26.9, "file": "results.csv", "row": "MAID <1>", "column": "psnr"}
    (tmp_path / "published.yaml").write_text(yaml.safe_dump({"good": [entry], "bad": [entry]}))
    monkeypatch.chdir(tmp_path)
    return begun


def test_page_shows_what_the_folders_hold(two: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    figures = {"good": "A & B", "bad": "Another."}
    assert page.run(figures, "quick", out) == 1
    text = (out / "index.html").read_text()
    assert "A &amp; B" in text
    assert "<td>PSNR</td><td>26.9</td><td>27.43</td>" in text
    assert "MAID &lt;1&gt;" in text
    assert 'src="good/loss.png"' in text
    assert "failed: recon reproduce: no data" in text
    entries = {e["figure"]: e for e in json.loads((out / "summary.json").read_text())["figures"]}
    assert entries["good"]["published"] == [{"quantity": "PSNR", "published": 26.9, "ours": 27.4321987}]
    assert entries["bad"]["published"][0]["ours"] is None
    # what is finished is kept, what failed is tried again
    assert page.run(figures, "quick", out) == 1
    assert sorted(two) == ["bad", "bad", "good"]
    with pytest.raises(ValueError, match="other settings"):
        page.run(figures, "paper", out)
    (out / "good" / "results.csv").write_text("run,psnr\nMAID")
    page.write_page(figures, "quick", out)
    assert "results.csv: was cut off" in (out / "index.html").read_text()
    assert not page.finished(out, "good")
    # its command makes what is damaged again, and so does `all`
    assert page.run(figures, "quick", out) == 1
    assert sorted(two) == ["bad", "bad", "bad", "good", "good"]
    assert page.finished(out, "good")


def test_published_numbers_take_the_best_of_several_rows(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("run,psnr\na,1.5\nb,2.5\nc,nan\n")
    entry = {"quantity": "q", "published": 2.0, "file": "results.csv", "row": ["a", "b"], "column": "psnr"}
    (row,) = page.compared([entry], tmp_path)
    assert row["ours"] == 1.5
    (row,) = page.compared([entry | {"choose": "max"}], tmp_path)
    assert row["ours"] == 2.5
    for missing in (["a", "c"], ["a", "d"], "c"):
        assert page.compared([entry | {"row": missing}], tmp_path)[0]["ours"] is None


@pytest.mark.slow
def test_a_kill_ends_the_processes_of_the_figures(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    program = (
        "import subprocess, sys, pathlib\n"
        "from recon.commands.reproduce import page\n"
        "def begin(name, scale, output, threads):\n"
        "    (output / f'{name}.log').write_text('')\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "    (output / 'child').write_text(str(child.pid))\n"
        "    return child\n"
        "page._begin = begin\n"
        "page.run({'good': 'A.'}, 'quick', pathlib.Path('out'))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}
    ) as p:
        child = tmp_path / "out" / "child"
        wait_for(lambda: child.is_file() and child.read_text() != "")
        p.terminate()
        assert p.wait(60) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int(child.read_text()), 0)
    assert json.loads((tmp_path / "out" / "good.json").read_text())["end"] == "interrupted"


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_all_figures_have_descriptions_and_published_numbers_name_them() -> None:
    figures = listing.descriptions()
    assert list(figures) == listing.names()
    assert {"tv-dfo", "ct", "mri-example", "tv-discretisation", "icnn-primal-dual", "foe-hoag"} <= figures.keys()
    assert all(re.match(r"[A-Z].*\.", text) and "\n" not in text for text in figures.values())
    published = yaml.safe_load(page.PUBLISHED.read_text())
    assert published.keys() <= figures.keys()
    for name, entries in published.items():
        for entry in entries:
            if entry["file"] == "results.csv" and name in listing.races():
                wanted = entry["row"] if isinstance(entry["row"], list) else [entry["row"]]
                assert set(wanted) <= race_plan.read_figure(listing.FOLDER / name / "quick.yaml")["runs"].keys()


def test_a_real_figure_by_a_process(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    process = page._begin("no-such-figure", "quick", tmp_path, {})
    assert process.wait() == 1
    assert "there is no figure 'no-such-figure'" in (tmp_path / "no-such-figure.log").read_text()
    assert main(["reproduce", "all", "--plot-only"]) == 1
    assert "all cannot be drawn alone" in capfd.readouterr().err

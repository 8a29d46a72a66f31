"""Files from strangers: one sentence, never a traceback, and nothing that a terminal would take for a command."""

from __future__ import annotations

import builtins
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from datasets import DataError
from models import TotalVariation
from models.files.storage import save_regularizer
from recon.commands.compare import main as compare
from recon.commands.configuration.yaml_files import read_yaml
from recon.commands.errors import printable, sentence
from recon.commands.main import main
from recon.commands.reproduce import page
from recon.limits import memory_limit, set_memory_limit

ROOT = Path(__file__).resolve().parents[2]
ESCAPE = "\x1b[31m\x1b]0;owned\x07\u202e"


def laughs(levels: int = 9) -> str:
    """Some hundred bytes that stand for 9^levels values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, levels)]
    return "\n".join(lines) + "\n"


HOSTILE_YAML = {
    "laughs": laughs(),
    "deep": "[" * 100_000,
    "deep mappings": "a: " * 1000,
    "recursive": "&a [*a]",
    "unknown alias": "a: *b",
    "long number": "a: " + "9" * 10_000,
    "date": "a: 2024-99-99",
    "object": "a: !!python/object/apply:os.system [exit 1]",
    "list as key": "? [a]\n: b",
    "not text": "\x00\x01",
    "half a character": "a: '\\ud800",
}


@pytest.mark.parametrize("name", HOSTILE_YAML)
@pytest.mark.parametrize("command", ["fit", "compare", "reconstruct"])
def test_yaml(tmp_path: Path, name: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(HOSTILE_YAML[name])
    np.save(tmp_path / "a.npy", np.ones((4, 4)))
    arguments = ["--config", str(path)]
    if command == "reconstruct":
        files = ("--data", str(tmp_path / "a.npy"), "--output", str(tmp_path / "out"))
        arguments = ["--task", "ct", "--method", "fbp", "--geometry", str(path), *files]
    assert main([command, *arguments]) == 1
    errors = capsys.readouterr().err.strip()
    assert len(errors.splitlines()) == 1
    assert "should not have happened" not in errors
    if command != "fit" or name not in ("long number", "date", "object", "list as key"):  # read by jsonargparse
        assert "x.yaml: " in errors


def test_yaml_within_the_bounds(tmp_path: Path) -> None:
    content = {"angles": [0.01 * k for k in range(5000)], "a": {"b": [1, None, "x", 2.5]}}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(content))
    assert read_yaml(tmp_path / "x.yaml") == content
    (tmp_path / "y.yaml").write_text(laughs(3) + "b: &b {c: 1}\nd: *b\n")
    assert read_yaml(tmp_path / "y.yaml")["d"] == {"c": 1}
    (tmp_path / "z.yaml").write_text(laughs(7))
    with pytest.raises(DataError, match=r"z\.yaml: .*more than 1000000 values, aliases written out"):
        read_yaml(tmp_path / "z.yaml")


@pytest.mark.parametrize("entry", ["views: 1000000000000", "views: 1.0e+18"])
def test_counts_in_a_geometry(tmp_path: Path, entry: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "g.yaml").write_text(f"type: parallel\nangles: {{start: 0, arc: 3, {entry}}}\nimage_shape: [4, 4]\n")
    np.save(tmp_path / "a.npy", np.ones((4, 4)))
    files = ("--data", str(tmp_path / "a.npy"), "--output", str(tmp_path / "out"))
    assert main(["reconstruct", "--task", "ct", "--method", "fbp", "--geometry", str(tmp_path / "g.yaml"), *files]) == 1
    assert "g.yaml: angles.views is 1" in capsys.readouterr().err


def hostile_models(folder: Path) -> list[Path]:
    """Descriptions and checkpoints of which none can be loaded."""
    found = []
    head = json.loads(save_regularizer(TotalVariation(), folder / "tv").with_suffix(".json").read_text())
    weights = (folder / "tv.safetensors").read_bytes()
    changes: list[Any] = [{"arguments": {"log_weight": value}} for value in ([[]], {"a": 1}, "x", None, 10**400)]
    changes += [{"arguments": {"filters": 1}}, {"metadata": None}, {"dtype": []}, {"class": 3}]
    texts = ["[" * 100_000, '{"a":' * 100_000, "9" * 10_000, "", "null", "\ud800".encode("utf-16", "surrogatepass")]
    for number, content in enumerate([*texts, *(json.dumps(head | change) for change in changes)]):
        path = folder / f"m{number}.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.with_suffix(".safetensors").write_bytes(weights)
        found.append(path)
    specification = {k: head[k] for k in ("class", "arguments", "dtype")}
    states: list[Any] = [
        {},
        [],
        {"bilevel": {"specification": specification}},
        {"bilevel": {"specification": specification}, "state_dict": [1]},
        {"bilevel": {"specification": specification}, "state_dict": {1: 2}},
        {"bilevel": 3, "state_dict": {}},
    ]
    for number, state in enumerate(states):
        torch.save(state, folder / f"c{number}.ckpt")
        found.append(folder / f"c{number}.ckpt")
    for number, content in enumerate((b"", b"PK\x03\x04", b"\x80\x02c", b"\x80\x05cposix\nsystem\n.", b"(" * 10**5)):
        (folder / f"b{number}.ckpt").write_bytes(content)
        found.append(folder / f"b{number}.ckpt")
    return found


def test_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "a.npy", np.eye(8))
    files = ("--data", str(tmp_path / "a.npy"), "--output", str(tmp_path / "out"))
    for path in hostile_models(tmp_path):
        assert main(["reconstruct", "--model", str(path), *files]) == 1
        lines = capsys.readouterr().err.strip().splitlines()
        # a warning before the error, where an earlier test has trained and so given the log a place
        errors = [line for line in lines if "has no checksum" not in line]
        assert len(errors) == 1
        assert path.stem in errors[0]
        assert "should not have happened" not in errors[0]


def test_errors_nobody_expected(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence that says so, and the traceback on demand."""
    monkeypatch.delenv("RECON_DEBUG", raising=False)

    def broken(argv: list[str]) -> int:
        raise KeyError(ESCAPE)

    monkeypatch.setattr(compare, "main", broken)
    assert main(["compare"]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("recon compare: this should not have happened (KeyError: ")
    assert "\x1b" not in errors
    assert "Traceback" not in errors
    assert main(["compare", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_sentences_of_memory_and_depth() -> None:
    assert sentence(MemoryError()) == "not enough memory"
    assert sentence(RecursionError("maximum recursion depth exceeded")) == "something is nested too deeply"
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert sentence(caught.value).startswith("not enough memory (")


def test_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    original = builtins.__import__

    def absent(name: str, *arguments: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "h5py":
            raise ImportError("No module named 'h5py'")
        return original(name, *arguments, **options)

    monkeypatch.setitem(sys.modules, "h5py", None)
    monkeypatch.setattr(builtins, "__import__", absent)
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    files = ("--data", str(tmp_path / "a.h5"), "--output", str(tmp_path / "out"))
    assert main(["reconstruct", "--method", "tv", *files]) == 1
    errors = capsys.readouterr().err
    assert "pip install 'recon-bilevel[data]'" in errors
    assert len(errors.strip().splitlines()) == 1


def test_printable() -> None:
    assert printable("größer → ŷ 例") == "größer → ŷ 例"
    assert printable(ESCAPE) == "\\x1b[31m\\x1b]0;owned\\x07\\u202e"
    assert printable("a\nb\r\t\x9b\u2028\udc80") == "a\\nb\\r\\t\\x9b\\u2028\\udc80"


def test_names_with_escape_sequences(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of pictures that are reconstructed, of one that fails, and of one that is no picture."""
    for name, scale in (("a", 1.0), ("b", 0.0)):
        picture = scale * np.random.default_rng(0).random((16, 16))
        np.save(tmp_path / f"{name}{ESCAPE}[bold].npy", picture)
    paths = sorted(map(str, tmp_path.glob("*.npy")))
    output = tmp_path / "out"
    command = ["reconstruct", "--method", "smoothed-tv", "--weight", "0.1", "--output", str(output), "--data"]
    assert main([*command, *paths]) == 1
    assert main([*command, f"{ESCAPE}.png"]) == 1
    for text in capfd.readouterr():
        assert "\x1b]" not in text
        assert "\x1b[31m" not in text
        assert "\u202e" not in text
    report = (output / "report.json").read_text()
    assert "\x1b" not in report
    assert json.loads(report)["images"][0]["name"] == f"a{ESCAPE}[bold]"


def test_pages_with_escape_sequences(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "results.csv").write_text(f"run,value\n{ESCAPE}<b>,1.5\n")
    page.write_page({"f": "A figure."}, "quick", tmp_path)
    text = (tmp_path / "index.html").read_text()
    assert "\x1b" not in text
    assert "\\x1b[31m" in text
    assert "&lt;b&gt;" in text


def test_a_closed_pipe_is_silent(tmp_path: Path) -> None:
    """As in `recon models | head -0`."""
    program = (
        "import os, sys, time\n"
        "from recon.commands.main import main\n"
        "while os.path.exists('reading'): time.sleep(0.01)\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    (tmp_path / "reading").write_text("")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for command in (["models"], ["models", "tv_bsd"], ["cache", "list"]):
        (tmp_path / "reading").write_text("")
        pipe = subprocess.PIPE
        with subprocess.Popen(
            [sys.executable, "-c", program, *command], env=environment, cwd=tmp_path, stdout=pipe, stderr=pipe
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            (tmp_path / "reading").unlink()
            assert process.stderr.read() == b""
            assert process.wait(120) == 141


def test_max_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((40, 40)))
    files = ("--data", str(tmp_path / "a.npy"), "--output", str(tmp_path / "out"))
    command = ["reconstruct", "--method", "tv", "--weight", "0.1", *files]
    try:
        assert main([*command, "--max-memory", "10kB"]) == 1
        assert "a.npy: an array of shape (40, 40) would take 12.8 kB, but the limit is 10 kB" in capsys.readouterr().err
        assert main(["--max-memory=1MB", *command]) == 0
        assert memory_limit() == 1e6
        assert main([*command, "--max-memory", "much"]) == 2
        assert "--max-memory is 'much'; valid are" in capsys.readouterr().err
    finally:
        set_memory_limit(None)

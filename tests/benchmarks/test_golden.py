"""Golden files: differences are found, places of files are none, and the cases know public names only."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import torch

from benchmarks.golden import differing, without_places
from benchmarks.golden_cases.common import Cases, bits

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_every_kind_of_difference_is_a_line() -> None:
    old = {"same": {"x": "1", "n": [1, 2]}, "bits": {"x": "a"}, "gone": {}, "list": {"n": [1, 2]}, "type": {"b": True}}
    new = {"same": {"x": "1", "n": [1, 2]}, "bits": {"x": "b"}, "new": {}, "list": {"n": [1, 3]}, "type": {"b": 1}}
    lines = list(differing(old, new, "g"))
    assert [line.partition(":")[0] for line in lines] == [
        "g / bits / x",
        "g / gone",
        "g / list / n [1]",
        "g / new",
        "g / type / b",
    ]
    assert lines[0] == 'g / bits / x: "a" -> "b"'
    assert list(differing([1], [1, 2], "g")) == ["g: [1] -> [1, 2]"]
    assert list(differing(old, old, "g")) == []


def test_one_bit_is_a_difference_and_the_sign_of_zero_too() -> None:
    x = torch.ones(3, dtype=torch.float64)
    assert bits(x) == bits(x.clone())
    assert len({bits(x), bits(torch.nextafter(x, 2 * x)), bits(x.float()), bits(x[:, None])}) == 4
    assert bits(torch.zeros(1)) != bits(-torch.zeros(1))


def test_folders_and_modules_are_no_difference() -> None:
    folders = {"/tmp/abc": "<work>"}
    old = {"error": "/tmp/abc/a.npy: holds a recon.lower_level.lbfgs.LBFGS", "names": ["models.icnn.ICNN"]}
    new = {"error": "<work>/a.npy: holds a LBFGS", "names": ["ICNN"]}
    assert without_places(old, folders) == new
    assert without_places("recon fit --config models.yaml", folders) == "recon fit --config models.yaml"


def test_a_case_that_raises_keeps_its_message() -> None:
    cases = Cases()
    cases.add("a", lambda: {"x": torch.zeros(2).view(3)})
    assert cases.results["a"]["raises"].startswith("RuntimeError: ")


def test_cases_import_public_names_only() -> None:
    """Files of the packages may move: what the cases import is what the packages export."""
    files = [BENCHMARKS / "golden.py", *(BENCHMARKS / "golden_cases").glob("*.py")]
    packages = ("recon.operators", "recon.lower_level", "recon.bilevel", "recon.reconstruction", "models", "datasets")
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported = {alias.name for alias in node.names} - {"models"}
                assert not any(name.partition(".")[0] in ("recon", "models", "datasets") for name in imported), file
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in (
                "recon",
                "models",
                "datasets",
            ):
                names = {alias.name for alias in node.names}
                if node.module == "recon.commands.main":
                    assert names == {"main"}
                else:
                    assert node.module in packages, f"{file}: {node.module}"
                    assert names <= set(importlib.import_module(node.module).__all__), file

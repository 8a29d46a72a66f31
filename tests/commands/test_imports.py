"""What commands do not import, so that they start quickly: by names of modules, in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recon.commands.main import COMMANDS

PROGRAM = """
import json, sys
from recon.commands.main import main
status = main(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    json.dump([status, sorted(sys.modules)], file)
"""
#: of no use for a list of options
WORK = {"torch", "numpy", "scipy", "PIL", "rich", "yaml", "jsonargparse"}
#: of no use where a picture is denoised, besides: what trains, and readers of other files
NOT_FOR_PICTURES = {"recon.bilevel", "tifffile"}
#: of no use where nothing is trained, drawn as a graph or scanned
HEAVY = {
    *("pytorch_lightning", "lightning_fabric", "torchmetrics", "jsonargparse", "matplotlib"),
    *("scipy.signal", "scipy.stats", "scipy.optimize", "scipy.ndimage", "odl", "astra", "pydicom", "h5py"),
}


def imported(folder: Path, *arguments: str) -> set[str]:
    """The modules of a process that ran ``recon ARGUMENTS``, without error."""
    path = folder / "modules.json"
    subprocess.run([sys.executable, "-c", PROGRAM, str(path), *arguments], check=True, capture_output=True)
    status, modules = json.loads(path.read_text())
    assert status == 0
    return set(modules)


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_imports_no_library(command: str | None, tmp_path: Path) -> None:
    assert not imported(tmp_path, *([] if command is None else [command]), "--help") & WORK


def test_the_list_of_models_imports_no_training(tmp_path: Path) -> None:
    assert not imported(tmp_path, "models") & HEAVY


def test_denoising_a_picture_imports_no_training_and_no_scanner(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    output = tmp_path / "out"
    options = ("--data", str(tmp_path / "a.png"), "--output", str(output), "--method", "tv", "--weight", "0.1")
    assert not imported(tmp_path, "reconstruct", *options) & (HEAVY | NOT_FOR_PICTURES)
    assert (output / "a_comparison.png").is_file()

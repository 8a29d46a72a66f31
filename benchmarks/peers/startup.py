"""CPU seconds of whole commands, children included, in turns: what a user waits for before anything is computed."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.peers.turns import Timing

ROOT = Path(__file__).resolve().parents[2]


def commands(picture: Path, folder: Path) -> dict[str, list[str]]:
    """Name -> command line; the first is what the others are compared with."""
    recon = [sys.executable, "-c", "import sys; from recon.commands.main import main; sys.exit(main())"]
    image = ["--data", str(picture), "--noise", "0.1", "--output", str(folder)]
    return {
        'python -c "import torch"': [sys.executable, "-c", "import torch"],
        "scikit-image, its TV denoiser": [sys.executable, "-c", "from skimage.restoration import denoise_tv_chambolle"],
        "recon --help": [*recon, "--help"],
        "recon reconstruct --help": [*recon, "reconstruct", "--help"],
        "recon models": [*recon, "models"],
        "recon reconstruct, TV of a picture": [*recon, "reconstruct", "--method", "tv", *image],
    }


def cpu_seconds(command: list[str]) -> float:
    """User and system time of the command; raises ``CalledProcessError`` with its output if it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, env=os.environ)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def timings(picture: Path, repeats: int) -> dict[str, Timing]:
    """All commands, in turns; the first turn fills the caches of the disk."""
    with tempfile.TemporaryDirectory() as folder:
        lines = commands(picture, Path(folder) / "out")
        runs: dict[str, list[float]] = {name: [] for name in lines}
        for turn in range(repeats + 1):
            for name, line in lines.items():
                seconds = cpu_seconds(line)
                if turn:
                    runs[name].append(seconds)
    return {name: Timing(seconds, float("nan")) for name, seconds in runs.items()}

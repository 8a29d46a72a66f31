"""The folder of a run and what is in it: summary.json, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from recon.files import write_files

CHECKPOINTS = "checkpoints"
CONFIG = "config.yaml"


def new_run(root: Path, prefix: str) -> Path:
    """Make the first folder ``root/<prefix>_<n>`` that does not exist; two programs never get the same."""
    root.mkdir(parents=True, exist_ok=True)
    number = 0
    while True:
        try:
            (root / f"{prefix}_{number}").mkdir()
            return root / f"{prefix}_{number}"
        except FileExistsError:
            number += 1


def run_of_checkpoint(path: Path) -> Path | None:
    """The folder of the run that wrote a checkpoint, or ``None`` if the file lies elsewhere."""
    run = path.resolve().parent.parent
    return run if path.resolve().parent.name == CHECKPOINTS and (run / CONFIG).is_file() else None


def latest_checkpoint(root: Path, name: str) -> Path:
    """The newest ``<name>.ckpt`` of the runs in ``root``.

    Raises
    ------
    FileNotFoundError
        there is none.
    """
    found = list(root.glob(f"*/{CHECKPOINTS}/{name}.ckpt"))
    if not found:
        raise FileNotFoundError(f"{root}: no run there has written {CHECKPOINTS}/{name}.ckpt; give its path instead")
    return max(found, key=lambda path: path.stat().st_mtime)


def config_name(config: Path | None) -> Path:
    """Folder and name of an experiment: ``configs/tv_denoising/quick.yaml`` -> ``tv_denoising/quick``."""
    if config is None:
        return Path("run")
    parts = config.with_suffix("").parts
    return Path(*parts[parts.index("configs") + 1 :]) if "configs" in parts else Path(parts[-1])


def finite(content: Mapping[str, object]) -> dict[str, object]:
    """``content`` with null for the numbers that JSON does not know (infinite, NaN)."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in content.items()}


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write ``content`` completely or not at all.

    Raises
    ------
    OSError
        the file cannot be written.
    ValueError
        a number inside of its entries is not finite.
    """
    write_files({path: finite(content)})

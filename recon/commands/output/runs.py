"""The folder of a run and what is in it: metrics.csv, summary.json, checkpoints."""

from __future__ import annotations

import csv
import io
import math
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers.logger import Logger

from recon.files import write_files

CHECKPOINTS = "checkpoints"
CONFIG = "config.yaml"
METRICS = "metrics.csv"


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


class MetricsFile(Logger):
    """Lightning logger for ``metrics.csv``: one row for every iteration, on the disk as soon as it is logged.

    Numbers have all their digits. Values of one step that come at different times (training, then validation) share
    a row. A resumed run keeps the rows up to its checkpoint and goes on below them.

    Parameters
    ----------
    folder
        of the run.
    resume_after
        step of the checkpoint that is resumed; None starts a new file.
    """

    def __init__(self, folder: Path, resume_after: int | None = None) -> None:
        super().__init__()
        self.path = folder / METRICS
        self._rows: dict[int, dict[str, str]] = {}
        self._names: list[str] = ["step"]
        self._start_of_last = 0
        if resume_after is not None and self.path.is_file():
            self._read(resume_after)
            self._write_all()

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the configuration is in ``config.yaml``."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add values to the row of ``step``.

        Raises
        ------
        OSError
            the disk is full.
        """
        step = step if step is not None else max(self._rows, default=0)
        values = {name: repr(float(value)) for name, value in metrics.items() if name != "step"}
        fresh = [name for name in values if name not in self._names]
        again = step in self._rows
        last = not self._rows or step >= max(self._rows)
        self._names += fresh
        self._rows.setdefault(step, {"step": str(step)}).update(values)
        if fresh or not last:
            self._write_all()
            return
        with self.path.open("r+" if again else "a", newline="") as file:
            if again:  # a validation that follows its training step
                file.truncate(self._start_of_last)
            file.seek(0, io.SEEK_END)
            self._start_of_last = file.tell()
            file.write(self._text([step]))

    def _read(self, resume_after: int) -> None:
        with self.path.open(newline="") as file:
            reader = csv.DictReader(file)
            self._names = list(reader.fieldnames or ["step"])
            for row in reader:
                # the last row of a killed run may be a part of one
                if None in row.values() or not (row.get("step") or "").isdigit() or int(row["step"]) > resume_after:
                    continue
                self._rows[int(row["step"])] = {name: value for name, value in row.items() if value != ""}

    def _text(self, steps: list[int], header: bool = False) -> str:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._names, lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(self._rows[step] for step in steps)
        return text.getvalue()

    def _write_all(self) -> None:
        steps = sorted(self._rows)
        content = self._text(steps, header=True).encode()
        write_files({self.path: content})
        self._start_of_last = len(content) - len(self._text(steps[-1:]).encode())


class Stopwatch(Callback):
    """Seconds spent in training, those before a resume included."""

    def __init__(self) -> None:
        self._before = 0.0
        self._started: float | None = None

    @property
    def seconds(self) -> float:
        """Since the first start."""
        return self._before + (time.monotonic() - self._started if self._started is not None else 0.0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = time.monotonic()

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self._before = float(state_dict["seconds"])


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

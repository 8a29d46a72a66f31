"""A Lightning trainer that writes and says nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl


def quiet_trainer(folder: Path, epochs: int = 1, **options: Any) -> pl.Trainer:
    """On one CPU, without checkpoints, logs and bars; ``options`` are those of ``pl.Trainer``."""
    return pl.Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        inference_mode=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )

"""One stage of a training: its place in the run, where its parameters begin, and what its model file says of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from torch import nn

from recon.commands.configuration.stages import StageConfiguration
from recon.commands.output.summary import SUMMARY

NAMES = ("regularizer", "reconstructor")


@dataclass(frozen=True)
class Stage:
    """A stage of a run.

    Parameters
    ----------
    configuration : StageConfiguration
        Its name and content.
    folder : Path
        Of its checkpoints, logs and model.
    config : Path
        The file that names all stages.
    arguments : sequence of str
        Of the command line, which hold for all stages.
    before : Stage, optional
        From whose parameters it starts.
    """

    configuration: StageConfiguration
    folder: Path
    config: Path
    arguments: Sequence[str]
    before: Stage | None = None

    @property
    def model_file(self) -> Path | None:
        """What was learned, once the stage is finished."""
        if not (self.folder / SUMMARY).is_file():  # which is written last
            return None
        files = [self.folder / f"{name}.safetensors" for name in NAMES]
        return next((file for file in files if file.is_file()), None)

    def summary(self) -> dict[str, Any]:
        """That of the finished stage."""
        content: dict[str, Any] = json.loads((self.folder / SUMMARY).read_text())
        return content

    def history(self) -> list[dict[str, Any]]:
        """What the model file of the finished stage says of the stages so far.

        Raises
        ------
        ValueError
            The stage is not finished.
        """
        file = self.model_file
        if file is None:
            raise ValueError(f"{self.folder}: is not finished, so that no stage can start from it")
        stages: list[dict[str, Any]] = json.loads(file.with_suffix(".json").read_text())["metadata"]["stages"]
        return stages

    @torch.no_grad()
    def take_over(self, learned: nn.Module) -> None:
        """Give what is to be learned the parameters of the stage before, in their precision; buffers are its own.

        Raises
        ------
        ValueError
            They are those of another model, or the stage before is not finished.
        """
        if self.before is None:
            return
        file = self.before.model_file
        if file is None:
            raise ValueError(f"{self.before.folder}: is not finished, so that no stage can start from it")
        saved = safetensors.torch.load_file(file)
        parameters = dict(learned.named_parameters())
        for name, p in parameters.items():
            if name not in saved or saved[name].shape != p.shape:
                raise ValueError(f"{file}: has no parameter {name} of the shape {tuple(p.shape)}")
        learned.to(next(iter(saved[name].dtype for name in parameters)))
        for name, p in learned.named_parameters():
            p.copy_(saved[name])

    def metadata(self, training: Mapping[str, object]) -> dict[str, object]:
        """What the model file says of all stages up to this one: configurations, options and how they ended."""
        own = {
            "name": self.configuration.name,
            "config": yaml.safe_dump(self.configuration.content, sort_keys=False),
            "options": list(self.arguments),
            "training": dict(training),
        }
        return {"stages": [*(self.before.history() if self.before is not None else []), own]}

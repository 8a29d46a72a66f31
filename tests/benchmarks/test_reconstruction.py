"""The benchmark of reconstructions makes what its configuration may name, and nothing else."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentError

from benchmarks.reconstruction import configured
from datasets import TomographyDataModule

OWN = """
from typing import Any

from datasets import DenoisingDataModule

def leave(command: Any = None) -> Any:
    open({mark!r}, "w").close()

class Marked(DenoisingDataModule):
    def __init__(self, extra: Any = None) -> None:
        super().__init__()
        open({mark!r}, "w").close()
"""


def arguments(folder: Path, data: dict[str, Any], **options: Any) -> argparse.Namespace:
    (folder / "c.yaml").write_text(yaml.safe_dump({"data": data, "model": {"init_args": {"mu": 0.5}}}))
    return argparse.Namespace(**({"config": folder / "c.yaml", "train": None, "test": None} | options))


@pytest.mark.filterwarnings("ignore:(?s).*denylist.*")  # of jsonargparse, which will refuse some of these itself
def test_nothing_foreign_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "mark"
    (tmp_path / "own.py").write_text(OWN.format(mark=str(mark)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own", raising=False)
    command = {"command": f"touch {mark}"}
    hostile = {"class_path": "own.leave"}
    for data in (
        {"class_path": "own.leave", "init_args": command},
        {"class_path": "os.system", "init_args": command},
        {"class_path": "models.TotalVariation"},
        {"class_path": "own.Marked", "init_args": {"extra": hostile}},
        {"class_path": "datasets.DenoisingDataModule", "init_args": {"operator": hostile}},
    ):
        with pytest.raises((ValueError, ArgumentError), match=r"own\.leave|os\.system|models\.TotalVariation"):
            configured(arguments(tmp_path, data))
        assert not mark.exists()


def test_data_and_mu_of_a_configuration(tmp_path: Path) -> None:
    data = {"class_path": "datasets.TomographyDataModule", "init_args": {"size": 16, "views": 8, "cache": False}}
    module, mu = configured(arguments(tmp_path, data, train="ellipses"))
    assert isinstance(module, TomographyDataModule)
    assert mu == 0.5

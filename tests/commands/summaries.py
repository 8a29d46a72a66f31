"""What every ``summary.json`` says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from models.files.storage import library_version


def check_summary(folder: Path, command: str, status: str = "finished") -> dict[str, Any]:
    """The summary in the folder of a result, which has the entries that all programs write."""
    content: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    assert (content["command"], content["status"], content["version"]) == (command, status, library_version())
    assert content["seconds"] >= 0
    assert sorted([*content["written"], "summary.json"]) == sorted(p.name for p in folder.iterdir())
    assert content.keys() - {"command", "status", "version", "seconds", "written"}
    return content

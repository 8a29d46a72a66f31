"""The pages of docs/ are true: their code runs as it is printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def code(page: str) -> str:
    """All Python blocks of a page, one after the other."""
    return "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S))


def test_worked_examples_of_the_architecture(tmp_path: Path) -> None:
    (tmp_path / "page.py").write_text(code("architecture.md"))
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); import page"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shape, losses, half = done.stdout.splitlines()
    assert shape == "torch.Size([12, 24])"
    values = [float(value) for value in losses.strip("[]").split(",")]
    assert len(values) == 4
    assert values[-1] < values[0]
    assert half == "tensor(0.5000)"


@pytest.mark.parametrize("page", ["architecture.md"])
def test_files_that_a_page_names_exist(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    named = re.findall(r"`((?:recon|models|datasets|configs|tests)/[\w./]+)`", text)
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []

"""The pages of docs/ are true: their code runs as it is printed."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(str(path.relative_to(ROOT)) for path in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])


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


@pytest.mark.parametrize("page", PAGES)
def test_files_and_names_in_a_page_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    files = re.findall(r"`((?:recon|models|datasets|configs|tests|benchmarks|docs)/[\w./-]+)`", text)
    assert [name for name in files if not (ROOT / name).exists()] == []
    names = re.findall(r"`((?:recon|models|datasets)\.[\w.]+)`", text)
    assert [name for name in names if not exists(name)] == []
    assert files or names


def exists(name: str) -> bool:
    """Whether a module, class, function or attribute has this name."""
    package, _, attribute = name.partition(".")
    if hasattr(importlib.import_module(package), attribute):
        return True  # or a folder of this name, such as models/pretrained, would be imported in its place
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True

"""What all tests share: fixed seeds, hypothesis' settings, and the folder of real data."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest
import torch

# Examples that are the same in every run, and no deadline: machines of CI are slow and busy.
hypothesis.settings.register_profile("default", derandomize=True, deadline=None, max_examples=25)
hypothesis.settings.load_profile("default")

if "PYTEST_XDIST_WORKER" in os.environ:  # processes that share the tests share the cores
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Projector matrices of the tests do not go to the user's cache."""
    os.environ["RECON_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data: RECON_DATA, or ../shared/data beside the repository."""
    named = os.environ.get("RECON_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data: no folder {folder}; name one with RECON_DATA")
    return folder

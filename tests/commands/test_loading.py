"""How commands load their modules: without a search for garbage; threads of torch sleep where they wait."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from recon.commands.loading import loading


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if torch were not loaded."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("unloaded")
def test_nothing_is_collected_meanwhile_nor_looked_through_afterwards() -> None:
    before = gc.get_freeze_count()
    with loading():
        assert not gc.isenabled()
        kept = [[] for _ in range(1000)]  # type: ignore[var-annotated]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + len(kept)


@pytest.mark.usefixtures("unloaded")
def test_errors_leave_the_collection_as_it_was() -> None:
    with pytest.raises(ImportError), loading():
        raise ImportError("no such library")
    assert gc.isenabled()


@pytest.mark.usefixtures("unloaded")
def test_a_collection_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with loading():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_program_that_has_loaded_torch_keeps_its_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", sys)
    before = gc.get_freeze_count()
    with loading():
        assert gc.isenabled()
    assert gc.get_freeze_count() == before


@pytest.mark.parametrize(
    ("given", "loaded", "expected"), [(None, False, "passive"), ("active", False, "active"), (None, True, None)]
)
def test_threads_of_torch_sleep_where_they_wait_unless_told_otherwise(
    given: str | None, loaded: bool, expected: str | None
) -> None:
    program = "import os, sys; from recon.commands.main import main; main(['cache', 'list'])"
    program = f"{'import torch; ' * loaded}{program}; print('policy', os.environ.get('OMP_WAIT_POLICY'))"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"policy {expected}"

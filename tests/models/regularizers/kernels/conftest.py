"""What the tests of the compiled kernels share."""

from __future__ import annotations

import pytest

from models.regularizers.kernels import library


@pytest.fixture(params=library.LEVELS)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every level of instructions that this machine has."""
    monkeypatch.setenv(library.SWITCH, request.param)
    try:
        library.open_library(library.find())
        library.level()
    except (library.LibraryError, ValueError) as error:
        pytest.skip(str(error))
    return str(request.param)

"""What computes exact total variation: the kernel, where it was built, and torch."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from recon.lower_level.solvers.total_variation import iteration as iterations
from recon.native import library


@pytest.fixture(params=["compiled", "torch"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What computes the steps: the kernel, where it was built, and torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = library(Path(iterations.__file__).parent, iterations.LIBRARY, iterations.VERSION)
    if request.param == "compiled" and found is None:
        pytest.skip("no kernel was built")
    monkeypatch.setenv("RECON_KERNELS", "off" if request.param == "torch" else "best")
    return request.param

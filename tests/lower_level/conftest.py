"""What does the steps of solvers, and computes exact total variation: compiled libraries, where built, and torch."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from recon.lower_level.solvers.compiled.library import usable
from recon.lower_level.solvers.total_variation import iteration as iterations
from recon.native import library


@pytest.fixture(params=["compiled", "torch"])
def steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What does the steps: the compiled library, where it was built, and torch."""
    monkeypatch.setenv("RECON_KERNELS", "off" if request.param == "torch" else "best")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if request.param == "compiled" and usable(torch.zeros(1)) is None:
            pytest.skip("no library was built")
    return request.param


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

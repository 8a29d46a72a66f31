"""What does the steps of solvers: the compiled library, where it was built, and torch."""

from __future__ import annotations

import warnings

import pytest
import torch

from recon.lower_level.solvers.compiled.library import usable


@pytest.fixture(params=["compiled", "torch"])
def steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What does the steps: the compiled library, where it was built, and torch."""
    monkeypatch.setenv("RECON_KERNELS", "off" if request.param == "torch" else "best")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if request.param == "compiled" and usable(torch.zeros(1)) is None:
            pytest.skip("no library was built")
    return request.param

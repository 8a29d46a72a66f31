"""What ``recon --version`` says."""

from __future__ import annotations

import pytest
import torch

from models.files.storage import library_version
from models.regularizers.kernels import describe
from recon.commands.main import main
from recon.lower_level.solvers.compiled.library import describe as describe_steps
from recon.operators.tomography.matrix.sparse import describe as describe_sparse


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"recon {library_version()}\n"


@pytest.mark.parametrize("switch", ["best", "off", "nonsense"])
def test_what_it_runs_on(switch: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECON_KERNELS", switch)
    assert main(["--version", "--verbose"]) == 0
    said = capsys.readouterr().out
    assert f"torch {torch.__version__}" in said
    assert f"kernels of filters and networks: {describe()}" in said
    assert f"steps of solvers: {describe_steps()}" in said
    assert f"kernel of sparse matrices: {describe_sparse()}" in said
    assert (switch in said) == (switch != "best")


def test_other_words_behind_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version", "--louder"]) == 2
    assert "unknown command" in capsys.readouterr().err

"""``summary.json``: one head for all programs, null for numbers that JSON has not, all or nothing."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from recon.commands.output.summary import write_summary
from tests.commands.summaries import check_summary


def test_the_head_is_that_of_the_program_and_names_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("a\n1\n")
    (tmp_path / "images").mkdir()
    (tmp_path / ".recon.lock").write_text("")
    write_summary(tmp_path, "compare", 1.23456, "finished", {"psnr": math.nan, "loss": 2.5})
    (tmp_path / ".recon.lock").unlink()
    content = check_summary(tmp_path, "compare")
    assert content["written"] == ["images", "table.csv"]
    assert (content["psnr"], content["loss"], content["seconds"]) == (None, 2.5, 1.23)


def test_numbers_inside_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"summary\.json: not written, runs\[0\] is nan"):
        write_summary(tmp_path, "compare", 0.0, "finished", {"runs": [math.nan]})
    assert not list(tmp_path.iterdir())

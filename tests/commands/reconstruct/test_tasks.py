"""A task of ``recon reconstruct`` is one class: its files, options, operator, and all the rest is there."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from recon.commands.reconstruct.main import guessed_task, main
from recon.commands.reconstruct.options import POSITIVE
from recon.commands.reconstruct.tasks import TASKS
from recon.commands.reconstruct.tasks.measured import Measured
from recon.commands.reconstruct.tasks.task import Job
from recon.operators import Blur
from recon.reconstruction import NoiseLevel, Origin, Problem
from tests.commands.reconstruct.slices import refused, run
from tests.lower_level.problems import normal, smooth_image


class Deblurring(Measured):
    """Pictures behind a Gaussian blur, in NumPy files of another suffix."""

    name = "deblurring"
    plain, plain_title, plain_is_start = "blurred", "blurred", True
    files = "blurred pictures: .blurred"
    suffixes = (".blurred",)
    options = ("blur",)
    ranges: ClassVar = {"blur": POSITIVE}
    relative_mu = 1e-3

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument_group("deblurring").add_argument("--blur", type=float, help="width in pixels (default: 1)")

    def build(self, job: Job, reference: Tensor | None) -> Problem:
        with job.data.open("rb") as file:
            y = torch.from_numpy(np.load(file))[None, None].to(self.args.device, self.dtype)
        return Problem(
            origin=Origin(job.data, job.data.stem, "1"),
            noise=NoiseLevel(self.args.noise or 0.01, "given", y.numel()),
            y=y,
            operator=Blur(self.args.blur or 1.0, tuple(y.shape[1:])),
            start=y,
            baseline=y[0, 0].cpu().double(),
            reference=reference,
        )


@pytest.fixture
def blurred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(TASKS, Deblurring.name, Deblurring)
    x = 0.5 + 0.3 * smooth_image(1, 1, 24, 20, seed=3)
    x[..., 8:16, 6:12] += 0.5
    y = Blur(1.0, (1, 24, 20))(x)[0, 0] + normal(24, 20, scale=0.01)
    np.save(tmp_path / "true.npy", x[0, 0].numpy())
    with (tmp_path / "a.blurred").open("wb") as file:
        np.save(file, y.numpy())
    return tmp_path / "a.blurred"


def test_a_new_task_is_guessed_reconstructed_and_reported(blurred: Path) -> None:
    reference = ("--reference", str(blurred.with_name("true.npy")))
    assert guessed_task([blurred], None) == guessed_task([], "blurred") == "deblurring"
    status, output, report = run(blurred, "--method", "tv", "--noise", "0.01", *reference)
    assert status == 0
    assert (report["task"], report["baseline"], report["schema"]) == ("deblurring", "blurred", 2)
    assert report["psnr"] > report["baseline_psnr"] + 3
    assert report["residual"] == pytest.approx(0.01, rel=0.03)
    assert report["error"] <= report["accuracy"]
    assert (output / "a.tif").is_file()
    _, _, report = run(blurred, "--method", "blurred")
    assert report["status"] == "direct"


def test_its_options_belong_to_it(blurred: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused("--blur is -1.0, but must be positive", blurred, "--method", "tv", "--blur", "-1")
    refused("--views belongs to --task ct", blurred, "--method", "tv", "--views", "3")
    data = str(blurred.with_name("true.npy"))
    with pytest.raises(ValueError, match="--blur belongs to --task deblurring; these data are taken for denoising"):
        main(["--data", data, "--output", str(blurred.parent / "out"), "--method", "tv", "--blur", "2"])
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert "--blur BLUR" in said
    assert "blurred pictures: .blurred" in " ".join(said.split())

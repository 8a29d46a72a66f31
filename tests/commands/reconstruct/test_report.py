"""The report of ``recon reconstruct``: one schema for all tasks, documented; reports of any schema are named."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from models import TotalVariation, UNet
from models.files.setting import describe_operator
from models.files.storage import save_regularizer
from recon.commands.main import main
from recon.commands.reconstruct.report import SCHEMA
from recon.operators import Identity
from tests.commands.reconstruct.slices import run
from tests.lower_level.problems import normal, smooth_image

DOCUMENTED = (Path(__file__).parents[3] / "docs" / "reconstruction.md").read_text().partition("## The report")[2]
#: null in every report of TV by a given weight with a reference
NO_NUMBERS = {"noise_level", "model", "simulated"}


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Noisy, on [0, 1], with the true one beside it."""
    x = 0.5 + 0.3 * smooth_image(1, 1, 14, 12, seed=3)[0, 0]
    np.save(tmp_path / "true.npy", x.numpy())
    np.save(tmp_path / "a.npy", (x + normal(14, 12, scale=0.05)).numpy())
    return tmp_path / "a.npy"


def kspace(folder: Path, scale: float = 40.0) -> Path:
    """Of one coil, complete, with noise of standard deviation 0.5 in real and imaginary parts."""
    x = scale * (1 + smooth_image(1, 1, 14, 12, seed=3)[0, 0].numpy())
    noise = normal(2, 14, 12, scale=0.5).numpy()
    y = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(x), norm="ortho")) + noise[0] + 1j * noise[1]
    np.save(folder / "true.npy", x)
    np.save(folder / "k.npy", y)
    return folder / "k.npy"


def scan(folder: Path) -> Path:
    pytest.importorskip("astra", reason="needs the extra ct")
    rng = np.random.default_rng(0)
    z = 3 + 0.1 * rng.random((8, 12))
    np.savez(folder / "s.npz", sinogram=z, angles_degrees=np.arange(8) * 22.5, detector_spacing=10.0)
    np.save(folder / "true.npy", np.full((12, 12), 0.03))
    return folder / "s.npz"


def data_of(task: str, folder: Path, picture: Path) -> Path:
    return {"denoising": lambda: picture, "mri": lambda: kspace(folder), "ct": lambda: scan(folder)}[task]()


@pytest.mark.parametrize("task", ["denoising", "ct", "mri"])
@pytest.mark.parametrize("method", ["plain", "tv"])
def test_all_tasks_and_methods_write_the_entries_that_are_documented(
    tmp_path: Path, picture: Path, task: str, method: str
) -> None:
    if (task, method) == ("denoising", "plain"):
        network = save_regularizer(
            UNet(scales=2), tmp_path / "unet", {"setting": {"operator": describe_operator(Identity()), "noise": {}}}
        )
        options: tuple[str, ...] = ("--model", str(network))
    elif method == "plain":
        options = ("--method", {"ct": "fbp", "mri": "zero_filled"}[task])
    else:
        options = ("--method", "tv", "--weight", "0.05", "--mu", "1", "--reference", str(tmp_path / "true.npy"))
    data = data_of(task, tmp_path, picture)
    _, output, _ = run(data, *options, "--noise", "0.05")
    report = json.loads((output / "report.json").read_text())
    (entry,) = report["images"]
    tables = DOCUMENTED.partition("## Summaries")[0].split("and of every result")
    about, of_results = (re.findall(r"`(\w+)`", "".join(re.findall(r"(?m)^\| (`.*?) \|", part))) for part in tables)
    assert list(report) == about
    assert list(entry) == of_results
    assert (report["schema"], report["task"], entry["data"]) == (SCHEMA, task, str(data))
    if method == "tv":
        assert {key for key in (*report, *entry) if {**report, **entry}[key] is None} == NO_NUMBERS


def test_entries_are_in_the_unit_that_they_are_documented_in(tmp_path: Path) -> None:
    """Of k-space on another scale, what has a unit is on that scale, and what belongs to x or is a ratio stays."""
    found = []
    for factor in (1.0, 1e3):
        folder = tmp_path / str(factor)
        folder.mkdir()
        data = kspace(folder)
        for name in ("k", "true"):
            np.save(folder / f"{name}.npy", factor * np.load(folder / f"{name}.npy"))
        options = ("--noise", str(0.5 * factor), "--choose", "discrepancy", "--reference", str(folder / "true.npy"))
        found.append(run(data, "--method", "tv", *options, "--accuracy", str(0.1 * factor))[2])
    small, large = found
    scaled = ("noise", "residual", "smoothing", "accuracy", "error", "error_rms_per_pixel")
    same = ("weight", "mu", "strong_convexity", "norm_bound", "error_relative", "evaluations", "psnr", "baseline_psnr")
    for name in scaled:
        assert large[name] == pytest.approx(1e3 * small[name], rel=1e-4), name
    for name in same:
        assert large[name] == pytest.approx(small[name], rel=1e-4), name
    trials = [[(t["weight"], t["value"] / s) for t in r["weight_trials"]] for r, s in ((small, 1.0), (large, 1e3))]
    assert len(trials[0]) > 1
    assert trials[0] == [pytest.approx(t, rel=1e-4) for t in trials[1]]


def test_errors_of_pictures_belong_to_the_image(tmp_path: Path, picture: Path) -> None:
    model = save_regularizer(TotalVariation(-2.0, -3.0), tmp_path / "tv", {})
    _, output, entry = run(picture, "--model", str(model))
    image = torch.from_numpy(np.load(output / "a.npy"))
    assert entry["error_relative"] == pytest.approx(entry["error"] / float(image.norm()))
    assert entry["error_rms_per_pixel"] == pytest.approx(entry["error"] / math.sqrt(image.numel()))
    assert (entry["accuracy"], entry["accuracy_rule"]) == (0.01, "by default")
    assert (entry["norm_bound"], entry["mu"], entry["unit"]) == (1.0, 0.0, "1")


@pytest.mark.parametrize(("change", "schema"), [({}, 2), ({"schema": None}, 1), ({"schema": 3}, 3)])
@pytest.mark.parametrize(
    "command",
    [
        ["compare", "--config", "OLD"],
        ["fit", "--config", "OLD"],
        ["reconstruct", "--method", "fbp", "--data", "a.npy", "--output", "out", "--geometry", "OLD"],
    ],
    ids=lambda command: command[0],
)
def test_a_report_that_a_program_is_given_is_named_with_its_schema(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, int | None],
    schema: int,
    command: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.ones((4, 4)))
    content = {"schema": SCHEMA, "certificate": "none", "images": [], **change}
    Path("old.json").write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    assert main([word.replace("OLD", "old.json") for word in command]) != 0
    assert f"old.json: is a report of recon reconstruct, of schema {schema}" in capsys.readouterr().err


def test_the_summary_is_beside_the_report(picture: Path) -> None:
    status, output, entry = run(picture, "--method", "tv", "--weight", "0.05", "--reference", str(picture))
    summary = json.loads((output / "summary.json").read_text())
    assert (status, summary["status"], summary["command"]) == (0, "finished", "reconstruct")
    assert sorted(summary["written"]) == sorted(p.name for p in output.iterdir() if p.name != "summary.json")
    assert (summary["images"], summary["failures"], summary["pending"]) == (1, 0, 0)
    assert (summary["largest_error"], summary["evaluations"]) == (entry["error"], entry["evaluations"])
    assert summary["psnr"] == entry["psnr"]
    status, output, _ = run(picture, "--method", "tv", "--weight", "0.05", "--max-evaluations", "1")
    assert status == 1
    assert json.loads((output / "summary.json").read_text())["status"] == "accuracy not reached"

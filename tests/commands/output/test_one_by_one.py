"""Many files: what was made stays and is in the report, whatever becomes of the others; nothing infinite is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from recon.commands.compare import comparison as compare
from recon.commands.main import main
from recon.commands.reconstruct import driver

NAMES = ("a", "b", "c")


def pictures(folder: Path, black: str = "b") -> Path:
    """Three noisy pictures of 16x16 pixels, one of them black, whose noise and height are 0."""
    rng = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for name in NAMES:
        picture = np.linspace(0, 1, 256).reshape(16, 16) + 0.05 * rng.standard_normal((16, 16))
        np.save(folder / "pictures" / f"{name}.npy", 0 * picture if name == black else picture)
    return folder / "pictures"


def reconstruct(data: Path, *more: str) -> tuple[int, Path]:
    output = data.parent / "results"
    return main(["reconstruct", "--method", "tv", "--data", str(data), "--output", str(output), *more]), output


def report_of(output: Path) -> dict[str, Any]:
    content = json.loads((output / "report.json").read_text())
    assert isinstance(content, dict)
    return content


@pytest.mark.parametrize("black", NAMES)
def test_a_black_picture_takes_nothing_from_the_others(
    tmp_path: Path, black: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, output = reconstruct(pictures(tmp_path, black))
    assert status == 1
    report, others = report_of(output), [n for n in NAMES if n != black]
    assert [entry["name"] for entry in report["images"]] == others
    assert all(entry["error"] <= 0.01 and entry["status"] == "converged" for entry in report["images"])
    (failure,) = report["failures"]
    assert failure["data"].endswith(f"{black}.npy")
    assert "the noise is 0" in failure["reason"]
    assert (report["converged"], report["pending"]) == (False, [])
    assert all((output / f"{name}.npy").is_file() == (name != black) for name in NAMES)
    assert f"1 of 3 failed:\n  {failure['reason']}" in capsys.readouterr().err


def test_the_report_is_there_after_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill in the third picture leaves the certificates of two, and says what is missing."""
    data, count = pictures(tmp_path, ""), iter(range(10))
    original: Callable[..., Any] = driver._result

    def killed(*arguments: Any) -> Any:
        if next(count) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(driver, "_result", killed)
    status, output = reconstruct(data)
    assert status == 130
    report = report_of(output)
    assert [entry["name"] for entry in report["images"]] == ["a", "b"]
    assert (report["converged"], report["failures"]) == (False, [])
    assert [Path(name).name for name in report["pending"]] == ["c.npy"]


def test_measured_data_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    files = []
    for name in NAMES:
        picture = rng.random((16, 16)) * (name != "b")
        np.save(tmp_path / f"{name}.npy", np.fft.fftshift(np.fft.fft2(picture)))
        files.append(str(tmp_path / f"{name}.npy"))
    output = tmp_path / "results"
    command = ["reconstruct", "--task", "mri", "--method", "zero_filled", "--data", *files, "--output", str(output)]
    assert main(command) == 1
    report = report_of(output)
    assert [entry["name"] for entry in report["images"]] == ["a", "c"]
    assert "b.npy: holds only zeros" in report["failures"][0]["reason"]
    assert "b.npy: holds only zeros" in capsys.readouterr().err


def test_a_method_that_fails_takes_nothing_from_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for part in ("learn", "val", "test"):
        Path(part).mkdir()
        Image.fromarray(rng.integers(20, 236, (16, 16)).astype(np.uint8)).save(f"{part}/{part}.png")
    data = {"class_path": "datasets.DenoisingDataModule", "init_args": {"train": "learn", "val": "val", "test": "test"}}
    methods = {"first": {"baseline": "tv"}, "second": {"baseline": "tv", "mu": 0.1}, "third": {"baseline": "tv"}}
    Path("c.yaml").write_text(yaml.safe_dump({"data": data, "methods": methods}))
    measure: Callable[..., Any] = compare.measure

    def failing(name: str, *arguments: Any) -> Any:
        if name == "second":
            raise ValueError("its reconstructions are not finite")
        return measure(name, *arguments)

    monkeypatch.setattr(compare, "measure", failing)
    assert main(["compare", "--config", "c.yaml", "--output", "out"]) == 1
    summary = json.loads(Path("out/summary.json").read_text())
    assert [m["method"] for m in summary["methods"]] == ["first", "third"]
    assert summary["failures"] == [{"data": "second", "reason": "second: its reconstructions are not finite"}]
    assert "1 of 3 failed:\n  second: its reconstructions are not finite" in capsys.readouterr().err


def numbers_of(folder: Path) -> list[np.ndarray]:
    return [np.load(path) for path in folder.rglob("*.npy")]


@pytest.mark.parametrize("method", ["tv", "zero_filled"])
def test_overflowing_kspace_writes_nothing(tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "k.npy", 1e200 * np.fft.fftshift(np.fft.fft2(rng.random((16, 16)))))
    output = tmp_path / "out"
    command = ["reconstruct", "--task", "mri", "--method", method, "--data", str(tmp_path / "k.npy")]
    assert main([*command, "--output", str(output)]) == 1
    assert "k.npy" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize("factor", [1e200, 1e308])
def test_overflowing_pictures_write_nothing(tmp_path: Path, factor: float, capsys: pytest.CaptureFixture[str]) -> None:
    data = pictures(tmp_path, "")
    np.save(data / "b.npy", factor * np.load(data / "b.npy"))
    status, output = reconstruct(data)
    assert status == 1
    assert sorted(p.name for p in output.glob("*.npy")) == ["a.npy", "c.npy"]
    assert all(np.isfinite(values).all() for values in numbers_of(output))
    reason = report_of(output)["failures"][0]["reason"]
    assert "b.npy: its values reach" in reason
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(("method", "factor"), [("fbp", 1e200), ("tv", 1e200), ("fbp", 1e40)])
def test_overflowing_sinograms_write_nothing(
    tmp_path: Path, method: str, factor: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """Float32 of the TIFF overflows before float64 of the reconstruction does."""
    pytest.importorskip("astra", reason="needs the extra ct")
    rng = np.random.default_rng(0)
    sinogram = factor * (1 + rng.random((12, 16)))
    np.savez(tmp_path / "s.npz", sinogram=sinogram, angles=np.arange(12) * np.pi / 12, detector_spacing=1.0)
    output = tmp_path / "out"
    command = ["reconstruct", "--method", method, "--data", str(tmp_path / "s.npz"), "--output", str(output)]
    assert main(command) == 1
    assert "s." in capsys.readouterr().err
    assert not output.exists()

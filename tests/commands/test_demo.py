from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from PIL import Image

from models import FieldsOfExperts, TotalVariation
from models.files.storage import load_regularizer
from recon.commands.demo.learning import ACCURACY
from recon.commands.demo.main import main
from tests.commands.summaries import check_summary


def test_tiny_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "demo"
    assert main(["--output", str(output), "--quick-test"]) == 0
    files = ("denoising.png", "filters.png", "foe.json", "foe.safetensors")
    files += ("summary.json", "training.png", "tv.json", "tv.safetensors")
    assert sorted(p.name for p in output.iterdir()) == sorted(files)
    for picture in output.glob("*.png"):
        with Image.open(picture) as image:
            image.load()
            assert min(image.size) > 200

    summary = json.loads((output / "summary.json").read_text())
    check_summary(output, "demo")
    for name in ("noisy", "tv", "foe"):
        assert 15 < summary[f"psnr_{name}"] < 40
        assert 0 < summary[f"ssim_{name}"] < 1
    assert summary["psnr_tv"] > summary["psnr_noisy"] + 3
    assert summary["psnr_foe"] > summary["psnr_noisy"] + 3
    assert summary["evaluations"] == pytest.approx(summary["evaluations_tv"] + summary["evaluations_foe"], abs=0.2)
    assert summary["seconds"] > 0
    assert summary["certified_error"] <= ACCURACY
    assert set(summary["images"]) == {"camera", "chelsea", "moon"}
    for name in ("tv", "foe"):
        loss = summary[f"loss_{name}"]
        assert loss["lower"] <= loss["value"] <= loss["upper"]

    for name, kind in {"tv": TotalVariation, "foe": FieldsOfExperts}.items():
        regularizer, metadata = load_regularizer(output / name)
        assert isinstance(regularizer, kind)
        assert metadata["sigma"] == 0.1
    text = capsys.readouterr().out
    assert "camera" in text
    assert "FoE" in text


def test_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("")
    with pytest.raises(OSError, match="demo"):
        main(["--output", str(tmp_path / "demo"), "--quick-test"])


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("recon.files.os.fsync", full)
    with pytest.raises(OSError, match=r"tv\.safetensors: cannot be written \(No space left on device\)"):
        main(["--output", str(tmp_path / "demo"), "--quick-test"])
    assert not list((tmp_path / "demo").iterdir())

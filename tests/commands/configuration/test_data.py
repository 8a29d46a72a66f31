"""Blocks of data that stand once, in ``configs/data``, and the configurations that name them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from datasets import MRIDataModule
from datasets.readers.pictures import DataError
from recon.commands.configuration.data import data_section, make_data
from recon.commands.fit.cli import check_cli

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


def _contents() -> dict[Path, Any]:
    files = sorted(CONFIGS.rglob("*.yaml"))
    contents = {p: yaml.safe_load(p.read_text()) for p in files if CONFIGS / "data" not in p.parents}
    return {path: content for path, content in contents.items() if isinstance(content, dict) and "data" in content}


def test_no_block_stands_twice() -> None:
    blocks = [yaml.safe_dump(c["data"], sort_keys=True) for c in _contents().values() if isinstance(c["data"], dict)]
    blocks += [yaml.safe_dump(yaml.safe_load(p.read_text()), sort_keys=True) for p in CONFIGS.glob("data/**/*.yaml")]
    assert len(set(blocks)) == len(blocks)


def test_every_file_of_data_is_named_by_two_configurations_at_least() -> None:
    named = [(p.parent / c["data"]).resolve() for p, c in _contents().items() if isinstance(c["data"], str)]
    assert {path for path in named if named.count(path) > 1} == set(CONFIGS.glob("data/**/*.yaml"))


@pytest.mark.parametrize("path", [*(CONFIGS / "data").glob("*.yaml")], ids=lambda path: path.stem)
def test_fit_takes_them_with_no_word_about_older_names(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    user = next(
        p for p, c in _contents().items() if p.parent.joinpath(str(c["data"])).resolve() == path and "model" in c
    )
    monkeypatch.chdir(tmp_path)  # files are relative to the configuration
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        check_cli(["fit", "--config", str(user)])


def test_a_section_is_in_the_file_or_in_another_one(tmp_path: Path) -> None:
    section = {
        "class_path": "datasets.MRIDataModule",
        "init_args": {"pictures": {"size": 16}, "sampling": {"coils": 2}},
    }
    (tmp_path / "mri.yaml").write_text(yaml.safe_dump(section))
    assert data_section({"data": section}, tmp_path) == data_section({"data": "mri.yaml"}, tmp_path) == section
    module = make_data(section)
    assert isinstance(module, MRIDataModule)
    assert (module.pictures.size, module.sampling.coils) == (16, 2)


def test_files_that_are_no_good_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        data_section({"data": "nowhere.yaml"}, tmp_path)
    (tmp_path / "bomb.yaml").write_text(
        "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
        + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True))
    )
    (tmp_path / "fit.yaml").write_text("data: bomb.yaml\n")
    with pytest.raises(DataError, match=r"bomb\.yaml: .*more than 1000000 values"):
        check_cli(["fit", "--config", str(tmp_path / "fit.yaml")])

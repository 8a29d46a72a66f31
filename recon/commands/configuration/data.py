"""The data of a configuration: in the file itself, or in one of ``configs/data`` that it names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from jsonargparse import ArgumentParser
from torch.utils.data import DataLoader

from datasets import Sample, SimulatedDataModule
from recon.commands.configuration.classes import check_classes
from recon.commands.configuration.yaml_files import read_yaml
from recon.operators import Identity, LinearOperator


def data_section(content: Mapping[str, object], folder: Path) -> object:
    """What a configuration has as ``data``, or the content of the file that it has there, relative to ``folder``.

    jsonargparse, which reads the configurations of ``recon fit``, takes both by itself.

    Raises
    ------
    OSError
        The file cannot be read.
    DataError
        (a ValueError) It is no YAML, or too large.
    """
    section = content.get("data")
    return read_yaml(folder / section) if isinstance(section, str) else section


def make_data(section: Mapping[str, object]) -> SimulatedDataModule:
    """The data module that a section with ``class_path`` and ``init_args`` describes.

    Raises
    ------
    argparse.ArgumentError, ValueError
        It describes none, or one with classes that cannot stand where they do; nothing is made then.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--data", type=SimulatedDataModule)
    parsed = parser.parse_object({"data": dict(section)})
    check_classes(parsed, {"data": SimulatedDataModule})
    made: SimulatedDataModule = parser.instantiate(parsed).data
    return made


@runtime_checkable
class Samples(Protocol):
    """A set of data: pictures with their measurements, by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def samples_of(loader: DataLoader[Sample]) -> Samples:
    """What a loader of a data module serves, one by one.

    Raises
    ------
    ValueError
        It cannot be counted.
    """
    if not isinstance(loader.dataset, Samples):
        raise ValueError(f"{type(loader.dataset).__name__}: is no set of samples with a length")
    return loader.dataset


def operator_of(module: SimulatedDataModule) -> LinearOperator:
    """What made the measurements of the data; the identity where nothing is said.

    Raises
    ------
    ValueError
        It is no linear operator.
    """
    operator = module.operator if module.operator is not None else Identity()
    if not isinstance(operator, LinearOperator):
        raise ValueError(f"the operator of the data is a {type(operator).__name__}, but must be a LinearOperator")
    return operator

"""What ``recon reconstruct`` needs to know of a task: its files, its options, how problems are made and shown."""

from __future__ import annotations

import argparse
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.table import Table
from torch import Tensor

from datasets.readers.pictures import DataError
from recon.commands.reconstruct.networks import Network
from recon.commands.reconstruct.regularized import DTYPES, Trained, certificate
from recon.commands.reconstruct.report import Quality, Result
from recon.commands.reconstruct.tasks.declared import Declared
from recon.lower_level import Regularizer, SaddleModel
from recon.reconstruction.problem import Problem

#: what reconstructs; None is total variation
Model = Trained | Network | None


@dataclass(frozen=True)
class Job:
    """One file of the command line: its number among them, and the file that its result is compared with."""

    number: int
    data: Path
    reference: Path | None


class Task(Declared, ABC):
    """One kind of data, see :data:`recon.commands.reconstruct.tasks.TASKS`; made of the options that were given.

    Parameters
    ----------
    args : argparse.Namespace
        Options of all tasks, checked by :func:`recon.commands.reconstruct.options.check_options`.
    """

    #: whether the picture of the method that solves nothing is that of the first guess
    plain_is_start: ClassVar[bool] = False
    #: ||x - x^|| of the whole image that is certified by default; None: relative to the norm of the first guess
    accuracy: ClassVar[float | None] = None
    #: how PSNR and SSIM are meant, for the report; what to try where an accuracy was not reached
    psnr_convention: ClassVar[str]
    remedies: ClassVar[str]

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.output = Path(args.output)

    @classmethod
    def load(cls) -> type[Task]:
        return cls

    @property
    def method(self) -> str:
        """``model``, or the name of what reconstructs without one."""
        return str(self.args.method or "model")

    @property
    def dtype(self) -> torch.dtype:
        """What is computed with."""
        return DTYPES[self.args.dtype]

    @abstractmethod
    def check(self) -> None:
        """Refuse options that do not go together, before any file is read.

        Raises
        ------
        ValueError
            It names the option and what is valid.
        """

    @abstractmethod
    def jobs(self) -> list[Job]:
        """The files of ``--data``.

        Raises
        ------
        ValueError
            Files that do not fit the task, the options or each other, or that would be overwritten.
        OSError
            A file is missing.
        """

    @abstractmethod
    def trained(self, model: Regularizer | SaddleModel, metadata: dict[str, Any]) -> Trained:
        """A model with what its file says of its training.

        Raises
        ------
        ValueError
            The model was trained for something else, or certifies nothing.
        """

    def default_mu(self, problem: Problem) -> float | None:
        """The weight mu where neither an option nor a model says what it is."""
        return None

    def certificate(self, model: Model) -> str:
        """What is certified of results with the model, as reports say it."""
        return certificate(model, self.args.plain)

    @abstractmethod
    def problem(self, job: Job) -> Problem:
        """Read a file.

        Parameters
        ----------
        job : Job
            Which one.

        Raises
        ------
        ValueError
            The file cannot be used; the message names it.
        """

    @abstractmethod
    def image(self, problem: Problem, x: Tensor) -> Tensor:
        """x (1, channels, H, W) in the unit of the result and of the shape of ``problem.baseline``."""

    @abstractmethod
    def quality(self, image: Tensor, reference: Tensor) -> Quality:
        """An image of the shape of ``problem.baseline`` against the true one.

        Raises
        ------
        ValueError
            They cannot be compared.
        """

    @abstractmethod
    def write(self, problem: Problem, result: Result, image: Tensor, x: Tensor | None) -> list[Path]:
        """Write a result into ``output``; returns the files. ``x`` is what ``image`` was made of, if it was.

        Raises
        ------
        OSError
            The files cannot be written.
        NotFiniteError
            (a ValueError) The image or the entry of the report hold NaN or infinite values.
        """

    @abstractmethod
    def table(self, results: Sequence[Result]) -> Table:
        """What is shown in the end."""

    @abstractmethod
    def goal(self) -> str:
        """What some results missed: `images did not reach the accuracy 0.01`."""

    def notes(self, results: Sequence[Result]) -> list[str]:
        """What is said below the table, line by line."""
        return []


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Within it, the messages of ValueErrors get the name of the file: geometry, models and solvers know none."""
    try:
        yield
    except ValueError as error:
        if path.name in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error


def check_overwritten(files: Sequence[Path], inputs: Sequence[Path], output: Path) -> None:
    """Refuse a folder where a result would replace an input.

    Parameters
    ----------
    files : Sequence[Path]
        What will be written.
    inputs : Sequence[Path]
        What is read.
    output : Path
        The folder, for the message.

    Raises
    ------
    ValueError
        One is the other.
    """
    originals = {path.resolve() for path in inputs}
    for path in files:
        if path.resolve() in originals:
            raise ValueError(f"{path}: is an input and would be overwritten; choose another --output than {output}")


def check_names(paths: Sequence[Path]) -> None:
    """Refuse files whose results would have one name.

    Raises
    ------
    DataError
        (a ValueError) Two have.
    """
    seen: dict[str, Path] = {}
    for path in paths:
        if path.stem in seen:
            raise DataError(f"{seen[path.stem]} and {path} have the same name, and so would their reconstructions")
        seen[path.stem] = path

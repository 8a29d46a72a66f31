"""What ``recon reconstruct`` needs to know of a task: its files, its options, how problems are made and shown."""

from __future__ import annotations

import argparse
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from rich.table import Table
from torch import Tensor

from datasets.modules.groups import torch_dtype
from datasets.readers.dicom.output import write_dicom
from datasets.readers.pictures import DataError
from recon.commands.reconstruct.networks import TrainedNetwork
from recon.commands.reconstruct.regularized import Trained, certificate
from recon.commands.reconstruct.report import Quality, Result
from recon.commands.reconstruct.tasks.declared import Declared
from recon.files import Content, check_finite, write_files
from recon.lower_level import Regularizer, SaddleModel
from recon.reconstruction import Problem

#: what reconstructs; None is total variation
Loaded = Trained | TrainedNetwork | None


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
    #: what follows the name of a result in the names of its files
    written: ClassVar[tuple[str, ...]]
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
        return torch_dtype(self.args.dtype)

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

    def jobs_of(self, files: Sequence[Path], references: Sequence[Path | None]) -> list[Job]:
        """The files, each with its reference.

        Raises
        ------
        ValueError
            Two results would have one name, or one would replace an input.
        """
        seen: dict[str, Path] = {}
        for file in files:
            if file.stem in seen:
                raise DataError(f"{seen[file.stem]} and {file} have the same name, and so would their reconstructions")
            seen[file.stem] = file
        originals = {path.resolve() for path in (*files, *references) if path}
        for path in (path for file in files for path in self.paths(file.stem)):
            if path.resolve() in originals:
                raise ValueError(
                    f"{path}: is an input and would be overwritten; choose another --output than {self.output}"
                )
        return [Job(number, *pair) for number, pair in enumerate(zip(files, references, strict=True))]

    def trained(self, model: Regularizer | SaddleModel, metadata: Mapping[str, object]) -> Trained:
        """A model with what its file says of its training.

        Raises
        ------
        ValueError
            The model was trained for something else, or certifies nothing.
        """
        return Trained.of(model, metadata, self.args.model)

    def default_mu(self, problem: Problem) -> float | None:
        """The weight mu where neither an option nor a model says what it is."""
        return None

    def certificate(self, model: Loaded) -> str:
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
    def contents(self, problem: Problem, result: Result, image: Tensor, x: Tensor | None) -> dict[str, Content]:
        """What the files of a result hold, by what follows its name, in the order of ``written``.

        ``x`` is what ``image`` was made of, if it was.
        """

    def stored(self, image: Tensor) -> Tensor:
        """What DICOM slices hold."""
        return image

    @abstractmethod
    def description(self) -> str:
        """What DICOM slices say that they are."""

    def paths(self, name: str) -> list[Path]:
        """All files that a result may have: those of ``written``, and the slice where the input was DICOM."""
        return [self.output / f"{name}{suffix}" for suffix in (*self.written, ".dcm")]

    def write(self, problem: Problem, result: Result, image: Tensor, x: Tensor | None) -> list[Path]:
        """Write a result into ``output``: all files but DICOM, which follows alone, or none; returns them.

        Raises
        ------
        OSError
            The files cannot be written.
        NotFiniteError
            (a ValueError) The image or the entry of the report hold NaN or infinite values.
        """
        *files, dicom = self.paths(problem.origin.name)
        numbers = str(files[self.written.index(".npy")])
        check_finite(image.numpy(), numbers)
        check_finite(result.entry(), numbers)
        contents = self.contents(problem, result, image, x)
        write_files({path: contents[suffix] for path, suffix in zip(files, self.written, strict=True)})
        target = problem.origin.dicom
        if target is None:
            return files
        write_dicom(dicom, self.stored(image), target.source, self.description(), target.pixel_size)
        return [*files, dicom]

    @abstractmethod
    def table(self, results: Sequence[Result]) -> Table:
        """What is shown in the end."""

    @abstractmethod
    def goal(self) -> str:
        """What some results missed: `images did not reach the accuracy 0.01`."""

    def notes(self, results: Sequence[Result]) -> list[str]:
        """What is said below the table, line by line."""
        return [
            f"{r.subject.name}: the model takes the noise level {r.prior.noise_level:.3g}, {r.subject.noise_rule}"
            for r in results
            if r.prior.noise_level is not None
        ]


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Within it, the messages of ValueErrors get the name of the file: geometry, models and solvers know none."""
    try:
        yield
    except ValueError as error:
        if path.name in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error


def note(decibels: float | None, similarity: float | None = None) -> str:
    """PSNR and SSIM as pictures say them; nothing where they are not known."""
    if decibels is None:
        return ""
    return f"{decibels:.2f} dB" + ("" if similarity is None else f", SSIM {similarity:.3f}")

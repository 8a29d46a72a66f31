"""What CT and MRI have in common: one slice of a file, measured or simulated from a picture, as one gray image."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from datasets.readers.dicom.output import write_dicom
from datasets.readers.dicom.slices import Modality
from datasets.readers.pictures import DataError
from recon.commands.errors import printable
from recon.commands.reconstruct.options import given, option
from recon.commands.reconstruct.regularized import Trained
from recon.commands.reconstruct.report import Quality, Result, evaluations, graded
from recon.commands.reconstruct.tasks.measured_picture import measured_figure
from recon.commands.reconstruct.tasks.pictures import picture_files
from recon.commands.reconstruct.tasks.references import read_reference
from recon.commands.reconstruct.tasks.task import Job, Task, check_names, check_overwritten, named
from recon.files import check_finite, write_files
from recon.lower_level import Regularizer, SaddleModel
from recon.plotting import Panel, figure_bytes
from recon.reconstruction.problem import Problem


class Measured(Task):
    """Data with an operator: slices in a unit, beside those of a plain method."""

    psnr_convention = (
        "PSNR and SSIM with data range = maximum of the reference, over all its pixels, values not clipped"
    )
    remedies = "--dtype float64, a larger --accuracy, a larger --mu or a larger --max-evaluations"
    plain: ClassVar[str]
    #: the plain method as the pictures call it
    plain_title: ClassVar[str]
    #: mu by default, relative to ||A||^2
    relative_mu: ClassVar[float]
    #: of DICOM slices to simulate measurements of
    modality: ClassVar[Modality] = "CT"
    #: options that mean nothing for data that were measured, and for pictures whose data are simulated
    of_simulations: ClassVar[tuple[str, ...]] = ()
    of_measurements: ClassVar[tuple[str, ...]] = ("reference",)

    # --- what a task of this kind says -------------------------------------------------------------------------------

    def simulates(self, path: Path) -> bool:
        """Whether a file is a picture, whose measurement is simulated."""
        return False

    @abstractmethod
    def build(self, job: Job, reference: Tensor | None) -> Problem:
        """The problem of a file.

        Parameters
        ----------
        job : Job
            The file.
        reference : Tensor or None
            (H, W) in the unit of the result, if one is given.

        Raises
        ------
        ValueError
            The file cannot be used, or a value is out of range.
        """

    def numbers(self, problem: Problem, image: Tensor, x: Tensor | None) -> np.ndarray:
        """What ``NAME.npy`` holds."""
        return image.numpy()

    def stored(self, image: Tensor) -> Tensor:
        """What DICOM slices hold."""
        return image

    # --- what all of them do -----------------------------------------------------------------------------------------

    def check(self) -> None:
        args = self.args
        if (args.method is None) == (args.model is None):
            raise ValueError(f"give either --model or --method; methods for {self.name} are {self.plain}, tv")
        if args.method not in (None, self.plain, "tv"):
            raise ValueError(f"--method {args.method} does not go with --task {self.name}; valid are {self.plain}, tv")

    def jobs(self) -> list[Job]:
        paths = [file for path in self.args.data for file in self._expanded(Path(path))]
        check_names(paths)
        for path in paths:
            simulated = self.simulates(path)
            for name in self.of_measurements if simulated else self.of_simulations:
                if given(self.args, name):
                    kind = "a picture, whose data are simulated" if simulated else "taken for measured data"
                    raise ValueError(f"{option(name)} does not go with {path}, which is {kind}")
            if simulated and self.args.index:
                raise DataError(f"{path}: there is no slice {self.args.index}; the file holds one, 0")
        reference = None if self.args.reference is None else Path(self.args.reference)
        if reference is not None and len(paths) != 1:
            raise ValueError("--reference is one file for one file of --data")
        inputs = paths if reference is None else [*paths, reference]
        check_overwritten([file for path in paths for file in self._files(path.stem)], inputs, self.output)
        return [Job(number, path, reference) for number, path in enumerate(paths)]

    def _expanded(self, path: Path) -> list[Path]:
        """A file, or the pictures in a folder."""
        return picture_files(path, self.modality) if path.is_dir() else [path]

    def trained(self, model: Regularizer | SaddleModel, metadata: dict[str, Any]) -> Trained:
        return Trained.of(model, metadata, self.args.model)

    def default_mu(self, problem: Problem) -> float:
        return self.relative_mu * problem.operator.norm_bound**2

    def problem(self, job: Job) -> Problem:
        reference = None if job.reference is None else read_reference(job.reference, self.name)
        with named(job.data):
            return self.build(job, reference)

    def image(self, problem: Problem, x: Tensor) -> Tensor:
        return problem.picture(x)

    def quality(self, image: Tensor, reference: Tensor) -> Quality:
        """Of the middle of the image, if the reference is smaller."""
        if any(r > n for r, n in zip(reference.shape, image.shape, strict=True)):
            raise ValueError(
                f"the reference has {reference.shape[0]}x{reference.shape[1]} pixels, but the reconstruction "
                f"{image.shape[0]}x{image.shape[1]}; set --size, or give another reference"
            )
        data_range = float(reference.max())
        if not data_range > 0:
            raise ValueError("no value of the reference is positive, so there is no data range for a PSNR")
        top, left = ((n - r) // 2 for n, r in zip(image.shape, reference.shape, strict=True))
        part = image[top : top + reference.shape[0], left : left + reference.shape[1]]
        return Quality.of(part, reference, data_range)

    def _files(self, name: str) -> tuple[Path, Path, Path, Path]:
        """Numbers, the same as TIFF, the picture beside the plain method, and the slice where the input was DICOM."""
        folder = self.output
        return (
            folder / f"{name}.npy",
            folder / f"{name}.tif",
            folder / f"{name}_comparison.png",
            folder / f"{name}.dcm",
        )

    def write(self, problem: Problem, result: Result, image: Tensor, x: Tensor | None) -> list[Path]:
        """Write the files of a result; all but DICOM, which follows alone, or none.

        NumPy files hold all digits, TIFF the (H, W) image as float32.
        """
        npy, tif, png, dcm = self._files(problem.name)
        values = self.numbers(problem, image, x)
        check_finite(vars(result), str(npy))
        check_finite(values, str(npy))
        write_files({npy: values, tif: image.numpy(), png: self._picture(problem, result, image)})
        if problem.dicom is None:
            return [npy, tif, png]
        description = f"recon {self._title(self.method)} of simulated data"
        write_dicom(dcm, self.stored(image), problem.dicom.source, description, problem.dicom.pixel_size)
        return [npy, tif, png, dcm]

    def _title(self, method: str) -> str:
        return {"tv": "TV", "model": "learned", self.plain: self.plain_title}[method]

    def _picture(self, problem: Problem, result: Result, image: Tensor) -> bytes:
        title = self._title(self.method) + (", x ≥ 0" if self.args.nonnegative else "")
        panels = [Panel(title, image, _note(result.psnr, result.ssim))]
        if self.method != self.plain:
            note = _note(result.baseline_psnr, result.baseline_ssim)
            panels.insert(0, Panel(self.plain_title, problem.baseline, note))
        if problem.reference is not None:
            panels.append(Panel("reference", problem.reference))
        shown = image if problem.reference is None else problem.reference
        top = float(torch.quantile(shown.flatten()[:: max(1, shown.numel() // 10**6)], 0.998))
        return figure_bytes(measured_figure(panels, (0.0, top if top > 0 else 1.0), problem.unit))

    def table(self, results: Sequence[Result]) -> Table:
        """Every slice: how well its data are fitted, what is certified, what it took; and the plain method if known."""
        # without lines between the columns everything fits into 80 characters
        table = Table(title="Residual relative to the noise, certified error relative to the image", box=None)
        table.add_column("data", overflow="fold", min_width=8)
        for column in ("method", "weight", "resid.", "error ≤", "evals", "s", "PSNR", "status"):
            table.add_column(column, justify="right", no_wrap=column != "status")
        for r in results:
            ratio = None if r.residual is None or not r.noise else r.residual / r.noise
            error = "–" if r.error_relative is None else f"{100 * r.error_relative:.2g} %"
            if r.baseline_psnr is not None:
                plain = (self.plain, "–", "–", "–", "0", "–", f"{r.baseline_psnr:.2f}", "direct")
                table.add_row(escape(printable(r.name)), *plain)
            decibels = "–" if r.psnr is None else f"{r.psnr:.2f}"
            cells = (self.method, _short(r.weight), _short(ratio), error, evaluations(r), f"{r.seconds:.1f}", decibels)
            table.add_row(escape(printable(r.name)), *cells, graded(r))
        return table

    def goal(self) -> str:
        return "reconstructions did not reach their accuracy"

    def notes(self, results: Sequence[Result]) -> list[str]:
        return [f"simulated data: {text}" for text in dict.fromkeys(r.simulated for r in results) if text]


def _note(decibels: float | None, similarity: float | None) -> str:
    if decibels is None:
        return ""
    return f"{decibels:.2f} dB" + ("" if similarity is None else f", SSIM {similarity:.3f}")


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}"

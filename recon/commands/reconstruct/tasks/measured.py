"""What CT and MRI have in common: one slice of a file, measured or simulated from a picture, as one gray image."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from datasets.readers.dicom.slices import Modality
from datasets.readers.pictures import DataError
from recon.commands.errors import printable
from recon.commands.reconstruct.options import SMOOTHED_TV, TV, given, option
from recon.commands.reconstruct.report import Quality, Result, evaluations, graded
from recon.commands.reconstruct.tasks.measured_picture import measured_figure
from recon.commands.reconstruct.tasks.pictures import picture_files
from recon.commands.reconstruct.tasks.references import read_reference
from recon.commands.reconstruct.tasks.task import Job, Task, named, note
from recon.files import Content
from recon.plotting.figures import figure_bytes
from recon.plotting.panels import Panel
from recon.reconstruction import Problem
from recon.reconstruction.boundary import middle


class Measured(Task):
    """Data with an operator: slices in a unit, beside those of a plain method."""

    written = (".npy", ".tif", "_comparison.png")
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

    # --- what all of them do -----------------------------------------------------------------------------------------

    def check(self) -> None:
        args = self.args
        valid = (self.plain, TV, SMOOTHED_TV)
        if (args.method is None) == (args.model is None):
            raise ValueError(f"give either --model or --method; methods for {self.name} are {', '.join(valid)}")
        if args.method not in (None, *valid):
            raise ValueError(
                f"--method {args.method} does not go with --task {self.name}; valid are {', '.join(valid)}"
            )

    def jobs(self) -> list[Job]:
        paths = [file for path in self.args.data for file in self._expanded(Path(path))]
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
        return self.jobs_of(paths, [reference] * len(paths))

    def _expanded(self, path: Path) -> list[Path]:
        """A file, or the pictures in a folder."""
        return picture_files(path, self.modality) if path.is_dir() else [path]

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
        return Quality.of(middle(image, reference.shape), reference, data_range)

    def contents(self, problem: Problem, result: Result, image: Tensor, x: Tensor | None) -> dict[str, Content]:
        """NumPy files hold all digits, TIFF the (H, W) image as float32."""
        return {
            ".npy": self.numbers(problem, image, x),
            ".tif": image.numpy(),
            "_comparison.png": self._picture(problem, result, image),
        }

    def description(self) -> str:
        return f"recon {self._title(self.method)} of simulated data"

    def _title(self, method: str) -> str:
        return {TV: "TV", SMOOTHED_TV: "TV", "model": "learned", self.plain: self.plain_title}[method]

    def _picture(self, problem: Problem, result: Result, image: Tensor) -> bytes:
        title = self._title(self.method) + (", x ≥ 0" if self.args.nonnegative else "")
        panels = [Panel(title, image, note(*result.quality))]
        if self.method != self.plain:
            panels.insert(0, Panel(self.plain_title, problem.baseline, note(*result.before)))
        if problem.reference is not None:
            panels.append(Panel("reference", problem.reference))
        shown = image if problem.reference is None else problem.reference
        top = float(torch.quantile(shown.flatten()[:: max(1, shown.numel() // 10**6)], 0.998))
        return figure_bytes(measured_figure(panels, (0.0, top if top > 0 else 1.0), problem.origin.unit))

    def table(self, results: Sequence[Result]) -> Table:
        """Every slice: how well its data are fitted, what is certified, what it took; and the plain method if known."""
        # without lines between the columns everything fits into 80 characters
        table = Table(title="Residual relative to the noise, certified error relative to the image", box=None)
        table.add_column("data", overflow="fold", min_width=8)
        for column in ("method", "weight", "resid.", "error ≤", "evals", "s", "PSNR", "status"):
            table.add_column(column, justify="right", no_wrap=column != "status")
        for r in results:
            name, noise, residual = escape(printable(r.subject.name)), r.subject.noise, r.work.residual
            ratio = None if residual is None or not noise else residual / noise
            relative, psnr = r.certified.error_relative, r.quality.psnr
            error = "–" if relative is None else f"{100 * relative:.2g} %"
            if r.before.psnr is not None:
                table.add_row(name, self.plain, "–", "–", "–", "0", "–", f"{r.before.psnr:.2f}", "direct")
            weight, decibels = _short(r.prior.weight), "–" if psnr is None else f"{psnr:.2f}"
            cells = (self.method, weight, _short(ratio), error, evaluations(r), f"{r.seconds:.1f}", decibels)
            table.add_row(name, *cells, graded(r))
        return table

    def goal(self) -> str:
        return "reconstructions did not reach their accuracy"

    def notes(self, results: Sequence[Result]) -> list[str]:
        simulated = dict.fromkeys(r.subject.simulated for r in results)
        return super().notes(results) + [f"simulated data: {text}" for text in simulated if text]


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}"

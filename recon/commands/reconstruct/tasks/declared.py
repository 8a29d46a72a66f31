"""What the command line needs to know of each task: its files and its options, without any of the libraries.

So ``recon reconstruct --help`` is quick, and a picture to denoise imports nothing of CT and MRI. ``load`` of a task is
the class that does its work.
"""

from __future__ import annotations

import argparse
import math
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from recon.commands.reconstruct.options import AT_LEAST_ONE, NOT_NEGATIVE, POSITIVE, Range

if TYPE_CHECKING:
    from recon.commands.reconstruct.tasks.task import Task
    from recon.operators.mri.sampling import Pattern

#: windows of filtered back-projection, those of :mod:`recon.operators.tomography.fbp`
FILTERS = ("ram-lak", "shepp-logan", "cosine", "hamming", "hann")
#: masks of simulations, by their names on the command line
MASKS: dict[str, Pattern] = {
    "random": "random_lines",
    "equispaced": "equispaced",
    "radial": "radial",
    "poisson": "poisson_disc",
}


class Declared:
    """Files and options of a task."""

    name: ClassVar[str]
    #: the method of this task that solves nothing
    plain: ClassVar[str | None] = None
    #: the files that are of this task, for --help; their suffixes in small letters, see :meth:`holds`
    files: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = ()
    #: options that other tasks have not, unless they name them too; those that imply the task; valid values
    options: ClassVar[tuple[str, ...]] = ()
    implied_by: ClassVar[tuple[str, ...]] = ()
    ranges: ClassVar[Mapping[str, Range]] = {}

    @classmethod
    @abstractmethod
    def load(cls) -> type[Task]:
        """The class that does the work, imported now."""

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        """Add the groups of ``options``; those that several tasks have are added by the first."""

    @classmethod
    def holds(cls, path: Path) -> bool:
        """Whether a file is of this task."""
        return path.suffix.lower() in cls.suffixes


class ImageFiles(Declared):
    """Pictures to denoise; whatever no other task takes is one."""

    name = "denoising"
    files = "images or folders of them (.png, .jpg, .jpeg, .tif, .tiff, .npy, DICOM)"
    options = ("anisotropic",)

    @classmethod
    def load(cls) -> type[Task]:
        from recon.commands.reconstruct.tasks.images import Images

        return Images

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument_group("images").add_argument(
            "--anisotropic",
            action="store_true",
            help="TV of sums of absolute differences, along rows and columns (default: isotropic)",
        )

    @classmethod
    def holds(cls, path: Path) -> bool:
        return True


class CTFiles(Declared):
    """Sinograms, and pictures whose scan is simulated."""

    name = "ct"
    plain = "fbp"
    files = (
        "sinograms: HTC2022 .mat, DXchange .h5, LoDoPaB-CT .hdf5, NXtomo .nxs, .npz, or .npy and .tif with --geometry"
    )
    #: options that mean nothing for simulated data
    of_scans = ("rotation_centre", "counts", "flat", "dark", "angles", "ring_filter")
    options = ("geometry", "size", "pixel_size", "views", "angle_range", "photons", *of_scans, "seed")
    implied_by = ("geometry",)
    ranges: ClassVar = {
        **dict.fromkeys(("pixel_size", "photons"), POSITIVE),
        **dict.fromkeys(("size", "views"), AT_LEAST_ONE),
        "seed": NOT_NEGATIVE,
    }

    @classmethod
    def load(cls) -> type[Task]:
        from recon.commands.reconstruct.tasks.ct import CT

        return CT

    @classmethod
    def holds(cls, path: Path) -> bool:
        """By the suffix; not .npy, as arrays may hold anything."""
        from datasets.scans.reading import SINOGRAM_SUFFIXES

        return path.suffix.lower() in SINOGRAM_SUFFIXES and path.suffix.lower() != ".npy"

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("CT, measured and simulated")
        group.add_argument("--geometry", help="YAML file, see docs/geometry.md (default: what the data file says)")
        group.add_argument(
            "--size", type=int, help="side of the picture in pixels (default: detector pixels, or as it is)"
        )
        group.add_argument(
            "--pixel-size", type=float, help="in mm (default: covers the detector, or as the picture says)"
        )
        group.add_argument("--views", type=int, help="use, or simulate, so many views at equal distances")
        group.add_argument(
            "--angle-range",
            "--angle_range",
            nargs=2,
            type=float,
            metavar=("START", "STOP"),
            help="the views at START <= angle < STOP degrees after the first one; of a simulation, default 0 180",
        )
        group.add_argument("--rotation-centre", help="detector pixel of the axis, or `estimate` (default for DXchange)")
        group.add_argument(
            "--ring-filter",
            type=int,
            metavar="PIXELS",
            help="remove rings, by a median over so many detector pixels (odd)",
        )
        group.add_argument(
            "--photons", type=float, help="of a ray through air: rays are weighted by their inverse variance"
        )
        group.add_argument("--counts", action="store_true", help="the sinogram holds counts of photons")
        group.add_argument(
            "--flat",
            help="counts in air, in place of flat fields: a number in the unit of the data, or a file (.npy, .tif, "
            ".h5); of a file without flat fields it says that the values are counts",
        )
        group.add_argument("--dark", help="counts without light, as --flat (default: what the file says, or 0)")
        group.add_argument(
            "--angles",
            help="in degrees, in place of those of the file: a file with one for each view (.npy or text), or one "
            "number, the arc over which the views are equispaced from 0 without its end, e.g. 180",
        )
        group.add_argument("--filter", choices=FILTERS, default="ram-lak", help="of the FBP (default: %(default)s)")
        group.add_argument(
            "--backend",
            choices=["matrix", "astra_cuda"],
            default="matrix",
            help="of the projector (default: %(default)s)",
        )


class MRIFiles(Declared):
    """K-space, and pictures whose k-space is simulated."""

    name = "mri"
    plain = "zero_filled"
    files = "k-space: complex .npy, fastMRI or ISMRMRD .h5"
    #: options that mean nothing for measured data
    of_scans = ("size", "mask", "acceleration", "coils", "seed")
    options = ("noise_scan", *of_scans)
    ranges: ClassVar = {
        "acceleration": Range("finite and at least 1", lambda v: 1 <= v < math.inf),
        **dict.fromkeys(("size", "coils"), AT_LEAST_ONE),
        "seed": NOT_NEGATIVE,
    }

    @classmethod
    def load(cls) -> type[Task]:
        from recon.commands.reconstruct.tasks.mri import MRI

        return MRI

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("MRI, measured")
        group.add_argument(
            "--noise-scan",
            help="noise without signal, measured as the data: complex .npy (coils, samples), or ISMRMRD .h5; coils are "
            "whitened by it (default: from the data file)",
        )
        group = parser.add_argument_group("simulation from pictures")
        group.add_argument("--mask", choices=list(MASKS), help="of k-space (default: random lines with a full centre)")
        group.add_argument("--acceleration", type=float, help="k-space points for each sampled one (default: 4)")
        group.add_argument("--coils", type=int, help="(default: 1)")
        group.add_argument("--seed", type=int, help="of noise and mask (default: 0)")

    @classmethod
    def holds(cls, path: Path) -> bool:
        """Whether a file has k-space: HDF5 may hold a scan as well, and arrays of complex values are nothing else."""
        from datasets.scans.counts import HDF5_SUFFIXES
        from recon.commands.reconstruct.tasks.pictures import holds_complex

        if path.suffix.lower() not in HDF5_SUFFIXES:
            return holds_complex(path)
        from datasets.kspace.ismrmrd import holds_ismrmrd
        from datasets.readers.hdf5 import open_hdf5

        with open_hdf5(path) as file:
            return "kspace" in file or holds_ismrmrd(file)

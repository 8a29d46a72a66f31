"""CT: the problem of a sinogram, measured or simulated, with its noise."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from datasets.modules.tomography import MU_UNIT
from datasets.noise import gaussian_noise
from datasets.physics import MIN_COUNT, attenuation_to_hu, line_integrals, transmission_counts, transmission_weights
from datasets.readers.pictures import DataError
from datasets.scans.counts import starvation, tiff_shape
from datasets.scans.reading import SINOGRAM_SUFFIXES
from recon.commands.reconstruct.options import AT_LEAST_ONE, NOT_NEGATIVE, POSITIVE
from recon.commands.reconstruct.report import Result
from recon.commands.reconstruct.tasks.ct_data import (
    UNIT,
    CTOptions,
    RayNoise,
    Reading,
    Sinogram,
    chosen_views,
    read,
    read_geometry,
    selected,
)
from recon.commands.reconstruct.tasks.measured import Measured
from recon.commands.reconstruct.tasks.pictures import holds_complex, is_picture, read_picture
from recon.commands.reconstruct.tasks.task import Job, Loaded
from recon.operators import FanBeam, FilteredBackProjection, ParallelBeam, RayTransform
from recon.operators.tomography.fbp import FILTERS
from recon.reconstruction import DicomTarget, NoiseLevel, Origin, Problem
from recon.reconstruction.noise import sinogram_noise
from recon.reconstruction.variational import NOT_EXACT

#: side in mm of pictures that do not tell, as in ``TomographyDataModule``
FIELD_OF_VIEW = 300.0


class CT(Measured):
    """Computed tomography in the plane: sinograms, and pictures whose scan is simulated."""

    name = "ct"
    plain, plain_title, plain_is_start = "fbp", "FBP", True
    files = (
        "sinograms: HTC2022 .mat, DXchange .h5, LoDoPaB-CT .hdf5, NXtomo .nxs, .npz, or .npy and .tif with --geometry"
    )
    # arrays may hold anything
    suffixes = tuple(suffix for suffix in SINOGRAM_SUFFIXES if suffix != ".npy")
    of_measurements = ("rotation_centre", "counts", "flat", "dark", "angles", "ring_filter", "reference")
    of_simulations = ("seed",)
    options = ("geometry", "size", "pixel_size", "views", "angle_range", "photons", *of_measurements[:-1], "seed")
    implied_by = ("geometry",)
    ranges: ClassVar = {
        **dict.fromkeys(("pixel_size", "photons"), POSITIVE),
        **dict.fromkeys(("size", "views"), AT_LEAST_ONE),
        "seed": NOT_NEGATIVE,
    }
    relative_mu = 1e-5

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

    def check(self) -> None:
        args = self.args
        super().check()
        if args.angle_range is not None:
            start, stop = args.angle_range
            if not (start < stop and stop - start <= 360):  # as written, so that NaN fails too
                raise ValueError(
                    f"--angle-range is {start:g} {stop:g}; valid are degrees with START < STOP <= START + 360"
                )
        if args.noise is not None and args.photons is not None:
            raise ValueError(
                "--noise and --photons exclude each other: photons say what the noise is; give one of them"
            )
        if args.counts and args.photons is None:
            raise ValueError("--counts needs --photons, those of a ray through air")

    def simulates(self, path: Path) -> bool:
        """Whether the file is a picture, whose scan is simulated; arrays with a geometry are sinograms.

        So are TIFF files of the shape (angles, detectors) of the geometry, or its transpose.

        Raises
        ------
        DataError
            a TIFF file fits both the sinogram and the picture of the geometry, or an array is complex.
        """
        if holds_complex(path):
            raise DataError(f"{path}: holds complex values, as k-space does; use --task mri")
        suffix, file = path.suffix.lower(), self.args.geometry
        if file is None or suffix not in (".npy", ".tif", ".tiff"):
            return is_picture(path)
        if suffix == ".npy":
            return False
        geometry, shape = read_geometry(Path(file)), tiff_shape(path)
        if shape not in (geometry.range_shape[1:], geometry.range_shape[:0:-1]):
            return True
        if shape == geometry.image_shape:
            raise DataError(
                f"{path}: has the shape {shape} of both the sinogram and the picture of {file}; save a sinogram as "
                ".npy, a picture as .png"
            )
        return False

    def build(self, job: Job, reference: Tensor | None) -> Problem:
        path, options = job.data, self._options(job.number)
        if self.simulates(path):
            sinogram = _simulated(path, options)
        else:
            sinogram = _with_photons(selected(read(path, options), options), options)
        geometry, unit = sinogram.geometry, sinogram.mu_unit
        y = (sinogram.values / unit)[None, None].to(self.args.device, self.dtype)
        # first, because it refuses what is too large for the memory
        operator = sinogram.operator or RayTransform(geometry, options.backend)
        back_projection = FilteredBackProjection(geometry, options.filter)(y)
        noise, weights = _noise(sinogram, options)
        entries = geometry.to_dict()
        entries["angles_degrees"] = [round(math.degrees(a), 6) for a in entries.pop("angles")]
        details = {"geometry": entries, "fbp_filter": options.filter, **sinogram.origin.details}
        return Problem(
            origin=replace(sinogram.origin, details=details),
            noise=replace(noise, deviation=noise.deviation / unit),
            y=y,
            operator=operator,
            weights=weights,
            start=back_projection,
            baseline=unit * back_projection[0, 0].cpu().double(),
            scale=unit,
            reference=sinogram.reference if reference is None else reference,
        )

    def _options(self, number: int) -> CTOptions:
        args = self.args
        reading = Reading(
            index=args.index,
            rotation_centre=args.rotation_centre,
            counts=args.counts,
            flat=args.flat,
            dark=args.dark,
            angles=args.angles,
            ring_filter=args.ring_filter,
        )
        return CTOptions(
            geometry=Path(args.geometry) if args.geometry else None,
            size=args.size,
            pixel_size=args.pixel_size,
            views=args.views,
            angle_range=tuple(args.angle_range) if args.angle_range else None,
            reading=reading,
            noise=RayNoise(args.noise, args.photons, args.seed or 0, number),
            filter=args.filter,
            backend=args.backend,
        )

    def certificate(self, model: Loaded) -> str:
        return super().certificate(model) if self.args.backend != "astra_cuda" else NOT_EXACT

    def stored(self, image: Tensor) -> Tensor:
        return attenuation_to_hu(image).clamp(-(2.0**15), 2.0**15 - 1)

    def notes(self, results: Sequence[Result]) -> list[str]:
        said = []
        for result in results:
            centre = result.subject.details.get("rotation_centre")
            if isinstance(centre, dict) and centre["estimated"]:
                where = f"{centre['detector_pixel']:.2f} ± {centre['uncertainty']:.2f}, from {centre['method']}"
                said.append(f"{result.subject.name}: rotation centre detector pixel {where}")
        return said + super().notes(results)


def _noise(sinogram: Sinogram, options: CTOptions) -> tuple[NoiseLevel, Tensor | None]:
    """The noise of the line integrals, and the relative inverse variances (1, ...) of rays.

    The variance of a ray with n photons is 1/n to first order, so its weight is n / mean(n), and the level of the noise
    where the weight is 1 is mean(n)^(-1/2); the mean is over the rays that photons passed.
    """
    given = options.noise
    if sinogram.photons is None:
        weights = _relative_weights(sinogram)
        measured = sinogram.values.numel() if weights is None else int((weights > 0).sum())
        if given.deviation is not None:
            return NoiseLevel(given.deviation, "given", measured), weights
        level = sinogram_noise(sinogram.values, None if weights is None else weights[0] > 0)
        return NoiseLevel(level, "estimated from second differences of the sinogram", measured), weights
    weights = transmission_weights(sinogram.photons)
    passed = weights > 0
    if not bool(passed.any()):
        raise DataError(f"{sinogram.origin.data}: no ray has a photon left; give more --photons")
    mean = float(weights[passed].mean())
    rule = f"of the mean ray, for {given.photons:g} photons through air; rays are weighted by their photons"
    return NoiseLevel(mean**-0.5, rule, int(passed.sum())), (weights / mean)[None]


def _relative_weights(sinogram: Sinogram) -> Tensor | None:
    """Weights (1, ...) of rays whose photons are not known: 0 where nothing was measured, else how many views were
    averaged, over the mean; None where all are the same."""
    weights = torch.ones_like(sinogram.values)
    if sinogram.repeats is not None:
        weights = weights * sinogram.repeats[:, None]
    if sinogram.beam is not None:
        weights = weights.masked_fill(sinogram.beam <= 0, 0.0)
    if not bool((weights > 0).any()):
        path = sinogram.origin.data
        raise DataError(f"{path}: no ray was measured: all have less light than the floor of the logarithm")
    if bool((weights == weights[0, 0]).all()):
        return None
    return (weights / weights[weights > 0].mean())[None]


def _with_photons(sinogram: Sinogram, options: CTOptions) -> Sinogram:
    """With the photons of each ray: n0 exp(-z), times what its detector pixel gets relative to the mean pixel.

    Line integrals of log(2 n0) and more stand for less than half a photon: such rays weigh 0, and are counted.
    """
    through_air = options.noise.photons
    if through_air is None:
        return sinogram
    repeats = torch.ones(1) if sinogram.repeats is None else sinogram.repeats[:, None]
    if sinogram.beam is not None:
        air = sinogram.beam * torch.exp(sinogram.values) / repeats
        return replace(sinogram, photons=through_air * sinogram.beam / air[sinogram.beam > 0].mean())
    photons = through_air * torch.exp(-sinogram.values)
    cut = photons <= MIN_COUNT * (1 + 1e-9)
    said = starvation(int(cut.sum()), cut.numel(), sinogram.origin.data, through_air)
    origin = replace(sinogram.origin, warnings=(*sinogram.origin.warnings, *said))
    return replace(sinogram, origin=origin, photons=(repeats * photons).masked_fill(cut, 0.0))


def _simulated(path: Path, options: CTOptions) -> Sinogram:
    """A scan of a picture on its own pixels, with Gaussian noise or photons.

    Rays are parallel unless a geometry is given; the picture is as large as its pixels say, or ``FIELD_OF_VIEW``.
    """
    asked = options.noise
    if (asked.deviation is None) == (asked.photons is None):
        raise ValueError(
            f"{path}: is a picture, whose scan is simulated (a sinogram needs --geometry); give its noise, either "
            "--noise (standard deviation of line integrals) or --photons"
        )
    given = None if options.geometry is None else read_geometry(options.geometry)
    size = options.size
    if given is not None and given.image_shape[0] == given.image_shape[1]:
        size = given.image_shape[0]
    picture = read_picture(path, "ct", size)
    x = picture.x
    if given is None:
        geometry: ParallelBeam | FanBeam = _parallel(path, options, tuple(x.shape), picture.pixel_size)
    elif given.image_shape == tuple(x.shape):
        geometry = given.select(chosen_views(given, options, path))
    else:
        raise DataError(f"{path}: has {x.shape[0]}x{x.shape[1]} pixels, {options.geometry} is for {given.image_shape}")
    operator = RayTransform(geometry, options.backend)
    z = MU_UNIT * operator(x[None, None])[0, 0]
    said: tuple[str, ...] = ()
    if asked.deviation is not None:
        values, photons = z + gaussian_noise(z.shape, asked.deviation, asked.seed, asked.number, z.dtype), None
        noise = f"Gaussian noise of standard deviation {asked.deviation:g}"
    else:
        assert asked.photons is not None
        photons = transmission_counts(z, asked.photons, asked.seed, asked.number)
        values, noise = line_integrals(photons, asked.photons), f"{asked.photons:g} photons for each ray"
        said = starvation(int((photons < MIN_COUNT).sum()), photons.numel(), path, asked.photons)
    origin = replace(
        Origin.of_slice(path, options.reading.index, UNIT),
        simulated=f"scan of the picture on the same pixels, {noise}, seed {asked.seed}",
        dicom=DicomTarget(path, (geometry.pixel_size[0], geometry.pixel_size[1])) if picture.dicom else None,
        warnings=said,
    )
    return Sinogram(origin, values, geometry, reference=MU_UNIT * x, photons=photons, operator=operator)


def _parallel(
    path: Path, options: CTOptions, shape: tuple[int, ...], pixel_size: tuple[float, float] | None
) -> ParallelBeam:
    if options.views is None:
        raise ValueError(f"{path}: is a picture, whose scan is simulated; give --views (a sinogram needs --geometry)")
    if options.pixel_size is not None:
        pixel_size = (options.pixel_size, options.pixel_size)
    elif pixel_size is None:
        pixel_size = (FIELD_OF_VIEW / max(shape),) * 2
    start, stop = options.angle_range or (0.0, 180.0)
    return ParallelBeam.equispaced(
        shape, pixel_size, options.views, start=math.radians(start), arc=math.radians(stop - start)
    )

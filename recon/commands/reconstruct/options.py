"""The options of ``recon reconstruct``: which there are, which task they belong to, and which values are valid."""

from __future__ import annotations

import argparse
import math

import torch

from datasets.readers.pictures import SUFFIXES
from recon.commands.reconstruct.mri import MASKS
from recon.operators.tomography.fbp import FILTERS

TASKS = ("denoising", "ct", "mri")
PLAIN = ("fbp", "zero_filled")
METHODS = (*PLAIN, "tv")
#: of one solution, by default
MAX_EVALUATIONS = 10_000

# what belongs to some tasks only; everything else belongs to all
_TASKS_OF = {
    "geometry": ("ct",),
    "pixel_size": ("ct",),
    "views": ("ct",),
    "angle_range": ("ct",),
    "rotation_centre": ("ct",),
    "photons": ("ct",),
    "counts": ("ct",),
    "flat": ("ct",),
    "dark": ("ct",),
    "angles": ("ct",),
    "ring_filter": ("ct",),
    "noise_scan": ("mri",),
    "mask": ("mri",),
    "acceleration": ("mri",),
    "coils": ("mri",),
    "size": ("ct", "mri"),
    "seed": ("ct", "mri"),
}
# what methods that solve nothing have not
_REGULARIZED = ("weight", "choose", "mu", "smoothing", "accuracy", "nonnegative")
# what networks that reconstruct in one pass have not
_VARIATIONAL = (*_REGULARIZED, "plain", "max_evaluations", "dtype")
_POSITIVE = ("weight", "mu", "accuracy", "noise", "smoothing", "pixel_size", "photons")
_COUNTS = ("size", "views", "coils", "max_evaluations")
_NOT_NEGATIVE = ("index", "seed")


def option(name: str) -> str:
    """``max_evaluations`` as it is written on the command line."""
    return "--" + name.replace("_", "-")


def check_options(args: argparse.Namespace, task: str) -> None:
    """Refuse options of other tasks, values out of range, and a device that is not there.

    Raises:
        ValueError: it names the option and what is valid.
    """
    for name, tasks in _TASKS_OF.items():
        if getattr(args, name) not in (None, False) and task not in tasks:
            raise ValueError(
                f"{option(name)} belongs to --task {' and '.join(tasks)}; these data are taken for {task}, see --task"
            )
    for names, valid, right in (
        (_POSITIVE, "positive and finite", lambda v: 0 < v < math.inf),
        (_COUNTS, "at least 1", lambda v: v >= 1),
        (_NOT_NEGATIVE, "at least 0", lambda v: v >= 0),
        (("acceleration",), "finite and at least 1", lambda v: 1 <= v < math.inf),
    ):
        for name in names:
            value = getattr(args, name)
            if value is not None and not right(value):
                raise ValueError(f"{option(name)} is {value}, but must be {valid}")
    if args.angle_range is not None:
        start, stop = args.angle_range
        if not (start < stop and stop - start <= 360):  # as written, so that NaN fails too
            raise ValueError(f"--angle-range is {start:g} {stop:g}; valid are degrees with START < STOP <= START + 360")
    if args.method in PLAIN:
        for name in _REGULARIZED:
            if getattr(args, name) not in (None, False):
                raise ValueError(
                    f"{option(name)} belongs to --method tv and to --model; {args.method} has no such thing"
                )
    if args.plain and args.model is None:
        raise ValueError("--plain belongs to --model with a saddle-point model")
    if args.trust and args.model is None:
        raise ValueError("--trust belongs to --model with a class of your own")
    if args.unchecked and args.model is None:
        raise ValueError("--unchecked belongs to --model with a network that reconstructs")
    if args.weight is not None and args.choose is not None:
        raise ValueError("--weight and --choose exclude each other; give one of them")
    try:
        torch.zeros(1, device=args.device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--device {args.device} cannot be used here; cpu always can ({reason})") from error


def check_network_options(args: argparse.Namespace, name: str) -> None:
    """Refuse what has no meaning for the network ``name`` in ``args.model``.

    Raises:
        ValueError: it names the option.
    """
    for given in _VARIATIONAL:
        if getattr(args, given) not in (None, False):
            raise ValueError(
                f"{option(given)} does not go with {args.model}, which holds a network, {name}: it reconstructs in one "
                "pass and in its own precision, without an energy"
            )


def parser() -> argparse.ArgumentParser:
    """The options of the command, in groups."""
    made = argparse.ArgumentParser(
        prog="recon reconstruct",
        description="Reconstruct images (denoising), sinograms (CT) and k-space (MRI); pictures with --task ct or mri "
        "are scanned in simulation first. For every file NAME the output folder gets NAME.npy (all digits), a picture "
        "(NAME.png for images, NAME.tif for CT and MRI), NAME_comparison.png, NAME.dcm where the input was DICOM, and "
        "report.json, which certifies every result.",
    )
    _add_files(made)
    _add_solution(made.add_argument_group("solution"))
    _add_weight(made.add_argument_group("regularizer and its weight"))
    _add_ct(made.add_argument_group("CT, measured and simulated"))
    _add_mri(made.add_argument_group("MRI, measured"))
    _add_simulation(made.add_argument_group("simulation from pictures"))
    return made


def _add_files(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--data",
        required=True,
        nargs="+",
        help=f"images or folders of them ({', '.join(SUFFIXES)}, DICOM); sinograms: HTC2022 .mat, DXchange .h5, "
        "LoDoPaB-CT .hdf5, NXtomo .nxs, .npz, or .npy and .tif with --geometry; k-space: complex .npy, fastMRI or "
        "ISMRMRD .h5; slices: NIfTI",
    )
    made.add_argument("--output", required=True, help="folder, made if it is missing")
    made.add_argument("--task", choices=TASKS, help="guessed from the files; pictures are denoised by default")
    made.add_argument("--method", choices=METHODS, help="without a model: filtered back-projection, zero-filled, or TV")
    made.add_argument("--model", help="trained: .safetensors with its .json, .ckpt, or a name of `recon models`")
    made.add_argument(
        "--unchecked",
        action="store_true",
        help="apply a network to another operator than the one it was trained for, or to an unknown one",
    )
    made.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="MODULE",
        help="Python module that the class of --model may come from, if it is none of this project; importing it runs "
        "it (may be repeated)",
    )
    made.add_argument("--reference", help="true image to compare with; for images also a folder with the same names")
    made.add_argument(
        "--max-memory",
        metavar="AMOUNT",
        help="that one file may ask for, e.g. 4GB; more is refused before it is read (default: half of what is free)",
    )
    made.add_argument("--index", type=int, default=0, help="slice or detector row in the file (default: 0)")


def _add_solution(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--accuracy",
        type=float,
        help="certified Euclidean distance of the whole image to the exact minimizer, in the unit of the result "
        "(default: 0.01 for images; for CT and MRI 1%% of the norm of the first guess, or what the type allows)",
    )
    group.add_argument(
        "--plain",
        action="store_true",
        help="the plain form of a saddle-point model, without regularization: no distance is certified, --accuracy is "
        "that of residuals",
    )
    group.add_argument("--nonnegative", action="store_true", help="minimize over x >= 0 (images, CT)")
    group.add_argument("--max-evaluations", type=int, help=f"of one solution (default: {MAX_EVALUATIONS})")
    group.add_argument("--dtype", choices=["float32", "float64"], help="(default: float64; networks have their own)")
    group.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: %(default)s)")


def _add_weight(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--weight", type=float, help="of R in the energy; 1 is a trained model as it is")
    group.add_argument(
        "--choose",
        choices=["discrepancy", "sweep"],
        help="residual as large as the noise (default for TV), or best PSNR against the reference",
    )
    group.add_argument(
        "--noise", type=float, help="standard deviation on the scale of the data (default: estimated, if measured)"
    )
    group.add_argument(
        "--mu", type=float, help="of the energy (default: as trained; 0 for images, 1e-5 ||A||^2 CT, 1e-3 MRI)"
    )
    group.add_argument("--smoothing", type=float, help="of TV, in the unit of the result (default: 1%% of its height)")


def _add_ct(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--geometry", help="YAML file, see docs/geometry.md (default: what the data file says)")
    group.add_argument("--size", type=int, help="side of the picture in pixels (default: detector pixels, or as it is)")
    group.add_argument("--pixel-size", type=float, help="in mm (default: covers the detector, or as the picture says)")
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
        "--ring-filter", type=int, metavar="PIXELS", help="remove rings, by a median over so many detector pixels (odd)"
    )
    group.add_argument(
        "--photons", type=float, help="of a ray through air: rays are weighted by their inverse variance"
    )
    group.add_argument("--counts", action="store_true", help="the sinogram holds counts of photons")
    group.add_argument(
        "--flat",
        help="counts in air, in place of flat fields: a number in the unit of the data, or a file (.npy, .tif, .h5); "
        "of a file without flat fields it says that the values are counts",
    )
    group.add_argument("--dark", help="counts without light, as --flat (default: what the file says, or 0)")
    group.add_argument(
        "--angles",
        help="in degrees, in place of those of the file: a file with one for each view (.npy or text), or one number, "
        "the arc over which the views are equispaced from 0 without its end, e.g. 180",
    )
    group.add_argument("--filter", choices=FILTERS, default="ram-lak", help="of the FBP (default: %(default)s)")
    group.add_argument(
        "--backend", choices=["matrix", "astra_cuda"], default="matrix", help="of the projector (default: %(default)s)"
    )


def _add_mri(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--noise-scan",
        help="noise without signal, measured as the data: complex .npy (coils, samples), or ISMRMRD .h5; coils are "
        "whitened by it (default: from the data file)",
    )


def _add_simulation(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--mask", choices=list(MASKS), help="of k-space (default: random lines with a full centre)")
    group.add_argument("--acceleration", type=float, help="k-space points for each sampled one (default: 4)")
    group.add_argument("--coils", type=int, help="(default: 1)")
    group.add_argument("--seed", type=int, help="of noise and mask (default: 0)")

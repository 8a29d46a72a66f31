"""``recon reconstruct``: images, sinograms and k-space, with a certificate of the accuracy.

Denoising (:mod:`recon.commands.reconstruct_images`), CT and MRI (:mod:`recon.commands.reconstruct_measured`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from datasets.hdf5 import open_hdf5
from datasets.reading import SUFFIXES
from recon.commands import reconstruct_images, reconstruct_measured
from recon.operators.fbp import FILTERS

TASKS = ("denoising", "ct", "mri")
METHODS = ("fbp", "zero_filled", "tv")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns 0 if everything reached its accuracy, else 1.

    Raises:
        ValueError: files that cannot be used or do not fit together, values out of range, a model that certifies
            nothing (DataError and ModelFileError are ValueErrors).
        OSError: a file is missing, or the output cannot be written.
    """
    args = parser().parse_args(argv)
    task = args.task or guessed_task([Path(p) for p in args.data], args.method)
    _check_common(args)
    if task == "denoising":
        return reconstruct_images.main(args)
    return reconstruct_measured.main(args, task)


def guessed_task(paths: list[Path], method: str | None) -> str:
    """The task that the method, or the kind of all files, belongs to.

    Raises:
        ValueError: the files are of different kinds.
    """
    if method in ("fbp", "zero_filled"):
        return {"fbp": "ct", "zero_filled": "mri"}[method]
    found = {path: _kind(path) for path in paths}
    if len(set(found.values())) > 1:
        kinds = ", ".join(f"{path.name}: {kind}" for path, kind in found.items())
        raise ValueError(f"the files of --data belong to different tasks ({kinds}); reconstruct them one after another")
    return found[paths[0]]


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in (".mat", ".npz"):
        return "ct"
    if suffix in (".h5", ".hdf5"):
        with open_hdf5(path) as file:
            return "mri" if "kspace" in file else "ct"
    if suffix == ".npy" and path.is_file():
        try:
            return "mri" if np.iscomplexobj(np.load(path, mmap_mode="r", allow_pickle=False)) else "denoising"
        except (OSError, ValueError, EOFError):
            return "denoising"  # whose reader says what is wrong with the file
    return "denoising"


def _check_common(args: argparse.Namespace) -> None:
    if args.max_evaluations < 1:
        raise ValueError(f"--max-evaluations is {args.max_evaluations}, but must be at least 1")
    if args.accuracy is not None and not 0 < args.accuracy < float("inf"):
        raise ValueError(f"--accuracy is {args.accuracy}, but must be positive and finite")
    try:
        torch.zeros(1, device=args.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--device {args.device} cannot be used here; cpu always can ({reason})") from error


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    made = argparse.ArgumentParser(
        prog="recon reconstruct",
        description="Reconstruct images, sinograms (CT) and k-space (MRI). For every file NAME the output folder gets "
        "NAME.npy (all digits), a picture (NAME.png for images, NAME.tif for CT and MRI), NAME_comparison.png, and "
        "report.json, which certifies every result.",
    )
    made.add_argument(
        "--data",
        required=True,
        nargs="+",
        help=f"images or folders of them ({', '.join(SUFFIXES)}, DICOM of CT); sinograms: HTC2022 .mat, DXchange .h5, "
        "LoDoPaB-CT .hdf5, .npz, or .npy with --geometry; k-space: complex .npy, or fastMRI .h5",
    )
    made.add_argument("--output", required=True, help="folder, made if it is missing")
    made.add_argument("--task", choices=TASKS, help="guessed from the files")
    made.add_argument("--method", choices=METHODS, help="without a model: filtered back-projection, zero-filled, or TV")
    made.add_argument("--model", help="trained regularizer: .safetensors with its .json, or .ckpt")
    made.add_argument("--reference", help="true image to compare with; for images also a folder with the same names")
    made.add_argument(
        "--accuracy",
        type=float,
        help="certified Euclidean distance of the whole image to the exact minimizer, in the unit of the result "
        "(default: 0.01 for images; 1%% of the norm of the first guess for CT and MRI)",
    )
    made.add_argument("--max-evaluations", type=int, default=10_000, help="of one solution (default: %(default)d)")
    made.add_argument("--dtype", choices=["float32", "float64"], default="float64", help="(default: %(default)s)")
    made.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: %(default)s)")
    weight = made.add_argument_group("weight of the regularizer (CT and MRI)")
    weight.add_argument("--weight", type=float, help="of R in the energy; 1 is a trained model as it is")
    weight.add_argument(
        "--choose",
        choices=["discrepancy", "sweep"],
        help="residual as large as the noise (default for TV), or best PSNR against the reference",
    )
    weight.add_argument("--noise", type=float, help="standard deviation on the scale of the data (default: estimated)")
    weight.add_argument("--mu", type=float, help="of the energy (default: as trained; 1e-5 ||A||^2 CT, 1e-3 MRI)")
    weight.add_argument("--smoothing", type=float, help="of TV, in the unit of the result (default: 1%% of its height)")
    scan = made.add_argument_group("scan (CT, MRI)")
    scan.add_argument("--index", type=int, default=0, help="slice or detector row in the file (default: 0)")
    scan.add_argument("--geometry", help="YAML file, see docs/geometry.md (default: what the data file says)")
    scan.add_argument("--size", type=int, help="side of the picture in pixels (default: number of detector pixels)")
    scan.add_argument("--pixel-size", type=float, help="in mm (default: the picture covers the detector)")
    scan.add_argument("--views", type=int, help="use so many views, at equal distances")
    scan.add_argument(
        "--angle-range",
        "--angle_range",
        nargs=2,
        type=float,
        metavar=("START", "STOP"),
        help="use the views at START <= angle < STOP degrees after the first one",
    )
    scan.add_argument("--rotation-centre", help="detector pixel of the axis, or `estimate` (default for DXchange)")
    scan.add_argument("--filter", choices=FILTERS, default="ram-lak", help="of the FBP (default: %(default)s)")
    scan.add_argument(
        "--backend", choices=["matrix", "astra_cuda"], default="matrix", help="of the projector (default: %(default)s)"
    )
    return made

"""``recon reconstruct``: images, sinograms and k-space, with a certificate of the accuracy.

Denoising (:mod:`recon.commands.reconstruct.images`), CT and MRI (:mod:`recon.commands.reconstruct.measured`); the
options are in :mod:`recon.commands.reconstruct.options`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datasets.kspace.ismrmrd import holds_ismrmrd
from datasets.readers.hdf5 import open_hdf5
from datasets.scans.counts import HDF5_SUFFIXES
from recon.commands.output.lock import locked
from recon.commands.reconstruct import images as reconstruct_images
from recon.commands.reconstruct import measured as reconstruct_measured
from recon.commands.reconstruct.options import PLAIN, check_options, parser
from recon.commands.reconstruct.pictures import holds_complex
from recon.limits import parse_memory, set_memory_limit


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns 0 if everything reached its accuracy, else 1.

    Raises:
        ValueError: files that cannot be used or do not fit together, values out of range, a model that certifies
            nothing (DataError and ModelFileError are ValueErrors).
        OSError: a file is missing, the output cannot be written, or another program writes into its folder.
    """
    args = parser().parse_args(argv)
    if args.max_memory is not None:  # from Python; `recon` has taken it out already
        set_memory_limit(parse_memory(args.max_memory))
    task = args.task or ("ct" if args.geometry else guessed_task([Path(p) for p in args.data], args.method))
    check_options(args, task)
    with locked(Path(args.output)):
        if task == "denoising":
            return reconstruct_images.main(args)
        return reconstruct_measured.main(args, task)


def guessed_task(paths: list[Path], method: str | None) -> str:
    """The task that the method, or the kind of all files, belongs to; pictures are denoised.

    Raises:
        ValueError: the files are of different kinds.
    """
    if method in PLAIN:
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
    if suffix in HDF5_SUFFIXES:
        with open_hdf5(path) as file:
            return "mri" if "kspace" in file or holds_ismrmrd(file) else "ct"
    return "mri" if holds_complex(path) else "denoising"

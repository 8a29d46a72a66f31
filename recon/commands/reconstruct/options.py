"""The options that all tasks of ``recon reconstruct`` share, and what is checked of options; tasks have their own."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recon.commands.reconstruct.tasks.declared import Declared

#: total variation: of images without smoothing, of CT and MRI smoothed; and smoothed whatever the data are
TV, SMOOTHED_TV = "tv", "smoothed-tv"
#: of one solution, by default
MAX_EVALUATIONS = 10_000


@dataclass(frozen=True)
class Range:
    """Which values of an option are valid, in words and as a test that NaN fails."""

    words: str
    holds: Callable[[float], bool]


POSITIVE = Range("positive and finite", lambda v: 0 < v < math.inf)
AT_LEAST_ONE = Range("at least 1", lambda v: v >= 1)
NOT_NEGATIVE = Range("at least 0", lambda v: v >= 0)

_RANGES = {
    **dict.fromkeys(("weight", "mu", "accuracy", "noise", "smoothing"), POSITIVE),
    "max_evaluations": AT_LEAST_ONE,
    "index": NOT_NEGATIVE,
}
# what methods that solve nothing have not
_REGULARIZED = ("weight", "choose", "mu", "smoothing", "accuracy", "nonnegative")
# what networks that reconstruct in one pass have not
_VARIATIONAL = (*_REGULARIZED, "plain", "max_evaluations", "dtype")
# what belongs to models, and to which
_MODELS = {"plain": "a saddle-point model", "trust": "a class of your own", "unchecked": "a network that reconstructs"}


def option(name: str) -> str:
    """``max_evaluations`` as it is written on the command line."""
    return "--" + name.replace("_", "-")


def given(args: argparse.Namespace, name: str) -> bool:
    """Whether the option ``name``, which has no default, was given."""
    return vars(args)[name] not in (None, False)


def check_options(args: argparse.Namespace, task: type[Declared], tasks: Mapping[str, type[Declared]]) -> None:
    """Refuse options of other tasks, values out of range, and a device that is not there.

    Parameters
    ----------
    args : argparse.Namespace
        As parsed.
    task : type[Declared]
        What the data are taken for.
    tasks : Mapping[str, type[Declared]]
        All that there are, by name.

    Raises
    ------
    ValueError
        It names the option and what is valid.
    """
    for name in dict.fromkeys(name for each in tasks.values() for name in each.options):
        if given(args, name) and name not in task.options:
            owners = " and ".join(each.name for each in tasks.values() if name in each.options)
            raise ValueError(
                f"{option(name)} belongs to --task {owners}; these data are taken for {task.name}, see --task"
            )
    ranges = [_RANGES, *(each.ranges for each in tasks.values())]
    for name, valid in ((name, valid) for part in ranges for name, valid in part.items()):
        value = vars(args)[name]
        if value is not None and not valid.holds(value):
            raise ValueError(f"{option(name)} is {value}, but must be {valid.words}")
    _check_method(args, [each.plain for each in tasks.values()])
    import torch  # it takes seconds, and --help needs nothing of it

    try:
        torch.zeros(1, device=args.device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--device {args.device} cannot be used here; cpu always can ({reason})") from error


def _check_method(args: argparse.Namespace, plain: Sequence[str | None]) -> None:
    if args.method is not None and args.method in plain:
        for name in _REGULARIZED:
            if given(args, name):
                raise ValueError(
                    f"{option(name)} belongs to --method tv and to --model; {args.method} has no such thing"
                )
    for name, what in _MODELS.items():
        if vars(args)[name] and args.model is None:
            raise ValueError(f"{option(name)} belongs to --model with {what}")
    if args.weight is not None and args.choose is not None:
        raise ValueError("--weight and --choose exclude each other; give one of them")


def check_network_options(args: argparse.Namespace, name: str) -> None:
    """Refuse what has no meaning for the network ``name`` in ``args.model``.

    Raises
    ------
    ValueError
        it names the option.
    """
    for each in _VARIATIONAL:
        if given(args, each):
            raise ValueError(
                f"{option(each)} does not go with {args.model}, which holds a network, {name}: it reconstructs in one "
                "pass and in its own precision, without an energy"
            )


def parser(tasks: Mapping[str, type[Declared]]) -> argparse.ArgumentParser:
    """The options of the command, in groups: those of all tasks, then those of each of ``tasks``."""
    made = argparse.ArgumentParser(
        prog="recon reconstruct",
        description="Reconstruct images (denoising), sinograms (CT) and k-space (MRI); pictures with --task ct or mri "
        "are scanned in simulation first. For every file NAME the output folder gets NAME.npy (all digits), a picture "
        "(NAME.png for images, NAME.tif for CT and MRI), NAME_comparison.png, NAME.dcm where the input was DICOM, and "
        "report.json, which certifies every result.",
    )
    _add_files(made, tasks)
    _add_solution(made.add_argument_group("solution"))
    _add_weight(made.add_argument_group("regularizer and its weight"))
    for task in tasks.values():
        task.add_options(made)
    return made


def _add_files(made: argparse.ArgumentParser, tasks: Mapping[str, type[Declared]]) -> None:
    methods = [*(task.plain for task in tasks.values() if task.plain is not None), TV, SMOOTHED_TV]
    made.add_argument(
        "--data",
        required=True,
        nargs="+",
        help="; ".join([*(task.files for task in tasks.values()), "slices: NIfTI"]),
    )
    made.add_argument("--output", required=True, help="folder, made if it is missing")
    made.add_argument("--task", choices=list(tasks), help="guessed from the files; pictures are denoised by default")
    made.add_argument("--method", choices=methods, help="without a model: filtered back-projection, zero-filled, or TV")
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
        "--noise",
        "--sigma",
        type=float,
        help="standard deviation on the scale of the data (default: estimated, if measured); models for all noise "
        "levels depend on it",
    )
    group.add_argument(
        "--mu", type=float, help="of the energy (default: as trained; 0 for images, 1e-5 ||A||^2 CT, 1e-3 MRI)"
    )
    group.add_argument(
        "--smoothing",
        type=float,
        help="of TV for CT and MRI and of smoothed-tv, in the unit of the result (default: 1%% of its height)",
    )

"""``recon reconstruct``: images, sinograms and k-space, with a certificate of the accuracy.

The tasks, each with its files and options, are in :mod:`recon.commands.reconstruct.tasks`; what happens to every file,
whatever the task, is in :mod:`recon.commands.reconstruct.driver`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recon.commands.loading import loading
from recon.commands.reconstruct.options import check_options, given, parser
from recon.commands.reconstruct.tasks import TASKS
from recon.limits import parse_memory, set_memory_limit


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns 0 if everything reached its accuracy, else 1.

    Raises
    ------
    ValueError
        Files that cannot be used or do not fit together, values out of range, a model that certifies nothing
        (DataError and ModelFileError are ValueErrors).
    OSError
        A file is missing, the output cannot be written, or another program writes into its folder.
    """
    args = parser(TASKS).parse_args(argv)
    if args.max_memory is not None:  # from Python; `recon` has taken it out already
        set_memory_limit(parse_memory(args.max_memory))
    with loading():
        from recon.commands.output.lock import locked
        from recon.commands.reconstruct.driver import reconstruct_files  # torch takes seconds to import

        implied = (name for name, task in TASKS.items() if any(given(args, each) for each in task.implied_by))
        task = TASKS[args.task or next(implied, None) or guessed_task([Path(p) for p in args.data], args.method)]
        check_options(args, task, TASKS)
        loaded = task.load()
    with locked(Path(args.output)):
        return reconstruct_files(loaded(args))


def guessed_task(paths: list[Path], method: str | None) -> str:
    """The task that the method, or the kind of all files, belongs to; pictures are denoised.

    Raises
    ------
    ValueError
        The files are of different kinds.
    """
    for name, task in TASKS.items():
        if method is not None and method == task.plain:
            return name
    # the first one takes what no other wants
    found = {path: next(name for name, task in reversed(TASKS.items()) if task.holds(path)) for path in paths}
    if len(set(found.values())) > 1:
        kinds = ", ".join(f"{path.name}: {kind}" for path, kind in found.items())
        raise ValueError(f"the files of --data belong to different tasks ({kinds}); reconstruct them one after another")
    return found[paths[0]]

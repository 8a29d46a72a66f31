"""The console program ``recon``: subcommands, and errors in one sentence."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from types import FrameType

from recon.commands.errors import sentence
from recon.limits import parse_memory, set_memory_limit

TRAINING = ("fit", "validate", "test", "predict")
#: the other commands, and the modules that have their ``main``
PROGRAMS = {
    "reconstruct": "recon.commands.reconstruct.main",
    "compare": "recon.commands.compare.main",
    "models": "recon.commands.models",
    "demo": "recon.commands.demo.main",
    "reproduce": "recon.commands.reproduce.main",
    "cache": "recon.commands.cache",
}
COMMANDS = (*TRAINING, *PROGRAMS)

USAGE = """usage: recon COMMAND [OPTIONS]

Bilevel learning of variational regularizers for imaging inverse problems.

commands:
  fit          learn a regularizer:              recon fit --config configs/tv_denoising/quick.yaml
  validate     measure it on the validation set: recon validate --config FILE --ckpt_path CHECKPOINT
  test         measure it on the test set
  predict      reconstruct the data of the configuration
  reconstruct  reconstruct files with a trained regularizer
  compare      methods on the same test images:  recon compare --config configs/ct/compare_quick.yaml
  models       list the trained models that come with the library, or show a card: recon models NAME
  demo         learn, reconstruct and compare, on built-in images
  reproduce    compute and draw a figure:        recon reproduce tv-discretisation --scale quick
  cache        list or clear the projector matrices kept on disk: recon cache list

options:
  --max-memory AMOUNT  that one file may ask for, e.g. 4GB (default: half of what is free; or set RECON_MAX_MEMORY)
  --version    of this library; with --verbose, also of what it runs on, and which compiled kernels are in use
  --debug      show the traceback of an error (or set RECON_DEBUG=1)
  COMMAND --help explains the options of a command.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the program; returns its exit status.

    0: done. 1: an error, said in one sentence on the standard error stream. 2: no such command. 130, 143: interrupted,
    or ended by SIGTERM, in the same way. 141: what reads its output has gone, without a word.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get("RECON_DEBUG", "") not in ("", "0")
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        arguments = _with_memory_limit(arguments)
    except ValueError as error:
        print(f"recon: {sentence(error)}", file=sys.stderr)
        return 2
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="", file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    name, *rest = arguments
    if name == "--version" and set(rest) <= {"--verbose"}:
        return _version(verbose=bool(rest))
    if name not in COMMANDS:
        print(f"recon: unknown command {name!r}; valid are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    _wait_passively()
    try:
        with _terminable():
            status = _command(name)(rest)
            sys.stdout.flush()  # here, where a reader that has gone can be noticed
            return status
    except KeyboardInterrupt as stop:
        return _interrupted(name, stop)
    except SystemExit as stop:
        # Lightning answers an interrupt with exit(1), rich a closed pipe; argparse ends --help with exit(0)
        if isinstance(stop.__context__, KeyboardInterrupt):
            return _interrupted(name, stop.__context__)
        if isinstance(stop.__context__, BrokenPipeError):
            return _unread()
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BrokenPipeError:
        return _unread()
    except Exception as error:
        if debug:
            traceback.print_exc()
        what = sentence(error)
        if not isinstance(error, (*_EXPECTED, *_misconfigurations())):
            what = f"this should not have happened ({type(error).__name__}: {what}); --debug shows where it did"
        print(f"recon {name}: {what}", file=sys.stderr)
        return 1


# What data, files and the machine can bring about; anything else is a defect of the program.
_EXPECTED = (ValueError, OSError, ImportError, ArithmeticError, MemoryError, RecursionError, argparse.ArgumentError)


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends the program as an interrupt does: with everything cleaned up."""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Within it, SIGTERM raises :class:`Terminated`."""
    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _unread() -> int:
    """The end of a program whose output nobody reads, such as `recon ... | head`."""
    with contextlib.suppress(OSError, ValueError):  # standard output may be no file
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())  # what is left goes there at exit
        os.close(nothing)
    return 141  # 128 + SIGPIPE, which some systems have not


def _wait_passively() -> None:
    """Let threads of torch that wait for each other sleep, unless ``OMP_WAIT_POLICY`` says otherwise or torch is there.

    OpenMP lets them spin: where other programs run on the cores, they take these from the thread that is waited for,
    and short operations, of which learning makes many, take tens of times as long.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _with_memory_limit(arguments: list[str]) -> list[str]:
    """Set the limit of --max-memory, which every command has; returns the other arguments.

    Raises
    ------
    ValueError
        it is no amount of memory.
    """
    limit, rest, given = None, [], iter(arguments)
    for argument in given:
        name, equals, value = argument.partition("=")
        if name in ("--max-memory", "--max_memory"):
            limit = parse_memory(value if equals else next(given, ""))
        else:
            rest.append(argument)
    set_memory_limit(limit)
    return rest


def _version(verbose: bool) -> int:
    from models.files.storage import library_version

    print(f"recon {library_version()}")
    if verbose:
        import platform

        import torch

        from models.regularizers.kernels import describe
        from recon.lower_level.solvers.compiled.library import describe as describe_steps
        from recon.lower_level.solvers.total_variation.iteration import describe as describe_total_variation
        from recon.operators.tomography.matrix.sparse import describe as describe_sparse

        print(f"Python {platform.python_version()} on {platform.machine()}")
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
        print(f"kernels of filters and networks: {describe()}")
        print(f"kernel of total variation: {describe_total_variation()}")
        print(f"steps of solvers: {describe_steps()}")
        print(f"kernel of sparse matrices: {describe_sparse()}")
    return 0


def _command(name: str) -> Callable[[list[str]], int]:
    """The program of a subcommand; imported now, as each needs other libraries."""
    if name in TRAINING:
        from recon.commands.fit.main import main as training

        return functools.partial(training, name)
    program: Callable[[list[str]], int] = importlib.import_module(PROGRAMS[name]).main
    return program


def _misconfigurations() -> tuple[type[Exception], ...]:
    """That of Lightning, where it is imported: nothing else can have raised it."""
    if "pytorch_lightning" not in sys.modules:
        return ()
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    return (MisconfigurationException,)


def _interrupted(name: str, stop: BaseException) -> int:
    again = "`recon fit ... --ckpt_path last` goes on from the last checkpoint"
    if name in ("compare", "reproduce"):
        again = "the same command goes on with what is not finished"
    print(f"recon: interrupted; {again}", file=sys.stderr)
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)

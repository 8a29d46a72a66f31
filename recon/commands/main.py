"""The console program ``recon``: subcommands, and errors in one sentence."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable

from recon.commands.errors import sentence

TRAINING = ("fit", "validate", "test", "predict")
OTHERS = ("reconstruct", "compare", "models", "demo", "reproduce", "cache")

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
  --debug      show the traceback of an error (or set RECON_DEBUG=1)
  COMMAND --help explains the options of a command.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the program; returns its exit status.

    0: done. 1: an error, said in one sentence on the standard error stream. 2: no such command. 130: interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get("RECON_DEBUG", "") not in ("", "0")
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="", file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in TRAINING + OTHERS:
        print(f"recon: unknown command {name!r}; valid are {', '.join(TRAINING + OTHERS)}", file=sys.stderr)
        return 2
    try:
        return _command(name)(rest)
    except KeyboardInterrupt:
        return _interrupted(name)
    except SystemExit as stop:
        # Lightning answers an interrupt with exit(1), argparse ends --help with exit(0)
        if isinstance(stop.__context__, KeyboardInterrupt):
            return _interrupted(name)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except (ValueError, OSError, argparse.ArgumentError, _misconfiguration()) as error:
        if debug:
            traceback.print_exc()
        print(f"recon {name}: {sentence(error)}", file=sys.stderr)
        return 1


def _command(name: str) -> Callable[[list[str]], int]:
    """The program of a subcommand; imported now, as each needs other libraries."""
    if name == "reconstruct":
        from recon.commands import reconstruct

        return reconstruct.main
    if name == "compare":
        from recon.commands import compare

        return compare.main
    if name == "models":
        from recon.commands import models

        return models.main
    if name == "demo":
        from recon.commands import demo

        return demo.main
    if name == "reproduce":
        from recon.commands import reproduce

        return reproduce.main
    if name == "cache":
        from recon.commands import cache

        return cache.main
    from recon.commands.cli import run_cli

    def run(rest: list[str]) -> int:
        run_cli([name, *rest])
        return 0

    return run


def _misconfiguration() -> type[Exception]:
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    return MisconfigurationException


def _interrupted(name: str) -> int:
    again = "`recon fit ... --ckpt_path last` goes on from the last checkpoint"
    if name in ("compare", "reproduce"):
        again = "the same command goes on with what is not finished"
    print(f"recon: interrupted; {again}", file=sys.stderr)
    return 130

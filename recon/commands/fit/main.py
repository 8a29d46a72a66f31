"""``recon fit | validate | test | predict --config FILE``: with a short help; the long one is that of Lightning."""

from __future__ import annotations

from collections.abc import Sequence

from recon.commands.loading import loading

DOES = {
    "fit": "Learn a regularizer, a reconstruction network or a critic",
    "validate": "Measure a trained model on the validation set",
    "test": "Measure a trained model on the test set",
    "predict": "Reconstruct the data of the configuration",
}
HELP = """usage: recon {name} --config FILE [OPTIONS]

{does}, as a YAML file of configs/ says; options replace what it says, and stand behind it.

options:
  -h, --help            show this help message and exit
  --help-all            all options with their defaults; --model.help CLASS and --data.help CLASS those of a class
  --config FILE         sections `model`, `data` and `trainer`; may be repeated, later ones replace earlier ones; with
                        a list `stages` of such sections, trainings that go on from one another
  --print_config        show the configuration in force, with all defaults, and exit
  --ckpt_path FILE      of a run, or `last` or `best` of those of this configuration
  --model.init_args.X, --data.init_args.X, --trainer.X VALUE
                        one value, e.g. --trainer.max_epochs 20
  --trainer.default_root_dir FOLDER
                        for the runs (default: outputs/NAME_OF_CONFIG)
  --checkpoint_every N  iterations between two writings of last.ckpt (default: 1)
  --seed_everything N   of random numbers (default: 0)
"""


def main(name: str, argv: Sequence[str]) -> int:
    """Run the subcommand ``name`` of :func:`recon.commands.fit.stages.run`, or show its help; returns 0.

    Raises
    ------
    argparse.ArgumentError, ValueError, OSError
        what is wrong with the configuration, the data or the files; another program writes into the folder of the run.
    """
    if not {"-h", "--help"}.isdisjoint(argv):
        print(HELP.format(name=name, does=DOES[name]), end="")
        return 0
    with loading():
        from recon.commands.fit.stages import run  # Lightning takes seconds to import

    run([name, *("--help" if argument == "--help-all" else argument for argument in argv)])
    return 0

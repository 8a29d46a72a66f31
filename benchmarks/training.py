"""Where the CPU time of `recon fit` goes, for every shipped configuration, from one end to the other.

    python -m benchmarks.training --data FOLDER                                # all, by kinds of work
    python -m benchmarks.training --data FOLDER --only crr_denoising/bsd --places 20
    python -m benchmarks.training --data FOLDER --only denoising/bsd --before 3  # with kernels and without, in turns

Configurations run as they are, but for fewer iterations: EPOCHS says how many, and nothing else that sizes pictures or
models. FOLDER (default: that of RECON_DATA) has the folders that they name; those whose data are not there say so. The
table has seconds of training, and shares of it; start-up and what follows the last iteration, which do not grow with
the training, are seconds of their own. ``--before`` is a training with RECON_KERNELS=off, the code before there were
compiled kernels; it gives the ratio of both, minimum to minimum, and the relative difference of what they learned.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from benchmarks.common import arguments, print_table, start, write_csv
from benchmarks.sampling import KINDS, OTHER, ROOT, START, THREADS, WORK, Sampler

CONFIGS = ROOT / "configs"
#: epochs of the configurations that begin so: the longest that fits counts; of those that end in "quick", ten
EPOCHS: dict[str, int] = {
    "": 1,
    "crr_denoising/bsd": 2,
    "tv_denoising/bsd": 2,
    "tv_denoising/paper": 6,
}
QUICK = 10
#: what is no folder of FOLDER
DATA: dict[str, str] = {
    "mri": "--data.train data/mri_t1w_dicom --data.pictures.limit 12 --data.val builtin --data.test builtin",
}


@dataclass(frozen=True)
class Run:
    """CPU seconds by kind of work and by place, and what was learned."""

    seconds: Mapping[str, float]
    places: Mapping[str, float]
    learned: Path

    @property
    def training(self) -> float:
        """CPU seconds without start and end."""
        return sum(self.seconds.values()) - self.seconds.get(START, 0.0)


def configurations(only: list[str]) -> list[str]:
    """Names of the shipped trainings, all or those that begin as said."""
    found = [path for path in sorted(CONFIGS.glob("*/*.yaml")) if "\nmodel:" in f"\n{path.read_text()}"]
    names = [path.relative_to(CONFIGS).with_suffix("").as_posix() for path in found]
    return [name for name in names if not only or any(name.startswith(wanted) for wanted in only)]


def options(name: str, extra: str) -> list[str]:
    """What stands behind the configuration on the command line."""
    quick = name.endswith("quick")
    epochs = QUICK if quick else EPOCHS[max((part for part in EPOCHS if name.startswith(part)), key=len)]
    own = [] if quick else [line for part, line in DATA.items() if name.startswith(part)]
    return ["--trainer.max_epochs", str(epochs), *" ".join(own).split(), *extra.split()]


def train(name: str, folder: Path, kernels: str, extra: str) -> Run | str:
    """One training in a process of its own, or the last line of what it said."""
    output, result = Path(tempfile.mkdtemp(dir=folder)), folder / "run.json"
    config = ["--config", str(CONFIGS / f"{name}.yaml")]
    fit = ["fit", *config, *options(name, extra), "--trainer.default_root_dir", str(output)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.training", "--worker", str(result), *fit],
        env=os.environ | {"RECON_KERNELS": kernels, "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return (done.stderr.strip() or "failed").splitlines()[-1]
    found = json.loads(result.read_text())
    return Run(found["seconds"], found["places"], next(output.glob("*/re*.safetensors")))


def work(result: Path, arguments: list[str]) -> int:
    """The process of a training: writes what its sampler has seen."""
    sampler = Sampler()
    sampler.start()
    from recon.commands.main import main as recon  # its import is a part of the start

    status = recon(arguments)
    sampler.stop()
    places = {f"{kind}: {place}": seconds for (kind, place), seconds in sampler.places.items()}
    result.write_text(json.dumps({"seconds": sampler.seconds, "places": places}))
    return status


def shares(name: str, run: Run) -> dict[str, object]:
    """Seconds of training, per cent of them outside of the work, and by kind."""
    total = run.training
    row: dict[str, object] = {"configuration": name, "start and end s": round(run.seconds.get(START, 0.0), 1)}
    outside = sum(s for kind, s in run.seconds.items() if kind not in (*WORK, START))
    row |= {"training s": round(total, 1), "outside %": round(100 * outside / total, 1)}
    kinds = [*WORK, *dict.fromkeys(kind for kind, *_ in KINDS if kind not in WORK), OTHER, THREADS]
    return row | {kind: round(100 * run.seconds.get(kind, 0.0) / total, 1) for kind in kinds}


def compared(name: str, after: list[Run], before: list[Run]) -> dict[str, object]:
    """With and without kernels: seconds of training, and how far apart what they learned is."""
    now, then = (min(run.training for run in runs) for runs in (after, before))
    new, old = (load_file(runs[0].learned) for runs in (after, before))
    distance = sum(float((new[n].double() - t.double()).square().sum()) for n, t in old.items()) ** 0.5
    size = sum(float(t.double().square().sum()) for t in old.values()) ** 0.5
    return {"configuration": name, "with s": now, "without s": then, "ratio": then / now, "difference": distance / size}


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="configurations that begin so, as crr_denoising/bsd")
    parser.add_argument("--options", default="", help="of all trainings, as --trainer.max_epochs 8")
    parser.add_argument(
        "--before", type=int, default=0, metavar="N", help="trainings with and without kernels, in turns"
    )
    parser.add_argument("--places", type=int, default=0, metavar="N", help="the N places that take the most time")
    args = parser.parse_args()
    start(args)
    data = Path(os.environ.get("RECON_DATA", ROOT.parent / "shared" / "data") if args.data == "builtin" else args.data)
    rows, ratios = [], []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "data").symlink_to(data.resolve())
        for name in configurations(args.only):
            if args.quick and not name.endswith("quick"):
                continue
            kinds = ["best", "off"] if args.before else ["best"]
            runs: dict[str, list[Run]] = {kind: [] for kind in kinds}
            for kind in kinds * max(1, args.before):
                found = train(name, Path(folder), kind, args.options)
                if isinstance(found, str):
                    print(f"{name}: {found}", flush=True)
                    break
                runs[kind].append(found)
            else:
                rows.append(shares(name, min(runs["best"], key=lambda run: run.training)))
                print_table(name, rows[-1:])
                for place, seconds in sorted(runs["best"][0].places.items(), key=lambda p: -p[1])[: args.places]:
                    print(f"  {seconds:8.2f} s  {place}", flush=True)
                if args.before:
                    ratios.append(compared(name, runs["best"], runs["off"]))
                    print_table("with kernels and without", ratios[-1:])
    for title, table in {"seconds, and shares of the training in per cent": rows, "before": ratios}.items():
        if table:
            print_table(title, table)
            write_csv(args.output / f"training_{title.split(',')[0]}.csv", table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        sys.exit(work(Path(sys.argv[2]), sys.argv[3:]))
    main()

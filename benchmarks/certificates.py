"""A campaign against the certificates: random problems, solved by the project, and references that share nothing.

Every claim is compared with the truth: distances of solutions to the minimizer, residuals of adjoint equations, errors
of hypergradients, intervals of losses, saddle points. The truth comes from dense matrices and NumPy formulas written
for this purpose, in extended precision (64 bits of mantissa), by Newton's method, with an estimate of its own error: a
claim counts as refuted only if the truth exceeds it by more than that. The exit status is 1 if one was refuted.

    python -m benchmarks.certificates --problems 10000 --seed 0
    python -m benchmarks.certificates --kinds blur,network --dtype float32 --problems 200
    python -m benchmarks.certificates --seed 0 --again kullback/float32/17      # one group of problems, all its checks
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import traceback
import warnings
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.certified.energies import Check
from benchmarks.certified.kinds import BATCH, KINDS, SHARES
from benchmarks.certified.problems import DTYPES
from benchmarks.common import machine, print_table, write_csv
from recon.files import write_files

Row = dict[str, Any]


@dataclass
class Tally:
    """What became of the checks of one kind in one precision."""

    problems: int = 0
    checks: int = 0
    refuted: int = 0
    failed: int = 0
    unknown: int = 0
    margin: float = math.inf
    seconds: float = 0.0
    by_what: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, check: Check) -> None:
        """Count one check."""
        self.checks += 1
        self.refuted += check.refuted
        self.unknown += check.margin == math.inf
        if check.counts:
            self.margin = min(self.margin, check.margin)


@dataclass(frozen=True)
class Group:
    """One batch of problems; its name and the seed of the campaign make it again."""

    kind: str
    dtype: str
    number: int

    @property
    def name(self) -> str:
        """kind/dtype/number."""
        return f"{self.kind}/{self.dtype}/{self.number}"

    @classmethod
    def parse(cls, name: str) -> Group:
        """The reverse of :attr:`name`."""
        try:
            kind, dtype, number = name.split("/")
            group = cls(kind, dtype, int(number))
        except ValueError:
            group = cls("", "", 0)
        if group.kind not in KINDS or group.dtype not in DTYPES:
            raise SystemExit(f"--again takes KIND/DTYPE/NUMBER as the lists of refuted claims have it, got {name!r}")
        return group

    def checks(self, seed: int) -> Iterable[Check]:
        """Make the problems and check every claim."""
        rng = np.random.default_rng([seed, zlib.crc32(f"{self.kind}/{self.dtype}".encode()), self.number])
        torch.manual_seed(int(rng.integers(2**31)))
        return KINDS[self.kind](rng, DTYPES[self.dtype])


def plan(problems: int, kinds: Sequence[str], dtypes: Sequence[str]) -> list[Group]:
    """So many groups of every kind and precision that there are about ``problems`` problems in all."""
    total = sum(SHARES.get(k, 1.0) for k in kinds) * len(dtypes)
    groups = []
    for kind in kinds:
        count = round(problems * SHARES.get(kind, 1.0) / total / BATCH.get(kind, BATCH["default"]))
        # rare ones, which take long, are left out of short campaigns
        count = max(count, 1) if SHARES.get(kind, 1.0) >= 0.1 else count
        groups += [Group(kind, dtype, number) for dtype in dtypes for number in range(count)]
    return groups


def campaign(
    groups: Sequence[Group], seed: int, verbose: bool = False
) -> tuple[dict[str, Tally], list[dict[str, Any]]]:
    """All checks of the groups: tallies by ``kind/dtype``, and the refuted claims and failures, one dictionary each."""
    tallies: dict[str, Tally] = defaultdict(Tally)
    refuted: list[dict[str, Any]] = []
    for group in groups:
        tally = tallies[f"{group.kind}/{group.dtype}"]
        begin = time.perf_counter()
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                for check in group.checks(seed):
                    tally.add(check)
                    if verbose or check.refuted:
                        row = {"group": group.name, **asdict(check), "margin": check.margin}
                        print(("REFUTED  " if check.refuted else "") + _line(row), flush=True)
                        refuted += [row] if check.refuted else []
        except Exception as error:
            tally.failed += 1
            where = traceback.extract_tb(error.__traceback__)[-1]
            note = f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"[:300]
            row = {"group": group.name, **asdict(Check("failed", 0.0, 0.0, 0.0, note)), "margin": -1.0}
            print("FAILED  " + _line(row), flush=True)
            refuted.append(row)
        tally.problems += BATCH.get(group.kind, BATCH["default"])
        tally.seconds += time.perf_counter() - begin
    return dict(tallies), refuted


def _line(row: dict[str, Any]) -> str:
    numbers = "  ".join(f"{name} {row[name]:.6g}" for name in ("claimed", "true", "own", "margin"))
    return f"{row['group']}  {row['what']}  {numbers}  {row['note']}"


def table(tallies: dict[str, Tally]) -> list[dict[str, Any]]:
    """A row for every kind and precision, and one for all."""
    rows = []
    for name, t in tallies.items():
        kind, dtype = name.split("/")
        rows.append(_row(kind, dtype, t))
    whole = Tally()
    for t in tallies.values():
        whole.margin = min(whole.margin, t.margin)
        for key in ("problems", "checks", "refuted", "failed", "unknown", "seconds"):
            setattr(whole, key, getattr(whole, key) + getattr(t, key))
    return [*rows, _row("all", "", whole)]


def _row(kind: str, dtype: str, t: Tally) -> dict[str, Any]:
    row = {"kind": kind, "dtype": dtype, "problems": t.problems, "checks": t.checks, "refuted": t.refuted}
    return row | {"failed": t.failed, "unknown": t.unknown, "margin": float(t.margin), "seconds": round(t.seconds, 1)}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=10_000, help="how many, about (default 10,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"some of {', '.join(KINDS)}")
    parser.add_argument("--dtype", default=",".join(DTYPES), help="float32, float64 or both (default)")
    parser.add_argument("--again", help="one group, as the lists of refuted claims name it; prints all its checks")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks"), help="a folder for the files")
    args = parser.parse_args(arguments)
    for given, known in ((args.kinds, KINDS), (args.dtype, DTYPES)):
        if unknown := set(given.split(",")) - set(known):
            parser.error(f"{', '.join(sorted(unknown))}: unknown; there are {', '.join(known)}")
    if args.problems < 1:
        parser.error(f"--problems is {args.problems}, but must be at least 1")
    torch.set_num_threads(1)
    if args.again:
        groups = [Group.parse(args.again)]
    else:
        groups = plan(args.problems, args.kinds.split(","), args.dtype.split(","))
    tallies, refuted = campaign(groups, args.seed, verbose=bool(args.again))
    rows = table(tallies)
    print_table(f"Certificates against references in extended precision, seed {args.seed}", rows)
    if not args.again:
        write_csv(args.output / "certificates.csv", rows)
        if refuted:
            write_csv(args.output / "certificates_refuted.csv", refuted)
        summary = {"seed": args.seed, "machine": machine(), "rows": rows, "refuted": refuted}
        text = json.dumps(_finite(summary), indent=1, allow_nan=False)
        write_files({args.output / "certificates_summary.json": text.encode()})
    return 1 if refuted else 0


def _finite(value: Any) -> Any:
    """What JSON can hold: numbers that are not finite become their names."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    if isinstance(value, np.bool_ | bool):
        return bool(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


if __name__ == "__main__":
    sys.exit(main())

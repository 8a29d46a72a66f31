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
import math
import statistics
import sys
import time
import traceback
import warnings
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.certified.checks import Check
from benchmarks.certified.kinds import BATCH, KINDS, SHARES
from benchmarks.certified.problems import DTYPES
from benchmarks.common import print_table, write_csv


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

    @property
    def size(self) -> int:
        """How many problems it has."""
        return BATCH.get(self.kind, 6)

    @classmethod
    def parse(cls, name: str) -> Group:
        """The reverse of :attr:`name`."""
        kind, dtype, number = (*name.split("/"), "", "")[:3]
        if kind not in KINDS or dtype not in DTYPES or not number.isdecimal():
            raise SystemExit(f"--again takes KIND/DTYPE/NUMBER as the lists of refuted claims have it, got {name!r}")
        return cls(kind, dtype, int(number))

    def checks(self, seed: int) -> Iterable[Check]:
        """Make the problems and check every claim."""
        rng = np.random.default_rng([seed, zlib.crc32(f"{self.kind}/{self.dtype}".encode()), self.number])
        torch.manual_seed(int(rng.integers(2**31)))
        return KINDS[self.kind](rng, DTYPES[self.dtype])


def plan(problems: int, kinds: Iterable[str] = tuple(KINDS), dtypes: Iterable[str] = tuple(DTYPES)) -> list[Group]:
    """So many groups of every kind and precision that there are about ``problems`` problems in all.

    Rare kinds, which take long, are left out of short campaigns; others have at least one group.
    """
    kinds, dtypes = list(kinds), list(dtypes)
    total = sum(SHARES.get(kind, 1.0) for kind in kinds) * len(dtypes)
    groups = []
    for kind in kinds:
        share = SHARES.get(kind, 1.0)
        count = round(problems * share / total / BATCH.get(kind, 6))
        groups += [Group(kind, d, i) for d in dtypes for i in range(count if share < 0.1 else max(count, 1))]
    return groups


@dataclass
class Tally:
    """What became of the checks of one kind in one precision.

    unknown: checks whose reference cannot say; least, typical: the smallest and the median claimed / true of distances,
    residuals, intervals and omega; proved: claims of that grade.
    """

    problems: int = 0
    checks: int = 0
    refuted: int = 0
    failed: int = 0
    unknown: int = 0
    proved: int = 0
    seconds: float = 0.0
    ratios: list[float] = field(default_factory=list)

    def add(self, check: Check) -> None:
        """Count one check."""
        self.checks += 1
        self.refuted += check.refuted
        self.unknown += check.margin == math.inf
        self.proved += check.grade == "proved"
        if check.counts and check.margin < math.inf and check.what not in ("converged", "rounding"):
            self.ratios.append(1 + check.margin)

    def __add__(self, other: Tally) -> Tally:
        return Tally(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def row(self, kind: str, dtype: str) -> dict[str, Any]:
        """A line of the table."""
        numbers = {name: value for name, value in vars(self).items() if name not in ("ratios", "seconds")}
        least = min(self.ratios, default=math.inf)
        typical = statistics.median(self.ratios) if self.ratios else math.inf
        seconds = round(self.seconds, 1)
        return {"kind": kind, "dtype": dtype} | numbers | {"least": least, "typical": typical, "seconds": seconds}


def campaign(
    groups: Sequence[Group], seed: int, verbose: bool = False
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All checks of the groups: the rows of the table, and the refuted claims and failures, one dictionary each."""
    tallies: dict[tuple[str, str], Tally] = {}
    refuted: list[dict[str, Any]] = []
    for group in groups:
        tally = tallies.setdefault((group.kind, group.dtype), Tally())
        begin, before = time.perf_counter(), tally.checks
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                for check in group.checks(seed):
                    tally.add(check)
                    if verbose or check.refuted:
                        print(("REFUTED  " if check.refuted else "") + _line(group, check), flush=True)
                    if check.refuted:
                        refuted.append({"group": group.name, **asdict(check)})
        except Exception as error:  # a problem that cannot be solved is a finding, too
            tally.failed += 1
            where = traceback.extract_tb(error.__traceback__)[-1]
            note = f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"
            check = Check("failed", 0.0, 0.0, 0.0, note)
            print("FAILED  " + _line(group, check), flush=True)
            refuted.append({"group": group.name, **asdict(check)})
        if tally.checks > before:  # the others were refused: not strongly convex
            tally.problems += group.size
        tally.seconds += time.perf_counter() - begin
    rows = [tally.row(*name) for name, tally in tallies.items()]
    return [*rows, sum(tallies.values(), Tally()).row("all", "")], refuted


def _line(group: Group, check: Check) -> str:
    numbers = f"claimed {check.claimed:.6g}  true {check.true:.6g}  own {check.own:.3g}  margin {check.margin:.3g}"
    return f"{group.name}  {check.what}  {numbers}  {check.grade}  {check.note}"


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
    rows, refuted = campaign(groups, args.seed, verbose=bool(args.again))
    print_table(f"Certificates against references in extended precision, seed {args.seed}", rows)
    if not args.again:
        write_csv(args.output / "certificates.csv", rows)
        if refuted:
            write_csv(args.output / "certificates_refuted.csv", refuted)
    return 1 if refuted else 0


if __name__ == "__main__":
    sys.exit(main())

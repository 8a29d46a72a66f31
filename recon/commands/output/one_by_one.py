"""Work on many files, each on its own: what was made stays, whatever becomes of the others."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Generic, TypeVar

from recon.commands.errors import printable, sentence

Job = TypeVar("Job")
Result = TypeVar("Result")

# What data can bring about, and the next file may be free of: values, overflow, memory, torch. Files that cannot be
# written (OSError) and packages that are missing end everything.
_OF_ONE_FILE = (ValueError, ArithmeticError, MemoryError, RuntimeError)


@dataclass(frozen=True)
class Failure:
    """A file without a result, and why."""

    data: str
    reason: str


@dataclass
class Outcome(Generic[Result]):
    """What became of the files so far; ``pending`` are those that were not reached."""

    pending: list[str]
    results: list[Result] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def entries(self) -> dict[str, object]:
        """``failures`` and ``pending`` as reports say them."""
        return {"failures": [asdict(f) for f in self.failures], "pending": self.pending}

    def print_failures(self, name: str) -> None:
        """One line for every failure, on standard error."""
        if self.failures:
            total = len(self.results) + len(self.failures) + len(self.pending)
            print(f"{name}: {len(self.failures)} of {total} failed:", file=sys.stderr)
        for failure in self.failures:
            print(f"  {printable(failure.reason)}", file=sys.stderr)


def one_by_one(
    jobs: Mapping[str, Job], work: Callable[[Job], Result], report: Callable[[Outcome[Result]], None]
) -> Outcome[Result]:
    """Call ``work`` for every job; ``report`` writes what there is after each.

    The error of a job becomes a failure, unless it is the only job: then it is raised, as nothing else can be lost.

    Parameters
    ----------
    jobs
        by the name of their data, which reasons of failures begin with.
    work
        makes and writes one result.
    report
        of all that was done so far.

    Raises
    ------
    OSError
        a result or the report cannot be written.
    ValueError
        the report holds values that are not finite.
    """
    outcome: Outcome[Result] = Outcome(list(jobs))
    for data, job in jobs.items():
        try:
            result = work(job)
        except _OF_ONE_FILE as error:
            if len(jobs) == 1:
                raise
            reason = sentence(error)
            outcome.failures.append(Failure(data, reason if data in reason else f"{data}: {reason}"))
        else:
            outcome.results.append(result)
        outcome.pending.remove(data)
        report(outcome)
    return outcome

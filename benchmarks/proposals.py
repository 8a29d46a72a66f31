"""Certified proposals against the mini-batches that they are made of, and against MAID: held-out PSNR by evaluations.

Fields of Experts, noise level 0.1, minus PSNR of training patches; the held-out PSNR is that of 64 patches of
scikit-image's pictures. Evaluations are per patch of the training set, checks included; those of
the held-out patches are not counted. The certified loss is that of the whole training set.

    python -m benchmarks.proposals --data FOLDER_OF_PICTURES                 # 24 filters 5x5, 192 patches of 48x48
    python -m benchmarks.proposals --data FOLDER --problem large             # 48 filters 7x7, 400 patches of 96x96
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from benchmarks.common import arguments, print_table, start, write_csv
from datasets import DenoisingDataModule, PatchPictures
from models import FieldsOfExperts, InitialFilters
from recon.bilevel import (
    MAID,
    Accuracy,
    BilevelObjective,
    CertifiedProposals,
    Checks,
    InexactAdam,
    NegativePSNR,
    Record,
    UpperLevelMethod,
)

Made = Callable[[Iterable[Tensor]], UpperLevelMethod[Any]]


def methods(batch: int) -> dict[str, Made]:
    """By name."""
    options: dict[str, Any] = {"batch_size": batch, "lr": 0.02, "lr_decay": 0.4}
    scheduled = partial(InexactAdam, **options, solution_accuracy=0.2, adjoint_accuracy=0.05, accuracy_decay=0.2)
    by_noise = partial(InexactAdam, **options, noise_share=0.25)
    last = Checks(average=0.0)
    return {
        "Adam, schedule": scheduled,
        "Adam, noise": by_noise,
        "proposals, last point": partial(CertifiedProposals, proposer=scheduled, checks=last),
        "proposals, averages": partial(CertifiedProposals, proposer=scheduled),
        "proposals, averages, noise": partial(CertifiedProposals, proposer=by_noise),
        "proposals, early checks": partial(CertifiedProposals, proposer=by_noise, checks=Checks(cost=1.0)),
        "MAID": MAID,
    }


@dataclass(frozen=True)
class Problem:
    """Training and held-out patches, true and noisy."""

    train: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]
    filters: int
    side: int

    def run(self, make: Made, budget: float) -> list[tuple[Record, float, float, float]]:
        """Records with the held-out PSNR, the CPU seconds so far, and the share of the checks."""
        regularizer = FieldsOfExperts(
            self.filters,
            self.side,
            potential="smoothed_l1",
            unit_norm=True,
            initial_filters=InitialFilters("multiscale"),
            log_weight=-5.4,
            log_width=-4.0,
        )
        objective = BilevelObjective(regularizer, *self.train, loss=NegativePSNR(), chunk_size=32)
        other = BilevelObjective(regularizer, *self.held_out, loss=NegativePSNR())
        method, found, seconds = make(objective.params), [], 0.0
        while objective.evaluations < budget:
            begin = time.process_time()
            record = method.step(objective=objective)
            seconds += time.process_time() - begin
            held_out = -other.evaluate(Accuracy(0.02, 0.02), None, goal_oriented=False).value
            checking = method.progress.get("checking", 0.0) / objective.evaluations
            found.append((record, held_out, seconds, checking))
            if record.finished:
                break
        return found


def patches(path: str, count: int, size: int) -> tuple[Tensor, Tensor]:
    """True and noisy patches of these pictures, float32."""
    pictures = PatchPictures(patch_size=size, n_patches=count)
    return DenoisingDataModule(train=path, pictures=pictures, dtype="float32").train_tensors()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--budget", type=float, default=600.0, help="evaluations per patch (default: 600)")
    parser.add_argument("--problem", choices=("small", "large"), default="small")
    names = list(methods(4))
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="methods (default: all)")
    args = parser.parse_args()
    start(args)
    count, size, filters, side = (400, 96, 48, 7) if args.problem == "large" else (192, 48, 24, 5)
    held_out, budget = 64, args.budget
    if args.quick:
        count, size, held_out, budget = 8, 24, 4, min(budget, 60.0)
    problem = Problem(patches(args.data, count, size), patches("builtin", held_out, size), filters, side)
    rows: list[dict[str, Any]] = []
    for name in args.only:
        lines = [
            {
                "method": name,
                "evaluations": record.evaluations,
                "held-out PSNR": held_out,
                "lower": record.lower,
                "upper": record.upper,
                "progress": record.progress.value,
                "guarantee": record.guarantee,
                "in checks": checking,
                "CPU seconds": seconds,
            }
            for record, held_out, seconds, checking in problem.run(methods(4)[name], budget)
        ]
        print_table(name, [{k: v for k, v in line.items() if k != "method"} for line in lines])
        rows += lines
    if "MAID" in args.only:
        print_table("to the last certified loss of MAID", to_loss_of("MAID", rows))
    write_csv(args.output / "proposals.csv", rows)


def to_loss_of(name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Evaluations of all methods until their certified loss is at most the last one of this, and its own over them.

    Methods that do not come so far have none.
    """
    loss = [row["upper"] for row in rows if row["method"] == name][-1]
    found: dict[str, float | None] = {row["method"]: None for row in rows}
    for row in rows:
        if row["upper"] <= loss and found[row["method"]] is None:
            found[row["method"]] = row["evaluations"]
    own = found[name]
    assert own is not None
    return [
        {"method": method, "loss": loss, "evaluations": value, "ratio": None if value is None else own / value}
        for method, value in found.items()
    ]


if __name__ == "__main__":
    main()

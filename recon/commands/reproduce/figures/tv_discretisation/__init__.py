"""Learned discretisations of the total variation: standard TV, fixed numbers of iterations, and MAID.

``run`` writes results.csv (methods), training.csv (their iterations), sensitivity.csv, the models, and example.npz;
``plot`` draws reconstructions.png, filters.png, training.png and sensitivity.png from these.

``quick`` shows that everything runs and how little the initial accuracy matters. Its few patches, of textures, say
nothing of which method is better: the held-out pictures are of another kind, and standard TV gets its weight from them.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

from recon.commands.output.runs import finite
from recon.commands.output.summary import write_summary
from recon.commands.output.tables import claim
from recon.commands.reproduce.figures.tv_discretisation.learning import (
    REGULARIZATION,
    SCALES,
    load,
    results_of,
    sensitivity,
    train,
)
from recon.commands.reproduce.figures.tv_discretisation.pictures import plot


def run(scale: str, output: Path) -> None:
    """Learn, write what the figures show into ``output``, and draw them. Goes on where it was interrupted.

    Raises
    ------
    ValueError
        another scale, no data, or a folder with the results of other settings.
    OSError
        files cannot be written.
    """
    if scale not in SCALES:
        raise ValueError(f"scale is {scale!r}, but must be one of {', '.join(SCALES)}")
    begin, data = time.perf_counter(), load(scale)
    claim(output, {"figure": "tv-discretisation", "scale": scale, **asdict(SCALES[scale]), **REGULARIZATION})
    train(SCALES[scale], data, output)
    sensitivity(SCALES[scale], data, output)
    plot(output)
    means = {
        row["method"]: finite({"psnr": row["psnr"], "evaluations": row["evaluations"]}) for row in results_of(output)
    }
    numbers = {"figure": "tv-discretisation", "scale": scale, "methods": means}
    write_summary(output, "reproduce tv-discretisation", time.perf_counter() - begin, "finished", numbers)

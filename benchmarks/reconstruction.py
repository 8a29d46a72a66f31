"""CT and MRI on the test pictures of a configuration: plain methods, total variation at its best, trained models.

    python -m benchmarks.reconstruction --config configs/ct/foe.yaml --train FOLDER --models RUN/regularizer.safetensors

Mean PSNR and SSIM (data range 1, magnitudes for MRI). Filter and frequency scaling of filtered back-projection, and
weight and smoothing of total variation, are the best on these very pictures, which is in their favour. mu is that of
the configuration.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

from rich.progress import track
from torch import Tensor

from benchmarks.common import arguments, print_table, start, write_csv
from datasets import SimulatedDataModule
from models import TotalVariation
from models.files.storage import load_regularizer
from recon.commands.configuration.data import data_section, make_data
from recon.commands.configuration.yaml_files import read_yaml
from recon.lower_level import LBFGS, Energy, Regularizer, Solution, first_guess
from recon.metrics import psnr, ssim
from recon.operators import FilteredBackProjection, RayTransform
from recon.operators.tomography.fbp import FILTERS

Pairs = list[tuple[Tensor, Tensor]]
SCALINGS = (1.0, 0.8, 0.7, 0.6, 0.5, 0.4)
WEIGHT_STEP = 0.5
GAIN = 0.003  # dB: the search ends where there is less to gain


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__)
    parser.add_argument("--config", type=Path, required=True, help="of recon fit; its data are used")
    parser.add_argument("--train", help="folder of pictures, instead of that of the configuration")
    parser.add_argument("--test", help="likewise")
    parser.add_argument("--models", nargs="*", type=Path, default=[])
    parser.add_argument("--accuracy", type=float, default=4e-3, help="certified error per root of the number of pixels")
    parser.add_argument("--log-weight", type=float, help="of total variation, where the search starts")
    args = parser.parse_args()
    start(args)
    module, mu = configured(args)
    module.setup("test")
    samples: Any = module.test_dataloader().dataset
    count = 1 if args.quick else len(samples)
    data = [(samples[i].x[None], samples[i].y[None]) for i in range(count)]
    operator: Any = module.operator
    rows = [plain(operator, data)]

    def reconstruct(regularizer: Regularizer, y: Tensor) -> Solution:
        energy = Energy(y, regularizer.to(y.dtype), operator, mu=mu)
        accuracy = args.accuracy * math.sqrt(y.new_empty(operator.domain_shape).numel())
        return LBFGS()(energy, first_guess(operator, y), accuracy)

    guess = args.log_weight if args.log_weight is not None else (0.5 if isinstance(operator, RayTransform) else -6.0)
    rows.append(best_total_variation(operator, data, reconstruct, guess, args.quick))
    for path in args.models:
        rows.append(measure(path.parent.name, operator, load_regularizer(path)[0], data, reconstruct))
    print_table(f"{len(data)} pictures of {args.config}", rows)
    write_csv(args.output / f"reconstruction_{args.config.parent.name}.csv", rows)


def configured(args: argparse.Namespace) -> tuple[SimulatedDataModule, float]:
    """The data module of the configuration, and its mu.

    Raises ``ValueError`` for classes that cannot stand where the configuration has them; nothing is made then.
    """
    config = read_yaml(args.config)
    section = data_section(config, args.config.parent)
    for key, value in {"train": args.train, "test": args.test}.items():
        if value is not None:
            section["init_args"][key] = value
    return make_data(section), float(config["model"]["init_args"].get("mu", 0.0))


def quality(operator: Any, results: list[Tensor], data: Pairs) -> tuple[float, float]:
    """Mean PSNR and SSIM of what people look at."""
    shown = [(operator.display(result), operator.display(x)) for result, (x, _) in zip(results, data, strict=True)]
    means = [sum(float(metric(*pair)) for pair in shown) / len(shown) for metric in (psnr, ssim)]
    return means[0], means[1]


def plain(operator: Any, data: Pairs) -> dict[str, Any]:
    """The best filtered back-projection, or zero filling."""
    if isinstance(operator, RayTransform):
        found = []
        for filter, scaling in product(FILTERS, SCALINGS):
            fbp = FilteredBackProjection(operator, filter, scaling)
            found.append((*quality(operator, [fbp(y) for _, y in data], data), f"FBP, {filter}, {scaling}"))
        value, similarity, name = max(found)
    else:
        value, similarity = quality(operator, [operator.adjoint(y) for _, y in data], data)
        name = "zero-filled"
    return {"method": name, "PSNR": value, "SSIM": similarity, "evaluations": 0.0, "error": math.inf}


def measure(
    name: str, operator: Any, regularizer: Regularizer, data: Pairs, reconstruct: Callable[..., Solution]
) -> dict[str, Any]:
    """Means over the pictures; the largest certified error per root of the number of pixels."""
    solutions = [reconstruct(regularizer, y) for _, y in track(data, description=name, transient=True)]
    value, similarity = quality(operator, [s.x for s in solutions], data)
    evaluations = sum(float(s.evaluations) for s in solutions) / len(data)
    error = max(float(s.error) / math.sqrt(s.x.numel()) for s in solutions)
    return {"method": name, "PSNR": value, "SSIM": similarity, "evaluations": evaluations, "error": error}


def best_total_variation(
    operator: Any, data: Pairs, reconstruct: Callable[..., Solution], log_weight: float, quick: bool
) -> dict[str, Any]:
    """Weight (to ``WEIGHT_STEP`` / 4) and smoothing that are best for these pictures, found one after the other."""
    tried: dict[tuple[float, float], dict[str, Any]] = {}

    def value(point: tuple[float, float]) -> float:
        if point not in tried:
            regularizer = TotalVariation(*point).requires_grad_(False)
            name = f"TV, log weight {point[0]:g}, log smoothing {point[1]:g}"
            tried[point] = measure(name, operator, regularizer, data, reconstruct)
            print(f"{name}: {tried[point]['PSNR']:.2f} dB", flush=True)
        return float(tried[point]["PSNR"])

    best, step = (log_weight, -7.0), WEIGHT_STEP
    while step >= WEIGHT_STEP / 4 and not quick:
        near = [best] + [(best[0] + d * step, best[1] + e) for d, e in ((1, 0), (-1, 0), (0, 1), (0, -1))]
        found = max(near, key=value)
        better = value(found) > value(best) + GAIN
        step, best = (step, found) if better else (step / 2, best)
    value(best)
    return tried[best]


if __name__ == "__main__":
    main()

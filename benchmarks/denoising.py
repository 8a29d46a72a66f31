"""Mean PSNR of trained regularizers on a folder of pictures of any sizes, against total variation at its best weight.

    python -m benchmarks.denoising --data BSD68 --models crr wcrr --sigma 0.098
    python -m benchmarks.denoising --colour --models wcrr wcrr_colour --sigma 0.098

With ``--colour``, pictures keep their colours, and PSNR is over all channels (CPSNR); models of one channel and total
variation denoise channel by channel.
Models for many noise levels are taken at that of the data. Noise as in the data modules (standard deviation 0.1, fixed
by seed), no clipping, data range 1. The weight of total variation is the best on these very pictures, which is in its
favour. Below the table: what the estimate of the noise from the pictures alone is of its true level.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from rich.progress import track
from scipy.optimize import minimize_scalar
from torch import Tensor

from benchmarks.common import arguments, print_table, start, write_csv
from datasets import BuiltinImages, ColourFolder, ImageFolder, ImageSource, MeasurementDataset
from models import TotalVariation
from models.files import shipped
from models.files.storage import load_model, load_regularizer
from recon.lower_level import Regularizer
from recon.metrics import psnr, ssim
from recon.reconstruction import Data, Request, Variational
from recon.reconstruction.noise import image_noise

Pairs = list[tuple[Tensor, Tensor]]


def pairs(path: str, sigma: float, limit: int | None, colour: bool = False) -> Pairs:
    """True and noisy pictures, ``(1, channels, height, width)`` each."""
    if path == "builtin":
        source: ImageSource = BuiltinImages("test", 256, colour=colour)
    else:
        source = ColourFolder(path) if colour else ImageFolder(path)
    samples = MeasurementDataset(source, sigma, 0, dtype=torch.float32)
    count = len(samples) if limit is None else min(limit, len(samples))
    return [(samples[i].x[None], samples[i].y[None]) for i in range(count)]


def denoise(regularizer: Regularizer, y: Tensor, accuracy: float) -> tuple[Tensor, float, float]:
    """The minimizer, its certified error, and the evaluations it took."""
    solution = Variational(regularizer).reconstruct(Data(y=y), Request(accuracy)).solution
    return solution.x, float(solution.error), float(solution.evaluations)


def measure(name: str, regularizer: Regularizer, data: Pairs, accuracy: float) -> dict[str, float | str]:
    """Means over the pictures; the largest certified error, per root of the number of values."""
    values = []
    for x, y in track(data, description=name):
        result, error, evaluations = denoise(regularizer, y, accuracy * x[0].numel() ** 0.5)
        values.append((float(psnr(result, x)), float(ssim(result, x)), evaluations, error / x[0].numel() ** 0.5))
    columns = list(zip(*values, strict=True))
    means = [sum(c) / len(c) for c in columns[:3]]
    return {"method": name, "PSNR": means[0], "SSIM": means[1], "evaluations": means[2], "error": max(columns[3])}


def best_total_variation(data: Pairs, sigma: float, accuracy: float) -> tuple[float, TotalVariation]:
    """The best logarithm of the weight for ten of the pictures, to about 0.01, and total variation with it."""
    some = data[:: max(1, len(data) // 10)]

    def loss(log_weight: float) -> float:
        regularizer = TotalVariation(log_weight, -5.7)
        results = [(denoise(regularizer, y, accuracy * x[0].numel() ** 0.5)[0], x) for x, y in some]
        return -sum(float(psnr(*pair)) for pair in results) / len(some)

    middle = math.log(sigma)
    best = float(minimize_scalar(loss, bounds=(middle - 2, middle + 2), method="bounded", options={"xatol": 0.01}).x)
    return best, TotalVariation(best, -5.7)


def denoisers(colour: bool) -> list[str]:
    """The models of the library that denoise pictures, gray ones or those in colour."""
    pictures = [name for name in shipped.names() if str(load_model(name)[1].get("operator")).endswith(".Identity")]
    return [name for name in pictures if load_regularizer(name)[0].in_channels in ((1, 3) if colour else (1,))]


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__)
    parser.add_argument("--models", nargs="*", help="names or files (default: all of the library for pictures)")
    parser.add_argument("--sigma", type=float, default=0.1, help="standard deviation of the noise")
    parser.add_argument("--accuracy", type=float, default=1e-3, help="certified error per root of the number of values")
    parser.add_argument("--colour", action="store_true", help="pictures in colour")
    args = parser.parse_args()
    start(args)
    names = denoisers(args.colour) if args.models is None else args.models
    models = {Path(name).stem: load_regularizer(name)[0].float().at(args.sigma) for name in names}
    data = pairs(args.data, args.sigma, 2 if args.quick else None, args.colour)
    noisy = {"method": "noisy", "evaluations": 0.0, "error": float("inf")}
    noisy |= {n: sum(float(m(y, x)) for x, y in data) / len(data) for n, m in (("PSNR", psnr), ("SSIM", ssim))}
    weight, total_variation = best_total_variation(data, args.sigma, args.accuracy)
    rows = [measure(f"TV, log weight {weight:.2f}", total_variation, data, args.accuracy)]
    rows += [measure(name, regularizer, data, args.accuracy) for name, regularizer in models.items()]
    rows.insert(0, {key: noisy[key] for key in rows[0]})
    print_table(f"{len(data)} pictures, noise {args.sigma}", rows)
    ratios = sorted(image_noise(y) / args.sigma for _, y in data)
    print(f"estimated noise: {ratios[len(ratios) // 2]:.3f} times the true one (median)")
    write_csv(args.output / "denoising.csv", rows)


if __name__ == "__main__":
    main()

"""Beside other programs: one process each, in turns, CPU seconds, minimum and spread of 5, one page.

    python -m benchmarks.peers                                     # one thread
    python -m benchmarks.peers --threads 0                         # all
    python -m benchmarks.peers --only denoising start-up --deepinv /path/to/its/python
    python -m benchmarks.peers --page docs/performance.md
    python -m benchmarks.peers --only ridge --ridge MODEL_FOLDER   # of CRR-NN or WCRR-NN: their solvers and ours

Iterative programs stop at the iteration that comes as near to a common reference, relative to its norm, as 1e-2 or
1e-3; finding that iteration costs them nothing. Those with a certificate have to find out themselves. Ratios are to
the first line: above 1, the other one is slower. Programs that are not installed, or do not get there, say so; finding
the number of iterations may take them 60 CPU seconds.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from skimage import data

from benchmarks.common import machine, write_csv
from benchmarks.peers import filters, ridge, sizes, startup, tomography
from benchmarks.peers.turns import Array, Competitor, Timing, in_turns
from recon.files import write_files
from recon.lower_level import TotalVariationProblem, TotalVariationSolver

DENOISING, FILTERS, RIDGE, TOMOGRAPHY = (
    f"benchmarks.peers.{name}" for name in ("denoising", "filters", "ridge", "tomography")
)


@dataclass(frozen=True)
class Result:
    """A table: what was measured, and the timings by name; the first is what the ratios are to."""

    title: str
    timings: Mapping[str, Timing]

    def rows(self) -> list[dict[str, object]]:
        base = next(iter(self.timings.values())).minimum
        return [
            {
                "what": self.title,
                "program": name,
                "ms": round(1e3 * t.minimum, 2),
                "to": round(1e3 * max(t.seconds, default=float("nan")), 2),
                "ratio": round(t.minimum / base, 3),
                "distance": float(f"{t.distance:.2g}"),
                "note": t.missing,
            }
            for name, t in self.timings.items()
        ]


@dataclass(frozen=True)
class Settings:
    """What the command line decides."""

    quick: bool
    repeats: int
    threads: int
    deepinv: str | None
    pictures: list[str]
    views: list[int]
    folder: Path
    kept: Path
    ridge: Path | None = None
    lmbd: float | None = None

    def run(self, title: str, problem: Mapping[str, object], goal: float, competitors: list[Competitor]) -> Result:
        """One table."""
        path = self.folder / "problem.npz"
        np.savez(path, **{name: np.asarray(value) for name, value in problem.items()})
        return Result(title, in_turns(competitors, path, goal, self.repeats, self.threads))


def noisy(size: int, images: int = 1) -> Array:
    """Pictures of scikit-image with noise of 0.1, float32, ``(images, size, size)`` or one alone."""
    names = (data.camera, data.moon, data.page, data.coins)
    pictures = []
    for k in range(images):
        picture = names[k % len(names)]().astype(np.float64) / 255
        repeats = [-(-size // n) for n in picture.shape]
        tiled = np.block([[picture[:, ::-1] if j % 2 else picture for j in range(repeats[1])]] * repeats[0])
        step = max(1, min(n // size for n in picture.shape))
        pictures.append(tiled[::step, ::step][:size, :size] if step > 1 else tiled[:size, :size])
    y = np.stack(pictures)
    y = (y + 0.1 * np.random.default_rng(0).standard_normal(y.shape)).astype(np.float32)
    return y if images > 1 else y[0]


def minimizer(y: Array, alpha: float) -> Array:
    """The exact one in float64, certified to 1e-4 of its norm; FGP and scikit-image come as near to it as is asked."""
    images = torch.from_numpy(y).double().reshape(-1, 1, *y.shape[-2:])
    accuracy = 1e-4 * 0.9 * images.flatten(1).norm(dim=1)
    solution = TotalVariationSolver()(TotalVariationProblem(images, alpha), accuracy)
    return solution.x.numpy().reshape(y.shape)


def denoising_results(settings: Settings) -> Iterator[Result]:
    alpha = 0.1
    for kind in ["1x64"] if settings.quick else settings.pictures:
        images, size = map(int, kind.split("x"))
        y = noisy(size, images)
        problem = {"y": y, "alpha": alpha, "reference": minimizer(y, alpha)}
        for goal in (1e-2, 1e-3):
            names = {"recon": "recon", "FGP in NumPy": "fgp", "scikit-image": "skimage", "ODL, pdhg": "odl_pdhg"}
            competitors = [Competitor(name, DENOISING, setup) for name, setup in names.items()]
            if settings.deepinv:
                competitors.append(Competitor("deepinv", DENOISING, "deepinv", settings.deepinv))
            title = f"TV denoising, {images} x {size}², to {goal:g}"
            yield settings.run(title, problem, goal, competitors)


def filter_results(settings: Settings) -> Iterator[Result]:
    x = noisy(64 if settings.quick else 256)
    for size in (7, 5):
        kernels = np.random.default_rng(1).standard_normal((48, size, size)).astype(np.float32) / size
        kernels -= kernels.mean((1, 2), keepdims=True)
        names = {"recon": "recon", "its two matrix products alone": "two_products"}
        names |= {"conv2d pair": "conv2d_pair", "torch.compile": "compiled_pair"}
        competitors = [Competitor(name, FILTERS, setup) for name, setup in names.items()]
        problem = {"x": x, "kernels": kernels, "reference": filters.reference(x, kernels)}
        yield settings.run(f"Fields of Experts, 48 filters {size}x{size}, gradient", problem, 0.0, competitors)


def ridge_results(settings: Settings) -> Iterator[Result]:
    """Nothing where no checkpoint is given: none comes with the library."""
    if settings.ridge is None:
        return
    size = 64 if settings.quick else 256
    solved = ridge.problem(settings.ridge, 0.1, settings.lmbd, noisy(size))
    for goal in (1e-2, 1e-3):
        names = {"recon, certified": "recon", "recon, without stopping": "recon_counted"}
        names |= {"accelerated, restarted": "accelerated", "adaptive gradient descent": "adaptive"}
        competitors = [Competitor(name, RIDGE, setup) for name, setup in names.items()]
        yield settings.run(f"{settings.ridge.resolve().name}, {size}², to {goal:g}", solved, goal, competitors)


def tomography_results(settings: Settings) -> Iterator[Result]:
    size, alpha = (48 if settings.quick else 256), 1.0
    truth = tomography.phantom(size)
    for views in [20] if settings.quick else settings.views:
        matrix = tomography.sparse_matrix(size, views, "float64")
        y = matrix @ truth.ravel()
        y += 0.02 * np.abs(y).mean() * np.random.default_rng(0).standard_normal(y.shape)
        problem = {"y": y.astype(np.float32), "alpha": alpha, "size": size, "views": views}
        found, moved, gap = tomography.reference(y, alpha, size, views, settings.kept)
        print(
            f"reference of {views} views: 1000 iterations moved it by {moved:.1e}; relative gap {gap:.1e}", flush=True
        )
        solved = problem | {"reference": found}
        for goal in (1e-2, 1e-3):
            names = {"recon": "recon", "ODL, pdhg": "odl_pdhg", "Chambolle-Pock, SciPy": "chambolle_pock"}
            names |= {"ASTRA, 100 of SIRT (context)": "astra_sirt"}
            competitors = [Competitor(name, TOMOGRAPHY, setup) for name, setup in names.items()]
            yield settings.run(f"CT, TV, {size}², {views} views, to {goal:g}", solved, goal, competitors)
        names = {"recon": "recon_fbp", "ASTRA": "astra_fbp", "scikit-image": "skimage_fbp"}
        competitors = [Competitor(name, TOMOGRAPHY, setup) for name, setup in names.items()]
        yield settings.run(f"FBP, {size}², {views} views", problem, 0.0, competitors)


def startup_results(settings: Settings) -> Iterator[Result]:
    from skimage.io import imsave

    picture = settings.folder / "picture.png"
    imsave(picture, (255 * noisy(64 if settings.quick else 256).clip(0, 1)).astype(np.uint8))
    yield Result("start-up", startup.timings(picture, settings.repeats))


def size_results(settings: Settings) -> Iterator[Result]:
    for title, timings in sizes.tables(noisy, settings.quick, settings.repeats, settings.threads):
        yield Result(title, timings)


GROUPS = {
    "denoising": denoising_results,
    "filters": filter_results,
    "ridge": ridge_results,
    "tomography": tomography_results,
    "start-up": startup_results,
    "sizes": size_results,
}


def page(results: list[Result]) -> str:
    """The tables as Markdown, with the machine."""
    lines = [
        "# Performance",
        "",
        f"Written by `{shlex.join(['python', '-m', 'benchmarks.peers', *sys.argv[1:]])}`: other programs, one process",
        "each, in turns, CPU milliseconds, minimum and maximum of the runs. How each is called is in",
        "`benchmarks/peers`.",
        "",
        (__doc__ or "").strip().rpartition("\n\n")[2],
        "",
    ]
    lines += [", ".join(f"{name}: {value}" for name, value in machine().items()), ""]
    for result in results:
        lines += [
            f"## {result.title}",
            "",
            "| program | ms | slowest of the runs | ratio | distance | |",
            "|---|---|---|---|---|---|",
        ]
        for row in result.rows():
            cells = (row[name] for name in ("program", "ms", "to", "ratio", "distance", "note"))
            lines.append("| " + " | ".join("" if str(cell) == "nan" else str(cell) for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--quick", action="store_true", help="small sizes: whether it works, not how fast it is")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of every program; 0: all (default: 1)")
    parser.add_argument("--deepinv", help="a Python that has deepinv, where this one does not")
    pictures = ["1x256", "16x256", "1x1024"]
    parser.add_argument("--pictures", nargs="+", default=pictures, help=f"to denoise (default: {' '.join(pictures)})")
    parser.add_argument("--views", nargs="+", type=int, default=[60, 180], help="of CT (default: 60 180)")
    parser.add_argument(
        "--ridge", type=Path, help="a model folder or checkpoint of CRR-NN or WCRR-NN, for noise of 0.1"
    )
    parser.add_argument("--lmbd", type=float, help="its regularization parameter (default: that of the file)")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks"), help="a folder for peers.csv")
    parser.add_argument("--page", type=Path, help="write the tables as Markdown")
    args = parser.parse_args()
    if args.only == ["ridge"] and args.ridge is None:
        parser.error("ridge needs --ridge, the path of a checkpoint")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        threads = args.threads or os.cpu_count() or 1
        settings = Settings(
            args.quick,
            args.repeats,
            threads,
            args.deepinv,
            args.pictures,
            args.views,
            Path(folder),
            args.output,
            args.ridge,
            args.lmbd,
        )
        for group in args.only:
            for result in GROUPS[group](settings):
                results.append(result)
                print(page([result]).split("\n## ", 1)[1], flush=True)
    write_csv(args.output / "peers.csv", [row for result in results for row in result.rows()])
    if args.page:
        write_files({args.page: page(results).encode()})


if __name__ == "__main__":
    main()

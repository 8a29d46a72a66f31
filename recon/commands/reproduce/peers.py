"""``recon reproduce peers``: models of other authors and those that come with the library, on the same noise.

Every model denoises every picture, x^ = argmin 1/2 ||x - y||^2 + R(x) + mu/2 ||x||^2, by one solver, in double
precision, with pictures mirrored at their boundary. What is certified is the distance to the minimizer of this energy,
for the boundary of :mod:`models.foreign`; where the proved modulus of strong convexity is not positive, nothing is, and
the solver stops at a small gradient.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.progress import track
from torch import Tensor

from datasets.noise import derive_seed, gaussian_noise
from datasets.sources.images import ImageFolder
from models.files import shipped
from models.files.storage import load_model
from models.foreign import Foreign, load_foreign
from recon.commands.errors import printable
from recon.commands.output.lock import locked
from recon.commands.reconstruct.regularized import metadata_mu
from recon.commands.reproduce.peers_results import Measured, Result, print_table, write
from recon.errors import at_least, positive
from recon.lower_level import LBFGS, Energy, Regularizer
from recon.metrics import psnr
from recon.reconstruction import Data, Request, Variational
from recon.reconstruction.boundary import mirrored
from recon.reconstruction.weight import best_weight

#: the certified distance, or the gradient, relative to the norm of the data
ACCURACY = 1e-3
#: in place of a number: what the file says
OF_FILE = "file"


@dataclass(frozen=True)
class Candidate:
    """A model with its name in tables, its kind, and its regularization parameters in words."""

    name: str
    kind: str
    regularizer: Regularizer
    mu: float
    parameters: str


def main(argv: Sequence[str] | None = None) -> int:
    """Compare; returns 0, or 1 if a model did not reach the accuracy on some picture.

    Raises
    ------
    ValueError
        a checkpoint or a picture cannot be used, or a number is out of range.
    OSError
        a file is missing, or the output cannot be written.
    """
    args = _parser().parse_args(argv)
    positive(sigma=args.sigma, accuracy=args.accuracy)
    at_least(0, seed=args.seed)
    at_least(1, limit=args.limit)
    candidates = [*_shipped(args.models, args.sigma), *_foreign(args)]
    if not candidates:
        raise ValueError("there is nothing to compare: give --checkpoint, or --models")
    images = ImageFolder(args.pictures, crop_size=args.crop).subset(0, args.limit)
    began = time.perf_counter()
    with locked(args.output):
        pictures, data = _data(images, args.sigma, args.seed)
        jobs = [(candidate, i) for candidate in candidates for i in range(len(pictures))]
        found: dict[str, list[Measured]] = {candidate.name: [] for candidate in candidates}
        for candidate, i in track(jobs, "models on pictures", transient=True):
            name = Path(images.names[i]).name
            found[candidate.name].append(measure(candidate, name, pictures[i], data[i], args.accuracy))
        results = [Result(c.name, c.kind, c.parameters, found[c.name]) for c in candidates]
        settings = {"sigma": args.sigma, "seed": args.seed, "accuracy": args.accuracy, "pictures": len(pictures)}
        noisy = sum(float(psnr(y, x)) for x, y in zip(pictures, data, strict=True)) / len(data)
        settings["psnr_noisy"] = round(noisy, 4)
        write(results, (pictures[0], data[0]), settings, time.perf_counter() - began, args.output)
    print_table(results, settings)
    print(f"tables and the picture are in {args.output}")
    return 0 if all(m.reached for r in results for m in r.measured) else 1


def measure(candidate: Candidate, picture: str, x: Tensor, y: Tensor, accuracy: float) -> Measured:
    """One model on one picture, to ``accuracy`` times ||y||."""
    regularizer, goal = candidate.regularizer, accuracy * float(y.norm())
    modulus = Energy(mirrored(y, regularizer.margin), regularizer, mu=candidate.mu).strong_convexity
    method = Variational(regularizer, candidate.mu, LBFGS(certified=modulus > 0))
    began = time.perf_counter()
    solution = method.reconstruct(Data(y=y), Request(accuracy=goal)).solution
    seconds = time.perf_counter() - began
    return Measured(
        picture,
        float(psnr(solution.x, x)),
        float(solution.error[0]) if modulus > 0 else None,
        int(solution.grade[0]),
        modulus,
        int(solution.evaluations[0]),
        seconds,
        solution.converged,
        solution.x[0, 0],
    )


def _data(images: ImageFolder, sigma: float, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Pictures (1, 1, H, W), and the same with noise."""
    pictures = [images[i].double()[None] for i in range(len(images))]
    return pictures, [x + gaussian_noise(x.shape[1:], sigma, seed, i)[None] for i, x in enumerate(pictures)]


def _shipped(names: Sequence[str] | None, sigma: float) -> list[Candidate]:
    """Models that come with the library: these, or all that denoise pictures; those for many noise levels at sigma."""
    found = []
    for name in shipped.names() if names is None else names:
        model, metadata = load_model(name)
        denoises = isinstance(model, Regularizer) and str(metadata.get("operator")).endswith(".Identity")
        if names is not None and not denoises:
            raise ValueError(f"{name}: is no regularizer for pictures; `recon models` lists what there is")
        if isinstance(model, Regularizer) and denoises:
            model = model.double().requires_grad_(False)
            known = model.typical_noise is not None
            trained = f"for σ = {sigma:.4g}" if known else f"as trained, σ = {metadata.get('sigma', 0.0):.4g}"
            try:
                own = model.at(sigma)
            except ValueError as error:
                raise ValueError(f"{name}: {error}; leave it out by --models with the names of others") from error
            found.append(Candidate(name, type(model).__name__, own, metadata_mu(metadata, name), trained))
    return found


def _foreign(args: argparse.Namespace) -> list[Candidate]:
    """The models of ``--checkpoint``, with names that differ."""
    paths: list[Path] = args.checkpoint
    strengths, scalings = (_numbers(getattr(args, name), f"--{name}", len(paths)) for name in ("lmbd", "mu"))
    names = [path.resolve().name for path in paths]
    found = []
    for path, name, lmbd, mu in zip(paths, names, strengths, scalings, strict=True):
        if lmbd is None and args.tune is not None:
            model = _tuned(path, mu, args)
        else:
            model = load_foreign(path, args.sigma, lmbd, mu)
        shown = name if names.count(name) == 1 and name not in shipped.names() else str(path)
        found.append(Candidate(shown, model.kind, model.regularizer, 0.0, model.parameters))
    if len({c.name for c in found}) < len(found):
        raise ValueError(f"--checkpoint has a path twice: {', '.join(map(str, paths))}")
    return found


def _tuned(path: Path, mu: float | None, args: argparse.Namespace) -> Foreign:
    """With the lmbd of the largest mean PSNR on the pictures of ``--tune``, which have noise of another seed."""
    if args.tune.resolve() == args.pictures.resolve():
        raise ValueError(f"--tune and --pictures are both {args.tune}, but the choice must not see the tested pictures")
    images = ImageFolder(args.tune, crop_size=args.crop).subset(0, args.limit)
    samples = list(zip(*_data(images, args.sigma, derive_seed(args.seed, 1)), strict=True))

    def quality(lmbd: float) -> float:
        model = load_foreign(path, args.sigma, lmbd, mu)
        tried = Candidate(str(path), model.kind, model.regularizer, 0.0, model.parameters)
        return fmean(measure(tried, "", x, y, args.accuracy).psnr for x, y in samples)

    with Console(stderr=True).status(printable(f"{path}: choosing lmbd")):
        lmbd, _ = best_weight(quality, 1.0)
    model = load_foreign(path, args.sigma, lmbd, mu)
    return replace(model, parameters=f"{model.parameters}; λ by the PSNR on other pictures ({len(samples)})")


def _numbers(words: Sequence[str] | None, option: str, count: int) -> list[float | None]:
    """One number for every checkpoint; ``None`` where the file decides."""
    if words is None:
        return [None] * count
    if len(words) != count:
        raise ValueError(f"{option} has {len(words)} values, but needs one for each of the {count} checkpoints")
    try:
        return [None if word == OF_FILE else float(word) for word in words]
    except ValueError:
        raise ValueError(f"{option} is {' '.join(words)!r}, but needs positive numbers, or {OF_FILE}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="recon reproduce peers",
        description="Denoise pictures with models of other authors and those of the library, on the same noise.",
    )
    add = parser.add_argument
    add("--checkpoint", nargs="+", type=Path, default=[], help="folders of CRR-NN, WCRR-NN or PyLOpt, or checkpoints")
    add("--pictures", type=Path, required=True, help="a folder of pictures, or one picture")
    add("--sigma", type=float, required=True, help="standard deviation of the noise, for gray values in [0, 1]")
    add("--models", nargs="*", help="of `recon models`, or files (default: all that denoise pictures)")
    add("--lmbd", nargs="+", help=f"regularization parameter of each checkpoint, or {OF_FILE} (default)")
    add("--tune", type=Path, help="other pictures, on which each lmbd that is not given is chosen by the PSNR")
    add("--mu", nargs="+", help=f"scaling of each CRR-NN, or {OF_FILE} (default)")
    add("--accuracy", type=float, default=ACCURACY, help=f"relative to the norm of the data (default: {ACCURACY:g})")
    add("--crop", type=int, help="side of a square that is cut out of the centre of each picture")
    add("--limit", type=int, help="take the first pictures only")
    add("--seed", type=int, default=0, help="of the noise (default: 0)")
    add("--output", type=Path, required=True, help="folder of tables and picture")
    return parser

"""Gradient and Hessian-vector product of regularizers with filters and networks: implementations of one formula.

First, on one thread of the CPU, in CPU time: matmul, the two matrix products of filters and patches that the work
cannot do without (patches ready in the cache, no profiles); torch, the code without compiled kernels; kernels. Input
convex networks, as shipped, the same without matmul. Then denoising by shipped models, by the same solver to the same
accuracy.

Then Fields of Experts, 48 filters 7x7. own: models.FieldsOfExperts as it is installed. plain: conv2d, pointwise
functions, conv_transpose2d on whole images. autograd: what the interface does by default, i.e. one backward pass for
the gradient, double backward for the Hessian.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import arguments, denoising_data, interleaved, print_table, start, write_csv
from datasets import ImageFolder, gaussian_noise, random_patches
from models import ConvexRidge, FieldsOfExperts
from models.files.shipped import locate
from models.files.storage import load_regularizer
from models.regularizers.kernels import describe
from models.regularizers.ridge import RidgeRegularizer
from recon.lower_level import Regularizer
from recon.reconstruction import Data, Request, Variational

#: ratios that the project promises on a CPU: (setting, task, alternative) -> least factor
TARGETS = {
    ("4x256²", "gradient", "plain"): 4.0,
    ("4x256²", "Hessian product", "plain"): 4.0,
    ("4x256²", "Hessian product", "autograd"): 4.0,
    ("64x64²", "gradient", "plain"): 2.0,
    ("64x64²", "Hessian product", "plain"): 2.0,
}


# --- the compiled kernels, the code in torch, and matrix products, on one thread -------------------------------------

#: most that the kernels may take of the time of the matrix products, and of that of torch in denoising
GOALS = {"FoE 48x7x7": 2.0, "FoE 48x5x5": 2.5, "foe_bsd": 1 / 2, "crr_bsd": 1 / 4, "icnn_bsd": 1 / 2}
TURNS = 5


def cpu_times(calls: Mapping[str, tuple[str, Callable[[], object]]], turns: int = TURNS) -> dict[str, list[float]]:
    """Milliseconds of CPU time of (RECON_KERNELS, function), in turns; the first turn warms up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    before = os.environ.get("RECON_KERNELS", "best")
    for turn in range(turns + 1):
        for name, (switch, call) in calls.items():
            os.environ["RECON_KERNELS"] = switch
            begin = time.process_time()
            call()
            if turn:
                times[name].append(1e3 * (time.process_time() - begin))
    os.environ["RECON_KERNELS"] = before
    return times


def columns(times: dict[str, list[float]]) -> dict[str, Any]:
    """Minima, and in brackets by how much of it the slowest turn was slower."""
    return {f"{name} [ms]": f"{min(t):.2f} (+{max(t) / min(t) - 1:.0%})" for name, t in times.items()}


def products(reg: RidgeRegularizer, positions: int, like: Tensor) -> Callable[[], None]:
    """Analysis and synthesis by matrix products, block by block of as many patches as stay in the cache."""
    analysis = reg.current()[0].flatten(1).to(like)
    synthesis, block = analysis.t().contiguous(), min(4096, positions)
    patches, filtered = torch.randn(analysis.shape[1], block).to(like), torch.randn(len(analysis), block).to(like)

    def run() -> None:
        for _ in range(-(-positions // block)):
            torch.matmul(analysis, patches), torch.matmul(synthesis, filtered)

    return run


def measure_kernels(quick: bool) -> list[dict[str, Any]]:
    """A row for every size, bank and task."""
    banks: dict[str, RidgeRegularizer] = {
        "FoE 48x7x7": FieldsOfExperts(48, 7),
        "FoE 48x5x5": small_experts(),
        "spline ridge 48x7x7": ConvexRidge(48, 7),
    }
    rows = []
    for batch, size in ((1, 64),) if quick else ((1, 256), (8, 128)):
        x, v = (gaussian_noise((batch, 1, size, size), 0.3, seed=i, index=0, dtype=torch.float32) for i in (0, 1))
        base: dict[str, float] = {}
        for bank, reg in banks.items():
            for task, times in time_bank(reg, x, v).items():
                own = min(times["kernels"])
                base.setdefault(task, own)
                row: dict[str, Any] = {"bank": bank, "images": f"{batch}x{size}²", "task": task} | columns(times)
                row |= {"torch/kernels": min(times["torch"]) / own, "kernels/matmul": own / min(times["matmul"])}
                rows.append(row | {"goal": GOALS.get(bank, ""), "kernels/FoE's": own / base[task]})
    return rows


def small_experts() -> FieldsOfExperts:
    """48 filters of 5x5 pixels, of which there are only 24 cosines: the middles of those of 7x7."""
    reg = FieldsOfExperts(48, 7)
    reg.weight, reg.kernel_size, reg.margin = nn.Parameter(reg.weight.detach()[:, 1:6, 1:6].clone()), (5, 5), 4
    return reg


def time_bank(reg: RidgeRegularizer, x: Tensor, v: Tensor) -> dict[str, dict[str, list[float]]]:
    """For every task the times of matrix products, the code in torch, and the kernels."""
    hessians = {}
    for switch in ("off", "best"):
        os.environ["RECON_KERNELS"] = switch
        hessians[switch] = reg.hessian(x)
    matrices = products(reg, len(x) * (x.shape[2] + 1 - reg.kernel_size[0]) * (x.shape[3] + 1 - reg.kernel_size[1]), x)
    tasks: dict[str, dict[str, Callable[[], object]]] = {
        "value and gradient": {switch: (lambda: reg.value_and_grad(x)) for switch in hessians},
        "Hessian product": {switch: partial(hessian, v) for switch, hessian in hessians.items()},
    }
    return {
        task: cpu_times({"matmul": ("off", matrices), "torch": ("off", c["off"]), "kernels": ("best", c["best"])})
        for task, c in tasks.items()
    }


def measure_network(quick: bool) -> list[dict[str, Any]]:
    """A row for every size, precision and task of the network that is shipped."""
    rows = []
    for dtype in (torch.float32, torch.float64):
        reg = load_regularizer(locate("icnn_bsd"))[0].to(dtype)
        for batch, size in ((1, 64),) if quick else ((1, 64), (1, 256), (8, 128)):
            x, v = (gaussian_noise((batch, 1, size, size), 0.3, seed=i, index=0, dtype=dtype) for i in (0, 1))
            hessians = {}
            for switch in ("off", "best"):
                os.environ["RECON_KERNELS"] = switch
                hessians[switch] = reg.hessian(x)
            calls: dict[str, dict[str, Callable[[], object]]] = {
                "value and gradient": dict.fromkeys(hessians, partial(reg.value_and_grad, x)),
                "linearization": dict.fromkeys(hessians, partial(reg.hessian, x)),
                "Hessian product": {switch: partial(hessian, v) for switch, hessian in hessians.items()},
                "derivative in parameters": dict.fromkeys(hessians, partial(reg.parameter_vjp, x, v)),
            }
            for task, c in calls.items():
                times = cpu_times({"torch": ("off", c["off"]), "kernels": ("best", c["best"])})
                row: dict[str, Any] = {"images": f"{batch}x{size}²", "type": str(dtype), "task": task}
                row |= columns(times)
                rows.append(row | {"torch/kernels": min(times["torch"]) / min(times["kernels"])})
    os.environ["RECON_KERNELS"] = "best"
    return rows


def measure_denoising(data: str, quick: bool) -> list[dict[str, Any]]:
    """A row for every shipped model: the first picture, to a certified error of 1e-3 per root of the pixels."""
    size = 64 if quick else 256
    y, request = denoising_data(data, torch.float32, limit=1, size=size)[1], Request(1e-3 * size)
    rows = []
    for name in ("foe_bsd", "crr_bsd", "wcrr_bsd", "foe_weakly_convex_bsd", "icnn_bsd"):
        method, found = Variational(load_regularizer(locate(name))[0].float()), {}

        def solve(method: Variational, found: dict[str, Any]) -> None:
            found[os.environ["RECON_KERNELS"]] = method.reconstruct(Data(y=y), request).solution

        call = partial(solve, method, found)
        times = cpu_times({"torch": ("off", call), "kernels": ("best", call)})
        row: dict[str, Any] = {"model": name} | columns(times)
        row |= {"kernels/torch": min(times["kernels"]) / min(times["torch"]), "goal": GOALS.get(name, "")}
        row |= {f"evaluations, {m}": float(found[s].evaluations) for m, s in (("torch", "off"), ("kernels", "best"))}
        distance, allowed = float((found["off"].x - found["best"].x).norm()), 2e-3 * size
        if distance > allowed:
            raise AssertionError(f"{name}: solutions are {distance:.1e} apart, but certified to half of {allowed:.1e}")
        rows.append(row | {"distance/accuracy": 2 * distance / allowed})
    return rows


# --- other implementations, on all threads and on a GPU --------------------------------------------------------------


def plain_gradient(reg: FieldsOfExperts, x: Tensor) -> Tensor:
    kernels, weight, width = reg.current()
    u = F.conv2d(x, kernels[:, None])
    weight, width = weight[:, :, None], width[:, :, None]
    return F.conv_transpose2d(weight * u / torch.sqrt(u * u + width * width), kernels[:, None])


def plain_value_and_gradient(reg: FieldsOfExperts, x: Tensor) -> tuple[Tensor, Tensor]:
    kernels, weight, width = reg.current()
    u = F.conv2d(x, kernels[:, None])
    weight, width = weight[:, :, None], width[:, :, None]
    root = torch.sqrt(u * u + width * width)
    value = (weight * (root - width)).flatten(1).sum(1, dtype=torch.float64)
    return value, F.conv_transpose2d(weight * u / root, kernels[:, None])


def plain_hessian(reg: FieldsOfExperts, x: Tensor) -> Callable[[Tensor], Tensor]:
    kernels, weight, width = reg.current()
    u = F.conv2d(x, kernels[:, None])
    weight, width = weight[:, :, None], width[:, :, None]
    curvature = weight * width**2 / (u * u + width * width) ** 1.5
    return lambda v: F.conv_transpose2d(curvature * F.conv2d(v, kernels[:, None]), kernels[:, None])


def tasks(reg: FieldsOfExperts, x: Tensor, v: Tensor) -> dict[str, dict[str, Callable[[], Any]]]:
    """For every task its implementations; the first is the project's."""
    own, plain, double = reg.hessian(x), plain_hessian(reg, x), Regularizer.hessian(reg, x)
    return {
        # the project's gradient computes the value too, which solvers need at every point
        "gradient": {
            "own": lambda: reg.grad(x),
            "plain": lambda: plain_gradient(reg, x),
        },
        "value and gradient": {
            "own": lambda: reg.value_and_grad(x)[1],
            "plain": lambda: plain_value_and_gradient(reg, x)[1],
            "autograd": lambda: Regularizer.value_and_grad(reg, x)[1],
        },
        "Hessian product": {
            "own": lambda: own(v),
            "plain": lambda: plain(v),
            "autograd": lambda: double(v),
        },
        "linearization": {
            "own": lambda: reg.hessian(x),
            "plain": lambda: plain_hessian(reg, x),
        },
        "derivative in parameters": {
            "own": lambda: torch.cat([g.flatten() for g in reg.parameter_vjp(x, v)]),
            "autograd": lambda: torch.cat([g.flatten() for g in Regularizer.parameter_vjp(reg, x, v)]),
        },
    }


def disagreement(calls: dict[str, Callable[[], Any]]) -> float:
    """Largest relative distance of the others to the first, where they return tensors."""
    results = [call() for call in calls.values()]
    if not isinstance(results[0], Tensor):
        return 0.0
    return max(float((r - results[0]).norm() / results[0].norm()) for r in results[1:])


def measure(setting: str, x: Tensor, repeats: int) -> list[dict[str, Any]]:
    """One row per task: times of all implementations and their ratios to the project's own one."""
    reg = FieldsOfExperts().to(x)
    v = gaussian_noise(x.shape, 1.0, seed=1, index=0, dtype=x.dtype).to(x.device)
    rows = []
    for task, calls in tasks(reg, x, v).items():
        difference = disagreement(calls)
        if difference > 1e-4:
            raise AssertionError(f"{setting}, {task}: the implementations differ by {difference:.1e}")
        times = interleaved(calls, repeats, x.is_cuda)
        row: dict[str, Any] = {"setting": setting, "device": x.device.type, "task": task}
        for name in ("own", "plain", "autograd"):
            row[f"{name} [ms]"] = 1e3 * times[name].minimum if name in times else ""
            row[f"{name}, median [ms]"] = 1e3 * times[name].median if name in times else ""
        for name in ("plain", "autograd"):
            row[f"{name}/own"] = times[name].minimum / times["own"].minimum if name in times else ""
            row[f"{name}/own, medians"] = times[name].median / times["own"].median if name in times else ""
            target = None if x.is_cuda else TARGETS.get((setting, task, name))
            row[f"target {name}"] = target or ""
        rows.append(row | {"difference": difference})
    return rows


def settings(data: str, quick: bool) -> dict[str, Tensor]:
    """Noisy images: few large ones, many patches."""
    if quick:
        large = denoising_data(data, torch.float32, limit=2, size=64)[1]
        return {"2x64²": large, "8x32²": large.unfold(2, 32, 32).unfold(3, 32, 32).reshape(-1, 1, 32, 32)}
    large = denoising_data(data, torch.float32, limit=4, size=256)[1]
    if Path(data).is_dir():
        patches = random_patches(ImageFolder(data), 64, 64, seed=0).float()
        patches += torch.stack([gaussian_noise(p.shape, 0.1, 0, i, p.dtype) for i, p in enumerate(patches)])
    else:
        patches = large.unfold(2, 64, 64).unfold(3, 64, 64).reshape(-1, 1, 64, 64)
    return {"4x256²": large, "64x64²": patches}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    start(args)
    repeats = 5 if args.quick else args.repeats
    print(f"kernels: {describe()}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    banks, networks = measure_kernels(args.quick), measure_network(args.quick)
    models = measure_denoising(args.data, args.quick)
    torch.set_num_threads(threads)
    print_table(f"One thread, float32, CPU time: least of {TURNS} turns (and how much slower the slowest was)", banks)
    print_table("Input convex network, 16 filters 5x5 and 16x16 filters 5x5, likewise", networks)
    print_table("Denoising by shipped models, one thread, CPU time", models)
    write_csv(args.output / "filter_bank_kernels.csv", banks)
    write_csv(args.output / "filter_bank_networks.csv", networks)
    write_csv(args.output / "filter_bank_denoising.csv", models)
    rows = []
    for setting, x in settings(args.data, args.quick).items():
        for device in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
            part = measure(setting, x.to(device), repeats)
            shown = [
                {k: v for k, v in row.items() if "median" not in k and k not in ("setting", "device")} for row in part
            ]
            print_table(f"FoE 48x7x7, {setting}, float32, {device}: least time, and ratio to the project's own", shown)
            rows += part
    write_csv(args.output / "filter_bank.csv", rows)


if __name__ == "__main__":
    main()

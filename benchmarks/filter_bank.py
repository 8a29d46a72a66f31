"""Gradient and Hessian-vector product of Fields of Experts, 48 filters 7x7: three implementations of one formula.

blocked: models.FieldsOfExperts. plain: conv2d, pointwise functions, conv_transpose2d on whole images. autograd: what
the interface does by default, i.e. one backward pass for the gradient, double backward for the Hessian.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import arguments, denoising_data, interleaved, print_table, start, write_csv
from datasets import ImageFolder, gaussian_noise, random_patches
from models import FieldsOfExperts
from recon.lower_level import Regularizer

#: ratios that the project promises on a CPU: (setting, task, alternative) -> least factor
TARGETS = {
    ("4x256²", "gradient", "plain"): 4.0,
    ("4x256²", "Hessian product", "plain"): 4.0,
    ("4x256²", "Hessian product", "autograd"): 4.0,
    ("64x64²", "gradient", "plain"): 2.0,
    ("64x64²", "Hessian product", "plain"): 2.0,
}


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
    blocked, plain, double = reg.hessian(x), plain_hessian(reg, x), Regularizer.hessian(reg, x)
    return {
        # the project's gradient computes the value too, which solvers need at every point
        "gradient": {
            "blocked": lambda: reg.grad(x),
            "plain": lambda: plain_gradient(reg, x),
        },
        "value and gradient": {
            "blocked": lambda: reg.value_and_grad(x)[1],
            "plain": lambda: plain_value_and_gradient(reg, x)[1],
            "autograd": lambda: Regularizer.value_and_grad(reg, x)[1],
        },
        "Hessian product": {
            "blocked": lambda: blocked(v),
            "plain": lambda: plain(v),
            "autograd": lambda: double(v),
        },
        "linearization": {
            "blocked": lambda: reg.hessian(x),
            "plain": lambda: plain_hessian(reg, x),
        },
        "derivative in parameters": {
            "blocked": lambda: torch.cat([g.flatten() for g in reg.parameter_vjp(x, v)]),
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
    """One row per task: times of all implementations and their ratios to the blocked one."""
    reg = FieldsOfExperts().to(x)
    v = gaussian_noise(x.shape, 1.0, seed=1, index=0, dtype=x.dtype).to(x.device)
    rows = []
    for task, calls in tasks(reg, x, v).items():
        difference = disagreement(calls)
        if difference > 1e-4:
            raise AssertionError(f"{setting}, {task}: the implementations differ by {difference:.1e}")
        times = interleaved(calls, repeats, x.is_cuda)
        row: dict[str, Any] = {"setting": setting, "device": x.device.type, "task": task}
        for name in ("blocked", "plain", "autograd"):
            row[f"{name} [ms]"] = 1e3 * times[name].minimum if name in times else ""
            row[f"{name}, median [ms]"] = 1e3 * times[name].median if name in times else ""
        for name in ("plain", "autograd"):
            row[f"{name}/blocked"] = times[name].minimum / times["blocked"].minimum if name in times else ""
            row[f"{name}/blocked, medians"] = times[name].median / times["blocked"].median if name in times else ""
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
    rows = []
    for setting, x in settings(args.data, args.quick).items():
        for device in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
            part = measure(setting, x.to(device), repeats)
            shown = [
                {k: v for k, v in row.items() if "median" not in k and k not in ("setting", "device")} for row in part
            ]
            print_table(
                f"FoE 48x7x7, {setting}, float32, {device}: least time, and ratio to the blocked version", shown
            )
            rows += part
    write_csv(args.output / "filter_bank.csv", rows)


if __name__ == "__main__":
    main()

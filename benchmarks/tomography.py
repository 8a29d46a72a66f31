"""The ray transform: time against ODL's own torch module, and memory for the geometry of LoDoPaB-CT.

* Time: forward projection and gradient (adjoint) of a batch of 8 images, 256x256, 180 views, float32, parallel and fan
  beam; ``RayTransform`` against ``odl.contrib.torch.OperatorModule`` around ``odl``'s ``RayTransform`` (astra_cpu), and
  against ``astra_cuda`` where there is a GPU. Stops if the results differ.
* Memory: 362x362 pixels, 1000 views, 513 detector pixels, in a process of its own: seconds to build, to load from the
  cache and to apply, and the peak of the whole process.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import arguments, interleaved, print_table, start, write_csv
from benchmarks.memory import resident
from recon.operators import FanBeam, Geometry, ParallelBeam, RayTransform

LODOPAB = {"size": 362, "views": 1000, "detectors": 513}
QUICK = {"size": 64, "views": 60, "detectors": 91}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--measure", help="internal: the memory of one process, as JSON")
    args = parser.parse_args()
    start(args)
    if args.measure:
        print(json.dumps(lodopab(json.loads(args.measure))))
        return
    rows = [row for kind in ("parallel", "fan") for row in times(kind, args.quick)]
    print_table("forward + adjoint, batch of 8, float32", rows)
    write_csv(args.output / "tomography_time.csv", rows)
    memory = [in_process(QUICK if args.quick else LODOPAB, args.threads)]
    print_table("memory and seconds of one large geometry, one process", memory)
    write_csv(args.output / "tomography_memory.csv", memory)


def scan(kind: str, size: int, views: int) -> Geometry:
    if kind == "parallel":
        return ParallelBeam.equispaced((size, size), 1.0, views)
    return FanBeam.equispaced((size, size), 1.0, views, source_distance=3.0 * size, detector_distance=1.5 * size)


def times(kind: str, quick: bool) -> list[dict[str, Any]]:
    from odl.applications.tomo.operators.ray_trafo import RayTransform as ODLRayTransform
    from odl.contrib.torch import OperatorModule

    size, views = (48, 30) if quick else (256, 180)
    geometry = scan(kind, size, views)
    x = torch.rand(8, 1, size, size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.rand(8, *geometry.range_shape, generator=torch.Generator().manual_seed(1))
    ours = RayTransform(geometry)
    module = OperatorModule(ODLRayTransform(*geometry.to_odl(), impl="astra_cpu"))

    def both(operator: Any, device: str = "cpu") -> tuple[Tensor, Tensor]:
        y = operator(x.to(device))
        (gradient,) = torch.autograd.grad(y, x, grad_outputs=weight.to(device))
        return y.detach(), gradient

    (y, gradient), (y_odl, gradient_odl) = both(ours), both(module)
    # ODL's gradient belongs to weighted inner products: compare directions.
    scale = (gradient * gradient_odl).sum() / gradient_odl.square().sum()
    for name, a, b in (("projections", y, y_odl), ("gradients", gradient, scale * gradient_odl)):
        if float((a - b).norm()) > 1e-5 * float(b.norm()):
            sys.exit(f"{kind}: {name} differ from ODL's by {float((a - b).norm() / b.norm()):.1e}")
    calls = {"OperatorModule": lambda: both(module), "matrix": lambda: both(ours)}
    if torch.cuda.is_available():
        cuda = RayTransform(geometry, "astra_cuda")
        calls |= {"matrix, cuda": lambda: both(ours, "cuda"), "astra_cuda": lambda: both(cuda, "cuda")}
    timings = interleaved(calls, repeats=3 if quick else 5, cuda=torch.cuda.is_available())
    base = timings["OperatorModule"].minimum
    return [
        {
            "beam": kind,
            "size": size,
            "views": views,
            "detectors": geometry.detector_pixels,
            "operator": name,
            "ms per image": 1e3 * timing.minimum / len(x),
            "median": 1e3 * timing.median / len(x),
            "OperatorModule / this": base / timing.minimum,
        }
        for name, timing in timings.items()
    ]


def lodopab(setting: dict[str, int]) -> dict[str, Any]:
    """Build, load and apply in this process; the cache is a fresh folder."""
    size, views, detectors = setting["size"], setting["views"], setting["detectors"]
    pixel = 260.0 / size  # mm, as in LoDoPaB-CT; the detector is as wide as the diagonal
    spacing = 260.0 * 2**0.5 / detectors
    geometry = ParallelBeam.equispaced((size, size), pixel, views, detector_pixels=detectors, detector_spacing=spacing)
    begin, before = time.perf_counter(), resident()[0]
    operator = RayTransform(geometry)
    built, peak_building = time.perf_counter() - begin, resident()[1]
    del operator
    begin = time.perf_counter()
    operator = RayTransform(geometry)
    loaded = time.perf_counter() - begin
    x = torch.rand(8, 1, size, size)
    adjoint_error = operator.mismatch  # float64 doubles the values: measured last
    operator.adjoint(operator(x))
    begin = time.perf_counter()
    operator.adjoint(operator(x))
    seconds = time.perf_counter() - begin
    peak_single = resident()[1]
    v = torch.ones(1, 1, size, size)
    for _ in range(20):
        v = operator.adjoint(operator(v))
        v /= v.norm()
    gain = float(operator(v).norm())
    row = {
        "geometry": f"{size}^2, {views} x {detectors}",
        "million entries": len(operator.projector_matrix.matrix.stored.values) / 1e6,
        "build [s]": built,
        "load [s]": loaded,
        "forward + adjoint, per image [ms]": 1e3 * seconds / len(x),
        "before [MiB]": before,
        "peak building [MiB]": peak_building,
        "peak float32 [MiB]": peak_single,
        "||A|| <=": operator.norm_bound,
        "||A|| >=": gain,
        "adjoint mismatch, float64": adjoint_error(),
    }
    return row | {"peak float64 [MiB]": resident()[1]}


def in_process(setting: dict[str, int], threads: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.tomography", "--measure", json.dumps(setting)]
        command += ["--threads", str(threads)]
        environment = os.environ | {"RECON_CACHE": folder, "MALLOC_MMAP_THRESHOLD_": "65536"}
        result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    row: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return row


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*astra_cpu.*")
        main()

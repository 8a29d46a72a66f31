"""The ray transform: time against ODL's own torch module, and memory for the geometry of LoDoPaB-CT.

* Time: forward projection and gradient (adjoint) of a batch of 8 images, 256x256, 180 views, float32, parallel and fan
  beam; ``RayTransform`` against ``odl.contrib.torch.OperatorModule`` around ``odl``'s ``RayTransform`` (astra_cpu), and
  against ``astra_cuda`` where there is a GPU. Stops if the results differ.
* Memory: 362x362 pixels, 1000 views, 513 detector pixels, in a process of its own: seconds to build, to load from the
  cache and to apply, and the peak of the whole process.
* Bandwidth, of the same geometry: what products with batches move, the stored part of the matrix as often as it is read
  and the vectors once, per CPU second of one thread, against the triad a = b + 3 c of the same run (24 bytes for each
  number, as STREAM counts), with the compiled kernel and with torch. "whole" is as if all of the matrix had been read
  for every image.
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
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import arguments, interleaved, print_table, start, write_csv
from benchmarks.memory import resident
from recon import native
from recon.operators import FanBeam, Geometry, ParallelBeam, RayTransform
from recon.operators.tomography.matrix import sparse

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
    rows = bandwidth(geometry_of(QUICK if args.quick else LODOPAB), args.quick)
    print_table("products with batches, one thread, float32 vectors", rows)
    write_csv(args.output / "tomography_bandwidth.csv", rows)
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


def geometry_of(setting: dict[str, int]) -> ParallelBeam:
    """As in LoDoPaB-CT: 260 mm, and a detector as wide as the diagonal."""
    size, detectors = setting["size"], setting["detectors"]
    pixel, spacing = 260.0 / size, 260.0 * 2**0.5 / detectors
    views = setting["views"]
    return ParallelBeam.equispaced((size, size), pixel, views, detector_pixels=detectors, detector_spacing=spacing)


def bandwidth(geometry: ParallelBeam, quick: bool) -> list[dict[str, Any]]:
    """GB/s of products with batches, and of the triad."""
    torch.set_num_threads(1)
    operator = RayTransform(geometry)
    matrix = operator.projector_matrix.matrix
    motions = len(matrix.folding.motions)
    whole = 8 * int(np.diff(matrix.stored.indptr)[matrix.folding.slots // motions].sum())
    a, b, c = (torch.ones(10**6 if quick else 2 * 10**7, dtype=torch.float64) for _ in "abc")
    calls: dict[str, Callable[[], object]] = {"triad": lambda: torch.add(b, c, alpha=3.0, out=a)}
    moved = {"triad": (24 * len(a), 0)}
    for batch in (1, 4, 16):
        x = torch.rand(batch, *geometry.domain_shape)
        y = operator(x)
        read = -(-batch * motions // sparse.WIDTHS[0]) * matrix.stored.nbytes + x.nbytes + y.nbytes
        for kernels in ("best", "off"):
            for product, call in (("A x", partial(operator, x)), ("A^T y", partial(operator.adjoint, y))):
                name = f"{product}, {batch}, {'compiled' if kernels == 'best' else 'torch'}"
                calls[name] = partial(_switched, kernels, call)
                moved[name] = (read, whole * batch)
    timings = interleaved(calls, repeats=3, clock=time.process_time)
    triad = moved["triad"][0] / timings["triad"].minimum
    return [
        {
            "product, images": name,
            "ms": 1e3 * timing.minimum,
            "GB/s": moved[name][0] / timing.minimum / 1e9,
            "of triad": moved[name][0] / timing.minimum / triad,
            "whole: GB/s": moved[name][1] / timing.minimum / 1e9,
            "whole: of triad": moved[name][1] / timing.minimum / triad,
        }
        for name, timing in timings.items()
    ]


def _switched(kernels: str, call: Callable[[], object]) -> None:
    os.environ[native.SWITCH] = kernels
    call()


def lodopab(setting: dict[str, int]) -> dict[str, Any]:
    """Build, load and apply in this process; the cache is a fresh folder."""
    size, views, detectors = setting["size"], setting["views"], setting["detectors"]
    geometry = geometry_of(setting)
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

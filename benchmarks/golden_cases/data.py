"""The tensors that data modules serve, from built-in pictures and from small files made here."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.golden_cases.common import Cases, Context, bits, exact
from benchmarks.golden_cases.files import write_all
from datasets import (
    BuiltinImages,
    DenoisingDataModule,
    DicomFolder,
    ImageFolder,
    KSpaceDataModule,
    LoDoPaBDataModule,
    MRIDataModule,
    RandomEllipses,
    SheppLogan,
    SinogramDataModule,
    TomographyDataModule,
    gaussian_noise,
    random_patches,
    read_dicom,
    read_image,
    read_kspace,
    read_sinogram,
)
from recon.operators import Blur, ParallelBeam

#: batches of every loader that are compared
BATCHES = 2


def compute(context: Context) -> dict[str, Any]:
    cases, folder = Cases(), context.work
    write_all(folder)
    for name, make in _modules(folder).items():
        cases.add(name, lambda m=make: _module(m))
    for name, read in _readers(folder).items():
        cases.add(f"read {name}", lambda r=read: r())
    return cases.results


def _modules(folder: Path) -> dict[str, Callable[[], Any]]:
    train, k, scan = str(folder / "pictures"), str(folder / "k.npy"), str(folder / "scan.npz")
    blur = Blur(1.0, (1, 20, 20))
    ct = {"size": 24, "views": 9, "limit": 3, "cache": False}
    full = {"acceleration": 2.0, "calibration": 14, "noise": 0.01}
    return {
        "denoising builtin": lambda: DenoisingDataModule(size=32, limit=3, dtype="float32"),
        "denoising patches": lambda: DenoisingDataModule(limit=4, size=64, patch_size=12, n_patches=7, seed=3),
        "denoising folder": lambda: DenoisingDataModule(train, "rest", train, train, limit=2, size=20, batch_size=1),
        "deblurring": lambda: DenoisingDataModule(train, train, train, None, blur, crop_size=20, sigma=0.02),
        "mri builtin": lambda: MRIDataModule(size=32, limit=2, coils=3, phase=0.5),
        "mri lines": lambda: MRIDataModule(size=32, limit=2, pattern="equispaced", acceleration=3.0, seed=2),
        "mri dicom": lambda: MRIDataModule(str(folder / "mr"), size=24, pattern="radial", dtype="float32"),
        "ct ellipses": lambda: TomographyDataModule(**ct),
        "ct photons": lambda: TomographyDataModule(**ct, photons=2000.0, seed=4, test="builtin"),
        "ct fan": lambda: TomographyDataModule(**ct, source_distance=500.0, detector_distance=300.0, sigma=0.5),
        "ct dicom": lambda: TomographyDataModule(str(folder / "ct"), size=24, views=9, cache=False, dtype="float32"),
        "ct shepp-logan": lambda: TomographyDataModule("shepp_logan", val="ellipses", size=24, views=5, cache=False),
        "sinogram": lambda: SinogramDataModule(scan, size=24, cache=False),
        "sinogram views": lambda: SinogramDataModule(scan, 20, 12.0, view_step=2, cache=False, dtype="float32"),
        "k-space": lambda: KSpaceDataModule(str(folder / "coils.npy")),
        "k-space of one coil": lambda: KSpaceDataModule(k, dtype="float32", scale=2.0),
        "k-space undersampled": lambda: KSpaceDataModule(str(folder / "coils.npy"), **full),
        "k-space of fastMRI": lambda: KSpaceDataModule(str(folder / "fastmri" / "a.h5"), slice_index=1, **full),
        "mri fastMRI": lambda: MRIDataModule(str(folder / "fastmri"), size=24, fractions=(0.4, 0.3, 0.3), sigma=0.0),
        "lodopab": lambda: LoDoPaBDataModule(str(folder / "lodopab"), 2, 3, geometry=_lodopab(), cache=False),
    }


def _lodopab() -> ParallelBeam:
    return ParallelBeam.equispaced((20, 20), 13.0, 12, detector_pixels=29)


def _module(make: Callable[[], Any]) -> dict[str, Any]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        module = make()
        result: dict[str, Any] = {}
        loaders = {"fit": "train", "validate": "val", "test": "test", "predict": "predict"}
        for stage, part in loaders.items():
            result[part] = _stage(module, stage, part)
        if hasattr(module, "operator") and module.operator is not None:
            operator = module.operator
            result["operator"] = [type(operator).__name__, exact(operator.norm_bound), exact(operator.domain_shape)]
        for name in ("description", "noise"):
            if callable(getattr(module, name, None)):
                result[name] = exact(getattr(module, name)())
        if hasattr(module, "fingerprints"):
            result["fingerprints"] = [module.fingerprints("train"), module.fingerprints("test")]
            result["shared"] = len(module.shared_with_test("train"))
    result.get("description", {}).pop("class", None)  # its module is about to change
    return result | {"warnings": sorted({str(w.message) for w in said if w.category is UserWarning})}


def _stage(module: Any, stage: str, part: str) -> Any:
    """The first batches, or why there are none; names of files without folders."""
    try:
        module.setup(stage)
        loader = getattr(module, f"{part}_dataloader")()
        batches = [{n: bits(t) for n, t in batch._asdict().items()} for batch in islice(loader, BATCHES)]
        names = [] if part == "train" else [Path(n).name for n in module.names(part)]
        return {"batches": batches, "names": names[:20], "length": len(loader)}
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _readers(folder: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    def sinogram(name: str, **options: Any) -> dict[str, Any]:
        scan = read_sinogram(folder / name, **options)
        parts = {n: bits(getattr(scan, n)) for n in ("sinogram", "angles", "weights") if getattr(scan, n) is not None}
        return parts | {"metadata": exact(scan.metadata), "warnings": list(scan.warnings)}

    def tensors(*values: torch.Tensor) -> dict[str, Any]:
        return {str(k): bits(v) for k, v in enumerate(values)}

    def slices() -> dict[str, Any]:
        found = read_dicom(folder / "ct" / "0.dcm")
        return tensors(found.image) | {"spacing": exact(found.pixel_size), "patient": found.patient}

    return {
        "sinogram": lambda: sinogram("scan.npz"),
        "sinogram of counts": lambda: sinogram("counts.npz", flat=1000.0, dark=3.0, photons=1000.0),
        "sinogram without rings": lambda: sinogram("scan.npz", ring_filter=5),
        "sinogram of DXchange": lambda: sinogram("scan.h5", detector_spacing=1.0),
        "k-space": lambda: tensors(torch.as_tensor(np.asarray(read_kspace(folder / "k.npy")))),
        "picture": lambda: tensors(read_image(folder / "pictures" / "b.png")),
        "pictures": lambda: tensors(*ImageFolder(folder / "pictures", crop_size=16)),
        "built-in pictures": lambda: tensors(*BuiltinImages("train", size=16), *BuiltinImages("val", size=16)),
        "DICOM": slices,
        "DICOM folder": lambda: tensors(*DicomFolder(folder / "mr", "MR", size=16)),
        "phantoms": lambda: tensors(*RandomEllipses(3, 20, seed=2), *SheppLogan(33)),
        "noise": lambda: tensors(gaussian_noise((3, 4), 0.5, 7, 2, torch.float32)),
        "patches": lambda: tensors(random_patches(BuiltinImages("val", size=40), 9, 5, 11)),
    }

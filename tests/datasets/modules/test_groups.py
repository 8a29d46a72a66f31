"""Arguments that belong together: their checks, and the flat names of older versions."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import jsonargparse
import pytest
import torch

import datasets
from datasets import (
    Batches,
    DenoisingDataModule,
    KSpaceDataModule,
    MRIDataModule,
    PatchPictures,
    PatientPictures,
    Pictures,
    Sampling,
    SimulatedDataModule,
    SimulatedScan,
    SinogramNoise,
    TomographyDataModule,
)

MODULES = [getattr(datasets, name) for name in datasets.__all__ if name.endswith("DataModule")]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_constructors_have_few_arguments(module: type) -> None:
    parameters = list(inspect.signature(module.__init__).parameters.values())[1:]
    assert len([p for p in parameters if p.kind is not p.VAR_KEYWORD]) <= 10


@pytest.mark.parametrize("module", [TomographyDataModule, MRIDataModule])
def test_modules_have_no_arguments_of_denoising(module: type) -> None:
    assert issubclass(module, SimulatedDataModule)
    assert not issubclass(module, DenoisingDataModule)
    assert not {"predict", "operator", "patch_size"} & inspect.signature(module).parameters.keys()


def _equal(a: SimulatedDataModule, b: SimulatedDataModule) -> bool:
    pairs = zip(a.train_tensors(), b.train_tensors(), strict=True)
    return all(torch.equal(s, t) for s, t in pairs) and a.description() == b.description()


@pytest.mark.parametrize(
    ("module", "grouped", "flat"),
    [
        (
            DenoisingDataModule,
            {"pictures": PatchPictures(24, limit=3, patch_size=8, n_patches=5), "batches": Batches(2)},
            {"size": 24, "limit": 3, "patch_size": 8, "n_patches": 5, "batch_size": 2},
        ),
        (
            MRIDataModule,
            {"pictures": PatientPictures(crop_size=16, limit=2), "sampling": Sampling("radial", 3.0, coils=2)},
            {"crop_size": 16, "limit": 2, "pattern": "radial", "acceleration": 3.0, "coils": 2},
        ),
    ],
)
def test_flat_names_mean_the_same_and_are_said_once(
    module: type[SimulatedDataModule], grouped: dict[str, Any], flat: dict[str, Any]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        expected = module(**grouped)
    with pytest.warns(FutureWarning, match=r"size.*: now called pictures\.") as said:
        found = module(**flat)
    assert len(said) == 1
    assert _equal(found, expected)


def test_flat_names_of_tomography_mean_the_same() -> None:
    pytest.importorskip("astra")
    groups: dict[str, Any] = {"scan": SimulatedScan(200.0, 6, cache=False), "noise": SinogramNoise(photons=500.0)}
    expected = TomographyDataModule(pictures=PatientPictures(16, limit=2), **groups)
    with pytest.warns(FutureWarning, match=r"photons.*: now called .*scan\.views.*noise\.photons"):
        found = TomographyDataModule(size=16, limit=2, field_of_view=200.0, views=6, cache=False, photons=500.0)
    assert _equal(found, expected)


def test_flat_names_of_kspace_go_into_their_groups() -> None:
    with pytest.warns(FutureWarning, match=r"undersampling\.acceleration"):
        data = KSpaceDataModule("k.npy", acceleration=2.0, seed=3, kernel=5)
    assert (data.undersampling.acceleration, data.undersampling.seed, data.sensitivities.kernel) == (2.0, 3, 5)


def test_a_flat_name_replaces_the_value_of_its_group() -> None:
    """On the command line, behind a configuration with groups."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DenoisingDataModule, "data")
    options = ["--data.pictures.patch_size=8", "--data.pictures.n_patches=4", "--data.n_patches=6", "--data.limit=1"]
    parsed = parser.parse_args(["--data=DenoisingDataModule", *options])
    with pytest.warns(FutureWarning, match=r"pictures\.n_patches"):
        data = parser.instantiate(parsed).data
    assert data.pictures == PatchPictures(limit=1, patch_size=8, n_patches=6)


def test_names_that_nobody_has_are_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'sizes'"):
        DenoisingDataModule(sizes=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'patch_size'"):
        MRIDataModule(patch_size=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pictures(size=0), "size is 0, but must be at least 1"),
        (lambda: PatientPictures(size=8, crop_size=8), r"size \(8\) and crop_size \(8\) exclude each other"),
        (lambda: PatchPictures(n_patches=3), "n_patches is 3, but patch_size is not set"),
        (lambda: PatchPictures(patch_size=0), "patch_size is 0"),
        (lambda: Batches(eval_batch_size=0), "eval_batch_size is 0"),
        (lambda: Sampling(coils=0), "coils is 0"),
        (lambda: SimulatedScan(arc=400.0), "arc is 400.0 degrees"),
        (lambda: SinogramNoise(sigma=0.1, photons=10.0), "exclude each other"),
    ],
)
def test_values_out_of_range_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()

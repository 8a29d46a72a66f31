"""What a model was trained for: complete, plain, the same on other machines, and different where the data differ."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from datasets import DenoisingDataModule, LoDoPaBDataModule, MRIDataModule, TomographyDataModule
from models.files.setting import describe_operator, describe_setting, setting_difference
from recon.operators import Blur, CartesianMRI, Identity, Mask, ParallelBeam, RayTransform, geometry_from_dict
from recon.operators.mri.sensitivity import simulated_sensitivities

CT: dict[str, Any] = {"size": 16, "views": 5, "cache": False}
MRI: dict[str, Any] = {"size": 16, "coils": 3}


def setting(module: Any) -> dict[str, Any]:
    found = describe_setting(module.operator if module.operator is not None else Identity(), module)
    return json.loads(json.dumps(found, allow_nan=False))


def test_the_same_setting_is_the_same() -> None:
    pytest.importorskip("astra")
    for make, options in ((TomographyDataModule, CT), (MRIDataModule, MRI), (DenoisingDataModule, {"sigma": 0.2})):
        module: Any = make
        # pictures and precision may differ: a model can be applied to them
        assert (
            setting_difference(setting(module(**options)), setting(module(**options, dtype="float32", limit=3))) is None
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"views": 6}, "operator.geometry.angles.views is 5 there, but 6 here"),
        ({"field_of_view": 200.0}, "operator.geometry.detector_spacing is 18.75 there"),
        ({"arc": 90.0}, "operator.geometry.angles.arc is 3.14"),
        ({"relative_sigma": 0.1}, "noise.relative_sigma is 0.05 there, but 0.1 here"),
        ({"sigma": 0.1}, "noise.kind is gaussian, relative to the mean there, but gaussian here"),
        ({"photons": 1000.0}, "noise.kind is gaussian, relative to the mean there, but photons here"),
        ({"source_distance": 500.0, "detector_distance": 300.0}, "operator"),
    ],
)
def test_other_tomography(options: dict[str, Any], words: str) -> None:
    pytest.importorskip("astra")
    a, b = setting(TomographyDataModule(**CT)), setting(TomographyDataModule(**(CT | options)))
    found = setting_difference(a, b)
    assert found is not None
    assert found.startswith(words)
    assert setting_difference(b, a) is not None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": 1}, "the operator has the same class and shapes, but other values"),
        ({"pattern": "equispaced"}, "the operator has the same class and shapes"),
        ({"coils": 4}, "operator.range_shape is [3, 2, 16, 16] there"),
        ({"sigma": 0.02}, "noise.sigma is 0.01 there, but 0.02 here"),
    ],
)
def test_other_mri(options: dict[str, Any], words: str) -> None:
    found = setting_difference(setting(MRIDataModule(**MRI)), setting(MRIDataModule(**(MRI | options))))
    assert found is not None
    assert found.startswith(words)


def test_values_of_operators_are_seen() -> None:
    kernel = torch.rand(3, 3, dtype=torch.float64)
    changed = kernel.clone()
    changed[0, 0] += 0.01
    mask = torch.rand(1, 8, 9) < 0.5
    other = mask.clone()
    other[0, 3, 4] = ~other[0, 3, 4]
    maps, lines = simulated_sensitivities(2, (8, 9)), mask[0]
    pairs = [
        (Blur(kernel, (1, 8, 9)), Blur(changed, (1, 8, 9))),
        (Mask(mask), Mask(other)),
        (CartesianMRI(lines, maps), CartesianMRI(other[0], maps)),
        (CartesianMRI(lines, maps), CartesianMRI(lines, maps.flip(0))),
    ]
    for a, b in pairs:
        first, second = ({"operator": describe_operator(o), "noise": None} for o in (a, b))
        assert setting_difference(first, second) is not None
        assert setting_difference(first, {"operator": describe_operator(a.float()), "noise": None}) is None
    assert describe_operator(Identity())["fingerprint"] is None


def test_the_geometry_can_be_made_again() -> None:
    pytest.importorskip("astra")
    for geometry in (
        ParallelBeam.equispaced((8, 9), 1.5, 7, start=0.2, detector_offset=0.3),
        ParallelBeam((8, 9), 1.0, (0.0, 0.5, 0.7), 12, 1.1),
    ):
        described = json.loads(json.dumps(describe_operator(RayTransform(geometry, cache=False))["geometry"]))
        assert geometry_from_dict(described) == geometry
    assert isinstance(described["angles"], list)


def test_data_are_named_without_paths() -> None:
    module = DenoisingDataModule("/home/someone/photographs", "/home/someone/else", limit=3, sigma=0.1)
    found = setting(module)
    assert found["data"]["train"] == "photographs"
    assert found["data"]["limit"] == 3
    assert "someone" not in json.dumps(found)
    assert describe_setting(Identity())["noise"] is None
    assert "noise" in vars(LoDoPaBDataModule)

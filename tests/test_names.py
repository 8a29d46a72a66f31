"""Names of classes in files: without modules, and those of older versions."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections import defaultdict

import pytest

import datasets
import models
import recon
from models import FieldsOfExperts
from recon.names import PACKAGES, RENAMED, current_name, public_name
from recon.operators import CartesianMRI

CASES = {
    "models.fields_of_experts.FieldsOfExperts": "models.FieldsOfExperts",
    "models.FieldsOfExperts": "models.FieldsOfExperts",
    "recon.operators.tomography.RayTransform": "recon.operators.RayTransform",
    "recon.operators.tomography.ray_transform.RayTransform": "recon.operators.RayTransform",
    "recon.lower_level.data_fidelity.SquaredL2": "recon.lower_level.SquaredL2",
    "models.icnn._Layer": "models._Layer",
    "models.reconstructor.Reconstructor": "recon.reconstruction.Reconstructor",
    "my_package.filters.FieldsOfExperts": "my_package.filters.FieldsOfExperts",
    "torch.nn.modules.conv.Conv2d": "torch.nn.modules.conv.Conv2d",
    "some text": "some text",
}


@pytest.mark.parametrize("name", CASES)
def test_names_of_all_versions(name: str) -> None:
    assert current_name(name) == CASES[name]


def test_objects_and_classes_have_one_name() -> None:
    assert public_name(FieldsOfExperts) == public_name(FieldsOfExperts()) == "models.FieldsOfExperts"
    assert public_name(CartesianMRI) == "recon.operators.CartesianMRI"


def test_no_two_classes_of_a_package_have_one_name() -> None:
    found = defaultdict(set)
    for package in (recon, models, datasets):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name.rpartition(".")[2].startswith("_"):
                continue  # a compiled library, no module
            for cls in vars(importlib.import_module(module.name)).values():
                if inspect.isclass(cls) and f"{cls.__module__}.".startswith(tuple(f"{p}." for p in PACKAGES)):
                    found[public_name(cls)].add(cls)
    assert len(found) > 100
    assert {name: classes for name, classes in found.items() if len(classes) > 1} == {}


def test_renamed_classes_exist() -> None:
    for name in RENAMED.values():
        module, _, attribute = name.rpartition(".")
        assert inspect.isclass(getattr(importlib.import_module(module), attribute))

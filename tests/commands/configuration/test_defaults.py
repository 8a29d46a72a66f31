"""Arguments that a configuration leaves out are those of the class that it names."""

from __future__ import annotations

import inspect

import pytest
import pytorch_lightning as pl
from jsonargparse import ArgumentParser

from models import BilevelModule, SaddleModule
from recon import bilevel

MODELS = {BilevelModule: "models.TotalVariation", SaddleModule: "models.LearnedTV"}


@pytest.mark.parametrize("module", MODELS)
@pytest.mark.parametrize("method", ["PublishedMAID", "HOAG", "FixedAccuracy", "InexactAdam", "InexactSGD"])
def test_a_method_has_defaults_of_its_own(module: type, method: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--model", type=pl.LightningModule)
    options = {
        "regularizer": {"class_path": MODELS[module]},
        "optimizer": {"class_path": f"recon.bilevel.{method}"},
    }
    parsed = parser.parse_object({"model": {"class_path": f"models.{module.__name__}", "init_args": options}})
    found = parsed.model.init_args.optimizer.init_args
    for name in ("lr", "solution_accuracy", "adjoint_accuracy"):
        assert found[name] == inspect.signature(getattr(bilevel, method)).parameters[name].default

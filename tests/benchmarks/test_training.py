"""Where the time of trainings goes: every kind of work is found on the stack, and every configuration is measured."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from torch import Tensor

from benchmarks.sampling import KERNELS, KINDS, ROOT, START, WORK, Sampler, kind_of
from benchmarks.training import configurations, options
from models import FieldsOfExperts


def test_kinds_name_functions_that_exist() -> None:
    for kind, part, functions in KINDS:
        if not part.startswith(("models/", "recon/", "datasets/")):
            continue  # of other programs
        path = ROOT / part
        files = [path] if path.is_file() else sorted(path.rglob("*.py"))
        assert files, (kind, part)
        text = "\n".join(file.read_text() for file in files)
        for function in functions.split():
            assert function.startswith("<") or f"def {function}(" in text, (kind, part, function)


@pytest.mark.parametrize(
    ("file", "function", "kind"),
    [
        ("models/regularizers/kernels/bank.py", "share", KERNELS),
        ("models/regularizers/kernels/bank.py", "_task", "around kernels"),
        ("models/regularizers/ridge.py", "current", "theta"),
        ("models/regularizers/icnn.py", "value_and_grad", KERNELS),
        ("recon/operators/tomography/sparse.py", "apply", "operators"),
        ("recon/lower_level/solvers/lbfgs.py", "step", "solvers"),
        ("recon/bilevel/methods/passes.py", "_on_batch", "upper level"),
        ("recon/errors.py", "positive", None),
    ],
)
def test_a_function_has_a_kind_or_that_of_its_caller(file: str, function: str, kind: str | None) -> None:
    assert kind_of(str(ROOT / file), function) == kind
    assert kind is None or kind in WORK or kind in ("theta", "solvers", "upper level")


def test_the_innermost_function_with_a_kind_counts() -> None:
    """Within the training that calls it; what comes before and after is START."""
    sampler, seen = Sampler(), list[str]()

    class Watched(FieldsOfExperts):
        def curvature_bound(self, profile: list[Tensor]) -> Tensor:
            seen.append(sampler._place(sys._getframe())[0])
            return super().curvature_bound(profile)

    code = compile("def fit(work):\n    work()\n", "trainer/trainer.py", "exec")
    exec(code, space := dict[str, Any]())
    Watched(2, 3).smoothness()
    space["fit"](Watched(2, 3).smoothness)
    assert seen == [START, "theta"]


def test_every_shipped_training_is_measured() -> None:
    names = configurations([])
    assert {"crr_denoising/bsd", "ct/foe", "mri/tv", "tv_discretisation/quick"} <= set(names)
    assert not [name for name in names if name.startswith(("data/", "figures/")) or "compare" in name]
    assert options("foe_denoising/bsd", "")[:2] == ["--trainer.max_epochs", "1"]
    assert "data/mri_t1w_dicom" in options("mri/foe", "")
    assert "data/mri_t1w_dicom" not in options("mri/quick", "")

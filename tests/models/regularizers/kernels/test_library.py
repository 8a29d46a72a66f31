"""Which library is loaded, which is refused, and what is said then."""

from __future__ import annotations

import os
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.regularizers.fields_of_experts import FieldsOfExperts
from models.regularizers.kernels import Bank, Profiles, calls, describe, library
from models.regularizers.potentials import POTENTIALS, LogCosh
from tests.lower_level.problems import normal
from tests.models.regularizers.kernels.cases import everything, make


@pytest.fixture
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is loaded before the test, and what it loads is forgotten."""
    monkeypatch.setenv(library.SWITCH, "best")
    for cached in (library.load, library._best):
        cached.cache_clear()
    yield
    for cached in (library.load, library._best):
        cached.cache_clear()


def compute() -> Tensor:
    return make("log_cosh", 3, 3, torch.float64).value_and_grad(normal(1, 1, 9, 9))[1]


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize("kind", ["none", "no library", "another interface"])
def test_a_library_that_cannot_be_used_is_named_once_and_torch_does_its_work(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "_filter_bank.abi3.so"
    said = "no compiled library"
    if kind == "no library":
        path.write_bytes(b"not a library")
        said = "cannot be loaded"
    elif kind == "another interface":
        if shutil.which("gcc") is None:
            pytest.skip("no compiler makes a library of another interface")
        functions = "".join(f"long long recon_kernels_{f}() {{ return 999; }}\n" for f in ("abi", "level", "layout"))
        source = tmp_path / "other.c"
        source.write_text(functions + "long long recon_kernels_run() { return 0; }\nvoid recon_kernels_finish() {}\n")
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", path, source], check=True)
        said = "has the interface 999"
    own = library.find
    monkeypatch.setattr(library, "find", lambda: own(tmp_path))
    with pytest.warns(RuntimeWarning, match=f"slower code in torch: .*{said}"):
        found = compute()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(compute(), found)
    assert describe().startswith("torch: ")
    assert said in describe()
    monkeypatch.setenv(library.SWITCH, "off")
    assert torch.equal(compute(), found)


def test_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.SWITCH, "off")
    assert library.level() is None
    assert describe() == "torch (RECON_KERNELS is off)"
    monkeypatch.setenv(library.SWITCH, "sse9")
    with pytest.raises(
        ValueError, match="RECON_KERNELS is 'sse9', but must be one of best, off, baseline, avx2, avx512"
    ):
        compute()


def test_levels_and_what_is_said_of_them(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert library.level() == library.LEVELS.index(level)
    assert describe().startswith(f"{level}, compiled, ")
    monkeypatch.setattr(library, "_best", lambda: 0)
    if level != "baseline":
        with pytest.raises(ValueError, match=f"is {level!r}, but this machine has no more than 'baseline'"):
            library.level()
    monkeypatch.delenv(library.SWITCH)
    assert library.level() == 0


def test_the_kernels_are_used_for_what_they_have(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    own = Bank._run

    def run(self: Bank, operation: str, x: Tensor, **others: Tensor | None) -> Tensor:
        calls.append(operation)
        return own(self, operation, x, **others)

    monkeypatch.setattr(Bank, "_run", run)
    regularizer, x = make("weakly convex splines", 3, 3, torch.float32), normal(1, 1, 9, 9).float()
    everything(regularizer, x, x)
    assert calls == ["gradient", "curvature", "product", "maximum", "derivative"]


def test_profiles_of_a_subclass_are_its_own(level: str) -> None:
    class Doubled(FieldsOfExperts):
        """Twice the potentials; the kernels do not know them."""

        def value(self, u: Tensor, profile: list[Tensor]) -> Tensor:
            return 2 * super().value(u, profile)

        def value_and_slope(self, u: Tensor, profile: list[Tensor]) -> tuple[Tensor, Tensor]:
            value, slope = super().value_and_slope(u, profile)
            return 2 * value, 2 * slope

        def slope(self, u: Tensor, profile: list[Tensor]) -> Tensor:
            return 2 * super().slope(u, profile)

        def curvature(self, u: Tensor, profile: list[Tensor]) -> Tensor:
            return 2 * super().curvature(u, profile)

    x = normal(1, 1, 9, 9)
    single, double = (everything(c(3, 3).double(), x, x) for c in (FieldsOfExperts, Doubled))
    for what in ("value", "gradient", "Hessian"):
        torch.testing.assert_close(double[what], 2 * single[what])


def test_a_potential_that_the_kernels_do_not_have(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Halved(LogCosh):
        @staticmethod
        def value(u: Tensor, nu: Tensor) -> Tensor:
            return LogCosh.value(u, nu) / 2

        @staticmethod
        def slope(u: Tensor, nu: Tensor) -> Tensor:
            return LogCosh.slope(u, nu) / 2

        @staticmethod
        def curvature(u: Tensor, nu: Tensor) -> Tensor:
            return LogCosh.curvature(u, nu) / 2

    monkeypatch.setitem(POTENTIALS, "halved", Halved)
    x = normal(1, 1, 9, 9)
    whole, half = (FieldsOfExperts(3, 3, kind).double().value_and_grad(x)[1] for kind in ("log_cosh", "halved"))
    torch.testing.assert_close(half, whole / 2)


def test_no_memory_is_an_error_of_python(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        recon_kernels_layout = library.open_library(library.find()).recon_kernels_layout

        @staticmethod
        def recon_kernels_run(*_: object) -> int:
            return 1

    monkeypatch.setattr(calls, "_library", lambda: Full)
    with pytest.raises(MemoryError, match="3 filters of images of 9 columns"):
        compute()


def test_a_forked_process_computes_as_well(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    regularizer, x = make("log_cosh", 3, 3, torch.float64), normal(1, 1, 80, 9)
    expected = regularizer.value_and_grad(x)[1]  # by a pool of threads, which the child lacks
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(regularizer.value_and_grad(x)[1], expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_tables_of_profiles_are_checked_by_their_kind() -> None:
    with pytest.raises(ValueError, match="'quartic'"):
        Profiles("quartic", (torch.ones(1, 1),))
    with pytest.raises(ValueError, match="spline has"):
        Profiles("spline", (torch.ones(1, 4), torch.ones(1, 4)))
    with pytest.raises(ValueError, match="log_cosh has"):
        Profiles("log_cosh", (torch.ones(2, 1), torch.ones(3, 1)))

from __future__ import annotations

import copy
import logging
import math
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("astra", reason="needs the extra ct")

from recon.operators.checks import lanczos_norm_bound
from recon.operators.tomography import cache as matrix_cache
from recon.operators.tomography.matrix import build as build_module
from recon.operators.tomography.matrix import projector as projector_module
from recon.operators.tomography.matrix import sparse
from recon.operators.tomography.matrix.folding import IDENTITY, Folding
from recon.operators.tomography.matrix.memory import check_memory, estimate_entries, fold_for
from recon.operators.tomography.matrix.norm import collatz_wielandt
from recon.operators.tomography.matrix.projector import FoldedMatrix, ProjectorMatrix, cache_key
from recon.operators.tomography.matrix.sparse import SparseMatrix, transpose_csr
from recon.operators.tomography.ray_transform import RayTransform
from tests.operators.tomography.scans import ALL, SQUARE

SCAN = SQUARE["fan"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RECON_CACHE", str(tmp_path))
    monkeypatch.delenv("RECON_CACHE_GB", raising=False)
    return tmp_path


def from_dense(dense: np.ndarray) -> SparseMatrix:
    rows, columns = np.nonzero(dense)
    indptr = np.concatenate([[0], np.cumsum((dense != 0).sum(1))]).astype(np.int32)
    values = dense[rows, columns].astype(np.float32)
    return SparseMatrix(indptr, columns.astype(np.int32), values, dense.shape)


def unfolded(dense: np.ndarray) -> FoldedMatrix:
    """All rows are stored."""
    rows = np.arange(len(dense))
    return FoldedMatrix(from_dense(dense), Folding((1, dense.shape[1]), (IDENTITY,), rows, rows))


# --- sparse matrices and the norm ---


@pytest.fixture(params=["compiled", "torch"])
def multiplier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What multiplies."""
    monkeypatch.setenv("RECON_KERNELS", "best" if request.param == "compiled" else "off")
    if request.param == "compiled" and sparse.compiled() is None:
        pytest.skip("nothing has been compiled")
    return str(request.param)


def test_sparse_products_and_transpose(multiplier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "BLOCK", 3)
    dense = np.random.default_rng(0).random((7, 5)) * (np.random.default_rng(1).random((7, 5)) < 0.4)
    matrix = from_dense(dense.astype(np.float32))
    transpose = transpose_csr(matrix)
    expected = torch.from_numpy(dense.astype(np.float32)).double()
    x, y = torch.randn(13, 5, dtype=torch.float64), torch.randn(3, 7, dtype=torch.float64)
    torch.testing.assert_close(matrix.apply(x), x @ expected.T)
    torch.testing.assert_close(matrix.apply(x.float()), (x @ expected.T).float())
    torch.testing.assert_close(transpose.apply(y), y @ expected)
    torch.testing.assert_close(transpose.dense(), expected.T)
    assert matrix.apply(x.half()).dtype == torch.float16
    assert matrix.apply(x[:0]).shape == (0, 7)
    again = pickle.loads(pickle.dumps(matrix))
    torch.testing.assert_close(again.apply(x), matrix.apply(x), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_depend_neither_on_the_batch_nor_on_threads(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    if sparse.compiled() is None:
        pytest.skip("nothing has been compiled")
    generator = np.random.default_rng(0)
    matrix = from_dense(generator.random((90, 70)) * (generator.random((90, 70)) < 0.4))
    x = torch.from_numpy(generator.standard_normal((15, 70))).to(dtype)
    alone = torch.cat([matrix.apply(row[None]) for row in x])
    torch.testing.assert_close(matrix.apply(x), alone, rtol=0, atol=0)
    monkeypatch.setattr(sparse, "THREAD", 100)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    torch.testing.assert_close(matrix.apply(x), alone, rtol=0, atol=0)


def test_sums_of_single_precision_are_in_double_precision() -> None:
    """1 + 2^-20 - 1 of numbers that single precision would round away in between."""
    if sparse.compiled() is None:
        pytest.skip("nothing has been compiled")
    matrix = from_dense(np.ones((1, 12), np.float32))
    x = torch.tensor([[2.0**30, 0, 0, 0, 1.0, 0, 0, 0, -(2.0**30), 0, 0, 0]])
    assert float(matrix.apply(x)) == 1.0


def test_arrays_that_are_no_matrix_are_refused() -> None:
    indptr, one = np.array([0, 1], np.int32), np.ones(1, np.float32)
    with pytest.raises(ValueError, match="beyond the 2 columns"):
        SparseMatrix(indptr, np.array([2], np.int32), one, (1, 2))
    with pytest.raises(ValueError, match="no CSR arrays"):
        SparseMatrix(indptr, np.array([0, 1], np.int32), one, (1, 2))
    with pytest.raises(ValueError, match="not decrease"):
        SparseMatrix(np.array([0, 2, 1], np.int32), np.array([0], np.int32), one, (2, 2))


@settings(max_examples=50)
@given(rows=st.integers(1, 8), columns=st.integers(1, 8), density=st.floats(0, 1), seed=st.integers(0, 10**6))
def test_norm_bound_of_any_nonnegative_matrix(rows: int, columns: int, density: float, seed: int) -> None:
    """Also reducible ones, with zero columns, and with entries of very different sizes."""
    generator = np.random.default_rng(seed)
    dense = generator.random((rows, columns)) * 10.0 ** generator.integers(-4, 4, (rows, columns))
    dense = (dense * (generator.random((rows, columns)) < density)).astype(np.float32)
    bound = collatz_wielandt(unfolded(dense), iterations=30)
    exact = float(np.linalg.norm(dense.astype(np.float64), 2))
    assert exact * (1 - 1e-13) <= bound


def test_norm_bound_needs_few_iterations_to_be_tight_and_none_to_be_valid() -> None:
    matrix = ProjectorMatrix(replace(SCAN, image_shape=(9, 9)))
    exact = float(torch.linalg.matrix_norm(matrix.matrix.dense(), 2))
    crude = collatz_wielandt(matrix.matrix, iterations=0)
    assert exact <= matrix.norm_bound <= exact * (1 + 1e-4)
    assert exact * 1.01 < crude


def test_norm_bound_against_lanczos_where_dense_is_too_large() -> None:
    operator = RayTransform(ALL["parallel, offset"])
    assert operator.norm_bound <= lanczos_norm_bound(operator) <= 1.1 * operator.norm_bound


def test_norm_bound_refuses_signs_and_nan() -> None:
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="negative or not finite"):
            collatz_wielandt(unfolded(np.array([[1.0, bad], [0.5, 0.0]])))


def test_a_scan_that_misses_the_image_is_zero() -> None:
    missing = replace(SQUARE["parallel"], detector_offset=1000.0)
    operator = RayTransform(missing)
    assert operator.norm_bound == 0.0
    assert float(operator(torch.ones(1, 1, 12, 12)).abs().max()) == 0.0


# --- building ---


def test_built_in_blocks_of_views_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ProjectorMatrix(SCAN, cache=False)
    monkeypatch.setattr(build_module, "_BLOCK_ENTRIES", 500)
    pieces = ProjectorMatrix(SCAN, cache=False)
    for name in ("indptr", "indices", "values"):
        np.testing.assert_array_equal(getattr(pieces.matrix.stored, name), getattr(whole.matrix.stored, name))


@pytest.mark.parametrize("name", ALL)
def test_estimate_of_the_entries(name: str) -> None:
    fine = replace(
        ALL[name],
        image_shape=tuple(5 * n for n in ALL[name].image_shape),
        pixel_size=tuple(p / 5 for p in ALL[name].pixel_size),
    )
    matrix = ProjectorMatrix(fine).matrix
    estimate = estimate_entries(fine)[matrix.folding.rows].sum()
    assert estimate == pytest.approx(len(matrix.stored.values), rel=0.05)


def test_too_large_is_refused_before_it_is_built() -> None:
    large = replace(SCAN, image_shape=(2000, 2000), pixel_size=(0.005, 0.005))
    with pytest.raises(ValueError, match=r'takes .* GB with its transpose.*Use backend="astra_cuda".*memory_limit'):
        ProjectorMatrix(large, memory_limit=1e6)
    assert check_memory(large, memory_limit=1e9) < 1e9


@pytest.mark.parametrize("name", ALL)
def test_memory_estimate_is_what_the_arrays_take(name: str, multiplier: str) -> None:
    matrix = ProjectorMatrix(ALL[name])
    expected = pytest.approx(matrix.matrix.nbytes, rel=0.1)
    assert check_memory(ALL[name]) == expected
    matrix.backward(matrix.forward(torch.randn(2, *ALL[name].domain_shape, dtype=torch.float64)))
    assert check_memory(ALL[name]) == expected  # no copy is left in another precision


def test_a_deep_copy_shares_the_numbers() -> None:
    operator = RayTransform(SCAN)
    twin = copy.deepcopy(operator)
    assert twin.projector_matrix.matrix is operator.projector_matrix.matrix


# --- the cache ---


def count_builds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with every matrix that is built."""
    builds: list[int] = []
    build = projector_module.build

    def counted(*args: object) -> object:
        builds.append(1)
        return build(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(projector_module, "build", counted)
    return builds


def test_second_time_it_comes_from_the_cache(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    builds = count_builds(monkeypatch)
    first, second = ProjectorMatrix(SCAN), ProjectorMatrix(SCAN)
    assert len(builds) == 1
    assert second.norm_bound == first.norm_bound
    x = torch.randn(2, 1, 12, 12)
    torch.testing.assert_close(second.forward(x), first.forward(x), rtol=0, atol=0)
    ProjectorMatrix(replace(SCAN, detector_offset=1e-9))
    ProjectorMatrix(SQUARE["parallel"], "line")
    ProjectorMatrix(SQUARE["parallel"], "linear")
    assert len(builds) == 4
    assert len(list(cache.iterdir())) == 4
    ProjectorMatrix(SCAN, cache=False)
    assert len(builds) == 5


def test_another_version_of_astra_builds_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    builds = count_builds(monkeypatch)
    ProjectorMatrix(SCAN)
    monkeypatch.setattr("astra.__version__", "99.0.0")
    ProjectorMatrix(SCAN)
    assert len(builds) == 2


def test_a_file_of_another_folding_or_format_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices of the time before there were symmetries had all rows, under other names."""
    folding = fold_for(SCAN)
    whole = Folding(folding.shape, (IDENTITY,), np.arange(len(folding.slots)), np.arange(len(folding.slots)))
    keys = {cache_key(SCAN, "line", "2", f) for f in (folding, whole)}
    monkeypatch.setattr(projector_module, "_FORMAT", 1)
    keys.add(cache_key(SCAN, "line", "2", folding))
    assert len(keys) == 3


@pytest.mark.parametrize("damage", ["truncated", "emptied", "flipped", "appended"])
def test_a_damaged_file_is_rebuilt(
    damage: str, monkeypatch: pytest.MonkeyPatch, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    builds = count_builds(monkeypatch)
    expected = ProjectorMatrix(SCAN)
    (path,) = cache.iterdir()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    broken = {"truncated": content[:-100], "emptied": b"", "flipped": content, "appended": content + b"x"}[damage]
    path.write_bytes(bytes(broken))
    with caplog.at_level(logging.WARNING):
        found = ProjectorMatrix(SCAN)
    assert "damaged" in caplog.text
    assert len(builds) == 2
    np.testing.assert_array_equal(found.matrix.stored.values, expected.matrix.stored.values)
    ProjectorMatrix(SCAN)  # and stored anew
    assert len(builds) == 2


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_goes_unnoticed(position: float, bit: int, cache: Path) -> None:
    matrix_cache.store("k", {"norm_bound": 1.0}, {"values": np.arange(20, dtype=np.float32)})
    path = cache / "k.matrix"
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 1 << bit
    path.write_bytes(bytes(content))
    assert matrix_cache.load("k") is None
    assert not path.exists()


def test_a_file_under_the_wrong_name_is_not_taken(cache: Path) -> None:
    matrix_cache.store("a", {}, {"values": np.ones(3)})
    (cache / "a.matrix").rename(cache / "b.matrix")
    assert matrix_cache.load("b") is None


def test_the_least_recently_used_go_first(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    arrays = {"values": np.zeros(1000)}  # 8 kB
    for age, name in enumerate("abc"):
        matrix_cache.store(name, {}, arrays)
        os.utime(cache / f"{name}.matrix", (1e9 + age, 1e9 + age))
    assert matrix_cache.load("a") is not None  # now the last used one
    monkeypatch.setenv("RECON_CACHE_GB", "2.6e-5")
    matrix_cache.store("d", {}, arrays)
    assert sorted(path.stem for path in cache.iterdir()) == ["a", "c", "d"]
    assert not matrix_cache.store("e", {}, {"values": np.zeros(10_000)})
    assert sorted(path.stem for path in cache.iterdir()) == ["a", "c", "d"]


def test_left_overs_of_killed_processes_are_removed_in_time(cache: Path) -> None:
    old, young = cache / ".k.0.part", cache / ".k.1.part"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (1e9, 1e9))
    matrix_cache.evict(10**9)
    assert [path.name for path in cache.iterdir()] == [young.name]


def test_a_cache_that_cannot_be_written_is_no_error(
    monkeypatch: pytest.MonkeyPatch, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (cache / "file").write_bytes(b"")
    monkeypatch.setenv("RECON_CACHE", str(cache / "file" / "folder"))
    with caplog.at_level(logging.WARNING):
        assert RayTransform(SCAN)(torch.ones(1, 1, 12, 12)).shape == (1, *SCAN.range_shape)
    assert "cannot be written" in caplog.text


def test_several_processes_at_once(cache: Path) -> None:
    """Writers, readers and removers of the same key never see half a file."""
    program = (
        "import numpy as np\n"
        "from recon.operators.tomography import cache as cache\n"
        "for k in range(40):\n"
        "    cache.store('k', {}, {'values': np.full(20_000, 7.0)})\n"
        "    found = cache.load('k')\n"
        "    assert found is None or (found[1]['values'] == 7.0).all()\n"
        "    if k % 10 == 0: cache.clear()\n"
    )
    workers = [subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [worker.communicate()[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    assert "damaged" not in "".join(errors)
    assert [path for path in cache.iterdir() if path.suffix == ".part"] == []


def test_folder_of_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert matrix_cache.cache_folder() == tmp_path
    monkeypatch.delenv("RECON_CACHE")
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert matrix_cache.cache_folder() == tmp_path / "xdg" / "recon"


@pytest.mark.parametrize(
    "arrays", ["[]", '{"a": 3}', '{"a": ["O", 3]}', '{"a": ["<f4", 1e400]}', '{"a": ["<f4", -1]}', '{"a": ["<f,", 1]}']
)
def test_headers_that_make_no_sense_are_taken_for_absent(arrays: str, cache: Path) -> None:
    text = f'{{"key": "k", "arrays": {arrays}}}'.encode()
    path = cache / "k.matrix"
    path.write_bytes(b"RECONCT1" + len(text).to_bytes(8, "little") + text + bytes(100))
    assert matrix_cache.load("k") is None
    assert not path.exists()

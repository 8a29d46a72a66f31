"""BilevelModule: training, reconstruction, checkpoints; the helpers of checkpoints and metrics."""

from __future__ import annotations

import errno
import math
import os
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from datasets import DenoisingDataModule
from models import FieldsOfExperts, InitialFilters, TotalVariation
from models.files.checkpoints import (
    AtomicCheckpointIO,
    BackgroundCheckpointIO,
    CheckpointError,
    checksum,
    describe,
    difference,
    load_checkpoint,
)
from models.files.storage import load_regularizer
from models.training.bilevel import BilevelModule
from models.training.callbacks import IterationProgress, LastCheckpoint
from recon.bilevel import MAID, BilevelObjective, CertifiedProposals, InexactAdam, Progress, PublishedMAID
from recon.lower_level import FISTA, LBFGS, Energy, KullbackLeibler, SquaredL2
from recon.operators import Blur, Identity


def trainer(folder: Path, epochs: int = 3, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        inference_mode=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **({"enable_checkpointing": False, "logger": False, "enable_progress_bar": False} | options),
    )


def images(count: int = 2, side: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 1, side // 4, side // 4, generator=generator, dtype=torch.float64)
    return nn.functional.interpolate(coarse, size=(side, side))


class Tiny(DenoisingDataModule):
    """Two pictures, without files."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.made = images()

    def _source(self, path: Any, split: Any) -> Any:
        source = super()._source(None, split).subset(0, 2)
        source._load = lambda name: self.made[source.names.index(name)]  # type: ignore[method-assign]
        source.size = None
        return source


@pytest.mark.parametrize("optimizer", [MAID, PublishedMAID])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fit_is_the_method_on_the_whole_training_set(tmp_path: Path, optimizer: Any, dtype: Any) -> None:
    data = Tiny(sigma=0.1, dtype=dtype)
    module = BilevelModule(TotalVariation(-3.0, -3.0), optimizer, solver=FISTA(), chunk_size=1)
    fitting = trainer(tmp_path)
    fitting.fit(module, datamodule=data)
    x, y = data.train_tensors()
    alone = TotalVariation(-3.0, -3.0).to(x.dtype)
    objective = BilevelObjective(alone, x, y, solver=FISTA(), chunk_size=1)
    method = optimizer(alone.trainable())
    records = [method.step(objective=objective) for _ in range(3)]
    assert module.record == records[-1]
    assert fitting.global_step == 3
    assert [p.dtype for p in module.regularizer.parameters()] == [x.dtype, x.dtype]
    assert_same(module.regularizer.state_dict(), alone.state_dict())
    assert fitting.callback_metrics["loss"].dtype == torch.float64
    assert float(fitting.callback_metrics["val_psnr"]) > 15
    assert float(fitting.callback_metrics["val_error"]) <= module.reconstruction_accuracy


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_stops_when_the_method_has_finished(tmp_path: Path) -> None:
    module = BilevelModule(TotalVariation(), partial(MAID, tolerance=1e3))
    fitting = trainer(tmp_path, epochs=50)
    fitting.fit(module, datamodule=Tiny())
    assert module.record is not None
    assert module.record.progress is Progress.CONVERGED
    assert fitting.global_step == 1


def test_reconstruction_is_certified() -> None:
    x = images()
    module = BilevelModule(TotalVariation(-2.0, -2.0).double(), mu=0.1, reconstruction_accuracy=1e-3)
    found = module.reconstruct(x)
    exact = LBFGS()(Energy(x, module.regularizer, mu=0.1), x, 1e-9).x
    distance = (found.x - exact).flatten(1).norm(dim=1)
    assert (distance <= found.error + 1e-9).all()
    assert (found.error <= 1e-3).all()
    assert torch.equal(module(x), found.x)


def test_an_inaccurate_reconstruction_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    module = BilevelModule(TotalVariation(-2.0, -4.0).double(), solver=LBFGS(max_iterations=2))
    error = module.reconstruct(images()).error
    assert (error > module.reconstruction_accuracy).all()
    assert "accuracy 0.01 was not reached (iteration limit)" in caplog.text


def test_takes_a_copy_of_the_operator_of_the_data(tmp_path: Path) -> None:
    blur = Blur(torch.ones(3, 3) / 9, (1, 16, 16))
    module = BilevelModule(TotalVariation(), mu=0.1)
    trainer(tmp_path, 1).fit(module, datamodule=Tiny(operator=blur.double()))
    assert isinstance(module.operator, Blur)
    assert module.operator is not blur
    with pytest.raises(ValueError, match=r"no recon\.operators\.LinearOperator"):
        trainer(tmp_path, 1).fit(BilevelModule(TotalVariation()), datamodule=Tiny(operator=nn.Identity()))


def test_complex_buffers_stay_complex(tmp_path: Path) -> None:
    operator = Identity()
    operator.register_buffer("mask", torch.ones(3, dtype=torch.complex64))
    module = BilevelModule(TotalVariation(), operator=operator)
    trainer(tmp_path, 1).fit(module, datamodule=Tiny(dtype="float64"))
    assert operator.mask.dtype == torch.complex128


def test_data_that_do_not_fit(tmp_path: Path) -> None:
    x = images(4)
    loader = DataLoader(TensorDataset(x, x, torch.arange(4)), batch_size=2)
    with pytest.raises(ValueError, match="the data come in 2 batches; set batch_size"):
        trainer(tmp_path).fit(BilevelModule(TotalVariation().double()), loader)
    whole = DataLoader(TensorDataset(x, x, torch.arange(4)), batch_size=4)
    with pytest.raises(ValueError, match=r"the data are torch.float64, but the regularizer is torch.float32"):
        trainer(tmp_path).fit(BilevelModule(TotalVariation()), whole)
    frozen = TotalVariation().double().requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        trainer(tmp_path).fit(BilevelModule(frozen), whole)
    x[1, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="true images: image 1 holds values that are NaN"):
        trainer(tmp_path).fit(BilevelModule(TotalVariation().double()), whole)


@pytest.mark.parametrize("options", [{"mu": -1.0}, {"chunk_size": 0}, {"reconstruction_accuracy": 0.0}])
def test_arguments_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} is "):
        BilevelModule(TotalVariation(), **options)


def fit_foe(folder: Path, epochs: int, resume: Path | None = None, **options: Any) -> tuple[BilevelModule, Path]:
    path = folder / "last.ckpt"
    regularizer = FieldsOfExperts(filters=2, size=3)
    module = BilevelModule(regularizer, operator=Blur(torch.ones(3, 3) / 9, (1, 16, 16)), mu=0.1, **options)
    fitting = trainer(
        folder, epochs, enable_checkpointing=True, callbacks=[LastCheckpoint(path)], plugins=[AtomicCheckpointIO()]
    )
    fitting.fit(module, datamodule=Tiny(), ckpt_path=resume)
    return module, path


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": PublishedMAID},
        {"optimizer": partial(MAID, direction="adagrad")},
        {"optimizer": partial(InexactAdam, batch_size=1, lr_decay=0.5)},
        {"optimizer": partial(CertifiedProposals, proposer=partial(InexactAdam, batch_size=1))},
    ],
)
def test_resume_is_bit_identical(tmp_path: Path, options: dict[str, Any]) -> None:
    whole, _ = fit_foe(tmp_path / "whole", 4, **options)
    _, path = fit_foe(tmp_path / "parts", 2, **options)
    resumed, _ = fit_foe(tmp_path / "parts", 4, path, **options)
    assert resumed.record == whole.record
    assert_same(resumed.regularizer.state_dict(), whole.regularizer.state_dict())


def test_between_two_checks_the_progress_bar_says_what_is_proposed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = BilevelModule(
        FieldsOfExperts(filters=2, size=3),
        partial(CertifiedProposals, proposer=partial(InexactAdam, batch_size=1)),
        operator=Identity(),
    )
    bar = IterationProgress()
    trainer(tmp_path, 1, enable_progress_bar=True, callbacks=[bar]).fit(module, datamodule=Tiny())
    said = capsys.readouterr().err
    assert 0 <= said.index("proposing: loss") < said.index("loss", said.index("1/1"))


def test_checkpoints_are_plain_and_small(tmp_path: Path) -> None:
    module, path = fit_foe(tmp_path, 1)
    content = torch.load(path, weights_only=True)
    # operators can be large, and are made from the configuration
    assert all(name.startswith("regularizer.") for name in content["state_dict"])
    regularizer, metadata = load_regularizer(path)
    assert_same(dict(regularizer.state_dict()), module.regularizer.state_dict())
    assert metadata["mu"] == 0.1
    assert metadata["operator"].endswith("Blur")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt"]


def test_another_blur_is_another_problem(tmp_path: Path) -> None:
    _, path = fit_foe(tmp_path, 1)
    kernel = torch.zeros(3, 3)
    kernel[1, 1] = 1.0
    module = BilevelModule(FieldsOfExperts(filters=2, size=3), operator=Blur(kernel, (1, 16, 16)), mu=0.1)
    with pytest.raises(CheckpointError, match=r"last\.ckpt: belongs to another problem: operator"):
        trainer(tmp_path, 2).fit(module, datamodule=Tiny(), ckpt_path=path)


def test_checkpoints_that_are_none(tmp_path: Path) -> None:
    bad = tmp_path / "bad.ckpt"
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        load_checkpoint(bad)
    for content in (b"", b"PK\x03\x04 half", b"text"):
        bad.write_bytes(content)
        with pytest.raises(CheckpointError, match="not a checkpoint of this program, or truncated"):
            load_checkpoint(bad)
    torch.save({"code": TotalVariation()}, bad)  # would have to be unpickled
    with pytest.raises(CheckpointError, match="not a checkpoint of this program"):
        load_checkpoint(bad)
    torch.save({"state_dict": {}, "pytorch-lightning_version": pl.__version__, "loops": {}, "epoch": 0}, bad)
    with pytest.raises(CheckpointError, match=r"not a checkpoint of models\.BilevelModule"):
        trainer(tmp_path).validate(BilevelModule(TotalVariation()), datamodule=Tiny(), ckpt_path=bad, verbose=False)


def test_a_failed_write_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"last.ckpt: cannot be written \(No space left on device\)"):
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert load_checkpoint(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_checkpoint_in_the_background_is_that_of_the_moment_and_its_error_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a copy, written in order; an error comes with the next one, or at the end, and keeps the one before."""
    path, gate, content = tmp_path / "last.ckpt", threading.Event(), {"x": torch.zeros(2)}
    fsync, background = os.fsync, BackgroundCheckpointIO()
    monkeypatch.setattr(os, "fsync", lambda descriptor: (gate.wait(), fsync(descriptor)))
    background.save_checkpoint(content, path)
    content["x"] += 1  # while it waits for the disk
    assert not path.exists()
    gate.set()
    assert_same(background.load_checkpoint(path), {"x": torch.zeros(2)})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for after in (lambda: background.save_checkpoint(content, path), background.teardown):
        background.save_checkpoint(content, path)
        with pytest.raises(OSError, match=r"last.ckpt: cannot be written \(No space left on device\)"):
            after()
        background.teardown()  # an error is told once
    assert_same(load_checkpoint(path), {"x": torch.zeros(2)})


def test_descriptions() -> None:
    foe = describe(FieldsOfExperts(filters=2, size=3))
    assert difference(foe, describe(FieldsOfExperts(filters=2, size=3, initial_filters=InitialFilters(seed=5)))) is None
    for options in ({"filters": 3}, {"size": 5}, {"potential": "log_cosh"}, {"weak_convexity": 0.5}):
        assert difference(foe, describe(FieldsOfExperts(**({"filters": 2, "size": 3} | options)))), options
    assert difference(foe, describe(TotalVariation()), "regularizer") == (
        "regularizer is models.FieldsOfExperts there, but models.TotalVariation here"
    )
    assert difference(describe(SquaredL2(1.0)), describe(SquaredL2(2.0))) == "weight is 1.0 there, but 2.0 here"
    assert difference(describe(SquaredL2()), describe(KullbackLeibler(1.0))) is not None
    a, b = torch.zeros(2, 3), torch.zeros(3, 2)
    assert checksum(a) == checksum(torch.zeros(2, 3)) != checksum(b)
    sparse = torch.eye(3).to_sparse_csr()
    assert checksum(sparse) == checksum(torch.eye(3).to_sparse_csr()) != checksum((2 * torch.eye(3)).to_sparse_csr())

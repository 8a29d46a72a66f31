"""SupervisedModule: the training is what it says, resumes bit for bit, and refuses what it cannot use."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from datasets import TomographyDataModule
from models import LearnedPrimalDual, UNet
from models.files.checkpoints import AtomicCheckpointIO, CheckpointError
from models.files.storage import ModelFileError, load_model, load_reconstructor, load_regularizer, save_regularizer
from models.training.callbacks import LastCheckpoint
from models.training.supervised import PublishedAdam, SupervisedModule
from recon.lower_level import Status
from recon.operators import Blur, Identity, LinearOperator
from recon.reconstruction.reconstructor import Reconstructor
from tests.models.training.test_bilevel_module import Tiny, assert_same, images, trainer


def blur() -> Blur:
    return Blur(torch.ones(3, 3) / 9, (1, 16, 16))


class Dropping(Reconstructor):
    """One convolution, and dropout: a network that draws random numbers while it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 1, 3, padding=1)
        with torch.no_grad():
            self.convolution.weight.fill_(0.1)
            self.convolution.bias.fill_(0.1)  # type: ignore[union-attr]
        self.dropout = nn.Dropout(0.5)

    def reconstruct(self, y: Tensor, operator: LinearOperator) -> Tensor:
        return self.dropout(self.convolution(operator.adjoint(y)))


class Five(Tiny):
    """Five pictures."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.made = images(5)

    def _source(self, path: Any, split: Any) -> Any:
        source = super()._source(path, split)
        source.names = [str(n) for n in range(5)]
        return source


def small() -> LearnedPrimalDual:
    return LearnedPrimalDual(2, memory=2, channels=4)


def fit(
    folder: Path, network: Reconstructor, epochs: int = 100, resume: Path | None = None, **options: Any
) -> SupervisedModule:
    module = SupervisedModule(network, operator=blur(), **({"batch_size": 2, "steps": 10} | options))
    path = folder / "last.ckpt"
    callbacks: list[Callback] = [LastCheckpoint(path)]
    more = {"enable_checkpointing": True, "callbacks": callbacks, "plugins": [AtomicCheckpointIO()]}
    trainer(folder, epochs, **more).fit(module, datamodule=Five(sigma=0.1, dtype="float32"), ckpt_path=resume)
    return module


def test_fit_is_adam_with_cosine_annealing_and_clipping(tmp_path: Path) -> None:
    """Against a loop written out: two passes of three mini-batches, and the first four of the third."""
    network = small()
    module = fit(tmp_path, network, steps=8, gradient_clip=0.05, seed=4)
    assert module.record is not None
    assert (module.record.iteration, module.record.finished) == (8, True)
    x, y = Five(sigma=0.1, dtype="float32").train_tensors()
    alone, operator = small(), blur()
    method = torch.optim.Adam(alone.parameters(), lr=1e-3, betas=(0.9, 0.99))
    k, clipped = 0, 0
    for number in range(3):
        order = torch.randperm(5, generator=torch.Generator().manual_seed(4 * 1_000_003 + number))
        for index in (order[:2], order[2:4], order[4:]):
            if k == 8:
                break
            method.param_groups[0]["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * k / 8))
            method.zero_grad()
            loss = ((alone(y[index], operator) - x[index]) ** 2).sum() / x[index].numel()
            loss.backward()
            norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in alone.parameters()))
            clipped += norm > 0.05
            for p in alone.parameters():
                p.grad *= min(0.05 / norm, 1.0)
            method.step()
            k += 1
    assert clipped > 0
    for a, b in zip(network.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{}, {"optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9), "annealing": "none", "batch_size": 1}],
)
@pytest.mark.parametrize("make", [small, partial(UNet, scales=2, channels=2), Dropping])
def test_resume_is_bit_identical(tmp_path: Path, make: Any, options: dict[str, Any]) -> None:
    whole = fit(tmp_path / "whole", make(), **options)
    fit(tmp_path / "parts", make(), epochs=1, **options)
    torch.rand(7)  # another state of the global generator
    resumed = fit(tmp_path / "parts", make(), resume=tmp_path / "parts" / "last.ckpt", **options)
    assert resumed.record == whole.record
    a, b = (torch.load(tmp_path / run / "last.ckpt", weights_only=True) for run in ("whole", "parts"))
    assert a["global_step"] == b["global_step"] == 10
    assert_same(a["state_dict"], b["state_dict"])
    assert a["supervised"] == b["supervised"]
    (a,), (b,) = a["optimizer_states"], b["optimizer_states"]
    assert a["param_groups"] == b["param_groups"]
    assert all(torch.equal(a["state"][i][k], b["state"][i][k]) for i in a["state"] for k in a["state"][i])


class Interrupted(SupervisedModule):
    """Stops in the middle of its second pass, after which a checkpoint is written."""

    def _descend(self, x: Tensor, y: Tensor, k: int) -> tuple[float, float]:
        if k == 4:
            self.trainer.save_checkpoint(self.middle)
            raise RuntimeError("killed")
        return super()._descend(x, y, k)


def test_a_checkpoint_within_a_pass_resumes_bit_identically(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", Dropping())
    module = Interrupted(Dropping(), operator=blur(), batch_size=2, steps=10)
    module.middle = tmp_path / "middle.ckpt"  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="killed"):
        trainer(tmp_path, 100).fit(module, datamodule=Five(sigma=0.1, dtype="float32"))
    assert torch.load(module.middle, weights_only=True)["global_step"] == 4
    resumed = fit(tmp_path / "parts", Dropping(), resume=module.middle)
    assert_same(resumed.reconstructor.state_dict(), whole.reconstructor.state_dict())


def test_reconstructions_are_not_certified(tmp_path: Path) -> None:
    x = images().float()
    module = SupervisedModule(small())
    found = module.reconstruct(x)
    assert torch.equal(found.x, small()(x, Identity()))
    assert not found.x.requires_grad
    assert torch.isinf(found.error).all()
    assert found.error.dtype == torch.float64
    assert found.status.tolist() == [Status.CONVERGED] * 2
    x[1, 0, 0, 0] = math.nan
    assert module.reconstruct(x).status.tolist() == [Status.CONVERGED, Status.NOT_FINITE]


def test_learns(tmp_path: Path) -> None:
    network = UNet(scales=2, channels=8)
    x, y = Five(sigma=0.1, dtype="float32").train_tensors()
    before = (SupervisedModule(network, operator=blur()).reconstruct(y).x - x).square().mean()
    module = fit(tmp_path, network, steps=60, optimizer=partial(PublishedAdam, lr=1e-2))
    assert (module.reconstruct(y).x - x).square().mean() < 0.5 * before


def test_other_problems_are_refused(tmp_path: Path) -> None:
    fit(tmp_path, small(), epochs=1)
    last = tmp_path / "last.ckpt"
    for options, words in (
        ({"steps": 11}, "steps is 10 there, but 11 here"),
        ({"batch_size": 3}, "batch_size is 2 there"),
        ({"seed": 1}, "seed is 0 there"),
        ({"gradient_clip": None}, "gradient_clip is 1.0 there"),
        ({"optimizer": partial(PublishedAdam, lr=0.1)}, r"optimizer.lr is 0.001 there"),
        ({"optimizer": partial(PublishedAdam, betas=(0.5, 0.9))}, r"optimizer.betas is \[0.9, 0.99\] there"),
    ):
        with pytest.raises(CheckpointError, match=f"last.ckpt: belongs to another problem: {words}"):
            fit(tmp_path, small(), resume=last, **options)
    with pytest.raises(CheckpointError, match=r"another reconstructor: reconstructor\.dual\.2 is nothing there"):
        fit(tmp_path, LearnedPrimalDual(3, memory=2, channels=4), resume=last)
    kernel = torch.zeros(3, 3)
    kernel[1, 1] = 1
    module = SupervisedModule(small(), operator=Blur(kernel, (1, 16, 16)), batch_size=2, steps=10)
    with pytest.raises(CheckpointError, match="belongs to another problem: "):
        trainer(tmp_path).fit(module, datamodule=Five(sigma=0.1, dtype="float32"), ckpt_path=last)
    module = SupervisedModule(small(), operator=blur(), batch_size=2, steps=10)
    with pytest.raises(CheckpointError, match=r"another problem: noise.sigma is 0.1 there, but 0.2 here"):
        trainer(tmp_path).fit(module, datamodule=Five(sigma=0.2, dtype="float32"), ckpt_path=last)
    module = SupervisedModule(small(), operator=blur(), batch_size=2, steps=10)
    with pytest.raises(CheckpointError, match="belongs to other training data"):
        trainer(tmp_path).fit(module, datamodule=Five(sigma=0.1, seed=1, dtype="float32"), ckpt_path=last)
    foreign = tmp_path / "foreign.ckpt"
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6", "loops": {}, "epoch": 0}, foreign)
    with pytest.raises(CheckpointError, match=r"not a checkpoint of models\.SupervisedModule"):
        trainer(tmp_path).validate(module, datamodule=Five(dtype="float32"), ckpt_path=foreign, verbose=False)


def ellipses() -> TomographyDataModule:
    options: dict[str, Any] = {"size": 24, "views": 10, "limit": 2, "relative_sigma": 0.03, "dtype": "float32"}
    return TomographyDataModule(cache=False, **options)


def older(path: Path, without: str = "ramp") -> Path:
    """The checkpoint as it was written before there was the argument, without checksum."""
    content = torch.load(path, weights_only=True)
    saved = content["supervised"]
    assert saved["reconstructor"].pop(without) == saved["specification"]["arguments"].pop(without)
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    "make", [partial(UNet, scales=2, channels=4), partial(LearnedPrimalDual, 1, memory=2, channels=4, start="naive")]
)
def test_checkpoints_of_older_networks_need_the_ramp_that_they_learned_from(tmp_path: Path, make: Any) -> None:
    """As files: they were trained by FBP with the ramp sampled in frequency, before there was a choice."""

    def run(network: Reconstructor, folder: Path, epochs: int, resume: Path | None = None) -> SupervisedModule:
        module, path = SupervisedModule(network, steps=4), folder / "last.ckpt"
        trainer(
            folder, epochs, enable_checkpointing=True, callbacks=[LastCheckpoint(path)], plugins=[AtomicCheckpointIO()]
        ).fit(module, datamodule=ellipses(), ckpt_path=resume)
        return module

    def test(network: Reconstructor, path: Path) -> float:
        testing = trainer(tmp_path)
        testing.test(SupervisedModule(network, steps=4), datamodule=ellipses(), ckpt_path=path, verbose=False)
        return float(testing.callback_metrics["test_psnr"])

    whole = run(make(ramp="frequency"), tmp_path / "whole", 10)
    run(make(ramp="frequency"), tmp_path / "parts", 1)
    expected = test(make(ramp="frequency"), tmp_path / "parts" / "last.ckpt")
    path = older(tmp_path / "parts" / "last.ckpt")
    refused = (
        r"last\.ckpt: is older than the argument ramp of models.* --model\.reconstructor\.init_args\.ramp frequency"
    )
    with pytest.raises(CheckpointError, match=refused):
        test(make(), path)
    with pytest.raises(CheckpointError, match=refused):
        run(make(), tmp_path / "parts", 10, path)
    assert test(make(ramp="frequency"), path) == expected
    resumed = run(make(ramp="frequency"), tmp_path / "parts", 10, path)
    assert resumed.record == whole.record
    assert_same(dict(resumed.reconstructor.state_dict()), dict(whole.reconstructor.state_dict()))
    # what it writes knows its ramp
    with pytest.raises(CheckpointError, match=r"reconstructor\.ramp is frequency there, but space here"):
        test(make(), path)


class Wrapped(Reconstructor):
    """A network of the user's around one of the project's."""

    def __init__(self, ramp: str = "space") -> None:
        super().__init__()
        self.inner = UNet(2, 4, ramp=ramp)  # type: ignore[arg-type]

    def reconstruct(self, y: Tensor, operator: LinearOperator) -> Tensor:
        return self.inner(y, operator)


def test_older_networks_inside_others_are_recognized() -> None:
    content: dict[str, Any] = {"state_dict": {}}
    SupervisedModule(Wrapped()).on_save_checkpoint(content)
    del content["supervised"]["reconstructor"]["inner"]["ramp"]
    with pytest.raises(CheckpointError, match=r"reconstructor\.inner\.ramp is frequency there, but space here"):
        SupervisedModule(Wrapped()).on_load_checkpoint(content)
    SupervisedModule(Wrapped("frequency")).on_load_checkpoint(content)


def test_data_that_do_not_fit(tmp_path: Path) -> None:
    x = images(4).float()
    loader = DataLoader(TensorDataset(x, x, torch.arange(4)), batch_size=2)
    with pytest.raises(ValueError, match="the data come in 2 batches; set batch_size of the data to null"):
        trainer(tmp_path).fit(SupervisedModule(small()), loader)
    whole = DataLoader(TensorDataset(x, x, torch.arange(4)), batch_size=4)
    with pytest.raises(ValueError, match=r"the images are torch.float32 .* but the network is torch.float64"):
        trainer(tmp_path).fit(SupervisedModule(small().double()), whole)
    with pytest.raises(ValueError, match="no trainable parameter"):
        trainer(tmp_path).fit(SupervisedModule(small().requires_grad_(False)), whole)
    narrow = DataLoader(TensorDataset(x, x[..., 1:], torch.arange(4)), batch_size=4)
    with pytest.raises(ValueError, match=r"expected real \(batch, 1, 16, 16\)"):
        trainer(tmp_path).fit(SupervisedModule(small(), operator=blur()), narrow)
    lower = DataLoader(TensorDataset(x[..., 1:, :], x, torch.arange(4)), batch_size=4)
    with pytest.raises(ValueError, match=r"images of shape \(1, 1, 16, 16\); the true ones have \(1, 1, 15, 16\)"):
        trainer(tmp_path).fit(SupervisedModule(small(), operator=blur()), lower)
    y = x.clone()
    y[2, 0, 0, 0] = math.inf
    for pair, what in (((y, x), "true images"), ((x, y), "data")):
        broken = DataLoader(TensorDataset(*pair, torch.arange(4)), batch_size=4)
        with pytest.raises(ValueError, match=f"{what}: image 2 holds values that are NaN or infinite"):
            trainer(tmp_path).fit(SupervisedModule(small()), broken)


def test_a_loss_that_is_not_finite_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"step \d+ of the training: the loss is .*smaller lr"):
        fit(tmp_path, small(), optimizer=partial(torch.optim.SGD, lr=1e30), gradient_clip=None)


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 0}, {"steps": 0}, {"gradient_clip": 0.0}, {"annealing": "linear"}, {"seed": -1}],
)
def test_arguments_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} is "):
        SupervisedModule(small(), **options)


def test_warns_of_an_unfinished_schedule(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(tmp_path, small(), epochs=2)
    assert "max_epochs 2 ends the training before its 10 steps, which are 4 passes" in caplog.text


# --- files -----------------------------------------------------------------------------------------------------------


def test_files(tmp_path: Path) -> None:
    module = fit(tmp_path, small())
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert all(name.startswith("reconstructor.") for name in content["state_dict"])
    saved = save_regularizer(module.learned, tmp_path / "lpd", {"sigma": 0.1})
    for path in (saved, tmp_path / "last.ckpt"):
        network, metadata = load_reconstructor(path)
        assert isinstance(network, LearnedPrimalDual)
        assert network.constructor_arguments() == module.reconstructor.constructor_arguments()
        assert_same(dict(network.state_dict()), module.reconstructor.state_dict())
        with pytest.raises(ModelFileError, match="holds a network that reconstructs, LearnedPrimalDual"):
            load_regularizer(path)
    setting = metadata["setting"]
    assert setting["noise"] == {"kind": "gaussian", "sigma": 0.1}
    assert setting["operator"]["class"] == "recon.operators.Blur"
    foe = Path(__file__).parents[3] / "models" / "pretrained" / "foe_bsd.safetensors"
    assert load_model(foe)
    with pytest.raises(ModelFileError, match=r"a regularizer .*, FieldsOfExperts; this needs a network"):
        load_reconstructor(foe)

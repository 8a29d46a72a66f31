"""What the programs write: reports, summaries, tables and arrays, from small data made here; and what they refuse."""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path
from typing import Any

from benchmarks.golden_cases.common import Cases, Context, digest, exact
from benchmarks.golden_cases.files import write_all
from benchmarks.golden_cases.programs import class_path, configuration, contents, run
from recon.commands.main import main

#: two iterations of training, or two passes; a critic has no best weight before it has learned something
EPOCHS, CRITIC_EPOCHS = 2, 30

DENOISING = {"train": "builtin", "limit": 2, "size": 16, "sigma": 0.1, "dtype": "float64"}
# fields of view that make ||A|| small: certificates are then quick
CT = {"train": "ellipses", "test": "ellipses", "limit": 2, "size": 16, "field_of_view": 3.0, "views": 12}
MRI = {"train": "builtin", "test": "builtin", "limit": 2, "size": 24, "coils": 2, "sigma": 0.02}

#: pictures, CT and MRI, with every method and every option that decides on numbers
RECONSTRUCTIONS = {
    "images tv": "--data pictures/b.png --method tv --weight 0.05 --accuracy 1e-3",
    "images tv discrepancy": "--data pictures/b.png --method tv --noise 0.05 --reference pictures/a.png",
    "images tv sweep": "--data pictures/b.png --method tv --choose sweep --reference pictures/a.png --mu 0.01",
    "images tv nonnegative": "--data pictures --method tv --weight 0.05 --nonnegative --dtype float32 --smoothing 0.02",
    "images model": "--data pictures/a.png pictures/b.png --model crr_bsd --accuracy 0.05",
    "images model sweep": "--data pictures/c.png --model tv_bsd --choose sweep --reference pictures/c.png",
    "images model discrepancy": "--data pictures/c.png --model foe_bsd --choose discrepancy --noise 0.06",
    "images model weight": "--data pictures/c.png --model icnn_bsd --weight 0.5 --max-evaluations 60",
    "images model weakly convex": "--data pictures/c.png --model wcrr_bsd --accuracy 0.01",
    "images network": "--data pictures/c.png --model lpd_ct --unchecked",
    "ct fbp": "--data scan.npz --method fbp --size 24 --filter hann",
    "ct tv": "--data scan.npz --method tv --size 24",
    "ct tv weight": "--data scan.npz --method tv --size 20 --weight 0.3 --nonnegative --noise 0.02 --views 20",
    "ct tv counts": "--data counts.npz --method tv --size 20 --flat 1000 --dark 3 --photons 1000",
    "ct tv DXchange": "--data scan.h5 --method tv --geometry geometry.yaml",
    "ct model": "--data scan.npz --model crr_ct --size 24 --accuracy 0.1",
    "ct model icnn": "--data scan.npz --model icnn_ct --size 20 --noise 0.02 --weight 0.1 --accuracy 0.02",
    "ct adversarial": "--data scan.npz --model icnn_ar_ct --size 20 --noise 0.02 --choose discrepancy",
    "ct network": "--data scan.npz --model lpd_ct --size 32 --unchecked",
    "ct network checked": "--data scan.npz --model lpd_ct --size 32",
    "ct rings": "--data scan.npz --method fbp --size 24 --ring-filter 5 --rotation-centre 15.2",
    "ct simulated": "--data ct/0.dcm --task ct --method tv --views 16 --photons 1e5 --seed 3",
    "ct simulated pictures": "--data pictures --task ct --method fbp --views 9 --noise 0.01 --size 16",
    "ct simulated model": "--data ct/1.dcm ct/2.dcm --task ct --model crr_ct --size 16 --views 9 --noise 0.05",
    "mri zero_filled": "--data k.npy --method zero_filled --reference k_true.npy",
    "mri tv": "--data k.npy --method tv",
    "mri tv sweep": "--data k.npy --method tv --choose sweep --reference k_true.npy --noise 0.01",
    "mri tv coils": "--data coils.npy --method tv --noise-scan noise.npy --accuracy 0.05",
    "mri model": "--data coils.npy --model crr_mri --noise 0.01",
    "mri model icnn": "--data k.npy --model icnn_mri --weight 0.5 --noise 0.01",
    "mri fastMRI": "--data fastmri/a.h5 --method tv --index 1",
    "mri simulated": "--data mr/3.dcm --task mri --method tv --mask radial --acceleration 2 --coils 2 --noise 5",
    "mri simulated model": "--data pictures --task mri --model tv_bsd --noise 0.02 --size 20 --weight 0.2",
}

REFUSED = {
    "no data": "--data nowhere.png --method tv --weight 1",
    "no method": "--data pictures/a.png",
    "two ways to the weight": "--data pictures/a.png --method tv --weight 1 --choose sweep",
    "option of another task": "--data pictures/a.png --method tv --weight 1 --views 3",
    "option of another method": "--data scan.npz --method fbp --weight 1",
    "unknown model": "--data pictures/a.png --model tv_bds",
    "two ways to the noise": "--data scan.npz --method tv --counts --flat 1000 --photons 1000",
    "plain form of a regularizer": "--data pictures/a.png --model foe_bsd --plain",
    "unreachable accuracy": "--data scan.npz --model icnn_ct --size 20 --noise 0.02 --weight 0.1 --dtype float32",
    "fbp of k-space": "--data k.npy --method fbp",
    "zero weight": "--data pictures/a.png --method tv --weight 0",
    "no views": "--data ct/0.dcm --task ct --method tv --noise 1",
    "another size of the reference": "--data k.npy --method tv --reference pictures/a.png",
    "sweep without reference": "--data pictures/a.png --method tv --choose sweep",
    "network with a weight": "--data scan.npz --model lpd_ct --weight 2",
}


def compute(context: Context) -> dict[str, Any]:
    cases, folder = Cases(), context.work
    write_all(folder)
    _write_geometry(folder)
    for name, line in RECONSTRUCTIONS.items():
        cases.add(f"reconstruct {name}", lambda a=line, n=name: _reconstruct(a, n, folder))
    for name, line in REFUSED.items():
        cases.add(f"reconstruct refuses {name}", lambda a=line, n=name: _reconstruct(a, n, folder))
    _training(cases, context)
    _comparisons(cases, context)
    cases.add("models", lambda: _said("models"))
    cases.add("card", lambda: _said("models", "foe_bsd"))
    cases.add("unknown command", lambda: run("reconstrct", folder=folder))
    return cases.results


def _write_geometry(folder: Path) -> None:
    import yaml

    from recon.operators import ParallelBeam

    pixels = {"detector_pixels": 31, "detector_spacing": 10.0}
    geometry = ParallelBeam.equispaced((20, 20), 15.0, 40, **pixels)  # type: ignore[arg-type]
    (folder / "geometry.yaml").write_text(yaml.safe_dump(geometry.to_dict()))


def _reconstruct(line: str, name: str, folder: Path) -> dict[str, Any]:
    output = f"results/{name.replace(' ', '_')}"
    result = run("reconstruct", *line.split(), "--output", output, folder=folder)
    return result | {"files": contents(folder / output)}


def _said(*arguments: str) -> dict[str, Any]:
    """What a command prints, without the places of files and the width of the terminal."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = main(list(arguments))
    words = [word for word in out.getvalue().split() if "/" not in word and word.isalnum()]
    return {"status": status, "words": len(words), "text": digest(" ".join(words).encode())}


# --- training -------------------------------------------------------------------------------------------------------


def _models() -> dict[str, tuple[str, dict[str, Any]]]:
    """For every training: name -> the data module, and the section ``model`` of the configuration."""

    def module(place: str, name: str, **arguments: Any) -> dict[str, Any]:
        return {"class_path": class_path(f"models.{place}", name), "init_args": arguments}

    def part(name: str, **arguments: Any) -> dict[str, Any]:
        return {"class_path": name, "init_args": arguments}

    tv, icnn = part("models.TotalVariation"), part("models.ICNN", filters=3, size=3, width=0.05)
    foe = part("models.FieldsOfExperts", filters=3, size=3, weak_convexity=0.5)
    ltv = part("models.LearnedTV", kernels=2, log_weight=-2.6, norm="fair", smoothing=0.01, image_convexity=0.1)
    critic = part("models.ConvolutionalCritic", filters=[4, 4], size=3)
    unet, lpd = part("models.UNet", scales=2, channels=4), part("models.LearnedPrimalDual", iterations=2, channels=4)
    maid, psnr = part("recon.bilevel.MAID", tolerance=1e-4), part("recon.bilevel.NegativePSNR")
    adam = {"class_path": class_path("models.critic_training", "CriticAdam"), "init_args": {"lr": 0.01}}
    saddle = {"optimizer": maid, "reconstruction_accuracy": 0.1}
    tuned = {"optimizer": adam, "penalty": 10.0, "tune_images": 2}
    fista = part("recon.lower_level.FISTA", max_iterations=3000)
    stochastic = part("recon.bilevel.InexactAdam", lr=0.03, batch_size=1)
    return {
        "tv": ("denoising", module("bilevel", "BilevelModule", regularizer=tv, optimizer=maid, loss=psnr)),
        "foe": ("denoising", module("bilevel", "BilevelModule", regularizer=foe, optimizer=stochastic)),
        "published": (
            "denoising",
            module("bilevel", "BilevelModule", regularizer=tv, optimizer=part("recon.bilevel.PublishedMAID")),
        ),
        "icnn_ct": (
            "ct",
            module("bilevel", "BilevelModule", regularizer=icnn, optimizer=maid, mu=0.2, solver=fista),
        ),
        "tv_mri": ("mri", module("bilevel", "BilevelModule", regularizer=tv, optimizer=maid, mu=0.01)),
        "learned_tv": ("denoising", module("saddle", "SaddleModule", regularizer=ltv, loss=psnr, **saddle)),
        "learned_tv_ct": ("ct", module("saddle", "SaddleModule", regularizer=ltv, **saddle)),
        "unet": ("denoising", module("supervised", "SupervisedModule", reconstructor=unet, batch_size=1, steps=8)),
        "lpd_ct": ("ct", module("supervised", "SupervisedModule", reconstructor=lpd, batch_size=1, steps=8)),
        "ar": ("denoising", module("adversarial", "AdversarialModule", regularizer=icnn, mu=0.1, **tuned)),
        "critic": (
            "denoising",
            module("adversarial", "AdversarialModule", regularizer=critic, descent_iterations=20, **tuned),
        ),
    }


def _data(kind: str) -> dict[str, Any]:
    names = {"denoising": "DenoisingDataModule", "ct": "TomographyDataModule", "mri": "MRIDataModule"}
    arguments: dict[str, Any] = {"denoising": DENOISING, "ct": CT, "mri": MRI}[kind]
    return {"class_path": f"datasets.{names[kind]}", "init_args": arguments}


#: which kept models are applied by ``recon reconstruct``: name -> options
APPLIED = {
    "tv": "--data pictures/a.png --accuracy 0.01",
    "foe": "--data pictures/a.png --weight 0.7",
    "icnn_ct": "--data scan.npz --size 16 --noise 0.02 --weight 0.1",
    "tv_mri": "--data k.npy --noise 0.01",
    "learned_tv": "--data pictures/a.png --accuracy 0.1",
    "learned_tv_ct": "--data scan.npz --size 16 --noise 0.02 --weight 0.1 --max-evaluations 200",
    "unet": "--data pictures/a.png",
    "lpd_ct": "--data scan.npz --size 16 --unchecked",
    "ar": "--data pictures/a.png --noise 0.1 --choose discrepancy",
    "critic": "--data pictures/a.png",
}


def _training(cases: Cases, context: Context) -> None:
    """Training, going on, test, prediction; and with the run that the version to compare with has left."""
    for name, (kind, model) in _models().items():
        cases.add(f"fit {name}", lambda n=name, k=kind, m=model: _fit(n, k, m, context))
        cases.add(f"go on with {name}", lambda n=name: _go_on(n, context))
        for command in ("validate", "test", "predict") if kind != "mri" else ("test",):
            cases.add(f"{command} {name}", lambda c=command, n=name: _apply(c, n, context))
        for suffix in (".safetensors", ".ckpt"):
            if name in APPLIED:
                line = f"{APPLIED[name]} --model {_model_file(context.kept / name, suffix)}"
                cases.add(
                    f"reconstruct with {name}{suffix}",
                    lambda a=line, n=f"{name}{suffix}": _reconstruct(a, n, context.work),
                )


def _fit(name: str, kind: str, model: dict[str, Any], context: Context) -> dict[str, Any]:
    runs = context.work / "runs" / name
    epochs = CRITIC_EPOCHS if name == "critic" else EPOCHS
    trainer = {"max_epochs": epochs, "check_val_every_n_epoch": epochs, "limit_val_batches": 2}
    content = {"model": model, "data": _data(kind), "trainer": trainer | {"default_root_dir": str(runs)}}
    result = run("fit", "--config", configuration(context.work, name, content), folder=context.work)
    files = contents(runs)
    (run_folder,) = runs.iterdir()
    if context.writing:
        shutil.copytree(run_folder, context.kept / name, ignore=shutil.ignore_patterns("tensorboard", "images"))
    return result | {"files": files}


def _go_on(name: str, context: Context) -> dict[str, Any]:
    """Two more iterations from the kept checkpoint, in a copy of its run, with its own configuration."""
    runs = context.work / "resumed" / name
    shutil.copytree(context.kept / name, runs / "version_0")
    arguments = ["--config", str(runs / "version_0" / "config.yaml"), "--trainer.default_root_dir", str(runs)]
    checkpoint = str(runs / "version_0" / "checkpoints" / "last.ckpt")
    result = run(
        "fit",
        *arguments,
        "--ckpt_path",
        checkpoint,
        "--trainer.max_epochs",
        str((CRITIC_EPOCHS if name == "critic" else EPOCHS) + EPOCHS),
        folder=context.work,
    )
    return result | {"files": contents(runs)}


def _apply(command: str, name: str, context: Context) -> dict[str, Any]:
    """A command on the kept run."""
    runs, kept = context.work / command / name, context.kept / name
    limit = f"--trainer.limit_{command.replace('validate', 'val')}_batches"
    result = run(
        command,
        "--config",
        str(kept / "config.yaml"),
        "--ckpt_path",
        str(kept / "checkpoints" / "last.ckpt"),
        "--trainer.default_root_dir",
        str(runs),
        limit,
        "2",
        folder=context.work,
    )
    return result | {"files": contents(runs)}


def _model_file(kept: Path, suffix: str) -> Path:
    """The model, or the checkpoint, of a kept run."""
    if suffix == ".ckpt":
        return kept / "checkpoints" / "last.ckpt"
    made = next((f for f in sorted(kept.glob("*.safetensors"))), None)
    return made if made is not None else kept / "regularizer.safetensors"


# --- comparisons ----------------------------------------------------------------------------------------------------


def _comparisons(cases: Cases, context: Context) -> None:
    kept = {name: {"model": str(_model_file(context.kept / name, ".safetensors"))} for name in APPLIED}
    denoising = {"tv": {"baseline": "tv"}, "shipped": {"model": "tv_bsd"}, "network": kept["unet"], "ar": kept["ar"]}
    trained = {"tv": {"baseline": "tv"}, "fitted": {"config": "tv.yaml"}, "critic": kept["critic"]}
    ct = {"fbp": {"baseline": "fbp"}, "tv": {"baseline": "tv"}, "lpd": kept["lpd_ct"], "icnn": kept["icnn_ct"]}
    mri = {"zero_filled": {"baseline": "zero_filled"}, "tv": {"baseline": "tv"}, "learned": kept["tv_mri"]}
    for name, kind, methods in (
        ("denoising", "denoising", denoising),
        ("trained", "denoising", trained),
        ("ct", "ct", ct),
        ("mri", "mri", mri),
        ("saddle", "denoising", {"learned_tv": kept["learned_tv"]}),
    ):
        cases.add(f"compare {name}", lambda n=name, k=kind, m=methods: _compare(n, k, m, context.work))


def _compare(name: str, kind: str, methods: dict[str, Any], folder: Path) -> dict[str, Any]:
    data = _data(kind)
    if kind == "denoising":
        small = folder / "test_pictures"
        small.mkdir(exist_ok=True)
        for file in ("a.png", "b.png"):
            shutil.copy(folder / "pictures" / file, small / file)
        data = {**data, "init_args": {**data["init_args"], "test": str(small)}}
    content = {"data": data, "accuracy": 0.2, "validation_images": 1, "methods": methods}
    file = configuration(folder, f"compare_{name}", content)
    output = folder / "compared" / name
    result = run("compare", "--config", file, "--output", str(output), folder=folder)
    return result | {"files": contents(output), "methods": exact(sorted(methods))}

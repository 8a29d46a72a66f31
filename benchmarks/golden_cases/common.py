"""What the groups of golden files share: bits of tensors, seeded images, and the parts of small problems.

Only names that packages export are used, so that files can move to other folders.
"""

from __future__ import annotations

import hashlib
import importlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import ICNN, ConvexRidge, ConvolutionalCritic, FieldsOfExperts, LeakyReLU, TotalVariation, WeaklyConvexRidge
from recon.lower_level import DataFidelity, KullbackLeibler, Recreatable, Regularizer, SquaredL2, WeightedSquaredL2
from recon.operators import (
    Blur,
    CartesianMRI,
    FanBeam,
    Identity,
    LinearOperator,
    Mask,
    ParallelBeam,
    RayTransform,
    simulated_sensitivities,
)

#: regularizers of a few parameters whose non-linearities matter for images with values of order one
REGULARIZERS: dict[str, Callable[[], Regularizer]] = {
    "tv": lambda: TotalVariation(-2.0, -2.5),
    "foe": lambda: FieldsOfExperts(3, 3, "smoothed_l1", log_weight=-2, log_width=-2),
    "foe_log_cosh": lambda: FieldsOfExperts(3, 3, "log_cosh", log_weight=-2, smallest_width=0.05, unit_norm=True),
    "foe_student": lambda: FieldsOfExperts(3, 3, "student_t", log_weight=-2, log_width=-1),
    "foe_weak": lambda: FieldsOfExperts(3, 3, "smoothed_l1", log_weight=-2, log_width=-2, weak_convexity=0.7),
    "crr": lambda: ConvexRidge(3, 3, knots=6, spacing=0.15, log_weight=-1.5, log_width=-1),
    "wcrr": lambda: WeaklyConvexRidge(3, 3, knots=6, spacing=0.15, log_weight=-1.5, log_width=-1, weak_convexity=0.7),
    "icnn": lambda: ICNN(4, 3, activation=LeakyReLU(width=0.05), log_weight=-2),
    "icnn_deep": lambda: ICNN(
        3, 3, layers=2, inner_size=3, log_weight=-2, activation=LeakyReLU(width=0.05, kind="smooth")
    ),
}


@dataclass(frozen=True)
class Context:
    """Where a group may work, and the files that the version to compare with has left.

    work: an empty folder. kept: models and checkpoints of that version; they are written if ``writing``, else read.
    """

    work: Path
    kept: Path
    writing: bool


@dataclass
class Cases:
    """The results of a group: name -> field -> value. A case that raises keeps the message."""

    results: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, name: str, compute: Callable[[], Mapping[str, Any]]) -> None:
        """Run one case with the generator of torch seeded by its name."""
        assert name not in self.results, name
        torch.manual_seed(seed_of(name))
        try:
            self.results[name] = dict(compute())
        except Exception as error:  # whatever it is: it must be the same after the migration
            self.results[name] = {"raises": f"{type(error).__name__}: {error}"}


def attempt(compute: Callable[[], Tensor]) -> str:
    """The bits of a tensor, or the error instead: for a part of a case that must not hide the others."""
    try:
        return bits(compute())
    except Exception as error:
        return f"raises {type(error).__name__}: {error}"


def seed_of(name: str) -> int:
    return zlib.crc32(name.encode())


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def bits(tensor: Tensor) -> str:
    """Type, shape and SHA-256 of all bits."""
    values = tensor.detach().cpu().contiguous()
    plain = torch.view_as_real(values) if values.is_complex() else values
    kind = str(values.dtype).removeprefix("torch.")
    return f"{kind} {list(values.shape)} {digest(plain.numpy().tobytes())}"


def exact(value: Any) -> Any:
    """Floats as ``float.hex``, small tensors as lists of them; other plain values as they are."""
    if isinstance(value, Tensor):
        return exact(value.detach().cpu().flatten().tolist())
    if isinstance(value, bool):
        return value
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, int):  # an IntEnum too
        return int(value)
    if isinstance(value, Mapping):
        return {str(k): exact(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [exact(v) for v in value]
    return None if value is None else str(value)


def arguments(model: Recreatable) -> dict[str, Any]:
    """Of its constructor, groups field by field: the names in files that were written before there were groups."""
    found: dict[str, Any] = {}
    for name, value in model.constructor_arguments().items():
        if is_dataclass(value) and not isinstance(value, type):
            others = {f"{field}_{name}" if name == "convexity" else field: v for field, v in asdict(value).items()}
            found |= {name if field == "kind" else field: v for field, v in others.items()}
        else:
            found[name] = value
    return found


def normal(*shape: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Seeded normal numbers, the same in both types up to rounding."""
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


def pictures(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Piecewise constant images about one half, with a little texture: ``(batch, channels, height, width)``."""
    coarse = normal(*shape[:2], -(-shape[2] // 3), -(-shape[3] // 3), seed=seed, scale=0.2)
    image = coarse.repeat_interleave(3, 2).repeat_interleave(3, 3)[..., : shape[2], : shape[3]]
    return (0.5 + image + normal(*shape, seed=seed + 1, scale=0.02)).to(dtype)


def regularizer(name: str, dtype: torch.dtype = torch.float64) -> Regularizer:
    """One of ``REGULARIZERS``, with normal numbers added to all its parameters."""
    made = critic() if name == "critic" else REGULARIZERS[name]()
    with torch.no_grad():
        for k, p in enumerate(made.parameters()):
            p += normal(*p.shape, seed=100 + k, scale=0.1, dtype=p.dtype)
    return made.to(dtype)


def critic() -> Regularizer:
    return ConvolutionalCritic(1, (3, 4), 3, log_scale=-2.0)


def operators() -> dict[str, LinearOperator]:
    """Small operators of every kind; those of CT about as large as the others."""
    i, j = torch.arange(11)[:, None], torch.arange(13)
    lines = ((i + 2 * j) % 3 != 0) | ((i - 5).abs() + (j - 6).abs() < 4)
    parallel = ParallelBeam.equispaced((12, 11), 0.2, 9)
    fan = FanBeam.equispaced((10, 10), 0.2, 8, source_distance=3.0, detector_distance=2.0)
    return {
        "identity": Identity(),
        "blur": Blur(0.8, (1, 11, 13)),
        "blur_reflect": Blur(1.1, (1, 12, 9), boundary="reflect"),
        "mask": Mask(lines[None]),
        "mri": CartesianMRI(lines),
        "mri_coils": CartesianMRI(lines[:, :12], simulated_sensitivities(3, (11, 12))),
        "ray": RayTransform(parallel, cache=False),
        "fan": RayTransform(fan, cache=False),
    }


def truth(operator: LinearOperator, batch: int, dtype: torch.dtype, seed: int = 3) -> Tensor:
    """Pictures that ``operator`` takes; of odd sizes where it takes all."""
    return pictures(batch, *(operator.domain_shape or (1, 11, 13)), seed=seed, dtype=dtype)


def fidelity(name: str, exact_data: Tensor, seed: int = 5) -> tuple[DataFidelity, Tensor]:
    """The fidelity, and noisy data of ``exact_data`` for it."""
    noise = normal(*exact_data.shape, seed=seed, scale=0.1, dtype=exact_data.dtype)
    if name == "l2":
        return SquaredL2(1.3), exact_data + noise
    if name == "weighted":
        weights = 0.5 + normal(*exact_data.shape[1:], seed=seed + 1).abs()
        return WeightedSquaredL2(weights.to(exact_data.dtype)), exact_data + noise
    counts = (20 * (exact_data + noise).clamp_min(0)).round() / 20
    return KullbackLeibler(0.2), counts


def public(module: str, name: str) -> Any:
    """A class that its package exports; before it does, from the module where it was defined."""
    package = importlib.import_module(module.partition(".")[0])
    return getattr(package, name) if hasattr(package, name) else getattr(importlib.import_module(module), name)

"""``recon reconstruct`` with networks that reconstruct in one pass: what they were trained for, and their results."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models.files.setting import describe_operator, setting_difference
from recon.commands.reconstruct.options import check_network_options
from recon.operators import RayTransform
from recon.reconstruction import Network, Problem, Reconstructor, Request

#: what reports say instead of a certificate
NOT_CERTIFIED = "nothing is certified: the model is a network that reconstructs in one pass, and minimizes no energy"
#: levels of noise that differ by less are taken for the same, as most are estimated
NOISE_FACTOR = 1.25


@dataclass(frozen=True)
class TrainedNetwork:
    """A network on the device, in the precision it was saved in.

    setting: the operator and noise it was trained for, see :mod:`models.files.setting`; None if the file does not say.
    unchecked: whether it is applied to another operator, with a warning.
    """

    reconstructor: Reconstructor
    file: str
    setting: Mapping[str, object] | None
    unchecked: bool

    @staticmethod
    def of(reconstructor: Reconstructor, metadata: Mapping[str, object], args: argparse.Namespace) -> TrainedNetwork:
        """The network of ``--model``; ``args.dtype`` becomes its precision.

        Raises
        ------
        ValueError
            options are given that networks have not.
        """
        check_network_options(args, type(reconstructor).__name__)
        tensors = [*reconstructor.parameters(), *reconstructor.buffers()]
        dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
        args.dtype = str(dtype).removeprefix("torch.")
        setting = metadata.get("setting")
        setting = setting if isinstance(setting, Mapping) else None
        reconstructor.to(args.device).requires_grad_(False).eval()
        return TrainedNetwork(reconstructor, args.model, setting, args.unchecked)

    @property
    def name(self) -> str:
        """Of the class."""
        return type(self.reconstructor).__name__

    def __call__(self, problem: Problem) -> tuple[Tensor, list[str]]:
        """x of one problem, and in what the problem is not the one of the training.

        Raises
        ------
        ValueError
            another operator, or an unknown one, unless ``unchecked``; data or images with other numbers of channels; a
            result that is not finite.
        """
        warnings = self._differences(problem)
        try:
            x = Network(self.reconstructor).reconstruct(problem, Request()).solution.x
        except ValueError as error:  # networks know no files
            raise ValueError(f"{problem.source}: {error}") from error
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"{problem.source}: {self.file} returns values that are NaN or infinite")
        return x, warnings

    def _differences(self, problem: Problem) -> list[str]:
        if self.setting is None:
            text = f"{self.file} does not say for which operator and noise it was trained (metadata.setting)"
            if not self.unchecked:
                raise ValueError(f"{text}; give --unchecked if you know that they are those of {problem.source}")
            return [text]
        found = []
        now = {"operator": describe_operator(problem.operator)}
        difference = setting_difference({"operator": self.setting.get("operator")}, now)
        if difference is not None:
            text = f"{self.file} was trained for another operator than that of {problem.source}: {difference}"
            if not self.unchecked:
                raise ValueError(f"{text}; --unchecked applies it all the same")
            found.append(text)
        noise = self.setting.get("noise")
        trained = trained_noise(noise, problem)
        level = f"{problem.scale * problem.noise.deviation:.3g} ({problem.noise.rule})"
        here = f"the noise of {problem.source}, standard deviation {level}"
        if trained is None:
            found.append(f"{here}, cannot be compared with that of the training of {self.file}: {noise}")
        elif not trained / NOISE_FACTOR <= problem.noise.deviation <= trained * NOISE_FACTOR:
            found.append(f"{here}, is not that of the training of {self.file}, {problem.scale * trained:.3g}")
        if problem.weights is not None:
            found.append(f"{self.file} does not use the photons of the rays of {problem.source}")
        return found


def trained_noise(noise: object, problem: Problem) -> float | None:
    """Standard deviation of the noise that the description means for these data; None if it is not of that kind."""
    if not isinstance(noise, Mapping):
        return None
    sigma, relative = noise.get("sigma"), noise.get("relative_sigma")
    if isinstance(sigma, (int, float)):
        return float(sigma)
    if isinstance(relative, (int, float)) and isinstance(problem.operator, RayTransform):
        return float(relative) * float(problem.y.double().abs().mean())
    return None

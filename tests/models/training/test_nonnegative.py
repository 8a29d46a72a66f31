"""x >= 0 in modules: the solver says so, and then all that reconstructs keeps to it, as `recon reconstruct` does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models import ICNN, ConvolutionalCritic, LeakyReLU, TotalVariation
from models.training.adversarial import AdversarialModule
from models.training.bilevel import BilevelModule, EnergyModule
from recon import metrics
from recon.lower_level import LBFGS, ProjectedLBFGS, Solver
from recon.reconstruction import Data, EarlyStopped, Method, Request, Variational
from tests.lower_level.problems import perturb, smooth_image

MU = 0.1


def data() -> Tensor:
    """Half of it is negative."""
    x = smooth_image(2, 1, 10, 10, seed=1)
    return x - x.mean()


def cases(solver: Solver) -> list[tuple[EnergyModule, Method]]:
    options = {"solver": solver, "mu": MU}
    tv = TotalVariation(-2.0, -2.0).double()
    convex = perturb(ICNN(filters=4, size=3, activation=LeakyReLU(width=0.1, kind="smooth")).double(), 0, 0.2)
    critic = ConvolutionalCritic(filters=(3, 4), size=3).double()
    return [
        (BilevelModule(tv, **options), Variational(tv, MU)),  # type: ignore[arg-type]
        (AdversarialModule(convex, **options), Variational(convex, MU)),  # type: ignore[arg-type]
        (AdversarialModule(critic, **options, descent_iterations=7), EarlyStopped(critic, MU, 7)),  # type: ignore[arg-type]
    ]


@pytest.mark.parametrize("which", range(3))
def test_minimizers_and_descents_are_those_over_images_that_are_not_negative(which: int) -> None:
    y = data()
    module, method = cases(ProjectedLBFGS())[which]
    found = module.reconstruct(y)
    expected = method.reconstruct(Data(y=y), Request(module.reconstruction_accuracy, nonnegative=True)).solution
    assert torch.equal(found.x, expected.x)
    assert torch.equal(found.error, expected.error)
    assert float(found.x.min()) >= 0


@pytest.mark.parametrize("which", range(3))
def test_other_solvers_minimize_over_all_images(which: int) -> None:
    module, _ = cases(LBFGS())[which]
    assert float(module.reconstruct(data()).x.min()) < 0


@pytest.mark.parametrize("solver", [ProjectedLBFGS(), LBFGS()])
def test_the_weight_of_a_critic_is_tuned_with_what_is_reconstructed(solver: Solver) -> None:
    y = data()
    x = y.clamp_min(0)
    module, _ = cases(solver)[2]
    assert isinstance(module, AdversarialModule)
    module.weight = 1.0
    module.tune_weight(x, y)
    found = module.reconstruct(y).x
    assert max(quality for _, quality in module.trials) == pytest.approx(float(metrics.psnr(found, x).mean()))

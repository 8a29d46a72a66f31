"""Methods of reconstruction: one interface, what each returns, x >= 0, weights, and what is refused by name."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models import Convexity, ConvolutionalCritic, LearnedTV, TotalVariation, UNet
from recon.lower_level import LBFGS, Energy, ProjectedLBFGS, SaddleModel, SaddlePoint, WeightedSquaredL2, first_guess
from recon.lower_level.solvers.descent import descend
from recon.operators import Blur, Identity
from recon.reconstruction import Data, Direct, EarlyStopped, Method, Network, Request, Saddle, Variational, of_energy
from recon.reconstruction.early_stopped import critic_reconstruction
from tests.lower_level.problems import make, normal, smooth_image

SHAPE = (1, 9, 8)


def images(batch: int = 2) -> Tensor:
    return 0.5 + 0.3 * smooth_image(batch, *SHAPE, seed=3) + normal(batch, *SHAPE, seed=4, scale=0.1)


def blur() -> Blur:
    return Blur(torch.full((3, 3), 1 / 9), SHAPE).double()


def learned_tv(convexity: float = 0.0) -> LearnedTV:
    model = LearnedTV(2, 3, log_weight=-1.5, convexity=Convexity(0.3, 0.2, convexity))
    return model.double()


def critic() -> ConvolutionalCritic:
    return ConvolutionalCritic(filters=(3, 3), size=3, log_scale=1.0).double()


@pytest.mark.parametrize(
    "method",
    [
        Direct(),
        Network(UNet(scales=2, channels=2).double()),
        Variational(TotalVariation(-2.0, -3.0).double(), 0.1),
        EarlyStopped(critic(), 0.0, 5),
        Saddle(learned_tv(0.1)),
        Saddle(learned_tv(0.1), plain=True),
    ],
    ids=["direct", "network", "variational", "early stopped", "saddle", "plain"],
)
@pytest.mark.parametrize("measured", [False, True])
def test_every_method_reconstructs_a_batch_by_one_interface(method: Method, measured: bool) -> None:
    operator = blur() if measured else Identity()
    problem = Data(y=operator(images()), operator=operator)
    with torch.no_grad():
        made = method.reconstruct(problem, Request(0.05))
        alone = method.reconstruct(Data(y=problem.y[1:], operator=operator), Request(0.05))
    assert made.solution.x.shape == images().shape
    assert made.solution.error.shape == made.solution.status.shape == (2,)
    torch.testing.assert_close(alone.solution.x, made.solution.x[1:], atol=0.11, rtol=0)
    certified = made.certifies and not (isinstance(method, Saddle) and method.plain)
    assert (made.solution.error <= 0.05).all() == certified
    assert made.status == ("not certified" if isinstance(method, EarlyStopped) else "converged")


def test_minimizers_are_those_of_the_solver_bit_for_bit() -> None:
    """With weights of each image, mirrored at the boundary, and x >= 0."""
    regularizer, y = make("foe_l1", seed=3), images() - 0.4
    weights = 0.5 + normal(2, *SHAPE, seed=5).abs()
    problem = Data(y=y, weights=weights)
    whole = problem.mirrored(regularizer.margin)
    assert regularizer.margin > 0
    assert whole.weights is not None
    energy = Energy(whole.y, regularizer, Identity(), WeightedSquaredL2(whole.weights), 0.1)
    rows, cols = regularizer.margin, regularizer.margin
    for nonnegative, solver in ((False, LBFGS()), (True, ProjectedLBFGS())):
        made = Variational(regularizer, 0.1).reconstruct(problem, Request(1e-3, nonnegative=nonnegative))
        exact = solver(energy, first_guess(energy.operator, energy.y), 1e-3).x[..., rows:-rows, cols:-cols]
        assert torch.equal(made.solution.x, exact)
        assert bool((made.solution.x >= 0).all()) == nonnegative


def test_a_weight_multiplies_the_regularizer() -> None:
    problem, seen = Data(y=images(1)), []
    made = Variational(TotalVariation(-2.0, -3.0).double()).reconstruct(
        problem, Request(1e-6, weight=3.0), lambda phase, count, error: seen.append((phase, count, error))
    )
    heavier = Variational(TotalVariation(-2.0 + math.log(3.0), -3.0).double()).reconstruct(problem, Request(1e-6))
    assert float((made.solution.x - heavier.solution.x).norm()) <= 4e-6
    assert (made.choice.weight, made.choice.rule) == (3.0, "given")
    assert [count for _, count, _ in seen] == list(range(1, int(made.solution.evaluations.max()) + 1))
    assert seen[-1][0] == "final solution"
    assert seen[-1][2] < seen[0][2]


@pytest.mark.parametrize("nonnegative", [False, True])
def test_early_stopped_descent_goes_so_many_steps_from_data_inverted_without_a_prior(nonnegative: bool) -> None:
    operator, regularizer = blur(), critic()
    y = operator(images() - 0.6)
    made = EarlyStopped(regularizer, 0.01, 7).reconstruct(
        Data(y=y, operator=operator), Request(nonnegative=nonnegative)
    )
    energy = Energy(y, regularizer, operator, mu=0.01)
    x = critic_reconstruction(y, operator)
    if not nonnegative:
        assert torch.equal(made.solution.x, descend(energy, x, 7)[0])
    start = x.clamp(min=0) if nonnegative else x
    assert bool((made.solution.x >= 0).all()) == nonnegative
    assert bool((energy.value_and_grad(made.solution.x)[0] < energy.value_and_grad(start)[0]).all())
    assert made.solution.error.isinf().all()
    assert made.accuracy is None


def test_projected_descent_ends_at_the_constrained_minimizer() -> None:
    energy = Energy(images() - 0.5, TotalVariation(-2.0, -2.0).double())
    exact = ProjectedLBFGS()(energy, energy.y, 1e-6).x
    found, _ = descend(energy, energy.y, 400, nonnegative=True)
    torch.testing.assert_close(found, exact, atol=1e-4, rtol=0)


def test_descent_is_for_what_has_no_modulus_and_steps() -> None:
    problem = Data(y=images())
    assert isinstance(of_energy(problem, critic(), 0.0, 5), EarlyStopped)
    assert isinstance(of_energy(problem, TotalVariation(-2.0).double(), 0.0, 5), Variational)
    measured = Data(y=images(), operator=blur())
    assert isinstance(of_energy(measured, TotalVariation(-2.0).double(), 0.0, 5), EarlyStopped)
    refused = of_energy(problem, critic(), 0.0, None)
    with pytest.raises(ValueError, match="a certificate needs a strongly convex energy"):
        refused.reconstruct(problem, Request(0.1))


def test_saddle_points_with_weights_of_each_image() -> None:
    """As with weights and data of one image alone, whose weights have no batch."""
    operator, weights = blur(), 0.5 + normal(2, *SHAPE, seed=5).abs()
    y = operator(images())
    method = Saddle(learned_tv(0.1))
    both = method.reconstruct(Data(y=y, operator=operator, weights=weights), Request(1e-3)).solution
    for i in range(2):
        one = Data(y=y[i : i + 1], operator=operator, weights=weights[i])
        alone = method.reconstruct(one, Request(1e-3)).solution
        assert torch.equal(alone.x[0], both.x[i])
        assert float(alone.error) == float(both.error[i]) <= 1e-3


def test_channels_are_saddle_points_of_their_own() -> None:
    y = images(3)
    joint = Saddle(learned_tv()).reconstruct(Data(y=y.transpose(0, 1)), Request(1e-4)).solution
    alone = Saddle(learned_tv()).reconstruct(Data(y=y), Request(1e-6)).solution
    assert joint.x.shape == (1, 3, *SHAPE[1:])
    assert float((joint.x[0] - alone.x[:, 0]).norm()) <= float(joint.error) + 1e-5
    assert float(joint.error) <= 1e-4


def test_what_has_no_place_is_refused_by_name() -> None:
    problem, saddle = Data(y=images()), Saddle(learned_tv())
    with pytest.raises(ValueError, match=r"x >= 0 does not go with .*LearnedTV"):
        saddle.reconstruct(problem, Request(0.1, nonnegative=True))
    with pytest.raises(ValueError, match="LearnedTV has no mu for denoising"):
        Saddle(learned_tv(), mu=0.1).reconstruct(problem, Request(0.1))
    with pytest.raises(ValueError, match="needs the noise of the data"):
        saddle.reconstruct(problem, Request(0.1, choose="discrepancy"))

    class Fixed(SaddleModel):
        def saddle_point(self, y: Tensor) -> SaddlePoint:
            return learned_tv().saddle_point(y)

    assert Saddle(Fixed()).reconstruct(problem, Request(0.1)).solution.converged
    with pytest.raises(ValueError, match="the weight of Fixed cannot be changed"):
        Saddle(Fixed()).reconstruct(problem, Request(0.1, weight=2.0))
    with pytest.raises(ValueError, match="Fixed takes no operator"):
        Saddle(Fixed()).reconstruct(Data(y=images(), operator=blur()), Request(0.1))
    with pytest.raises(ValueError, match="Fixed has no mu that could be changed"):
        Saddle(Fixed(), mu=0.1).reconstruct(Data(y=images(), operator=blur()), Request(0.1))


def test_scaled_models_are_copies_that_share_their_operator() -> None:
    model, operator = learned_tv(0.1), blur()
    model.measured_by(operator)
    other = model.scaled(2.0, mu=0.3)
    assert other._operator[0] is operator
    assert (model.dual_convexity, other.dual_convexity) == (0.3, 0.15)
    assert (model.image_convexity, other.image_convexity) == (0.1, 0.3)
    assert float((other.log_weight - model.log_weight).detach()) == pytest.approx(math.log(2))
    with pytest.raises(ValueError, match="the weight is 0, but must be positive"):
        model.scaled(0)

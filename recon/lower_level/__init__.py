"""The inverse problem: energies, solvers that certify their results, and the interfaces of their parts."""

from recon.lower_level.batch import over_image, per_image_dot, per_image_norm
from recon.lower_level.contract import ContractError, check_contract
from recon.lower_level.energy import Energy, NotStronglyConvexError
from recon.lower_level.fidelity import DataFidelity, KullbackLeibler, SquaredL2, WeightedSquaredL2
from recon.lower_level.grade import Grade
from recon.lower_level.recreatable import Recreatable
from recon.lower_level.regularizer import (
    HessianMap,
    HessianVariation,
    JacobianBounds,
    Regularizer,
)
from recon.lower_level.saddle.functionals import Blocks, Functional, Squared, Vanishing
from recon.lower_level.saddle.maps import SaddleMap
from recon.lower_level.saddle.norms import FairNorm, HuberNorm, HuberReLU, SmoothedNorm
from recon.lower_level.saddle.pdhg import PDHG, SaddleSolution, SaddleSolve
from recon.lower_level.saddle.problem import SaddleModel, SaddlePoint
from recon.lower_level.solution import LinearSolution, Solution, Status
from recon.lower_level.solvers.cg import conjugate_gradients
from recon.lower_level.solvers.first_guess import first_guess
from recon.lower_level.solvers.fista import FISTA
from recon.lower_level.solvers.iterate import Snapshot, Solve, Solver, SteppedSolver
from recon.lower_level.solvers.lbfgs import LBFGS, ProjectedLBFGS, projected_gradient
from recon.lower_level.solvers.total_variation.problem import TotalVariationProblem, TotalVariationSolution
from recon.lower_level.solvers.total_variation.solver import TotalVariationSolver

__all__ = [
    "FISTA",
    "LBFGS",
    "PDHG",
    "Blocks",
    "ContractError",
    "DataFidelity",
    "Energy",
    "FairNorm",
    "Functional",
    "Grade",
    "HessianMap",
    "HessianVariation",
    "HuberNorm",
    "HuberReLU",
    "JacobianBounds",
    "KullbackLeibler",
    "LinearSolution",
    "NotStronglyConvexError",
    "ProjectedLBFGS",
    "Recreatable",
    "Regularizer",
    "SaddleMap",
    "SaddleModel",
    "SaddlePoint",
    "SaddleSolution",
    "SaddleSolve",
    "SmoothedNorm",
    "Snapshot",
    "Solution",
    "Solve",
    "Solver",
    "Squared",
    "SquaredL2",
    "Status",
    "SteppedSolver",
    "TotalVariationProblem",
    "TotalVariationSolution",
    "TotalVariationSolver",
    "Vanishing",
    "WeightedSquaredL2",
    "check_contract",
    "conjugate_gradients",
    "first_guess",
    "over_image",
    "per_image_dot",
    "per_image_norm",
    "projected_gradient",
]

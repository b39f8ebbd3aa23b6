"""Training a linearised network in function space: outputs move by tangent kernels alone.

A network linearised at its weights θ_0 has the outputs f_0(x) + J(x)(θ − θ_0). What any training
with SGD or gradient flow does to them follows from the kernel Θ = J Jᵀ between the examples, at
finite width (empirical kernels) as at infinite width (analytic ones). :class:`SquaredError` is
closed form, :func:`train_on_batches` and :func:`gradient_flow` take any loss; all lead to a
:class:`Trajectory`, which knows the outputs at every example. Formulas: docs/function_space.md.
"""

from Training.function_space.ensemble import (
    EnsembleTrajectory,
    Gaussian,
    InfiniteEnsemble,
    gp_posterior,
)
from Training.function_space.gradient_flow import gradient_flow
from Training.function_space.kernels import regularized
from Training.function_space.linearized import LinearizedModel
from Training.function_space.minibatches import train_on_batches
from Training.function_space.modes import Modes
from Training.function_space.replay import batch_numbers, beyond_outputs, sgd_rule, sgd_rules
from Training.function_space.responses import Stretch, stretches
from Training.function_space.squared_error import SquaredError
from Training.function_space.stable_rate import (
    largest_curvature,
    largest_eigenvalue,
    largest_lr,
    stable_edge,
)
from Training.function_space.trajectory import Trajectory

__all__ = [
    "EnsembleTrajectory",
    "Gaussian",
    "InfiniteEnsemble",
    "LinearizedModel",
    "Modes",
    "SquaredError",
    "Stretch",
    "Trajectory",
    "batch_numbers",
    "beyond_outputs",
    "gp_posterior",
    "gradient_flow",
    "largest_curvature",
    "largest_eigenvalue",
    "largest_lr",
    "regularized",
    "sgd_rule",
    "sgd_rules",
    "stable_edge",
    "stretches",
    "train_on_batches",
]

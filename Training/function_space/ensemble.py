"""Infinitely many linearised networks with Gaussian initial outputs, and Gaussian processes.

Lee et al. 2019, "Wide neural networks of any depth evolve as linear models under gradient
descent" (arXiv 1902.06720): initial outputs f_0 ~ GP(0, K), independent for each output, K the
NNGP kernel; all train with the same tangent kernel Θ. After any time
f_t(x) = f_0(x) − Θ(x, X) B_t (f_0(X) − y) with B_t a function of Θ(X, X), so that f_t is Gaussian
again. Their equations 14 to 16 are its mean and covariance under gradient flow, where
B_t = Θ⁻¹(1 − e^{−wΘt}); here B_t is also that of discrete steps.

Shape letters: N training examples, E others, C outputs, T times, n = N modes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from Training.function_space.kernels import as_matrix
from Training.function_space.modes import Modes
from Training.function_space.responses import (
    Response,
    Stretch,
    descent_response,
    flow_response,
)
from Utils.errors import UserError


@dataclass(frozen=True)
class Gaussian:
    """Outputs at E examples, independent for each of C outputs.

    Attributes:
        mean: [..., E, C].
        covariance: [..., E, E], of every output.
    """

    mean: Tensor
    covariance: Tensor

    @property
    def variance(self) -> Tensor:
        """[..., E]."""
        return self.covariance.diagonal(dim1=-2, dim2=-1)


@dataclass(frozen=True)
class EnsembleTrajectory:
    """What the training of an ensemble leads to, at any example; all in Θ's modes.

    Attributes:
        modes: of Θ(X, X).
        solved: eigenvalues of B_t [T, n].
        targets: Uᵀy [n, C].
        prior: UᵀK(X, X)U [n, n].
    """

    modes: Modes
    solved: Tensor
    targets: Tensor
    prior: Tensor

    def train(self) -> Gaussian:
        """f_t(X), over T times."""
        moved = (self.modes.values * self.solved)[..., None]  # [T, n, 1]
        left = self.modes.vectors * (1 - moved.mT)  # [T, N, n]
        mean = self.modes.vectors @ (moved * self.targets)
        return Gaussian(mean, left @ self.prior @ left.mT)

    def at(self, tangent_cross: Tensor, prior_cross: Tensor, prior: Tensor) -> Gaussian:
        """f_t(x), over T times.

        Args:
            tangent_cross: Θ(x, X) [E, N].
            prior_cross: K(x, X) [E, N].
            prior: K(x, x) [E, E].
        """
        weights = as_matrix(tangent_cross) @ self.modes.vectors * self.solved[:, None]  # [T, E, n]
        mixed = weights @ (as_matrix(prior_cross) @ self.modes.vectors).T
        covariance = as_matrix(prior) - mixed - mixed.mT + weights @ self.prior @ weights.mT
        return Gaussian(weights @ self.targets, covariance)


class InfiniteEnsemble:
    """All networks of an infinite width, trained with squared error.

    Args:
        tangent: Θ(X, X) [N, N], or its modes.
        prior: K(X, X) [N, N].
        targets: y [N, C].
        slope: w of the loss, as of :class:`SquaredError`.

    Raises:
        UserError: Θ is no kernel.
    """

    def __init__(
        self, tangent: Tensor | Modes, prior: Tensor, targets: Tensor, slope: float | None = None
    ):
        self.modes = tangent if isinstance(tangent, Modes) else Modes.of(tangent)
        self.slope = 2 / targets.numel() if slope is None else slope
        self._prior, self._targets = as_matrix(prior), targets.double()

    def flow(self, times: Sequence[float]) -> EnsembleTrajectory:
        """Gradient flow, after ascending times of which the last may be infinite."""
        return self._trajectory(flow_response(self._curvatures, times))

    def descent(self, schedule: Sequence[Stretch], at: Sequence[float]) -> EnsembleTrajectory:
        """Full-batch steps, as of :meth:`SquaredError.descent`.

        Raises:
            UserError: weights decay, which ends the linear regime of infinitely wide networks.
        """
        if any(stretch.rule.wd for stretch in schedule):
            raise UserError(
                "weight decay changes an infinitely wide network's tangent kernel; leave --wd 0"
            )
        return self._trajectory(descent_response(self._curvatures, schedule, at))

    @property
    def _curvatures(self) -> Tensor:
        return self.slope * self.modes.values

    def _trajectory(self, response: Response) -> EnsembleTrajectory:
        rotated = self.modes.vectors.T @ self._prior @ self.modes.vectors
        amplitudes = self.modes.amplitudes(self._targets)
        solved = -self.slope * self.modes.settled(response.residual, self.slope)
        return EnsembleTrajectory(self.modes, solved, amplitudes, rotated)


def gp_posterior(
    kernel: Tensor | Modes,
    targets: Tensor,
    cross: Tensor,
    prior: Tensor,
    noise: float = 0.0,
) -> Gaussian:
    """Bayesian inference with the prior f ~ GP(0, kernel) and Gaussian noise on the targets.

    With the NNGP kernel that of infinitely wide networks (Lee et al. 2018, arXiv 1711.00165); with
    the tangent kernel NTKGP (He et al. 2020, arXiv 2007.05864), the ensembles of whom are trained
    with squared error from f_0 ~ GP(0, Θ).

    Args:
        kernel: [N, N] of the training examples, or its modes.
        targets: y [N, C].
        cross: of E examples with them [E, N].
        prior: of those E examples [E, E].
        noise: σ², its variance; of a singular kernel without noise the pseudo-inverse is taken.

    Raises:
        UserError: the noise is negative, or the kernel is no kernel.
    """
    if noise < 0:
        raise UserError(f"the variance of the noise is {noise:g}; it must be at least 0")
    modes = kernel if isinstance(kernel, Modes) else Modes.of(kernel)
    projected = as_matrix(cross) @ modes.vectors  # [E, n]
    weights = projected * modes.inverse(noise)
    mean = weights @ modes.amplitudes(targets)
    return Gaussian(mean, as_matrix(prior) - weights @ projected.T)

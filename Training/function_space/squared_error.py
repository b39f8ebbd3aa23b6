"""Training a linearised network with squared error, in closed form at any step."""

from collections.abc import Sequence

from torch import Tensor

from Training.discrete_laws import Coefficients
from Training.function_space.modes import Modes
from Training.function_space.responses import (
    Response,
    Stretch,
    descent_response,
    flow_response,
)
from Training.function_space.stable_rate import largest_lr
from Training.function_space.trajectory import Trajectory, missing_radial
from Utils.errors import UserError


class SquaredError:
    """A linearised network and a loss with the slopes ∂L/∂f = w (f − y).

    The kernel is decomposed once, n³; a time costs one product with U.

    Args:
        kernel: Θ of the training examples [N, N] or [N, N, C, C], or its modes.
        outputs: f_0(X) [N, C].
        targets: y [N, C].
        slope: w; ``None`` is 2/(NC), that of this project's ``mse``, a mean over examples and
            outputs. 1/(NC) is that of ½ the mean, the usual loss of the theory.
        radial: z = J(X)θ_0 [N, C], needed for weight decay. Zeros let weights decay towards the
            initial ones.

    Raises:
        UserError: the kernel is no kernel, or targets have another shape than outputs.

    Attributes:
        curvatures: h = wλ [n], ascending: the Gauss-Newton matrix's eigenvalues.
    """

    def __init__(
        self,
        kernel: Tensor | Modes,
        outputs: Tensor,
        targets: Tensor,
        slope: float | None = None,
        radial: Tensor | None = None,
    ):
        if outputs.shape != targets.shape:
            raise UserError(
                f"outputs of shape {tuple(outputs.shape)} and targets of shape "
                f"{tuple(targets.shape)} differ; give both as [N, C], classes one-hot"
            )
        self.modes = kernel if isinstance(kernel, Modes) else Modes.of(kernel)
        self.slope = 2 / outputs.numel() if slope is None else slope
        self.curvatures = self.slope * self.modes.values
        self._outputs, self._radial = outputs.double(), radial
        self._residual = self.modes.amplitudes(self._outputs - targets)

    def flow(self, times: Sequence[float], decay: float = 0.0) -> Trajectory:
        """Gradient flow θ̇ = −∇L − μθ.

        Args:
            times: ascending, in units of learning rate times steps; the last may be infinite.
            decay: μ.

        Raises:
            UserError: weights decay, and there is no ``radial``.
        """
        self._check(decay)
        return self._trajectory(flow_response(self.curvatures, times, decay))

    def descent(self, schedule: Sequence[Stretch], at: Sequence[float]) -> Trajectory:
        """Full-batch SGD, heavy ball or Nesterov, step by step as ``torch.optim.SGD``.

        Args:
            schedule: what the steps are; :func:`stretches` makes it of a list of them.
            at: after how many steps, ascending; the last may be infinite.

        Raises:
            UserError: weights decay, and there is no ``radial``; or steps that do not converge
                are to be followed for ever.
        """
        self._check(max((stretch.rule.wd for stretch in schedule), default=0.0))
        return self._trajectory(descent_response(self.curvatures, schedule, at))

    def largest_lr(self, rule: Coefficients) -> float:
        """The largest learning rate at which steps with ``rule``'s other values stay bounded."""
        return largest_lr(float(self.curvatures[-1]), rule)

    def _check(self, decay: float) -> None:
        if decay and self._radial is None:
            raise missing_radial()

    def _trajectory(self, response: Response) -> Trajectory:
        classes = self._outputs.shape[1]
        residual = self.modes.settled(response.residual, self.slope)
        dual = self.slope * residual[..., None] * self._residual
        shift = self._outputs
        if self._radial is not None:
            amplitudes = self.modes.amplitudes(self._radial)
            dual = dual + self.slope * response.radial[..., None] * amplitudes
            shift = shift + (response.kept - 1)[:, None, None] * self._radial.double()
        moved = self.modes.values[:, None] * dual
        return Trajectory(
            shift + self.modes.outputs(moved, classes),
            self.modes.outputs(dual, classes),
            response.kept,
        )

"""The kernel by which a run's steps move the outputs, where that is known."""

from functools import cached_property
from typing import Any

from numpy.typing import NDArray
from torch import Tensor, nn

from Metrics.config import CacheConfig
from Metrics.kernels.at import WEIGHTED, KernelAt, State
from Metrics.kernels.empirical import EmpiricalKernelAt
from Metrics.model_at import ModelAt
from Metrics.tangent import tangent_kernel, weighted_kernel
from Models.parametrization.scales import Scales
from Training.discrete_laws import Coefficients
from Training.function_space import beyond_outputs, sgd_rule


class Moving:
    """Θ = Σ_p s_p J_p J_pᵀ, s_p the factors by which a parametrization multiplies learning rates.

    Without a parametrization, and where training does not follow from outputs alone, it is the
    tangent kernel itself.

    Args:
        config: the command line: which form of the kernel.
        model_at: how the run was trained.
        kernel_at: its tangent kernel.
    """

    def __init__(self, config: CacheConfig, model_at: ModelAt, kernel_at: KernelAt):
        self._form, self._model_at, self._at = config.kernel, model_at, kernel_at
        self._now: tuple[State, NDArray[Any]] | None = None

    @property
    def scales(self) -> Scales | None:
        """Those of the run's parametrization."""
        return self._model_at.scales

    @cached_property
    def why_not(self) -> str:
        """Why the steps do not follow from outputs alone; empty if they do."""
        return beyond_outputs(self._model_at.training, self.scales)

    @property
    def is_weighted(self) -> bool:
        """Whether it is another kernel than the tangent kernel."""
        return self.scales is not None and not self.why_not

    @property
    def formula(self) -> str:
        """For caches."""
        return WEIGHTED if self.is_weighted else self._at.formula

    def rule(self, step: int) -> Coefficients:
        """The hyper-parameters of the update after ``step``; there must be no :attr:`why_not`."""
        return sgd_rule(self._model_at.training, self._model_at.schedule, step, self.scales)

    def kernel(self, state: State) -> NDArray[Any]:
        """[N, N] or [N, N, C, C] on the metrics' examples; kept for the last state."""
        if not self.is_weighted:
            return state.kernel.total
        if self._now is None or self._now[0] is not state:
            assert isinstance(self._at, EmpiricalKernelAt)  # as there are factors
            found = self.of(self._at.restored(state), self._at.batch[0])
            self._now = state, found.cpu().numpy()
        return self._now[1]

    def of(self, model: nn.Module, inputs: Tensor, others: Tensor | None = None) -> Tensor:
        """Of a network with the run's parameters: [N, M] or [N, M, C, C], in the run's format.

        Args:
            model: in evaluation mode.
            inputs: [N, ...].
            others: [M, ...]; ``None`` stands for ``inputs``.
        """
        if not self.is_weighted:
            return tangent_kernel(model, inputs, others, form=self._form).total.detach()
        assert self.scales is not None
        factors = {scale.name: scale.lr for scale in self.scales.parameters}
        found = weighted_kernel(model, inputs, factors, others, form=self._form)
        return found.detach().to(self._at.dtype)

    def forecast(self, steps: int) -> list[str]:
        """What it takes beside the tangent kernels of so many checkpoints."""
        if not self.is_weighted:
            return []
        return [f"weighted by learning rates, {self._at.forecast(steps)}"]

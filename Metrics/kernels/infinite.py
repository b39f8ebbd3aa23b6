"""The tangent kernel of a run of infinite width, which does not move, and what it predicts.

Both read the kernels in the run's folder (:mod:`Training.infinite.kernels`): nothing is computed
from a network, and outputs are f = Θ(x, X) b of the dual variables b that a checkpoint holds.

Shape letters: N examples of the metrics, n training examples, C outputs.
"""

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from Data import load_dataset
from Data.batches import drawn_numbers
from Data.dataset import Examples
from Metrics.features import StepFeatures
from Metrics.kernels.at import WEIGHTED, Kernel, KernelAt, State, as_floats
from Metrics.kernels.linear import DESCENT, Linear, Outputs
from Training.config import TrainConfig
from Training.discrete_laws import Coefficients
from Training.function_space import (
    SquaredError,
    Trajectory,
    batch_numbers,
    gradient_flow,
    sgd_rules,
    stretches,
    train_on_batches,
)
from Training.infinite.kernels import kernel_part

_MATRICES = 4
"""Of the training kernel's size, in float64, while it is decomposed."""

_RATE = 1e10
"""Multiply-adds of a core in a second, about."""


class InfiniteKernelAt(KernelAt):
    """Θ = Σ_p s_p J_p J_pᵀ in the limit, in the units of --lr, the same at every step.

    All outputs have it, and there is none between different ones, so that ``--kernel full`` is
    Θ(x, x') δ_cd.
    """

    @property
    def normalisation(self) -> str:
        return "none"

    @property
    def is_exact(self) -> bool:
        return True

    @property
    def formula(self) -> str:
        return f"limit of {WEIGHTED}"

    @cached_property
    def cross(self) -> Tensor:
        """Θ(x, X) [N, n] between the metrics' examples and all training examples."""
        if self._config.kernel_on == "probe":
            return kernel_part(self.run, "probe")
        return kernel_part(self.run, "train")[self._numbers]

    @property
    def _numbers(self) -> Tensor:
        """Which training examples are those of the metrics, with --kernel-on train."""
        size, training = self._config.examples, self._at.training
        return drawn_numbers(len(examples_of(training)), size, training.seed, "examples")

    @cached_property
    def _kernel(self) -> Kernel:
        if self._config.kernel_on == "probe":
            own = kernel_part(self.run, "probe_own").numpy()
        else:
            own = self.cross[:, self._numbers].numpy()
        if self._config.kernel == "traced":
            return Kernel(own, {})
        outputs = self.targets.shape[1]
        return Kernel(own[..., None, None] * np.eye(outputs, dtype=own.dtype), {})

    def forecast(self, steps: int) -> str:
        config = self._config
        what = f"{config.kernel} kernels of infinite width, {steps} checkpoints"
        return self.within_memory(what, 0.0, self._stored(steps))

    def _compute(self, features: StepFeatures) -> State:
        logits = self.cross.double() @ features.parameter("dual").double()
        return State(features.step, as_floats(logits), self._kernel, {}, {})


class InfiniteLinear(Linear):
    """The outputs of the run's own steps, or of its flow, by its kernel and nothing else.

    Of full batches and of gradient flow they are closed forms; mini-batches are taken again. All
    training examples take part, as their kernel is there.
    """

    _kernel_at: InfiniteKernelAt

    def why_not(self, way: str) -> str:
        return self._late() if way == DESCENT else "a network of infinite width has no weights"

    @property
    def remark(self) -> str:
        return ""

    def forecast(self) -> list[str]:
        if self.why_not(DESCENT):
            return []
        size = len(self._examples)
        what = f"predictions from the kernel of {size} training examples"
        steps = self._model_at.schedule.total - self._start
        batch = self._model_at.schedule.phases[0].batch_size
        work = 10 * size**3 if self._is_closed else steps * batch * size * self._outputs
        needed = 8 * size**2 * (_MATRICES if self._is_closed else 1)
        return [self._kernel_at.within_memory(what, work / _RATE, needed)]

    @property
    def _outputs(self) -> int:
        return int(self._kernel_at.targets.shape[1])

    @cached_property
    def _examples(self) -> Examples:
        return examples_of(self._model_at.training)

    @property
    def _flows(self) -> bool:
        return self._model_at.training.optimizer == "flow"

    @property
    def _is_closed(self) -> bool:
        """Whether one eigendecomposition leads to all steps."""
        phases, size = self._model_at.schedule.phases, len(self._examples)
        whole = all(phase.batch_size >= size for phase in phases)
        return self._flows or (self._is_squared and whole)

    def _follow(self, way: str, steps: list[int]) -> Outputs:
        start = self._kernel_at.reference
        with self._kernel_at.features_of(self._kernel_at.reference_step) as features:
            dual = features.parameter("dual").double()
        kernel = kernel_part(self._kernel_at.run, "train")
        targets = self._wanted(self._examples.targets)
        path = self._path(kernel, kernel.double() @ dual, targets, [s - self._start for s in steps])
        found = path.at(self._kernel_at.cross, torch.from_numpy(start.logits))
        return {step: as_floats(f) for step, f in zip(steps, found, strict=True)}

    def _path(
        self, kernel: Tensor, outputs: Tensor, targets: Tensor, after: list[int]
    ) -> Trajectory:
        """What the run's training leads to, so many steps after the reference.

        Args:
            kernel: Θ(X, X) [n, n].
            outputs: f_0(X) [n, C].
            targets: [n, C] of squared error, [n] of cross-entropy.
            after: ascending.
        """
        loss, schedule = self._model_at.loss, self._model_at.schedule
        if self._flows:
            rates = [schedule.lr(step) for step in range(self._start, schedule.total)]
            sums = np.cumsum([0.0, *rates])
            times = [float(sums[step]) for step in after]
            if self._is_squared:
                return SquaredError(kernel, outputs, targets).flow(times)
            return gradient_flow(kernel, outputs, targets, loss, times)
        rules = self._rules
        if self._is_closed:
            return SquaredError(kernel, outputs, targets).descent(stretches(rules), after)
        training = self._model_at.training
        batches = list(batch_numbers(training, schedule, self._examples))[self._start :]
        count = max(after, default=0)
        return train_on_batches(
            kernel, outputs, targets, loss, rules[:count], batches[:count], after
        )

    @property
    def _rules(self) -> list[Coefficients]:
        training, schedule = self._model_at.training, self._model_at.schedule
        return sgd_rules(training, schedule)[self._start :]


def examples_of(training: TrainConfig) -> Examples:
    """A run's training examples."""
    options = training.data_options
    return load_dataset(training.dataset, training.data_dir, training.seed, **options).train

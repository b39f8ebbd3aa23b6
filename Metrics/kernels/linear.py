"""What training would do to the outputs if the network were linear in its weights.

Three ways from the network at ``--reference``: *weights*, the linear model trained by the run's
own optimizer on the run's own batches; and, in function space, from the tangent kernel on
training examples, *descent*, full batches at the run's learning rates and momentum, and *flow*,
gradient flow.

Shape letters: N examples of the metrics, n training examples, C outputs.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from Metrics.config import CacheConfig
from Metrics.kernels.at import KernelAt
from Metrics.kernels.measures import Floats
from Metrics.kernels.moving import Moving
from Metrics.model_at import ModelAt

WEIGHTS, DESCENT, FLOW = "weights", "descent", "flow"

Outputs = Mapping[int, Floats]
"""[N, C] by step."""


class Linear(ABC):
    """The linear model's outputs on the examples of the metrics, at the steps with features.

    Args:
        config: the command line.
        hyperparameters: the run's.
        model_at: how it was trained, and its training examples.
        kernel_at: its kernel, and the examples of the metrics.

    Attributes:
        moving: the kernel of the predictions in function space.
    """

    def __init__(
        self,
        config: CacheConfig,
        hyperparameters: Mapping[str, Any],
        model_at: ModelAt,
        kernel_at: KernelAt,
    ):
        self._config, self._hyperparameters = config, hyperparameters
        self._model_at, self._kernel_at = model_at, kernel_at
        self.moving = Moving(config, model_at, kernel_at)
        self._known: dict[str, Outputs] = {}

    def outputs(self, way: str, step: int) -> Floats | None:
        """[N, C] after so many updates; ``None`` before the reference, or where nothing is known.

        Args:
            way: "weights", "descent" or "flow".
            step: with features.
        """
        if step < self._start or self.why_not(way):
            return None
        if step not in self._known.get(way, {}):
            steps = self._kernel_at.feature_steps()
            self._known[way] = self._follow(way, [s for s in steps if s >= self._start])
        return self._known[way][step]

    @abstractmethod
    def why_not(self, way: str) -> str:
        """Why there is no prediction of this way; empty if there is one."""

    @property
    @abstractmethod
    def remark(self) -> str:
        """In what the predictions of function space differ from the run, if in anything."""

    @abstractmethod
    def forecast(self) -> list[str]:
        """What the predictions of function space take; raises ``UserError`` if it is too much."""

    @abstractmethod
    def _follow(self, way: str, steps: list[int]) -> Outputs:
        """The outputs of a way that is known, at steps from the reference on."""

    @property
    def _start(self) -> int:
        return self._config.reference

    @property
    def _is_squared(self) -> bool:
        return self._model_at.training.loss == "mse"

    def _wanted(self, targets: Tensor) -> Tensor:
        """Targets as function space takes them: [n, C] of squared error, [n] of cross-entropy."""
        targets = targets.cpu()
        if self._is_squared and not targets.is_floating_point():
            outputs = self._kernel_at.targets.shape[1]
            return torch.nn.functional.one_hot(targets, outputs).double()
        return targets.double() if targets.is_floating_point() else targets

    def _late(self) -> str:
        """Why nothing is predicted from the reference on, if it is too late for it."""
        if self._start and self._model_at.training.momentum:
            return f"the velocity is not zero at --reference {self._start}"
        if self._start >= self._model_at.schedule.total:
            return f"no step follows --reference {self._start}"
        return ""

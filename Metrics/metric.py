"""What every metric is to the pass over the features."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from Metrics.config import CacheConfig
from Metrics.features import StepFeatures
from Metrics.kernels.at import KernelAt
from Metrics.kernels.linear import Linear
from Metrics.model_at import ModelAt
from Metrics.predictions import Predict
from Models.symmetry import Laws

Arrays = Mapping[str, NDArray[Any]]
"""Arrays by their path in the cache file."""


@dataclass(frozen=True)
class Context:
    """What a metric may know before it sees features.

    Attributes:
        laws: the run's conservation laws.
        config: the command line.
        hyperparameters: of the run, as ``hyperparameters.json`` has them.
        model_at: the run's network at the checkpoints; costs nothing until it is used.
        predict: gives what the laws say of the charges at a checkpoint.
        kernel_at: the run's tangent kernel at the checkpoints; likewise.
        linear: what the run would do if it were linear in its weights; likewise.
    """

    laws: Laws
    config: CacheConfig
    hyperparameters: Mapping[str, Any]
    model_at: ModelAt
    predict: Predict
    kernel_at: KernelAt
    linear: Linear

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.hyperparameters["seed"])

    @property
    def buffers(self) -> frozenset[str]:
        """What the run kept with ``--save-buffers``."""
        return frozenset(self.hyperparameters.get("save_buffers", ()))


@dataclass(frozen=True)
class Verdict:
    """Whether a theory applies to the units of a layer.

    Attributes:
        open: [units] whether the preconditions have held to the end.
        reason: why not, where they have not; empty if all have.
    """

    open: NDArray[np.bool_]
    reason: str


class Metric(Protocol):
    """A reduction of features to curves.

    The cache file holds :meth:`rows` stacked over checkpoints, :meth:`dense` concatenated
    over them, and :meth:`verdicts` of the newest.
    """

    @property
    def settings(self) -> Mapping[str, int | str]:
        """The flags that shape the curves: a cache is only continued with the same ones."""

    def rows(self, features: StepFeatures) -> Arrays:
        """Arrays [units] of one checkpoint, by "curve/layer"."""

    def dense(self, features: StepFeatures) -> Arrays:
        """Arrays [D] of the steps since the previous checkpoint; none for most metrics."""

    def verdicts(self, features: StepFeatures) -> Mapping[str, Verdict]:
        """Whether theory applies, by layer."""


@runtime_checkable
class Derives(Protocol):
    """What else a metric is whose curves follow from those of several checkpoints."""

    def derived(self, curves: Arrays) -> Arrays:
        """Curves of the cache that are made anew from all the others at every write.

        Args:
            curves: "steps" [T], and :meth:`Metric.rows` and :meth:`Metric.dense` over all steps.
        """


@runtime_checkable
class Describes(Protocol):
    """What else a metric is whose arrays are not all curves of units."""

    @property
    def axes(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the axes after that of the steps, by curve; the others have units."""

    @property
    def attributes(self) -> Mapping[str, str]:
        """What else its cache says of itself."""


@runtime_checkable
class Forecasts(Protocol):
    """What else a metric is that takes long, or much memory."""

    def forecast(self, steps: int) -> list[str]:
        """What so many checkpoints will take, in lines; those of several metrics may be equal.

        Raises:
            UserError: they need more than there is.
        """


class Curves:
    """Base of metrics that have no theory beside them."""

    def __init__(self, context: Context):
        self.context = context

    @property
    def settings(self) -> Mapping[str, int | str]:
        return {}

    def dense(self, features: StepFeatures) -> Arrays:
        return {}

    def verdicts(self, features: StepFeatures) -> Mapping[str, Verdict]:
        return {}


def vector(value: float) -> NDArray[np.float64]:
    """A single number as an array of one unit."""
    return np.array([value], dtype=np.float64)

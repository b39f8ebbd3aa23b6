"""What every metric is to the pass over the features."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from Metrics.config import CacheConfig
from Metrics.features import StepFeatures
from Metrics.model_at import ModelAt
from Models.symmetry import Laws

Arrays = Mapping[str, NDArray[Any]]
"""Arrays by their path in the cache file."""


@dataclass(frozen=True)
class Context:
    """What a metric may know before it sees features.

    Attributes:
        laws: the run's conservation laws.
        config: the command line.
        seed: the run's seed.
        model_at: the run's network at the checkpoints; costs nothing until it is used.
        buffers: what the run kept with ``--save-buffers``.
    """

    laws: Laws
    config: CacheConfig
    seed: int
    model_at: ModelAt
    buffers: frozenset[str]


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

"""What every metric is to the pass over the features."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from Metrics.config import CacheConfig
from Metrics.features import StepFeatures
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
    """

    laws: Laws
    config: CacheConfig
    seed: int


class Metric(Protocol):
    """A reduction of features to curves.

    The cache file holds :meth:`rows` stacked over checkpoints, :meth:`dense` concatenated
    over them, and :meth:`latest` of the newest.
    """

    def rows(self, features: StepFeatures) -> Arrays:
        """Arrays [units] of one checkpoint."""

    def dense(self, features: StepFeatures) -> Arrays:
        """Arrays [D] of the steps since the previous checkpoint; none for most metrics."""

    def latest(self, features: StepFeatures) -> Arrays:
        """Arrays [units] that only the newest checkpoint can tell."""

    def attributes(self, features: StepFeatures) -> Mapping[str, Mapping[str, str]]:
        """HDF5 attributes by dataset path, from the newest checkpoint."""


class Curves:
    """Base of metrics that have no theory beside them."""

    def __init__(self, context: Context):
        self.context = context

    def dense(self, features: StepFeatures) -> Arrays:
        return {}

    def latest(self, features: StepFeatures) -> Arrays:
        return {}

    def attributes(self, features: StepFeatures) -> Mapping[str, Mapping[str, str]]:
        return {}


def vector(value: float) -> NDArray[np.float64]:
    """A single number as an array of one unit."""
    return np.array([value], dtype=np.float64)

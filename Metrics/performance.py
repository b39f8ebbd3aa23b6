"""Losses and accuracies."""

from Metrics.features import StepFeatures
from Metrics.metric import Arrays, Curves, vector

_NAMES = ("train_loss", "test_loss", "accuracy1", "accuracy5")


class Performance(Curves):
    """The numbers that were evaluated at checkpoints; NaN where they were not."""

    def rows(self, features: StepFeatures) -> Arrays:
        return {f"empirical/{name}": vector(features.metric(name)) for name in _NAMES}

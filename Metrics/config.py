"""The flags of stage 3."""

from pydantic import Field

from Metrics.registry import METRICS
from Utils.config import Names, PathPart, RunConfig


class CacheConfig(RunConfig):
    """Compute metrics from features, each beside the prediction of its theory.

    All metrics are computed in one pass. Steps that a cache holds are skipped; run it again,
    also while training goes on, to pick up new ones.
    """

    metrics: Names = Field(METRICS.names, description="Which metrics, listed below.")
    suffix: PathPart = Field("", description="Added to the names of the cache files.")
    subset: int = Field(
        32,
        ge=0,
        description="Entries of each parameter that network and weights_grads follow; 0: all.",
    )

    def metric_names(self) -> list[str]:
        """The metrics by their own names, each once; raises ``UserError`` for unknown ones."""
        return list(dict.fromkeys(METRICS[name].name for name in self.metrics))

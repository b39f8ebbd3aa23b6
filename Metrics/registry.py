"""The metrics that exist, by the names that the user types."""

from dataclasses import dataclass
from typing import Literal

from Utils.registry import Entry, Registry

_PAPER = "Kunin et al., Neural Mechanics, ICLR 2021"


@dataclass(frozen=True)
class MetricEntry(Entry):
    """A metric.

    The builder is called as ``builder(context)`` with a :class:`Metrics.metric.Context` and
    returns a :class:`Metrics.metric.Metric`.

    Attributes:
        title: of its figure.
        ylabel: the quantity, as mathtext.
        units: of the quantity.
        kind: "law" if predictions stand beside the measurements, "curves" if not.
    """

    title: str = ""
    ylabel: str = ""
    units: str = "1"
    kind: Literal["law", "curves"] = "curves"


METRICS: Registry[MetricEntry] = Registry(
    "metric",
    [
        MetricEntry(
            "scale",
            "Metrics.charges:scale",
            "squared norms of weights that a normalisation follows, and their law",
            _PAPER,
            title="Scale symmetry",
            ylabel=r"$|W_i|^2 + b_i^2$",
            kind="law",
        ),
        MetricEntry(
            "rescale",
            "Metrics.charges:rescale",
            "differences of squared norms of consecutive layers, and their law",
            _PAPER,
            title="Rescale symmetry",
            ylabel=r"$|W^{\mathrm{out}}_i|^2 - |W^{\mathrm{in}}_i|^2 - b_i^2$",
            kind="law",
        ),
        MetricEntry(
            "translation",
            "Metrics.charges:translation",
            "sums of weights that a softmax or normalisation ignores, and their law",
            _PAPER,
            title="Translation symmetry",
            ylabel=r"$\langle c, \theta \rangle$",
            kind="law",
        ),
        MetricEntry(
            "performance",
            "Metrics.performance:Performance",
            "losses and accuracies at the ends of epochs",
            title="Performance",
            ylabel="loss, accuracy",
        ),
        MetricEntry(
            "network",
            "Metrics.network:Network",
            "single weights of every parameter, a random subset",
            title="Network parameters",
            ylabel=r"$\theta_i$",
        ),
    ],
    aliases={f"{name}-momentum": name for name in ("scale", "rescale", "translation")},
)

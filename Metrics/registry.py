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
        kind: "law" if predictions stand beside the measurements, "curves" if not; "budget" for
            parts of a change, "rotation" for angles and norms.
    """

    title: str = ""
    ylabel: str = ""
    units: str = "1"
    kind: Literal["law", "curves", "budget", "rotation"] = "curves"


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
            "balance",
            "Metrics.balance:Balance",
            "matrices of linear layers in a row and of attention heads, and their law",
            "Arora et al., ICML 2018; Marcotte et al., NeurIPS 2023",
            title="Balance of matrices",
            ylabel=r"$(W_2^\top W_2 - W_1 W_1^\top)_{ij}$",
            kind="law",
        ),
        MetricEntry(
            "budget",
            "Metrics.budget:Budget",
            "what has changed each charge, for any optimizer: decay, kinetic energy and leak",
            title="Budget of conserved quantities",
            ylabel="change since step 0",
            kind="budget",
        ),
        MetricEntry(
            "rotation",
            "Metrics.rotation:Rotation",
            "angles, norms and effective learning rates of scale-invariant weights, and their "
            "equilibrium",
            "Kosson et al., Rotational Equilibrium, ICML 2024; Wan et al., NeurIPS 2021",
            title="Rotation of scale-invariant weights",
            ylabel="angle per step (rad)",
            units="rad",
            kind="rotation",
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

"""The metrics that exist, by the names that the user types."""

from dataclasses import dataclass
from typing import Literal

from Utils.registry import Entry, Registry

_PAPER = "Kunin et al., Neural Mechanics, ICLR 2021"


Kind = Literal["law", "phase", "units", "gradients", "stability", "certificate", "curves"]
"""The forms of figures."""


@dataclass(frozen=True)
class MetricEntry(Entry):
    """A metric.

    The builder is called as ``builder(context)`` with a :class:`Metrics.metric.Context` and
    returns a :class:`Metrics.metric.Metric`.

    Attributes:
        title: of its figure.
        ylabel: the quantity, as mathtext.
        units: of the quantity.
        kind: "law" if predictions stand beside the measurements; else the form of its figure:
            "phase" for velocities over positions, "units" for curves of units of layers,
            "gradients" for weights and their gradients, "stability" for eigenvalues and their
            threshold, "certificate" for deviations from zero, "curves" for anything.
        default: whether it is computed if no metrics are named; those that run the network at
            every checkpoint are not.
        needs: of which of ``--save-buffers`` the run must have kept one.
    """

    title: str = ""
    ylabel: str = ""
    units: str = "1"
    kind: Kind = "curves"
    default: bool = True
    needs: tuple[str, ...] = ()


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
        MetricEntry(
            "gradient",
            "Metrics.gradients:Gradient",
            "squared norms of the last step's gradient, of each filter or neuron",
            title="Gradient norms",
            ylabel=r"$|g_i|^2$",
            kind="units",
            needs=("grad", "grad_norm"),
        ),
        MetricEntry(
            "phase",
            "Metrics.phase:Phase",
            "squared norms of filters or neurons against their velocity in the last step",
            _PAPER,
            title="Phase portraits",
            ylabel=r"$\mathrm{d}|w|^2 / \mathrm{d}t$",
            kind="phase",
            needs=("update",),
        ),
        MetricEntry(
            "weights_grads",
            "Metrics.gradients:WeightsGrads",
            "single weights of convolutions and linear layers, and their gradients",
            title="Weights and gradients",
            ylabel=r"$\theta_i$",
            kind="gradients",
            needs=("grad",),
        ),
        MetricEntry(
            "weights_grads_full",
            "Metrics.gradients:WeightsGradsFull",
            "single weights of all parameters, and their gradients",
            title="Weights and gradients of all parameters",
            ylabel=r"$\theta_i$",
            kind="gradients",
            needs=("grad",),
        ),
        MetricEntry(
            "sharpness",
            "Metrics.sharpness:Sharpness",
            "largest Hessian and Gauss-Newton eigenvalues, and the edge of stability",
            "Cohen et al., Gradient Descent on Neural Networks Typically Occurs at the Edge of "
            "Stability, ICLR 2021; Adaptive Gradient Methods at the Edge of Stability, 2022",
            title="Sharpness and the edge of stability",
            ylabel="eigenvalue",
            units="loss / parameter²",
            kind="stability",
            default=False,
        ),
        MetricEntry(
            "certificate",
            "Metrics.certificate:Certificate",
            "what the symmetry of every law does to the network: nothing, but for its charge",
            _PAPER,
            title="Certificate of the symmetries",
            ylabel="relative deviation",
            kind="certificate",
            default=False,
        ),
    ],
    aliases={f"{name}-momentum": name for name in ("scale", "rescale", "translation")},
)

DEFAULT_METRICS: tuple[str, ...] = tuple(entry.name for entry in METRICS if entry.default)
"""What is computed if the user names no metrics."""

IF_NAMED: tuple[str, ...] = tuple(entry.name for entry in METRICS if not entry.default)
"""What is computed only if the user names it."""

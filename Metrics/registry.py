"""The metrics that exist, by the names that the user types."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Literal

from Utils.errors import UserError
from Utils.registry import Entry, Registry

_PAPER = "Kunin et al., Neural Mechanics, ICLR 2021"


Kind = Literal[
    "law",
    "budget",
    "rotation",
    "phase",
    "units",
    "gradients",
    "stability",
    "certificate",
    "curves",
    "exponents",
    "outputs",
    "coordinates",
    "transfer",
    "ensemble",
    "kernels",
    "spectrum",
    "alignment",
    "modes",
    "linearized",
    "lazy",
]
"""The forms of figures."""

Scope = Literal["run", "experiment"]
"""What a metric reads: the features of one run, or those of all runs of an experiment."""


@dataclass(frozen=True)
class MetricEntry(Entry):
    """A metric.

    The builder of a run's metric is called as ``builder(context)`` with a
    :class:`Metrics.metric.Context` and returns a :class:`Metrics.metric.Metric`; that of an
    experiment's is called without arguments and returns a
    :class:`Metrics.width.metric.WidthMetric`.

    Attributes:
        title: of its figure.
        ylabel: the quantity, as mathtext.
        units: of the quantity.
        kind: "law" if predictions stand beside the measurements; else the form of its figure:
            "budget" for parts of a change, "rotation" for angles and norms, "phase" for
            velocities over positions, "units" for curves of units of layers,
            "gradients" for weights and their gradients, "stability" for eigenvalues and their
            threshold, "certificate" for deviations from zero, "curves" for anything,
            "kernels", "spectrum", "alignment", "modes", "linearized" and "lazy" for tangent
            kernels and linear models, "exponents" for powers of the width, "coordinates" also for
            a phase diagram of parametrizations, "transfer" for losses over learning rates,
            "ensemble" for means and variances of networks, "outputs" for a histogram.
        default: whether it is computed if no metrics are named; those that run the network at
            every checkpoint are not.
        needs: of which of ``--save-buffers`` the run must have kept one.
        needs_laws: whether it is about conservation laws.
        scope: what it reads.
        weights: whether it is about weights, which networks of infinite width do not have.
        flags: those of cache.py's flags about single metrics that it reads.
    """

    title: str = ""
    ylabel: str = ""
    units: str = "1"
    kind: Kind = "curves"
    default: bool = True
    needs: tuple[str, ...] = ()
    needs_laws: bool = False
    scope: Scope = "run"
    weights: bool = True
    flags: tuple[str, ...] = ()

    def attributes(self, sources: Iterable[str]) -> dict[str, str]:
        """What a cache says of itself.

        Args:
            sources: what identifies the features it was made from.
        """
        return {
            "metric": self.name,
            "title": self.title,
            "ylabel": self.ylabel,
            "units": self.units,
            "kind": self.kind,
            "citation": self.citation,
            "features_hash": hashlib.sha256("\n".join(sources).encode()).hexdigest(),
            "versions": _versions(),
        }


@cache
def _versions() -> str:
    return json.dumps({name: metadata.version(name) for name in ("torch", "numpy", "h5py")})


_OF_KERNELS = ("kernel", "kernel_on")
_COMPARED = (*_OF_KERNELS, "reference")
_PREDICTED = (*_COMPARED, "examples")

_HAJJAR = "Hajjar, Chizat and Giraud (2021), arXiv 2110.15596"
_WIDTH = "Yang and Hu (2021), Tensor Programs IV, arXiv 2011.14522"


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
            needs_laws=True,
        ),
        MetricEntry(
            "rescale",
            "Metrics.charges:rescale",
            "differences of squared norms of consecutive layers, and their law",
            _PAPER,
            title="Rescale symmetry",
            ylabel=r"$|W^{\mathrm{out}}_i|^2 - |W^{\mathrm{in}}_i|^2 - b_i^2$",
            kind="law",
            needs_laws=True,
        ),
        MetricEntry(
            "translation",
            "Metrics.charges:translation",
            "sums of weights that a softmax or normalisation ignores, and their law",
            _PAPER,
            title="Translation symmetry",
            ylabel=r"$\langle c, \theta \rangle$",
            kind="law",
            needs_laws=True,
        ),
        MetricEntry(
            "balance",
            "Metrics.balance:Balance",
            "matrices of linear layers in a row and of attention heads, and their law",
            "Arora et al., ICML 2018; Marcotte et al., NeurIPS 2023",
            title="Balance of matrices",
            ylabel=r"$(W_2^\top W_2 - W_1 W_1^\top)_{ij}$",
            kind="law",
            needs_laws=True,
        ),
        MetricEntry(
            "budget",
            "Metrics.budget:Budget",
            "what has changed each charge, for any optimizer: decay, kinetic energy and leak",
            title="Budget of conserved quantities",
            ylabel="change since step 0",
            kind="budget",
            needs_laws=True,
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
            needs_laws=True,
        ),
        MetricEntry(
            "performance",
            "Metrics.performance:Performance",
            "losses and accuracies at the ends of epochs",
            title="Performance",
            ylabel="loss, accuracy",
            weights=False,
        ),
        MetricEntry(
            "network",
            "Metrics.network:Network",
            "single weights of every parameter, a random subset",
            title="Network parameters",
            ylabel=r"$\theta_i$",
            flags=("subset",),
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
            flags=("subset",),
        ),
        MetricEntry(
            "weights_grads_full",
            "Metrics.gradients:WeightsGradsFull",
            "single weights of all parameters, and their gradients",
            title="Weights and gradients of all parameters",
            ylabel=r"$\theta_i$",
            kind="gradients",
            needs=("grad",),
            flags=("subset",),
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
            flags=("examples", "eigenvalues"),
        ),
        MetricEntry(
            "certificate",
            "Metrics.certificate:Certificate",
            "what the symmetry of every law does to the network: nothing, but for its charge",
            _PAPER,
            title="Certificate of the symmetries",
            ylabel="relative deviation",
            kind="certificate",
            needs_laws=True,
            default=False,
            flags=("examples",),
        ),
        MetricEntry(
            "ntk",
            "Metrics.kernels.ntk:TangentKernels",
            "the tangent kernel: its change, velocity and top eigenspace",
            "Jacot, Gabriel and Hongler, Neural Tangent Kernel, NeurIPS 2018; Fort et al., Deep "
            "Learning versus Kernel Learning, NeurIPS 2020",
            title="Tangent kernel",
            ylabel=r"$\mathrm{tr}\,\Theta / N$",
            units="output² / parameter²",
            kind="kernels",
            default=False,
            weights=False,
            flags=_OF_KERNELS,
        ),
        MetricEntry(
            "spectrum",
            "Metrics.kernels.spectra:Spectrum",
            "eigenvalues and ranks of the tangent kernel, and the largest stable learning rate",
            "Jacot, Gabriel and Hongler, NeurIPS 2018; Xiao, Pennington and Schoenholz, ICML 2020",
            title="Spectrum of the tangent kernel",
            ylabel="eigenvalue",
            units="output² / parameter²",
            kind="spectrum",
            default=False,
            weights=False,
            flags=_OF_KERNELS,
        ),
        MetricEntry(
            "alignment",
            "Metrics.kernels.alignment:Alignment",
            "alignment of the tangent kernel with the targets, by layer and class",
            "Cortes, Mohri and Rostamizadeh, JMLR 2012; Atanasov, Bordelon and Pehlevan, Silent "
            "Alignment, ICLR 2022",
            title="Alignment of the tangent kernel",
            ylabel="alignment",
            kind="alignment",
            default=False,
            weights=False,
            flags=_COMPARED,
        ),
        MetricEntry(
            "modes",
            "Metrics.kernels.modes:Modes",
            "errors along the tangent kernel's eigenvectors, and their predicted decay",
            "Bordelon, Canatar and Pehlevan, ICML 2020; Lee et al., NeurIPS 2019",
            title="Errors along eigenvectors of the tangent kernel",
            ylabel="error of a mode",
            kind="modes",
            default=False,
            weights=False,
            flags=_PREDICTED,
        ),
        MetricEntry(
            "linearized",
            "Metrics.kernels.linearized:Linearized",
            "what the network would do if it were linear in its weights, trained the same way",
            "Lee et al., Wide Neural Networks of Any Depth Evolve as Linear Models, NeurIPS 2019",
            title="Linearized training",
            ylabel="loss, accuracy",
            kind="linearized",
            default=False,
            flags=_PREDICTED,
        ),
        MetricEntry(
            "lazy",
            "Metrics.kernels.lazy:Lazy",
            "changes of weights, kernel, activations and features, zero for lazy training",
            "Chizat, Oyallon and Bach, On Lazy Training, NeurIPS 2019; Geiger et al., 2020",
            title="Distance from lazy training",
            ylabel="relative change",
            kind="lazy",
            default=False,
            flags=_COMPARED,
        ),
        MetricEntry(
            "coordinates",
            "Metrics.width.coordinates:Coordinates",
            "sizes of coordinates against the width, and the own and propagated parts of their "
            "change",
            _WIDTH,
            title="Coordinate check",
            ylabel="root mean square",
            kind="coordinates",
            default=False,
            scope="experiment",
        ),
        MetricEntry(
            "update-norms",
            "Metrics.width.norms:UpdateNorms",
            "norms and stable ranks of weights and of their change against the width, and the "
            "spectral condition",
            "Yang, Simon and Bernstein (2023), arXiv 2310.17813",
            title="Norms of weights and updates",
            ylabel="norm",
            kind="exponents",
            default=False,
            scope="experiment",
        ),
        MetricEntry(
            "gradients",
            "Metrics.width.gradients:Gradients",
            "sizes of the outputs' derivatives by every layer against the width",
            _WIDTH,
            title="Gradients of the outputs",
            ylabel=r"$\partial f / \partial h$, root mean square",
            kind="exponents",
            default=False,
            scope="experiment",
        ),
        MetricEntry(
            "transfer",
            "Metrics.width.transfer:Transfer",
            "training losses over learning rates at every width, and how the best one moves",
            "Yang et al. (2022), Tensor Programs V, arXiv 2203.03466",
            title="Learning-rate transfer",
            ylabel="training loss",
            kind="transfer",
            default=False,
            scope="experiment",
        ),
        MetricEntry(
            "update-alignment",
            "Metrics.width.alignment:Alignment",
            "alignment of updates with what they act on, against the width",
            "Everett et al. (2024), arXiv 2407.05872",
            title="Alignment of updates",
            ylabel="alignment",
            kind="exponents",
            default=False,
            scope="experiment",
        ),
        MetricEntry(
            "contributions",
            "Metrics.width.contributions:Contributions",
            "what initial weights and training contribute to each layer, against the width",
            _HAJJAR,
            title="Contributions of initial weights and of training",
            ylabel="mean absolute value",
            kind="exponents",
            default=False,
            scope="experiment",
        ),
        MetricEntry(
            "ranks",
            "Metrics.width.contributions:Ranks",
            "ranks of weights, updates and layers' outputs, and diversity of neurons, "
            "against the width",
            _HAJJAR,
            title="Ranks",
            ylabel="rank",
            kind="exponents",
            default=False,
            scope="experiment",
        ),
        MetricEntry(
            "ntk-change",
            "Metrics.width.kernel:KernelChange",
            "size and relative change of the tangent kernel, against the width",
            "Lee et al., NeurIPS 2019; Dyer and Gur-Ari, ICLR 2020; " + _WIDTH,
            title="Change of the tangent kernel",
            ylabel="size, relative change",
            kind="exponents",
            default=False,
            scope="experiment",
        ),
        MetricEntry(
            "kernel-convergence",
            "Metrics.width.limit:KernelConvergence",
            "distance of the initial tangent kernel and covariance from those of infinite width, "
            "against the width",
            "Jacot et al., NeurIPS 2018; Hanin and Nica, ICLR 2020",
            title="Convergence to the kernels of infinite width",
            ylabel="relative deviation",
            kind="exponents",
            default=False,
            scope="experiment",
        ),
        MetricEntry(
            "ensemble",
            "Metrics.width.ensemble:Ensemble",
            "mean and variance of the outputs of many networks beside those of infinite width, "
            "at every step",
            "Lee et al., NeurIPS 2019; Dyer and Gur-Ari, ICLR 2020",
            title="Ensembles of networks and infinite width",
            ylabel="deviation from infinite width",
            kind="ensemble",
            default=False,
            scope="experiment",
        ),
        MetricEntry(
            "init-distribution",
            "Metrics.width.distribution:InitialDistribution",
            "size and kurtosis of the outputs of random networks, against the width",
            "Yaida (2020), Non-Gaussian processes, arXiv 1910.00019",
            title="Outputs at initialisation",
            ylabel="size, excess kurtosis",
            kind="outputs",
            default=False,
            scope="experiment",
        ),
    ],
    aliases={f"{name}-momentum": name for name in ("scale", "rescale", "translation")},
)

DEFAULT_METRICS: tuple[str, ...] = tuple(entry.name for entry in METRICS if entry.default)
"""What is computed if the user names no metrics."""

IF_NAMED: tuple[str, ...] = tuple(
    entry.name for entry in METRICS if entry.scope == "run" and not entry.default
)
"""What is computed of a run only if the user names it."""

OF_RUNS: tuple[str, ...] = tuple(entry.name for entry in METRICS if entry.scope == "run")
OF_EXPERIMENTS: tuple[str, ...] = tuple(name for name in METRICS.names if name not in OF_RUNS)
"""What reads one run, and what reads all runs of an experiment."""


_WITHOUT_A_RUN = {"alignment": "update-alignment"}
"""What a name means if no run is named, where a run's metric goes by it too."""


def metrics_table() -> str:
    """For ``--help``: the metrics with their descriptions, by what they read."""
    lines = dict(zip(METRICS.names, METRICS.table().splitlines(), strict=True))
    single, whole = ("\n".join(lines[n] for n in names) for names in (OF_RUNS, OF_EXPERIMENTS))
    return f"metrics of a run:\n{single}\n\nof all runs of an experiment, without --expid:\n{whole}"


def own_names(names: Sequence[str], expid: str) -> list[str]:
    """The metrics that are asked for together by their own names, each once.

    Args:
        names: as the user types them.
        expid: of the run, "" if none is named.

    Raises:
        UserError: there is no such metric.
    """
    meant = names if expid else [_WITHOUT_A_RUN.get(name, name) for name in names]
    return list(dict.fromkeys(METRICS[name].name for name in meant))


def scope_of(names: Sequence[str], expid: str) -> Scope:
    """What metrics that are asked for together read.

    Args:
        names: of the metrics, their own.
        expid: of the run, "" if none is named.

    Raises:
        UserError: some read runs and others experiments, or a run is named for those.
    """
    wide = [name for name in names if METRICS[name].scope == "experiment"]
    single = [name for name in names if name not in wide]
    if wide and single:
        raise UserError(
            f"--metrics {','.join(names)}: {_read(wide)} a whole experiment and {_read(single)} "
            "single runs; give them to two commands"
        )
    if wide and expid:
        raise UserError(
            f"--expid {expid}: {_read(wide)} all runs of the experiment; leave --expid out"
        )
    return "experiment" if wide else "run"


def _read(names: Sequence[str]) -> str:
    """Some metrics, and the verb that follows them."""
    return f"{', '.join(names)} {'read' if len(names) > 1 else 'reads'}"

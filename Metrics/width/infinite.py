"""A run of infinite width at its checkpoints: where widths go, for metrics that have a limit."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Protocol, runtime_checkable

from Metrics.features import StepFeatures, step_features
from Metrics.kernels.at import as_floats
from Metrics.kernels.measures import Floats
from Metrics.width.members import Member
from Metrics.width.metric import Values
from Models.infinite.limit import begins_at_zero
from Models.parametrization.network import Parametrized
from Models.symmetry import no_laws
from Training.infinite.kernels import kernel_part
from Training.rebuild import rebuild_config

NO_ENSEMBLE = (
    "with --loss ce it begins at f = 0, which finite networks do not; --loss mse has the mean and "
    "variance of all, and under --param hybrid:s all begin there"
)
"""Why a run of infinite width is not where the networks' outputs go."""

_UNREAD = no_laws("there are no weights")


class LimitCheckpoint:
    """A run of infinite width at one step.

    Args:
        member: the run.
        features: of the step, open.

    Attributes:
        member: as given.
        step: updates done.
        loss: the mean training loss of the ensemble's networks; NaN where it was not extracted.
    """

    def __init__(self, member: Member, features: StepFeatures):
        self.member, self.step = member, features.step
        self.loss = features.ensemble_loss
        self._features = features

    @cached_property
    def ensemble(self) -> tuple[Floats, Floats] | None:
        """Mean [P, C] and variance [P, C] of the networks' outputs on the probe batch.

        ``None`` where they are not known: with another loss than squared error, if f_0 is not 0.
        """
        mean, variance = (self._features.probe(name) for name in ("logits", "variance"))
        if mean is None or variance is None:
            return None
        return mean, variance[:, None].repeat(mean.shape[1], axis=1)

    @property
    def kernel(self) -> Floats:
        """Θ [P, P] of the probe batch, at every step."""
        return as_floats(kernel_part(self.member.run, "probe_own"))

    @property
    def readout(self) -> str:
        """The name of the last layer."""
        said = self.member.hyperparameters
        config = rebuild_config(self.member.run, dict(said)).at_reference_width()
        task = said["task"]
        places = Parametrized(config, tuple(task["input_shape"]), task["num_classes"]).places
        names = [place.name for place in places if place.role == "readout"]
        return next((name.rpartition(".")[0] for name in names), "")


def no_ensemble(member: Member) -> str:
    """Why a run is not the mean of an ensemble; empty if it is.

    It is with squared error, and where all networks begin with f = 0 themselves.
    """
    return "" if member.flag("loss") == "mse" or start_vanishes(member) else NO_ENSEMBLE


def start_vanishes(member: Member) -> bool:
    """Whether the initial outputs of a run's parametrization vanish as networks widen."""
    said = member.hyperparameters
    if not (said.get("param") or said.get("abc")):
        return False
    task = said["task"]
    config = rebuild_config(member.run, dict(said))
    return begins_at_zero(config, tuple(task["input_shape"]), task["num_classes"])


@contextmanager
def limit_at(member: Member, step: int) -> Iterator[LimitCheckpoint]:
    """A run of infinite width at a step; raises ``Unreadable`` if its features are damaged."""
    with step_features(member.run.fetch(member.run.features(step)), _UNREAD) as features:
        yield LimitCheckpoint(member, features)


@runtime_checkable
class HasLimit(Protocol):
    """What else a metric is whose quantities have a meaning at infinite width."""

    def why_no_limit(self, member: Member) -> str:
        """Why a run of infinite width is not where the networks go; empty if it is."""

    def measure_limit(self, limit: LimitCheckpoint) -> Values | None:
        """The numbers of the limit at one step; ``None`` as in :meth:`WidthMetric.measure`."""


def refused(metric: object, members: Sequence[Member]) -> dict[str, str]:
    """Why a metric does not measure the runs of infinite width among some, by their names."""
    infinite = {member.name: member for member in members if member.is_infinite}
    if not isinstance(metric, HasLimit):
        return dict.fromkeys(
            infinite, "the metric is about weights or single networks, which it has not"
        )
    reasons = {name: metric.why_no_limit(member) for name, member in infinite.items()}
    return {name: reason for name, reason in reasons.items() if reason}

"""What the metrics over the tangent kernel have in common."""

from collections.abc import Mapping

from Metrics.features import StepFeatures
from Metrics.kernels.at import State
from Metrics.kernels.linear import Linear
from Metrics.metric import Curves


class KernelMetric(Curves):
    """Base of the metrics that read the network and its kernel at every checkpoint.

    The kernel of a checkpoint is computed once for all of them
    (:class:`Metrics.kernels.at.KernelAt`).
    """

    @property
    def settings(self) -> Mapping[str, int | str]:
        config = self.context.config
        settings: dict[str, int | str] = {"kernel": config.kernel, "kernel-on": config.kernel_on}
        return settings | ({"examples": config.examples} if config.kernel_on == "train" else {})

    @property
    def axes(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the axes after that of the steps, by curve; the others have units."""
        return {}

    @property
    def attributes(self) -> Mapping[str, str]:
        """What the kernel is, and what batch normalisation divided by in it."""
        at, form = self.context.kernel_at, self.context.config.kernel
        return {"normalisation": at.normalisation, "kernel": form, "formula": at.formula}

    def forecast(self, steps: int) -> list[str]:
        """What so many checkpoints will take; raises ``UserError`` if it does not fit."""
        at = self.context.kernel_at
        return [*at.unsettled(self.begins), at.forecast(steps)]

    @property
    def begins(self) -> int:
        """The step with which others are compared."""
        return self.context.kernel_at.feature_steps()[0]

    def state(self, features: StepFeatures) -> State:
        """The network and its kernel at a step."""
        return self.context.kernel_at.state(features)


class Compared(KernelMetric):
    """Base of those that compare with the network at ``--reference``."""

    @property
    def settings(self) -> Mapping[str, int | str]:
        return {**super().settings, "reference": self.context.config.reference}

    @property
    def begins(self) -> int:
        """``--reference``; raises ``UserError`` if it has no features."""
        return self.context.kernel_at.reference_step

    @property
    def reference(self) -> State:
        """The network and its kernel at the reference step."""
        return self.context.kernel_at.reference


class Predicted(Compared):
    """Base of those beside which a linear model stands."""

    @property
    def settings(self) -> Mapping[str, int | str]:
        return {**super().settings, "examples": self.context.config.examples}

    @property
    def attributes(self) -> Mapping[str, str]:
        """Also by which kernel outputs are predicted."""
        return {**super().attributes, "predicted by": self.linear.moving.formula}

    @property
    def linear(self) -> Linear:
        """What the network would do if it were linear."""
        return self.context.linear

    def forecast(self, steps: int) -> list[str]:
        """Also of the linear model's kernel."""
        return [*super().forecast(steps), *self.linear.forecast()]

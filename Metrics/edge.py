"""The edge of stability of a run's updates, at every step of its schedule."""

from functools import cached_property

from torch.optim import Optimizer

from Metrics.model_at import ModelAt
from Metrics.stability import Stability, stability
from Training.optimizers import build_optimizer

CLIPPED = "clipped steps stay bounded at any curvature"
"""Why there is no edge with ``--clip-norm``."""


class Edge:
    """What decides whether a run's updates are stable.

    Args:
        at: how the run was trained.
    """

    def __init__(self, at: ModelAt):
        self._at = at

    @cached_property
    def _optimizer(self) -> Optimizer:
        """The run's, for its hyper-parameters by torch's own names."""
        at = self._at
        return build_optimizer(at.training, at.model.model, at.scales)

    def at(self, step: int) -> Stability | None:
        """The edge for the update after ``step``; ``None`` if it is not known."""
        schedule, scales = self._at.schedule, self._at.scales
        if len(schedule.phases) > 1:
            self._optimizer.param_groups[0]["momentum"] = schedule.momentum(step)
        first = scales is not None and step < scales.first_steps
        return stability(self._optimizer, schedule.lr(step), first)

    def reason(self, step: int) -> str:
        """Why there is no edge; empty if there is one."""
        training = self._at.training
        if self.at(step) is None:
            return f"no threshold is known for {training.optimizer}"
        return "" if training.clip_norm is None else CLIPPED

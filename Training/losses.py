"""The losses, and the record of their values.

Shape letters: N examples, C classes.
"""

import math
from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from Utils.devices import to_host
from Utils.errors import Diverged


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Softmax cross-entropy of [N, C] logits and [N] int64 targets, mean over the examples."""
    return functional.cross_entropy(logits, targets)


def mean_squared_error(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over [N, C] of (logits − targets)²; targets [N, C], or one-hot from [N] int64."""
    return functional.mse_loss(logits, _as_numbers(targets, logits))


def linear(logits: Tensor, targets: Tensor) -> Tensor:
    """Minus the mean over [N, C] of logits · targets; targets [N, C], or one-hot from [N] int64.

    Its gradient −targets/(NC) depends on no weight: what an update does to a network is then
    free of how large the outputs happen to be. It has no minimum.
    """
    return -(logits * _as_numbers(targets, logits)).mean()


def _as_numbers(targets: Tensor, logits: Tensor) -> Tensor:
    """[N, C]: real targets as they are, classes [N] one-hot."""
    if targets.is_floating_point():
        return targets
    return functional.one_hot(targets, logits.shape[1]).to(logits.dtype)


class LossRecord:
    """Minibatch losses: kept on the device, moved to the host when somebody asks.

    Args:
        mean: over the processes that each add the loss of their share, of a CPU tensor.

    Means are running float64 sums on the host, added in the order of the steps, so that they
    do not depend on when the losses were collected.
    """

    def __init__(self, mean: Callable[[Tensor], Tensor] = lambda losses: losses) -> None:
        self._mean = mean
        self._pending: list[Tensor] = []
        self._sums = {"epoch": 0.0, "line": 0.0}
        self._counts = {"epoch": 0, "line": 0}

    def add(self, loss: Tensor) -> None:
        """Note one minibatch's loss, a detached scalar tensor; no synchronisation."""
        self._pending.append(loss)

    def collect(self, step: int) -> None:
        """Move the pending losses to the host; this is a synchronisation point.

        Args:
            step: the update that the last pending loss led to.

        Raises:
            Diverged: a loss is not finite; names the first such step.
        """
        if not self._pending:
            return
        values = self._mean(to_host(self._pending)).tolist()
        self._pending.clear()
        for update, value in enumerate(values, start=step - len(values) + 1):
            if not math.isfinite(value):
                raise Diverged.at(update, f"loss of step {update} is {value}")
            for span in self._sums:
                self._sums[span] += value
                self._counts[span] += 1

    def take_mean(self, span: str) -> float:
        """The mean since the last call for "epoch" or "line"; 0 if nothing was collected."""
        mean = self._sums[span] / max(self._counts[span], 1)
        self._sums[span], self._counts[span] = 0.0, 0
        return mean

    def state_dict(self) -> dict[str, dict[str, float]]:
        """What was collected since the last means were taken; nothing may be pending."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: dict[str, dict[str, float]]) -> None:
        """Continue as after :meth:`state_dict`."""
        self._sums = dict(state["sums"])
        self._counts = {span: int(count) for span, count in state["counts"].items()}
        self._pending.clear()

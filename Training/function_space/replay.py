"""What a run's SGD does, step by step, without its network: hyper-parameters and batches."""

import math
from collections.abc import Iterator

from torch import Tensor

from Data.dataset import Examples
from Data.order import TrainingBatches
from Models.parametrization.scales import Scales
from Training.config import TrainConfig
from Training.discrete_laws import Coefficients
from Training.schedule import Schedule
from Utils.errors import UserError


class _Numbers(TrainingBatches):
    """The numbers of the examples in place of the examples."""

    def _batch(self, index: Tensor, share: slice) -> tuple[Tensor, Tensor]:
        return index[share], index[share]


def batch_numbers(config: TrainConfig, schedule: Schedule, examples: Examples) -> Iterator[Tensor]:
    """The numbers [B] int64 of the examples in each of a run's batches, over all replicas.

    Args:
        config: the run's configuration.
        schedule: the run's.
        examples: what it trained on.
    """
    size = schedule.phases[0].batch_size
    batches = _Numbers(examples, size, config.seed, "cpu", config.drop_last)
    for _ in range(schedule.total):
        yield batches.next()[0]
        if batches.position == 0:
            batches.resize(schedule.phase(batches.epoch).batch_size)


def sgd_rules(
    config: TrainConfig, schedule: Schedule, scales: Scales | None = None
) -> list[Coefficients]:
    """The hyper-parameters of each of a run's steps.

    Args:
        config: the run's configuration.
        schedule: the run's.
        scales: of its parametrization. The kernel is then Σ_p s_p J_p J_pᵀ over the parameters,
            s_p = ``scales.of(p).lr``, and weight decay that of all parameters if s_p λ_p is.

    Raises:
        UserError: the outputs alone do not tell what the steps do.
    """
    decay = config.wd or 0.0
    reason = ""
    if config.optimizer not in {"sgd", "momentum"}:
        reason = f"--optimizer {config.optimizer} is not linear in the gradient"
    elif decay and config.wd_on != "all":
        reason = f"--wd-on {config.wd_on} decays parameters differently"
    elif scales is not None:
        factors = [scale.lr * scale.wd for scale in scales.parameters]
        if scales.first_steps:
            reason = "the parametrization's first steps have learning rates of their own"
        elif decay and not math.isclose(min(factors), max(factors)):
            reason = f"--wd {decay:g} decays parameters differently under the parametrization"
        decay *= factors[0]
    if reason:
        raise UserError(
            f"training in function space: {reason}; linearise the model in weight space instead"
        )
    return [
        Coefficients(
            schedule.lr(step),
            decay,
            schedule.momentum(step),
            config.dampening or 0.0,
            config.nesterov,
        )
        for step in range(schedule.total)
    ]

"""What a run's SGD does, step by step, without its network: hyper-parameters and batches."""

import math
from collections.abc import Iterator

from torch import Tensor

from Data.dataset import Examples
from Data.order import TrainingBatches
from Models.parametrization.scales import Scales
from Training.config import TrainConfig
from Training.discrete_laws import Coefficients
from Training.registry import SGDS
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
    if reason := beyond_outputs(config, scales):
        raise UserError(
            f"training in function space: {reason}; linearise the model in weight space instead"
        )
    return [sgd_rule(config, schedule, step, scales) for step in range(schedule.total)]


def sgd_rule(
    config: TrainConfig, schedule: Schedule, step: int, scales: Scales | None = None
) -> Coefficients:
    """The hyper-parameters of the update after ``step``, as :func:`sgd_rules` has them.

    Args:
        config: of a run for which :func:`beyond_outputs` has no reason.
        schedule: the run's.
        step: updates done; also of the last one.
        scales: of its parametrization.
    """
    first = None if scales is None else scales.parameters[0]
    return Coefficients(
        schedule.lr(step),
        (config.wd or 0.0) * (1.0 if first is None else first.lr * first.wd),
        schedule.momentum(step),
        config.dampening or 0.0,
        config.nesterov,
    )


def beyond_outputs(config: TrainConfig, scales: Scales | None = None) -> str:
    """Why the outputs alone do not tell what a run's steps do; empty if they do.

    Args:
        config: the run's configuration.
        scales: of its parametrization.
    """
    if config.optimizer == "flow":
        return "gradient flow has no steps"
    if config.optimizer not in SGDS:
        return f"--optimizer {config.optimizer} is not linear in the gradient"
    if config.wd_on != "all":
        return f"--wd-on {config.wd_on} decays parameters differently"
    if scales is None:
        return ""
    if scales.first_steps:
        return "the parametrization's first steps have learning rates of their own"
    decays = [scale.lr * scale.wd for scale in scales.parameters]
    if config.wd and not math.isclose(min(decays), max(decays)):
        return f"--wd {config.wd:g} decays parameters differently under the parametrization"
    return ""

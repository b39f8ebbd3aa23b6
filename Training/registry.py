"""The optimizers and losses that exist, by the names that the user types."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from Data.entry import Task
from Utils.registry import Entry, Registry


@dataclass(frozen=True)
class OptimizerEntry(Entry):
    """An optimizer.

    The builder is called as ``builder(parameters, **options)``.

    Attributes:
        options: the flags that the optimizer reads, by field name, with the names of the
            builder's arguments.
    """

    options: Mapping[str, str] = field(default_factory=dict)


OPTIMIZERS: Registry[OptimizerEntry] = Registry(
    "optimizer",
    [
        OptimizerEntry(
            "sgd",
            "torch.optim:SGD",
            "θ' = θ − lr (g + wd θ)",
            options={"lr": "lr", "wd": "weight_decay"},
        ),
        OptimizerEntry(
            "momentum",
            "torch.optim:SGD",
            "v' = momentum v + (1 − dampening)(g + wd θ); θ' = θ − lr v', or Nesterov's variant",
            options={
                "lr": "lr",
                "wd": "weight_decay",
                "momentum": "momentum",
                "dampening": "dampening",
                "nesterov": "nesterov",
            },
        ),
    ],
)


@dataclass(frozen=True)
class LossEntry(Entry):
    """A loss, of outputs [N, C] and targets.

    Attributes:
        tasks: of which data it is the loss.
    """

    tasks: tuple[Task, ...] = ("classification",)


LOSSES: Registry[LossEntry] = Registry(
    "loss",
    [
        LossEntry(
            "ce", "Training.losses:cross_entropy", "softmax cross-entropy, mean over examples"
        ),
        LossEntry(
            "mse",
            "Training.losses:mean_squared_error",
            "squared distance to the target (one-hot for classes), mean over examples and outputs",
            tasks=("classification", "regression"),
        ),
    ],
)

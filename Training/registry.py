"""The optimizers and losses that exist, by the names that the user types."""

from collections.abc import Mapping
from dataclasses import dataclass, field

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

LOSSES: Registry[Entry] = Registry(
    "loss",
    [
        Entry("ce", "Training.losses:cross_entropy", "softmax cross-entropy, mean over examples"),
        Entry(
            "mse",
            "Training.losses:mean_squared_error",
            "squared distance to the one-hot target, mean over examples and classes",
        ),
    ],
)

"""The optimizers and losses that exist, by the names that the user types."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from Data.entry import Task
from Models.parametrization.exponents import Family, WeightDecay
from Utils.registry import Entry, Registry


@dataclass(frozen=True)
class OptimizerEntry(Entry):
    """An optimizer.

    The builder is called as ``builder(groups, **options)`` with parameter groups whose "params"
    are pairs (name, parameter), and returns a ``torch.optim.Optimizer``.

    Attributes:
        options: the flags that the optimizer reads, by field name, with their default values.
        family: how its step depends on the gradient's size, for parametrizations; ``None`` if no
            rule for widths is established.
        decay: where it puts --wd.
        no_rule: why there is no family.
        at_infinity: whether it is for --width inf alone; the builder also gets the ``network``.
    """

    options: Mapping[str, float] = field(default_factory=dict)
    family: Family | None = None
    decay: WeightDecay = "gradient"
    no_rule: str = ""
    at_infinity: bool = False


_ADAM: Mapping[str, float] = {"lr": 1e-3, "wd": 0.0, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}

SGDS = frozenset({"sgd", "momentum"})
"""Those of ``torch.optim.SGD``, whose steps keep the symmetries, and have exact laws."""

OPTIMIZERS: Registry[OptimizerEntry] = Registry(
    "optimizer",
    [
        OptimizerEntry(
            "sgd",
            "Training.optimizers:sgd",
            "θ' = θ − lr (g + wd θ)",
            options={"lr": 0.05, "wd": 0.0},
            family="sgd",
        ),
        OptimizerEntry(
            "momentum",
            "Training.optimizers:sgd",
            "v' = momentum v + (1 − dampening)(g + wd θ); θ' = θ − lr v', or Nesterov's variant",
            "Sutskever et al., ICML 2013",
            options={"lr": 0.05, "wd": 0.0, "momentum": 0.0, "dampening": 0.0, "nesterov": False},
            family="sgd",
        ),
        OptimizerEntry(
            "adam",
            "Training.optimizers:adam",
            "first moment / root of the second, wd in the gradient; lr 1e-3",
            "Kingma and Ba, ICLR 2015",
            options=_ADAM,
            family="adam",
        ),
        OptimizerEntry(
            "adamw",
            "Training.optimizers:adamw",
            "adam with decoupled decay, θ(1 − lr wd); lr 1e-3, wd 1e-2",
            "Loshchilov and Hutter, ICLR 2019",
            options={**_ADAM, "wd": 1e-2},
            family="adam",
            decay="decoupled",
        ),
        OptimizerEntry(
            "rms",
            "Training.optimizers:rmsprop",
            "RMSprop: gradient / root of its mean square, wd in the gradient; lr 1e-3",
            "Tieleman and Hinton, 2012",
            options={"lr": 1e-3, "wd": 0.0, "momentum": 0.0, "beta2": 0.99, "eps": 1e-8},
            family="adam",
        ),
        OptimizerEntry(
            "lamb",
            "Training.further_optimizers:lamb",
            "adam times |θ| / |update| of each parameter; lr 1e-3",
            "You et al., ICLR 2020",
            options={**_ADAM, "eps": 1e-6},
            no_rule="its steps are relative to the size of each parameter",
        ),
        OptimizerEntry(
            "lion",
            "Training.further_optimizers:lion",
            "sign of an interpolated momentum, decoupled decay; lr 1e-4",
            "Chen et al., NeurIPS 2023",
            options={"lr": 1e-4, "wd": 0.0, "beta1": 0.9, "beta2": 0.99},
            family="adam",
            decay="decoupled",
        ),
        OptimizerEntry(
            "muon",
            "Training.further_optimizers:muon",
            "orthogonalized Nesterov momentum for matrices, adamw with --adamw-lr for vectors; "
            "lr 0.02",
            "Jordan et al., Muon, 2024",
            options={
                "lr": 0.02,
                "wd": 0.0,
                "momentum": 0.95,
                "adamw_lr": 3e-4,
                "beta1": 0.9,
                "beta2": 0.95,
                "eps": 1e-10,
            },
            no_rule="its steps have a fixed spectral norm, and vectors another optimizer",
        ),
        OptimizerEntry(
            "flow",
            "Training.infinite.flow:flow",
            "gradient flow of a network of infinite width, for a time lr in each step",
            options={"lr": 1.0},
            family="sgd",
            at_infinity=True,
        ),
    ],
    aliases={"custom_sgd": "momentum"},
)


_ANNEALING = "Kunin et al. (2023), The limiting dynamics of SGD, Neural Computation"

SCHEDULES: Registry[Entry] = Registry(
    "schedule",
    [
        Entry("none", "Training.schedule:constant", "one phase of --epochs epochs"),
        Entry(
            "batch-doubling",
            "Training.schedule:double_batches",
            "batch size doubles; lr and momentum keep lr/(S(1−β)) and 1/(S(1−β²))",
            _ANNEALING,
        ),
        Entry(
            "linear",
            "Training.schedule:linear",
            "lr and momentum go in equal steps to 1e-8 and 0.9999",
            _ANNEALING,
        ),
        Entry(
            "lr-halving",
            "Training.schedule:halve_lr",
            "lr halves; momentum keeps lr/(1−β)",
            _ANNEALING,
        ),
    ],
)
"""What changes between the phases of a run; builders are called as ``builder(config, phase)``."""


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
        LossEntry(
            "linear",
            "Training.losses:linear",
            "minus output times target (one-hot for classes), mean over examples and outputs: its "
            "gradient in the outputs is constant; for exponents of the first steps",
            tasks=("classification", "regression"),
        ),
    ],
)


@dataclass(frozen=True)
class BufferEntry(Entry):
    """A kind of parameter-sized buffers.

    The builder is called in every step for every parameter as ``builder(x, c, *held)``: x is of
    the parameter's shape, c are the step's :class:`Training.discrete_laws.Coefficients`, and
    held, if it accumulates, are the tensors it returned in the step before, zeros in the first.

    Attributes:
        of: what x is: the gradient as the optimizer got it, the velocity (momentum buffer)
            after the step, or the update, weights after the step minus those before.
        tensors: the names in files of what it returns.
        accumulates: whether it is float64 and continues from step to step.
        optimizer: the only one that it is meaningful for; any if empty.
    """

    of: Literal["gradient", "velocity", "update"] = "gradient"
    tensors: tuple[str, ...] = ()
    accumulates: bool = False
    optimizer: str = ""


_PAPER = "Kunin et al., Neural Mechanics, ICLR 2021"

BUFFERS: Registry[BufferEntry] = Registry(
    "buffer",
    [
        BufferEntry(
            "sgd",
            "Training.buffers:integral",
            "integral_buffer: the integral of g² in the paper's theory of sgd",
            _PAPER,
            tensors=("integral_buffer",),
            accumulates=True,
            optimizer="sgd",
        ),
        BufferEntry(
            "mom",
            "Training.buffers:oscillator",
            "integral_buffer_1, _2: that of v² in its theory of momentum, and its rate of change",
            _PAPER,
            of="velocity",
            tensors=("integral_buffer_1", "integral_buffer_2"),
            accumulates=True,
            optimizer="momentum",
        ),
        BufferEntry(
            "grad",
            "Training.buffers:gradient",
            "grad_buffer: the last step's gradient g, clipped but without weight decay",
            tensors=("grad_buffer",),
        ),
        BufferEntry(
            "grad_norm",
            "Training.buffers:squared_gradient",
            "grad_norm_buffer: its element-wise square",
            tensors=("grad_norm_buffer",),
        ),
        BufferEntry(
            "update",
            "Training.buffers:update",
            "update_buffer: the last step itself, θ_n − θ_{n−1}; with its time and rate of decay",
            of="update",
            tensors=("update_buffer", "update_time", "update_decay"),
        ),
    ],
)

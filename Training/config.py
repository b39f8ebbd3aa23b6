"""The flags of train.py."""

from typing import Any, Literal, Self

import pydantic
from pydantic import Field

from Data import DataConfig
from Models import ModelConfig
from Models.parametrization import build_parametrization
from Models.parametrization.abc_file import layers_of, parse_abc
from Training.backends.config import BackendConfig
from Training.registry import BUFFERS, LOSSES, OPTIMIZERS, SCHEDULES, SGDS
from Utils.config import Integers, Names, RunConfig, refuse_unread, with_defaults
from Utils.devices import DeviceName

_OPTIONS = tuple(dict.fromkeys(o for entry in OPTIMIZERS for o in entry.options))

_OF_WEIGHTS = (
    *("restore_path", "pretrained", "base_width", "base_shapes", "calibrate_width"),
    *("save_buffers", "tpu", "precision", "compile", "channels_last"),
)
"""Flags about networks that have weights."""

_TEN_PER_DECADE = [round(10 ** (k / 10)) for k in range(100)]


class TrainConfig(ModelConfig, DataConfig, BackendConfig, RunConfig):
    """Train a model and save what the later stages need; run it again to continue."""

    augment: bool = Field(
        True, description="Random changes of training images, where the data set has them."
    )
    train_batch_size: int = Field(
        128, ge=1, description="Examples per step, on each device that trains."
    )
    test_batch_size: int = Field(256, ge=1, description="Examples per evaluation batch.")
    drop_last: bool = Field(
        False, description="Leave out an epoch's last batch if it is smaller; so does --tpu."
    )

    loss: str = Field("ce", description="The loss, listed above.")
    epochs: int = Field(30, ge=0, description="Passes over the training data, in each phase.")
    optimizer: str = Field("sgd", description="The optimizer, listed above.")
    lr: float | None = Field(None, gt=0, description="Learning rate; the optimizer's own default.")
    lr_drops: Integers = Field((), description="Epochs at whose start the learning rate drops.")
    lr_drop_rate: float = Field(0.1, gt=0, description="What each drop multiplies it by.")
    lr_schedule: Literal["constant", "cosine"] = Field(
        "constant", description="cosine: down to zero at the end, multiplied with the drops."
    )
    schedule: str = Field(
        "none", description="How --optimizer momentum is annealed in phases, listed above."
    )
    anneal_steps: int = Field(1, ge=1, description="Phases of --schedule, each of --epochs epochs.")
    warmup_steps: int = Field(0, ge=0, description="Steps over which it first rises linearly.")
    wd: float | None = Field(
        None, ge=0, description="Weight decay: an L2 term in the gradient, or as listed above."
    )
    wd_on: Literal["all", "matrices"] = Field(
        "all", description="What decays; matrices spares biases, gains and all other vectors."
    )
    momentum: float | None = Field(None, ge=0, lt=1, description="Of momentum, rms and muon.")
    dampening: float | None = Field(None, ge=0, lt=1, description="Of momentum.")
    nesterov: bool = Field(False, description="Nesterov's variant of momentum.")
    beta1: float | None = Field(None, ge=0, lt=1, description="Decay rate of the first moment.")
    beta2: float | None = Field(None, ge=0, lt=1, description="Decay rate of the second moment.")
    eps: float | None = Field(None, ge=0, description="Added to the second moment's root.")
    adamw_lr: float | None = Field(None, gt=0, description="Learning rate of muon's vectors.")
    nngp: bool = Field(
        False,
        description="With --width inf: only the readout learns; with --no-bias its kernel is the "
        "covariance of initial outputs (NNGP).",
    )
    clip_norm: float | None = Field(
        None, gt=0, description="Largest global norm of the gradient; larger ones are scaled."
    )

    save_freq: int | None = Field(None, ge=1, description="Steps between checkpoints.")
    save_at: Names = Field(
        (), description="More steps with a checkpoint: numbers, or log for ten per decade."
    )
    save_buffers: Names = Field(
        (), description="Parameter-sized buffers to keep in checkpoints, listed above."
    )
    observe_freq: int = Field(
        10, ge=1, description="Steps between observations of the conserved quantities."
    )
    evaluate: bool = Field(
        True,
        description="Measure loss and accuracies on the test set, at the beginning and after each "
        "epoch; without, runs of few steps are faster.",
    )
    probe_size: int = Field(64, ge=1, description="Examples in the run's fixed probe batch.")
    laws: bool = Field(
        True,
        description="Find the model's conservation laws and follow them; without, runs of few "
        "steps are faster, and metrics of laws are left out.",
    )
    balance: bool = Field(
        True, description="Also look for matrix laws, whose number grows as the square of a width."
    )
    calibrate_width: int | None = Field(
        None,
        ge=1,
        description="Width at which the first step's learning rates are calibrated once, for a "
        "parametrization that has some.",
    )
    explain: bool = Field(
        False, description="Print what --param or --abc does as the width grows, train nothing."
    )
    list_laws: bool = Field(
        False, description="Print the conservation laws of the model, train nothing."
    )

    @pydantic.field_validator("lr_drops")
    @classmethod
    def _ascending(cls, epochs: tuple[int, ...]) -> tuple[int, ...]:
        if any(epoch < 1 for epoch in epochs) or list(epochs) != sorted(set(epochs)):
            raise ValueError("must be ascending epochs, the first at least 1, as in 60,120")
        return epochs

    @pydantic.field_validator("save_at")
    @classmethod
    def _steps_or_log(cls, parts: tuple[str, ...]) -> tuple[str, ...]:
        if not all(part == "log" or part.isdecimal() for part in parts):
            raise ValueError("must be log or steps separated by commas, as in 1,10,100")
        return parts

    @pydantic.model_validator(mode="before")
    @classmethod
    def _keep_shapes_on_a_tpu(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Every other size of a batch would be compiled anew."""
        return values if values.get("tpu") is None else {**values, "drop_last": True}

    @pydantic.model_validator(mode="after")
    def _check_place(self) -> Self:
        if self.tpu is not None and self.workers == 0:
            raise ValueError("--workers 0 with --tpu: no core is left to train on; use at least 1")
        if self.precision == "bf16" and self.dtype == "float64":
            raise ValueError("--precision bf16 with --dtype float64: choose one of them")
        return self

    @pydantic.model_validator(mode="after")
    def _check_loss(self) -> Self:
        loss, task = LOSSES[self.loss], self.data_entry.task
        if task not in loss.tasks:
            fitting = " or ".join(entry.name for entry in LOSSES if task in entry.tasks)
            raise ValueError(
                f"--loss {loss.name}: not for the {task} of --dataset {self.dataset}; "
                f"use --loss {fitting}"
            )
        return self

    @pydantic.model_validator(mode="before")
    @classmethod
    def _fill_in_the_optimizers_defaults(cls, values: dict[str, Any]) -> dict[str, Any]:
        name = values.get("optimizer", cls.model_fields["optimizer"].default)
        if name == "custom_sgd":  # upstream's name for both
            name = "momentum" if values.get("momentum") else "sgd"
            values = {**values, "optimizer": name}
        known = isinstance(name, str) and name in OPTIMIZERS
        return with_defaults(values, OPTIMIZERS[name].options) if known else values

    @pydantic.model_validator(mode="after")
    def _check_optimizer(self) -> Self:
        chosen = OPTIMIZERS[self.optimizer]  # raises if unknown
        refuse_unread(self, _OPTIONS, chosen.options, f"--optimizer {self.optimizer}")
        if chosen.name == "momentum" and not self.momentum:
            raise ValueError(
                "--optimizer momentum needs a --momentum above 0, as in --momentum 0.9"
            )
        if self.wd_on != "all" and not self.wd:
            raise ValueError(f"--wd-on {self.wd_on}: nothing decays with --wd {self.wd}; raise it")
        annealed = SCHEDULES[self.schedule].name != "none"
        if annealed and chosen.name != "momentum":
            raise ValueError(
                f"--schedule {self.schedule} changes the momentum; use --optimizer momentum"
            )
        if annealed != (self.anneal_steps > 1):
            raise ValueError(
                f"--anneal-steps {self.anneal_steps} with --schedule {self.schedule}: phases "
                "need both, as in --schedule batch-doubling --anneal-steps 3"
            )
        if self.nesterov and self.dampening:
            raise ValueError(f"--nesterov needs --dampening 0, not {self.dampening}")
        return self

    @pydantic.model_validator(mode="after")
    def _check_parametrized_training(self) -> Self:
        for flag, value in (
            ("--explain", self.explain),
            ("--calibrate-width", self.calibrate_width),
        ):
            if value and not self.is_parametrized:
                raise ValueError(f"{flag} is about a parametrization; give --param or --abc")
        if not self.is_parametrized:
            return self
        chosen = OPTIMIZERS[self.optimizer]
        if chosen.family is None:
            fitting = [entry.name for entry in OPTIMIZERS if entry.family]
            raise ValueError(
                f"--optimizer {self.optimizer} has no established rule for widths, as "
                f"{chosen.no_rule}; use {', '.join(fitting)}"
            )
        if self.param:
            abc = build_parametrization(self.param, chosen.family, 2)
        else:
            abc = parse_abc(self.abc, layers_of(self.abc))
        if self.calibrate_width and chosen.family != "sgd":
            raise ValueError(
                f"--calibrate-width {self.calibrate_width} measures a step of SGD, not of "
                f"--optimizer {self.optimizer}; leave it out"
            )
        if self.calibrate_width and not abc.first_steps:
            raise ValueError(
                f"--calibrate-width {self.calibrate_width}: only a first step of its own is "
                "calibrated; use --param ipllr, or an --abc file with first_steps"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _check_infinite_width(self) -> Self:
        chosen = OPTIMIZERS[self.optimizer]
        if not self.is_infinite:
            if self.nngp or chosen.at_infinity:
                flag = "--nngp" if self.nngp else f"--optimizer {self.optimizer}"
                raise ValueError(f"{flag} is for kernels; add --width inf, or leave it out")
            return self
        if not self.is_parametrized:
            raise ValueError(
                "--width inf: without --param nothing says how the network grows; "
                "add --param ntk or sp-lr1n"
            )
        for flag, given, reason in (
            (
                f"--optimizer {self.optimizer}",
                not (chosen.at_infinity or chosen.name in SGDS),
                "is not linear in the gradient, so that kernels do not tell what it does; "
                "use sgd, momentum or flow",
            ),
            (
                f"--wd {self.wd}",
                self.wd,
                "ends the regime in which the kernel stays; leave it 0",
            ),
            (
                f"--clip-norm {self.clip_norm}",
                self.clip_norm,
                "limits the gradient for weights, whose number is infinite; leave it out",
            ),
        ):
            if given:
                raise ValueError(f"--width inf: {flag} {reason}")
        refuse_unread(self, _OF_WEIGHTS, (), "--width inf")
        return self

    @pydantic.model_validator(mode="after")
    def _check_buffers(self) -> Self:
        for name in self.save_buffers:
            only = BUFFERS[name].optimizer  # raises if unknown
            if only not in {"", self.optimizer}:
                fitting = [b.name for b in BUFFERS if b.optimizer == self.optimizer]
                advice = f"use {fitting[0]}" if fitting else "leave it out"
                raise ValueError(
                    f"--save-buffers {name}: it belongs to the paper's theory of --optimizer "
                    f"{only}, which says nothing of {self.optimizer}; {advice}"
                )
        return self

    def save_steps(self, total: int) -> set[int]:
        """The steps up to ``total`` whose checkpoint was asked for; epochs' ends not counted."""
        steps: set[int] = set()
        if self.save_freq is not None:
            steps.update(range(0, total + 1, self.save_freq))
        for part in self.save_at:
            steps.update(_TEN_PER_DECADE if part == "log" else [int(part)])
        return {step for step in steps if 0 < step <= total}


class ExtractConfig(RunConfig):
    """Pull weights, optimizer buffers and probe outputs out of checkpoints.

    Checkpoints that have been extracted are skipped; run it again, also while training goes
    on, to pick up new ones.
    """

    probe: Literal["none", "logits", "activations"] = Field(
        "logits", description="What to compute on the run's probe batch, in evaluation mode."
    )
    device: DeviceName = Field("auto", description="Where the probe outputs are computed.")
    workers: int = Field(
        0, ge=0, description="Processes that share the checkpoints; 0: none but this one."
    )

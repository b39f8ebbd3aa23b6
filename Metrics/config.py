"""The flags of stage 3."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from Metrics.registry import DEFAULT_METRICS, IF_NAMED, METRICS, OF_EXPERIMENTS, own_names
from Utils.config import Names, PathPart, RunConfig
from Utils.devices import DeviceName
from Utils.errors import UserError

_OF_METRICS = {flag for entry in METRICS for flag in entry.flags}
"""Flags about single metrics."""


class CacheConfig(RunConfig):
    """Compute metrics from features, each beside the prediction of its theory.

    All metrics are computed in one pass. Steps that a cache holds are skipped; run it again,
    also while training goes on, to pick up new ones.
    """

    metrics: Names = Field(
        DEFAULT_METRICS,
        description="Which metrics, listed above; those that run the network at every checkpoint "
        f"({', '.join(IF_NAMED)}) only if they are named. Without --expid, those of the whole "
        f"experiment: {', '.join(OF_EXPERIMENTS)}.",
    )
    suffix: PathPart = Field("", description="Added to the names of the cache files.")
    subset: int = Field(
        32,
        ge=0,
        description="Entries of each parameter that network and weights_grads follow; 0: all.",
    )
    examples: int = Field(
        512, ge=2, description="Training examples on which metrics run the network."
    )
    eigenvalues: int = Field(
        3, ge=1, description="Largest eigenvalues of each matrix that `sharpness` computes."
    )
    kernel: Literal["traced", "full"] = Field(
        "traced",
        description="Of tangent kernels, the mean over the outputs, which is examples² numbers "
        "per checkpoint, or all pairs of outputs.",
    )
    kernel_on: Literal["probe", "train"] = Field(
        "probe",
        description="Examples of tangent kernels: the run's probe batch, which is of test "
        "examples, or --examples training examples.",
    )
    reference: int = Field(
        0,
        ge=0,
        description="Step at which `modes`, `linearized` and `lazy` take the network as linear, "
        "and with which `alignment` compares.",
    )
    device: DeviceName = Field("auto", description="Where metrics run the network.")
    workers: int = Field(
        0, ge=0, description="Processes that share the steps or runs; 0: none but this one."
    )
    assert_: bool = Field(
        False,
        description="Exit with 1 if an exponent of an experiment's metrics contradicts its "
        "prediction, or fewer than 95 % of a group's agree.",
    )

    @property
    def run_path(self) -> Path:
        """As every stage's; tells what needs no --expid, too."""
        if self.experiment and not self.expid:
            raise UserError(
                "--expid is missing; give the run a name, as in --expid demo, or, for all runs "
                "together, metrics of experiments, as in --metrics coordinates"
            )
        return super().run_path

    def metric_names(self) -> list[str]:
        """The metrics by their own names, each once; raises ``UserError`` for unknown ones."""
        return own_names(self.metrics, self.expid)

    def without_effect(self) -> list[str]:
        """What to say of flags that are given and that no metric that is asked for reads."""
        names, lines = set(self.metric_names()), []
        for flag, value in self.model_dump(include=_OF_METRICS, exclude_defaults=True).items():
            readers, advice = [entry.name for entry in METRICS if flag in entry.flags], ""
            if flag == "examples":  # kernels on the probe batch see none
                of_kernels = [entry.name for entry in METRICS if "kernel_on" in entry.flags]
                if self.kernel_on == "train":
                    readers += of_kernels
                elif not names.isdisjoint(of_kernels):
                    advice = " with --kernel-on probe"
            if names.isdisjoint(readers):
                given = f"--{flag.replace('_', '-')} {value} has no effect{advice}"
                lines.append(f"{given}: it is for {', '.join(readers)}")
        return lines

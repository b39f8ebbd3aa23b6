"""The run's tangent kernel at a checkpoint, made once for all metrics of a pass.

Of networks with weights it is :mod:`Metrics.kernels.empirical`, of infinite width
:mod:`Metrics.kernels.infinite`.

Shape letters: N examples, C outputs.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from Data import load_dataset
from Data.batches import probe_batch
from Metrics.config import CacheConfig
from Metrics.features import StepFeatures, step_features
from Metrics.kernels.measures import Floats, traced
from Metrics.kernels.reference import reference_step
from Metrics.model_at import ModelAt
from Metrics.tangent.schedule import available_memory
from Models.symmetry import Laws
from Utils.amounts import bytes_text, seconds_text
from Utils.errors import UserError
from Utils.rundir import RunFolder
from Utils.storage import open_hdf5

PLAIN, WEIGHTED = "sum of J_p J_p^T", "sum of s_p J_p J_p^T, s_p the factors of learning rates"
"""What caches say of kernels."""

WHOLE = "network"
"""The "layer" of curves that are of the whole network."""


@dataclass(frozen=True)
class Kernel:
    """A tangent kernel.

    Attributes:
        total: [N, N] the mean over the outputs of Θ_cc, or the full [N, N, C, C], in the format
            in which it was computed.
        layers: [N, N] traced, in float64, by the names of the layers whose parameters make them;
            empty at infinite width.
    """

    total: NDArray[np.floating]
    layers: Mapping[str, Floats]

    @cached_property
    def traced(self) -> Floats:
        """[N, N] the mean over the outputs of Θ_cc."""
        return traced(self.total)


@dataclass(frozen=True)
class State:
    """The network at a step.

    Attributes:
        step: updates done.
        logits: [N, C] on the examples.
        kernel: on the examples.
        parameters: by their names in the run; empty at infinite width.
        buffers: of the modules; likewise.
    """

    step: int
    logits: Floats
    kernel: Kernel
    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]


class KernelAt(ABC):
    """A run's tangent kernel on fixed examples: of its network, or of infinite width.

    Everything is made when it is first asked for. The number format is the run's, of a run in
    bfloat16 float32.

    Args:
        run: the run's folder.
        hyperparameters: the run's.
        config: the command line: which examples, and which form of the kernel.
        laws: of the run, for its features.
        model_at: how the run was trained, and its training examples.

    Attributes:
        run: as given.
    """

    def __init__(
        self,
        run: RunFolder,
        hyperparameters: dict[str, Any],
        config: CacheConfig,
        laws: Laws,
        model_at: ModelAt,
    ):
        self.run, self._hyperparameters, self._config = run, hyperparameters, config
        self._laws, self._at = laws, model_at
        self._now: tuple[str, State] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """In which kernels are computed."""
        dtype = self._at.dtype
        return torch.float32 if dtype == torch.bfloat16 else dtype

    @property
    @abstractmethod
    def normalisation(self) -> str:
        """What batch normalisation divides by: "running statistics", or "none" without any."""

    @property
    @abstractmethod
    def is_exact(self) -> bool:
        """Whether a traced kernel is all there is: that of every output, and none between them."""

    @property
    @abstractmethod
    def formula(self) -> str:
        """What the kernel is, for caches."""

    @abstractmethod
    def forecast(self, steps: int) -> str:
        """What the kernels of so many checkpoints will take.

        Raises:
            UserError: more memory than there is.
        """

    @abstractmethod
    def _compute(self, features: StepFeatures) -> State:
        """The state at a step."""

    @cached_property
    def batch(self) -> tuple[Tensor, Tensor]:
        """Inputs [N, *input_shape] and targets, [N] int64 or [N, C], the same at every step.

        The run's probe batch, or ``--examples`` training examples. A folder without a probe
        batch gets it again from the seed, as training drew it.
        """
        if self._config.kernel_on == "train":
            inputs, targets = self._at.batch
        elif self.run.probe.exists():
            with open_hdf5(self.run.fetch(self.run.probe), "run train.py again") as file:
                inputs, targets = (torch.from_numpy(file[n][()]) for n in ("inputs", "targets"))
        else:
            training = self._at.training
            dataset = load_dataset(
                training.dataset, training.data_dir, training.seed, **training.data_options
            )
            inputs, targets = probe_batch(
                dataset, training.probe_size, training.seed, dtype=self.dtype
            )
        device = self._at.device
        real = targets.is_floating_point()
        targets = targets.to(device, self.dtype if real else torch.int64)
        return inputs.to(device, self.dtype if inputs.is_floating_point() else None), targets

    @cached_property
    def targets(self) -> Floats:
        """[N, C] what the outputs should be: one-hot for classes."""
        targets = self.batch[1]
        if not targets.is_floating_point():
            outputs = self._hyperparameters["task"]["num_classes"]
            targets = nn.functional.one_hot(targets, outputs)
        return as_floats(targets)

    @cached_property
    def classes(self) -> NDArray[np.int64]:
        """[N] the class of each example; of a regression all 0."""
        targets = self.batch[1]
        if targets.is_floating_point():
            return np.zeros(len(targets), np.int64)
        found: NDArray[np.int64] = targets.cpu().numpy()
        return found

    def state(self, features: StepFeatures) -> State:
        """The network and its kernel at a step; computed once, and kept for the last step."""
        if "reference" in self.__dict__ and self.reference.step == features.step:
            return self.reference
        if self._now is None or self._now[0] != features.source:
            self._now = features.source, self._compute(features)
        return self._now[1]

    @cached_property
    def reference(self) -> State:
        """The network and its kernel at ``--reference``.

        Raises:
            UserError: that step has no features.
        """
        with self.features_of(self.reference_step) as features:
            return self.state(features) if self._now_is(features) else self._compute(features)

    def _now_is(self, features: StepFeatures) -> bool:
        return self._now is not None and self._now[0] == features.source

    @property
    def reference_step(self) -> int:
        """``--reference``; raises ``UserError`` if that step has no features."""
        return reference_step(self.run, self._config.reference)

    def unsettled(self, step: int) -> list[str]:
        """A line that says so if running statistics at a step are not yet those of the data."""
        return []

    @contextmanager
    def features_of(self, step: int) -> Iterator[StepFeatures]:
        """The features of a step that has some."""
        with step_features(self.run.fetch(self.run.features(step)), self._laws) as features:
            yield features

    def within_memory(self, what: str, seconds: float, needed: float) -> str:
        """A line that says what some work on kernels takes.

        Args:
            what: the work.
            seconds: its time.
            needed: bytes.

        Raises:
            UserError: there is less.
        """
        cost, free = f"about {seconds_text(seconds)} and {bytes_text(needed)}", self._free
        if needed > free:
            advice = "--kernel traced or " * (self._config.kernel == "full") + "fewer --examples"
            if self._config.kernel_on == "probe":
                advice += " (with --kernel-on train)"
            raise UserError(f"{what}: {cost}, of {bytes_text(free)} free; use {advice}")
        return f"{what}: {cost}"

    def _stored(self, steps: int) -> int:
        """Bytes of the kernels of so many checkpoints: in the cache, and as they are compared."""
        pairs = len(self.targets) ** 2
        outputs = self.targets.shape[1] if self._config.kernel == "full" else 1
        return 2 * 8 * steps * pairs * outputs**2

    @property
    def _free(self) -> float:
        return float(available_memory(self._at.device))

    def loss(self, logits: Floats) -> float:
        """The run's loss of logits [N, C] on the examples."""
        targets = self.batch[1]
        of = torch.from_numpy(logits).to(targets.device)
        targets = targets.double() if targets.is_floating_point() else targets
        return float(self._at.loss(of, targets))

    def accuracy(self, logits: Floats) -> float:
        """The part of the examples whose largest logit is their class's; NaN for a regression."""
        if self.batch[1].is_floating_point():
            return float("nan")
        return float((logits.argmax(1) == self.classes).mean())

    def feature_steps(self) -> list[int]:
        """The steps that have features by now."""
        return self.run.feature_steps()


def as_floats(tensor: Tensor) -> Floats:
    """A tensor on the host, in float64."""
    array: Floats = tensor.detach().double().cpu().numpy()
    return array

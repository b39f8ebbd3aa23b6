"""What training asks of the place where it runs; and the simplest one, a single process.

A *backend* is one process's view: its device, and the other processes that train with it. The
batch of a step is split among *replicas* (the devices), the same for every backend: ``n``
replicas with ``--train-batch-size b`` take the steps of one with ``n·b``, up to rounding.
"""

import gc
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from Training.backends.config import BackendConfig
from Utils.devices import allow_tf32
from Utils.errors import UserError

T = TypeVar("T")

Forward = Callable[[Tensor], Tensor]
"""Maps inputs to logits."""


class Backend:
    """One process on one device.

    Args:
        config: where to train.
        device: this process's.
        rank: this process's number among those that train together.
        processes: how many they are; ``torch.distributed`` connects them.

    Attributes:
        device, rank, processes: as given.
        replicas: devices among which each batch is split.
        share: which part of every batch this process has to compute, of how many.
    """

    def __init__(
        self, config: BackendConfig, device: torch.device, rank: int = 0, processes: int = 1
    ):
        self._config, self.device, self.rank, self.processes = config, device, rank, processes
        self.replicas = 1
        self.share = (0, 1)
        if device.type == "cuda":
            allow_tf32(config.tf32)
            torch.backends.cudnn.benchmark = not config.deterministic
        torch.use_deterministic_algorithms(config.deterministic)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if dist.is_initialized():
            # What averages gradients must not be the last that holds the processes' group: it
            # would wait, holding the interpreter's lock, for a thread that waits for this lock.
            gc.collect()
            dist.destroy_process_group()

    def __str__(self) -> str:
        cuda = self.device.type == "cuda"
        return torch.cuda.get_device_name(self.device) if cuda else self.device.type

    # ------------------------------------------------------------------ the network

    @property
    def data_device(self) -> torch.device:
        """Where batches are made."""
        return self.device

    def forward(self, model: nn.Module, example: Tensor) -> Forward:
        """What maps a batch to logits, in the precision and the way that the flags ask for.

        Args:
            model: moved to the device. Its parameters may be others afterwards, so this comes
                before an optimizer has them.
            example: a small batch of inputs, on the CPU.
        """
        model.to(self.device)
        if self._config.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        network = self._joined(model, example)
        if self._config.compile:
            network = torch.compile(network)  # type: ignore[assignment]
        if self._config.precision == "full":
            return network
        dtype = next(model.parameters()).dtype

        def mixed(inputs: Tensor) -> Tensor:
            with torch.autocast(self.device.type, torch.bfloat16):
                logits: Tensor = network(inputs)
            return logits.to(dtype)

        return mixed

    def _joined(self, model: nn.Module, example: Tensor) -> nn.Module:
        """The model, joined with its copies elsewhere."""
        return model

    def place(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """A batch from ``data_device``, where the network wants it."""
        if self._config.channels_last and inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs, targets

    def end_step(self) -> None:
        """What belongs together in one computation has been said."""

    # ------------------------------------------------------------------ the other processes

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and talks."""
        return self.rank == 0

    def on_first(self, function: Callable[[], T]) -> T:
        """Call a function in the first process; every process gets the result.

        Args:
            function: its result can be pickled.

        Raises:
            UserError: the function raised it, in the first process.
            SystemExit: with 2, in the others.
        """
        if self.processes == 1:
            return function()
        answer: list[Any] = [None, None]
        mistake: UserError | None = None
        if self.is_first:
            try:
                answer[0] = function()
            except UserError as error:
                mistake, answer[1] = error, True
        dist.broadcast_object_list(answer, src=0, device=torch.device("cpu"))
        if mistake is not None:
            raise mistake
        if answer[1]:
            raise SystemExit(2)
        result: T = answer[0]
        return result

    def in_turn(self, function: Callable[[], T]) -> T:
        """Call a function in every process, after the first one, which may prepare a file."""
        held: list[T] = []
        self.on_first(lambda: held.append(function()))
        return held[0] if held else function()

    def total(self, values: Tensor) -> Tensor:
        """The sum of a CPU tensor over the processes that compute shares of a batch."""
        if self.share[1] > 1:
            dist.all_reduce(values)
        return values

    def largest(self, value: int) -> int:
        """The largest of all processes' numbers."""
        return max(self.gather(value))

    def gather(self, value: T) -> list[T]:
        """All processes' values, by rank."""
        if self.processes == 1:
            return [value]
        values: list[Any] = [None] * self.processes
        dist.all_gather_object(values, value)
        return values

    # ------------------------------------------------------------------ random numbers

    def seed(self, seed: int) -> None:
        """Seed torch's global generators.

        ``torch.manual_seed`` notes a stack trace for every kind of device that is never used.
        """
        if self.device.type == "cpu":
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def rng_state(self) -> dict[str, Any]:
        """The states of torch's global generators, from which dropout draws."""
        state: dict[str, Any] = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def set_rng_state(self, state: dict[str, Any]) -> None:
        """Continue as after :meth:`rng_state`, as far as the same generators are here."""
        torch.set_rng_state(state["cpu"])
        if self.device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], self.device)

"""All cores of a TPU, and of all hosts of a pod slice, through torch_xla's SPMD mode.

Every host runs this same program on the whole batch; a mesh over all cores splits it, and XLA
puts in the communication, of batch statistics too. Operations are noted until the step's end and
then compiled as one computation, once for each shape: lr is a Python number and enters as data,
and the last batch of an epoch is left out where it would be smaller. ``PJRT_DEVICE=CPU
CPU_NUM_DEVICES=4`` takes the same path on four virtual devices of the CPU.
"""

import logging
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from Training.backends.backend import Backend
from Training.backends.config import BARE_TPU, BackendConfig
from Training.backends.normalization import moments_of_batch, normalize_together
from Utils.errors import UserError

_PORT = 12355
"""Where the hosts of a slice meet for what is not of a device."""


class Cores(Backend):
    """This host's part in a training on all cores.

    Args:
        config: where to train; ``config.tpu`` is set.
        most: cores to use at most; all of them without a number.

    Raises:
        UserError: there is no TPU, or it is another one.
    """

    def __init__(self, config: BackendConfig, most: int | None):
        assert config.tpu is not None
        _check_place(config.tpu)
        if most is not None:
            _limit(most)
        import numpy as np
        import torch_xla.backends
        import torch_xla.distributed.spmd as spmd
        import torch_xla.runtime as runtime

        if config.precision == "full":  # a TPU's default is bfloat16 for float32, too
            torch_xla.backends.set_mat_mul_precision("highest")
        runtime.use_spmd()
        rank, processes = runtime.process_index(), runtime.process_count()
        super().__init__(config, torch_xla_device(), rank, processes)
        self.replicas = runtime.global_runtime_device_count()
        self._kind = runtime.device_type()
        self._spmd: Any = spmd
        self._mesh = spmd.Mesh(np.arange(self.replicas), (self.replicas,), ("data",))
        if processes > 1:
            meeting = f"tcp://{runtime.get_master_ip()}:{_PORT}"
            dist.init_process_group("gloo", meeting, rank=rank, world_size=processes)

    def __str__(self) -> str:
        return f"{self.replicas} {self._kind} cores"

    @property
    def data_device(self) -> torch.device:
        return torch.device("cpu")

    def _joined(self, model: nn.Module, example: Tensor) -> nn.Module:
        normalize_together(model, moments_of_batch)
        return model

    def place(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        placed = [part.to(self.device) for part in super().place(inputs, targets)]
        for part in placed:
            self._spmd.mark_sharding(part, self._mesh, ("data", *[None] * (part.dim() - 1)))
        return placed[0], placed[1]

    def end_step(self) -> None:
        import torch_xla

        torch_xla.sync()

    def rng_state(self) -> dict[str, Any]:
        from torch_xla.core import xla_model

        return {**super().rng_state(), "xla": xla_model.get_rng_state()}

    def set_rng_state(self, state: dict[str, Any]) -> None:
        from torch_xla.core import xla_model

        super().set_rng_state(state)
        if "xla" in state:
            xla_model.set_rng_state(state["xla"])


def torch_xla_device() -> torch.device:
    """The device that stands for all cores."""
    import torch_xla

    device: torch.device = torch_xla.device()
    return device


def _check_place(name: str) -> None:
    """Refuse to train where no TPU is, or another than the one that was named.

    Raises:
        UserError: with the command that trains on the TPU.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's remarks on its own future
    chosen = "PJRT_DEVICE" in os.environ  # importing torch_xla sets it
    logging.disable(logging.WARNING)  # its own line on what it takes by default
    try:
        import torch_xla.runtime as runtime
        from torch_xla._internal import tpu
    except ImportError as error:
        raise UserError(
            f"--tpu: torch_xla cannot be imported ({error}); install requirements.txt with "
            "Python 3.11 to 3.13 on Linux x86-64, and run python -m scripts.doctor"
        ) from error
    finally:
        logging.disable(logging.NOTSET)
    on_tpu = runtime.device_type() == "TPU"
    here = str(tpu.get_tpu_env().get("NODE_ID", "")) if on_tpu and name != BARE_TPU else ""
    if (on_tpu or chosen) and name in {BARE_TPU, here}:
        return
    what = f"this is the TPU VM {here}" if here else "there is no TPU in this machine"
    target = "NAME" if name == BARE_TPU else shlex.quote(name)
    command = shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])
    raise UserError(
        f"--tpu{'' if name == BARE_TPU else ' ' + name}: {what}; run it there with: "
        f"scripts/run_on_tpu.sh {target} --zone ZONE -- {command}"
    )


_CHIPS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1"}
"""How chips that one process may have for itself lie in their host's mesh."""


def _limit(most: int) -> None:
    """Show torch_xla fewer cores, before it looks.

    Raises:
        UserError: a TPU cannot be split so.
    """
    if os.environ.get("PJRT_DEVICE") == "CPU":
        here = int(os.environ.get("CPU_NUM_DEVICES", "1"))
        os.environ["CPU_NUM_DEVICES"] = str(min(most, here))
        return
    from torch_xla._internal import tpu

    if most >= tpu.num_available_devices():
        return
    chips, rest = divmod(most, tpu.num_logical_cores_per_chip())
    if rest or chips not in _CHIPS or tpu.num_tpu_workers() > 1:
        raise UserError(
            f"--workers {most}: a training can have 1, 2 or 4 chips of one TPU host, or all; "
            "choose another number or leave it out"
        )
    os.environ["TPU_VISIBLE_CHIPS"] = ",".join(map(str, range(chips)))
    os.environ["TPU_CHIPS_PER_PROCESS_BOUNDS"] = _CHIPS[chips]
    os.environ["TPU_PROCESS_BOUNDS"] = "1,1,1"

"""Several processes with a device each, as torchrun starts them: DistributedDataParallel."""

import copy
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from Training.backends.backend import Backend
from Training.backends.config import BackendConfig
from Training.backends.normalization import moments_of_processes, normalize_together
from Utils.devices import select_device
from Utils.errors import UserError


class Processes(Backend):
    """One of torchrun's processes: it computes its share of every batch.

    Gradients are averaged by DistributedDataParallel, with NCCL on GPUs and gloo on CPUs; batch
    normalisation uses the statistics of the whole batch. What is not of a device goes through
    gloo.

    Args:
        config: where to train.

    Raises:
        UserError: there are more processes than GPUs on this host.
    """

    def __init__(self, config: BackendConfig):
        device = select_device(config.device)
        local = int(os.environ["LOCAL_RANK"])
        if device.type == "cuda":
            if local >= torch.cuda.device_count():
                raise UserError(
                    f"--nproc-per-node: {os.environ['LOCAL_WORLD_SIZE']} processes for "
                    f"{torch.cuda.device_count()} GPUs; start one for each GPU, or use --device cpu"
                )
            device = torch.device("cuda", local)
            torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        super().__init__(config, device, dist.get_rank(), dist.get_world_size())
        self.replicas = self.processes
        self.share = (self.rank, self.processes)

    def __str__(self) -> str:
        return f"{self.processes} processes on {super().__str__()}"

    def _joined(self, model: nn.Module, example: Tensor) -> nn.Module:
        unused = has_unused_parameters(model, example.to(self.device))
        if self.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        else:
            normalize_together(model, moments_of_processes)
        return DistributedDataParallel(
            model,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            broadcast_buffers=False,  # they are equal: statistics are of the whole batch
            find_unused_parameters=unused,
        )


def has_unused_parameters(model: nn.Module, example: Tensor) -> bool:
    """Whether the logits do not depend on some parameter, for which no process must wait.

    Args:
        model: left as it is.
        example: a batch of inputs, on the model's device.
    """
    twin = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[example.device] if example.is_cuda else []):
        logits = twin(example)
    gradients = torch.autograd.grad(
        logits.sum(), [p for p in twin.parameters() if p.requires_grad], allow_unused=True
    )
    return any(gradient is None for gradient in gradients)

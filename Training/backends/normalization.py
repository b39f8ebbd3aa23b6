"""Batch normalisation with the statistics of all devices' examples.

``torch.nn.SyncBatchNorm`` works on GPUs only; this is its counterpart for processes on CPUs and
for XLA, whose own batch normalisation keeps running means of biased variances, unlike torch's.

Shape letters: P processes, N local examples, C channels.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

Moments = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""From [N, C, ...]: how many numbers each channel has, their means [C] and variances [C]."""


class GlobalBatchNorm(_BatchNorm):
    """Takes the place of a batch normalisation of any dimension, with its tensors.

    Args:
        original: shares its parameters and running statistics.
        moments: of all devices' examples.
    """

    def __init__(self, original: _BatchNorm, moments: Moments):
        super().__init__(
            original.num_features,
            original.eps,
            original.momentum,
            original.affine,
            original.track_running_stats,
        )
        self._parameters, self._buffers = original._parameters, original._buffers
        self.training = original.training
        self._moments = moments

    def _check_input_dim(self, input: Tensor) -> None:
        """Any dimension: the module in whose place this is has been called with it."""

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, ...] -> the same shape; N may be 0 in some processes."""
        if not self.training and self.running_mean is not None:
            return super().forward(input)
        exact = input if input.dtype == torch.float64 else input.float()
        count, mean, variance = self._moments(exact)
        if self.training and self.running_mean is not None:
            self._update(count, mean.detach(), variance.detach())
        shape = (1, -1, *[1] * (input.dim() - 2))
        scale = (variance + self.eps).rsqrt()
        output = (exact - mean.view(shape)) * scale.view(shape)
        if self.affine:
            output = output * self.weight.view(shape) + self.bias.view(shape)
        return output.to(input.dtype)

    def _update(self, count: Tensor, mean: Tensor, variance: Tensor) -> None:
        """Running statistics, as of torch: unbiased variances, cumulative without a momentum."""
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked.add_(1)
        rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, rate)
        self.running_var.lerp_(variance * count / (count - 1), rate)


def moments_of_batch(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The :data:`Moments` of a batch that is all here, if only as seen by this process."""
    variance, mean = torch.var_mean(x, [0, *range(2, x.dim())], correction=0)
    return torch.tensor(x.numel() // x.shape[1]), mean, variance


def moments_of_processes(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The :data:`Moments` of the examples of all processes.

    Local moments are combined by Chan's formula (Chan, Golub & LeVeque 1983, eq. 2.1), which
    does not cancel as E[x²] − E[x]² does: one communication forwards, one backwards.

    Args:
        x: [N, C, ...].
    """
    if len(x):
        size, mean, variance = moments_of_batch(x)
        local = torch.cat([mean, variance, mean.new_full((1,), float(size))])
    else:  # of nothing, but with a gradient: every process takes part in the way back
        local = x.sum() + x.new_zeros(2 * x.shape[1] + 1)
    table = local.new_zeros(dist.get_world_size(), len(local))
    table = table.index_copy(0, torch.tensor([dist.get_rank()], device=x.device), local[None])
    table = all_reduce(table)  # type: ignore[no-untyped-call]  # [P, 2C + 1], a gathering that can be differentiated
    means, variances, counts = table.split([x.shape[1], x.shape[1], 1], 1)
    weights, count = counts / counts.sum(), counts.sum()
    mean = (weights * means).sum(0)
    variance = (weights * (variances + (means - mean) ** 2)).sum(0)
    return count, mean, variance


def normalize_together(model: nn.Module, moments: Moments) -> None:
    """Have every batch normalisation below ``model`` use the whole batch's statistics, in place."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm) and not isinstance(child, nn.SyncBatchNorm):
                module.register_module(name, GlobalBatchNorm(child, moments))

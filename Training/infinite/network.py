"""A network in function space: a module whose weights are the dual variables of training.

Shape letters: N training examples, R rows of the kernel, B examples of a batch, C outputs.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from Data.dataset import Dataset, Examples, Split
from Training.function_space.losses import Loss


class _Outputs(torch.autograd.Function):
    """f = Θ(x, X) b. The gradient for the weights, θ = Jᵀb, is Jᵀ times that for b below."""

    @staticmethod
    def forward(ctx: Any, dual: Tensor, rows: Tensor, numbers: Tensor) -> Tensor:
        ctx.save_for_backward(numbers)
        ctx.like = dual
        return rows @ dual

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        """∂L/∂f at the batch's examples, 0 at all others."""
        (numbers,), (slope,) = ctx.saved_tensors, slopes
        return torch.zeros_like(ctx.like).index_add_(0, numbers, slope), None, None


class FunctionSpaceNetwork(nn.Module):
    """f(x) = Θ(x, X) b for examples x that are given by their numbers; begins at f = 0.

    With the "gradients" of :class:`_Outputs`, ``torch.optim.SGD`` on b takes the steps that it
    takes on the weights, momentum included (docs/function_space.md). b is float64.

    Args:
        tangent: Θ(x, X) [R, N], of the training examples first. Its number format is that of the
            outputs.
        outputs: C.
        loss: that it is trained with.
        targets: of the training examples.
    """

    tangent: Tensor

    def __init__(self, tangent: Tensor, outputs: int, loss: Loss, targets: Tensor):
        super().__init__()
        self.loss, self.targets = loss, targets
        self.register_buffer("tangent", tangent, persistent=False)
        self.dual = nn.Parameter(torch.zeros(tangent.shape[1], outputs, dtype=torch.float64))

    def forward(self, numbers: Tensor) -> Tensor:
        """Outputs [B, C] of the examples with the numbers [B, 1]."""
        index = numbers[:, 0].long()
        outputs: Tensor = _Outputs.apply(  # type: ignore[no-untyped-call]
            self.dual, self.tangent[index].double(), index
        )
        return outputs.to(self.tangent.dtype)


def numbered(dataset: Dataset) -> Dataset:
    """A data set with the numbers [1] of its examples for inputs, test after training examples."""
    train, test = (_numbered(s, first) for s, first in _splits(dataset))
    return Dataset(train.entry, train, test)


def _splits(dataset: Dataset) -> list[tuple[Examples, int]]:
    return [(dataset.train, 0), (dataset.test, len(dataset.train))]


def _numbered(split: Examples, first: int) -> Split:
    numbers = torch.arange(first, first + len(split))[:, None]
    entry = replace(
        split.entry,
        input_shape=(1,),
        mean=(0.0,),
        std=(1.0,),
        max_value=1.0,
        augmentation=None,
        form=None,
    )
    return Split(entry, numbers, split.targets)

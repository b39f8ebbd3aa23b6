"""Nonlinearities that torch has no module for."""

import torch
from torch import Tensor, nn


class Abs(nn.Module):
    """|x|, homogeneous of degree 1; any shape and dtype."""

    def forward(self, x: Tensor) -> Tensor:
        """|x|, in the shape and dtype of ``x``."""
        return x.abs()


class SquaredReLU(nn.Module):
    """max(x, 0)², homogeneous of degree 2; any shape and dtype."""

    def forward(self, x: Tensor) -> Tensor:
        """max(x, 0)², in the shape and dtype of ``x``."""
        return torch.relu(x).square()

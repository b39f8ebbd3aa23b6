"""Parameter groups as optimizers of the registry take them."""

from typing import Any

from torch import nn

Groups = list[dict[str, Any]]
"""Of torch.optim; the parameters of each are pairs (name, parameter)."""


def by_form(named: list[tuple[str, nn.Parameter]]) -> tuple[list[Any], list[Any]]:
    """Matrices, which include the weights of convolutions, and vectors."""
    return [pair for pair in named if pair[1].dim() > 1], [p for p in named if p[1].dim() < 2]

"""The optimizers of the registry: torch's own here, others in ``further_optimizers``.

Every builder takes parameter groups, whose parameters are pairs (name, parameter), and the flags
that the registry lists for it. What a group says goes before the flags.
"""

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from Models.parametrization.scales import Scales
from Training.config import TrainConfig
from Training.groups import Groups, by_form
from Training.registry import OPTIMIZERS


def sgd(
    groups: Groups,
    lr: float,
    wd: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
) -> Optimizer:
    """``torch.optim.SGD``."""
    return torch.optim.SGD(groups, lr, momentum, dampening, weight_decay=wd, nesterov=nesterov)


def adam(groups: Groups, lr: float, wd: float, beta1: float, beta2: float, eps: float) -> Optimizer:
    """``torch.optim.Adam``: the decay is part of the gradient."""
    return torch.optim.Adam(groups, lr, (beta1, beta2), eps, weight_decay=wd)


def adamw(
    groups: Groups, lr: float, wd: float, beta1: float, beta2: float, eps: float
) -> Optimizer:
    """``torch.optim.AdamW``: the decay is a factor 1 − lr wd."""
    return torch.optim.AdamW(groups, lr, (beta1, beta2), eps, weight_decay=wd)


def rmsprop(
    groups: Groups, lr: float, wd: float, momentum: float, beta2: float, eps: float
) -> Optimizer:
    """``torch.optim.RMSprop``; ``beta2`` is its ``alpha``."""
    return torch.optim.RMSprop(groups, lr, beta2, eps, weight_decay=wd, momentum=momentum)


def build_optimizer(
    config: TrainConfig, model: nn.Module, scales: Scales | None = None
) -> Optimizer:
    """The optimizer that ``config`` asks for, on all parameters of ``model``.

    Args:
        config: the run's configuration.
        model: whose parameters it updates.
        scales: of a parametrization; parameters with equal ones share a group. A group whose
            first steps have another learning rate says in ``first_lr`` what they multiply its
            own by.
    """
    entry = OPTIMIZERS[config.optimizer]
    options: dict[str, Any] = {name: getattr(config, name) for name in entry.options}
    if entry.at_infinity:
        options |= {"network": model}
    named = list(model.named_parameters())
    groups: Groups = [{"params": named}]
    if config.wd_on == "matrices":
        matrices, vectors = by_form(named)
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    if scales is not None:
        groups = [part for group in groups for part in _scaled(group, options, scales)]
    given = [group for group in groups if group["params"]]
    optimizer: Optimizer = entry.load()(given, **options)
    return optimizer


def _scaled(group: dict[str, Any], options: dict[str, Any], scales: Scales) -> Groups:
    """One group for each set of factors, without any of them where all are 1."""
    parts: dict[tuple[float, ...], list[Any]] = {}
    for name, parameter in group["params"]:
        scale = scales.of(name)
        key = (scale.lr, scale.first_lr / scale.lr, scale.wd, scale.eps)
        parts.setdefault(key, []).append((name, parameter))
    split = []
    for (lr, first, wd, eps), named in parts.items():
        own = {**group, "params": named}
        own |= {"lr": options["lr"] * lr} if lr != 1 else {}
        own |= {"first_lr": first} if first != 1 else {}
        decay = group.get("weight_decay", options["wd"])
        own |= {"weight_decay": decay * wd} if wd != 1 else {}
        own |= {"eps": options["eps"] * eps} if eps != 1 and "eps" in options else {}
        split.append(own)
    return split

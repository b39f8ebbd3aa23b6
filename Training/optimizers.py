"""The optimizers of the registry: torch's own, and pytorch_optimizer's where torch has none.

Every builder takes parameter groups, whose parameters are pairs (name, parameter), and the flags
that the registry lists for it. What a group says goes before the flags.
"""

from typing import Any

import pytorch_optimizer
import torch
from torch import nn
from torch.optim import Optimizer

from Models.parametrization.scales import Scales
from Training.config import TrainConfig
from Training.registry import OPTIMIZERS

Groups = list[dict[str, Any]]


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


def lamb(groups: Groups, lr: float, wd: float, beta1: float, beta2: float, eps: float) -> Optimizer:
    """``pytorch_optimizer.Lamb``: the decay is part of the update whose norm is divided out."""
    return pytorch_optimizer.Lamb(
        groups,
        lr,
        (beta1, beta2),
        weight_decay=wd,
        weight_decouple=False,
        eps=eps,
        adam_debias=True,  # in its words: the step is not divided by 1 − β₁ᵏ
    )


def lion(groups: Groups, lr: float, wd: float, beta1: float, beta2: float) -> Optimizer:
    """``pytorch_optimizer.Lion``."""
    return pytorch_optimizer.Lion(groups, lr, (beta1, beta2), weight_decay=wd)


def muon(
    groups: Groups,
    lr: float,
    wd: float,
    momentum: float,
    adamw_lr: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> Optimizer:
    """``pytorch_optimizer.Muon``; a convolution is a matrix whose rows are its filters."""
    adamw = {"betas": (beta1, beta2), "eps": eps, "lr": adamw_lr}
    matrices: dict[str, Any] = {
        "use_muon": True,
        "lr": lr,
        "momentum": momentum,
        "weight_decay": wd,
    }
    vectors: dict[str, Any] = {"use_muon": False, "weight_decay": wd, **adamw}
    split = [
        {**own, **group, "params": params}
        for group in groups
        for own, params in zip((matrices, vectors), _by_form(group["params"]), strict=True)
        if params
    ]
    return pytorch_optimizer.Muon(split)


def _by_form(named: list[tuple[str, nn.Parameter]]) -> tuple[list[Any], list[Any]]:
    """Matrices, which include the weights of convolutions, and vectors."""
    return [pair for pair in named if pair[1].dim() > 1], [p for p in named if p[1].dim() < 2]


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
        matrices, vectors = _by_form(named)
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

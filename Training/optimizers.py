"""The optimizers of the registry: torch's own, and pytorch_optimizer's where torch has none.

Every builder takes a model's parameters as pairs (name, parameter) and the flags that the
registry lists for it.
"""

import pytorch_optimizer
import torch
from torch import nn
from torch.optim import Optimizer

from Training.config import TrainConfig
from Training.registry import OPTIMIZERS

Named = list[tuple[str, nn.Parameter]]


def sgd(
    named: Named,
    lr: float,
    wd: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
) -> Optimizer:
    """``torch.optim.SGD``."""
    return torch.optim.SGD(named, lr, momentum, dampening, weight_decay=wd, nesterov=nesterov)


def adam(named: Named, lr: float, wd: float, beta1: float, beta2: float, eps: float) -> Optimizer:
    """``torch.optim.Adam``: the decay is part of the gradient."""
    return torch.optim.Adam(named, lr, (beta1, beta2), eps, weight_decay=wd)


def adamw(named: Named, lr: float, wd: float, beta1: float, beta2: float, eps: float) -> Optimizer:
    """``torch.optim.AdamW``: the decay is a factor 1 − lr wd."""
    return torch.optim.AdamW(named, lr, (beta1, beta2), eps, weight_decay=wd)


def rmsprop(
    named: Named, lr: float, wd: float, momentum: float, beta2: float, eps: float
) -> Optimizer:
    """``torch.optim.RMSprop``; ``beta2`` is its ``alpha``."""
    return torch.optim.RMSprop(named, lr, beta2, eps, weight_decay=wd, momentum=momentum)


def lamb(named: Named, lr: float, wd: float, beta1: float, beta2: float, eps: float) -> Optimizer:
    """``pytorch_optimizer.Lamb``: the decay is part of the update whose norm is divided out."""
    return pytorch_optimizer.Lamb(
        named,
        lr,
        (beta1, beta2),
        weight_decay=wd,
        weight_decouple=False,
        eps=eps,
        adam_debias=True,  # in its words: the step is not divided by 1 − β₁ᵏ
    )


def lion(named: Named, lr: float, wd: float, beta1: float, beta2: float) -> Optimizer:
    """``pytorch_optimizer.Lion``."""
    return pytorch_optimizer.Lion(named, lr, (beta1, beta2), weight_decay=wd)


def muon(
    named: Named,
    lr: float,
    wd: float,
    momentum: float,
    adamw_lr: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> Optimizer:
    """``pytorch_optimizer.Muon``; a convolution is a matrix whose rows are its filters."""
    matrices = [(name, p) for name, p in named if p.dim() > 1]
    vectors = [(name, p) for name, p in named if p.dim() < 2]
    adamw = {"betas": (beta1, beta2), "eps": eps, "lr": adamw_lr}
    groups = [
        {"params": matrices, "use_muon": True, "lr": lr, "momentum": momentum, "weight_decay": wd},
        {"params": vectors, "use_muon": False, "weight_decay": wd, **adamw},
    ]
    return pytorch_optimizer.Muon([group for group in groups if group["params"]])


def build_optimizer(config: TrainConfig, model: nn.Module) -> Optimizer:
    """The optimizer that ``config`` asks for, on all parameters of ``model``."""
    entry = OPTIMIZERS[config.optimizer]
    options = {name: getattr(config, name) for name in entry.options}
    optimizer: Optimizer = entry.load()(list(model.named_parameters()), **options)
    return optimizer

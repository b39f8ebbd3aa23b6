"""Optimizers that torch lacks, from pytorch_optimizer, which takes 0.2 s to import.

The builders are those of :mod:`Training.optimizers`.
"""

from typing import Any

import pytorch_optimizer
from torch.optim import Optimizer

from Training.groups import Groups, by_form


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
        for own, params in zip((matrices, vectors), by_form(group["params"]), strict=True)
        if params
    ]
    return pytorch_optimizer.Muon(split)

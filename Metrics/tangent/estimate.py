"""Unbiased estimates of the traced kernel, where the exact one is too expensive."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from scipy.special import stdtrit
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from Metrics.tangent.contraction import accumulating
from Metrics.tangent.kernel import tangent_kernel
from Metrics.tangent.network import Network, look_at
from Metrics.tangent.products import Pushed
from Metrics.tangent.routes import check_choice
from Utils.errors import UserError
from Utils.seeds import generator

Method = Literal["subset", "signs", "projection"]


@dataclass(frozen=True)
class Estimate:
    """An estimate of the traced kernel [N, M].

    Attributes:
        total: the mean of independent unbiased estimates.
        half_width: [N, M]: the exact entry lies within it of ``total`` with the confidence that
            was asked for, as far as the estimates are normally distributed.
        samples: how many estimates there are.
    """

    total: Tensor
    half_width: Tensor
    samples: int


def estimate(
    model: nn.Module,
    inputs: Tensor,
    others: Tensor | None = None,
    *,
    method: Method = "signs",
    samples: int = 16,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """The mean over logits of Θ_cc from a few of them, from mixtures, or from directions.

        subset       Θ_cc of ``samples`` logits, drawn without replacement: exact with all
        signs        Σ_cd s_c s_d Θ_cd / C, s independent signs (Hutchinson 1990; Mohamadi et al.
                     2023, arXiv 2206.12543, take one fixed mixture)
        projection   (J v)(J' v)ᵀ summed over equal logits / C, v standard normal in parameter
                     space (Johnson and Lindenstrauss 1984)

    A sample costs a forward and a backward pass and a Gram matrix of one logit; of the
    projection, two backward passes and no Gram matrix, whatever the number of parameters.

    Args:
        model: maps [N, ...] to logits [N, C].
        inputs: [N, ...].
        others: [M, ...]; ``None`` stands for ``inputs``.
        method: which of the three.
        samples: k, at least 2.
        confidence: of the intervals, between 0 and 1.
        seed: of the random choices.

    Raises:
        UserError: as the exact kernel; or an unknown method, too few samples, or more than logits.
    """
    check_choice("method", method, Method)
    if samples < 2 or not 0 < confidence < 1:
        raise UserError(
            f"an estimate needs 2 samples and a confidence between 0 and 1, not {samples} and "
            f"{confidence}"
        )
    network = look_at(model, inputs)
    with torch.no_grad():
        logits = network.logits(inputs if network.couples_examples else inputs[:1]).shape[1]
    if method == "projection":
        kernels = _projections(network, inputs, others, samples, seed)
    else:
        mixtures = _mixtures(method, logits, samples, seed)
        kernels = (
            tangent_kernel(_Mixed(model, mixture), inputs, others).total for mixture in mixtures
        )
    left_out = 1 - samples / logits if method == "subset" else 1.0
    return _interval(kernels, samples, confidence, left_out)


def _interval(
    kernels: Iterator[Tensor], samples: int, confidence: float, left_out: float
) -> Estimate:
    """Mean and Student's interval, by Welford's recursion: kernels are not kept.

    Args:
        kernels: independent estimates.
        samples: how many.
        confidence: of the interval.
        left_out: the share of a finite population that was not drawn (Cochran 1977, equation
            2.20); 1 for an infinite one.
    """
    mean = next(kernels)
    squares = torch.zeros_like(mean)
    for count, kernel in enumerate(kernels, 2):
        change = kernel - mean
        mean = mean + change / count
        squares += change * (kernel - mean)
    variance = squares / (samples - 1) / samples * left_out
    quantile = float(stdtrit(samples - 1, (1 + confidence) / 2))
    return Estimate(mean, quantile * variance.sqrt(), samples)


def _mixtures(method: Method, logits: int, samples: int, seed: int) -> Tensor:
    """Weights [k, C] of the logits, the mean of whose kernels is the traced one."""
    random = generator(seed, "tangent", method)
    if method == "signs":
        signs = torch.randint(2, (samples, logits), generator=random) * 2 - 1
        return signs.double() / math.sqrt(logits)
    if samples > logits:
        raise UserError(
            f"method='subset' draws {samples} of {logits} logits; take fewer samples, or "
            "tangent_kernel, which is exact"
        )
    chosen = torch.randperm(logits, generator=random)[:samples]
    return torch.eye(logits, dtype=torch.float64)[chosen]


class _Mixed(nn.Module):
    """One mixture of a model's logits: [N, ...] to [N, 1]."""

    def __init__(self, model: nn.Module, mixture: Tensor):
        super().__init__()
        self.training = model.training
        self.model = model
        self._mixture = mixture[:, None]

    def forward(self, inputs: Tensor) -> Tensor:
        logits = self.model(inputs)
        mixed: Tensor = logits @ self._mixture.to(logits)
        return mixed


def _projections(
    network: Network, inputs: Tensor, others: Tensor | None, samples: int, seed: int
) -> Iterator[Tensor]:
    random = generator(seed, "tangent", "projection")
    with sdpa_kernel(SDPBackend.MATH), torch.set_grad_enabled(True):
        batches = [inputs] if others is None else [inputs, others]
        pushed = [Pushed(network, batch) for batch in batches]
        for _ in range(samples):
            v = {
                name: torch.randn(p.shape, generator=random, dtype=torch.float32).to(p)
                for name, p in network.parameters.items()
            }
            sides = [side(v, list(v)) for side in pushed]
            left, right = (side.to(accumulating(side.dtype)) for side in (sides[0], sides[-1]))
            kernel: Tensor = left @ right.T
            yield kernel / left.shape[1]

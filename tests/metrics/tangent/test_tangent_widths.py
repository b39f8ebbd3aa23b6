"""What theory says of the tangent kernel of wide networks, held against training by torch alone."""

import numpy as np
import torch
from torch import Tensor, nn

from Metrics.tangent import tangent_kernel

WIDTHS, SEEDS = (64, 128, 256, 512), range(6)


class Scaled(nn.Linear):
    """W x / √fan-in with standard normal W: the tangent parametrization (Jacot et al. 2018)."""

    def __init__(self, before: int, after: int, generator: torch.Generator):
        super().__init__(before, after, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.weight.normal_(generator=generator)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) / self.in_features**0.5


def change(width: int, seed: int) -> float:
    """|Θ_T − Θ_0| / |Θ_0| over 30 steps of gradient descent."""
    g = torch.Generator().manual_seed(seed)
    layers = [Scaled(6, width, g), nn.Tanh(), Scaled(width, width, g), nn.Tanh()]
    network = nn.Sequential(*layers, Scaled(width, 1, g))
    data = torch.Generator().manual_seed(0)
    x, y = (torch.randn(8, n, generator=data, dtype=torch.float64) for n in (6, 1))
    before = tangent_kernel(network, x).total
    weights = list(network.parameters())
    for _ in range(30):
        gradients = torch.autograd.grad((network(x) - y).square().mean(), weights)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight -= 0.5 * gradient
    after = tangent_kernel(network, x).total
    return float((after - before).norm() / before.norm())


def test_the_kernel_of_a_smooth_network_changes_by_one_over_its_width() -> None:
    """Dyer & Gur-Ari 2019, arXiv:1909.11304, table 1: Θ_T − Θ_0 = O(1/n)."""
    means = [np.mean([change(width, seed) for seed in SEEDS]) for width in WIDTHS]
    exponent = np.polyfit(np.log(WIDTHS), np.log(means), 1)[0]
    assert abs(exponent + 1) < 0.15

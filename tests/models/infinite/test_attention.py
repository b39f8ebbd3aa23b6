"""Attention of infinitely wide networks; neural-tangents' kernels of it are in test_golden."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from Models.infinite import infinite_network
from tests.models.infinite.references import agrees, sampled
from Utils.errors import UserError

D = 512


class Net(nn.Module):
    """Keys, values, a nonlinearity, the mean of positions."""

    def __init__(self, weights: Callable[[Tensor], Tensor], own: bool = False):
        super().__init__()
        self.first, self.last = nn.Linear(3, D, bias=False), nn.Linear(D, 4, bias=False)
        self.key, self.value = (nn.Linear(D, D, bias=False) for _ in range(2))
        self.query = nn.Linear(D, D, bias=False) if own else None
        self.weights = weights

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        k = self.key(h)
        q = k if self.query is None else self.query(h)
        mixed = self.weights(q @ k.transpose(1, 2)) @ self.value(h)
        result: Tensor = self.last(mixed.tanh().mean(1))
        return result


def softmax(scores: Tensor) -> Tensor:
    return (2 * scores / D).softmax(-1)


def test_wide_networks_have_these_kernels() -> None:
    """Their own keys are trained, too, which does not matter in the limit."""
    torch.manual_seed(0)
    x = torch.randn(3, 4, 3, dtype=torch.float64)

    def rates(_: str, p: nn.Parameter) -> tuple[float, float]:
        return p.shape[1] ** -0.5, 1 / p.shape[1]

    nngp, ntk = sampled(lambda: Net(softmax), x, rates, samples=6)
    found = infinite_network(Net(softmax), (4, 3)).kernels(x)
    assert found.nngp is not None
    assert found.ntk is not None
    assert agrees(nngp, found.nngp, 0.05)
    assert agrees(ntk, found.ntk, 0.05)


def test_pairs_do_not_depend_on_their_tiles() -> None:
    network = infinite_network(Net(softmax), (4, 3))
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    whole = network.kernels(x)
    for other in (network.kernels(x, block=1), network.kernels(x, x.clone())):
        for one, two in ((whole.nngp, other.nngp), (whole.ntk, other.ntk)):
            assert one is not None
            assert two is not None
            assert torch.allclose(one, two, rtol=1e-8)


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (Net(lambda z: (z / D**0.5).softmax(-1)), "random limit"),
        (Net(lambda z: z.softmax(-1)), "random limit"),
        (Net(lambda z: (z / D).softmax(1)), "random limit"),
        (Net(lambda z: z / D + 1), "multiplied by numbers"),
        (Net(softmax, own=True), "only keys that are their own queries"),
    ],
)
def test_other_attention_is_refused(net: nn.Module, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        infinite_network(net, (4, 3))

"""Memory and parameters that several operations share: views, in-place operations, ties."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.models.symmetry.certificate import EPSILON, Net, assert_no_false_law

HIDDEN = 4

Forward = Callable[[Any, Any], Any]


def rows() -> Tensor:
    return torch.rand(6, 5, dtype=torch.float64) + 0.1


def tokens() -> Tensor:
    return torch.randint(7, (6, 5))


def model_of(hidden: Forward) -> nn.Module:
    """Two linear layers; between them whatever happens to the hidden vector, with a gain."""
    return Net(
        lambda net, x: net.second(hidden(net, net.first(x))),
        first=nn.Linear(5, HIDDEN),
        gain=nn.Parameter(torch.rand(HIDDEN) + 0.5),
        norm=nn.LayerNorm(HIDDEN),
        second=nn.Linear(HIDDEN, 3),
    )


# ---------------------------------------------------------------------- in place

IN_PLACE: dict[str, Forward] = {}
SEEN_THROUGH_OTHERS: dict[str, Forward] = {}


def entered(zoo: dict[str, Forward]) -> Callable[[Forward], Forward]:
    def enter(function: Forward) -> Forward:
        zoo[function.__name__] = function
        return function

    return enter


@entered(IN_PLACE)
def activation(net: Any, h: Tensor) -> Tensor:
    return F.relu(h, inplace=True)


@entered(IN_PLACE)
def the_same_tensor_later(net: Any, h: Tensor) -> Tensor:
    h.relu_()
    return h


@entered(IN_PLACE)
def an_old_view_that_is_not_used_again(net: Any, h: Tensor) -> Tensor:
    return h.view(-1, 2, 2).relu_().flatten(1)


@entered(IN_PLACE)
def chained(net: Any, h: Tensor) -> Tensor:
    return h.mul_(2.0).div_(3.0).relu_()


@entered(IN_PLACE)
def residual(net: Any, h: Tensor) -> Tensor:
    out = h.abs()
    out += h
    return out


@entered(IN_PLACE)
def a_copy(net: Any, h: Tensor) -> Any:
    z = h.clone()
    z.mul_(net.gain)
    return h + z / net.gain


@entered(SEEN_THROUGH_OTHERS)
def a_view_made_before(net: Any, h: Tensor) -> Tensor:
    view = h.view(-1, 2, 2)
    h.mul_(net.gain)
    return view.flatten(1)


@entered(SEEN_THROUGH_OTHERS)
def the_tensor_behind_a_view(net: Any, h: Tensor) -> Tensor:
    h[:, None].squeeze(1).square_()
    return h


@entered(SEEN_THROUGH_OTHERS)
def a_part(net: Any, h: Tensor) -> Tensor:
    h[:, :2].mul_(net.gain[:2])
    h[:, 1:3].add_(1.0)
    return F.relu(h)


@entered(SEEN_THROUGH_OTHERS)
def an_element_set_to_a_constant(net: Any, h: Tensor) -> Tensor:
    h[:, 0] = 1
    return F.relu(h)


@entered(SEEN_THROUGH_OTHERS)
def an_inactive_dropout_returns_its_operand(net: Any, h: Tensor) -> Tensor:
    F.dropout(h, 0.5, training=False).mul_(net.gain)
    return h


@entered(SEEN_THROUGH_OTHERS)
def a_cast_that_does_nothing(net: Any, h: Tensor) -> Tensor:
    h.to(torch.float64).mul_(net.gain)
    return h


@entered(SEEN_THROUGH_OTHERS)
def an_einsum_that_only_transposes(net: Any, h: Tensor) -> Tensor:
    torch.einsum("ij->ji", h).mul_(net.gain[:, None])
    return h


@entered(SEEN_THROUGH_OTHERS)
def a_shift_seen_by_a_view(net: Any, h: Tensor) -> Tensor:
    view = h.view(-1, HIDDEN)
    h.add_(net.gain)
    return F.relu(net.norm(view))


@entered(SEEN_THROUGH_OTHERS)
def a_detached_alias(net: Any, h: Tensor) -> Tensor:
    h.detach().mul_(net.gain.detach())
    return h


@entered(SEEN_THROUGH_OTHERS)
def a_tensor_filled_part_by_part(net: Any, h: Tensor) -> Tensor:
    z = torch.zeros_like(h)
    z[:, :2] = h[:, :2]
    z[:, 2:] = F.relu(h[:, 2:])
    return z


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_operations_are_as_good_as_others(name: str) -> None:
    torch.manual_seed(0)
    laws = assert_no_false_law(model_of(IN_PLACE[name]), rows())
    assert len([law for law in laws.of_kind("rescale") if "first.weight" in law.parameters]) == 1


@pytest.mark.parametrize("name", SEEN_THROUGH_OTHERS)
def test_no_law_is_false_when_memory_is_shared(name: str) -> None:
    torch.manual_seed(0)
    assert_no_false_law(model_of(SEEN_THROUGH_OTHERS[name]), rows())


def test_buffers_that_follow_activations_are_constants() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        h = torch.relu(net.first(x))
        net.mean.mul_(0.9).add_(0.1 * h.detach().mean(0))
        return net.second(h / net.mean)

    model = Net(
        forward,
        first=nn.Linear(5, HIDDEN),
        mean=torch.ones(HIDDEN, dtype=torch.float64),
        second=nn.Linear(HIDDEN, 3),
    )
    assert len(assert_no_false_law(model, rows()).quadratic) == HIDDEN


# ---------------------------------------------------------------------- parameters


class TiedReadout(nn.Module):
    """The readout is the embedding; a norm between them or not."""

    def __init__(self, norm: bool):
        super().__init__()
        self.embed = nn.Embedding(7, HIDDEN)
        self.norm = nn.LayerNorm(HIDDEN) if norm else nn.Identity()
        self.readout = nn.Linear(HIDDEN, 7)
        self.readout.weight = self.embed.weight

    def forward(self, x: Tensor) -> Any:
        return self.readout(self.norm(self.embed(x).mean(1)))


class TiedAutoencoder(nn.Module):
    """The decoder is the encoder's transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(5, HIDDEN)
        self.bias = nn.Parameter(torch.rand(5))

    def forward(self, x: Tensor) -> Any:
        return F.linear(torch.relu(self.encoder(x)), self.encoder.weight.t(), self.bias)


def square(rows: int = HIDDEN) -> nn.Parameter:
    return nn.Parameter(torch.rand(rows, rows))


def embedding(**options: Any) -> nn.Embedding:
    return nn.Embedding(7, HIDDEN, **options)


def padded_with_ones() -> nn.Embedding:
    table = embedding(padding_idx=2)
    table.weight.data[2] = 1
    return table


def rows_of(forward: Forward, **parts: Any) -> Callable[[], tuple[nn.Module, Tensor]]:
    return lambda: (Net(forward, head=nn.Linear(HIDDEN, 3), **parts), rows())


def tokens_of(forward: Forward, **parts: Any) -> Callable[[], tuple[nn.Module, Tensor]]:
    parts.setdefault("norm", nn.LayerNorm(HIDDEN))
    return lambda: (Net(forward, head=nn.Linear(HIDDEN, 3), **parts), tokens())


def transposed_once(net: Any, x: Tensor) -> Any:
    weight = net.weight.t()
    return torch.relu(x @ weight) @ weight


PARAMETERS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "tied readout": lambda: (TiedReadout(False), tokens()),
    "tied readout after a norm": lambda: (TiedReadout(True), tokens()),
    "tied autoencoder": lambda: (TiedAutoencoder(), rows()),
    "a transpose used twice": lambda: (Net(transposed_once, weight=square(5)), rows()),
    "a transpose used twice, then a norm": lambda: (
        Net(
            lambda net, x: net.norm(transposed_once(net, x)),
            weight=square(5),
            norm=nn.LayerNorm(5),
        ),
        rows(),
    ),
    "a vector added twice": lambda: (
        Net(
            lambda net, x: net.norm(x + (net.offset + net.offset)),
            offset=nn.Parameter(torch.rand(5)),
            norm=nn.LayerNorm(5),
        ),
        rows(),
    ),
    "a bias of two layers": rows_of(
        lambda net, x: net.head(torch.relu(x @ net.a + net.b) @ net.c + net.b),
        a=nn.Parameter(torch.rand(5, HIDDEN)),
        b=nn.Parameter(torch.rand(HIDDEN)),
        c=square(),
    ),
    "a weight that is also a bias": lambda: (
        Net(
            lambda net, x: net.norm(F.linear(x, net.weight) + net.weight[0]),
            weight=square(5),
            norm=nn.LayerNorm(5),
        ),
        rows(),
    ),
    "a weight that is its own input": lambda: (
        Net(
            lambda net, x: net.norm(x @ F.linear(net.weight, net.weight)),
            weight=square(5),
            norm=nn.LayerNorm(5),
        ),
        rows(),
    ),
    "logits of a weight with itself": lambda: (
        Net(lambda net, x: F.linear(net.weight, net.weight)[: len(x)], weight=square(6)),
        rows(),
    ),
    "a gain that is also a bias": rows_of(
        lambda net, x: net.head(
            F.layer_norm(net.first(x) + net.gain, (HIDDEN,), net.gain, None, EPSILON)
        ),
        first=nn.Linear(5, HIDDEN),
        gain=nn.Parameter(torch.rand(HIDDEN)),
    ),
    "gain and bias are one": rows_of(
        lambda net, x: net.head(F.layer_norm(net.first(x), (HIDDEN,), net.gain, net.gain, EPSILON)),
        first=nn.Linear(5, HIDDEN),
        gain=nn.Parameter(torch.rand(HIDDEN)),
    ),
    "layers applied twice": rows_of(
        lambda net, x: net.head(
            torch.relu(net.norm(net.twice(torch.relu(net.norm(net.twice(net.first(x)))))))
        ),
        first=nn.Linear(5, HIDDEN),
        twice=nn.Linear(HIDDEN, HIDDEN),
        norm=nn.BatchNorm1d(HIDDEN),
    ),
    "a convolution on two scales": lambda: (
        Net(
            lambda net, x: net.head(
                net.twice(net.first(x)).mean((2, 3))
                + net.twice(F.avg_pool2d(net.first(x), 2)).mean((2, 3))
            ),
            first=nn.Conv2d(3, 4, 3, padding=1),
            twice=nn.Conv2d(4, 4, 3, padding=1, groups=2),
            head=nn.Linear(4, 3),
        ),
        torch.randn(6, 3, 8, 8, dtype=torch.float64),
    ),
    "an embedding used twice": tokens_of(
        lambda net, x: net.head(net.norm(net.embed(x) + net.embed(x.flip(1))).mean(1)),
        embed=embedding(),
    ),
    "a transposed table": lambda: (
        Net(
            lambda net, x: net.head(torch.relu(F.embedding(x, net.table.t())).mean(1)),
            table=square(7),
            head=nn.Linear(7, 3),
        ),
        tokens(),
    ),
    "a transposed table and a norm": lambda: (
        Net(
            lambda net, x: net.norm(F.embedding(x, net.table.t())).mean(1),
            table=square(7),
            norm=nn.LayerNorm(7),
        ),
        tokens(),
    ),
    "a padding row that is not zero": tokens_of(
        lambda net, x: net.head(torch.relu(net.embed(x)).mean(1)), embed=padded_with_ones()
    ),
    "a padding row and places": tokens_of(
        lambda net, x: net.head(net.norm(net.embed(x) + net.place).mean(1)),
        embed=padded_with_ones(),
        place=nn.Parameter(torch.rand(5, HIDDEN)),
    ),
    "a padding row in a tied table": tokens_of(
        lambda net, x: F.linear(torch.relu(net.embed(x)).mean(1), net.embed.weight),
        embed=embedding(padding_idx=2),
    ),
    "gradients scaled by frequency": tokens_of(
        lambda net, x: net.head(net.norm(net.embed(x) + net.place).mean(1)),
        embed=embedding(scale_grad_by_freq=True),
        place=nn.Parameter(torch.rand(5, HIDDEN)),
    ),
    "one number added everywhere": rows_of(
        lambda net, x: net.head(net.norm(net.first(x) + net.number)),
        first=nn.Linear(5, HIDDEN),
        number=nn.Parameter(torch.rand(())),
        norm=nn.LayerNorm(HIDDEN),
    ),
    "one number per place": lambda: (
        Net(
            lambda net, x: net.head(net.norm(net.first(x) + net.numbers).mean(1)),
            first=nn.Linear(4, HIDDEN),
            numbers=nn.Parameter(torch.rand(7, 1)),
            norm=nn.LayerNorm(HIDDEN),
            head=nn.Linear(HIDDEN, 3),
        ),
        torch.randn(6, 7, 4, dtype=torch.float64),
    ),
    "rows and columns of places": lambda: (
        Net(
            lambda net, x: net.head(
                net.norm((net.first(x) + net.row[:, :, None] + net.column[:, None]).mean((2, 3)))
            ),
            first=nn.Conv2d(3, HIDDEN, 2, 2),
            row=square(),
            column=square(),
            norm=nn.LayerNorm(HIDDEN),
            head=nn.Linear(HIDDEN, 3),
        ),
        torch.randn(6, 3, 8, 8, dtype=torch.float64),
    ),
    "a gain of one number": rows_of(
        lambda net, x: net.head(torch.relu(net.first(x)) * net.number),
        first=nn.Linear(5, HIDDEN),
        number=nn.Parameter(torch.rand(())),
    ),
    "a temperature": lambda: (
        Net(
            lambda net, x: net.first(x) * net.number,
            first=nn.Linear(5, 3),
            number=nn.Parameter(torch.rand(1)),
        ),
        rows(),
    ),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_no_law_is_false_when_parameters_are_shared(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = PARAMETERS[name]()
    laws = assert_no_false_law(model, inputs)
    assert not laws.note
    assert all(abs(laws.linear.matrix).sum(axis=1) > 0), "a law without coefficients"


def test_tied_parameters_go_by_their_first_name() -> None:
    laws = assert_no_false_law(TiedReadout(True), tokens())
    assert "readout.weight" not in laws.parameters + tuple(name for name, _ in laws.lawless)
    assert "embed.weight" in laws.parameters + tuple(name for name, _ in laws.lawless)

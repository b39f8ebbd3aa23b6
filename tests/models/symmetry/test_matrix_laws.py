"""Matrix laws: found where a frame is free, as many as there are, and true."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from Models.symmetry import Laws, find_laws
from Models.symmetry.balance import certified
from Models.symmetry.frames import Frame, Side
from tests.models.symmetry.attention import Attention, Block
from tests.models.symmetry.certificate import Net, assert_no_false_law, leaks

vectors = torch.zeros(8, 6, dtype=torch.float64)
images = torch.zeros(6, 2, 6, 6, dtype=torch.float64)
sequences = torch.zeros(6, 4, 6, dtype=torch.float64)


def sizes(laws: Laws) -> dict[str, int]:
    """n of each matrix law."""
    return {f.layer: round((8 * len(f) + 1) ** 0.5 - 1) // 2 for f in laws.of_kind("balance")}


def lora() -> nn.Module:
    return Net(
        lambda net, x: net.head(torch.relu(net.dense(x) + net.b(net.a(x)))),
        dense=nn.Linear(6, 5),
        a=nn.Linear(6, 2, bias=False),
        b=nn.Linear(2, 5, bias=False),
        head=nn.Linear(5, 3),
    )


def mean_of_tokens() -> nn.Module:
    """Linear maps commute with means over places."""
    return Net(
        lambda net, x: net.head(net.value(x).mean(1)), value=nn.Linear(6, 4), head=nn.Linear(4, 3)
    )


def added_position() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Any:
        return net.head(torch.relu(net.middle(net.embedding(x) + net.position)).mean(1))

    return Net(
        forward,
        embedding=nn.Linear(6, 4, bias=False),
        position=nn.Parameter(torch.rand(4, 4)),
        middle=nn.Linear(4, 5),
        head=nn.Linear(5, 3),
    )


def two_readers() -> nn.Module:
    return Net(
        lambda net, x: net.head(torch.relu(net.left(net.shared(x))) + net.right(net.shared(x))),
        shared=nn.Linear(6, 3),
        left=nn.Linear(3, 5),
        right=nn.Linear(3, 5),
        head=nn.Linear(5, 3),
    )


def packed_attention() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Any:
        y = torch.relu(net.embedding(x))
        return net.head(torch.relu(net.attention(y, y, y, need_weights=False)[0]).mean(1))

    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    return Net(forward, embedding=nn.Linear(6, 4), attention=attention, head=nn.Linear(4, 3))


FOUND: dict[str, tuple[Callable[[], nn.Module], Tensor, dict[str, int]]] = {
    "deep linear": (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4, bias=False), nn.Linear(4, 3)),
        vectors,
        {"0|1": 5, "1|2": 4},
    ),
    "bottleneck": (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2), nn.Linear(2, 3)),
        vectors,
        {"2|3": 2},
    ),
    "LoRA": (lora, vectors, {"a|b": 2}),
    "mean of tokens": (mean_of_tokens, sequences, {"value|head": 4}),
    "added position": (added_position, sequences, {"embedding+position|middle": 4}),
    "two readers": (two_readers, vectors, {"shared|left+right": 3}),
    "convolutions and pooling": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1),
            nn.Conv2d(3, 4, 3, stride=2),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4, 3),
        ),
        images,
        {"0|1": 3, "1|4": 4},
    ),
    "flattened places": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(48, 3)),
        images,
        {"0|2": 3},
    ),
    "heads": (
        lambda: Block(6, 3, Attention(6, 2)),
        sequences,
        {
            "attention.q+k": 3,
            "attention.q+k (2)": 3,
            "attention.v|attention.o": 3,
            "attention.v|attention.o (2)": 3,
        },
    ),
    "grouped keys": (
        lambda: Block(6, 3, Attention(12, 6, groups=2)),
        sequences,
        {
            "attention.q+k": 2,
            "attention.q+k (2)": 2,
            "attention.v|attention.o": 2,
            "attention.v|attention.o (2)": 2,
        },
    ),
    "rope": (
        lambda: Block(6, 3, Attention(8, 2, rope=True)),
        sequences,
        {"attention.v|attention.o": 4, "attention.v|attention.o (2)": 4},
    ),
    "packed attention": (
        packed_attention,
        sequences,
        {
            "attention": 2,
            "attention (2)": 2,
            "attention|attention.out_proj": 2,
            "attention|attention.out_proj (2)": 2,
        },
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_frames_are_found_and_their_laws_hold(name: str) -> None:
    build, inputs, expected = FOUND[name]
    torch.manual_seed(0)
    laws = assert_no_false_law(build(), inputs)
    assert sizes(laws) == expected


@pytest.mark.parametrize(
    "between",
    [nn.ReLU(), nn.Dropout(0.5), nn.LayerNorm(4), nn.Softmax(-1), nn.PReLU()],
    ids=lambda module: type(module).__name__,
)
def test_what_acts_on_single_entries_fixes_the_frame(between: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(6, 4), between, nn.Linear(4, 3))
    assert sizes(find_laws(model.double(), vectors, "ce")) == {}


def test_entries_that_are_scaled_or_read_apart_are_not_mixed() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        y = net.first(x)
        return net.left(y[:, :2]) + net.right(torch.relu(y[:, 2:4])) + net.last(y[:, 4:] * net.gain)

    model = Net(
        forward,
        first=nn.Linear(6, 7),
        left=nn.Linear(2, 3),
        right=nn.Linear(2, 3),
        last=nn.Linear(3, 3),
        gain=torch.tensor([1.0, 2.0, 3.0]).double(),
    )
    assert sizes(assert_no_false_law(model, vectors)) == {"first|left": 2}


def test_the_charge_is_a_difference_of_gram_matrices() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)).double()
    laws = find_laws(model, vectors, "ce")
    (family,) = laws.of_kind("balance")
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    first = torch.cat([parameters["0.weight"], parameters["0.bias"][:, None]], 1)
    expected = parameters["1.weight"].T @ parameters["1.weight"] - first @ first.T
    charges = laws.measure(parameters.__getitem__)[family.units]
    np.testing.assert_allclose(charges, expected[tuple(torch.triu_indices(4, 4))], rtol=1e-12)


def test_the_charge_of_a_head_is_that_of_its_queries_and_keys() -> None:
    torch.manual_seed(0)
    model = Block(6, 3, Attention(12, 6, groups=2)).double()
    laws = find_laws(model, sequences, "ce")
    family = next(f for f in laws.of_kind("balance") if f.layer.startswith("attention.q"))
    q, k = model.attention.q, model.attention.k
    rows = [torch.cat([x.weight, x.bias[:, None]], 1).detach().view(-1, 2, 13) for x in (q, k)]
    queries, keys = rows[0][:3], rows[1][0]  # three query heads share the first key head
    expected = keys @ keys.T - sum(head @ head.T for head in queries)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    charges = laws.measure(parameters.__getitem__)[family.units]
    np.testing.assert_allclose(charges, expected[tuple(torch.triu_indices(2, 2))], rtol=1e-12)


def test_the_charge_is_that_of_the_whole_group() -> None:
    """A W₁ and W₂ A⁻¹ compute the same for any invertible A, of which the law is the proof."""
    torch.manual_seed(0)
    model = Block(6, 3, Attention(6, 2)).double()
    inputs = torch.randn_like(sequences)
    before = model(inputs)
    mixing = torch.randn(3, 3).double()
    with torch.no_grad():
        for part, matrix in ((model.attention.q, mixing), (model.attention.k, mixing.inverse().T)):
            part.weight[:3] = matrix @ part.weight[:3]
            part.bias[:3] = matrix @ part.bias[:3]
    torch.testing.assert_close(model(inputs), before, rtol=1e-9, atol=1e-9)


def test_a_frame_that_is_none_is_not_certified() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    places = ((0, 1, 2, 3),)
    false: Frame = (
        Side("0.weight", 0, places, 1.0, False),
        Side("0.bias", -1, places, 1.0, False),
        Side("2.weight", 1, places, -1.0, True),
    )
    assert certified([false], model, vectors) == []
    assert certified([false], nn.Sequential(model[0], nn.Identity(), model[2]), vectors) == [false]


def test_places_in_another_order_are_no_frame() -> None:
    """Copies that an operation moved apart are told by the gradient."""

    def forward(net: Any, x: Tensor) -> Any:
        y = net.convolution(x).flatten(2)
        return net.head(torch.cat([y[:, :2], y[:, 2:].flip(-1)], 1).flatten(1))

    model = Net(forward, convolution=nn.Conv2d(2, 3, 3), head=nn.Linear(48, 3))
    laws = assert_no_false_law(model, images)
    assert sizes(laws) == {}


def test_matrix_laws_can_be_left_out() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)).double()
    laws = find_laws(model, vectors, "ce", matrices=False)
    assert sizes(laws) == {}
    assert leaks(model, torch.randn_like(vectors), laws).max() < 1e-12

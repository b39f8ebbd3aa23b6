"""Gradients that are not those of the operations in the graph: detached, frozen, custom."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.models.symmetry.certificate import Net, assert_no_false_law, laws_of

HIDDEN = 4


def rows() -> Tensor:
    return torch.rand(6, 5, dtype=torch.float64) + 0.1


def three_layers(hidden: Any) -> nn.Module:
    return Net(
        lambda net, x: net.third(hidden(net, torch.relu(net.first(x)))),
        first=nn.Linear(5, HIDDEN),
        second=nn.Linear(HIDDEN, HIDDEN),
        third=nn.Linear(HIDDEN, 3),
    )


def applied(function: Any, *operands: Any) -> Any:
    return function.apply(*operands)


class Reversal(torch.autograd.Function):
    """The identity, with the opposite gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


class WrongLinear(torch.autograd.Function):
    """A linear layer whose weight gets twice its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return gradient @ weight, 2 * gradient.t() @ x


class Pair(torch.autograd.Function):
    """Two results of two operands, one of them no tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> tuple[Tensor, Tensor]:
        return x * factor, (x > 0).long()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor, None]:
        return gradient.abs(), None


def hooked(net: Any, h: Any) -> Any:
    if h.requires_grad:
        h.register_hook(lambda gradient: 2 * gradient)
    return h


def without_gradient(net: Any, h: Tensor) -> Any:
    with torch.no_grad():
        norm = h.norm()
    return h / norm


def without_gradient_below(net: Any, h: Tensor) -> Any:
    with torch.no_grad():
        h = net.second(h)
    return torch.relu(h)


def in_place_without_gradient(net: Any, h: Tensor) -> Tensor:
    h = h + 0 * h
    with torch.no_grad():
        h.mul_(2)
    return h


def weight_normalised_in_place(net: Any, h: Tensor) -> Any:
    with torch.no_grad():
        net.second.weight.div_(net.second.weight.norm())
    return torch.relu(net.second(h))


def autocast(net: Any, h: Tensor) -> Any:
    with torch.autocast("cpu", enabled=False):
        return torch.relu(net.second(h))


def gradient_inside(net: Any, h: Tensor) -> Tensor:
    h = h.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(net.second(h).square().sum(), h, create_graph=True)
    return gradient


CASES = {
    "reversed gradient": lambda net, h: applied(Reversal, h),
    "custom linear layer": lambda net, h: applied(WrongLinear, h, net.second.weight),
    "two custom results": lambda net, h: applied(Pair, h, 2.0)[0],
    "a tensor's hook": hooked,
    "a statistic without gradient": without_gradient,
    "a layer without gradient": without_gradient_below,
    "in place without gradient": in_place_without_gradient,
    "a weight normalised in place": weight_normalised_in_place,
    "autocast": autocast,
    "checkpoint": lambda net, h: checkpoint(
        lambda z: torch.relu(net.second(z)), h, use_reentrant=False
    ),
    "re-entrant checkpoint": lambda net, h: checkpoint(
        lambda z: torch.relu(net.second(z)), h, use_reentrant=True
    ),
    "a gradient inside": gradient_inside,
    "detached": lambda net, h: torch.relu(net.second(h.detach())),
}


@pytest.mark.parametrize("name", CASES)
def test_no_law_is_false_whatever_the_gradient(name: str) -> None:
    torch.manual_seed(0)
    assert_no_false_law(three_layers(CASES[name]), rows())


def test_what_surrounds_a_custom_gradient_keeps_its_laws() -> None:
    torch.manual_seed(0)
    model = Net(
        lambda net, x: net.third(torch.relu(net.second(applied(Reversal, net.first(x))))),
        first=nn.Linear(5, HIDDEN),
        second=nn.Linear(HIDDEN, HIDDEN),
        third=nn.Linear(HIDDEN, 3),
    )
    laws = assert_no_false_law(model, rows())
    assert [family.layer for family in laws.of_kind("rescale")] == ["second|third"]
    assert dict(laws.lawless)["first.weight"] == "a custom gradient does not preserve its scale"


def test_a_checkpointed_model_has_the_laws_of_the_model() -> None:
    laws = assert_no_false_law(three_layers(CASES["checkpoint"]), rows())
    assert len(laws.quadratic) == 2 * HIDDEN


def test_tracing_leaves_torch_as_it_was() -> None:
    apply, hook = torch.autograd.Function.__dict__["apply"], Tensor.register_hook
    assert_no_false_law(three_layers(CASES["reversed gradient"]), rows())
    assert_no_false_law(three_layers(CASES["a tensor's hook"]), rows())
    assert torch.autograd.Function.__dict__["apply"] is apply
    assert Tensor.register_hook is hook


# ---------------------------------------------------------------------- hooks, frozen parameters


def plain() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(5, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 3)
    )


def test_a_parameter_with_a_hook_is_in_no_law() -> None:
    torch.manual_seed(0)
    model = plain()
    weight: Any = model[0].weight
    weight.register_hook(lambda gradient: gradient * torch.arange(5))
    laws = assert_no_false_law(model, rows())
    assert "0.weight" not in laws.parameters
    assert dict(laws.lawless)["0.weight"] == "it is frozen, complex, or changed by a hook"
    assert [family.layer for family in laws.of_kind("rescale")] == ["2|4"]


def test_a_module_with_a_backward_hook_is_not_analysed() -> None:
    model = plain()
    model[1].register_full_backward_hook(lambda module, inner, outer: (2 * inner[0],))
    laws = assert_no_false_law(model, rows())
    assert laws.table() == ("no laws: it cannot be analysed: a hook inside it may change gradients")


def test_forward_hooks_are_part_of_the_model() -> None:
    model = plain()
    model[1].register_forward_hook(lambda module, inputs, output: output + 1)
    laws = assert_no_false_law(model, rows())
    assert [family.layer for family in laws.of_kind("rescale")] == ["2|4"]


@pytest.mark.parametrize("frozen", range(3))
def test_frozen_layers_are_in_no_law(frozen: int) -> None:
    torch.manual_seed(0)
    model = plain()
    model[2 * frozen].requires_grad_(False)
    laws = assert_no_false_law(model, rows())
    assert not [name for name in laws.parameters if name.startswith(f"{2 * frozen}.")]


def test_unused_and_detached_parameters_have_reasons() -> None:
    model = Net(
        lambda net, x: net.head(torch.relu(net.first(x)) * net.constant.detach()),
        first=nn.Linear(5, HIDDEN),
        constant=nn.Parameter(torch.rand(HIDDEN)),
        unused=nn.Linear(9, 9),
        head=nn.Linear(HIDDEN, 3),
    )
    reasons = dict(assert_no_false_law(model, rows()).lawless)
    assert reasons == {
        "constant": "no gradient reaches it",
        "unused.weight": "the model does not use it",
        "unused.bias": "the model does not use it",
    }


def test_weights_that_get_no_gradient_are_not_listed_column_by_column() -> None:
    torch.manual_seed(0)
    model = Net(
        lambda net, x: net.head(torch.relu(net.first(x)) + net.idle(x).detach()),
        first=nn.Linear(5, HIDDEN),
        idle=nn.Linear(5, HIDDEN),
        head=nn.Linear(HIDDEN, 3),
    )
    laws = assert_no_false_law(model, rows())
    translations = {family.layer: len(family) for family in laws.of_kind("translation")}
    assert translations == {"head.weight": HIDDEN, "idle.bias": HIDDEN, "head.bias": 1}


def test_complex_parameters_are_in_no_law() -> None:
    model = Net(
        lambda net, x: net.head((x.to(torch.complex128) @ net.weight).abs()),
        weight=nn.Parameter(torch.rand(5, HIDDEN, dtype=torch.complex128)),
        head=nn.Linear(HIDDEN, 3, dtype=torch.float64),
    )
    assert len(laws_of(model, rows()).quadratic) == 0

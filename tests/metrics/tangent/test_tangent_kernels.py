"""All routes against the dense Jacobian in float64, and against each other's definitions."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from Metrics.spectrum import gauss_newton, largest_eigenvalues
from Metrics.tangent import factors, schedule, tangent_kernel, weighted_kernel
from Metrics.tangent.jacobian import rows_at_once
from Metrics.tangent.network import look_at
from Metrics.tangent.plan import make_plan
from Metrics.tangent.reference import dense_kernels
from Metrics.tangent.routes import Form, Route
from tests.metrics.tangent.cases import CASES, error, traced
from Training.losses import mean_squared_error

ROUTES: tuple[Route, ...] = ("structured", "jacobian", "products")
FORMS: tuple[Form, ...] = ("traced", "full")


@pytest.fixture(autouse=True)
def _the_same_numbers_every_time() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", CASES)
def test_every_route_gives_the_dense_kernels(name: str, route: Route, form: Form) -> None:
    model, inputs, others = CASES[name].make(), CASES[name].inputs(5), CASES[name].inputs(3)
    for second in (None, others):
        exact = dense_kernels(model, inputs, second)
        exact = traced(exact) if form == "traced" else exact
        found = tangent_kernel(model, inputs, second, form=form, per_layer=True, route=route)
        assert found.layers.keys() == exact.keys() == found.routes.keys()
        for layer, kernel in exact.items():
            assert error(found.layers[layer], kernel) < 1e-10
        assert error(found.total, torch.stack(list(exact.values())).sum(0)) < 1e-10


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("split", ["blocks", "groups", "rows"])
@pytest.mark.parametrize("name", ["mlp", "embedding"])
def test_blocks_do_not_change_the_kernel(name: str, split: str, form: Form) -> None:
    """Blocks of examples, groups of terms, and blocks of rows of the Jacobian."""
    model, inputs, others = CASES[name].make(), CASES[name].inputs(14), CASES[name].inputs(5)
    route: Route = "jacobian" if split == "rows" else "structured"
    for second in (None, others):
        count = 0 if second is None else len(second)
        network = look_at(model, inputs)
        plan = make_plan(network, inputs, count or None, form == "traced")
        like, least = next(model.parameters()), 8 * 8 * schedule.passed(plan)
        if split == "blocks":
            memory = least
            assert len(schedule.make_schedule(plan, (14, count or None), like, memory).rows) > 1
        elif split == "groups":  # all examples of the largest term fit, and no more
            memory = max(least, 4 * 8 * max(plan.stored.values()) * (14 + count) // 3 + 8)
            assert len(schedule.make_schedule(plan, (14, count or None), like, memory).groups) > 1
        else:
            memory = 3 * 4 * plan.logits * 8 * sum(p.numel() for p in model.parameters())
            assert rows_at_once(network, plan, memory)[0] == 4
        whole = tangent_kernel(model, inputs, second, form=form, route=route)
        parts = tangent_kernel(model, inputs, second, form=form, route=route, memory=memory)
        assert error(parts.total, whole.total) < 1e-13


class Called(nn.Module):
    """A function of inputs and of a parameter, then a linear layer."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], parameter: Tensor):
        super().__init__()
        self.function, self.parameter = function, nn.Parameter(parameter)
        self.last = nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.function(x, self.parameter).tanh().flatten(1))
        return logits


F = nn.functional
CALLS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...]]] = {
    "layer norm": (lambda x, p: F.layer_norm(x, (6,), p, eps=0.7), (6,)),
    "rms norm": (lambda x, p: F.rms_norm(x, (6,), p, eps=0.7), (6,)),
    "group norm": (lambda x, p: F.group_norm(x, 2, p, eps=0.7), (4,)),
    "batch norm": (
        lambda x, p: F.batch_norm(x, p.detach() - 2, p.detach() ** 2, p, eps=0.7),
        (4,),
    ),
    "sum": (lambda x, p: torch.add(x, p, alpha=3), (6,)),
    "difference": (lambda x, p: torch.sub(p, torch.sub(x, p, alpha=3), alpha=2), (6,)),
    "product": (lambda x, p: x * p, (4, 1)),
    "addmm": (lambda x, p: torch.addmm(p[0], x.flatten(1), p), (24, 5)),
    "convolution": (
        lambda x, p: F.conv1d(x, p, stride=2, dilation=2, padding=2, groups=2),
        (6, 2, 2),
    ),
    "same": (lambda x, p: F.conv1d(x, p, padding="same"), (2, 4, 4)),
    "embedding": (lambda x, p: F.embedding((x * 9).long().abs() % 5, p, padding_idx=-2), (5, 3)),
}
"""Functions of x [N, 4, 6] and of a parameter of a shape."""


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CALLS)
def test_calls_are_known_with_all_their_arguments(name: str, form: Form) -> None:
    """What a rule gets wrong is differentiated anew, which takes long and is not noticed."""
    function, shape = CALLS[name]
    model, x = Called(function, torch.randn(shape)).double(), torch.randn(5, 4, 6).double()
    model(x)
    exact = dense_kernels(model, x)
    exact = traced(exact) if form == "traced" else exact
    found = tangent_kernel(model, x, form=form, per_layer=True)
    assert not any("jacobian" in route for route in found.routes.values())
    for layer, kernel in exact.items():
        assert error(found.layers[layer], kernel) < 1e-10


FALLBACKS = {
    "shared": {"token"},
    "scalars": {"slope"},
    "merged positions": {"middle"},
    "multi-head attention": {"0.self_attn", "0.self_attn.out_proj"},
    "recurrent": {"memory"},
    "transposed convolution": {"0"},
}
"""The layers of which no rule knows a call."""


@pytest.mark.parametrize("name", CASES)
def test_only_unknown_calls_are_differentiated_anew(name: str) -> None:
    routes = tangent_kernel(CASES[name].make(), CASES[name].inputs(4)).routes
    anew = {layer for layer, route in routes.items() if "jacobian" in route}
    assert anew == FALLBACKS.get(name, set())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["strided, dilated, grouped", "residual, in place", "shared"])
def test_logits_and_examples_a_few_at_a_time_give_the_dense_kernels(
    name: str, form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Derivatives of two of three logits are held, and J is formed of two examples and one."""
    model, inputs = CASES[name].make(), CASES[name].inputs(5)
    plan = make_plan(look_at(model, inputs), inputs, None, form == "traced")
    assert any(term.product for term in plan.rows)
    monkeypatch.setattr(schedule, "_HELD", 2 * 3 * plan.formed * 8)
    monkeypatch.setattr(schedule, "_PASSED", 3 * schedule.passed(plan) * 8)
    monkeypatch.setattr(factors, "_CACHED", 2 * 64 * 18 * 8)
    exact = sum(dense_kernels(model, inputs).values(), torch.zeros(()))
    exact = exact if form == "full" else exact.diagonal(dim1=2, dim2=3).mean(2)
    assert error(tangent_kernel(model, inputs, form=form).total, exact) < 1e-10


class Viewed(nn.Module):
    """What ``view`` asks of images: that their channels are not innermost."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 3, 3), nn.Linear(3 * 4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).tanh()
        logits: Tensor = self.second(y.view(len(y), -1))
        return logits


def test_images_that_must_be_contiguous_stay_so() -> None:
    model, inputs = Viewed().double(), torch.randn(5, 2, 6, 6).double()
    assert not look_at(model, inputs).channels_last
    assert look_at(nn.Sequential(model.first, nn.Flatten()), inputs).channels_last
    found = tangent_kernel(model, inputs, form="full", route="structured")
    exact = sum(dense_kernels(model, inputs).values(), torch.zeros(()))
    assert error(found.total, exact) < 1e-10


def test_learning_rates_weigh_the_parts_of_parameters() -> None:
    """By autograd's gradients of single logits; frozen parameters and unnamed ones do not count."""
    model, inputs = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double(), 3
    model[0].bias.requires_grad_(False)
    x = torch.randn(inputs, 4, dtype=torch.float64)
    factors = {"0.weight": 0.5, "0.bias": 7.0, "2.weight": 3.0, "2.bias": 0.0}
    exact = torch.zeros(inputs, inputs, 2, 2, dtype=torch.float64)
    for name in ("0.weight", "2.weight"):
        weight = model.get_parameter(name)
        rows = [
            torch.autograd.grad(f, [weight], retain_graph=True)[0] for one in x for f in model(one)
        ]
        jacobian = torch.stack(rows).view(inputs, 2, -1)
        exact += factors[name] * torch.einsum("ncp,mdp->nmcd", jacobian, jacobian)
    found = weighted_kernel(model, x, factors, form="full")
    assert error(found, exact) < 1e-12
    assert error(weighted_kernel(model, x, factors, x[1:], form="full"), exact[:, 1:]) < 1e-12
    traced = exact.diagonal(dim1=2, dim2=3).mean(2)
    assert error(weighted_kernel(model, x, factors), traced) < 1e-12
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]
    with pytest.raises(ValueError, match="no trained parameter has a factor"):
        weighted_kernel(model, x, {"0.bias": 7.0})


def test_every_form_of_a_term_is_met() -> None:
    """Else the tests above would not test them."""
    kinds: set[tuple[object, ...]] = set()
    for case in CASES.values():
        inputs = case.inputs(5)
        plan = make_plan(look_at(case.make(), inputs), inputs, None, True)
        kinds |= {(term.kind, term.product, len(term.names)) for term in plan.terms}
        kinds |= {(t.kind, *{o.form for o in t.occurrences}) for t in plan.terms}
    assert kinds >= {
        *(("gradients", True, 1), ("gradients", False, 1), ("jacobian", False, 1)),
        *(("Kronecker", True, 1), ("Kronecker", True, 2)),
        *(("gradients", "derived"), ("gradients", "rearranged")),
    }


def test_uses_that_mix_examples_are_found_out() -> None:
    model, inputs = CASES["merged positions"].make(), CASES["merged positions"].inputs(4)
    routes = tangent_kernel(model, inputs).routes
    assert routes["first"] != "jacobian"
    assert routes["middle"] == "jacobian"


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("name", ["mlp", "residual, in place", "strided, dilated, grouped"])
def test_number_formats(name: str, dtype: torch.dtype, tolerance: float) -> None:
    """Kernels of bfloat16 networks are float32, and as good as their derivatives."""
    model, inputs = CASES[name].make().to(dtype), CASES[name].inputs(5).to(dtype)
    exact = sum(dense_kernels(model, inputs).values(), torch.zeros(()))
    found = tangent_kernel(model, inputs, form="full").total
    assert found.dtype == torch.float32
    assert error(found.double(), exact) < tolerance


def test_the_traced_kernel_is_the_mean_over_logits() -> None:
    """f = W x: Θ_cd = δ_cd ⟨x, x'⟩, so that its trace over C logits is C times the mean."""
    x = torch.randn(4, 6, dtype=torch.float64)
    model = nn.Linear(6, 3, bias=False).double()
    torch.testing.assert_close(tangent_kernel(model, x).total, x @ x.T)
    full = tangent_kernel(model, x, form="full").total
    torch.testing.assert_close(full, torch.einsum("nm,cd->nmcd", x @ x.T, torch.eye(3).double()))


class MeanOfMaps(nn.Module):
    """f = mean_x (W u_x + b): Θ_cd = δ_cd (⟨ū, ū'⟩ + 1) with the means ū over positions."""

    def __init__(self, inputs: int):
        super().__init__()
        self.map = nn.Linear(inputs, 5)

    def forward(self, u: Tensor) -> Tensor:
        logits: Tensor = self.map(u).mean(1)
        return logits


@pytest.mark.parametrize("positions", [1, 2])
@pytest.mark.parametrize(("numbers", "kind"), [(2, "gradients"), (80, "Kronecker")])
def test_more_examples_than_fit_a_tile(positions: int, numbers: int, kind: str) -> None:
    """Of 110 examples and 5 logits, with themselves, whose triangle is mirrored, and others."""
    u = torch.randn(110, positions, numbers, dtype=torch.float64)
    model, (one, other) = MeanOfMaps(numbers).double(), (u.mean(1), u[:105].mean(1))
    for second, exact in ((None, one @ one.T + 1), (u[:105], one @ other.T + 1)):
        found = tangent_kernel(model, u, second)
        assert kind in found.routes["map"]
        assert error(found.total, exact) < 1e-12
        full = tangent_kernel(model, u, second, form="full").total
        assert error(full, torch.einsum("nm,cd->nmcd", exact, torch.eye(5).double())) < 1e-12


@pytest.mark.parametrize("name", ["mlp", "residual, in place", "multi-head attention"])
def test_the_largest_eigenvalue_is_that_of_the_gauss_newton_matrix(name: str) -> None:
    """The loss is |r|²/M, M = N C: GGN = 2 Jᵀ J / M has the eigenvalues of 2 Θ / M."""
    model, inputs = CASES[name].make(), CASES[name].inputs(6)
    matrix = gauss_newton(model, mean_squared_error, (inputs, torch.randn(6, 3).double()))
    curvature = largest_eigenvalues(matrix, 1, 1e-16, seed=0).values[0]
    kernel = tangent_kernel(model, inputs, form="full").total
    flat = kernel.transpose(1, 2).reshape(18, 18).numpy()
    assert np.linalg.eigvalsh(flat)[-1] * 2 / 18 == pytest.approx(curvature, rel=1e-6)


def test_the_network_is_left_as_it_was() -> None:
    model, inputs = CASES["residual, in place"].make().train(), torch.randn(6, 2, 4, 4).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tangent_kernel(model, inputs)
    after: dict[str, Tensor] = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training

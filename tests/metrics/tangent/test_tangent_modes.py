"""Batches whose examples see each other, and what is refused."""

import pytest
import torch
from torch import Tensor, nn

from Metrics.model_at import SeededModel
from Metrics.tangent import forecast, tangent_kernel
from Metrics.tangent.reference import dense_kernels
from tests.metrics.tangent.cases import CASES, error, traced
from Utils.errors import UserError


def normalised() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()


def batch(size: int) -> Tensor:
    return torch.randn(size, 6, generator=torch.Generator().manual_seed(size)).double()


def test_the_mode_decides_what_batch_normalisation_divides_by() -> None:
    model = normalised()
    results = {}
    for training in (True, False):
        model.train(training)
        found = tangent_kernel(model, batch(5), batch(4))
        exact = traced(dense_kernels(model, batch(5), batch(4)))
        assert error(found.total, torch.stack(list(exact.values())).sum(0)) < 1e-10
        results[found.normalisation] = found.total
    assert results.keys() == {"batch", "running statistics"}
    assert error(*results.values()) > 0.1
    assert tangent_kernel(CASES["mlp"].make(), batch(3)).normalisation == "none"


def test_without_running_statistics_there_is_only_the_batch() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, track_running_stats=False)).double()
    found, exact = tangent_kernel(model.eval(), batch(5)), dense_kernels(model, batch(5))
    assert found.normalisation == "batch"
    assert error(found.total, sum(traced(exact).values(), torch.zeros(()))) < 1e-10


def test_dropout_of_nothing_couples_no_examples() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.0), nn.Linear(5, 3)).double().train()
    assert "jacobian" not in tangent_kernel(model, batch(4)).routes.values()


def test_little_memory_is_a_reason_for_products() -> None:
    model, inputs = CASES["mlp"].make(), CASES["mlp"].inputs(5)
    exact = sum(traced(dense_kernels(model, inputs)).values(), torch.zeros(()))
    found = tangent_kernel(model, inputs, memory=1500)
    assert set(found.routes.values()) == {"products"}
    assert error(found.total, exact) < 1e-10


@pytest.mark.parametrize("form", ["traced", "full"])
@pytest.mark.parametrize("route", ["auto", "products"])
def test_rows_of_a_coupled_batch(form: str, route: str) -> None:
    model, inputs = normalised(), batch(6)
    exact = dense_kernels(model, inputs)
    exact = traced(exact) if form == "traced" else exact
    for memory in (None, 16_000):
        found = tangent_kernel(
            model, inputs, form=form, route=route, per_layer=True, memory=memory  # type: ignore[arg-type]
        )
        assert all(error(found.layers[name], kernel) < 1e-10 for name, kernel in exact.items())


def test_coupling_that_no_module_tells_of_is_seen() -> None:
    class Centred(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input - input.mean(0))

    model = Centred(6, 3).double()
    exact = dense_kernels(model, batch(4))
    found = tangent_kernel(model, batch(4), form="full")
    assert found.routes == {"weight": "jacobian", "bias": "jacobian"}
    assert error(found.total, exact["weight"] + exact["bias"]) < 1e-10


def test_dropout_needs_a_seed() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5), nn.Linear(5, 3)).double()
    with pytest.raises(UserError, match=r"other logits at every call .*\.eval\(\)"):
        tangent_kernel(model, batch(4))
    seeded = SeededModel(model, 0)
    exact = traced(dense_kernels(seeded, batch(4)))
    found = tangent_kernel(seeded, batch(4)).total
    assert error(found, torch.stack(list(exact.values())).sum(0)) < 1e-10


@pytest.mark.parametrize(
    ("model", "size", "options", "message"),
    [
        (normalised(), 4, {"route": "structured"}, r"route='structured' .* call \.eval\(\)"),
        (nn.Linear(6, 3).double().requires_grad_(False), 4, {}, "set requires_grad"),
        (nn.Linear(6, 3).double(), 0, {}, "no inputs"),
        (nn.Sequential(nn.Linear(6, 3), nn.Flatten(0)).double(), 4, {}, r"maps \(2, 6\) to \(6,\)"),
        (nn.Linear(6, 3).double(), 4, {"memory": 10}, "give more memory"),
        (nn.Linear(6, 3).double(), 4, {"form": "trace"}, "form='trace' is unknown; use 'traced'"),
        (nn.Linear(6, 3).double(), 4, {"route": "fast"}, "route='fast' is unknown; use 'auto'"),
    ],
)
def test_mistakes_are_named(
    model: nn.Module, size: int, options: dict[str, object], message: str
) -> None:
    if "memory" in options:
        options = options | {"route": "structured"}
    with pytest.raises(UserError, match=message):
        tangent_kernel(model, batch(size), **options)  # type: ignore[arg-type]


def test_what_does_not_fit_is_refused_before_any_work() -> None:
    model = nn.Linear(6, 1000).double()
    inputs = torch.zeros(1, 6).double().expand(100_000, 6)
    with pytest.raises(
        UserError, match=r"needs .* [MGT]B, and .* [kMGT]?B are free; take form='traced'"
    ):
        tangent_kernel(model, inputs, form="full")
    assert forecast(model, inputs, form="full").bytes_ > 8e16

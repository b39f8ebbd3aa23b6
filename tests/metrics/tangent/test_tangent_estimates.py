"""Estimates of kernels and of their cost."""

import time

import numpy as np
import pytest
import torch
from scipy import stats
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from Metrics.tangent import estimate, forecast, tangent_kernel
from Metrics.tangent.estimate import Method, _interval
from tests.metrics.tangent.cases import CASES, error
from Utils.errors import UserError

METHODS: tuple[Method, ...] = ("subset", "signs", "projection")


def network() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return (
        nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 12)).double(),
        torch.randn(7, 6).double(),
    )


@pytest.mark.parametrize("method", METHODS)
def test_intervals_hold_the_exact_kernel_as_often_as_they_say(method: Method) -> None:
    """Over 30 seeds; entries of one seed err together, so the share scatters by some per cent."""
    model, inputs = network()
    exact = tangent_kernel(model, inputs, inputs[:4]).total
    shares, means = [], []
    for seed in range(30):
        found = estimate(model, inputs, inputs[:4], method=method, samples=6, seed=seed)
        assert found.samples == 6
        inside = (found.total - exact).abs() <= found.half_width
        shares.append(inside.double().mean())
        means.append(found.total)
    assert 0.85 < float(torch.stack(shares).mean()) <= 1
    assert error(torch.stack(means).mean(0), exact) < 0.1


@pytest.mark.parametrize("left_out", [1.0, 0.4])
def test_intervals_are_students(left_out: float) -> None:
    """By scipy; of a finite population, of which the part left out was not drawn."""
    drawn = torch.randn(7, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = _interval(iter(drawn), 7, 0.9, left_out)
    mean, error = drawn.mean(0).numpy(), stats.sem(drawn.numpy()) * left_out**0.5
    _, high = stats.t.interval(0.9, 6, mean, error)
    np.testing.assert_allclose(found.total, mean, rtol=1e-12)
    np.testing.assert_allclose(found.total + found.half_width, high, rtol=1e-12)


def test_a_subset_of_all_logits_is_exact() -> None:
    model, inputs = network()
    found = estimate(model, inputs, method="subset", samples=12)
    assert error(found.total, tangent_kernel(model, inputs).total) < 1e-12
    assert float(found.half_width.abs().max()) < 1e-7


def test_batch_normalisation_by_the_batch_can_be_estimated() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).double()
    inputs = torch.randn(5, 6).double()
    exact = tangent_kernel(model, inputs).total
    for method in METHODS:
        found = estimate(model, inputs, method=method, samples=2 if method == "subset" else 400)
        assert error(found.total, exact) < (1e-10 if method == "subset" else 0.3)


@pytest.mark.parametrize(
    ("samples", "message"), [(13, "draws 13 of 12 logits"), (1, "needs 2 samples")]
)
def test_mistakes_are_named(samples: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        estimate(*network(), method="subset", samples=samples)
    with pytest.raises(UserError, match="method='sign' is unknown; use 'subset' or 'signs'"):
        estimate(*network(), method="sign")  # type: ignore[arg-type]


def test_a_forecast_counts_what_is_done() -> None:
    """A linear layer on vectors: N forward and N C backward passes, then the Kronecker form."""
    model, inputs = nn.Linear(300, 20, bias=False), torch.randn(50, 300)
    work = 50 * 21 * 300 * 20
    assert forecast(model, inputs, route="structured").flops >= 2 * work
    full, traced = (forecast(model, inputs, form=form) for form in ("full", "traced"))
    assert full.flops > traced.flops
    assert full.bytes_ - traced.bytes_ >= 50 * 50 * (20 * 20 - 1) * 4
    deep = nn.Sequential(model, nn.Linear(20, 20), nn.Linear(20, 20))
    whole, parts = (forecast(deep, inputs, per_layer=each).bytes_ for each in (False, True))
    assert parts - whole == 3 * 50 * 50 * 4
    rows = forecast(model, inputs, form="full", route="jacobian").flops
    assert rows == pytest.approx(2 * (50 * 41 * 6000 + 50 * 50 / 2 * 400 * 6000))
    products = forecast(model, inputs, form="full", route="products").flops
    assert products == pytest.approx(2 * (2 * 3 + 1 / 50) * 50 * 20 * 50 * 6000, rel=0.02)


def test_a_forecast_of_memory_does_not_grow_with_what_passes_a_chunk_at_a_time() -> None:
    """Twice the examples: twice of what is kept, and a kernel four times as large."""
    case = CASES["strided, dilated, grouped"]
    model = case.make().float()
    small, large = (forecast(model, torch.randn(n, 2, 8, 8)).bytes_ for n in (20_000, 40_000))
    kernels = [4 * n**2 for n in (20_000, 40_000)]
    assert small - kernels[0] < large - kernels[1] < 2 * (small - kernels[0])


@pytest.mark.parametrize("route", ["structured", "jacobian", "products"])
def test_a_forecast_of_seconds_is_near(route: str) -> None:
    """Within a factor of 2 where it was measured; of 4 on a machine that does other things."""
    case = CASES["strided, dilated, grouped"]
    examples = 4 if route == "products" else 64
    model, inputs = case.make().float(), torch.randn(examples, 2, 32, 32)[:, :, :8, :8]
    expected, measured = forecast(model, inputs, route=route).seconds, []  # type: ignore[arg-type]
    with threadpool_limits(1):  # threads that wait for a busy core take its time, too
        for _ in range(3):
            start = time.process_time()
            tangent_kernel(model, inputs, route=route)  # type: ignore[arg-type]
            measured.append(time.process_time() - start)
    assert 0.25 < expected / min(measured) < 4

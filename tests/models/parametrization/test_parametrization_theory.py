"""The exponents of named parametrizations against the published table, cell by cell."""

from dataclasses import replace
from fractions import Fraction as F
from typing import Any

import pytest

from Models.parametrization import Exponents, Family, build_parametrization, explain

H = F(1, 2)


def theory(name: str, depth: int, family: Family = "sgd", bias: bool = False) -> Any:
    """The predictions; integers are as good as fractions."""
    return explain(build_parametrization(name, family, depth), depth, family, bias)


def uniform(roles: tuple[Any, ...], depth: int) -> tuple[F, ...]:
    first, hidden, readout = roles
    return (F(first), *[F(hidden)] * (depth - 1), F(readout))


#: r, s of the readout, f₀, ∂f/∂h, own ΔW x and Δf, ‖ΔW‖ and K as (input, hidden, readout)
ROWS = [
    ("sp-lr1n", H, 0, -H, (-3 * H, -H, 0), 0, (-1, -H, -H), (-1, 0, 0)),
    ("ntk", H, 0, -H, (-H, -H, 0), 0, (0, -H, -H), (0, 0, 0)),
    ("hybrid:0", H, 0, -H, (-H, -H, 0), 0, (0, -H, -H), (0, 0, 0)),
    ("hybrid:1/2", H / 2, -H / 2, -3 * H / 2, (-H / 2, -H / 2, 0), 0,
     (H / 2, -H / 2, -H), (0, 0, 0)),
    ("hybrid:0.8", F(1, 10), -F(2, 5), -F(9, 10), (-F(1, 10), -F(1, 10), 0), 0,
     (F(2, 5), -F(1, 10), -H), (0, 0, 0)),
    ("mup", 0, -H, -1, (0, 0, 0), 0, (H, 0, -H), (0, 0, 0)),
    ("mup-table8", 0, -H, -1, (0, 0, 0), 0, (H, 0, -H), (0, 0, 0)),
]  # fmt: skip


@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_stable_parametrizations_at_any_depth(row: tuple[Any, ...], depth: int) -> None:
    name, r, f0, gradient, own, df, norms, kernels = row
    found = theory(str(name), depth)
    first_is_slow = name == "sp-lr1n"
    assert found.r == r
    assert (found.stable, found.trivial) == (True, False)
    assert found.regime == ("feature learning" if r == 0 else "kernel regime")
    assert found.initial["preactivation"] == uniform((F(0), F(0), f0), depth)
    assert set(found.initial["gradient"]) == {gradient}
    assert found.first["own"] == uniform(own, depth)
    assert found.first["change"][-1] == df
    assert found.first["change"][-2] == -r
    assert found.first["update operator norm"] == uniform(norms, depth)
    assert found.first["kernel"] == uniform(kernels, depth)
    assert found.relative_kernel == max(-2 * r, -r - H if r else 0)
    assert first_is_slow == (found.first["own"][0] != -r)


def ratios(found: Any) -> list[F]:
    pairs = zip(found.first["update operator norm"], found.initial["operator norm"], strict=True)
    return [x - y for x, y in pairs if x is not None]


def frobenius_ratio(found: Any, layer: int) -> Any:
    change = found.first["update frobenius norm"][layer]
    assert change is not None
    return change - found.initial["frobenius norm"][layer]


@pytest.mark.parametrize(
    ("name", "operator", "hidden_frobenius"),
    [
        ("sp", (-H, H, H), 0),
        ("sp-lr1n", (-3 * H, -H, -H), -1),
        ("ntk", (-H, -H, -H), -1),
        ("hybrid:0.4", (-F(3, 10),) * 3, -F(3, 10) - H),
        ("mup", (0, 0, 0), -H),
        ("ip", (-1, 0, -1), -H),
        ("ipllr", (0, H, 0), 0),
    ],
)
def test_norms_of_updates_relative_to_the_weights_at_depth_three(
    name: str, operator: tuple[F, F, F], hidden_frobenius: F
) -> None:
    found = theory(name, 3)
    assert ratios(found) == list(uniform(operator, 3))
    assert frobenius_ratio(found, 1) == hidden_frobenius


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 6])
def test_standard_parametrization_at_learning_rate_one_explodes(depth: int) -> None:
    found = theory("sp", depth)
    assert found.regime == "unstable"
    assert found.r == (-F(depth - 1, 2) if depth > 1 else H)
    own = (-H, *(F(layer - 1, 2) for layer in range(2, depth + 1)))
    assert found.first["own"][:-1] == own
    if depth > 1:
        assert found.first["change"][-2] == F(depth - 1, 2)
        assert found.first["change"][-1] == F(depth + 1, 2)
    assert found.first["kernel"] == uniform((F(0), F(1), F(1)), depth)
    assert found.first["update operator norm"] == uniform((F(0), H, H), depth)
    assert found.relative_kernel is None


@pytest.mark.parametrize(("depth", "df"), [(1, 0), (2, 0), (3, -1), (4, -2), (5, -3), (6, -4)])
def test_naive_integrable_networks_learn_up_to_two_hidden_layers(depth: int, df: int) -> None:
    found = theory("ip", depth)
    assert found.first["change"][-1] == df
    assert found.trivial == (df < 0)
    assert found.regime == ("feature learning" if depth < 3 else "trivial")
    assert found.initial["preactivation"] == tuple(-F(k, 2) for k in range(depth + 1))
    gradients = tuple(-F(depth - layer + 2, 2) for layer in range(1, depth + 1))
    assert found.initial["gradient"] == gradients
    if depth == 3:
        assert found.first["own"] == (-1, -H, -1, -2)
        assert found.first["update operator norm"] == (-H, -H, -H, -3 * H)
        assert found.first["change"][2] == -1
        assert found.first["kernel"] == (-2, -1, -1, -2)
    if depth > 2:
        assert max(k for k in found.first["kernel"] if k is not None) < 0


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 6])
def test_integrable_networks_with_a_large_first_step_learn(depth: int) -> None:
    found = theory("ipllr", depth)
    assert found.first["own"] == (0,) * (depth + 1)
    assert found.first["change"] == (0,) * (depth + 1)
    assert found.later["own"] == found.later["change"] == (0,) * (depth + 1)
    assert found.first["update operator norm"] == uniform((H, F(0), -H), depth)
    assert found.later["kernel"] == (0,) * (depth + 1)
    assert (found.stable, found.regime, found.relative_kernel) == (True, "feature learning", 0)
    if depth > 1:
        assert max(k for k in found.first["kernel"] if k is not None) <= 0


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_biases_of_size_one_keep_integrable_networks_alive(depth: int) -> None:
    found = theory("ipllr-bias", depth, bias=True)
    assert found.initial["preactivation"] == (0,) * (depth + 1)
    assert found.first["own"] == found.first["bias"] == found.later["own"] == (0,) * (depth + 1)
    assert found.regime == "feature learning"


def test_weights_with_a_mean_add_up_coherently() -> None:
    found = theory("ip-non-centered", 4)
    assert found.initial["preactivation"] == (0,) * 5
    assert set(found.initial["gradient"]) == {-1}
    assert found.first["own"] == (0,) * 5
    assert found.regime == "feature learning"
    # a matrix of means n⁻¹ has the norm 1; the input's entries are Θ(1), the readout's n⁻¹
    assert found.initial["operator norm"] == uniform((H, F(0), -H), 4)


def test_norms_of_random_weights() -> None:
    """n d, n² and n c numbers of size 1, n^{-1/2} and n^{-1/2}; the norm of a square one is 2."""
    found = theory("sp", 3)
    assert found.initial["frobenius norm"] == uniform((H, H, F(0)), 3)
    assert found.initial["operator norm"] == uniform((H, F(0), F(0)), 3)


def test_biases_that_are_drawn_are_the_least_size_of_preactivations() -> None:
    abc = build_parametrization("ip", "sgd", 3)
    quarter = Exponents(b=F(1, 4))
    found = explain(replace(abc, biases=(quarter,) * 4, bias_std=1.0), 3, "sgd", bias=True)
    assert found.initial["preactivation"] == (F(0), *[-F(1, 4)] * 3)


def test_kernels_of_networks_that_hardly_move_change_by_their_fluctuations() -> None:
    """At r = 3/2: first order n^{-r-1/2}, a sum of n random signs, above the second, n^{-2r}."""
    abc = build_parametrization("ntk", "sgd", 3)
    found = explain(replace(abc, layers=tuple(replace(e, c=e.c + 1) for e in abc.layers)), 3)
    assert (found.r, found.relative_kernel) == (F(3, 2), F(-2))
    assert found.regime == "trivial"


@pytest.mark.parametrize("name", ["ntk", "mup", "sp", "sp-lr1n"])
def test_biases_move_as_much_as_the_input_layer(name: str) -> None:
    found = theory(name, 3, bias=True)
    assert found.first["bias"][:3] == (found.first["own"][0],) * 3


def test_adam_under_standard_parametrization_gains_a_power_with_each_layer() -> None:
    assert theory("sp", 4, "adam").first["own"] == (0, 1, 2, 3, 4)
    found = theory("sp-lr1n", 3, "adam")
    assert found.first["own"] == (-1, 0, 0, 0)
    assert found.first["propagated"][-1] == H
    assert found.regime == "unstable"


def test_a_first_step_that_is_too_large_is_unstable() -> None:
    """Though all later ones are like those of stable parametrizations."""
    abc = build_parametrization("ipllr", "sgd", 3)
    larger = tuple(replace(e, first=(e.first or 0) - H) for e in abc.layers)
    found = explain(replace(abc, layers=larger), 3)
    assert (found.regime, found.stable) == ("unstable", False)
    assert found.first["own"][0] == H


@pytest.mark.parametrize("name", ["mup", "mup-table8", "hybrid:1", "ip"])
def test_adam_under_maximal_update(name: str) -> None:
    found = theory(name, 3, "adam")
    assert found.first["own"] == found.later["own"] == (0,) * 4
    assert (found.regime, found.r) == ("feature learning", 0)
    assert found.first["update operator norm"] == (H, 0, 0, -H)


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_adam_in_its_kernel_limit(depth: int) -> None:
    abc = build_parametrization("ntk", "adam", depth)
    assert [e.rate("adam") for e in abc.layers] == [H, *[3 * H] * (depth - 1), 1]
    found = theory("ntk", depth, "adam")
    assert set(found.first["change"][:-1]) == {-H}
    assert (found.first["change"][-1], found.regime) == (0, "kernel regime")


def test_a_depth_must_fit() -> None:
    with pytest.raises(ValueError, match="of 3 hidden layers, not 4"):
        explain(build_parametrization("mup", "sgd", 3), 4)


@pytest.mark.parametrize("name", ["sp-lr1n", "ntk", "hybrid:0.3", "mup"])
def test_r_is_the_one_of_yang_and_hu(name: str) -> None:
    """Their formula for one c, arXiv 2011.14522."""
    abc = build_parametrization(name, "sgd", 4)
    c, last = abc.layers[0].c, abc.layers[-1]
    inner = min(2 * e.a + (1 if layer == 0 else 0) for layer, e in enumerate(abc.layers[:-1]))
    r = min(last.s, 2 * last.a + c) + c - 1 + inner
    assert theory(name, 4).r == r

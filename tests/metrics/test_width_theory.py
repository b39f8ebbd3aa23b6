"""What theory says of groups of runs: counting powers of n by hand, run by run and layer by layer.

Two hidden layers and a readout, without trained runs. A weight of size n^(−s) sums n numbers that
it is aligned with to n^(1−s) of their size, others to n^(½−s).
"""

from collections.abc import Mapping
from fractions import Fraction
from functools import cache
from pathlib import Path

import pytest

from Metrics.width.contributions import INITIAL, SHARE, UPDATE, Contributions
from Metrics.width.coordinates import Coordinates
from Metrics.width.edges import edges
from Metrics.width.members import Member, grouped
from Metrics.width.metric import Quantity
from Metrics.width.norms import UpdateNorms
from Metrics.width.theory import ChainTheory, Fans, theory_of
from Metrics.width.transfer import BEST, Transfer
from Training.config import TrainConfig
from Utils.cli import parse
from Utils.rundir import RunFolder

TASK = {"input_shape": [1, 4, 4], "num_classes": 3}
CHAIN = ("fc1", "fc2", "classifier")
HALF = Fraction(1, 2)


@cache
def theory(flags: str, power: int = 0, model: str = "fc --depth 3") -> ChainTheory:
    """Of runs of two widths n whose learning rates go as n^power."""
    told = parse(TrainConfig, f"--model {model} {flags}".split()).flat() | {"task": TASK}
    members = []
    fans: dict[int, Mapping[str, Fans]] = {}
    for n in (8, 16):
        own = told | {"width": n, "lr": 0.5 * float(n) ** power}
        members.append(Member(RunFolder(Path("e") / f"w{n}"), own, (0, 1)))
        fans[n] = {"first": (16, n), "middle": (n, n), "last": (n, 3), "other": (3, 3)}
    (group,) = grouped(members)
    return theory_of(group, fans)


def of(found: ChainTheory, name: str, step: int) -> list[Fraction | None]:
    return [found.after(name, layer, step) for layer in CHAIN]


def test_parts_of_the_standard_parametrization() -> None:
    """∂f/∂h goes as n^(−½). With lr/n, ΔW x is n^(−3/2) where inputs are finite, n times that
    where they grow, and 1 in the readout. What the first layer's change alone makes of the others'
    is n^(−3/2) through random weights; with the second one's it is aligned with the readout."""
    found = theory("--param sp", power=-1)
    assert of(found, "own", 1) == [-3 * HALF, -HALF, 0]
    assert of(found, "bias", 1) == [-3 * HALF, -3 * HALF, -1]
    assert of(found, "propagated", 1) == [None, -3 * HALF, 0]
    for step in (1, 2, 9):
        assert [found.least_propagated(layer, step) for layer in CHAIN[1:]] == [-3 * HALF] * 2
        assert [found.least_change(layer, step) for layer in CHAIN] == [-3 * HALF] * 3
        assert of(found, "change", step) == [-3 * HALF, -HALF, 0]
    assert found.steady
    assert not found.maximal  # its readout's update is the only one to stay


def test_rates_that_go_with_the_width_move_every_update() -> None:
    """Of weights, of biases and of first steps that have rates of their own."""
    for param in ("sp", "ntk", "ipllr"):
        plain, scaled = theory(f"--param {param}"), theory(f"--param {param}", power=-1)
        assert of(scaled, "bias", 1) == [x - 1 for x in of(plain, "bias", 1) if x is not None]
        own = plain.after("own", "fc1", 1)  # later layers read what changes, too
        assert own is not None
        assert scaled.after("own", "fc1", 1) == own - 1
    assert theory("--param sp", power=-1).theory == theory("--param sp-lr1n").theory


def test_exploding_updates_are_told_of_two_steps() -> None:
    """The standard parametrization with one learning rate: updates of a second step are larger."""
    found = theory("--param sp")
    assert of(found, "own", 1) == [-HALF, HALF, 3 * HALF]
    second = [x for x in of(found, "own", 2) if x is not None]
    assert all(x > y for x, y in zip(second, (-HALF, HALF, 3 * HALF), strict=True))
    assert of(found, "own", 3) == [None] * 3
    assert found.after_first("own", "fc2", 1) == HALF
    assert found.after_first("own", "fc2", 2) is None
    assert not found.steady
    with_own_first = theory("--param ipllr")
    assert with_own_first.after_first("own", "fc2", 1) == 0
    assert with_own_first.after_first("own", "fc2", 2) is None  # has other learning rates


def test_biases_as_torch_draws_them_are_a_part() -> None:
    """1/√fan-in: n^(−½) but in the first layer; networks with --param begin without any."""
    first = [theory("").least_initial(layer) for layer in CHAIN]
    assert first == [0, -HALF, -HALF]
    for flags in ("--no-bias", "--param sp"):
        found = theory(flags)
        assert [found.least_initial(layer) for layer in CHAIN] == [0, 0, 0]
        assert found.theory is not None
        assert of(found, "own", 1) == of(theory(""), "own", 1)


def test_maximal_updates_meet_the_spectral_condition() -> None:
    """‖ΔW‖ ~ √(n_out/n_in) in every layer (Yang, Simon and Bernstein 2023)."""
    metric = UpdateNorms()
    found = theory("--param mup")
    condition = [found.spectral(layer) for layer in CHAIN]
    assert condition == [HALF, 0, -HALF]
    name = "update operator norm"
    assert [metric.predicted(Quantity(name, x), 1, found) for x in CHAIN] == condition
    for layer in CHAIN:
        assert metric.predicted(Quantity("update spectral ratio", layer), 1, found) == 0
    # W_0 of one finite side: stable rank 1 there; of the hidden one n singular values alike
    ranks = [metric.predicted(Quantity("stable rank", layer), 0, found) for layer in CHAIN]
    assert ranks == [0, 1, 0]
    ntk = theory("--param ntk")
    ratio = Quantity("relative update", "fc2")
    assert metric.predicted(ratio, 1, found) == 0
    assert metric.predicted(ratio, 1, ntk) == -HALF
    assert [found.maximal, ntk.maximal] == [True, False]
    assert [found.gradients_last, ntk.gradients_last] == [True, True]
    best = Quantity(BEST)
    assert Transfer().predicted(best, 3, found) == 0
    assert Transfer().predicted(best, 3, ntk) is None


def test_sizes_follow_their_largest_parts() -> None:
    """W_0 x_t is that of the start, as features do not outgrow it; a share is at most all of it."""
    found, exploding = theory("--param sp", power=-1), theory("--param sp")
    sizes, parts = Coordinates(), Contributions()
    for prefix in ("", "mean "):
        assert sizes.predicted(Quantity(f"{prefix}preactivation", "fc2"), 1, found) == 0
        assert sizes.predicted(Quantity(f"{prefix}preactivation", "fc2"), 1, exploding) == HALF
        assert sizes.predicted(Quantity(f"{prefix}activation", "fc2"), 1, exploding) == 0
        assert sizes.least(Quantity(f"{prefix}preactivation", "fc2"), 1, exploding) == -HALF
    torch_biases = theory("", power=-1)
    assert sizes.least(Quantity("preactivation", "fc2"), 1, torch_biases) == -3 * HALF
    late = theory("--param mup")  # the output begins as n^(−½) and does not stay so
    assert sizes.least(Quantity("preactivation", "classifier"), 1, late) == -HALF
    shares = [parts.predicted(Quantity(SHARE, layer), 1, found) for layer in CHAIN]
    assert shares == [-3 * HALF, -HALF, 0]
    assert parts.predicted(Quantity(SHARE, "classifier"), 1, exploding) == 0
    assert parts.predicted(Quantity(INITIAL, "classifier"), 1, exploding) == 1
    assert parts.predicted(Quantity(UPDATE, "classifier"), 1, exploding) == 3 * HALF
    assert exploding.initial("preactivation", "fc1", below=1) is None  # it reads data


def test_layers_that_are_no_chain_have_the_places_of_their_roles() -> None:
    model = "fc-bn --depth 3"
    found = theory("--param mup", model=model)
    assert found.theory is not None
    assert not found.chain
    assert found.initial("operator norm", "first") == HALF
    assert found.after("own", "middle", 1) == 0
    assert found.spectral("last") == -HALF
    assert found.after("own", "other", 1) is None
    assert found.after("own", "last", 1, below=1) is None
    assert "no chain" in theory("--param sp", model=model).reason


@pytest.mark.parametrize("flags", ["--wd 0.1", "--clip-norm 1", "--optimizer lamb"])
def test_no_theory_of(flags: str) -> None:
    found = theory(flags)
    assert found.theory is None
    assert found.reason


def test_edges_are_over_the_side_that_grows() -> None:
    assert edges({4: (4, 9), 16: (16, 9)}) == {4: (2 + 3) / 2, 16: (4 + 3) / 4}
    assert edges({4: (9, 4), 16: (9, 16)}) == {4: (3 + 2) / 2, 16: (3 + 4) / 4}

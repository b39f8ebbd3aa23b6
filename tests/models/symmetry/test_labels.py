"""Linear relations between labels, against dense linear algebra."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import sparse

from Models.symmetry import elimination
from Models.symmetry.elimination import eliminate, product
from Models.symmetry.labels import Labels, LabelSystem, broadcast, zeros

Floats = NDArray[np.float64]

COEFFICIENTS = st.sampled_from([1.0, -1.0, 2.0, 0.5, -3.0, 1 / 3])
LABEL = st.integers(0, 11)


def labels(variables: list[int], coefficients: list[float]) -> Labels:
    return Labels(torch.tensor(variables), torch.tensor(coefficients, dtype=torch.float64))


@st.composite
def systems(draw: st.DrawFn) -> tuple[LabelSystem, Floats, int]:
    """A system of random relations, the same relations as a matrix, and the number of labels."""
    count = draw(st.integers(1, 11))
    system = LabelSystem()
    system.fresh((count,))
    rows = []

    def terms(size: int) -> tuple[list[int], list[float]]:
        some = draw(st.lists(LABEL.map(lambda v: v % (count + 1)), min_size=size, max_size=size))
        return some, draw(st.lists(COEFFICIENTS, min_size=size, max_size=size))

    for _ in range(draw(st.integers(0, 9))):
        kind = draw(st.sampled_from(["tie", "tie", "pin", "sum", "sum"]))
        variables, coefficients = terms({"tie": 2, "pin": 1}.get(kind, draw(st.integers(3, 5))))
        parts = [labels([v], [c]) for v, c in zip(variables, coefficients, strict=True)]
        if kind == "tie":
            system.tie(*parts)
            coefficients[1] *= -1
        elif kind == "pin":
            system.pin(parts[0], "because")
        else:
            system.vanishing_sum(*parts)
        row = np.zeros(count + 1)
        np.add.at(row, variables, coefficients)
        rows.append(row)
    return system, np.array(rows).reshape(-1, count + 1)[:, 1:], count


def solution_of(system: LabelSystem, count: int) -> Floats:
    """Every label's dependence on the free labels, [labels, free labels]."""
    matrix = system.solve().coefficients(labels(list(range(1, count + 1)), [1.0] * count))
    dense: Floats = matrix.toarray()
    return dense[:, np.abs(dense).max(0) > 0]


@settings(max_examples=150, deadline=None)
@given(systems())
def test_solutions_are_the_null_space(drawn: tuple[LabelSystem, Floats, int]) -> None:
    system, rows, count = drawn
    solution = solution_of(system, count)
    rank = np.linalg.matrix_rank(rows) if rows.size else 0
    assert solution.shape[1] == count - rank
    assert np.linalg.matrix_rank(solution) == count - rank
    assert np.abs(rows @ solution).max(initial=0) < 1e-9


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_elimination_is_the_null_space(data: st.DataObject) -> None:
    shape = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 9))
    entries = st.sampled_from([0.0, 0.0, 0.0, 1.0, -1.0, 2.0, 0.1])
    rows = np.array([[data.draw(entries) for _ in range(shape[1])] for _ in range(shape[0])])
    rows = rows[np.abs(rows).max(1) > 0]
    solution = eliminate(sparse.csr_matrix(rows)).toarray()
    free = np.flatnonzero(np.abs(solution).max(0, initial=0) > 0)
    scale = np.abs(solution).max(initial=1)
    assert len(free) == shape[1] - (np.linalg.matrix_rank(rows) if rows.size else 0)
    assert np.allclose(solution[np.ix_(free, free)], np.eye(len(free)))
    assert np.abs(rows @ solution).max(initial=0) < 1e-9 * scale


def test_a_block_too_large_to_eliminate_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elimination, "_DENSE", 3)
    cycle = np.array([[1.0, 1, 1, 0, 0], [1, 2, -1, 0, 0], [0, 0, 0, 1, -1]])
    solution = eliminate(sparse.csr_matrix(cycle)).toarray()
    assert np.abs(solution[:3]).max() == 0
    assert np.abs(solution[3:]).max() == 1


def test_a_product_forgets_what_only_rounding_left() -> None:
    a = sparse.csr_matrix([[0.1, 0.2, -0.3], [1e-12, 0, 0]])
    b = sparse.csr_matrix([[1.0], [1.0], [1.0]])
    assert product(a, b).toarray().tolist() == [[0.0], [1e-12]]


# ---------------------------------------------------------------------- long chains


@pytest.mark.parametrize("ratio", [1.0, 2.0, 0.5])
def test_ratios_along_a_long_chain(ratio: float) -> None:
    """As of an activation of degree 2 in a deep network: 2^-60 is not a rounding error."""
    system, length = LabelSystem(), 60
    chain = system.fresh((length,))
    for k in range(length - 1):
        left, right = (Labels(chain.var[i : i + 1], chain.coef[i : i + 1]) for i in (k, k + 1))
        system.tie(left, right.times(ratio))
    solution = solution_of(system, length)
    assert solution.shape == (length, 1)
    assert np.allclose(solution[:-1] / solution[1:], ratio)


def test_a_chain_in_any_order_of_relations() -> None:
    system, length = LabelSystem(), 200
    chain = system.fresh((length,))
    order = np.random.default_rng(0).permutation(length - 1)
    system.tie(
        Labels(chain.var[order], chain.coef[order]),
        Labels(chain.var[order + 1], chain.coef[order + 1]),
    )
    assert np.allclose(solution_of(system, length), 1)
    system.tie(Labels(chain.var[:1], chain.coef[:1]), Labels(chain.var[-1:], 2 * chain.coef[-1:]))
    assert solution_of(system, length).shape == (length, 0)


# ---------------------------------------------------------------------- labels as tensors


def test_fresh_labels_are_all_different() -> None:
    system = LabelSystem()
    first, second = system.fresh((2, 3)), system.fresh(())
    together = {*first.var.reshape(-1).tolist(), second.var.item()}
    assert len(together) == system.count - 1 == 7


def test_shrinking_keeps_what_varies() -> None:
    system = LabelSystem()
    channel = system.fresh((3,))
    spread = Labels(*(part.reshape(1, 3, 1).expand(4, 3, 5) for part in channel))
    assert spread.shrink().var.shape == (1, 3, 1)
    varied = spread.times(torch.rand(4, 1, 5, dtype=torch.float64))
    assert varied.shrink().var.shape == (4, 3, 5)
    assert not varied.vanish
    assert zeros((4, 3)).shrink().var.shape == (1, 1)
    assert spread.times(0).vanish


def test_ties_that_repeat_are_stated_once() -> None:
    """The same two labels at many places: equal ratios are one relation, others a conflict."""
    system = LabelSystem()
    left, right = system.fresh((2,)), system.fresh((2,))
    spread = [Labels(*(part.expand(50, 2) for part in x)) for x in (left, right)]
    factors = torch.ones(50, 2, dtype=torch.float64)
    system.tie(spread[0].times(factors), spread[1].times(3 * factors))
    assert solution_of(system, 4).shape[1] == 2
    factors[7, 0] = 2
    system.tie(spread[0].times(factors), spread[1].times(3.0))
    solution = solution_of(system, 4)
    assert np.abs(solution[[0, 2]]).max() == 0
    assert np.allclose(solution[1] / solution[3], 3)


def test_reasons_are_the_first_ones_given() -> None:
    system = LabelSystem()
    x = system.fresh((4,))
    parts = [Labels(x.var[i : i + 1], x.coef[i : i + 1]) for i in range(4)]
    system.tie(parts[0], parts[1])
    system.pin(parts[1], "first")
    system.pin(parts[0], "second")
    system.tie(parts[2], parts[2].times(2.0))
    solution = system.solve()
    assert [solution.reason(part) for part in parts[:2]] == ["first", "first"]
    assert "freedom" in solution.reason(parts[2])
    assert solution.reason(parts[3]) == ""
    assert solution.reason(zeros((3,))) == ""


def test_labels_that_a_sum_leaves_no_freedom_have_a_reason() -> None:
    system = LabelSystem()
    x = system.fresh((3,))
    parts = [Labels(x.var[i : i + 1], x.coef[i : i + 1]) for i in range(3)]
    for coefficients in ((1.0, 1.0, 1.0), (1.0, 2.0, 4.0), (1.0, 3.0, 9.0)):
        system.vanishing_sum(*(p.times(c) for p, c in zip(parts, coefficients, strict=True)))
    solution = system.solve()
    assert solution.coefficients(x).nnz == 0
    assert "freedom" in solution.reason(x)


def test_pinning_whatever_an_operation_made() -> None:
    system = LabelSystem()
    kept = system.fresh((2,))
    before = system.count
    system.fresh((3,))
    system.pin_since(before, "abandoned")
    assert solution_of(system, 5).shape[1] == 2
    assert system.solve().reason(kept) == ""


def test_broadcasting_copies_nothing() -> None:
    x, y = broadcast(torch.zeros(3, 1), torch.zeros(2))
    assert (x.stride(), y.stride()) == ((1, 0), (0, 1))


def test_systems_of_many_labels_are_solved_quickly() -> None:
    """Two hundred thousand sums that each define a label: a residual stream of a transformer."""
    system, shape = LabelSystem(), (200, 1000)
    stream, bias = system.fresh(shape), system.fresh(shape[1:])
    total = system.fresh(shape)
    terms: list[Any] = [stream, Labels(*(p.expand(shape) for p in bias)), total.times(-1)]
    system.vanishing_sum(*terms)
    system.tie(total, Labels(*(p[:, :1] for p in total)))
    solution = system.solve()
    free = solution.coefficients(Labels(total.var[:, 0], total.coef[:, 0]))
    assert free.nnz == 200

"""The laws found are the laws there are: compared with null spaces over many minibatches."""

import numpy as np
import pytest
import torch

from tests.models.symmetry.certificate import TOLERANCE, Net, laws_of, leaks, prepared
from tests.models.symmetry.oracle import (
    minibatches,
    null_space,
    same_span,
    scale_difference,
    translation_difference,
)
from tests.models.symmetry.zoo import ZOO


@pytest.mark.parametrize("name", ZOO)
def test_every_law_is_found_and_none_is_false(name: str) -> None:
    case = ZOO[name]
    torch.manual_seed(0)
    model = prepared(case.build())
    laws = laws_of(model, case.inputs, case.loss, matrices=False)
    assert scale_difference(model, case.inputs, laws, case.loss) == (0, 0), laws.table()
    assert translation_difference(prepared(model), case.inputs, laws, case.loss) == {}, laws.table()


@pytest.mark.parametrize("name", ZOO)
def test_laws_hold_on_a_minibatch(name: str) -> None:
    case = ZOO[name]
    torch.manual_seed(0)
    model = prepared(case.build())
    laws = laws_of(model, case.inputs, case.loss)
    inputs = torch.randn_like(case.inputs) if case.inputs.is_floating_point() else case.inputs
    assert leaks(model, inputs, laws, case.loss).max(initial=0) <= TOLERANCE


# ---------------------------------------------------------------------- the oracle itself


def test_the_oracle_sees_a_missing_and_a_false_law() -> None:
    """Laws of a network with ReLU, shown the data of one with tanh, and the other way round."""
    torch.manual_seed(0)
    inputs = torch.zeros(8, 5, dtype=torch.float64)

    def build(activation: torch.nn.Module) -> Net:
        layers = {"first": torch.nn.Linear(5, 4), "second": torch.nn.Linear(4, 3)}
        return Net(lambda net, x: net.second(activation(net.first(x))), **layers)

    relu, tanh = prepared(build(torch.nn.ReLU())), prepared(build(torch.nn.Tanh()))
    assert scale_difference(tanh, inputs, laws_of(relu, inputs)) == (4, 0)
    assert scale_difference(relu, inputs, laws_of(tanh, inputs)) == (0, 4)
    by_mse = laws_of(relu, inputs, "mse")
    assert translation_difference(relu, inputs, by_mse) == {
        "second.weight": (0, 1),
        "vectors": (0, 1),
    }
    assert translation_difference(relu, inputs, laws_of(relu, inputs), "mse") == {
        "second.weight": (1, 0),
        "vectors": (1, 0),
    }


def test_null_space_and_its_comparison() -> None:
    samples = np.random.default_rng(0).normal(size=(20, 3)) @ np.array(
        [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0.0]]
    )
    null = null_space(samples)
    assert np.allclose(abs(null), [[2**-0.5, 0, 0, 2**-0.5]])
    assert same_span(null, np.array([[1, 0, 0, -1.0]])) == (0, 0)
    assert same_span(null, np.array([[1, 0, 0, -1.0], [0, 1, 0, 0]])) == (0, 1)
    assert same_span(np.zeros((0, 4)), null) == (0, 1)


def test_minibatches_are_at_different_weights() -> None:
    model = prepared(torch.nn.Linear(5, 3))
    weights = [
        theta["weight"] for theta, _ in minibatches(model, torch.zeros(4, 5).double(), "ce", 3)
    ]
    assert len(weights) == 3
    assert not torch.equal(weights[0], weights[2])

"""The groups behind the laws: adjoint of the charges, invariance of networks, moved charges."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor
from torch.func import functional_call

from Models.symmetry import Charges, Family, Laws, Reduction
from Models.symmetry.actions import act, generators
from tests.models.symmetry.certificate import gradients, laws_of, leaks, prepared
from tests.models.symmetry.zoo import ZOO, Case

REDUCTIONS = {
    "row": (Reduction("w", "row"), (4, 3, 2, 2)),
    "row of a matrix": (Reduction("w", "row"), (4, 3)),
    "column": (Reduction("w", "column"), (4, 3, 2, 5)),
    "column of a matrix": (Reduction("w", "column"), (4, 3)),
    "column of groups": (Reduction("w", "column", groups=3), (6, 4, 3, 2)),
    "column of channels": (Reduction("w", "column", groups=4), (4, 1, 3)),
    "element": (Reduction("w", "element"), (4, 3)),
    "element of a scalar": (Reduction("w", "element"), ()),
    "projection of the first axis": (
        Reduction("w", "projection", axis=0, basis=((1.0, -1.0, 0.0), (0.5, 0.5, 2.0))),
        (3, 4, 2),
    ),
    "projection of the second axis": (
        Reduction("w", "projection", axis=1, basis=((1.0, 1.0, 1.0, 1.0),)),
        (3, 4, 2),
    ),
}


@pytest.mark.parametrize("case", REDUCTIONS)
def test_transpose_is_the_adjoint(case: str) -> None:
    reduction, shape = REDUCTIONS[case]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    reduced = reduction(x)
    assert reduction.outputs(shape) == len(reduced)
    y = torch.randn(len(reduced), generator=generator, dtype=torch.float64)
    spread = reduction.transpose(y, shape)
    assert spread.shape == shape
    assert float(reduced @ y) == pytest.approx(float((x * spread).sum()), rel=1e-13)
    units = torch.eye(x.numel(), dtype=torch.float64)
    matrix = torch.stack([reduction(unit.view(shape)) for unit in units], 1)
    torch.testing.assert_close(spread.reshape(-1), matrix.T @ y, rtol=1e-14, atol=1e-14)


# ---------------------------------------------------------------- networks

NAMES = [
    "conv-bn",
    "fc, relu2",
    "fc, mse",
    "channel_shuffle",
    "vgg",
    "places_with_gains",
    "mixer, layer norm before",
    "mixer, own RMS norm after",
    "bare_matrices",
    "two_embeddings_and_layer_norm",
    "tied embedding",
    "fc, identity",
    "transformer, grouped keys",
]


class Subject:
    """A model at generic weights in float64 with normalisations that have no ε."""

    def __init__(self, case: Case):
        self.model = prepared(case.build())
        generator = torch.Generator().manual_seed(1)
        if case.inputs.is_floating_point():
            self.inputs = torch.randn(case.inputs.shape, generator=generator, dtype=torch.float64)
        else:
            shape, high = case.inputs.shape, int(case.inputs.max()) + 1
            self.inputs = torch.randint(high, shape, generator=generator)
        self.loss = case.loss
        self.laws = laws_of(self.model, self.inputs, case.loss)
        self.parameters = {n: p.detach().clone() for n, p in self.model.named_parameters()}

    def outputs(self, replaced: dict[str, Tensor]) -> Tensor:
        """What the loss sees of the outputs."""
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)  # dropout
            y: Tensor = functional_call(self.model, self.parameters | replaced, (self.inputs,))
        return y - y.mean(1, keepdim=True) if self.loss == "ce" else y


@cache
def subject(name: str) -> Subject:
    return Subject(ZOO[name])


def act_on(s: Subject, family: Family) -> Any:
    return act(s.laws, family, s.parameters, np.random.default_rng(3))


@pytest.mark.parametrize("name", NAMES)
def test_networks_do_not_notice_and_charges_do(name: str) -> None:
    s = subject(name)
    assert s.laws.families
    before, (q, size) = s.outputs({}), s.laws.measure_with_sizes(s.parameters.__getitem__)
    for family in s.laws.families:
        moved = act_on(s, family)
        assert set(moved.parameters) == set(family.parameters)
        after = s.outputs(moved.parameters)
        assert float((after - before).abs().max() / before.abs().max()) < 1e-11, family
        there = s.laws.measure((s.parameters | moved.parameters).__getitem__)[family.units]
        np.testing.assert_allclose(there, moved.charges, atol=1e-12 * size.max())
        assert (np.abs(there - q[family.units]) > 1e-3 * size[family.units]).any(), family


@pytest.mark.parametrize("name", ["conv-bn", "fc, relu2", "channel_shuffle"])
def test_charges_move_by_the_exponents_of_their_reductions(name: str) -> None:
    """q_k → Σ_m S_km e^{2 τ_k S_km} r_m: each reduction m belongs to one law of the family."""
    s = subject(name)
    reductions = s.laws.quadratic.reductions
    reduced = torch.cat([r(s.parameters[r.parameter].square()) for r in reductions]).numpy()
    for family in (f for f in s.laws.families if f.kind != "translation"):
        tau = np.random.default_rng(3).uniform(-0.5, 0.5, len(family))
        rows = s.laws.quadratic.matrix.toarray()[family.units]
        expected = (rows * np.exp(2 * tau[:, None] * rows) * reduced).sum(1)
        np.testing.assert_allclose(act_on(s, family).charges, expected, rtol=1e-12, atol=1e-14)


def test_a_scaled_filter_is_multiplied_by_one_number() -> None:
    s = subject("conv-bn")
    family = next(f for f in s.laws.families if (f.kind, f.layer) == ("scale", "conv1"))
    factors = np.exp(np.random.default_rng(3).uniform(-0.5, 0.5, len(family)))
    moved = act_on(s, family).parameters
    for name, axes in (("conv1.weight", (-1, 1, 1, 1)), ("conv1.bias", (-1,))):
        expected = s.parameters[name] * torch.from_numpy(factors).view(axes)
        torch.testing.assert_close(moved[name], expected, rtol=1e-14, atol=0)


def test_a_translated_column_moves_by_one_number() -> None:
    s = subject("conv-bn")
    family = next(f for f in s.laws.families if f.layer == "classifier.weight")
    weight = s.parameters["classifier.weight"]
    shift = act_on(s, family).parameters["classifier.weight"] - weight
    torch.testing.assert_close(shift, shift[:1].expand_as(shift), rtol=0, atol=1e-14)
    assert 0.1 < float(shift.abs().max() / weight.square().mean().sqrt()) <= 1
    change = act_on(s, family).charges - weight.sum(0).numpy()
    np.testing.assert_allclose(change, len(weight) * shift[0].numpy(), rtol=1e-10)


def test_parameters_that_are_zero_are_shifted_too() -> None:
    s = subject("conv-bn")
    family = next(f for f in s.laws.families if f.layer == "conv1.bias")
    zeros = s.parameters | {"conv1.bias": torch.zeros_like(s.parameters["conv1.bias"])}
    moved = act(s.laws, family, zeros, np.random.default_rng(3))
    assert float(moved.parameters["conv1.bias"].abs().min()) > 0


def test_moved_parameters_have_the_number_format_of_the_old_ones() -> None:
    s = subject("conv-bn")
    single = {name: p.float() for name, p in s.parameters.items()}
    for family in s.laws.families:
        moved = act(s.laws, family, single, np.random.default_rng(3))
        assert {p.dtype for p in moved.parameters.values()} == {torch.float32}
        there = s.laws.measure((single | moved.parameters).__getitem__)[family.units]
        np.testing.assert_allclose(there, moved.charges, rtol=1e-4, atol=1e-6)


def wrong(kind: str, reduction: Reduction, matrix: NDArray[np.float64]) -> Laws:
    """One family of laws that no network has."""
    charges, none = Charges((reduction,), sparse.csr_matrix(matrix)), Charges(
        (), sparse.csr_matrix((0, 0))
    )
    family = Family(kind, "wrong", 0, len(matrix), (reduction.parameter,))  # type: ignore[arg-type]
    pair = (none, charges) if kind == "translation" else (charges, none)
    return Laws(*pair, (family,), ())


@pytest.mark.parametrize(
    ("kind", "reduction"),
    [
        ("scale", Reduction("classifier.weight", "row")),
        ("translation", Reduction("classifier.weight", "row")),
    ],
)
def test_a_wrong_law_is_noticed(kind: str, reduction: Reduction) -> None:
    s = subject("conv-bn")
    laws = wrong(kind, reduction, np.eye(3))
    moved = act(laws, laws.families[0], s.parameters, np.random.default_rng(3))
    before, after = s.outputs({}), s.outputs(moved.parameters)
    assert float((after - before).abs().max() / before.abs().max()) > 0.01
    gradient = gradients(s.model, s.inputs, s.loss)
    value, size = generators(laws, s.parameters, gradient)
    assert (np.abs(value) > 1e-2 * size).all()


@pytest.mark.parametrize("name", ["conv-bn", "mixer, layer norm before"])
def test_generators_vanish(name: str) -> None:
    s = subject(name)
    gradient = gradients(s.model, s.inputs, s.loss)
    value, size = generators(s.laws, s.parameters, gradient)
    assert value.shape == size.shape == (len(s.laws),)
    large = size > 1e-6 * size.max()
    assert np.abs(value[large] / size[large]).max() < 1e-9
    assert leaks(s.model, s.inputs, s.laws, s.loss).max() < 1e-10
    ones = {name: torch.ones_like(g) for name, g in gradient.items()}
    assert np.abs(generators(s.laws, s.parameters, ones)[0]).max() > 0.1

"""Eigenvalues of curvature, against dense matrices, closed forms and another library."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from Metrics import spectrum
from Metrics.spectrum import Floats, gauss_newton, hessian, largest_eigenvalues, preconditioned
from Training.losses import cross_entropy, linear, mean_squared_error
from Utils.errors import UserError

Loss = Callable[[Tensor, Tensor], Tensor]


class PlainBatchNorm(nn.Module):
    """Batch normalisation from elementary operations, whose derivatives are all simple."""

    def __init__(self, width: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        axes, shape = (0, *range(2, x.dim())), (1, -1, *[1] * (x.dim() - 2))
        centred = x - x.mean(axes, keepdim=True)
        scaled = centred / torch.sqrt((centred**2).mean(axes, keepdim=True) + 1e-5)
        return scaled * self.weight.view(shape) + self.bias.view(shape)


def fused_batch_norm(width: int) -> nn.Module:
    return nn.BatchNorm2d(width, track_running_stats=False)


def build(norm: Callable[[int], nn.Module] | None = None) -> nn.Module:
    """A small network in float64 at generic weights; the same ones for every ``norm``."""
    if norm is None:
        layers: list[nn.Module] = [nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 3)]
    else:
        layers = [nn.Conv2d(1, 3, 3), norm(3), nn.ReLU(), nn.Conv2d(3, 2, 2), norm(2), nn.Tanh()]
        layers += [nn.Flatten(), nn.Linear(2, 3)]
    model = nn.Sequential(*layers).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = 0.5 * noise + (parameter.dim() == 1)
    return model


def batch(size: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(size, 1, 4, 4, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(3, (size,), generator=generator)


def as_function(model: nn.Module, inputs: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The logits as a function of all parameters in one vector, and that vector."""
    names, shapes = zip(*((n, p.shape) for n, p in model.named_parameters()), strict=True)

    def logits(flat: Tensor) -> Tensor:
        parts = torch.split(flat, [shape.numel() for shape in shapes])
        replaced = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        result: Tensor = functional_call(model, replaced, (inputs,))
        return result

    return logits, torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def second(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The matrix of second derivatives."""
    matrix: Tensor = torch.func.hessian(function)(at)  # type: ignore[no-untyped-call]
    return matrix


def dense(kind: str, model: nn.Module, loss: Loss, data: tuple[Tensor, Tensor]) -> Floats:
    """The matrix by its definition."""
    inputs, targets = data
    logits, theta = as_function(model, inputs)
    if kind == "hessian":
        found = second(lambda flat: loss(logits(flat), targets), theta)
    else:
        f = logits(theta)
        jacobian = jacrev(logits)(theta).flatten(0, 1)
        bend = second(lambda x: loss(x.view_as(f), targets), f.reshape(-1))
        found = jacobian.T @ bend @ jacobian
    matrix: Floats = found.detach().numpy()
    return matrix


OPERATORS = {"hessian": hessian, "gauss-newton": gauss_newton}


def as_matrix(operator: LinearOperator) -> Floats:
    matrix: Floats = np.stack([operator @ unit for unit in np.eye(operator.shape[0])], 1)
    return matrix


@pytest.mark.parametrize("kind", OPERATORS)
@pytest.mark.parametrize("loss", [cross_entropy, mean_squared_error])
@pytest.mark.parametrize("norms", [None, (fused_batch_norm, PlainBatchNorm)])
def test_operators_and_their_largest_eigenvalues_are_those_of_dense_matrices(
    kind: str, loss: Loss, norms: tuple[Any, Any] | None
) -> None:
    ours, plain = norms or (None, None)
    operator = OPERATORS[kind](build(ours), loss, batch())
    matrix = dense(kind, build(plain), loss, batch())
    np.testing.assert_allclose(as_matrix(operator), matrix, atol=1e-12 * np.abs(matrix).max())
    found = largest_eigenvalues(operator, 3, 2e-16, seed=0)
    expected = np.linalg.eigvalsh(matrix)[::-1]
    np.testing.assert_allclose(found.values, expected[:3], rtol=1e-9)
    assert (found.errors < 1e-6 * expected[0]).all()


@pytest.mark.parametrize("kind", OPERATORS)
def test_another_library_agrees(kind: str) -> None:
    """curvlinops, which differentiates forwards over backwards, on a network without norms."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import curvlinops
    theirs = {
        "hessian": curvlinops.HessianLinearOperator,
        "gauss-newton": curvlinops.GGNLinearOperator,
    }
    model, data = build(), batch()
    reference = theirs[kind](model, nn.CrossEntropyLoss(), list(model.parameters()), [data])
    operator = OPERATORS[kind](model, cross_entropy, data)
    v = np.random.default_rng(0).standard_normal(operator.shape[0])
    np.testing.assert_allclose(operator @ v, reference.to_scipy() @ v, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("norm", [nn.LayerNorm(5), nn.GroupNorm(1, 5), nn.BatchNorm1d(5)])
def test_products_are_differences_of_gradients(norm: nn.Module) -> None:
    """Fused normalisations, whose forward derivatives of backward passes torch gets wrong."""
    torch.manual_seed(0)
    norm = copy.deepcopy(norm).train()
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), norm, nn.Tanh(), nn.Linear(5, 3)).double()
    inputs, targets = batch()
    v = [torch.randn_like(parameter) for parameter in model.parameters()]
    operator = hessian(model, cross_entropy, (inputs, targets))
    product = operator @ torch.cat([part.reshape(-1) for part in v]).numpy()
    gradients = []
    for move in (1e-6, -2e-6):  # from the weights to θ + εv, from there to θ − εv
        for parameter, part in zip(model.parameters(), v, strict=True):
            parameter.data.add_(part, alpha=move)
        loss = cross_entropy(model(inputs), targets)
        found = torch.autograd.grad(loss, list(model.parameters()))
        gradients.append(torch.cat([part.reshape(-1) for part in found]))
    expected = ((gradients[0] - gradients[1]) / 2e-6).numpy()
    np.testing.assert_allclose(product, expected, atol=1e-7 * np.abs(expected).max())


def test_linear_regression_has_the_covariance_of_its_inputs() -> None:
    """L = Σ (Wx + b − y)² / NC has H = 2/(NC) X̃ᵀX̃ for each output, X̃ = [X 1]."""
    inputs, targets = batch(40)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    extended = np.hstack([inputs.flatten(1).numpy(), np.ones((40, 1))])
    expected = np.linalg.eigvalsh(2 / (40 * 3) * extended.T @ extended)[::-1]
    for operator in OPERATORS.values():
        matrix = operator(model, mean_squared_error, (inputs, targets))
        found = largest_eigenvalues(matrix, 2, 2e-16, seed=0).values
        np.testing.assert_allclose(found, expected[[0, 0]], rtol=1e-9)


def test_a_linear_loss_has_no_curvature_of_its_own() -> None:
    """Its Gauss-Newton matrix is zero, and so is the Hessian of a linear layer."""
    np.testing.assert_array_equal(as_matrix(gauss_newton(build(), linear, batch())), 0)
    layer = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    for operator in OPERATORS.values():
        found = largest_eigenvalues(operator(layer, linear, batch()), 2, 2e-16, seed=0)
        np.testing.assert_array_equal(found.values, 0)
    expected = dense("hessian", build(), linear, batch())
    np.testing.assert_allclose(as_matrix(hessian(build(), linear, batch())), expected, atol=1e-14)


def test_errors_bound_what_single_precision_does() -> None:
    inputs, targets = batch()
    exact = np.linalg.eigvalsh(dense("hessian", build(PlainBatchNorm), cross_entropy, batch()))
    single = hessian(build(fused_batch_norm).float(), cross_entropy, (inputs.float(), targets))
    found = largest_eigenvalues(single, 3, 1e-7, seed=0)
    off = np.abs(exact[None] - found.values[:, None]).min(1)
    # the residual is against the computed products, whose own rounding comes on top
    assert (off <= found.errors + 1e-6 * exact[-1]).all()
    assert (found.errors < 1e-3 * exact[-1]).all()


def test_the_preconditioner_stands_on_both_sides() -> None:
    matrix = dense("hessian", build(), cross_entropy, batch())
    inverse = np.random.default_rng(0).uniform(0, 5, len(matrix))
    inverse[3] = 0
    root = np.diag(np.sqrt(inverse))
    decay = np.linspace(0, 0.3, len(matrix))
    expected = root @ (matrix + np.diag(decay)) @ root
    operator = preconditioned(hessian(build(), cross_entropy, batch()), inverse, decay)
    np.testing.assert_allclose(as_matrix(operator), expected, atol=1e-12)
    # the eigenvalues are those of D(A + λ), which is what a step sees
    seen = np.linalg.eigvals(np.diag(inverse) @ (matrix + np.diag(decay))).real.max()
    assert largest_eigenvalues(operator, 1, 2e-16, 0).values[0] == pytest.approx(seen, rel=1e-8)


def test_what_is_not_found_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectrum, "_RESTARTS", 1)
    scale = 1 + np.sort(np.random.default_rng(0).uniform(0, 1e-3, 400))
    scale[-1] = 50
    matrix = LinearOperator((400, 400), matvec=lambda v: scale * v.reshape(-1), dtype=np.float64)
    found = largest_eigenvalues(matrix, 3, 2e-16, seed=0)
    assert found.values[0] == pytest.approx(50, rel=1e-9)
    assert np.isnan(found.values[1:]).all()
    assert np.isnan(found.errors[1:]).all()


@pytest.mark.parametrize("entry", [0.0, np.nan, np.inf])
def test_matrices_of_dead_and_diverged_networks(entry: float) -> None:
    matrix = LinearOperator((40, 40), matvec=lambda v: np.full(40, entry), dtype=np.float64)
    found = largest_eigenvalues(matrix, 3, 1e-7, 0)
    expected = np.full(3, 0.0 if entry == 0 else np.nan)
    np.testing.assert_array_equal(found, (expected, expected))


def test_more_eigenvalues_than_parameters() -> None:
    with pytest.raises(UserError, match=r"--eigenvalues 4: the network has 4 parameters"):
        largest_eigenvalues(LinearOperator((4, 4), matvec=lambda v: v, dtype=float), 4, 1e-7, 0)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.maps, self.head = nn.Linear(4, 12), nn.Linear(4, 3)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.idle = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.maps(x.flatten(1, 2)).chunk(3, -1)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head(mixed.mean(1)) * self.frozen  # type: ignore[no-any-return]


def test_attention_and_parameters_without_a_gradient() -> None:
    torch.manual_seed(0)
    model, (inputs, targets) = Attention(), batch()
    operator = hessian(model, cross_entropy, (inputs.float(), targets))
    assert operator.shape[0] == sum(p.numel() for p in model.parameters()) - 3
    matrix = as_matrix(operator)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-6)
    idle = slice(0, 2)  # parameters of the module itself come first
    assert (matrix[idle] == 0).all()
    assert np.abs(matrix[2:, 2:]).max() > 0.01


class Prototypes(nn.Module):
    """Distances, of which torch knows one derivative only."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.rand(3, 16, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(x.flatten(1), self.places)


def test_operations_without_a_second_derivative_are_the_users_to_mend() -> None:
    operator = hessian(Prototypes(), cross_entropy, batch())
    with pytest.raises(UserError, match=r"curvature of this model .*cdist.* leave sharpness out"):
        operator @ np.ones(operator.shape[0])

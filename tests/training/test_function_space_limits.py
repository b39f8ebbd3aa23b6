"""The largest stable learning rates: steps stay bounded below them, and not above."""

import math

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn
from torch.autograd.functional import hessian

from tests.training.linear_models import (
    TRAIN,
    D,
    LinearModel,
    full_model,
    labels,
    targets,
    traced_model,
)
from Training.discrete_laws import Coefficients, linear_step
from Training.function_space import (
    SquaredError,
    largest_curvature,
    largest_eigenvalue,
    largest_lr,
    stable_edge,
)
from Training.function_space.losses import Loss
from Training.losses import cross_entropy, mean_squared_error

RULES = {
    "sgd": Coefficients(1.0, 0.0),
    "sgd, decay": Coefficients(1.0, 0.4),
    "sgd, dampening is not used": Coefficients(1.0, 0.0, 0.0, 0.5),
    "heavy ball": Coefficients(1.0, 0.0, 0.9),
    "heavy ball, decay": Coefficients(1.0, 0.4, 0.5),
    "dampening": Coefficients(1.0, 0.1, 0.9, 0.6),
    "nesterov": Coefficients(1.0, 0.0, 0.9, nesterov=True),
    "nesterov, decay": Coefficients(1.0, 0.4, 0.3, nesterov=True),
}


def growth(rule: Coefficients, curvature: float) -> float:
    """The spectral radius of a step on (weight, velocity), by the steps of both unit vectors."""
    columns = [linear_step(x[:1], x[1:], rule, curvature * x[:1]) for x in np.eye(2)]
    matrix = np.concatenate([np.concatenate(column)[:, None] for column in columns], axis=1)
    matrix = matrix if rule.momentum else matrix[:1, :1]  # there is no velocity
    return float(np.abs(np.linalg.eigvals(matrix)).max())


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_steps_are_bounded_up_to_the_edge(rule: Coefficients) -> None:
    curvature = 3.0
    edge = largest_lr(curvature, rule)
    sizes = []
    for lr in (0.99 * edge, 1.01 * edge):
        step = Coefficients(lr, rule.wd, rule.momentum, rule.dampening, rule.nesterov)
        sizes.append(growth(step, curvature))
    below, above = sizes
    assert below < 1 < above


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_smaller_learning_rates_are_stable_too(rule: Coefficients) -> None:
    edge = stable_edge(rule.momentum, rule.dampening, rule.nesterov)
    for x in np.linspace(0.01, 0.99, 50) * edge:
        step = Coefficients(x, 0.0, rule.momentum, rule.dampening, rule.nesterov)
        assert growth(step, 1.0) < 1


def test_without_curvature_any_learning_rate_is_stable() -> None:
    assert largest_lr(0.0, Coefficients(1.0, 0.0)) == math.inf


@pytest.mark.parametrize("loss", [cross_entropy, mean_squared_error])
@pytest.mark.parametrize("model", [full_model(), traced_model()], ids=["full", "traced"])
def test_the_largest_curvature_is_that_of_the_loss_in_the_weights(
    model: LinearModel, loss: Loss
) -> None:
    def whole(weights: Tensor) -> Tensor:
        return loss(model.offset[:TRAIN] + model.jacobian[:TRAIN] @ weights, labels())

    matrix = hessian(whole, model.start)  # type: ignore[no-untyped-call]
    expected = float(torch.linalg.eigvalsh(matrix)[-1])
    found = largest_curvature(model.train, loss, model.outputs[:TRAIN], labels())
    assert found == pytest.approx(expected, rel=1e-10)


def test_a_loss_without_curvature_has_none() -> None:
    """At sizes for the eigenvalues of a matrix, and for Lanczos's iteration."""

    def linear(outputs: Tensor, targets: Tensor) -> Tensor:
        return -(outputs * nn.functional.one_hot(targets, outputs.shape[1])).mean()

    for size in (5, 400):
        kernel, outputs = torch.eye(size).double(), torch.zeros(size, 2).double()
        assert largest_curvature(kernel, linear, outputs, torch.arange(size) % 2) == 0.0


def test_of_squared_error_it_is_the_kernels_largest_eigenvalue_times_the_slope() -> None:
    model = full_model()
    solution = SquaredError(model.train, model.outputs[:TRAIN], targets())
    slope = 2 / targets().numel()
    assert float(solution.curvatures[-1]) == pytest.approx(
        slope * largest_eigenvalue(model.train), rel=1e-12
    )
    rule = Coefficients(1.0, 0.0, 0.9)
    assert solution.largest_lr(rule) == pytest.approx(3.8 / float(solution.curvatures[-1]))


def test_large_kernels_are_iterated() -> None:
    g = torch.Generator().manual_seed(0)
    features = torch.randn(700, 30, generator=g, dtype=D)
    kernel = features @ features.T
    products = []

    def product(v: np.ndarray) -> np.ndarray:
        products.append(v.shape)
        return (kernel @ torch.from_numpy(v)).numpy()

    operator = LinearOperator((700, 700), matvec=product, dtype=np.float64)
    exact = float(torch.linalg.eigvalsh(features.T @ features)[-1])
    assert largest_eigenvalue(kernel) == pytest.approx(exact, rel=1e-12)
    assert largest_eigenvalue(operator) == pytest.approx(exact, rel=1e-12)
    assert 5 < len(products) < 100

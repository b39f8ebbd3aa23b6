"""Gradient flow of linearised networks, against matrix exponentials and another solver."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from torch import Tensor
from torch.autograd.functional import hessian
from torch.nn import functional

from tests.training.linear_models import (
    OTHERS,
    OUTPUTS,
    TRAIN,
    D,
    LinearModel,
    full_model,
    labels,
    targets,
    traced_model,
)
from Training.discrete_laws import Coefficients, Floats
from Training.function_space import (
    Modes,
    SquaredError,
    Stretch,
    gradient_flow,
    regularized,
    train_on_batches,
)
from Training.function_space.gradient_flow import _Flow
from Training.function_space.losses import Loss, loss_hessian
from Training.losses import cross_entropy, mean_squared_error
from Utils.errors import UserError

MODELS = {
    "full": full_model(),
    "full, singular": full_model(parameters=7),
    "traced": traced_model(),
    "traced, singular": traced_model(parameters=4),
}
TIMES = [0.0, 0.01, 0.3, 2.0, 40.0]


def exponential(model: LinearModel, decay: float) -> Tensor:
    """f_t by the matrix exponential of θ̇ = −2/M Jᵀ(f − y) − μθ, an affine equation in θ."""
    j, parameters = model.jacobian[:TRAIN].flatten(0, 1), len(model.start)
    slope = 2 / len(j)
    system = torch.zeros(parameters + 1, parameters + 1, dtype=D)
    system[:-1, :-1] = -slope * j.T @ j - decay * torch.eye(parameters, dtype=D)
    system[:-1, -1] = slope * j.T @ (targets() - model.offset[:TRAIN]).flatten()
    state = torch.cat([model.start, torch.ones(1, dtype=D)])
    weights = [(torch.from_numpy(expm((t * system).numpy())) @ state)[:-1] for t in TIMES]
    return torch.stack([model.offset + model.jacobian @ w for w in weights])


@pytest.mark.parametrize("decay", [0.0, 1e-9, 0.05])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_squared_error_is_the_matrix_exponential(model: LinearModel, decay: float) -> None:
    expected, z = exponential(model, decay), model.radial
    start = model.outputs[:TRAIN]
    path = SquaredError(model.train, start, targets(), radial=z[:TRAIN]).flow(TIMES, decay)
    others = path.at(model.cross, model.outputs[TRAIN:], z[TRAIN:])
    torch.testing.assert_close(path.train, expected[:, :TRAIN], rtol=0, atol=1e-11)
    torch.testing.assert_close(others, expected[:, TRAIN:], rtol=0, atol=1e-11)


@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("name", ["full, singular", "traced"])
def test_the_solver_finds_the_closed_form(name: str, decay: float) -> None:
    model = MODELS[name]
    start, z = model.outputs[:TRAIN], model.radial
    path = gradient_flow(
        model.train, start, targets(), mean_squared_error, TIMES, decay, z[:TRAIN], 1e-10
    )
    closed = SquaredError(model.train, start, targets(), radial=z[:TRAIN]).flow(TIMES, decay)
    others = [p.at(model.cross, model.outputs[TRAIN:], z[TRAIN:]) for p in (path, closed)]
    torch.testing.assert_close(path.train, closed.train, rtol=0, atol=1e-7)
    torch.testing.assert_close(*others, rtol=0, atol=1e-7)


@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("name", ["full, singular", "traced"])
def test_cross_entropy_against_a_solver_of_the_weights(name: str, decay: float) -> None:
    model, y = MODELS[name], functional.one_hot(labels(), OUTPUTS).numpy()
    j, offset = model.jacobian.numpy(), model.offset.numpy()

    def rate(_: float, weights: Floats) -> Floats:
        logits = offset[:TRAIN] + j[:TRAIN] @ weights
        odds = np.exp(logits - logits.max(1, keepdims=True))
        slope = (odds / odds.sum(1, keepdims=True) - y) / TRAIN
        pull: Floats = np.einsum("ncp,nc->p", j[:TRAIN], slope)
        return -pull - decay * weights

    solution = solve_ivp(
        rate, (0, TIMES[-1]), model.start.numpy(), "DOP853", TIMES, rtol=1e-11, atol=1e-12
    )
    expected = torch.from_numpy(offset + np.moveaxis(j @ solution.y, -1, 0))
    z = model.radial
    path = gradient_flow(
        model.train, model.outputs[:TRAIN], labels(), cross_entropy, TIMES, decay, z[:TRAIN]
    )
    others = path.at(model.cross, model.outputs[TRAIN:], z[TRAIN:])
    torch.testing.assert_close(path.train, expected[:, :TRAIN], rtol=0, atol=1e-6)
    torch.testing.assert_close(others, expected[:, TRAIN:], rtol=0, atol=1e-6)


def test_cross_entropy_is_the_limit_of_small_steps() -> None:
    model, time = traced_model(), 2.0

    def after(steps: int) -> Tensor:
        rules, everything = [Coefficients(time / steps, 0.0)] * steps, [torch.arange(TRAIN)] * steps
        return train_on_batches(
            model.train,
            model.outputs[:TRAIN],
            labels(),
            cross_entropy,
            rules,
            everything,
            [steps],
        ).train

    coarse, fine = after(100), after(200)
    flow = gradient_flow(model.train, model.outputs[:TRAIN], labels(), cross_entropy, [time]).train
    assert (fine - coarse).abs().max() > 1e-3
    torch.testing.assert_close(2 * fine - coarse, flow, rtol=0, atol=2e-4)  # error ∝ η²


def test_stiff_kernels_are_followed_for_long() -> None:
    values = torch.logspace(-6, 3, TRAIN, dtype=D)
    vectors = torch.linalg.qr(targets(3) @ targets(4).T + torch.eye(TRAIN, dtype=D))[0]
    kernel = (vectors * values) @ vectors.T
    start, times = targets(5), [1e-3, 1.0, 1e3]
    path = gradient_flow(kernel, start, targets(), mean_squared_error, times)
    closed = SquaredError(kernel, start, targets()).flow(times)
    torch.testing.assert_close(path.train, closed.train, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [1e-6, 1e10])
def test_precision_is_that_of_outputs_for_kernels_of_any_size(size: float) -> None:
    model, start = traced_model(), traced_model().outputs[:TRAIN]
    kernel, times = size * model.train, [0.1 / size, 2 / size]
    path = gradient_flow(kernel, start, targets(), mean_squared_error, times)
    closed = SquaredError(kernel, start, targets()).flow(times)
    torch.testing.assert_close(path.train, closed.train, rtol=0, atol=1e-7)


def test_time_zero_alone() -> None:
    model = traced_model()
    start = model.outputs[:TRAIN]
    path = gradient_flow(model.train, start, labels(), cross_entropy, [0.0])
    assert torch.equal(path.train[0], start)


@pytest.mark.parametrize("model", [full_model(parameters=7), traced_model()])
def test_the_solvers_jacobian_is_the_derivative_of_its_rate(model: LinearModel) -> None:
    """By central differences, where weight decay has left a third of the initial weights."""
    decay, start, z = 0.4, model.outputs[:TRAIN], model.radial[:TRAIN]
    equation = _Flow(model.train, start, labels(), cross_entropy, decay, z)
    q = 0.1 * torch.randn(TRAIN * OUTPUTS, generator=torch.Generator().manual_seed(0), dtype=D)
    shape = model.train.shape[:1] if model.train.dim() == 2 else (TRAIN * OUTPUTS,)
    time, h = math.log(3) / decay, 1e-6

    def rate(q: Tensor) -> Tensor:
        return torch.from_numpy(equation._rate(time, q.view(*shape, -1)))

    columns = [(rate(q + h * e) - rate(q - h * e)) / (2 * h) for e in torch.eye(len(q), dtype=D)]
    found = torch.from_numpy(equation._jacobian(time, q.view(*shape, -1)))
    torch.testing.assert_close(found, torch.stack(columns, 1), rtol=0, atol=1e-8)


@pytest.mark.parametrize("loss", [cross_entropy, mean_squared_error])
def test_hessians_of_losses(loss: Loss) -> None:
    f, y = targets(), labels()
    whole = hessian(lambda x: loss(x, y), f)  # type: ignore[no-untyped-call]
    blocks = torch.stack([whole[n, :, n] for n in range(TRAIN)])
    torch.testing.assert_close(loss_hessian(loss, f, y), blocks)


def test_small_steps_are_gradient_flow() -> None:
    model, time = full_model(), 3.0
    solution = SquaredError(model.train, model.outputs[:TRAIN], targets())
    flow = solution.flow([time])
    for rule, steps in (
        (Coefficients(time / 1e9, 0.0), 10**9),
        (Coefficients(time / 1e10, 0.0, 0.9), 10**9),
    ):
        path = solution.descent([Stretch(rule)], [steps])
        torch.testing.assert_close(path.train, flow.train, rtol=0, atol=1e-6)


def test_no_kernel_at_all_moves_nothing() -> None:
    kernel, start = torch.zeros(TRAIN, TRAIN, dtype=D), targets()
    solution = SquaredError(kernel, start, targets(2))
    times = [0.0, 1.0, 1e6, math.inf]
    for path in (
        solution.flow(times),
        solution.descent([Stretch(Coefficients(0.1, 0.0, 0.9))], times),
    ):
        assert torch.equal(path.train, start.expand_as(path.train))
        assert path.dual.isfinite().all()
        assert path.at(torch.zeros(OTHERS, TRAIN), start[:OTHERS]).isfinite().all()


def test_regularized_kernels() -> None:
    model = traced_model()
    mean, one = model.train.diagonal().mean(), torch.eye(TRAIN, dtype=D)
    torch.testing.assert_close(regularized(model.train, 0.1), model.train + 0.1 * mean * one)
    torch.testing.assert_close(regularized(model.train, 0.1, False), model.train + 0.1 * one)
    with pytest.raises(UserError, match="at least 0"):
        regularized(model.train, -1.0)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (torch.diag(torch.tensor([1.0, -0.1])), "none may be negative"),
        (torch.tensor([[1.0, 0.5], [0.4, 1.0]]), "not symmetric"),
        (torch.tensor([[1.0, math.nan], [math.nan, 1.0]]), "not finite"),
        (torch.ones(2, 3), r"shape \(2, 3\) is not that of the training examples"),
    ],
)
def test_what_is_no_kernel_is_refused(kernel: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Modes.of(kernel)


def test_targets_have_the_shape_of_outputs() -> None:
    with pytest.raises(UserError, match=r"outputs of shape \(3, 2\) and targets of shape \(3,\)"):
        SquaredError(torch.eye(3), torch.zeros(3, 2), torch.zeros(3))


def test_eigenvalues_that_are_rounding_are_zero() -> None:
    features = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, D):
        x = features.to(dtype)
        assert (Modes.of(x @ x.T).values > 0).sum() == 5


def test_rounding_is_that_of_the_format_in_which_a_kernel_was_given() -> None:
    kernel = torch.diag(torch.tensor([1.0, 1e-9]))
    assert Modes.of(kernel).values.tolist() == [0, 1]
    assert (Modes.of(kernel.double()).values > 0).all()


@pytest.mark.parametrize("factor", [1e-3, 50.0])
def test_time_is_in_units_of_the_slope(factor: float) -> None:
    """Also of modes that are rounding, which end where their outputs would be seen."""
    x = torch.randn(TRAIN, 5, generator=torch.Generator().manual_seed(1))
    modes, start = Modes.of(x @ x.T), targets(3)
    times = [0.5 / modes.floor, 3 / modes.floor]
    later = [time / factor for time in times]
    one = SquaredError(modes, start, targets(), slope=1.0).flow(times)
    other = SquaredError(modes, start, targets(), slope=factor).flow(later)
    torch.testing.assert_close(one.dual, other.dual, rtol=1e-10, atol=0)
    for time, scaled in zip(times, later, strict=True):
        torch.testing.assert_close(modes.gain(time, 1.0), modes.gain(scaled, factor))

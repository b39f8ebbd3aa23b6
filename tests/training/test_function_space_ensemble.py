"""Infinite ensembles and Gaussian processes: explicit features, samples, scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from torch import Tensor

from tests.training.linear_models import OTHERS, OUTPUTS, TRAIN, D, targets
from Training.discrete_laws import Coefficients
from Training.function_space import (
    EnsembleTrajectory,
    InfiniteEnsemble,
    SquaredError,
    Stretch,
    gp_posterior,
    regularized,
)
from Training.infinite.flow import flow
from Training.infinite.network import FunctionSpaceNetwork
from Training.losses import mean_squared_error
from Utils.errors import UserError

PARAMETERS = 9
RULES = {
    "sgd": Coefficients(0.3, 0.0),
    "heavy ball": Coefficients(0.3, 0.0, 0.9),
    "nesterov": Coefficients(0.1, 0.0, 0.9, nesterov=True),
}


def features(seed: int = 0) -> tuple[Tensor, Tensor]:
    """φ [N+E, P], and standard deviations [P] of the initial weights."""
    g = torch.Generator().manual_seed(seed)
    phi = torch.randn(TRAIN + OTHERS, PARAMETERS, generator=g, dtype=D)
    return phi, 0.5 + torch.rand(PARAMETERS, generator=g, dtype=D)


def kernels(seed: int = 0) -> tuple[Tensor, Tensor]:
    """The tangent kernel and the prior of random features, singular both."""
    phi, deviations = features(seed)
    return phi @ phi.T, (phi * deviations**2) @ phi.T


def everywhere(path: EnsembleTrajectory, tangent: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [T, E, C] and covariance [T, E, E], E all examples."""
    moved = path.at(tangent[:, :TRAIN], prior[:, :TRAIN], prior)
    train = path.train()
    own = moved.mean[:, :TRAIN], moved.covariance[:, :TRAIN, :TRAIN]
    torch.testing.assert_close(train.mean, own[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(train.covariance, own[1], rtol=0, atol=1e-10)
    torch.testing.assert_close(moved.variance, moved.covariance.diagonal(dim1=1, dim2=2))
    return moved.mean, moved.covariance


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_mean_and_covariance_are_those_of_trained_random_features(rule: Coefficients) -> None:
    """f_T = A θ_0 + a: torch trains the zero weights and every unit vector, which gives A."""
    phi, deviations = features()
    steps, y = 40, targets()[:, :1]
    starts = torch.cat([torch.zeros(1, PARAMETERS, dtype=D), torch.eye(PARAMETERS, dtype=D)])
    weights = torch.nn.Parameter(starts.T.clone())  # [P, 1 + P], trained side by side
    optimizer = torch.optim.SGD(
        [weights], rule.lr, rule.momentum, rule.dampening, nesterov=rule.nesterov
    )
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward((phi[:TRAIN] @ weights - y).square().mean(0).sum())
        optimizer.step()
    final = (phi @ weights).detach()
    linear = (final[:, 1:] - final[:, :1]) * deviations

    tangent, prior = kernels()
    ensemble = InfiniteEnsemble(tangent[:TRAIN, :TRAIN], prior[:TRAIN, :TRAIN], y)
    mean, covariance = everywhere(ensemble.descent([Stretch(rule)], [steps]), tangent, prior)
    torch.testing.assert_close(mean[0], final[:, :1], rtol=0, atol=1e-10)
    torch.testing.assert_close(covariance[0], linear @ linear.T, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("given", "slope"), [(None, 2 / (TRAIN * OUTPUTS)), (0.3, 0.3)])
def test_gradient_flow_is_lee_et_al_with_matrix_functions(
    given: float | None, slope: float
) -> None:
    """Their equations, written with expm and an inverse, for kernels that have one."""
    tangent, prior = kernels()
    tangent = tangent + 0.5 * torch.eye(len(tangent), dtype=D)
    y, n = targets(), slice(0, TRAIN)
    times = [0.0, 0.1, 3.0, math.inf]
    path = InfiniteEnsemble(tangent[n, n], prior[n, n], y, given).flow(times)
    moved = path.at(tangent[:, n], prior[:, n], prior)
    for k, t in enumerate(times):
        decay = torch.zeros_like(tangent[n, n])
        if t < math.inf:
            decay = torch.linalg.matrix_exp(-slope * t * tangent[n, n])
        weights = tangent[:, n] @ tangent[n, n].inverse() @ (torch.eye(TRAIN, dtype=D) - decay)
        mixed = weights @ prior[n]
        expected = prior + weights @ prior[n, n] @ weights.T - mixed - mixed.T
        torch.testing.assert_close(moved.mean[k], weights @ y, rtol=0, atol=1e-10)
        torch.testing.assert_close(moved.covariance[k], expected, rtol=0, atol=1e-10)


def test_samples_of_initial_outputs_train_to_the_ensemble() -> None:
    tangent, prior = kernels()
    samples, n = 40_000, slice(0, TRAIN)
    g = torch.Generator().manual_seed(5)
    phi, deviations = features()
    draws = phi * deviations @ torch.randn(PARAMETERS, samples, generator=g, dtype=D)
    y, rule = targets()[:, :1], Coefficients(0.3, 0.0, 0.9)
    single = SquaredError(tangent[n, n], draws[n], y.expand(-1, samples), slope=2 / TRAIN).descent(
        [Stretch(rule)], [7]
    )
    (ends,) = single.at(tangent[:, n], draws)
    path = InfiniteEnsemble(tangent[n, n], prior[n, n], y).descent([Stretch(rule)], [7])
    mean, covariance = everywhere(path, tangent, prior)
    error = float(covariance[0].diagonal().max()) * 5 * math.sqrt(2 / samples)
    torch.testing.assert_close(torch.cov(ends), covariance[0], rtol=0, atol=error)
    torch.testing.assert_close(ends.mean(1, keepdim=True), mean[0], rtol=0, atol=error)


@pytest.mark.parametrize("way", ["flow", "steps", "ensemble", "run"])
def test_rounding_of_a_singular_kernel_does_not_grow_with_time(way: str) -> None:
    """In float32, 9 weights and 12 examples: three modes are rounding, the rest least squares."""
    phi, _ = features()
    tangent, y = (phi @ phi.T).float(), targets()
    train, cross, time = tangent[:TRAIN, :TRAIN], tangent[TRAIN:, :TRAIN], 1e13
    if way == "run":
        network = FunctionSpaceNetwork(tangent[:, :TRAIN], OUTPUTS, mean_squared_error, y)
        optimizer = flow([network.dual], time, network)
        for _ in range(3):
            optimizer.zero_grad()
            outputs = network(torch.arange(TRAIN)[:, None])
            torch.autograd.backward(mean_squared_error(outputs.double(), y))
            optimizer.step()
        found = cross.double() @ network.dual.detach()
    elif way == "ensemble":
        spread = InfiniteEnsemble(train, train, y).flow([time])
        found = spread.at(cross, cross, tangent[TRAIN:, TRAIN:]).mean[0]
    else:
        solution = SquaredError(train, torch.zeros(TRAIN, OUTPUTS), y)
        rule = Coefficients(0.5 * solution.largest_lr(Coefficients(1.0, 0.0)), 0.0)
        path = solution.flow([time]) if way == "flow" else solution.descent([Stretch(rule)], [time])
        found = path.at(cross, torch.zeros(OTHERS, OUTPUTS))[0]
    weights = torch.linalg.lstsq(phi[:TRAIN], y).solution
    torch.testing.assert_close(found, phi[TRAIN:] @ weights, rtol=0, atol=1e-2)


def test_an_ensemble_of_readouts_ends_as_bayesian_inference() -> None:
    """If Θ = K (only the readout is trained), gradient flow samples the posterior."""
    _, prior = kernels()
    prior = prior + 0.1 * torch.eye(len(prior), dtype=D)
    n, y = slice(0, TRAIN), targets()
    path = InfiniteEnsemble(prior[n, n], prior[n, n], y).flow([math.inf])
    trained = path.at(prior[:, n], prior[:, n], prior)
    posterior = gp_posterior(prior[n, n], y, prior[:, n], prior)
    torch.testing.assert_close(trained.mean[0], posterior.mean, rtol=0, atol=1e-11)
    torch.testing.assert_close(trained.covariance[0], posterior.covariance, rtol=0, atol=1e-11)


@pytest.mark.parametrize("noise", [1e-8, 0.3])
def test_inference_is_that_of_scikit_learn(noise: float) -> None:
    x = np.random.default_rng(0).normal(size=(TRAIN + OTHERS, 3))
    process = GaussianProcessRegressor(RBF(1.5), alpha=noise, optimizer=None)
    mean, covariance = process.fit(x[:TRAIN], targets()).predict(x[TRAIN:], return_cov=True)
    kernel, n = torch.from_numpy(RBF(1.5)(x)), slice(0, TRAIN)
    cross, prior = kernel[TRAIN:, n], kernel[TRAIN:, TRAIN:]
    posterior = gp_posterior(kernel[n, n], targets(), cross, prior, noise)
    np.testing.assert_allclose(posterior.mean.numpy(), mean, atol=1e-8)
    np.testing.assert_allclose(posterior.covariance.numpy(), covariance[..., 0], atol=1e-8)


def test_inference_without_noise_from_a_singular_kernel_is_least_squares() -> None:
    phi, _ = features()
    tangent, n = phi @ phi.T, slice(0, TRAIN)
    posterior = gp_posterior(tangent[n, n], targets(), tangent[TRAIN:, n], tangent[TRAIN:, TRAIN:])
    weights = torch.linalg.lstsq(phi[n], targets()).solution
    torch.testing.assert_close(posterior.mean, phi[TRAIN:] @ weights, rtol=0, atol=1e-11)
    assert posterior.variance.abs().max() < 1e-11  # 9 weights, 12 examples: nothing is unknown


def test_a_relative_regulariser_is_noise_in_units_of_the_diagonal() -> None:
    tangent, prior = kernels()
    n, amount = slice(0, TRAIN), 0.2
    noise = amount * float(tangent[n, n].diagonal().mean())
    one = gp_posterior(regularized(tangent[n, n], amount), targets(), tangent[:, n], prior)
    other = gp_posterior(tangent[n, n], targets(), tangent[:, n], prior, noise)
    torch.testing.assert_close(one.mean, other.mean)
    torch.testing.assert_close(one.covariance, other.covariance)


def test_the_loss_is_the_projects() -> None:
    """One Euler step of the flow by autograd's slope of ``mse``."""
    tangent, prior = kernels()
    y = targets()
    f = torch.zeros_like(y, requires_grad=True)
    torch.autograd.backward(mean_squared_error(f, y))
    assert f.grad is not None
    n, time = slice(0, TRAIN), 1e-7
    path = InfiniteEnsemble(tangent[n, n], prior[n, n], y).flow([time])
    moved = path.train().mean[0] / time
    torch.testing.assert_close(moved, -tangent[n, n] @ f.grad, rtol=1e-5, atol=1e-7)


def test_decay_and_negative_noise_are_refused() -> None:
    tangent, prior = (kernel[:TRAIN, :TRAIN] for kernel in kernels())
    with pytest.raises(UserError, match="--wd 0"):
        InfiniteEnsemble(tangent, prior, targets()).descent([Stretch(Coefficients(0.1, 0.1))], [1])
    with pytest.raises(UserError, match="noise is -1"):
        gp_posterior(prior, targets(), prior, prior, noise=-1)

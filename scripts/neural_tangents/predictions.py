"""Golden predictions of training: what ``neural_tangents.predict`` says of a small problem.

Imported in the environment of requirements.txt only.
"""

import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scripts.neural_tangents.cases import ERF, RELU, dense
from scripts.neural_tangents.networks import infinite, nt

LAYERS = [dense(7), RELU, dense(9), ERF, dense(3)]
TIMES = (0.0, 0.5, 3.0, 40.0, 1000.0)
"""Steps at the learning rate given: continuous time t of neural-tangents."""

LEARNING_RATE = 0.7
MOMENTUM = 0.9
REGULARIZERS = {
    "none": {"diag_reg": 0.0},
    "relative": {"diag_reg": 1e-3},
    "absolute": {"diag_reg": 0.2, "diag_reg_absolute_scale": True},
}


def mean_squared(outputs: Any, targets: Any) -> Any:
    """Half the mean, over examples and outputs, of the squared error."""
    return 0.5 * jnp.mean((outputs - targets) ** 2)


def cross_entropy(outputs: Any, targets: Any) -> Any:
    """The mean, over examples *and outputs*, of -target · log softmax."""
    return -jnp.mean(jax.nn.log_softmax(outputs) * targets)


LOSSES = {"mse": mean_squared, "cross_entropy": cross_entropy}


def _problem() -> dict[str, Any]:
    """Inputs, targets and initial outputs: 7 training points, 4 test points, 3 outputs."""
    random = np.random.default_rng(7)
    shapes = {"x_train": (7, 5), "x_test": (4, 5), "f_train": (7, 3), "f_test": (4, 3)}
    problem: dict[str, Any] = {k: random.standard_normal(shape) for k, shape in shapes.items()}
    problem["y_mse"] = random.standard_normal((7, 3))
    problem["y_cross_entropy"] = np.eye(3)[random.integers(3, size=7)]
    return problem


def predictions() -> dict[str, Any]:
    """The problem, its kernels (train/train, test/train, test/test), and every prediction."""
    problem = _problem()
    _, _, kernel_fn = infinite(LAYERS)
    both = ("nngp", "ntk")
    train, test = problem["x_train"], problem["x_test"]
    found = {
        "train_train": kernel_fn(train, None, both),
        "test_train": kernel_fn(test, train, both),
        "test_test": kernel_fn(test, None, both),
    }
    meta = {
        "layers": LAYERS,
        "times": TIMES,
        "learning_rate": LEARNING_RATE,
        "momentum": MOMENTUM,
        "regularizers": REGULARIZERS,
    }
    arrays: dict[str, Any] = {"problem": json.dumps(meta), **problem}
    for place, kernels in found.items():
        arrays |= {f"{kind}/{place}": getattr(kernels, kind) for kind in both}
    arrays |= dict(_mse(problem, found))
    arrays |= dict(_ode(problem, found))
    arrays |= dict(_ensemble(problem, kernel_fn))
    arrays |= dict(_inference(problem, found))
    arrays |= dict(_rates(problem, found))
    return {name: np.asarray(array) for name, array in arrays.items()}


def _mse(problem: Any, kernels: Any) -> Iterator[tuple[str, Any]]:
    """``gradient_descent_mse``: [T, N, C] train and test outputs, and those at convergence."""
    start = (problem["f_train"], problem["f_test"], kernels["test_train"].ntk)
    for name, regularizer in REGULARIZERS.items():
        predict = nt.predict.gradient_descent_mse(
            kernels["train_train"].ntk, problem["y_mse"], LEARNING_RATE, **regularizer
        )
        for when, t in {"times": np.array(TIMES), "end": None}.items():
            outputs = predict(t, *start)
            yield from zip(
                (f"gradient_descent_mse/{name}/{when}/{part}" for part in ("train", "test")),
                outputs,
                strict=True,
            )


def _ode(problem: Any, kernels: Any) -> Iterator[tuple[str, Any]]:
    """``gradient_descent``: [T, N, C] by the ODE solver, with and without momentum."""
    start = (problem["f_train"], problem["f_test"], kernels["test_train"].ntk)
    for name, loss in LOSSES.items():
        for label, momentum in {"plain": None, "momentum": MOMENTUM}.items():
            predict = nt.predict.gradient_descent(
                loss, kernels["train_train"].ntk, problem[f"y_{name}"], LEARNING_RATE, momentum
            )
            train, test = predict(np.array(TIMES), *start)
            yield f"gradient_descent/{name}/{label}/train", train
            yield f"gradient_descent/{name}/{label}/test", test


def _ensemble(problem: Any, kernel_fn: Any) -> Iterator[tuple[str, Any]]:
    """``gradient_descent_mse_ensemble``: mean and covariance from random initial outputs."""
    predict = nt.predict.gradient_descent_mse_ensemble(
        kernel_fn, problem["x_train"], problem["y_mse"], LEARNING_RATE, diag_reg=1e-4
    )
    for place in ("train", "test"):
        for when, t in {"times": np.array(TIMES), "end": None}.items():
            x = problem[f"x_{place}"]  # the training set too: else without its regularizer
            found = predict(t, x, ("nngp", "ntk"), True)
            for kind in ("nngp", "ntk"):
                one = getattr(found, kind)
                yield f"gradient_descent_mse_ensemble/{kind}/{when}/{place}/mean", one.mean
                cov = one.covariance
                yield f"gradient_descent_mse_ensemble/{kind}/{when}/{place}/covariance", cov


def _inference(problem: Any, kernels: Any) -> Iterator[tuple[str, Any]]:
    """``gp_inference``: mean and covariance on the test set, of three Gaussian processes."""
    for name, regularizer in REGULARIZERS.items():
        predict = nt.predict.gp_inference(kernels["train_train"], problem["y_mse"], **regularizer)
        for kind in ("nngp", "ntk", "ntkgp"):
            test = kernels["test_test"].ntk if kind == "ntkgp" else kernels["test_test"].nngp
            found = predict(kind, kernels["test_train"], test)
            yield f"gp_inference/{name}/{kind}/mean", found.mean
            yield f"gp_inference/{name}/{kind}/covariance", found.covariance


def _rates(problem: Any, kernels: Any) -> Iterator[tuple[str, Any]]:
    """``max_learning_rate``, without and with momentum."""
    ntk = kernels["train_train"].ntk
    for label, momentum in {"plain": 0.0, "momentum": MOMENTUM}.items():
        rate = nt.predict.max_learning_rate(ntk, problem["y_mse"].size, momentum)
        yield f"max_learning_rate/{label}", rate

"""The golden arrays: that they are those of the cases, and right where something else says so."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from torch import Tensor
from torch.func import jacrev

from scripts.neural_tangents.cases import cases, inputs
from tests.neural_tangents import (
    Array,
    EmpiricalCase,
    KernelCase,
    arrays,
    described,
    empirical_cases,
    kernel_cases,
    predictions,
)

CASES = kernel_cases()
DEPTH = [case for case in CASES if case.group == "depth"]


def test_the_stored_cases_are_those_of_the_script() -> None:
    assert described("kernels", "cases") == cases()
    for name, array in inputs().items():
        np.testing.assert_array_equal(arrays("kernels")[f"inputs/{name}"], array)


def test_kernels_are_symmetric_and_covariances() -> None:
    for case in CASES:
        finite = np.isfinite(case.ntk).all() and np.isfinite(case.nngp).all()
        assert finite or "RectifiedMonomial" in case.name, case
        np.testing.assert_allclose(case.nngp, case.nngp.T, rtol=1e-9, err_msg=case.name)
        if finite:
            least = np.linalg.eigvalsh((case.nngp + case.nngp.T) / 2)[0]
            assert least > -1e-9 * np.trace(case.nngp), case


def relu(q: Array, scale: Array) -> tuple[Array, Array]:
    """E[φφ] and E[φ'φ'] of ReLU (Cho and Saul 2009), of covariances q and their bounds."""
    angle = np.arccos(np.clip(q / scale, -1, 1))
    slope = (np.pi - angle) / (2 * np.pi)
    return scale * np.sin(angle) / (2 * np.pi) + q * slope, slope


def erf(q: Array, scale: Array) -> tuple[Array, Array]:
    """E[φφ] and E[φ'φ'] of the error function (Williams 1997)."""
    variances = 1 + 2 * np.diag(q)
    bound = np.outer(variances, variances)
    return 2 / np.pi * np.arcsin(2 * q / bound**0.5), 4 / np.pi / np.sqrt(bound - 4 * q**2)


def recursion(case: KernelCase) -> tuple[Array, Array]:
    """NNGP and NTK of a fully connected network, from the textbook."""
    q = case.inputs @ case.inputs.T / case.inputs.shape[1]
    ntk = np.zeros_like(q)
    width = case.inputs.shape[1]
    for layer in case.layers:
        if layer["layer"] == "Dense":
            w, b = layer["W_std"] ** 2, (layer["b_std"] or 0.0) ** 2
            standard = layer["parameterization"] == "standard"
            own = width * q + (layer["b_std"] is not None) if standard else w * q + b
            q, ntk, width = w * q + b, own + w * ntk, layer["out_dim"]
        else:
            scale = np.sqrt(np.outer(np.diag(q), np.diag(q)))
            q, slope = {"Relu": relu, "Erf": erf}[layer["layer"]](q, scale)
            ntk = ntk * slope
    return q, ntk


@pytest.mark.parametrize("case", DEPTH, ids=str)
def test_fully_connected_kernels_follow_the_recursion(case: KernelCase) -> None:
    nngp, ntk = recursion(case)
    np.testing.assert_allclose(case.nngp, nngp, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(case.ntk, ntk, rtol=1e-6, atol=1e-9)


def layered(case: EmpiricalCase, weights: dict[str, Tensor], values: Tensor) -> Tensor:
    """The outputs of a finite network, from its description."""
    for number, layer in enumerate(case.layers):
        kind = layer["layer"]
        if kind in ("Dense", "Conv"):
            weight = weights[f"{number}.weight"]
            bias = weights.get(f"{number}.bias")
            if layer["parameterization"] == "ntk":
                weight = weight * layer["W_std"] / weight[0].numel() ** 0.5
                bias = None if bias is None else bias * layer["b_std"]
            if kind == "Dense":
                values = torch.nn.functional.linear(values, weight, bias)
            else:
                values = convolved(layer["padding"], values, weight, bias)
        elif kind == "GlobalAvgPool":
            values = values.mean((1, 2))
        else:
            maps: dict[str, Any] = {"Relu": torch.relu, "Erf": torch.erf}
            values = {**maps, "Flatten": lambda x: x.flatten(1)}[kind](values)
    return values


def convolved(padding: str, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 3x3 convolution of channels-last values."""
    edge, mode = (0, "constant") if padding == "VALID" else (1, "constant")
    mode = "circular" if padding == "CIRCULAR" else mode
    padded = torch.nn.functional.pad(values.moveaxis(-1, 1), (edge,) * 4, mode)
    return torch.nn.functional.conv2d(padded, weight, bias).moveaxis(1, -1)


@pytest.mark.parametrize("case", empirical_cases(), ids=lambda case: case.name)
def test_empirical_kernels_are_those_of_torchs_jacobians(case: EmpiricalCase) -> None:
    x = torch.from_numpy(case.inputs)
    outputs = layered(case, case.weights, x)
    np.testing.assert_allclose(case.outputs, outputs.numpy(), rtol=1e-10, atol=1e-12)
    jacobians = jacrev(lambda weights: layered(case, weights, x))(case.weights)
    j = torch.cat([part.flatten(2) for part in jacobians.values()], dim=2)
    full = torch.einsum("iap,jbp->ijab", j, j[:3])
    np.testing.assert_allclose(case.full, full.numpy(), rtol=1e-10, atol=1e-12)
    traced = torch.einsum("ijaa->ij", full) / full.shape[-1]
    np.testing.assert_allclose(case.traced, traced.numpy(), rtol=1e-10, atol=1e-12)
    step = torch.cat([(case.moved[k] - w).flatten() for k, w in case.weights.items()])
    np.testing.assert_allclose(case.linearized, (outputs + j @ step).numpy(), rtol=1e-9, atol=1e-11)


def test_gradient_descent_solves_the_linear_equation() -> None:
    problem, golden = predictions()
    start, target, ntk = golden["f_train"], golden["y_mse"], golden["ntk/train_train"]
    for number, t in enumerate(problem["times"]):
        decay = expm(-ntk * problem["learning_rate"] * t / target.size)
        expected = target + decay @ (start - target)
        closed = golden["gradient_descent_mse/none/times/train"][number]
        solved = golden["gradient_descent/mse/plain/train"][number]
        np.testing.assert_allclose(closed, expected, atol=1e-10)
        np.testing.assert_allclose(solved, expected, atol=1e-6)


def test_momentum_solves_the_second_order_equation() -> None:
    problem, golden = predictions()
    start, target, ntk = golden["f_train"], golden["y_mse"], golden["ntk/train_train"]
    root = problem["learning_rate"] ** 0.5
    zero, one = np.zeros_like(ntk), np.eye(len(ntk))
    flow = np.block([[zero, one], [-ntk / target.size, (problem["momentum"] - 1) / root * one]])
    for number, t in enumerate(problem["times"]):
        moved = expm(flow * root * t) @ np.concatenate([start - target, np.zeros_like(start)])
        solved = golden["gradient_descent/mse/momentum/train"][number]
        np.testing.assert_allclose(solved, target + moved[: len(ntk)], atol=1e-6)


def test_inference_and_convergence_solve_the_kernel_system() -> None:
    problem, golden = predictions()
    target = golden["y_mse"]
    for kind in ("nngp", "ntk"):
        kernel = golden[f"{kind}/train_train"]
        for name, given in problem["regularizers"].items():
            absolute = given.get("diag_reg_absolute_scale", False)
            scale = 1.0 if absolute else np.trace(kernel) / len(kernel)
            regular = kernel + given["diag_reg"] * scale * np.eye(len(kernel))
            mean = golden[f"{kind}/test_train"] @ np.linalg.solve(regular, target)
            stored = golden[f"gp_inference/{name}/{kind}/mean"]
            np.testing.assert_allclose(stored, mean, rtol=1e-8, atol=1e-10)
    last = np.linalg.eigvalsh(golden["ntk/train_train"])[-1]
    assert golden["max_learning_rate/plain"] == pytest.approx(2 * target.size / last)
    factor = 1 + problem["momentum"]
    assert golden["max_learning_rate/momentum"] == pytest.approx(2 * factor * target.size / last)

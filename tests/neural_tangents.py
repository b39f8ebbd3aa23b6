"""What neural-tangents computes, stored in ``golden/`` by ``scripts.neural_tangents.golden``.

Arrays are float64. Networks are lists of layers as ``scripts.neural_tangents.networks`` describes
them: mappings of neural-tangents' own names and arguments. Its limits, for whoever compares:

- NNGPs are right to about 1e-13 relative, generic NTKs too. Where |cos| = 1 (a point with itself,
  its copies and multiples) NTKs of ReLU's family are off by up to 1e-7, near that by up to 5e-9.
- Entries are NaN where neural-tangents gives NaN (the diagonal of ``RectifiedMonomial``).
- A SAME padding that cannot be even on both sides has its larger half at the end, as XLA's.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GOLDEN = Path(__file__).with_name("golden")

Array = NDArray[np.float64]
Layer = dict[str, Any]


@dataclass(frozen=True)
class KernelCase:
    """An infinite network, its inputs [N, …, channels] and its kernels [N, N].

    Inputs: 0 and 4 are generic, 1 equals 0, 2 is -0, 3 is 1.5 times 0, 5 (where it is there)
    differs from 4 by a thousandth.
    """

    name: str
    group: str
    layers: list[Layer]
    inputs: Array
    nngp: Array
    ntk: Array

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class EmpiricalCase:
    """A finite network with its weights, and what belongs to them.

    Args:
        name: of the network.
        layers: in the NTK parametrization an affine layer computes W_std/√fan_in Wx + b_std b,
            in the standard one Wx + b.
        inputs: [N, features] or, channels last, [N, height, width, channels].
        weights: ``NUMBER.weight`` and ``NUMBER.bias`` of the layer at that place, in torch's
            layouts; a layer after ``Flatten`` expects channels last.
        moved: weights at a distance.
        outputs: [N, C].
        full: kernel [N, 3, C, C] between the inputs and the first three of them.
        traced: the mean of its diagonal over outputs, [N, 3].
        nngp: the mean over outputs of the products of outputs, [N, 3].
        linearized: outputs at ``moved`` of the first-order expansion around ``weights``.
        second_order: of the second-order one.
    """

    name: str
    layers: list[Layer]
    inputs: Array
    weights: dict[str, Tensor]
    moved: dict[str, Tensor]
    outputs: Array
    full: Array
    traced: Array
    nngp: Array
    linearized: Array
    second_order: Array


@cache
def arrays(name: str) -> dict[str, Any]:
    """All arrays of ``kernels``, ``predictions`` or ``empirical``."""
    with np.load(GOLDEN / f"{name}.npz") as stored:
        return dict(stored)


def described(name: str, key: str) -> Any:
    """What a file says of itself in JSON."""
    return json.loads(str(arrays(name)[key]))


def kernel_cases() -> list[KernelCase]:
    """Every infinite network with its kernels."""
    stored = arrays("kernels")
    return [
        KernelCase(
            case["name"],
            case["group"],
            case["layers"],
            stored[f"inputs/{case['inputs']}"],
            *stored[f"kernels/{number:03}"],
        )
        for number, case in enumerate(described("kernels", "cases"))
    ]


def empirical_cases() -> list[EmpiricalCase]:
    """Every finite network with its kernels."""
    return [
        EmpiricalCase(
            network["name"],
            network["layers"],
            weights=_weights(f"{number}/weights/"),
            moved=_weights(f"{number}/moved/"),
            **{
                key: arrays("empirical")[f"{number}/{key.replace('_', ' ')}"]
                for key in (
                    *("inputs", "outputs", "full", "traced", "nngp"),
                    *("linearized", "second_order"),
                )
            },
        )
        for number, network in enumerate(described("empirical", "networks"))
    ]


def _weights(prefix: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): torch.from_numpy(array)
        for key, array in arrays("empirical").items()
        if key.startswith(prefix)
    }


def predictions() -> tuple[dict[str, Any], dict[str, Array]]:
    """A problem with its kernels, and every prediction of its training, by name.

    The first mapping holds ``layers``, ``times`` (steps), ``learning_rate``, ``momentum`` and
    ``regularizers``. The second ``x_train``, ``x_test``, initial outputs ``f_train``, ``f_test``,
    targets ``y_mse``, ``y_cross_entropy``; ``nngp/…`` and ``ntk/…`` with ``train_train``,
    ``test_train`` [test, train] and ``test_test``; and

    - ``gradient_descent_mse/REGULARIZER/{times,end}/{train,test}``: [T, N, C], at convergence
      [N, C]; gradient flow f' = -Θ(f - y)/(N C) at time learning rate · steps,
    - ``gradient_descent/{mse,cross_entropy}/{plain,momentum}/{train,test}``: [T, N, C] by an ODE
      solver to 1e-8; both losses are means over examples and outputs; with momentum
      q' = -∇ + (m - 1)/√lr q, f' = q at time √lr · steps,
    - ``gradient_descent_mse_ensemble/{nngp,ntk}/{times,end}/{train,test}/{mean,covariance}``, with
      a relative regularizer of 1e-4,
    - ``gp_inference/REGULARIZER/{nngp,ntk,ntkgp}/{mean,covariance}`` on the test set,
    - ``max_learning_rate/{plain,momentum}``.
    """
    return described("predictions", "problem"), arrays("predictions")

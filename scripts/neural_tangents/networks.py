"""Networks from their specifications: neural-tangents' layers, and finite ones in its best form.

A network is a list of layers, each a mapping of its name and arguments that JSON can hold::

    [{"layer": "Dense", "out_dim": 8, "W_std": 1.5}, {"layer": "Relu"}]

Names and arguments are those of ``neural_tangents.stax``. Branches that meet again are one layer,
``{"layer": "FanInSum", "branches": [[…], [], …]}`` (likewise ``FanInProd`` and ``FanInConcat``);
an empty branch is the identity. ``{"layer": "ElementwiseNumerical", "fn": "tanh", "deg": 25}``
names its function in ``FUNCTIONS``.

Imported in the environment of requirements.txt only.
"""

import sys
import types
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# its kernels of TensorFlow functions: the one module that would need TensorFlow
sys.modules["neural_tangents.experimental"] = types.ModuleType("neural_tangents.experimental")
nt = import_module("neural_tangents")
stax = nt.stax

Spec = Sequence[Mapping[str, Any]]
Function = Callable[..., Any]

FUNCTIONS: dict[str, Function] = {"tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid, "silu": jax.nn.silu}


def infinite(layers: Spec) -> Any:
    """``(init_fn, apply_fn, kernel_fn)`` of the layers in series."""
    return stax.serial(*[_layer(**layer) for layer in layers])


def _layer(layer: str, **arguments: Any) -> Any:
    if "branches" in arguments:
        branches = [infinite(b) if b else stax.Identity() for b in arguments.pop("branches")]
        join = getattr(stax, layer)(**arguments)
        return stax.serial(stax.FanOut(len(branches)), stax.parallel(*branches), join)
    if "fn" in arguments:
        arguments["fn"] = FUNCTIONS[arguments["fn"]]
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in arguments.items()}
    return getattr(stax, layer)(**given)


def parameters(arrays: Mapping[str, Any], dtype: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and running statistics of a finite network, from torch's layouts.

    Weights are turned to [in, out] and [height, width, in, out]: with torch's [out, in] and a
    transposition in the network, structured derivatives would fall back to full Jacobians.
    """
    axes = {2: (1, 0), 4: (2, 3, 1, 0)}
    weights: dict[str, Any] = {}
    statistics: dict[str, Any] = {}
    for name, array in arrays.items():
        kept = statistics if name.rpartition(".")[2].startswith("running_") else weights
        kept[name] = jnp.asarray(array.transpose(axes.get(array.ndim, range(array.ndim))), dtype)
    return weights, statistics


def finite(layers: Spec, statistics: Mapping[str, Any]) -> Function:
    """``f(parameters, inputs)`` of a finite network of ``benchmarks.rivals.networks``.

    Args:
        layers: with the prefix of each layer's parameters under ``at``.
        statistics: running means and variances of the normalisations.
    """

    def network(weights: Mapping[str, Any], inputs: Any, **unused: Any) -> Any:
        values = inputs
        for layer in layers:
            values = _OPERATIONS[layer["layer"]](layer, weights, statistics, values)
        return values

    return network


def _linear(layer: Any, weights: Any, statistics: Any, values: Any) -> Any:
    return values @ weights[layer["at"] + ".weight"] + weights[layer["at"] + ".bias"]


def _conv(layer: Any, weights: Any, statistics: Any, values: Any) -> Any:
    edge = (layer["padding"],) * 2
    stride = (layer["stride"],) * 2
    numbers = ("NHWC", "HWIO", "NHWC")
    kernel = weights[layer["at"] + ".weight"]
    values = lax.conv_general_dilated(
        values, kernel, stride, (edge, edge), dimension_numbers=numbers
    )
    bias = weights.get(layer["at"] + ".bias")
    return values if bias is None else values + bias


def _norm(layer: Any, weights: Any, statistics: Any, values: Any) -> Any:
    at = layer["at"]
    scale = lax.rsqrt(statistics[at + ".running_var"] + layer["eps"])
    normal = (values - statistics[at + ".running_mean"]) * scale
    return normal * weights[at + ".weight"] + weights[at + ".bias"]


def _sum(layer: Any, weights: Any, statistics: Any, values: Any) -> Any:
    return sum(finite(branch, statistics)(weights, values) for branch in layer["branches"])


_OPERATIONS: dict[str, Function] = {
    "linear": _linear,
    "conv": _conv,
    "norm": _norm,
    "sum": _sum,
    "relu": lambda layer, weights, statistics, values: jnp.maximum(values, 0),
    "pool": lambda layer, weights, statistics, values: values.mean((1, 2)),
}

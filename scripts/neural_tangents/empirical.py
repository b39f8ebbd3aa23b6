"""Golden empirical kernels of tiny networks, with their weights in torch's layouts.

Imported in the environment of requirements.txt only.
"""

import json
from typing import Any

import jax
import numpy as np

from scripts.neural_tangents.cases import ERF, FLATTEN, GLOBAL_AVERAGE, RELU, Layer, conv, dense
from scripts.neural_tangents.networks import infinite, nt

_PLAIN: dict[str, Any] = {"parametrization": "standard"}

NETWORKS: dict[str, tuple[str, list[Layer]]] = {
    "mlp": ("points", [dense(7, **_PLAIN), RELU, dense(6, **_PLAIN), ERF, dense(3, **_PLAIN)]),
    "mlp, ntk": ("points", [dense(7), RELU, dense(6), ERF, dense(3)]),
    "cnn": (
        "images",
        [
            conv(4, padding="VALID", **_PLAIN),
            RELU,
            conv(5, padding="CIRCULAR", **_PLAIN),
            ERF,
            GLOBAL_AVERAGE,
            dense(3, **_PLAIN),
        ],
    ),
    "cnn, ntk": ("images", [conv(4, b=None), RELU, FLATTEN, dense(3, b=None)]),
}
"""Inputs and layers of each network; ``standard`` layers compute plain affine maps."""

SHAPES = {"points": (4, 5), "images": (4, 5, 6, 2)}


def empirical() -> dict[str, Any]:
    """Per network: inputs, weights, outputs, kernels, and expansions around the weights.

    The full kernel is [N, M, C, C] between the four inputs and the first three, the traced one
    [N, M] the mean of its diagonal over the C outputs. Three implementations must agree.
    """
    arrays: dict[str, Any] = {}
    described = []
    for number, (name, (kind, layers)) in enumerate(NETWORKS.items()):
        random = np.random.default_rng(number)
        x = random.standard_normal(SHAPES[kind])
        init, apply, _ = infinite(layers)
        _, weights = init(jax.random.PRNGKey(number), x.shape)
        moved = jax.tree_util.tree_map(
            lambda w, random=random: w + 0.1 * random.standard_normal(w.shape), weights
        )
        described.append({"name": name, "inputs": kind, "layers": layers})
        at = f"{number}/"
        arrays |= {at + "inputs": x, at + "outputs": apply(weights, x)}
        arrays |= _torch_layout(at + "weights/", layers, weights)
        arrays |= _torch_layout(at + "moved/", layers, moved)
        arrays[at + "full"] = _agreed(apply, (), x, weights)
        arrays[at + "traced"] = _agreed(apply, (-1,), x, weights)
        arrays[at + "nngp"] = nt.empirical_nngp_fn(apply)(x, x[:3], weights)
        arrays[at + "linearized"] = nt.linearize(apply, weights)(moved, x)
        arrays[at + "second order"] = nt.taylor_expand(apply, weights, 2)(moved, x)
    return {"networks": json.dumps(described)} | {k: np.asarray(a) for k, a in arrays.items()}


def _agreed(apply: Any, trace_axes: tuple[int, ...], x: Any, weights: Any) -> Any:
    """The kernel by all three implementations, refused where they differ."""
    first, *others = (
        nt.empirical_ntk_fn(apply, trace_axes, implementation=i)(x, x[:3], weights)
        for i in (1, 2, 3)
    )
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-10, atol=1e-12)
    return first


def _torch_layout(at: str, layers: list[Layer], weights: Any) -> dict[str, Any]:
    """``LAYER.weight`` [out, in] or [out, in, height, width], and ``LAYER.bias`` [out]."""
    arrays = {}
    for number, (layer, of_layer) in enumerate(zip(layers, weights, strict=True)):
        if not of_layer:
            continue
        weight, bias = of_layer
        if layer["layer"] == "Conv":
            arrays[f"{at}{number}.weight"] = np.transpose(weight, (3, 2, 0, 1))
        else:
            arrays[f"{at}{number}.weight"] = np.transpose(weight)
        if bias is not None:
            arrays[f"{at}{number}.bias"] = np.ravel(bias)
    return arrays

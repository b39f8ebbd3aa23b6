"""What the golden arrays hold: inputs, and the networks whose kernels they are.

A case is a mapping ``{"name", "group", "inputs", "layers"}``: the key of its inputs in
``inputs()`` and a network as ``networks`` describes it. Needs numpy only.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

Layer = dict[str, Any]
Case = dict[str, Any]

PARAMETRIZATIONS = ("ntk", "standard")
BIASES = (0.3, None)
"""Standard deviations of biases, and their absence."""

WIDTHS = (7, 11, 9, 13, 8)
"""Of hidden layers: what the kernels of the standard parametrization depend on."""


def inputs() -> dict[str, NDArray[np.float64]]:
    """Points and their difficult companions, channels last.

    Of every array, 0 and 4 are generic, 1 equals 0, 2 is -0, 3 is 1.5 times 0, and 5 (where it
    is there) differs from 4 by a thousandth.
    """
    shapes = {
        "points": (6, 5),
        "images": (6, 5, 6, 3),
        "sequences": (6, 5, 4),
        "squares": (5, 8, 8, 3),
    }
    arrays = {}
    for number, (name, shape) in enumerate(shapes.items()):
        array = np.random.default_rng(number).standard_normal(shape)
        array[1:4] = np.multiply.outer([1, -1, 1.5], array[0])
        array[5:] = array[4:5] + 1e-3 * array[5:]
        arrays[name] = array
    return arrays


def cases() -> list[Case]:
    """Every case, in the order in which they are stored."""
    named = [*_depths(), *_activations(), *_convolutions(), *_heads(), *_branches()]
    named += [*_normalised(), *_attention(), *_nets(), *_others()]
    assert len({case["name"] for case in named}) == len(named)
    return named


def dense(
    width: int = 7, w: float = 1.4, b: float | None = 0.3, parametrization: str = "ntk", **more: Any
) -> Layer:
    """A fully connected layer."""
    return {"layer": "Dense", **_affine(width, w, b, parametrization), **more}


def conv(
    channels: int = 7,
    w: float = 1.4,
    b: float | None = 0.3,
    parametrization: str = "ntk",
    shape: Sequence[int] = (3, 3),
    strides: Sequence[int] = (1, 1),
    padding: str = "SAME",
) -> Layer:
    """A convolution."""
    affine = _affine(channels, w, b, parametrization)
    affine["out_chan"] = affine.pop("out_dim")
    window = {"filter_shape": list(shape), "strides": list(strides), "padding": padding}
    return {"layer": "Conv", **affine, **window}


def _affine(width: int, w: float, b: float | None, parametrization: str) -> Layer:
    return {"out_dim": width, "W_std": w, "b_std": b, "parameterization": parametrization}


def _case(group: str, name: str, inputs: str, *layers: Layer) -> Case:
    return {"name": f"{group}: {name}", "group": group, "inputs": inputs, "layers": list(layers)}


def _only(name: str, **arguments: Any) -> Layer:
    return {"layer": name, **arguments}


RELU, ERF, FLATTEN = _only("Relu"), _only("Erf"), _only("Flatten")
GLOBAL_AVERAGE = _only("GlobalAvgPool")
HEADS = {"flatten": FLATTEN, "global average": GLOBAL_AVERAGE}


def _affines() -> Iterator[tuple[str, dict[str, Any]]]:
    """Both parametrizations with and without biases."""
    for parametrization, b in product(PARAMETRIZATIONS, BIASES):
        label = f"{parametrization}, {'no bias' if b is None else 'bias'}"
        yield label, {"b": b, "parametrization": parametrization}


def _depths() -> Iterator[Case]:
    """Fully connected networks of zero to five hidden layers."""
    for depth, activation in product(range(6), (RELU, ERF)):
        if depth == 0 and activation is ERF:
            continue
        for label, affine in _affines():
            hidden = [(dense(width, **affine), activation) for width in WIDTHS[:depth]]
            layers = [layer for pair in hidden for layer in pair]
            name = f"{activation['layer']} {depth}, {label}" if depth else f"linear, {label}"
            yield _case("depth", name, "points", *layers, dense(3, **affine))


_ACTIVATIONS: list[Layer] = [
    RELU,
    _only("LeakyRelu", alpha=0.1),
    _only("LeakyRelu", alpha=-0.5),
    _only("Abs"),
    _only("ABRelu", a=-0.7, b=0.4),
    _only("ABRelu", a=2.0, b=0.0),
    ERF,
    _only("Erf", a=0.8, b=1.7, c=0.3),
    _only("Sigmoid_like"),
    _only("Gelu"),
    _only("Sin"),
    _only("Sin", a=1.3, b=0.7, c=0.4),
    _only("Cos"),
    _only("Cos", a=0.6, b=1.5, c=-0.8),
    _only("Rbf"),
    _only("Rbf", gamma=0.4),
    _only("Sign"),
    _only("Gaussian"),
    _only("Gaussian", a=1.2, b=-0.3),
    _only("Gabor"),
    _only("ExpNormalized"),
    _only("ExpNormalized", gamma=0.5, shift=-0.3),
    *(_only("Monomial", degree=degree) for degree in range(3)),
]

_GROWING: list[Layer] = [
    _only("Exp"),
    _only("Exp", a=0.5, b=-0.8),
    *(_only("Monomial", degree=degree) for degree in range(3, 6)),
    _only("Polynomial", coef=[0.5, 1.0]),
    _only("Polynomial", coef=[0.2, -1.0, 0.5, 0.3]),
]
"""Activations whose moments need smaller weights."""

_RECTIFIED: list[Layer] = [_only("RectifiedMonomial", degree=degree) for degree in range(6)]
"""Whose variances neural-tangents gives as NaN (rounding takes |cos| past 1), and so all of two
hidden layers; of one, what lies off the diagonal is left."""

_HERMITE: list[Layer] = [_only("Hermite", degree=degree) for degree in range(6)]
"""Defined for inputs of variance 1."""


def _activations() -> Iterator[Case]:
    """Every closed form, in one hidden layer (standard parametrization) and in two (NTK)."""
    for activation in (*_ACTIVATIONS, *_GROWING, *_HERMITE, *_RECTIFIED):
        affine: dict[str, Any] = {"w": 0.6 if activation in _GROWING else 1.4}
        before = [_only("LayerNorm")] if activation in _HERMITE else []
        arguments = [f"{k} = {v}" for k, v in activation.items() if k != "layer"]
        label = ", ".join([activation["layer"], *arguments])
        plain = {**affine, "b": None, "parametrization": "standard"}
        hidden = [dense(7, **plain), *before, activation]
        name = f"{label}; 1 hidden, standard, no bias"
        yield _case("activation", name, "points", *hidden, dense(3, **plain))
        hidden = [dense(7, **affine), *before, activation] * (1 if activation in _RECTIFIED else 2)
        name = f"{label}; {hidden.count(activation)} hidden, ntk, bias"
        yield _case("activation", name, "points", *hidden, dense(3, **affine))


def _convolutions() -> Iterator[Case]:
    """Paddings and strides, under both heads."""
    strides = [(1, 1), (2, 1), (1, 2), (2, 2)]
    paddings = ("SAME", "VALID", "CIRCULAR")
    for padding, stride, head in product(paddings, strides, HEADS):
        first = conv(7, padding=padding, strides=stride)
        rest = (RELU, conv(9, padding=padding, shape=(2, 2)), RELU, HEADS[head], dense(3))
        name = f"{padding} {stride}, {head}"
        yield _case("convolution", name, "images", first, *rest)
    for padding, head, (label, affine) in product(paddings, HEADS, _affines()):
        hidden = [conv(7, padding=padding, **affine), RELU]
        hidden += [conv(9, padding=padding, shape=(3, 2), **affine), RELU]
        name = f"{padding}, {head}, {label}"
        yield _case("convolution", name, "images", *hidden, HEADS[head], dense(3, **affine))
    for padding, head in product(paddings, HEADS):
        line: dict[str, Any] = {"shape": (3,), "strides": (1,), "padding": padding}
        layers = [conv(7, **line), ERF, conv(9, **line), ERF, HEADS[head], dense(3)]
        yield _case("convolution", f"one-dimensional {padding}, {head}", "sequences", *layers)
    for activation in [_only("LeakyRelu", alpha=0.1), _only("Abs"), ERF, _only("Gelu")]:
        hidden = [conv(7), activation, conv(9), activation]
        name = f"{activation['layer']}, global average"
        yield _case("convolution", name, "images", *hidden, GLOBAL_AVERAGE, dense(3))


def _heads() -> Iterator[Case]:
    """Pooling between convolutions and at the end."""
    for kind, padding, head in product(
        ("AvgPool", "SumPool"), ("VALID", "SAME", "CIRCULAR"), HEADS
    ):
        for shape, strides in [((2, 2), (2, 2)), ((3, 2), (1, 2)), ((2, 2), None)]:
            pool = _only(
                kind, window_shape=[*shape], strides=strides and [*strides], padding=padding
            )
            layers = [conv(7), RELU, pool, conv(9), RELU, HEADS[head], dense(3)]
            name = f"{kind} {padding}, window {shape}, strides {strides}, {head}"
            yield _case("pooling", name, "images", *layers)
    edges = _only("AvgPool", window_shape=[3, 3], padding="SAME", normalize_edges=True)
    layers = [conv(7), RELU, edges, conv(9), RELU, FLATTEN, dense(3)]
    yield _case("pooling", "AvgPool SAME, normalised edges, flatten", "images", *layers)
    for last in (*HEADS.values(), _only("GlobalSumPool")):
        for label, affine in _affines():
            layers = [conv(7, **affine), RELU, last, dense(3, **affine)]
            yield _case("pooling", f"{last['layer']}, {label}", "images", *layers)


def _join(*branches: Sequence[Layer], how: str = "FanInSum", **arguments: Any) -> Layer:
    return {"layer": how, **arguments, "branches": [[*branch] for branch in branches]}


def _branches() -> Iterator[Case]:
    """Residual networks, activation before the affine map."""
    for label, affine in _affines():
        block = _join([RELU, dense(7, **affine), RELU, dense(7, **affine)], [])
        layers = [dense(7, **affine), block, block, RELU, dense(3, **affine)]
        yield _case("residual", f"identity shortcut, {label}", "points", *layers)
        block = _join([ERF, dense(9, **affine)], [dense(9, **affine)])
        layers = [dense(7, **affine), block, ERF, dense(3, **affine)]
        yield _case("residual", f"projected shortcut, {label}", "points", *layers)
        for head in HEADS:
            block = _join([RELU, conv(7, **affine), RELU, conv(7, **affine)], [])
            layers = [conv(7, **affine), block, RELU, HEADS[head], dense(3, **affine)]
            yield _case("residual", f"convolutions, {head}, {label}", "images", *layers)


def _normalised() -> Iterator[Case]:
    """Layer normalisation, over channels alone and over positions too, and dropout."""
    for label, affine in _affines():
        layers = [dense(7, **affine), _only("LayerNorm"), RELU, dense(9, **affine)]
        layers += [_only("LayerNorm", eps=0.1), ERF, dense(3, **affine)]
        yield _case("LayerNorm", f"dense, {label}", "points", *layers)
    for axis, head in product([[3], [1, 2, 3], [1, 3]], HEADS):
        norm = _only("LayerNorm", axis=axis, eps=1e-3)
        layers = [conv(7), norm, RELU, conv(9), norm, RELU, HEADS[head], dense(3)]
        yield _case("LayerNorm", f"convolutions, axes {axis}, {head}", "images", *layers)
    for rate, mode in [(0.8, "train"), (0.5, "train"), (0.5, "test")]:
        drop = _only("Dropout", rate=rate, mode=mode)
        layers = [dense(7), RELU, drop, dense(9), ERF, drop, dense(3)]
        yield _case("Dropout", f"dense, keep {rate}, {mode}", "points", *layers)
        for head in HEADS:
            layers = [conv(7), RELU, drop, conv(9), RELU, HEADS[head], dense(3)]
            yield _case("Dropout", f"convolutions, keep {rate}, {mode}, {head}", "images", *layers)


def _attention() -> Iterator[Case]:
    """Self-attention whose limit has a closed form (Hron et al. 2020, arXiv:2006.10540)."""
    widths = {"n_chan_out": 7, "n_chan_key": 6, "n_chan_val": 5, "n_heads": 4}
    scales = {"W_key_std": 1.1, "W_query_std": 0.9, "W_value_std": 1.2, "W_out_std": 0.8}
    attention = _only("GlobalSelfAttention", **widths, **scales)
    kinds: dict[str, Layer] = {
        name: {"attention_mechanism": name} for name in ("SOFTMAX", "IDENTITY", "ABS", "RELU")
    }
    kinds["IDENTITY, scaled by the square root"] = {
        "attention_mechanism": "IDENTITY",
        "linear_scaling": False,
    }
    kinds["positions added"] = {"pos_emb_type": "SUM", "W_pos_emb_std": 0.7}
    kinds["positions concatenated"] = {"pos_emb_type": "CONCAT", "n_chan_pos_emb": 3}
    kinds["positions in values"] = {"pos_emb_type": "SUM", "val_pos_emb": True}
    for (name, given), b, head in product(kinds.items(), BIASES, HEADS):
        line = conv(7, shape=(3,), strides=(1,))
        layers = [line, RELU, {**attention, **given, "b_std": b}, RELU, HEADS[head], dense(3)]
        label = f"{name}, {'no bias' if b is None else 'bias'}, {head}"
        yield _case("attention", label, "sequences", *layers)
    for head in HEADS:
        layers = [conv(7), RELU, attention, RELU, HEADS[head], dense(3)]
        yield _case("attention", f"SOFTMAX on images, {head}", "images", *layers)


def _nets() -> Iterator[Case]:
    """Whole architectures."""
    pool = _only("AvgPool", window_shape=[2, 2], strides=[2, 2])
    for label, affine in _affines():
        hidden = [conv(7, **affine), RELU]
        layers = [*hidden, *hidden, pool, *hidden, pool, *hidden, pool, FLATTEN]
        yield _case("net", f"Myrtle-5, {label}", "squares", *layers, dense(3, **affine))
        layers = [conv(7, **affine)]
        for stride in (1, 2):
            entry = [RELU, conv(7, strides=(stride, stride), **affine), RELU, conv(7, **affine)]
            shortcut = [RELU, conv(7, strides=(stride, stride), **affine)]
            layers += [_join(entry, shortcut), _join([RELU, conv(7, **affine)], [])]
        head = [RELU, GLOBAL_AVERAGE, dense(3, **affine)]
        yield _case("net", f"pre-activation residual, {label}", "squares", *layers, *head)


def _others() -> Iterator[Case]:
    """Layers of neural-tangents beyond the common ones."""
    branches = ([dense(7), RELU], [dense(9), ERF])
    for how, arguments in [("FanInConcat", {"axis": -1}), ("FanInProd", {})]:
        widths = branches if how == "FanInConcat" else ([dense(7), RELU], [dense(7), ERF])
        joined = _join(*widths, how=how, **arguments)
        yield _case("other", f"{how} of ReLU and erf", "points", joined, dense(3))
    local = {**conv(7), "layer": "ConvLocal"}
    for head in HEADS:
        layers = [local, RELU, {**local, "out_chan": 9}, RELU, HEADS[head], dense(3)]
        yield _case("other", f"ConvLocal, {head}", "images", *layers)
        turned = {**conv(9, strides=(2, 2)), "layer": "ConvTranspose"}
        layers = [conv(7), RELU, turned, RELU, HEADS[head], dense(3)]
        yield _case("other", f"ConvTranspose, {head}", "images", *layers)
    names = {"points": _only("Identity"), "images": GLOBAL_AVERAGE}
    for key, layer in names.items():
        yield _case("other", f"{layer['layer']} of the inputs", key, layer, dense(3))

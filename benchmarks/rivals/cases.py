"""What is timed beside neural-tangents: empirical and analytic kernels, by name."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.rivals.networks import NETWORKS, Finite, Layer

IMPLEMENTATIONS = ("Jacobian contraction", "NTK-vector products", "structured derivatives")
"""neural-tangents' ways to an empirical kernel (Novak et al. 2022, arXiv:2206.08720)."""


@dataclass(frozen=True)
class Empirical:
    """The empirical kernel of a finite network.

    Args:
        network: key of ``NETWORKS``.
        examples: number N of inputs.
        traced: whether the mean over logits [N, N], or all [N, N, C, C].
        dtype: ``float32`` or ``float64``.
        implementations: those of the rival that are timed.
    """

    network: str
    examples: int
    traced: bool = False
    dtype: str = "float32"
    implementations: tuple[str, ...] = IMPLEMENTATIONS

    @property
    def name(self) -> str:
        return f"{self.network}, {self.examples}, {_form(self.traced)}, {self.dtype}"

    def inputs(self) -> NDArray[np.float64]:
        """Standard normal inputs, images channels first."""
        _, shape = NETWORKS[self.network]
        return np.random.default_rng(0).standard_normal((self.examples, *shape))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Inputs and the state dict of ``Finite``."""
        state = Finite(NETWORKS[self.network][0]).state_dict()
        kept = {k: v.numpy() for k, v in state.items() if not k.endswith("num_batches_tracked")}
        return {"inputs": self.inputs(), **kept}

    def tasks(self) -> Iterator[dict[str, Any]]:
        """What ``scripts.neural_tangents.timing`` is asked, per implementation."""
        layers, _ = NETWORKS[self.network]
        for way in self.implementations:
            what = {"kind": "empirical", "layers": layers, "traced": self.traced}
            yield {**what, "dtype": self.dtype, "implementation": way}


@dataclass(frozen=True)
class Analytic:
    """NNGP and NTK of an infinite network.

    Args:
        network: key of ``INFINITE``.
        shape: of the inputs, examples first, channels last.
        dtype: ``float32`` or ``float64``.
    """

    network: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def name(self) -> str:
        return f"{self.network}, {'x'.join(map(str, self.shape))}, {self.dtype}"

    def inputs(self) -> NDArray[np.float64]:
        """Standard normal inputs."""
        return np.random.default_rng(0).standard_normal(self.shape)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The inputs."""
        return {"inputs": self.inputs()}

    def tasks(self) -> Iterator[dict[str, Any]]:
        """What ``scripts.neural_tangents.timing`` is asked."""
        what = {"kind": "analytic", "layers": INFINITE[self.network]}
        yield {**what, "dtype": self.dtype, "implementation": "analytic"}


Case = Empirical | Analytic


def _form(traced: bool) -> str:
    return "traced" if traced else "full"


def _infinite(layer: str, **arguments: Any) -> Layer:
    return {"layer": layer, **arguments}


_B = 0.1
_RELU_DENSE = _infinite("Dense", out_dim=1, W_std=2**0.5, b_std=_B)
_WIDE_DENSE = _infinite("Dense", out_dim=1, W_std=1.5, b_std=_B)
_CONV = _infinite("Conv", out_chan=1, filter_shape=[3, 3], padding="SAME", W_std=2**0.5, b_std=_B)
_RELU = _infinite("Relu")
_TANH = _infinite("ElementwiseNumerical", fn="tanh", deg=25)
_BLOCK = [_CONV, _RELU]
_HALVE = _infinite("AvgPool", window_shape=[2, 2], strides=[2, 2])
_GLOBAL = [_infinite("GlobalAvgPool"), _RELU_DENSE]

INFINITE: dict[str, list[Layer]] = {
    "relu3": [_RELU_DENSE, _RELU] * 3 + [_RELU_DENSE],
    "relu5": [_RELU_DENSE, _RELU] * 5 + [_RELU_DENSE],
    "erf3": [_WIDE_DENSE, _infinite("Erf")] * 3 + [_WIDE_DENSE],
    "tanh1": [_WIDE_DENSE, _TANH, _WIDE_DENSE],
    "flatten5": [*_BLOCK * 5, _infinite("Flatten"), _RELU_DENSE],
    "gap3": [*_BLOCK * 3, *_GLOBAL],
    "gap21": [*_BLOCK * 21, *_GLOBAL],
    "myrtle5": [*_BLOCK * 2, _HALVE, *_BLOCK, _HALVE, *_BLOCK, *_GLOBAL],
}
"""Layers as ``scripts.neural_tangents.networks`` describes them; all 3x3 SAME, ReLU.

Their names count hidden layers; ``gap`` and ``flatten`` say what follows the convolutions, and
``gap21`` is the network that neural-tangents' README times.
"""

_BEST = IMPLEMENTATIONS[2:]
_SMALL = (IMPLEMENTATIONS[0], IMPLEMENTATIONS[2])

EMPIRICAL = (
    Empirical("mlp", 64),
    Empirical("mlp", 256, implementations=_BEST),
    Empirical("mlp", 256, traced=True, implementations=_BEST),
    Empirical("mlp", 128, dtype="float64", implementations=_BEST),
    Empirical("cnn", 64, implementations=_SMALL),
    Empirical("cnn", 64, traced=True, implementations=_SMALL),
    Empirical("cnn", 16, dtype="float64", implementations=_BEST),
    Empirical("resnet18", 32, implementations=_SMALL),
    Empirical("resnet18", 32, traced=True, implementations=_SMALL),
    Empirical("resnet18", 6, dtype="float64", implementations=_BEST),
)
"""Structured derivatives, the fastest or nearly, everywhere; the others where they take seconds.

Jacobian contraction needs 30 GB for 256 points of the MLP, and in float64, whose convolutions XLA
does slowly, 80 times the fastest one's time for the CNN; NTK-vector products 3 GB for 64 images.
"""

ANALYTIC = (
    *(
        Analytic(network, (1000, d), dtype)
        for dtype in ("float32", "float64")
        for network in ("relu3", "relu5", "erf3")
        for d in (784, 3072)
    ),
    *(
        Analytic(network, shape, dtype)
        for network, shape in (
            ("flatten5", (50, 32, 32, 3)),
            ("gap3", (8, 16, 16, 3)),
            ("gap3", (4, 32, 32, 3)),
            ("myrtle5", (8, 16, 16, 3)),
            ("myrtle5", (4, 32, 32, 3)),
        )
        for dtype in ("float32", "float64")
    ),
    Analytic("gap21", (2, 32, 32, 3), "float64"),
    Analytic("tanh1", (1000, 784), "float64"),
)

CASES: tuple[Case, ...] = (*EMPIRICAL, *ANALYTIC)

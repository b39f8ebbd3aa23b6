"""The units of every layer: what one filter or neuron consists of, from the parameters' shapes.

The first axis of a weight counts the units of its layer, filters of a convolution or neurons of
a linear layer; a vector of its module with one entry for each of them belongs to it, too. A
module without weights of several axes, such as a normalisation, has one unit for each entry of
its vectors. Names decide nothing but which parameters are of one module.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class UnitLayer:
    """Parameters that have the same units.

    Attributes:
        name: of their module, or of the first of them where the module has several layers.
        parameters: their names; a weight of several axes comes first.
        connects: whether there is such a weight, as in a convolution or linear layer.
    """

    name: str
    parameters: tuple[str, ...]
    connects: bool


def unit_layers(shapes: Mapping[str, tuple[int, ...]]) -> list[UnitLayer]:
    """The layers of a network; every parameter is in one of them.

    Where a module has several weights that a vector fits, or none, the vector is a layer.

    Args:
        shapes: of all parameters by name, in the network's order.
    """
    layers = []
    for module, names in groupby(shapes, lambda name: name.rpartition(".")[0]):
        groups = list(_groups({name: shapes[name] for name in names}))
        for group in groups:
            name = module if module and len(groups) == 1 else group[0]
            layers.append(UnitLayer(name, group, len(shapes[group[0]]) > 1))
    return layers


def _groups(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, ...]]:
    """The parameters of one module, put together if they have the same units."""
    vectors = {name: shape for name, shape in shapes.items() if len(shape) == 1}
    weights = {name: shape for name, shape in shapes.items() if name not in vectors}
    if not weights:
        for length in dict.fromkeys(vectors.values()):
            yield tuple(name for name in vectors if vectors[name] == length)
        return
    fits = {v: [w for w in weights if weights[w][:1] == vectors[v]] for v in vectors}
    for weight in weights:
        yield (weight, *(vector for vector in vectors if fits[vector] == [weight]))
    yield from ((vector,) for vector in vectors if len(fits[vector]) != 1)


def sums_by_unit(x: Tensor) -> NDArray[np.float64]:
    """[units] the sums of a parameter-shaped tensor over all axes but the first, in float64."""
    rows = x.reshape(x.shape[0] if x.dim() else 1, -1)
    sums: NDArray[np.float64] = rows.double().sum(1).numpy()
    return sums

"""Single weights, as they are."""

import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from Metrics.features import StepFeatures
from Metrics.metric import Arrays, Context, Curves


class Network(Curves):
    """A random subset of each parameter's entries, the same ones at every step."""

    @property
    def settings(self) -> Mapping[str, int | str]:
        return {"subset": self.context.config.subset}

    def rows(self, features: StepFeatures) -> Arrays:
        return {
            f"empirical/{name}": chosen_entries(features.parameter(name), name, self.context)
            for name in features.parameters
        }


def chosen_entries(x: Tensor, name: str, context: Context) -> NDArray[np.float64]:
    """Entries of a parameter-shaped tensor, always those that the run's seed chooses.

    Args:
        x: the tensor.
        name: the parameter's, on which the choice depends.
        context: of the run; ``--subset`` says how many, 0 meaning all.
    """
    flat, subset = x.reshape(-1), context.config.subset
    if 0 < subset < len(flat):
        stream = np.random.default_rng([context.seed, zlib.crc32(name.encode())])
        flat = flat[np.sort(stream.choice(len(flat), subset, replace=False))]
    entries: NDArray[np.float64] = flat.double().numpy()
    return entries

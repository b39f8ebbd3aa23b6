"""Single weights, as they are."""

import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from Metrics.features import StepFeatures
from Metrics.metric import Arrays, Curves


class Network(Curves):
    """A random subset of each parameter's entries, the same ones at every step."""

    @property
    def settings(self) -> Mapping[str, int | str]:
        return {"subset": self.context.config.subset}

    def rows(self, features: StepFeatures) -> Arrays:
        return {
            f"empirical/{name}": self._chosen(features, name, shape)
            for name, shape in features.parameters.items()
        }

    def _chosen(
        self, features: StepFeatures, name: str, shape: tuple[int, ...]
    ) -> NDArray[np.float64]:
        size, subset = int(np.prod(shape)), self.context.config.subset
        stream = np.random.default_rng([self.context.seed, zlib.crc32(name.encode())])
        places = np.sort(stream.choice(size, min(size, subset), replace=False))
        flat = features.parameter(name).reshape(-1)
        entries: NDArray[np.float64] = flat[places].double().numpy()
        return entries

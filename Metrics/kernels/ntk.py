"""The tangent kernel of every checkpoint, and how far, fast and where to it moves.

Shape letters: T checkpoints, N examples, C outputs, k dimensions of the top eigenspace.
"""

from collections.abc import Mapping

import numpy as np

from Metrics.features import StepFeatures
from Metrics.kernels.at import WHOLE
from Metrics.kernels.measures import (
    Floats,
    centred,
    cosines,
    eigenvectors,
    kernel_distances,
    matrix,
    principal_angles,
    relative_norm,
    traced,
)
from Metrics.kernels.metric import KernelMetric
from Metrics.metric import Arrays, vector


class TangentKernels(KernelMetric):
    """Kernels, traces of the layers' parts, distances between kernels and their velocity."""

    @property
    def axes(self) -> Mapping[str, tuple[str, ...]]:
        pairs = ("example", "other example")
        outputs = ("output", "other output") if self.context.config.kernel == "full" else ()
        return {
            "kernel": pairs + outputs,
            "class": ("example",),
            "eigenspace": ("example", "dimension"),
            "distance": ("other step",),
            "cka": ("other step",),
            "angle": ("dimension",),
        }

    def rows(self, features: StepFeatures) -> Arrays:
        """The kernel [N, N] or [N, N, C, C], tr/N of every layer's part, the top eigenspace."""
        at, kernel = self.context.kernel_at, self.state(features).kernel
        parts = {WHOLE: kernel.traced, **kernel.layers}
        dimensions = min(at.targets.shape)
        return {
            **{
                f"empirical/{name}": vector(part.trace() / len(part))
                for name, part in parts.items()
            },
            f"kernel/{WHOLE}": kernel.total,
            f"class/{WHOLE}": at.classes,
            f"eigenspace/{WHOLE}": eigenvectors(kernel.traced)[1][:, :dimensions],
        }

    def derived(self, curves: Arrays) -> Arrays:
        """What follows from the kernels of all checkpoints together."""
        kernels, steps = curves[f"kernel/{WHOLE}"], curves["steps"]
        matrices = np.stack([matrix(kernel) for kernel in kernels])
        distances = kernel_distances(matrices)
        velocity = np.full(len(steps), np.nan)
        velocity[1:] = np.diagonal(distances, 1) / np.diff(steps)
        spaces = curves[f"eigenspace/{WHOLE}"]
        first: Floats = matrices[0]
        return {
            f"distance/{WHOLE}": distances,
            f"cka/{WHOLE}": cosines(np.stack([centred(traced(kernel)) for kernel in kernels])),
            f"change/{WHOLE}": np.array([relative_norm(m - first, first) for m in matrices]),
            f"velocity/{WHOLE}": velocity,
            f"angle/{WHOLE}": np.stack([principal_angles(spaces[0], space) for space in spaces]),
        }

"""How well the tangent kernel knows the targets: alignments of it and of its parts.

Shape letters: N examples, C outputs, L layers.
"""

from collections.abc import Mapping

import numpy as np

from Metrics.features import StepFeatures
from Metrics.kernels.at import WHOLE
from Metrics.kernels.measures import alignment, centred, centred_alignment, cka, cosines
from Metrics.kernels.metric import Compared
from Metrics.metric import Arrays, vector


class Alignment(Compared):
    """Kernel-target alignments of the kernel, of every layer's part and of every class."""

    @property
    def axes(self) -> Mapping[str, tuple[str, ...]]:
        return {"class": ("class",), "layers": ("layer", "other layer")}

    def rows(self, features: StepFeatures) -> Arrays:
        """Per layer its alignments, norm and CKA with the reference's; per network the rest."""
        at, state = self.context.kernel_at, self.state(features)
        targets = at.targets
        parts = {WHOLE: state.kernel.traced, **state.kernel.layers}
        before = {WHOLE: self.reference.kernel.traced, **self.reference.kernel.layers}
        rows: dict[str, np.ndarray] = {}
        for name, part in parts.items():
            rows[f"empirical/{name}"] = vector(alignment(part, targets))
            rows[f"centred/{name}"] = np.array(centred_alignment(part, targets))
            rows[f"norm/{name}"] = np.array(np.linalg.norm(part))
            rows[f"cka/{name}"] = np.array(cka(part, before[name]))
        whole, classes = parts[WHOLE], targets.T[:, :, None]
        rows[f"class/{WHOLE}"] = np.array([centred_alignment(whole, y) for y in classes])
        if layers := [centred(part) for part in state.kernel.layers.values()]:
            rows[f"layers/{WHOLE}"] = cosines(np.stack(layers))
        rows[f"loss/{WHOLE}"] = np.array(at.loss(state.logits))
        return rows

"""What each operation of a graph means for infinitely wide networks, or why it means nothing."""

from collections.abc import Mapping

from Models.infinite.walk.attention import ATTENTION, RANDOM
from Models.infinite.walk.elementwise import ELEMENTWISE
from Models.infinite.walk.spatial import SPATIAL
from Models.infinite.walk.values import Handler
from Models.infinite.walk.weighted import INSTANCE, WEIGHTED

_MAX = "the covariance of maxima over positions has no closed form; use average pooling"
_BATCH = (
    "batch normalisation couples the examples of a batch, so that there is no kernel of two "
    "examples; use layer normalisation or none"
)
REFUSED = {
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool2d"), _MAX),
    **dict.fromkeys(("max", "amax"), _MAX),
    **dict.fromkeys(("batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm"), _BATCH),
    "scaled_dot_product_attention": RANDOM,
    "instance_norm": INSTANCE,
    "prelu": "a nonlinearity with trained parameters has no fixed dual activation",
    "embedding": "an embedding has no inputs whose covariance could be taken; use one-hot inputs",
}
"""Operations that have no limit, with the reason."""

HANDLERS: Mapping[str, Handler] = {**ELEMENTWISE, **WEIGHTED, **SPATIAL, **ATTENTION}
"""By the operation's name."""

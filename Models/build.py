"""From a configuration to a module."""

from typing import TYPE_CHECKING

from Models.config import ModelConfig
from Models.registry import MODELS
from Utils.seeds import stream_seed

if TYPE_CHECKING:
    from torch import nn


def build_model(config: ModelConfig, input_shape: tuple[int, ...], num_classes: int) -> "nn.Module":
    """The model that ``config`` asks for, on the CPU, initialised from the stream ``init``.

    Args:
        config: which model, its options, number format and seed.
        input_shape: of one example, (channels, height, width).
        num_classes: number of outputs.

    Returns:
        A module that maps [N, *input_shape] to [N, num_classes]. The global random state is
        left as it was.

    Raises:
        UserError: the user's function is missing, fails, or returns something else.
    """
    import torch

    from Models.user import build_user_model

    # Drawn in float32 whatever --dtype is, so that both number formats start from one point.
    dtype: torch.dtype = getattr(torch, config.dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(config.seed, "init"))
        if config.is_user_model:
            return build_user_model(config.model, input_shape, num_classes, dtype)
        entry = MODELS[config.model]
        options = {name: getattr(config, name) for name in ("bias", *entry.options)}
        model: nn.Module = entry.load()(input_shape, num_classes, **options)
        return model.to(dtype)

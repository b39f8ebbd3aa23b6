"""From a configuration to a module."""

from typing import TYPE_CHECKING

from Models.config import ModelConfig
from Utils.seeds import stream_seed

if TYPE_CHECKING:
    from torch import nn


def build_model(
    config: ModelConfig, input_shape: tuple[int, ...], num_classes: int, weights: bool = True
) -> "nn.Module":
    """The model that ``config`` asks for, on the CPU, initialised from the stream ``init``.

    Args:
        config: which model, its options, number format, seed, and where its weights come from.
        input_shape: of one example: (channels, height, width), or (length, features).
        num_classes: number of outputs.
        weights: whether it has the initial weights that ``config`` asks for, a parametrization's
            or those of --pretrained or --restore-path, and not any.

    Returns:
        A module that maps [N, *input_shape] to [N, num_classes]. The global random state is
        left as it was.

    Raises:
        UserError: the user's function is missing, fails, or returns something else; the model
            cannot have these options or inputs; or the weights cannot be loaded.
    """
    import torch

    from Models.construct import construct

    if weights and config.is_parametrized:
        from Models.parametrization.network import build_parametrized

        model = build_parametrized(config, input_shape, num_classes)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(stream_seed(config.weights_seed, "init"))
            model = construct(config, input_shape, num_classes)
    if weights and (config.pretrained or config.restore_path):
        from Models.weights import load_pretrained, restore

        if config.restore_path:
            restore(model, config.restore_path)
        else:
            load_pretrained(model, config.entry.pretrained, config.model_dir)
    return model

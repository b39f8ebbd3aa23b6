"""A model's modules, with the numbers that they draw themselves."""

import inspect

import torch
from torch import nn

from Models.config import ModelConfig
from Models.user import build_user_model, call_user_function, load_function
from Utils.errors import UserError


def construct(config: ModelConfig, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The model that ``config`` asks for, initialised from torch's global random state.

    Args:
        config: which model, its options and number format.
        input_shape: of one example.
        num_classes: number of outputs.

    Raises:
        UserError: the user's function is missing, fails, or returns something else; or the model
            cannot have these options or inputs.
    """
    # Drawn in float32 whatever --dtype is, so that both number formats start from one point.
    dtype: torch.dtype = getattr(torch, config.dtype)
    _ = config.finite_width  # or there is nothing to construct
    if config.is_user_model:
        options = _users_options(config)
        return build_user_model(config.model, input_shape, num_classes, dtype, options)
    return _registered(config, input_shape, num_classes).to(dtype)


def skeleton(
    config: ModelConfig, input_shape: tuple[int, ...], num_classes: int, width: int | None
) -> nn.Module:
    """The model at another width, without numbers: on the meta device where it can be made there.

    Args:
        config: which model and its options.
        input_shape: of one example.
        num_classes: number of outputs.
        width: instead of the configuration's.

    Raises:
        UserError: as :func:`construct`.
    """
    config = config.model_copy(update={"width": width})
    if not config.is_user_model:
        with torch.device("meta"):
            return _registered(config, input_shape, num_classes)
    options = _users_options(config)
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return call_user_function(config.model, input_shape, num_classes, options)
        except UserError:  # it looks at numbers while it is made; it may be made with them
            return call_user_function(config.model, input_shape, num_classes, options)


def _registered(config: ModelConfig, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    entry = config.entry
    options = {name: getattr(config, name) for name in entry.options}
    model: nn.Module = entry.load()(input_shape, num_classes, **entry.settings, **options)
    return model


def _users_options(config: ModelConfig) -> dict[str, int]:
    width = config.finite_width
    if width is None:
        return {}
    parameters = inspect.signature(load_function(config.model)).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if "width" not in parameters and not takes_all:
        raise UserError(
            f"--model {config.model}: the function has no argument width, which --width is handed "
            "to; let it accept one"
        )
    return {"width": width}

"""Shapes of inputs, checked where a model reads some only."""

from Utils.errors import UserError


def image_shape(
    model: str, input_shape: tuple[int, ...], smallest: int = 1
) -> tuple[int, int, int]:
    """(channels, height, width) of the images that a model reads.

    Args:
        model: its name, for the message.
        input_shape: of one example.
        smallest: the least height and width.

    Raises:
        UserError: the examples are no images, or too small.
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < smallest:
        raise UserError(
            f"--model {model} reads images of at least {smallest}x{smallest} pixels, not inputs of "
            f"shape {shape_text(input_shape)}; choose another --model or --dataset"
        )
    channels, height, width = input_shape
    return channels, height, width


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape as users write it: 3x32x32."""
    return "x".join(map(str, shape))

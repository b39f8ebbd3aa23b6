"""mup's files of base shapes, ``.bsh``: what each dimension was at the base width.

A YAML mapping from the names of parameters to lists, whose entries are a dimension's size at the
base width, or ``null`` where it has nothing to do with the width (``save_base_shapes`` of the
library mup, https://github.com/microsoft/mup).
"""

import json
from collections.abc import Mapping

from Utils.errors import UserError

Shape = tuple[int, ...]


def check_base_shapes(inline: str) -> None:
    """Raise :class:`UserError` if a file's content is no mapping of names to base shapes."""
    for name, shape in json.loads(inline).items():
        if not isinstance(shape, list) or not all(
            size is None or (isinstance(size, int) and size > 0) for size in shape
        ):
            raise UserError(
                f"--base-shapes: {name} has {shape!r}, which is no list of sizes and nulls; give "
                "a file that mup's save_base_shapes wrote"
            )


def grown_dimensions(
    inline: str, shapes: Mapping[str, Shape]
) -> tuple[dict[str, tuple[bool, ...]], dict[str, float]]:
    """Which dimensions of each parameter grow with the width, and by how much they have grown.

    Args:
        inline: the file's content as JSON.
        shapes: of the model's parameters, by name.

    Returns:
        for each name a flag per dimension, and the factor n/N; that of its layer's weight, or of
        all others, where nothing grows.

    Raises:
        UserError: the file is of another model; or the dimensions of one parameter have grown by
            different factors, for which there is no single width.
    """
    content = json.loads(inline)
    prefix = "module."
    if content and all(name.startswith(prefix) for name in content):
        content = {name.removeprefix(prefix): shape for name, shape in content.items()}
    lacking, extra = shapes.keys() - content.keys(), content.keys() - shapes.keys()
    if lacking or extra:
        what = f"lacks {min(lacking)}" if lacking else f"has {min(extra)}, which the model lacks"
        raise UserError(f"--base-shapes {what}; give the file of this model")
    grows: dict[str, tuple[bool, ...]] = {}
    growth: dict[str, float] = {}
    for name, shape in shapes.items():
        base = content[name]
        if len(base) != len(shape):
            raise UserError(
                f"--base-shapes: {name} has {len(base)} dimensions there and {len(shape)} in the "
                "model; give the file of this model"
            )
        grows[name] = tuple(size is not None for size in base)
        ratios = {now / size for size, now in zip(base, shape, strict=True) if size is not None}
        if len(ratios) > 1:
            raise UserError(
                f"--base-shapes: {name} went from {base} to {list(shape)}, by different factors; "
                "there is one width only: let all its dimensions grow by the same factor"
            )
        if ratios:
            growth[name] = ratios.pop()
    widths = set(growth.values())
    everywhere = widths.pop() if len(widths) == 1 else 1.0
    for name in shapes.keys() - growth.keys():  # what does not grow itself may read what does
        growth[name] = growth.get(name.rpartition(".")[0] + ".weight", everywhere)
    return grows, growth

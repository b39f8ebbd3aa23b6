"""What describes a dataset before it is loaded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from Utils.registry import Entry

Options = Mapping[str, int | float]
"""Values of the flags that a dataset reads, by field name of :class:`Data.DataConfig`."""

Task = Literal["classification", "regression"]
"""What the targets are: class numbers [N] int64, or outputs [N, outputs] floating."""


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training image that keep its class.

    Attributes:
        pad: zeros added on every side before a random crop of the original size.
        flip: whether half of the images are mirrored left to right.
    """

    pad: int
    flip: bool


@dataclass(frozen=True, kw_only=True)
class DatasetEntry(Entry):
    """A dataset.

    The builder is called as ``builder(entry, source, **options)`` and returns a
    :class:`Data.dataset.Dataset`; ``source`` is the data folder, or the run's seed where the
    dataset is ``procedural``.

    Attributes:
        input_shape: of one example, (C, H, W) for images.
        num_classes: how many different targets there are; the outputs of a regression.
        mean: per channel (or one for all), over the training inputs divided by ``max_value``.
        std: likewise.
        max_value: the raw value that counts as 1.
        augmentation: of the training images in memory, ``None`` for none.
        task: what the targets are.
        procedural: whether the examples are drawn from the seed, not read from files.
        options: the flags that the dataset reads, by field name, with their default values.
        form: where shape and classes depend on options: maps these options to both.
    """

    input_shape: tuple[int, ...]
    num_classes: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    max_value: float = 255.0
    augmentation: Augmentation | None = None
    task: Task = "classification"
    procedural: bool = False
    options: Options = field(default_factory=dict)
    form: Callable[[Options], tuple[tuple[int, ...], int]] | None = None

    def configured(self, options: Options) -> "DatasetEntry":
        """This dataset under some options, the others at their defaults; nothing is loaded.

        Args:
            options: flags that the dataset reads, by field name.
        """
        if self.form is None:
            return self
        input_shape, num_classes = self.form({**self.options, **options})
        return replace(self, input_shape=input_shape, num_classes=num_classes)

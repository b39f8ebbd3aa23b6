"""What the tests of the data share."""

from typing import Any

from Data import load_dataset
from Data.dataset import Examples, Split


def in_memory(examples: Examples) -> Split:
    """The same examples, which must be in memory."""
    assert isinstance(examples, Split)
    return examples


def splits(*arguments: Any, **options: Any) -> tuple[Split, Split]:
    """Training and test examples of a dataset in memory, as ``load_dataset`` gives them."""
    dataset = load_dataset(*arguments, **options)
    return in_memory(dataset.train), in_memory(dataset.test)

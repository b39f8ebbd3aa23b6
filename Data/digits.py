"""The digits that scikit-learn carries: real data that needs no download."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from Data.dataset import Dataset, Split
from Data.entry import DatasetEntry

_TEST_EVERY = 5


def load(entry: DatasetEntry, data_dir: Path) -> Dataset:
    """1437 training and 360 test images; inputs [N, 1, 8, 8] uint8 from 0 to 16.

    Every fifth image in class order is a test image: stratified, and the same for every
    seed and version of scikit-learn.

    Args:
        entry: describes the dataset.
        data_dir: not used, the images are part of scikit-learn.
    """
    table = _table()
    images, labels = table[:, :-1], table[:, -1]
    is_test = np.zeros(len(labels), dtype=bool)
    is_test[np.argsort(labels, kind="stable")[::_TEST_EVERY]] = True
    inputs = torch.from_numpy(images.copy()).view(-1, *entry.input_shape)
    targets = torch.from_numpy(labels.astype(np.int64))
    test = torch.from_numpy(is_test)
    return Dataset(
        entry,
        train=Split(entry, inputs[~test], targets[~test]),
        test=Split(entry, inputs[test], targets[test]),
    )


@cache
def _table() -> NDArray[np.uint8]:
    """[1797, 64 + 1] what ``sklearn.datasets.load_digits`` reads: pixels, and in the end the label.

    Without importing scikit-learn, and once for all runs of a process: either takes longer than
    a small run.
    """
    spec: Any = find_spec("sklearn")
    path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    return np.loadtxt(path, np.uint8, delimiter=",")

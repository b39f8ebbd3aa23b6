"""The digits that scikit-learn carries: real data that needs no download."""

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

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
    images, labels = load_digits(return_X_y=True)
    is_test = np.zeros(len(labels), dtype=bool)
    is_test[np.argsort(labels, kind="stable")[::_TEST_EVERY]] = True
    inputs = torch.from_numpy(images.astype(np.uint8)).view(-1, *entry.input_shape)
    targets = torch.from_numpy(labels.astype(np.int64))
    test = torch.from_numpy(is_test)
    return Dataset(
        entry,
        train=Split(entry, inputs[~test], targets[~test]),
        test=Split(entry, inputs[test], targets[test]),
    )

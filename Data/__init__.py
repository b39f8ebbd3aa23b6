"""What is trained on: a registry of datasets, and batches of them.

Importing this room costs nothing; ``torch`` is imported when a dataset is loaded. What
works on tensors is imported from its module: :mod:`Data.dataset` (the splits),
:mod:`Data.batches` (training, evaluation and probe batches) and :mod:`Data.transforms`.
"""

from Data.config import DataConfig
from Data.entry import Augmentation, DatasetEntry
from Data.registry import DATASETS, DEFAULT_DATA_DIR, load_dataset

__all__ = [
    "DATASETS",
    "DEFAULT_DATA_DIR",
    "Augmentation",
    "DataConfig",
    "DatasetEntry",
    "load_dataset",
]

"""The datasets that exist, by the names that the user types."""

from pathlib import Path
from typing import TYPE_CHECKING

from Data.entry import Augmentation, DatasetEntry
from Utils.registry import Registry

if TYPE_CHECKING:
    from Data.dataset import Dataset

DEFAULT_DATA_DIR = "Data/store"
"""Where downloads live, relative to the folder that the stages are started in."""


_CIFAR_CITATION = "Krizhevsky (2009), Learning multiple layers of features from tiny images"

DATASETS: Registry[DatasetEntry] = Registry(
    "dataset",
    [
        DatasetEntry(
            "digits",
            "Data.digits:load",
            "8x8 grey handwritten digits, 10 classes, 1437 + 360; comes with scikit-learn",
            "Alpaydin and Kaynak (1998), Optical recognition of handwritten digits, UCI",
            input_shape=(1, 8, 8),
            num_classes=10,
            mean=(0.3058,),
            std=(0.3762,),
            max_value=16.0,
        ),
        DatasetEntry(
            "mnist",
            "Data.downloads:load_mnist",
            "28x28 grey handwritten digits, 10 classes, 60000 + 10000",
            "LeCun, Bottou, Bengio and Haffner (1998), Gradient-based learning applied to "
            "document recognition",
            input_shape=(1, 28, 28),
            num_classes=10,
            mean=(0.1307,),
            std=(0.3081,),
        ),
        DatasetEntry(
            "cifar10",
            "Data.downloads:load_cifar10",
            "32x32 colour photographs, 10 classes, 50000 + 10000",
            _CIFAR_CITATION,
            input_shape=(3, 32, 32),
            num_classes=10,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
            augmentation=Augmentation(pad=4, flip=True),
        ),
        DatasetEntry(
            "cifar100",
            "Data.downloads:load_cifar100",
            "32x32 colour photographs, 100 classes, 50000 + 10000",
            _CIFAR_CITATION,
            input_shape=(3, 32, 32),
            num_classes=100,
            mean=(0.5071, 0.4865, 0.4409),
            std=(0.2673, 0.2564, 0.2762),
            augmentation=Augmentation(pad=4, flip=True),
        ),
    ],
)


def load_dataset(name: str, data_dir: str | Path = DEFAULT_DATA_DIR) -> "Dataset":
    """The dataset called ``name``, whole in memory.

    Args:
        name: one of ``DATASETS.names``.
        data_dir: the folder that downloads are read from and written to.

    Raises:
        UserError: no such dataset, or its files are missing or damaged and cannot be
            downloaded; the message says which files belong where.
    """
    entry = DATASETS[name]
    dataset: Dataset = entry.load()(entry, Path(data_dir).expanduser())
    return dataset

"""The datasets that exist, by the names that the user types."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from Data.entry import Augmentation, DatasetEntry
from Utils.registry import Registry

if TYPE_CHECKING:
    from Data.dataset import Dataset

DEFAULT_DATA_DIR = "Data/store"
"""Where downloads live, relative to the folder that the stages are started in."""

_SIZES = {"train_size": 1000, "test_size": 1000}

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
        DatasetEntry(
            "tiny-imagenet",
            "Data.folders:load_tiny_imagenet",
            "64x64 colour photographs, 200 classes, 100000 + 10000; to be set up first",
            "Le and Yang (2015), Tiny ImageNet visual recognition challenge, CS231N, Stanford",
            input_shape=(3, 64, 64),
            num_classes=200,
            mean=(0.480, 0.448, 0.397),
            std=(0.276, 0.269, 0.282),
            augmentation=Augmentation(pad=4, flip=True),
            options={"workers": 4},
        ),
        DatasetEntry(
            "imagenet",
            "Data.folders:load_imagenet",
            "224x224 colour photographs, 1000 classes, streamed from image folders",
            "Russakovsky et al. (2015), ImageNet large scale visual recognition challenge, "
            "arXiv:1409.0575",
            input_shape=(3, 224, 224),
            num_classes=1000,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            options={"classes": 1000, "workers": 4},
            form=lambda o: ((3, 224, 224), int(o["classes"])),
        ),
        DatasetEntry(
            "modular-addition",
            "Data.procedural:modular_addition",
            "a + b modulo 113 of one-hot a and b: all pairs, 30% trained on",
            "Nanda et al. (2023), Progress measures for grokking via mechanistic "
            "interpretability, arXiv:2301.05217; Power et al. (2022), Grokking, arXiv:2201.02177",
            input_shape=(3, 114),
            num_classes=113,
            max_value=1.0,
            procedural=True,
            options={"modulus": 113, "train_fraction": 0.3},
            form=lambda o: ((3, int(o["modulus"]) + 1), int(o["modulus"])),
        ),
        DatasetEntry(
            "sparse-parity",
            "Data.procedural:sparse_parity",
            "parity of 3 of 40 bits, 2 classes, 1000 + 1000",
            "Barak et al. (2022), Hidden progress in deep learning: SGD learns parities near the "
            "computational limit, arXiv:2207.08799",
            input_shape=(40,),
            num_classes=2,
            max_value=1.0,
            procedural=True,
            options={"bits": 40, "parity_bits": 3, **_SIZES},
            form=lambda o: ((int(o["bits"]),), 2),
        ),
        DatasetEntry(
            "teacher-student",
            "Data.procedural:teacher_student",
            "regression on a random ReLU network of 4 neurons, 20 Gaussian inputs, 1000 + 1000",
            "Goldt et al. (2019), Dynamics of stochastic gradient descent for two-layer neural "
            "networks in the teacher-student setup, arXiv:1906.08632",
            input_shape=(20,),
            num_classes=1,
            max_value=1.0,
            task="regression",
            procedural=True,
            options={"dimension": 20, "teacher_width": 4, "noise": 0.0, **_SIZES},
            form=lambda o: ((int(o["dimension"]),), 1),
        ),
        DatasetEntry(
            "gaussian-mixture",
            "Data.procedural:gaussian_mixture",
            "Gaussian clouds around 4 random means in 20 dimensions, 1000 + 1000",
            "Bishop (2006), Pattern recognition and machine learning, section 4.2",
            input_shape=(20,),
            num_classes=4,
            max_value=1.0,
            procedural=True,
            options={"classes": 4, "dimension": 20, "separation": 3.0, **_SIZES},
            form=lambda o: ((int(o["dimension"]),), int(o["classes"])),
        ),
    ],
)


def load_dataset(
    name: str, data_dir: str | Path = DEFAULT_DATA_DIR, seed: int = 1, **options: Any
) -> "Dataset":
    """The dataset called ``name``: in memory, or streamed where it is too large.

    Args:
        name: one of ``DATASETS.names``.
        data_dir: the folder that downloads are read from and written to.
        seed: the run's ``--seed``; procedural data are drawn from its stream "content".
        options: flags that the dataset reads, by field name; the others have their defaults.

    Raises:
        UserError: no such dataset, or its files are missing or damaged and cannot be
            downloaded; the message says which files belong where.
    """
    entry = DATASETS[name].configured(options)
    source = seed if entry.procedural else Path(data_dir).expanduser()
    dataset: Dataset = entry.load()(entry, source, **{**entry.options, **options})
    return dataset

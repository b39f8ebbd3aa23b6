"""Data of the field that are drawn from the seed: known distributions, known best answers.

Everything comes from the stream "content": what has to be learned, the training and the test
examples each from a generator of their own. A smaller set is the beginning of a larger one,
and no size changes the task. Letters in shapes: N examples, d components, p modulus, M teacher
neurons, K classes.
"""

import zlib

import numpy as np
import torch
from numpy.typing import NDArray

from Data.dataset import Dataset, Split
from Data.entry import DatasetEntry
from Utils.errors import UserError
from Utils.seeds import stream_seed

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def generator_of(seed: int, part: str) -> np.random.Generator:
    """The random numbers of one part of a dataset's content.

    Args:
        seed: the run's ``--seed``.
        part: its name ("task", "train inputs").
    """
    return np.random.default_rng([stream_seed(seed, "content"), zlib.crc32(part.encode())])


def modular_addition(
    entry: DatasetEntry, seed: int, *, modulus: int, train_fraction: float
) -> Dataset:
    """All pairs (a, b) below p = ``modulus``, class (a + b) mod p; the split is random.

    Inputs [N, 3, p + 1] uint8: the tokens "a b =" as one-hot rows, "=" being token p
    (Nanda et al. 2023, section 3). A bias-free linear layer on a row is an embedding.

    Raises:
        UserError: one of the splits would be empty.
    """
    pairs = modulus**2
    size = round(train_fraction * pairs)
    if not 0 < size < pairs:
        raise UserError(
            f"--train-fraction {train_fraction}: {size} of the {pairs} sums modulo {modulus} "
            "would be trained on; choose another one"
        )
    order = generator_of(seed, "task").permutation(pairs)
    tokens = np.stack([order // modulus, order % modulus, np.full(pairs, modulus)], axis=1)
    one_hot = torch.from_numpy(np.eye(modulus + 1, dtype=np.uint8)[tokens])
    sums = torch.from_numpy(tokens[:, :2].sum(axis=1) % modulus)
    train, test = slice(size), slice(size, None)
    return Dataset(
        entry,
        Split(entry, one_hot[train], sums[train]),
        Split(entry, one_hot[test], sums[test]),
    )


def sparse_parity(
    entry: DatasetEntry, seed: int, *, bits: int, parity_bits: int, train_size: int, test_size: int
) -> Dataset:
    """Inputs uniform on {−1, 1}^bits, [N, bits] int8; the class is the parity of some of them.

    Class 1 where an odd number of the chosen bits is −1 (Barak et al. 2022).
    """
    chosen = parity_support(seed, bits, parity_bits)

    def split(part: str, size: int) -> Split:
        signs = generator_of(seed, f"{part} inputs").integers(0, 2, (size, bits)) * 2 - 1
        odd = (signs[:, chosen].prod(axis=1) < 0).astype(np.int64)
        return Split(entry, torch.from_numpy(signs.astype(np.int8)), torch.from_numpy(odd))

    return Dataset(entry, split("train", train_size), split("test", test_size))


def parity_support(seed: int, bits: int, parity_bits: int) -> Integers:
    """[parity_bits] which bits decide the class, ascending."""
    return np.sort(generator_of(seed, "task").choice(bits, parity_bits, replace=False))


def teacher_student(
    entry: DatasetEntry,
    seed: int,
    *,
    dimension: int,
    teacher_width: int,
    noise: float,
    train_size: int,
    test_size: int,
) -> Dataset:
    """Inputs x ~ N(0, 1_d), [N, d]; targets a · max(Wx, 0) of a fixed teacher, [N, 1] float64.

    Training targets have noise of standard deviation ``noise``, test targets have none, so that
    the test loss is the generalisation error (Goldt et al. 2019).
    """
    first, second = teacher_weights(seed, dimension, teacher_width)

    def split(part: str, size: int, noise: float) -> Split:
        inputs = generator_of(seed, f"{part} inputs").standard_normal((size, dimension))
        targets = np.maximum(inputs @ first.T, 0) @ second
        targets += noise * generator_of(seed, f"{part} noise").standard_normal(size)
        return Split(entry, torch.from_numpy(inputs), torch.from_numpy(targets)[:, None])

    return Dataset(entry, split("train", train_size, noise), split("test", test_size, 0.0))


def teacher_weights(seed: int, dimension: int, teacher_width: int) -> tuple[Floats, Floats]:
    """The teacher's W [M, d], entries of variance 1/d, and a [M], entries of variance 1/M."""
    rng = generator_of(seed, "task")
    first = rng.standard_normal((teacher_width, dimension)) / np.sqrt(dimension)
    return first, rng.standard_normal(teacher_width) / np.sqrt(teacher_width)


def gaussian_mixture(
    entry: DatasetEntry,
    seed: int,
    *,
    classes: int,
    dimension: int,
    separation: float,
    train_size: int,
    test_size: int,
) -> Dataset:
    """Inputs mean_class + N(0, 1_d), [N, d] float64; all classes equally likely."""
    means = mixture_means(seed, classes, dimension, separation)

    def split(part: str, size: int) -> Split:
        targets = generator_of(seed, f"{part} targets").integers(0, classes, size)
        noise = generator_of(seed, f"{part} inputs").standard_normal((size, dimension))
        return Split(entry, torch.from_numpy(means[targets] + noise), torch.from_numpy(targets))

    return Dataset(entry, split("train", train_size), split("test", test_size))


def mixture_means(seed: int, classes: int, dimension: int, separation: float) -> Floats:
    """[K, d] the means: random directions, of length ``separation``."""
    directions = generator_of(seed, "task").standard_normal((classes, dimension))
    means: Floats = separation * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    return means

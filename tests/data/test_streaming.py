"""Streamed batches: torchvision's transforms, exact resumption, any number of workers."""

import io
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision import datasets, transforms

from Data import DATASETS, load_dataset
from Data.batches import evaluation_batches, probe_batch, training_batches
from Data.dataset import Dataset
from Data.order import TrainingBatches
from Data.streaming import StreamedSplit, example_seed
from Utils.errors import UserError
from Utils.seeds import generator, stream_seed

ENTRY = DATASETS["imagenet"]
TRAINING = transforms.Compose(
    [
        transforms.RandomResizedCrop(224, scale=(0.2, 1.0)),
        transforms.RandomGrayscale(0.2),
        transforms.ColorJitter(0.4, 0.4, 0.4, 0.4),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(ENTRY.mean, ENTRY.std),
    ]
)
EVALUATION = transforms.Compose(
    [
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize(ENTRY.mean, ENTRY.std),
    ]
)

Batch = tuple[Tensor, Tensor]


def load(folder: Path, workers: int = 0) -> Dataset:
    return load_dataset("imagenet", folder, classes=3, workers=workers)


def take(batches: TrainingBatches, count: int) -> list[Batch]:
    return [batches.next() for _ in range(count)]


def assert_same(actual: list[Batch], expected: list[Batch]) -> None:
    for (x, y), (x_expected, y_expected) in zip(actual, expected, strict=True):
        assert torch.equal(x, x_expected)
        assert torch.equal(y, y_expected)


@pytest.mark.parametrize("augment", [True, False])
def test_training_batches_are_torchvisions_transforms_with_the_same_random_state(
    imagenet: Path, augment: bool
) -> None:
    folder = datasets.ImageFolder(imagenet / "imagenet_raw" / "train")
    batches = training_batches(load(imagenet).train, 4, seed=7, augment=augment)
    order_generator = generator(7, "data")
    global_state = torch.get_rng_state()
    for epoch in range(2):
        order = torch.randperm(11, generator=order_generator).tolist()
        for start in (0, 4, 8):
            numbers = order[start : start + 4]
            inputs, targets = batches.next()
            assert torch.equal(torch.get_rng_state(), global_state)
            for number, image, target in zip(numbers, inputs, targets.tolist(), strict=True):
                picture, expected_target = folder[number]
                assert target == expected_target
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(example_seed(stream_seed(7, "augment"), epoch, number))
                    assert torch.equal(image, (TRAINING if augment else EVALUATION)(picture))
    assert (batches.epoch, batches.position) == (2, 0)


def test_augmentation_differs_between_examples_epochs_and_seeds() -> None:
    seeds = [example_seed(s, e, n) for s in range(5) for e in range(10) for n in range(100)]
    assert len(set(seeds)) == 5000
    assert all(0 <= seed < 2**63 for seed in seeds)
    draws = torch.stack([torch.rand(2, generator=torch.Generator().manual_seed(s)) for s in seeds])
    assert (draws.mean(0) - 0.5).abs().max() < 4 / (12 * 5000) ** 0.5
    assert torch.corrcoef(draws.T)[0, 1].abs() < 4 / 5000**0.5


def test_resumption_is_exact_with_any_number_of_workers(
    imagenet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0})  # torch warns of few cores
    expected = take(training_batches(load(imagenet).train, 4, seed=3), 5)
    for before, after, steps in ((0, 2, 2), (2, 0, 1), (0, 0, 3)):
        batches = training_batches(load(imagenet, before).train, 4, seed=3)
        assert_same(take(batches, steps), expected[:steps])
        file = io.BytesIO()
        torch.save(batches.state_dict(), file)
        file.seek(0)
        resumed = training_batches(load(imagenet, after).train, 4, seed=99)
        take(resumed, 1)
        resumed.load_state_dict(torch.load(file, weights_only=True))
        assert (resumed.epoch, resumed.position) == divmod(steps, 3)
        assert_same(take(resumed, 5 - steps), expected[steps:])


def test_what_was_prefetched_is_not_in_the_state(imagenet: Path) -> None:
    batches = training_batches(load(imagenet).train, 2, seed=0)
    first = batches.state_dict()
    expected = take(batches, 4)
    batches.load_state_dict(first)
    assert_same(take(batches, 4), expected)


def test_evaluation_is_torchvisions_pipeline_in_order(imagenet: Path) -> None:
    test = load(imagenet).test
    reference = list(datasets.ImageFolder(imagenet / "imagenet_raw" / "val", EVALUATION))
    batches = list(evaluation_batches(test.to("cpu"), 2, dtype=torch.float32))
    assert [len(targets) for _, targets in batches] == [2, 2, 1]
    inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert torch.equal(inputs, torch.stack([image for image, _ in reference]))
    assert targets.tolist() == [target for _, target in reference]


def test_the_probe_batch_is_fixed_and_of_the_test_split(imagenet: Path) -> None:
    dataset = load(imagenet)
    whole = next(evaluation_batches(dataset.test, 5, dtype=torch.float64))
    inputs, targets = probe_batch(dataset, 3, seed=5, dtype=torch.float64)
    index = torch.randperm(5, generator=generator(5, "probe"))[:3]
    assert torch.equal(inputs, whole[0][index])
    assert torch.equal(targets, whole[1][index])


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_images_end_the_run_in_one_line(imagenet: Path, workers: int) -> None:
    path = next((imagenet / "imagenet_raw" / "train").rglob("*.JPEG"))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError) as caught:
        take(training_batches(load(imagenet, workers).train, 4, seed=0), 3)
    assert str(caught.value).startswith(f"image {path} cannot be read (image file is truncated")
    assert "\n" not in str(caught.value)


def test_too_large_a_batch_is_refused_as_in_memory(imagenet: Path) -> None:
    with pytest.raises(UserError, match="--train-batch-size 12: larger than the 11 examples"):
        training_batches(load(imagenet).train, 12, seed=0, drop_last=True)


def test_targets_must_be_classes_of_the_entry(imagenet: Path) -> None:
    train = load(imagenet).train
    assert isinstance(train, StreamedSplit)
    with pytest.raises(ValueError, match="not class numbers from 0 to 2"):
        StreamedSplit(train.entry, train.pictures, train.targets + 1, 0)

"""Batches: order, exact resumption, augmentation, normalisation, evaluation and probing."""

import io
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import functional as TF

from Data import DATASETS, Augmentation
from Data.batches import Batches, evaluation_batches, next_of_each, probe_batch
from Data.dataset import Dataset, Split
from Data.transforms import Normalize, crop_and_flip, crop_windows, draw
from tests.data.helpers import in_memory, splits
from Utils.errors import UserError
from Utils.seeds import generator

ENTRY = replace(DATASETS["cifar10"], input_shape=(3, 8, 6))  # H ≠ W: a swapped axis shows

Batch = tuple[Tensor, Tensor]


def make_split(size: int = 23, seed: int = 0) -> Split:
    rng = torch.Generator().manual_seed(seed)
    inputs = torch.randint(256, (size, *ENTRY.input_shape), generator=rng, dtype=torch.uint8)
    return Split(ENTRY, inputs, torch.arange(size) % 10)


def numbered(size: int) -> Split:
    """Every example is recognised by its target, a number of its own."""
    entry = replace(ENTRY, num_classes=size)
    return Split(entry, make_split(size).inputs, torch.arange(size))


def take(batches: Batches, count: int) -> list[Batch]:
    return [batches.next() for _ in range(count)]


def assert_same(actual: list[Batch], expected: list[Batch]) -> None:
    assert len(actual) == len(expected)
    for (x, y), (x_expected, y_expected) in zip(actual, expected, strict=True):
        assert torch.equal(x, x_expected)
        assert torch.equal(y, y_expected)


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("splits", [1, 2])
def test_the_next_of_each_are_those_of_each_alone(augment: bool, splits: int) -> None:
    held = [make_split(seed=s) for s in range(splits)] * 2
    several, alone = (
        [Batches(split, 5, seed, augment=augment) for seed, split in enumerate(held)]
        for _ in range(2)
    )
    together = [next_of_each(several) for _ in range(7)]  # an epoch has five
    for place, batches in enumerate(alone):
        assert_same([(x[place], y[place]) for x, y in together], take(batches, 7))
    assert [each.epoch for each in several] == [1] * len(held)


def test_an_epoch_is_every_example_once() -> None:
    batches = Batches(numbered(23), batch_size=5, seed=0)
    assert batches.steps_per_epoch == 5
    orders = []
    for epoch in range(3):
        assert (batches.epoch, batches.position) == (epoch, 0)
        targets = [y for _, y in take(batches, 5)]
        assert [len(y) for y in targets] == [5, 5, 5, 5, 3]
        orders.append(torch.cat(targets).tolist())
    assert all(sorted(order) == list(range(23)) for order in orders)
    assert len(set(map(tuple, orders))) == 3


def test_drop_last_keeps_all_batches_whole() -> None:
    batches = Batches(numbered(23), batch_size=5, seed=0, drop_last=True)
    assert batches.steps_per_epoch == 4
    assert [len(y) for _, y in take(batches, 9)] == [5] * 9
    assert (batches.epoch, batches.position) == (2, 1)


def test_a_batch_may_be_larger_than_the_split() -> None:
    inputs, targets = Batches(numbered(4), batch_size=100, seed=0).next()
    assert inputs.shape == (4, 3, 8, 6)
    assert sorted(targets.tolist()) == [0, 1, 2, 3]
    with pytest.raises(UserError, match="--train-batch-size 100: larger than the 4 examples"):
        Batches(numbered(4), batch_size=100, seed=0, drop_last=True)


def test_the_seed_alone_decides() -> None:
    split = make_split()
    first = take(Batches(split, 4, seed=1), 14)
    torch.manual_seed(123)
    assert_same(take(Batches(split, 4, seed=1), 14), first)
    other, _ = Batches(split, 4, seed=2).next()
    assert not torch.equal(other, first[0][0])


def test_streams_do_not_disturb_each_other() -> None:
    split = numbered(23)
    augmented = Batches(split, 4, seed=0)
    plain = Batches(split, 4, seed=0, augment=False)
    global_state = torch.get_rng_state()
    for _ in range(14):
        (x, y), (x_plain, y_plain) = augmented.next(), plain.next()
        assert torch.equal(y, y_plain)
        assert not torch.equal(x, x_plain)
    assert torch.equal(torch.get_rng_state(), global_state)


@pytest.mark.parametrize("steps", [0, 1, 5, 6, 7, 12, 15])
@pytest.mark.parametrize("augment", [True, False])
def test_resumption_is_exact(steps: int, augment: bool) -> None:
    split = make_split()
    uninterrupted = Batches(split, 4, seed=3, augment=augment)
    take(uninterrupted, steps)
    file = io.BytesIO()
    torch.save(uninterrupted.state_dict(), file)
    expected = take(uninterrupted, 14)

    file.seek(0)
    resumed = Batches(split, 4, seed=99, augment=augment)
    take(resumed, 2)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert (resumed.epoch, resumed.position) == divmod(steps, 6)
    assert_same(take(resumed, 14), expected)
    assert (resumed.epoch, resumed.position) == (uninterrupted.epoch, uninterrupted.position)


def test_a_state_does_not_change_after_it_was_taken() -> None:
    batches = Batches(make_split(), 4, seed=0)
    take(batches, 2)
    state = batches.state_dict()
    expected = take(batches, 9)
    batches.load_state_dict(state)
    assert_same(take(batches, 9), expected)


@pytest.mark.parametrize(
    ("size", "batch_size", "drop_last"), [(23, 8, False), (22, 4, False), (23, 4, True)]
)
def test_a_state_of_other_batches_is_refused(size: int, batch_size: int, drop_last: bool) -> None:
    state = Batches(make_split(23), 4, seed=0).state_dict()
    other = Batches(make_split(size), batch_size, seed=0, drop_last=drop_last)
    with pytest.raises(UserError, match=r"it has 23 examples in batches of 4 \(6 per epoch\)"):
        other.load_state_dict(state)


def slow_reference(image: Tensor, pad: int, row: int, column: int, flip: int) -> Tensor:
    height, width = image.shape[-2:]
    crop: Tensor = TF.crop(TF.pad(image, [pad]), row, column, height, width)
    return crop.flip(-1) if flip else crop


@pytest.mark.parametrize(("pad", "flip"), [(4, True), (1, False), (0, True)])
def test_augmentation_equals_the_image_by_image_reference(pad: int, flip: bool) -> None:
    images = make_split(50).inputs
    rng = torch.Generator().manual_seed(0)
    index = torch.randperm(50, generator=rng)[:40]
    draws = draw(Augmentation(pad, flip), 40, rng)
    expected = [
        slow_reference(images[i], pad, *choice)
        for i, choice in zip(index.tolist(), draws.T.tolist(), strict=True)
    ]
    actual = crop_and_flip(crop_windows(images, pad), index, draws)
    assert actual.dtype == torch.uint8
    assert torch.equal(actual, torch.stack(expected))


def test_draws_cover_every_crop_and_flip_equally() -> None:
    rows, columns, flips = draw(Augmentation(4, True), 81_000, torch.Generator().manual_seed(0))
    counts = torch.bincount((flips * 9 + rows) * 9 + columns, minlength=162).double()
    assert counts.numel() == 162
    assert ((counts - 500).abs() < 5 * 500**0.5).all()
    assert draw(Augmentation(0, False), 100, torch.Generator()).abs().max() == 0


def test_training_batches_are_the_reference_pipeline() -> None:
    split = make_split()
    order = torch.randperm(len(split), generator=generator(7, "data"))[:10]
    draws = draw(Augmentation(4, True), 10, generator(7, "augment"))
    normalize = transforms.Normalize(ENTRY.mean, ENTRY.std)
    expected = [
        normalize(slow_reference(split.inputs[i], 4, *choice) / 255)
        for i, choice in zip(order.tolist(), draws.T.tolist(), strict=True)
    ]
    inputs, targets = Batches(split, 10, seed=7).next()
    assert torch.equal(inputs, torch.stack(expected))
    assert torch.equal(targets, split.targets[order])


def test_normalisation_is_torchvisions() -> None:
    split = make_split()
    reference = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(ENTRY.mean, ENTRY.std)]
    )
    expected = torch.stack([reference(TF.to_pil_image(image)) for image in split.inputs])
    assert torch.equal(Normalize(ENTRY, "cpu", torch.float32)(split.inputs), expected)
    exact = Normalize(ENTRY, "cpu", torch.float64)(split.inputs)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(exact, expected.double(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stored_images_are_never_changed(dtype: torch.dtype) -> None:
    raw = make_split()
    split = Split(ENTRY, raw.inputs.to(dtype), raw.targets)
    before = split.inputs.clone()
    take(Batches(split, 4, seed=0, dtype=dtype, augment=False), 6)
    list(evaluation_batches(split, 4, dtype=dtype))
    probe_batch(Dataset(ENTRY, split, split), 4, seed=0, dtype=dtype)
    assert torch.equal(split.inputs, before)


def test_evaluation_is_in_order_and_complete() -> None:
    split = make_split()
    batches = list(evaluation_batches(split, 10, dtype=torch.float64))
    assert [len(y) for _, y in batches] == [10, 10, 3]
    inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert torch.equal(inputs, Normalize(ENTRY, "cpu", torch.float64)(split.inputs))
    assert torch.equal(targets, split.targets)


def test_the_probe_batch_is_fixed_and_of_the_test_split() -> None:
    dataset = Dataset(ENTRY, make_split(50, seed=1), make_split(30, seed=2))
    inputs, targets = probe_batch(dataset, 8, seed=0)
    assert inputs.dtype == torch.float32
    assert_same([probe_batch(dataset, 8, seed=0)], [(inputs, targets)])
    larger, larger_targets = probe_batch(dataset, 12, seed=0)
    assert_same([(larger[:8], larger_targets[:8])], [(inputs, targets)])
    assert not torch.equal(probe_batch(dataset, 8, seed=1)[0], inputs)
    examples = Normalize(ENTRY, "cpu", torch.float32)(in_memory(dataset.test).inputs)
    sources = [(examples == x).flatten(1).all(1).nonzero().item() for x in inputs]
    assert sources == torch.randperm(30, generator=generator(0, "probe"))[:8].tolist()
    assert [int(dataset.test.targets[int(i)]) for i in sources] == targets.tolist()


def test_the_probe_batch_is_clipped_to_the_test_split() -> None:
    dataset = Dataset(ENTRY, make_split(50), numbered(30))
    inputs, targets = probe_batch(dataset, 1000, seed=0)
    assert inputs.shape == (30, 3, 8, 6)
    assert sorted(targets.tolist()) == list(range(30))


def test_digits_are_trained_on_without_augmentation() -> None:
    split, _ = splits("digits")
    assert_same(
        take(Batches(split, 128, seed=0), 24), take(Batches(split, 128, seed=0, augment=False), 24)
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_are_the_same_on_every_device() -> None:
    split = make_split()
    here, there = Batches(split, 4, seed=0), Batches(split, 4, seed=0, device="cuda")
    for (x, y), (x_there, y_there) in zip(take(here, 9), take(there, 9), strict=True):
        assert x_there.is_cuda
        torch.testing.assert_close(x_there.cpu(), x)
        assert torch.equal(y_there.cpu(), y)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_augmented_batches_do_not_wait_for_a_gpu() -> None:
    batches = Batches(make_split(), 4, seed=0, device="cuda")
    batches.next()
    torch.cuda.set_sync_debug_mode("error")
    try:
        take(batches, 30)
    finally:
        torch.cuda.set_sync_debug_mode("default")

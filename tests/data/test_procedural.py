"""Procedural data: labels recomputed by hand, distributions, best answers, independence."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from Data import DATASETS, load_dataset
from Data.batches import evaluation_batches, probe_batch, training_batches
from Data.dataset import Split
from Data.procedural import mixture_means, parity_support, teacher_weights
from tests.data.helpers import splits
from Utils.errors import UserError

SAMPLED = ["sparse-parity", "teacher-student", "gaussian-mixture"]


def equal(a: Split, b: Split) -> bool:
    return torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets)


def procedural(name: str, **options: Any) -> tuple[Split, Split]:
    return splits(name, **options)


class TestModularAddition:
    @pytest.mark.parametrize(("p", "fraction"), [(2, 0.5), (7, 0.3), (113, 0.3)])
    def test_all_pairs_once_with_their_sum(self, p: int, fraction: float) -> None:
        train, test = procedural("modular-addition", modulus=p, train_fraction=fraction)
        assert len(train) == round(fraction * p * p)
        seen: set[tuple[int, int]] = set()
        for split in (train, test):
            assert split.inputs.dtype == torch.uint8
            assert (split.inputs.sum(dim=2) == 1).all()
            a, b, equals = split.inputs.argmax(dim=2).T.tolist()
            assert set(equals) == {p}
            assert [(x + y) % p for x, y in zip(a, b, strict=True)] == split.targets.tolist()
            pairs = set(zip(a, b, strict=True))
            assert len(pairs) == len(split)
            assert not seen & pairs
            seen |= pairs
        assert seen == {(x, y) for x in range(p) for y in range(p)}

    def test_the_split_is_random(self) -> None:
        train, _ = procedural("modular-addition", modulus=31)
        a, b, _ = train.inputs.argmax(dim=2).double().T
        assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 4 / len(train) ** 0.5
        assert torch.bincount(train.targets, minlength=31).max() < 5 * len(train) / 31
        other, _ = procedural("modular-addition", modulus=31, seed=2)
        assert not torch.equal(other.targets, train.targets)

    @pytest.mark.parametrize("fraction", [0.01, 0.99])
    def test_an_empty_split_is_refused(self, fraction: float) -> None:
        with pytest.raises(UserError, match=f"--train-fraction {fraction}: . of the 9 sums"):
            load_dataset("modular-addition", modulus=3, train_fraction=fraction)


class TestSparseParity:
    @pytest.mark.parametrize(("n", "k"), [(40, 3), (5, 5), (1, 1)])
    def test_the_class_is_the_parity_of_the_chosen_bits(self, n: int, k: int) -> None:
        support = parity_support(1, n, k).tolist()
        assert len(set(support)) == k
        assert set(support) <= set(range(n))
        for split in procedural("sparse-parity", bits=n, parity_bits=k):
            assert set(split.inputs.flatten().tolist()) == {-1, 1}
            for signs, target in zip(split.inputs.tolist(), split.targets.tolist(), strict=True):
                assert sum(signs[i] == -1 for i in support) % 2 == target

    def test_bits_are_fair_and_fewer_than_all_chosen_bits_say_nothing(self) -> None:
        train, _ = procedural("sparse-parity", train_size=20_000)
        bits = train.inputs.double()
        signs = 1 - 2 * train.targets.double()
        limit = 5 / len(train) ** 0.5
        assert bits.mean(0).abs().max() < limit
        assert (bits * signs[:, None]).mean(0).abs().max() < limit
        assert signs.mean().abs() < limit

    def test_every_bit_may_be_chosen(self) -> None:
        chosen = [parity_support(seed, 6, 2).tolist() for seed in range(60)]
        assert {bit for bits in chosen for bit in bits} == set(range(6))


class TestTeacherStudent:
    @pytest.mark.parametrize(("d", "width"), [(20, 4), (3, 1)])
    def test_targets_are_the_teachers(self, d: int, width: int) -> None:
        first, second = teacher_weights(1, d, width)
        assert (first.shape, second.shape) == ((width, d), (width,))
        for split in procedural("teacher-student", dimension=d, teacher_width=width):
            for x, y in zip(split.inputs.numpy(), split.targets.numpy(), strict=True):
                hidden = [max(0.0, math.fsum(w * c for w, c in zip(row, x, strict=True)))
                          for row in first]  # fmt: skip
                expected = math.fsum(a * h for a, h in zip(second, hidden, strict=True))
                assert y.tolist() == [pytest.approx(expected, rel=1e-12, abs=1e-12)]

    def test_only_training_targets_have_noise(self) -> None:
        train, test = procedural("teacher-student", train_size=10_000)
        noisy, clean = procedural("teacher-student", train_size=10_000, noise=0.5)
        assert torch.equal(noisy.inputs, train.inputs)
        assert equal(clean, test)
        noise = (noisy.targets - train.targets).flatten()
        assert noise.mean().abs() < 4 * 0.5 / 100
        assert (noise.std() - 0.5).abs() < 4 * 0.5 / 20_000**0.5
        assert torch.corrcoef(torch.stack([noise, train.targets.flatten()]))[0, 1].abs() < 0.04

    def test_inputs_are_standard_normal(self) -> None:
        train, _ = procedural("teacher-student", dimension=5, train_size=40_000)
        assert train.inputs.mean(0).abs().max() < 5 / 200
        torch.testing.assert_close(
            torch.cov(train.inputs.T), torch.eye(5, dtype=torch.float64), atol=0.035, rtol=0
        )
        assert (train.inputs**4).mean().item() == pytest.approx(3, abs=5 * (96 / 200_000) ** 0.5)

    def test_batches_have_the_networks_number_format(self) -> None:
        dataset = load_dataset("teacher-student", train_size=10, test_size=4)
        for dtype in (torch.float32, torch.float64):
            batches = training_batches(dataset.train, 5, seed=0, dtype=dtype)
            probe = probe_batch(dataset, 4, seed=0, dtype=dtype)
            for x, y in (batches.next(), probe, *evaluation_batches(dataset.test, 3, dtype=dtype)):
                assert x.dtype == y.dtype == dtype
                assert y.shape == (len(x), 1)


class TestGaussianMixture:
    def test_means_have_their_length(self) -> None:
        means = mixture_means(1, 5, 12, 2.5)
        assert means.shape == (5, 12)
        np.testing.assert_allclose(np.linalg.norm(means, axis=1), 2.5)

    def test_classes_lie_around_their_means_with_unit_noise(self) -> None:
        train, _ = procedural("gaussian-mixture", train_size=40_000)
        means = torch.from_numpy(mixture_means(1, 4, 20, 3.0))
        counts = torch.bincount(train.targets)
        assert (counts - 10_000).abs().max() < 5 * 7500**0.5
        noise = train.inputs - means[train.targets]
        for number in range(4):
            average = noise[train.targets == number].mean(0)
            assert average.abs().max() < 5 / counts[number] ** 0.5
        assert noise.var().item() == pytest.approx(1, abs=5 * (2 / 800_000) ** 0.5)

    @pytest.mark.parametrize("separation", [0.0, 0.5, 2.0])
    def test_two_classes_have_their_bayes_accuracy(self, separation: float) -> None:
        _, test = procedural("gaussian-mixture", classes=2, separation=separation, test_size=50_000)
        means = torch.from_numpy(mixture_means(1, 2, 20, separation))
        distance = (means[0] - means[1]).norm().item()
        bayes = 0.5 * (1 + math.erf(distance / 2 / 2**0.5))  # Φ(|μ₁ − μ₂| / 2)
        nearest = torch.cdist(test.inputs, means).argmin(dim=1)
        accuracy = (nearest == test.targets).double().mean().item()
        assert accuracy == pytest.approx(bayes, abs=5 * 0.5 / 50_000**0.5)


@pytest.mark.parametrize("name", [entry.name for entry in DATASETS if entry.procedural])
def test_the_seed_alone_decides(name: str) -> None:
    first = procedural(name, seed=3)
    np.random.seed(0)
    torch.manual_seed(0)
    again, other = procedural(name, seed=3), procedural(name, seed=4)
    assert all(map(equal, first, again))
    assert not any(map(equal, first, other))


@pytest.mark.parametrize("name", SAMPLED)
def test_a_smaller_set_is_the_beginning_of_a_larger_one(name: str) -> None:
    small_train, small_test = procedural(name, train_size=7, test_size=9)
    train, test = procedural(name, train_size=30, test_size=9)
    assert (len(small_train), len(small_test)) == (7, 9)
    assert equal(small_test, test)
    assert torch.equal(train.inputs[:7], small_train.inputs)
    assert torch.equal(train.targets[:7], small_train.targets)
    assert not torch.equal(train.inputs[:9], test.inputs)


@pytest.mark.parametrize("name", SAMPLED)
def test_inputs_are_handed_on_as_they_are(name: str) -> None:
    train, _ = procedural(name, train_size=5)
    (inputs, _), = evaluation_batches(train, 5, dtype=torch.float64)  # fmt: skip
    assert torch.equal(inputs, train.inputs.double())

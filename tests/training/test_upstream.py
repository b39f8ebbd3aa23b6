"""Hyper-parameters of neural-mechanics in our words: models, optimizers, schedules."""

import json
from math import inf
from pathlib import Path
from typing import Any

import pytest

from tests.upstream import FLAGS
from Training.discrete_laws import Coefficients
from Training.upstream import gradient_flow_time, is_upstreams, phases, read_hyperparameters
from Utils.rundir import RunFolder


def translated(path: Path, **flags: Any) -> dict[str, Any]:
    run = RunFolder(path)
    run.hyperparameters.write_text(json.dumps({**FLAGS, **flags}))
    return read_hyperparameters(run)


def test_our_own_are_left_as_they_are(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    own = {"seed": 1, "provenance": {}, "save": True}
    run.hyperparameters.write_text(json.dumps(own))
    assert read_hyperparameters(run) == own
    assert not is_upstreams(own)
    assert is_upstreams(translated(tmp_path))


@pytest.mark.parametrize(
    ("flags", "task"),
    [
        ({"dataset": "mnist"}, ((1, 28, 28), 10, 469)),
        ({"dataset": "cifar100"}, ((3, 32, 32), 100, 391)),
        ({"dataset": "tiny-imagenet"}, ((3, 64, 64), 200, 782)),
        ({"dataset": "tiny-imagenet", "tpu": "v3"}, ((3, 64, 64), 200, 98)),  # 12500 a core
        (
            {"dataset": "cifar10", "model": "vgg16", "model_class": "imagenet"},
            ((3, 32, 32), 1000, 391),
        ),
    ],
)
def test_the_task_follows_from_the_data(
    flags: dict[str, Any], task: tuple[Any, ...], tmp_path: Path
) -> None:
    found = translated(tmp_path, train_batch_size=128, **flags)
    names = ("input_shape", "num_classes", "steps_per_epoch")
    assert tuple(found["task"][name] for name in names) == task
    assert found["dataset"] == flags["dataset"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("wide-resnet18", "resnet18"),
        ("wide-resnet34-nobn", "resnet34-nobn"),
        ("wide-resnet50", "wide-resnet50"),
        ("vgg16-bn", "vgg16-bn"),
    ],
)
def test_models_that_were_not_wide(name: str, expected: str, tmp_path: Path) -> None:
    assert translated(tmp_path, model=name, model_class="tinyimagenet")["model"] == expected


@pytest.mark.parametrize(
    ("flags", "optimizer", "momentum"),
    [
        ({"optimizer": "custom_sgd"}, "sgd", None),
        ({"optimizer": "custom_sgd", "momentum": 0.9, "dampening": 0.1}, "momentum", 0.9),
        ({"optimizer": "sgd", "momentum": 0.9, "nesterov": True}, "sgd", None),
        ({"optimizer": "momentum", "momentum": 0.9, "nesterov": True}, "momentum", 0.9),
        ({"optimizer": "momentum"}, "sgd", None),
        ({"optimizer": "lamb", "momentum": 0.9}, "lamb", None),
    ],
)
def test_optimizers(
    flags: dict[str, Any], optimizer: str, momentum: float | None, tmp_path: Path
) -> None:
    found = translated(tmp_path, **flags)
    assert (found["optimizer"], found["momentum"], found["lr"]) == (optimizer, momentum, 0.1)


def test_rates_drop_at_the_ends_of_epochs(tmp_path: Path) -> None:
    flags = {"momentum": 0.5, "dampening": 0.2, "wd": 0.3, "lr_drops": [5, 2]}
    found = phases(translated(tmp_path, **flags))
    assert [(p.start, p.stop) for p in found] == [(0, 6), (6, 15), (15, inf)]
    assert found[0].coefficients == Coefficients(0.1, 0.3, 0.5, 0.2)
    assert [p.coefficients.lr for p in found] == pytest.approx([0.1, 0.01, 0.001], rel=1e-14)
    expected = (6 * 0.1 + 9 * 0.01 + 2 * 0.001) * 0.8 / 0.5
    assert gradient_flow_time(found, 17) == pytest.approx(expected, rel=1e-14)
    assert gradient_flow_time(found, 0) == 0

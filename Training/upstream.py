"""Runs of neural-mechanics (github.com/danielkunin/neural-mechanics), described as ours are.

Its ``hyperparameters.json`` is the namespace of its argparse, and is never rewritten. Here it
gets our keys, and its ``MultiStepLR``, stepped once per epoch, becomes a list of phases.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil, inf
from pathlib import Path
from typing import Any

import h5py

from Data import DATASETS, DEFAULT_DATA_DIR
from Training.config import TrainConfig
from Training.discrete_laws import Coefficients
from Utils.config import validate
from Utils.errors import UserError
from Utils.rundir import RunFolder

_ONLY_THEIRS = frozenset({"gpu", "save"})
"""Keys of its ``hyperparameters.json`` that ours never has."""

UPSTREAM = "upstream"
"""The key of translated hyper-parameters that those of our runs never have."""


@dataclass(frozen=True)
class _Data:
    """One of its data sets: shape of an example, classes, examples to train on and to test."""

    input_shape: tuple[int, int, int]
    num_classes: int
    train_size: int
    test_size: int


_DATASETS = {
    "mnist": _Data((1, 28, 28), 10, 60_000, 10_000),
    "cifar10": _Data((3, 32, 32), 10, 50_000, 10_000),
    "cifar100": _Data((3, 32, 32), 100, 50_000, 10_000),
    "tiny-imagenet": _Data((3, 64, 64), 200, 100_000, 10_000),
    "imagenet": _Data((3, 224, 224), 1000, 1_281_167, 50_000),
}

_SAME = ("seed", "epochs", "train_batch_size", "test_batch_size", "lr", "lr_drop_rate", "wd")
"""Keys that mean the same in both."""

_TPU_CORES = 8

_IMAGENET_CLASSES = 1000
"""Outputs of its imagenet class, whatever the data."""

_NOT_WIDE = {
    f"wide-resnet{layers}{suffix}": f"resnet{layers}{suffix}"
    for layers in (18, 34)
    for suffix in ("", "-nobn")
}
"""Its tinyimagenet blocks of two convolutions ignore their width."""


def read_hyperparameters(run: RunFolder) -> dict[str, Any]:
    """How a run was trained, in our words, whichever of the two programs trained it.

    Raises:
        UserError: there is no such run, or what it trained does not exist here.
    """
    content = run.read_hyperparameters()
    if not _is_theirs(content):
        return content
    try:
        return _translated(content, run.hyperparameters)
    except KeyError as error:
        raise UserError(
            f"{run.hyperparameters} lacks {error}; bring back the one that neural-mechanics wrote"
        ) from error


def is_upstreams(hyperparameters: Mapping[str, Any]) -> bool:
    """Whether what :func:`read_hyperparameters` gave describes a run of neural-mechanics."""
    return UPSTREAM in hyperparameters


def refuse_their_run(run: RunFolder) -> None:
    """Keep a run of neural-mechanics from being continued or replaced.

    Raises:
        UserError: it is one.
    """
    try:
        content = run.read_hyperparameters()
    except UserError:  # missing or damaged: whoever needs it tells
        return
    if _is_theirs(content):
        raise UserError(
            f"{run.path} is a run of neural-mechanics, which train.py neither continues nor "
            "replaces; choose another --expid, and begin with its weights by --restore-path"
        )


def _is_theirs(content: Mapping[str, Any]) -> bool:
    return "provenance" not in content and bool(_ONLY_THEIRS & content.keys())


def _translated(theirs: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """The keys of our ``hyperparameters.json`` that later stages read."""
    name, model_class = theirs["dataset"], theirs.get("model_class", "default")
    if name not in _DATASETS:
        known = ", ".join(_DATASETS)
        raise UserError(f"{source}: dataset {name} is none that neural-mechanics has ({known})")
    data, data_dir = _DATASETS[name], theirs.get("data_dir", "")
    model = theirs["model"]
    values = {
        "model": _NOT_WIDE.get(model, model) if model_class == "tinyimagenet" else model,
        "model_class": model_class,
        "dataset": name if name in DATASETS else TrainConfig.model_fields["dataset"].default,
        "data_dir": data_dir if data_dir and Path(data_dir).is_dir() else DEFAULT_DATA_DIR,
        "loss": theirs.get("loss", "ce"),
        "lr_drops": sorted(theirs.get("lr_drops", ())),
        **{key: theirs[key] for key in _SAME if key in theirs},
        **_optimizer(theirs),
    }
    try:
        config = validate(TrainConfig, values, str(source))
    except UserError as error:
        where = "" if str(source) in str(error) else f"{source}: "
        raise UserError(f"{where}{error}") from None
    return {
        **config.flat(),
        "dataset": name,
        "task": {
            "input_shape": data.input_shape,
            "num_classes": _IMAGENET_CLASSES if model_class == "imagenet" else data.num_classes,
            "train_size": data.train_size,
            "test_size": data.test_size,
            "steps_per_epoch": _steps_per_epoch(theirs, data.train_size),
        },
        UPSTREAM: {
            "dampens_first_step": theirs["optimizer"] == "custom_sgd",
            "annealed": theirs.get("anneal_steps", 1) > 1,
        },
    }


def _optimizer(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Which of our optimizers it was; unlike ``custom_sgd``, its ``sgd`` ignores --momentum."""
    name = theirs["optimizer"]
    if name not in {"sgd", "custom_sgd", "momentum"}:
        return {"optimizer": name}
    if name == "sgd" or not theirs.get("momentum"):
        return {"optimizer": "sgd"}
    options = {key: theirs[key] for key in ("momentum", "dampening", "nesterov") if key in theirs}
    return {"optimizer": "momentum", **options}


def _steps_per_epoch(theirs: Mapping[str, Any], examples: int) -> int:
    """Batches of each core; its loaders keep the last, smaller one."""
    per_core = ceil(examples / _TPU_CORES) if theirs.get("tpu") else examples
    return ceil(per_core / int(theirs["train_batch_size"]))


@dataclass(frozen=True)
class Phase:
    """Steps with the same hyper-parameters.

    Attributes:
        start, stop: updates done before its first step, and after its last.
        coefficients: of its steps.
    """

    start: int
    stop: float
    coefficients: Coefficients

    def steps(self, done: int) -> int:
        """How many of its steps are among the first ``done``."""
        return int(max(min(done, self.stop) - self.start, 0))


def phases(hyperparameters: Mapping[str, Any]) -> tuple[Phase, ...]:
    """The phases of a translated run: its learning rate drops at the ends of epochs."""
    h, per_epoch = hyperparameters, hyperparameters["task"]["steps_per_epoch"]
    first = Coefficients(
        h["lr"], h["wd"], h["momentum"] or 0.0, h["dampening"] or 0.0, bool(h["nesterov"])
    )
    starts = [0, *(epoch * per_epoch for epoch in h["lr_drops"]), inf]
    return tuple(
        Phase(int(start), stop, replace(first, lr=first.lr * h["lr_drop_rate"] ** drops))
        for drops, (start, stop) in enumerate(pairwise(starts))
    )


def gradient_flow_time(phases: Iterable[Phase], step: int) -> float:
    """Σ η(1−α)/(1−β) over the first ``step`` updates."""
    return sum(phase.steps(step) * phase.coefficients.effective_lr for phase in phases)


def refuse_their_files(paths: Iterable[Path]) -> None:
    """Keep what neural-mechanics itself extracted or cached from being replaced.

    Raises:
        UserError: a file was written by deepdish, which it uses.
    """
    for path in paths:
        try:
            with h5py.File(path) as file:
                theirs = "PYTABLES_FORMAT_VERSION" in file.attrs
        except OSError:  # missing or damaged: the stage itself tells
            continue
        if theirs:
            raise UserError(
                f"{path} was written by neural-mechanics itself and is not replaced; "
                f"rename the folder {path.parent.name}"
            )

"""Extraction against copying the same bytes, caching against reading the features once.

    python -m benchmarks.stages

A run of six checkpoints with momentum buffers is made for ``conv`` (CIFAR-shaped) and for an
18-million-parameter VGG-16-BN. The rivals move the same bytes and do nothing else: ``copy``
copies the checkpoint files and flushes them to disk, as extraction flushes features; ``read``
reads every array of the feature files with h5py. Everything is in the page cache. Limit: with
``--probe logits``, the default, extraction also runs the network on 64 images.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import torch
from torch import nn

from benchmarks.common import Row, interleaved, print_table, ratio
from Data import DATASETS
from Metrics import CacheConfig
from Metrics.caching import cache
from Models import build_model
from Models.symmetry import find_laws
from Training.checkpoints import save_checkpoint
from Training.config import ExtractConfig, TrainConfig
from Training.conservation import ConservationObserver
from Training.extraction import extract
from Utils.config import C, validate
from Utils.rundir import RunFolder
from Utils.storage import datasets, write_hdf5

MODELS = {
    "conv": {"model": "conv", "dataset": "cifar10"},
    "vgg16-bn": {"model": "vgg16-bn", "model_class": "tinyimagenet", "dataset": "cifar10"},
}
"""By the model's name, its flags."""

_LAWS = "scale,rescale,translation,balance,budget,rotation"


def make_run(run: RunFolder, flags: Mapping[str, str], checkpoints: int) -> None:
    """A run as train.py leaves it, trained for one step per checkpoint on random images."""
    entry = DATASETS[flags["dataset"]]
    values = {**flags, "optimizer": "momentum", "momentum": "0.9"}
    config = validate(TrainConfig, values, "benchmark")
    module = build_model(config, entry.input_shape, entry.num_classes)
    laws = find_laws(module, torch.zeros(2, *entry.input_shape), "ce")
    laws.save(run.symmetries)
    task = {"input_shape": entry.input_shape, "num_classes": entry.num_classes, "train_size": 64}
    run.write_hyperparameters({**config.flat(), "task": task})
    images = torch.randn(64, *entry.input_shape)
    write_hdf5(run.probe, {"inputs": images.numpy(), "targets": [0] * 64})
    optimizer = torch.optim.SGD(module.named_parameters(), lr=1e-3, momentum=0.9)
    observer = ConservationObserver(module, optimizer, laws)
    for step in range(1, checkpoints + 1):
        optimizer.zero_grad()
        loss: Any = nn.functional.cross_entropy(module(images[:8]), torch.arange(8))
        loss.backward()
        optimizer.step()
        observer.record(step)
        save_checkpoint(run.checkpoint(step), _checkpoint(step, module, optimizer, observer))
        observer.checkpointed()


def _checkpoint(
    step: int, module: nn.Module, optimizer: torch.optim.SGD, observer: ConservationObserver
) -> dict[str, Any]:
    return {
        "step": step,
        "model_state_dict": module.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "observer_state_dict": observer.state_dict(),
    }


def _copy(run: RunFolder, target: Path) -> None:
    for step in run.checkpoint_steps():
        shutil.copyfile(run.checkpoint(step), target / "copy")
        with open(target / "copy", "rb") as file:
            os.fsync(file.fileno())


def _read(run: RunFolder) -> None:
    for step in run.feature_steps():
        with h5py.File(run.features(step)) as file:
            for _, array in datasets(file):
                array[()]


def measure(
    models: Sequence[str] = tuple(MODELS), checkpoints: int = 6, repetitions: int = 5
) -> list[Row]:
    """One row per model and stage.

    Args:
        models: keys of ``MODELS``.
        checkpoints: of each run.
        repetitions: of every measurement.
    """
    rows: list[Row] = []
    for name in models:
        with tempfile.TemporaryDirectory() as folder:
            run = RunFolder(Path(folder) / "e" / "x")
            make_run(run, MODELS[name], checkpoints)
            seconds = interleaved(
                {
                    "copy": partial(_copy, run, Path(folder)),
                    "none": partial(extract, _flags(ExtractConfig, folder, probe="none"), run),
                    "logits": partial(extract, _flags(ExtractConfig, folder, probe="logits"), run),
                },
                repetitions,
            )
            size = run.checkpoint(1).stat().st_size / 1e6
            for probe in ("none", "logits"):
                stage = f"extract --probe {probe}"
                rows.append(_row(name, size, stage, "copy", seconds[probe], seconds["copy"]))
            seconds = interleaved(
                {
                    "read": partial(_read, run),
                    "cache": partial(cache, _flags(CacheConfig, folder, metrics=_LAWS), run),
                },
                repetitions,
            )
            size = run.features(1).stat().st_size / 1e6
            rows.append(_row(name, size, "cache", "read", seconds["cache"], seconds["read"]))
    return rows


def _flags(schema: type[C], folder: str, **more: str) -> C:
    run = {"save_dir": folder, "experiment": "e", "expid": "x", "overwrite": True}
    return validate(schema, {**run, **more}, "benchmark")


def _row(
    model: str, size: float, stage: str, rival: str, times: Sequence[float], base: Sequence[float]
) -> Row:
    return {
        "model": model,
        "MB per step": size,
        "stage": stage,
        "s": sorted(times)[len(times) // 2],
        "rival": rival,
        "rival, s": sorted(base)[len(base) // 2],
        "ratio": ratio(times, base),
    }


def main() -> None:
    """Print the table."""
    logging.disable(logging.INFO)
    print_table("Stages against moving the same bytes, six checkpoints", measure())


if __name__ == "__main__":
    main()

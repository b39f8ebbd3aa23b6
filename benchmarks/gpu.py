"""train.py's loop on a GPU, with and without its observer, and a bare loop beside them.

    python -m benchmarks.gpu [WAY …]

VGG-16-BN and ResNet-18 on 64x64 images of 200 classes, trained with momentum 0.9 in several
ways; about seven minutes on an H200. The three loops of a row are run in turn in one process, in
blocks of steps that begin and end with an idle device. All three compute in the same way: the
ratios are what the loop adds, and what following the conservation laws adds to it. ``work`` is
the most memory that the last block of a loop took beyond what it kept before (weights, optimizer,
data). The aim for the observer is 5 %. Limit: its hooks read each weight and gradient a few times,
which a GPU does in well under a millisecond, but start about four small kernels per parameter;
where the network's own kernels are as small, starting them is what takes the time.
"""

import logging
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Row, interleaved, print_table, ratio
from benchmarks.loops import config_of, our_loop, random_data
from benchmarks.training_loop import Bare
from Data.dataset import Dataset
from Utils.errors import UserError, run_stage
from Utils.registry import unknown

MODELS = {"vgg16-bn": "tinyimagenet", "resnet18": "tinyimagenet"}
"""The models, with their classes."""

WAYS: dict[str, dict[str, Any]] = {
    "eager": {},
    "channels-last": {"channels_last": True},
    "TF32": {"tf32": True},
    "TF32, channels-last": {"tf32": True, "channels_last": True},
    "bf16": {"precision": "bf16"},
    "bf16, channels-last": {"precision": "bf16", "channels_last": True},
    "compile": {"compile": True},
    "bf16, channels-last, compile": {"precision": "bf16", "channels_last": True, "compile": True},
}
"""Flags of each way to compute."""

BATCHES = {128: tuple(WAYS), 512: ("eager", "TF32, channels-last", "bf16, channels-last")}
"""Batch sizes, and the ways in which they are trained."""

_MOMENTUM = {"optimizer": "momentum", "momentum": 0.9}


def measure(
    models: Mapping[str, str],
    shape: str,
    batch_size: int,
    ways: Sequence[str],
    steps: int = 10,
    repetitions: int = 5,
) -> list[Row]:
    """One row per model and way, on the GPU where there is one.

    Args:
        models: with their classes.
        shape: data set whose shape the images have.
        batch_size: examples per step.
        ways: keys of ``WAYS``.
        steps: of a block.
        repetitions: blocks of each loop.
    """
    dataset = random_data(shape, batch_size * steps * (repetitions + 2))
    rows: list[Row] = []
    for model, model_class in models.items():
        for way in ways:
            flags = {"model_class": model_class, "train_batch_size": batch_size, **WAYS[way]}
            seconds, work = _compare(model, dataset, flags, steps, repetitions)
            median = {name: statistics.median(times) for name, times in seconds.items()}
            rows.append(
                {
                    "model": model,
                    "way": way,
                    **{f"{n}, images/s": batch_size * steps / t for n, t in median.items()},
                    "loop / bare": ratio(seconds["loop"], seconds["bare"]),
                    "observer, %": 100 * (ratio(seconds["observed"], seconds["loop"]) - 1),
                    **{f"{n}, work / GB": size / 1e9 for n, size in work.items()},
                }
            )
    return rows


def _compare(
    model: str, dataset: Dataset, flags: dict[str, Any], steps: int, repetitions: int
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of the blocks of each loop, and the bytes of memory that its last block took."""
    config = config_of(model, dataset, **_MOMENTUM, **flags)
    work: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as held:
        ours = partial(our_loop, config, dataset, held)
        loops = {
            "bare": Bare(config, dataset).run,
            "loop": ours(Path(folder) / "loop", observed=False),
            "observed": ours(Path(folder) / "observed", observed=True),
        }
        blocks = {n: partial(_block, run, steps, work, n) for n, run in loops.items()}
        seconds = interleaved(blocks, repetitions)
    torch.compiler.reset()  # else the next model's graphs would count as this one's recompilations
    return seconds, work


def _block(run: Callable[[int], None], steps: int, work: dict[str, int], name: str) -> None:
    """Run some steps, and note in ``work`` how much memory they took; none on the CPU."""
    if not torch.cuda.is_available():
        run(steps)
        return
    kept = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run(steps)
    work[name] = torch.cuda.max_memory_allocated() - kept


def main(ways: Sequence[str] = tuple(WAYS)) -> None:
    """Print a table per batch size and model, or why there is none."""
    if not torch.cuda.is_available():
        print("\ngpu: left out, as no CUDA GPU is visible", flush=True)
        return
    logging.disable(logging.INFO)
    name, total = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
    for batch_size, its_ways in BATCHES.items():
        for model, model_class in MODELS.items():
            chosen = [way for way in its_ways if way in ways]
            if chosen:
                print_table(
                    f"{name}, {total / 1e9:.0f} GB, CUDA {torch.version.cuda}: batch {batch_size}",
                    measure({model: model_class}, "tiny-imagenet", batch_size, chosen),
                )


def _named() -> None:
    """The ways named on the command line, or all."""
    ways = sys.argv[1:] or tuple(WAYS)
    for way in ways:
        if way not in WAYS:
            raise UserError(unknown("way to compute", way, tuple(WAYS)))
    main(ways)


if __name__ == "__main__":
    run_stage(_named)

"""The runs behind a coordinate check, from data to exponents, against mup's own check.

    python -m benchmarks.coordinate_check

Both train the same networks under muP (``fc`` of depth 3 without biases, plain SGD) on batches of
the same examples and sizes: 5 widths, 3 seeds. The rival, ``mup.coord_check``, takes 4 steps and
keeps the mean size of every module's output in every forward pass, in memory. Ours is a sweep with
``--no-laws --no-evaluate --jobs 0 --stages train,extract,cache --extract '--probe none' --cache
'--metrics coordinates'``: it writes a checkpoint and a feature file for step 0 and every step of
each run, measures outputs and inputs of the layers, their change and its parts on 64 probe images
by two norms, and fits exponents with their intervals.

mup measures before each of its steps, and so never what the last one has done: ``the same
coordinates`` are those after 0 to 3 steps, for which ours takes three. ``the same steps`` are four,
measured five times; ``with laws`` ours also finds conservation laws and follows them, and evaluates
on the test set twice. ``in one process`` both have imported what they need, and ours is what the
sweep calls; ``as commands`` both start a process.

Limit: the steps of wide networks, which take either the same time.
"""

import importlib.util
import itertools
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Row, print_table, ratio
from Data import load_dataset
from Data.batches import training_batches
from Metrics import CacheConfig
from Metrics.width.caching import cache_experiment
from Training.config import ExtractConfig, TrainConfig
from Training.extraction import extract
from Training.run import train
from Utils.config import validate
from Utils.rundir import ExperimentFolder, RunFolder

WIDTHS = (128, 256, 512, 1024, 2048)
SEEDS, STEPS, LR = 3, 4, 0.2

_FLAGS: dict[str, Any] = {
    "model": "fc",
    "depth": 3,
    "bias": False,
    "param": "mup",
    "lr": LR,
    "epochs": 1,
    "train_batch_size": 359,  # an epoch of digits has four
    "drop_last": True,
    "save_at": "1,2,3,4",
    "laws": False,
    "evaluate": False,
}
_CASES: dict[str, dict[str, Any]] = {
    "the same steps": {},
    "the same steps, with laws": {"laws": True, "evaluate": True},
    "the same coordinates": {"train_batch_size": 479},  # an epoch has three
}
_SCRIPT = Path(__file__).with_name("mup_coordinates.py")

Blocks = dict[str, Callable[[], object]]


def measure(
    widths: Sequence[int] = WIDTHS, seeds: int = SEEDS, repetitions: int = 3, commands: bool = True
) -> list[Row]:
    """Ours and mup's, by the clock and of the processor.

    Args:
        widths: of the networks.
        seeds: of each.
        repetitions: of every measurement.
        commands: whether processes are started as well.
    """
    from benchmarks import mup_coordinates  # not everybody has mup

    logging.disable(logging.INFO)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case in _CASES:
            flags = flags_of(case)
            task = (batches(flags["train_batch_size"]), list(widths), seeds, LR)
            here: Blocks = {
                "ours": partial(_ours_anew, folder, widths, seeds, flags),
                "mup": partial(mup_coordinates.check, *task),
            }
            rows.append(_row(f"in one process, {case}", here, repetitions))
            if not commands:
                continue
            torch.save(task, folder / "tasks.pt")
            started: Blocks = {
                "ours": partial(_start_ours, folder, widths, seeds, flags),
                "mup": lambda: _start(str(_SCRIPT), str(folder / "tasks.pt")),
            }
            rows.append(_row(f"as commands, {case}", started, repetitions))
    logging.disable(logging.NOTSET)
    return rows


def flags_of(case: str) -> dict[str, Any]:
    """With which ours trains."""
    return _FLAGS | _CASES[case]


def ours(
    folder: Path, widths: Sequence[int], seeds: int, flags: Mapping[str, Any]
) -> dict[str, float]:
    """What the sweep does, in this process; returns the processor's seconds of each stage."""
    experiment, runs = {"experiment": "e", "save_dir": str(folder)}, []
    seconds = dict.fromkeys(("train", "extract", "cache"), 0.0)
    for width, seed in itertools.product(widths, range(seeds)):
        place = {**experiment, "expid": f"width={width},seed={seed}"}
        point = {"width": width, "seed": seed, **place}
        config = validate(TrainConfig, {**flags, **point}, "benchmark")
        runs.append(RunFolder(config.run_path))
        with _noted(seconds, "train"):
            train(config, nullcontext(runs[-1]))
        with _noted(seconds, "extract"):
            extract(validate(ExtractConfig, {"probe": "none", **place}, "benchmark"), runs[-1])
    caching = validate(CacheConfig, {**experiment, "metrics": "coordinates"}, "benchmark")
    with _noted(seconds, "cache"):
        cache_experiment(caching, ExperimentFolder(folder / "e"), runs)
    return seconds


@contextmanager
def _noted(seconds: dict[str, float], stage: str) -> Iterator[None]:
    begin = _processor_seconds()
    yield
    seconds[stage] += _processor_seconds() - begin


def _ours_anew(parent: Path, widths: Sequence[int], seeds: int, flags: Mapping[str, Any]) -> None:
    ours(Path(tempfile.mkdtemp(dir=parent)), widths, seeds, flags)


def _start_ours(parent: Path, widths: Sequence[int], seeds: int, flags: Mapping[str, Any]) -> None:
    place = ["--experiment", "e", "--save-dir", tempfile.mkdtemp(dir=parent)]
    fixed = [word.lower() for k, v in flags.items() for word in (_flag(k), str(v))]
    varied = ["--width", *map(str, widths), "--seed", *map(str, range(seeds))]
    stages = ["--stages", "train,extract,cache", "--extract", "--probe none"]
    stages += ["--cache", "--metrics coordinates"]
    _start("-m", "scripts.sweep", *place, *fixed, *varied, *stages, "--jobs", "0")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _start(*arguments: str) -> None:
    root = Path(__file__).parents[1]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run(
        [sys.executable, *arguments], cwd=root, env=environment, check=True, capture_output=True
    )


def batches(size: int) -> list[tuple[Tensor, Tensor]]:
    """What the first of our seeds trains on, and what follows."""
    train = load_dataset("digits", "", 0).train
    batches = training_batches(train, size, 0, drop_last=True)
    return [batches.next() for _ in range(STEPS)]


def _row(case: str, blocks: Blocks, repetitions: int) -> Row:
    """Medians, and of ratios those over pairs."""
    wall: dict[str, list[float]] = {name: [] for name in blocks}
    processor: dict[str, list[float]] = {name: [] for name in blocks}
    for repetition in range(-1, repetitions):  # once to warm up
        for name, block in blocks.items():
            begin, used = time.perf_counter(), _processor_seconds()
            block()
            if repetition >= 0:
                wall[name].append(time.perf_counter() - begin)
                processor[name].append(_processor_seconds() - used)
    return {
        "case": case,
        "ours / s": median(wall["ours"]),
        "mup / s": median(wall["mup"]),
        "ours / mup": ratio(wall["ours"], wall["mup"]),
        "ours / s of processor": median(processor["ours"]),
        "mup / s of processor": median(processor["mup"]),
        "ours / mup of processor": ratio(processor["ours"], processor["mup"]),
    }


def _processor_seconds() -> float:
    """Of this process and of those that it has waited for."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def main() -> None:
    """Print the table."""
    if importlib.util.find_spec("mup") is None:
        print("\ncoordinate_check: left out, as mup is not installed")
        return
    title = f"Coordinate check, widths {WIDTHS[0]} to {WIDTHS[-1]}, {SEEDS} seeds, {STEPS} steps"
    print_table(title, measure())
    print_table("Where ours goes, in one process", [stages()])


def stages(widths: Sequence[int] = WIDTHS, seeds: int = SEEDS, repetitions: int = 3) -> Row:
    """The processor's seconds of each of our stages."""
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as name:
        found = [
            ours(Path(tempfile.mkdtemp(dir=name)), widths, seeds, _FLAGS)
            for _ in range(repetitions)
        ]
    logging.disable(logging.NOTSET)
    return {f"{stage} / s": median(each[stage] for each in found) for stage in found[0]}


if __name__ == "__main__":
    main()

"""Many seeds of a small network trained together, against one after another.

    python -m benchmarks.ensemble

Both write whole run folders in this process, checkpoints, laws and journals included; the rival
is ``train`` in a loop, which pays no more for starting Python and torch. Processor seconds leave
out the time that either waits for the disk. Limit: what is each member's own, which is its files,
is not made faster.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from benchmarks.common import Row, print_table
from Training.config import TrainConfig
from Training.ensemble import train_together
from Training.run import train
from Utils.cli import parse
from Utils.rundir import RunFolder

SEEDS = 16

CASES = {
    "SGD": "",
    "momentum": "--optimizer momentum --momentum 0.9",
    "SGD, no matrix laws": "--no-balance",
}
"""Flags besides those of the network."""

_NETWORK = "--model fc --depth 3 --width 32 --train-batch-size 32"


def measure(seeds: int = SEEDS, cases: Sequence[str] = tuple(CASES), epochs: int = 10) -> list[Row]:
    """One row per case.

    Args:
        seeds: networks.
        cases: keys of ``CASES``.
        epochs: of 45 steps.
    """
    logging.disable(logging.INFO)
    rows: list[Row] = []
    for case in cases:
        flags = f"{_NETWORK} {CASES[case]} --epochs {epochs}".split()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            _separate(flags, folder / "warm-up", 1)
            separate = _seconds(lambda: _separate(flags, folder / "separate", seeds))  # noqa: B023
            together = _seconds(lambda: _together(flags, folder / "together", seeds))  # noqa: B023
        rows.append(
            {
                "case": case,
                "one after another / s": separate[0],
                "together / s": together[0],
                "faster": separate[0] / together[0],
                "faster in processor time": separate[1] / together[1],
            }
        )
    logging.disable(logging.NOTSET)
    return rows


def _seconds(work: Callable[[], None]) -> tuple[float, float]:
    """By the clock, and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def _runs(flags: list[str], folder: Path, seeds: int) -> tuple[list[TrainConfig], list[RunFolder]]:
    place = ["--save-dir", str(folder), "--experiment", "e", "--expid"]
    configs = [
        parse(TrainConfig, [*flags, *place, str(seed), "--seed", str(seed)])
        for seed in range(seeds)
    ]
    return configs, [RunFolder(config.run_path) for config in configs]


def _separate(flags: list[str], folder: Path, seeds: int) -> None:
    for config, run in zip(*_runs(flags, folder, seeds), strict=True):
        train(config, nullcontext(run))


def _together(flags: list[str], folder: Path, seeds: int) -> None:
    train_together(*_runs(flags, folder, seeds))


def main() -> None:
    """Print the table."""
    print_table(f"{SEEDS} seeds of fc, width 32, 8×8 images, batch 32", measure())


if __name__ == "__main__":
    main()

"""Where a network is trained: XLA beside eager and compiled, two processes beside one.

    python -m benchmarks.devices

Every row is a process (or two) of its own, so that each has its own libraries and threads; the
processes of a case are run in turn, several times. One thread each, conservation laws observed.
``first`` are the seconds of the first 12 steps, in which everything is compiled; no compilation
may follow. XLA runs on the CPU here, which shows that the path works and what compiling costs, not
how fast a TPU is. Limit: two processes on two free cores compute twice as many images per second
as one, less the averaging of gradients, which costs what moving the weights twice does.
"""

import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.common import Row, print_table
from benchmarks.loops import BATCH_SIZE, config_of, our_loop, random_data
from Training.config import TrainConfig

WAYS: dict[str, dict[str, Any]] = {
    "eager": {},
    "torch.compile": {"compile": True},
    "bf16, eager": {"precision": "bf16"},
    "XLA, 1 core": {"tpu": "local"},
    "XLA, 2 cores": {"tpu": "local", "train_batch_size": BATCH_SIZE // 2},
    "2 processes": {"train_batch_size": BATCH_SIZE // 2},
    "2 processes, 128 each": {},
}
"""Flags of each way to train; the first is what the others are compared with."""

CASES = {"conv, cifar10": 8, "fc, mnist": 100}
"""Model and the data whose shape is used, with the steps of a block."""

_FIRST, _BLOCKS = 12, 5


def measure(
    cases: Sequence[str] = tuple(CASES), ways: Sequence[str] = tuple(WAYS), repetitions: int = 3
) -> list[Row]:
    """One row per case and way; ratios are of images per second, medians over repetitions."""
    rows: list[Row] = []
    for case in cases:
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        for _ in range(repetitions):
            for way in ways:
                found[way].append(_run(case, way))
        base = [result["images/s"] for result in found[ways[0]]]
        for way, results in found.items():
            speeds = [result["images/s"] for result in results]
            rows.append(
                {
                    "case": case,
                    "way": way,
                    "first / s": statistics.median(r["first"] for r in results),
                    "images/s": statistics.median(speeds),
                    f"relative to {ways[0]}": statistics.median(
                        a / b for a, b in zip(speeds, base, strict=True)
                    ),
                    "compilations": str(results[0]["compilations"]),
                    "after step 12": str(max(r["late"] for r in results)),
                }
            )
    return rows


def _run(case: str, way: str) -> dict[str, Any]:
    """Time one way to train in processes of its own."""
    launcher = ["-m"]
    if way.startswith("2 processes"):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    cores = "2" if "2 cores" in way else "1"
    environment = {"OMP_NUM_THREADS": "1", "PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": cores}
    environment |= {"RANK": "0", "WORLD_SIZE": "1"}  # torchrun sets its own
    result = subprocess.run(
        [sys.executable, *launcher, "benchmarks.devices", case, way],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    content: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return content


def work(case: str, way: str) -> None:
    """In a process of its own: train, and print what was measured as JSON."""
    logging.disable(logging.INFO)
    model, data = case.split(", ")
    steps = CASES[case]
    dataset = random_data(data, 2 * BATCH_SIZE * (_FIRST + steps * (_BLOCKS + 1)))
    config = config_of(model, dataset, **WAYS[way])
    with tempfile.TemporaryDirectory() as folder, ExitStack() as held:
        run_steps = our_loop(config, dataset, held, Path(folder), observed=True)
        first = _seconds(run_steps, _FIRST)
        early = _compilations(config)
        seconds = statistics.median(_seconds(run_steps, steps) for _ in range(_BLOCKS))
        late = _compilations(config) - early
    devices = int(os.environ["CPU_NUM_DEVICES" if config.tpu else "WORLD_SIZE"])
    speed = steps * config.train_batch_size * devices / seconds
    if os.environ["RANK"] == "0":
        print(json.dumps({"first": first, "images/s": speed, "compilations": early, "late": late}))


def _seconds(run_steps: Callable[[int], None], steps: int) -> float:
    start = time.perf_counter()
    run_steps(steps)
    return time.perf_counter() - start


def _compilations(config: TrainConfig) -> int:
    """How many computations XLA has compiled in this process."""
    if config.tpu is None:
        return 0
    import torch_xla.debug.metrics as metrics

    data = metrics.metric_data("CompileTime")  # type: ignore[no-untyped-call]
    return int((data or (0,))[0])


def main() -> None:
    """Print the table."""
    print_table("Ways to train: train.py's loop with its observer", measure())


if __name__ == "__main__":
    work(*sys.argv[1:]) if len(sys.argv) == 3 else main()

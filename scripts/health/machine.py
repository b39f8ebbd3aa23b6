"""The machine: cores, memory, shared memory, threads."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from scripts.health import Finding

SHARED = 2.5e8
"""Bytes of shared memory that the workers of a DataLoader want; Docker's default is 64 MB."""


def check_machine() -> Iterator[Finding]:
    """Cores and memory that this process may use, and what several runs at once should set."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    threads = os.environ.get("OMP_NUM_THREADS")
    hint = f"OMP_NUM_THREADS={threads or ''}" + ("" if threads else " (1 for several runs at once)")
    yield Finding("ok", "machine", f"{cores} cores, {memory:.1f} GB of memory; {hint}")
    if Path("/dev/shm").is_dir():
        yield judge_shared_memory(shutil.disk_usage("/dev/shm").free)


def judge_shared_memory(free: int) -> Finding:
    """Whether ``free`` bytes in /dev/shm are enough to hand batches between processes."""
    found = f"{free / 1e9:.2f} GB free in /dev/shm"
    if free >= SHARED:
        return Finding("ok", "shared", found)
    fix = "docker run --shm-size=1g; only streamed data sets (--dataset imagenet) need it"
    return Finding("warn", "shared", found, fix)

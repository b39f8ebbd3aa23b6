"""What the tests of training share."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.runs import ROOT, flags_of
from Utils.rundir import RunFolder

Train = Callable[..., int]
"""Runs train.py with :data:`SMALL` and more arguments; returns its exit code."""

SMALL = "--epochs 2 --experiment e --expid x --observe-freq 4"
"""A run of 24 steps that takes a tenth of a second."""

ALONE = os.environ | {"OMP_NUM_THREADS": "1"}
"""The environment of a process beside others."""

MODEL = "--model fc --depth 3 --width 16"
"""Trained where a test names no other."""


def journal_of(run: RunFolder) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl`` without the time of day."""
    lines = [json.loads(line) for line in (run.logs / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two checkpoints are not bit for bit the same."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [d for key in a for d in differences(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        pairs = zip(a, b, strict=True)
        return [d for i, (x, y) in enumerate(pairs) for d in differences(x, y, f"{path}/{i}")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and torch.equal(a, b)
    else:
        same = type(a) is type(b) and a == b
    return [] if same else [path]


def checkpoint_of(run: RunFolder, step: int) -> dict[str, Any]:
    """A run's checkpoint after ``step`` updates, as torch alone reads it."""
    content: dict[str, Any] = torch.load(run.checkpoint(step), weights_only=True)
    return content


def assert_same_training(here: RunFolder, there: RunFolder, atol: float = 1e-11) -> None:
    """Weights, statistics, losses, charges and gates at every checkpoint, but for rounding."""
    steps = here.checkpoint_steps()
    assert there.checkpoint_steps() == steps
    for step in steps:
        a, b = checkpoint_of(here, step), checkpoint_of(there, step)
        for name, tensor in a["model_state_dict"].items():
            torch.testing.assert_close(b["model_state_dict"][name], tensor, rtol=0, atol=atol)
        first, second = a["observer_state_dict"], b["observer_state_dict"]
        torch.testing.assert_close(second["charge"], first["charge"], rtol=0, atol=atol)
        assert first["open"].all()
        assert second["open"].all()
        assert second["record"]["residual"].max() < 1e-12
    for line, other in zip(journal_of(here), journal_of(there), strict=True):
        assert other == pytest.approx(line, rel=10 * atol, abs=10 * atol)


def torchrun(
    run: RunFolder, arguments: str, processes: int, restarts: int = 0
) -> "subprocess.Popen[str]":
    """Start train.py in several processes, as the documentation says."""
    command = (
        "-m torch.distributed.run --standalone "
        f"--nproc-per-node={processes} --max-restarts={restarts}"
    )
    return subprocess.Popen(
        [
            sys.executable,
            *command.split(),
            str(ROOT / "train.py"),
            *arguments.split(),
            *flags_of(run),
        ],
        env=ALONE | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

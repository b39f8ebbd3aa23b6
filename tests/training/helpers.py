"""What the tests of training share."""

import json
from collections.abc import Callable
from typing import Any

import torch

from Utils.rundir import RunFolder

Train = Callable[..., int]
"""Runs train.py with :data:`SMALL` and more arguments; returns its exit code."""

SMALL = "--epochs 2 --experiment e --expid x --observe-freq 4"
"""A run of 24 steps that takes a tenth of a second."""

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

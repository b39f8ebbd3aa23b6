"""Runs train.py and tells, for every step, what XLA has compiled and moved to the host so far.

    python -m tests.training.watched [flags of train.py]

Prints one JSON list of [step, compilations, transfers], taken before each step's computation.
"""

import json
import sys

import torch_xla.debug.metrics as metrics

import train
from Training.loop import Trainer

_WATCHED = ("CompileTime", "TransferFromDeviceTime")


def main() -> None:
    """Train, then print what was seen."""
    seen: list[list[int]] = []
    original = Trainer._loss

    def watched(trainer: Trainer, inputs: object, targets: object) -> object:
        data = (metrics.metric_data(name) for name in _WATCHED)  # type: ignore[no-untyped-call]
        counts = [int((values or (0,))[0]) for values in data]
        seen.append([trainer.state.step, *counts])
        return original(trainer, inputs, targets)  # type: ignore[arg-type]

    Trainer._loss = watched  # type: ignore[assignment, method-assign]
    code = train.main()
    print(json.dumps(seen))
    sys.exit(code)


if __name__ == "__main__":
    main()

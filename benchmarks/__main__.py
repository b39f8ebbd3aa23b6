"""All benchmarks, or those named: ``python -m benchmarks [NAME …]``."""

import importlib
import sys

from Utils.errors import UserError, run_stage
from Utils.registry import unknown

NAMES = (
    "observer",
    "training_loop",
    "ensemble",
    "coordinate_check",
    "data_pipeline",
    "stages",
    "devices",
    "gpu",
    "tangent",
    "infinite",
)


def main() -> None:
    """Print the tables of the benchmarks named on the command line, or of all."""
    names = sys.argv[1:] or NAMES
    for name in names:
        if name not in NAMES:
            raise UserError(unknown("benchmark", name, NAMES))
    for name in names:
        importlib.import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    run_stage(main)

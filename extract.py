"""Stage 2: pull weights, optimizer buffers and probe outputs out of checkpoints."""

from Training.config import ExtractConfig
from Utils.cli import parse
from Utils.errors import run_stage
from Utils.runs import open_run


def main() -> None:
    """Parse the command line and extract."""
    config = parse(ExtractConfig)
    with open_run(config) as run:
        from Training.extraction import extract  # brings torch, for which errors need not wait

        extract(config, run)


if __name__ == "__main__":
    run_stage(main)

"""Stage 2: pull weights, optimizer buffers and probe outputs out of checkpoints."""

from Training.config import ExtractConfig
from Utils.cli import parse
from Utils.errors import run_stage
from Utils.rundir import RunFolder


def main() -> None:
    """Parse the command line and extract."""
    config = parse(ExtractConfig)
    run = RunFolder(config.run_path)

    from Training.extraction import extract  # brings torch, which usage errors need not wait for

    extract(config, run)


if __name__ == "__main__":
    run_stage(main)

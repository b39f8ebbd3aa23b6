"""Sort Tiny ImageNet's validation images into class folders: after unzipping, once.

::

    python scripts/setup_tiny_imagenet.py --data-dir Data/store

It can be stopped and run again at any time.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script, not a module

from pydantic import Field

from Data import DEFAULT_DATA_DIR
from Data.tiny_imagenet import FOLDER, set_up
from Utils.cli import parse
from Utils.config import Config
from Utils.errors import run_stage


class SetupConfig(Config):
    """Sort Tiny ImageNet's validation images into class folders; run it again to continue."""

    data_dir: str = Field(DEFAULT_DATA_DIR, description=f"The folder that {FOLDER} is in.")


def main() -> None:
    """Parse the command line, move the images and say how many."""
    data_dir = Path(parse(SetupConfig).data_dir).expanduser()
    moved = set_up(data_dir)
    print(f"{data_dir / FOLDER} is set up; {moved} images were moved")


if __name__ == "__main__":
    run_stage(main)

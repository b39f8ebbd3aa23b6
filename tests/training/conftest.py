"""Short runs of train.py inside the test's process."""

import sys
from pathlib import Path

import pytest

import train
from tests.training.helpers import MODEL, SMALL, Train
from Utils.rundir import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """The folder of the run that :func:`trains` works on."""
    return RunFolder(tmp_path / "e" / "x")


@pytest.fixture
def trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Runs train.py into :func:`run`."""

    def call(arguments: str = "") -> int:
        model = "" if "--model" in arguments else MODEL
        argv = f"train.py {SMALL} {model} --save-dir {tmp_path} {arguments}".split()
        monkeypatch.setattr(sys, "argv", argv)
        return train.main()

    return call

"""Tiny trained runs, each made once for all tests that read it."""

import itertools
from pathlib import Path

import pytest

from tests.runs import Runs, copy_run, extract_run, train_run
from Utils.rundir import RunFolder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The run with the given flags, trained and extracted; for reading only."""
    runs: dict[str, RunFolder] = {}

    def run(flags: str) -> RunFolder:
        if flags not in runs:
            runs[flags] = train_run(tmp_path_factory.mktemp("run") / "e" / "x", flags)
            extract_run(runs[flags])
        return runs[flags]

    return run


@pytest.fixture
def own(trained: Runs, tmp_path: Path) -> Runs:
    """A copy, for the test alone, of the run with the given flags; a new one at each call."""
    numbers = itertools.count()
    return lambda flags: copy_run(trained(flags), tmp_path / "own" / f"run{next(numbers)}")

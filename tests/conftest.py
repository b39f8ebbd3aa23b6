"""Tiny trained runs, each made once for all tests that read it."""

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clouds import Cloud, Emulator, heed_preconditions
from tests.experiments import FLAGS, SEEDS, WIDTHS, make
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


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs in standard parametrization with lr ∝ 1/n; for reading only."""
    path = tmp_path_factory.mktemp("results") / "sp"
    return make(path, f"{FLAGS} --no-bias", "8/n", WIDTHS, SEEDS)


@pytest.fixture
def grid(experiment: Path, tmp_path: Path) -> Path:
    """A copy of the experiment, for the test alone."""
    return Path(shutil.copytree(experiment, tmp_path / "sp"))


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """A server of buckets, for all tests of a process."""
    server = Emulator(tmp_path_factory.mktemp("emulator"))
    yield server
    server.kill()


@pytest.fixture
def cloud(
    emulator: Emulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Cloud:
    """A bucket of its own for a test, and a machine that knows nothing of it yet."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator.url)
    monkeypatch.setenv("LEARNING_MECHANICS_CACHE", str(tmp_path / "machine"))
    heed_preconditions(monkeypatch)
    return Cloud(emulator, f"bucket-{abs(hash(request.node.nodeid))}")

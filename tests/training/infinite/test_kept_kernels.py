"""Kernels whose computation was interrupted: nothing is computed twice, and no bit differs."""

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from torch import Tensor, nn

from Models.config import ModelConfig
from Models.infinite import InfiniteNetwork, infinite_network, network
from Models.infinite.limit import limit_network
from Models.infinite.tiles import Kernel, Nowhere, Tiles
from tests.runs import ROOT, flags_of, train_run
from tests.training.helpers import ALONE
from Training.infinite import kept
from Training.infinite.kept import KeptTiles, fingerprint
from Utils.config import validate
from Utils.rundir import RunFolder

LOG = logging.getLogger("kept")

SLOW = """
import sys, time
from Models.infinite import network
from Training.infinite import kept

class Tile(network.Tile):
    computed = 0

    def run(self, *arguments, **options):
        Tile.computed += 1
        time.sleep(0.02)
        return super().run(*arguments, **options)

network.Tile, network.BLOCK["cpu"], kept._SECONDS = Tile, 64, 0.1
sys.argv = sys.argv[1:]
import train
try:
    train.run_stage(train.main)
finally:
    print(Tile.computed)
"""
"""train.py with tiles of 8 x 8 pairs that take 0.02 s, and are kept every tenth of a second; it
prints how many it computed."""

SMALL = (
    "--dataset gaussian-mixture --train-size 72 --test-size 40 --probe-size 8 --model fc --depth 3 "
    "--param ntk --width inf --loss mse --epochs 1"
)


class Stopped(Exception):
    """What ends a computation."""


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tile is kept as soon as it is done."""
    monkeypatch.setattr(kept, "_SECONDS", -1.0)
    monkeypatch.setattr(kept, "_SHARE_OF_WRITING", float("inf"))


def _limit(model: str, shape: tuple[int, ...], **flags: Any) -> InfiniteNetwork:
    values = {"model": model, "depth": 3, "param": "ntk", "width": "inf", **flags}
    return limit_network(validate(ModelConfig, values, "test"), shape, 3)


def _kept(path: Path, limit: InfiniteNetwork, x: Tensor, others: Tensor | None) -> KeptTiles:
    inputs = {"train": x} if others is None else {"train": x, "test": others}
    return KeptTiles(RunFolder(path), "train", fingerprint(limit, inputs), LOG)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("model", "shape", "flags"),
    [
        ("fc", (1, 3, 3), {}),
        ("fc", (1, 3, 3), {"nonlinearity": "tanh"}),
        ("conv", (2, 5, 5), {}),
        ("preact-resnet", (1, 8, 8), {}),
    ],
)
def test_an_interrupted_kernel_goes_on_where_it_was(
    tmp_path: Path, model: str, shape: tuple[int, ...], flags: dict[str, Any], symmetric: bool
) -> None:
    """Stopped after half of the tiles; then the other half is computed."""
    limit, generator = _limit(model, shape, **flags), torch.Generator().manual_seed(0)
    x = torch.randn(9, *shape, generator=generator)
    y = None if symmetric else torch.randn(5, *shape, generator=generator)
    block = {"fc": 4, "conv": 200}.get(model)  # few pairs at a time, two by two with "fc"
    pairs: list[int] = []
    whole = limit.kernels(x, y, progress=lambda done, _: pairs.append(done), block=block)

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise Stopped

    with pytest.raises(Stopped):
        limit.kernels(x, y, progress=stop, block=block, keeper=_kept(tmp_path, limit, x, y))
    keeper, later = _kept(tmp_path, limit, x, y), list[int]()
    assert keeper.pairs == max(done for done in pairs if done <= pairs[-1] / 2)
    again = limit.kernels(
        x, y, progress=lambda done, _: later.append(done), block=block, keeper=keeper
    )
    assert later == [done for done in pairs if done > keeper.pairs]
    for name in ("nngp", "ntk"):
        assert torch.equal(getattr(again, name), getattr(whole, name))


@pytest.mark.usefixtures("always")
def test_what_is_kept_is_of_this_kernel_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Other data, another depth, another number format: nothing of it is taken; and the damaged
    file and all after it are computed anew."""
    limit, x = _limit("fc", (1, 3, 3)), torch.randn(9, 1, 3, 3)
    limit.kernels(x, block=4, keeper=_kept(tmp_path, limit, x, None))
    files = sorted((tmp_path / "kernels.parts").iterdir())
    assert len(files) == 15  # of 5 x 5 tiles, those with the diagonal and above
    assert _kept(tmp_path, limit, x, None).pairs == 9 * 10 / 2 + 4
    files[10].write_bytes(b"damaged")
    with caplog.at_level(logging.INFO, "kept"):
        assert 0 < _kept(tmp_path, limit, x, None).pairs < 49
    assert "train-000010.h5: what is kept of this kernel is damaged or of other" in caplog.text
    assert len(list((tmp_path / "kernels.parts").iterdir())) == 10
    for other, inputs in (
        (limit, x.double()),
        (limit, x + 1e-6),
        (_limit("fc", (1, 3, 3), depth=4), x),
        (_limit("fc", (1, 3, 3), nonlinearity="tanh"), x),
        (_limit("fc", (1, 3, 3), param="sp-lr1n"), x),
    ):
        assert fingerprint(other, {"train": inputs}) != fingerprint(limit, {"train": x})
    units = [_perceptron(nn.ELU(alpha)) for alpha in (0.5, 0.5, 1.0)]
    same, again, another = (fingerprint(network, {}) for network in units)
    assert same == again != another
    assert _kept(tmp_path, limit, x + 1, None).pairs == 0
    assert not list((tmp_path / "kernels.parts").iterdir())


def _perceptron(activation: nn.Module) -> InfiniteNetwork:
    return infinite_network(nn.Sequential(nn.Linear(9, 4), activation, nn.Linear(4, 3)), (9,))


def test_short_computations_keep_nothing_and_slow_disks_get_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before 30 s, or 10 s at the end; and writing takes a twentieth of the time at most."""
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    keeper = KeptTiles(RunFolder(tmp_path), "train", "it", LOG)
    list(keeper.restored())
    due = []
    for seconds in (9.0, 11.0, 29.0, 31.0):
        clock[0] = 100 + seconds
        due.append((keeper.is_due(False), keeper.is_due(True)))
    assert due == [(False, False), (False, True), (False, True), (True, True)]

    def slow(path: Path, arrays: object, attributes: object) -> None:
        clock[0] += 4.0

    monkeypatch.setattr(kept, "write_hdf5", slow)
    keeper.keep(1, {})
    clock[0] += 79.0
    assert not keeper.is_due(False)
    clock[0] += 2.0
    assert keeper.is_due(False)


def _arrays(path: Path) -> dict[str, bytes]:
    with h5py.File(path) as file:
        return {f"{g}/{k}": x[()].tobytes() for g, group in file.items() for k, x in group.items()}


def test_a_killed_training_goes_on_computing_its_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL in the middle; the same command says so, computes the rest and leaves nothing."""
    monkeypatch.setitem(network.BLOCK, "cpu", 64)
    run, whole = RunFolder(tmp_path / "e" / "x"), train_run(tmp_path / "e" / "whole", SMALL)
    command = [sys.executable, "-c", SLOW, "train.py", *SMALL.split(), *flags_of(run)]
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=ALONE, **streams) as process:
        while len(list(run.kernel_parts.glob("test-*.h5"))) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not run.kernels.exists()
    again = subprocess.run(command, cwd=ROOT, env=ALONE, check=False, timeout=120, **streams)
    assert again.returncode == 0, again.stderr
    assert "% of the kernels is there" in again.stderr
    rest = 2 * 2 + 9 * 5 + 9 + 1  # tiles of the forecasts, and all but those of training examples
    assert rest - 9 * 5 < int(again.stdout) < rest
    assert _arrays(run.kernels) == _arrays(whole.kernels)
    assert not run.kernel_parts.exists()


def test_kernels_that_another_command_left_are_not_taken(tmp_path: Path) -> None:
    """Killed after its kernels, before its description: a run of other flags may follow."""
    flags = SMALL.replace("preact-resnet --depth 3", "fc --depth 3")
    run, other = (train_run(tmp_path / "e" / name, flags) for name in "xy")
    deeper = flags.replace("--depth 3", "--depth 4")
    for path in (run.hyperparameters, *map(run.checkpoint, run.checkpoint_steps())):
        path.unlink()
    before = run.kernels.stat().st_mtime_ns
    train_run(run.path, deeper)
    assert _arrays(run.kernels) == _arrays(train_run(tmp_path / "e" / "z", deeper).kernels)
    assert _arrays(run.kernels) != _arrays(other.kernels)
    assert run.kernels.stat().st_mtime_ns != before


@pytest.mark.usefixtures("always")
def test_overwriting_and_finishing_delete_what_is_kept(tmp_path: Path) -> None:
    run = train_run(tmp_path / "e" / "x", SMALL)
    assert not run.kernel_parts.exists()
    run.kernel_parts.mkdir()
    (run.kernel_parts / "train-000000.h5").write_bytes(b"old")
    train_run(run.path, f"{SMALL} --overwrite")
    assert not run.kernel_parts.exists()


class _AtTheEnd(Nowhere):
    """Keeps what it is asked for the last time."""

    def __init__(self) -> None:
        self.kept: list[tuple[int, Tensor]] = []

    def is_due(self, is_last: bool) -> bool:
        return is_last

    def keep(self, pairs: int, tiles: Mapping[Kernel, Tiles]) -> None:
        self.kept.append((pairs, torch.cat([tile.flatten() for tile in tiles["ntk"]()])))


def test_ctrl_c_and_sigterm_keep_what_is_done() -> None:
    """All but the tile that they interrupt."""
    limit, x, keeper = _limit("fc", (1, 3, 3)), torch.randn(6, 1, 3, 3), _AtTheEnd()

    def stop(done: int, total: int) -> None:
        if done > 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        limit.kernels(x, block=1, progress=stop, keeper=keeper)
    whole = limit.kernels(x, block=1).ntk
    assert whole is not None
    ((pairs, numbers),) = keeper.kept
    assert pairs == 6
    assert torch.equal(numbers, whole[0])

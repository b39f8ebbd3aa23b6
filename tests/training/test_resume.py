"""Stopping and continuing: nothing is lost, nothing is doubled, nothing is mixed up."""

import itertools
import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path

import pytest
from torch import Tensor

from tests.training.helpers import SMALL, Train, differences, journal_of
from Training.checkpoints import load_checkpoint
from Training.losses import LossRecord
from Utils.errors import UserError
from Utils.rundir import RunFolder

SLOW_IMPORTS = ["torch.export._trace", "torch.utils.tensorboard", "sklearn.datasets", "tyro"]
"""What a fresh process spends its seconds on; imported once, for all of them."""

EVERYTHING = (
    "--model conv-bn --width 4 --train-batch-size 100 --optimizer momentum --momentum 0.9 "
    "--nesterov --wd 1e-3 --lr-drops 1 --warmup-steps 7 --lr-schedule cosine --clip-norm 1 "
    "--save-freq 7 --save-at log"
)


def train_until_killed(argv: list[str], at: int | None) -> None:
    """In a process of its own: run train.py, killed after update ``at`` of this process."""
    import train

    add, updates = LossRecord.add, itertools.count(1)

    def add_or_die(self: LossRecord, loss: Tensor) -> None:
        add(self, loss)
        if next(updates) == at:
            os.kill(os.getpid(), signal.SIGKILL)

    LossRecord.add = add_or_die  # type: ignore[method-assign]
    sys.argv = ["train.py", *argv]
    sys.exit(train.main())


def test_a_run_killed_several_times_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(SLOW_IMPORTS)
    final = {}
    for name, kills in (("whole", []), ("killed", random.Random(0).choices(range(1, 14), k=4))):
        argv = [*SMALL.split(), *EVERYTHING.split(), "--save-dir", str(tmp_path / name)]
        for at in [*kills, None]:
            process = processes.Process(target=train_until_killed, args=(argv, at))
            process.start()
            process.join(60)
            assert process.exitcode == (0 if at is None else -signal.SIGKILL)
        final[name] = RunFolder(tmp_path / name / "e" / "x")
    whole, killed = final["whole"], final["killed"]
    assert whole.checkpoint_steps() == killed.checkpoint_steps()
    for step in whole.checkpoint_steps():
        checkpoints = [load_checkpoint(run.checkpoint(step)) for run in (whole, killed)]
        assert differences(checkpoints[0], checkpoints[1]) == [], f"step {step}"
    assert journal_of(whole) == journal_of(killed)


def test_a_run_stopped_by_a_signal_equals_an_uninterrupted_one(
    trains: Train, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    trains()
    whole, journal = load_checkpoint(run.checkpoint(24), mmap=False), journal_of(run)
    add = LossRecord.add

    def add_and_stop(self: LossRecord, loss: Tensor) -> None:
        add(self, loss)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(LossRecord, "add", add_and_stop)
        assert trains("--overwrite") == 128 + signal.SIGTERM
        assert trains() == 128 + signal.SIGTERM
    assert run.checkpoint_steps() == [0, 1, 2]
    assert trains() == 0
    seen_more_often = {"/observer_state_dict/leak_peak"}  # every stop is one more record
    assert set(differences(load_checkpoint(run.checkpoint(24)), whole)) <= seen_more_often
    assert journal_of(run) == journal


def test_the_same_command_again_says_that_it_is_done(
    trains: Train, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    trains()
    before = run.checkpoint(24).stat().st_mtime_ns
    capsys.readouterr()
    assert trains() == 0
    assert "step 24/24 is done already" in capsys.readouterr().err
    assert run.checkpoint(24).stat().st_mtime_ns == before


def test_another_configuration_is_refused_by_name(trains: Train, run: RunFolder) -> None:
    trains()
    with pytest.raises(UserError) as caught:
        trains("--lr 0.1 --lr-drops 1 --width 8")
    message = str(caught.value)
    assert "--lr was 0.05 and is now 0.1" in message
    assert "--lr-drops was unset and is now 1" in message
    assert "--width was 16 and is now 8" in message
    assert "epochs" not in message
    assert run.checkpoint_steps() == [0, 12, 24]


def test_flags_without_effect_on_the_numbers_may_change(trains: Train) -> None:
    trains()
    assert trains("--device cpu --data-dir elsewhere") == 0


def test_a_moved_run_can_be_continued(trains: Train, run: RunFolder, tmp_path: Path) -> None:
    trains()
    run.path.rename(run.path.with_name("y"))
    assert trains("--expid y") == 0


def test_checkpoints_that_nothing_describes_are_refused(trains: Train, run: RunFolder) -> None:
    trains()
    run.hyperparameters.unlink()
    with pytest.raises(UserError, match="checkpoints but no hyperparameters"):
        trains()


@pytest.mark.parametrize("damage", ["truncated", "empty"])
def test_an_unreadable_newest_checkpoint_is_passed_over(
    trains: Train, run: RunFolder, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trains("--save-freq 6")
    whole = load_checkpoint(run.checkpoint(24), mmap=False)
    journal = journal_of(run)
    for step in (18, 24):
        path = run.checkpoint(step)
        path.write_bytes(path.read_bytes()[: 1000 if damage == "truncated" else 0])
    capsys.readouterr()
    assert trains("--save-freq 6") == 0
    messages = capsys.readouterr().err
    assert "step24.tar is truncated" in messages
    assert "step18.tar is truncated" in messages
    assert "continuing after step 12/24" in messages
    assert differences(load_checkpoint(run.checkpoint(24)), whole) == []
    assert journal_of(run) == journal


def test_overwriting_deletes_what_describes_the_old_run(trains: Train, run: RunFolder) -> None:
    trains("--save-freq 5")
    figure = run.figure("scale", "", "pdf")
    stale = [run.features(5), run.cache("scale")]
    for path in (figure, *stale):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert trains("--lr 0.2 --overwrite") == 0
    assert run.checkpoint_steps() == [0, 12, 24]
    assert run.read_hyperparameters()["lr"] == 0.2
    assert journal_of(run)[-1]["step"] == 24
    assert len(list(run.logs.glob("events*"))) == 1
    assert figure.exists()
    assert not any(path.exists() for path in stale)


def test_a_mistake_beside_overwrite_leaves_the_old_run(trains: Train, run: RunFolder) -> None:
    trains()
    with pytest.raises(UserError, match=r"no file absent\.py"):
        trains("--overwrite --model absent.py:f")
    assert run.checkpoint_steps() == [0, 12, 24]


def test_the_model_may_not_change_under_a_run(
    trains: Train, run: RunFolder, tmp_path: Path
) -> None:
    source = """
from torch import nn
def f(s, c): return nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, {}))
"""
    file = tmp_path / "mine.py"
    file.write_text(source.format("c"))
    command = f"--model {file}:f --save-freq 5"
    trains(command)
    for step in (15, 20, 24):
        run.checkpoint(step).unlink()
    file.write_text(source.format("7), nn.ReLU(), nn.Linear(7, c"))
    with pytest.raises(UserError, match=r"of step 12 does not fit the model .*5\.weight"):
        trains(command)

"""The four stages on a bucket: what they leave there is what they leave in a folder."""

import importlib
import os
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.clouds import Cloud, answering
from tests.experiments import cached
from tests.runs import ROOT, TINY, extract_run, train_run
from tests.training.helpers import differences, journal_of
from Training.checkpoints import load_checkpoint
from Training.config import TrainConfig
from Training.losses import LossRecord
from Utils.buckets import bucket as bucket_module
from Utils.buckets import lease as lease_module
from Utils.buckets import working_copy as working_copy_module
from Utils.buckets.places import BucketPlace
from Utils.cli import parse
from Utils.errors import Diverged, Unreachable, Unreadable, UserError
from Utils.rundir import RunFolder
from Utils.runs import open_run

Stage = Callable[..., int]

OFTEN = f"{TINY} --save-freq 2"
RUN = "some/prefix/e/x"


@pytest.fixture
def stage(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Runs ``<name>.py`` in this process, on a run in the bucket; returns its exit code."""

    def run(name: str, arguments: str = "", expid: str = "x") -> int:
        where = ["--save-dir", cloud.save_dir, "--experiment", "e"]
        argv = [f"{name}.py", *shlex.split(arguments), *where]
        argv += ["--expid", expid] if expid else []
        monkeypatch.setattr(sys, "argv", argv)
        return importlib.import_module(name).main() or 0

    return run


@pytest.fixture
def move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Goes to another machine; returns the folder of its working copies."""

    def to(machine: str) -> Path:
        monkeypatch.setenv("LEARNING_MECHANICS_CACHE", str(tmp_path / machine))
        return tmp_path / machine

    return to


def local(cloud: Cloud) -> Path:
    """The run's working copy on this machine."""
    return BucketPlace(cloud.name, RUN).working_copy


def download(cloud: Cloud, folder: Path) -> RunFolder:
    """The run as the bucket has it."""
    for name in cloud.names(RUN):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cloud.read(name))
    return RunFolder(folder / RUN)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The same run in a folder."""
    return train_run(tmp_path_factory.mktemp("local") / "e" / "x", OFTEN)


def assert_same(cloud: Cloud, folder: Path, undisturbed: RunFolder) -> None:
    """What training left in the bucket is what it leaves in a folder."""
    run = download(cloud, folder)
    assert run.checkpoint_steps() == undisturbed.checkpoint_steps()
    for step in run.checkpoint_steps():
        mine, theirs = (load_checkpoint(r.checkpoint(step)) for r in (run, undisturbed))
        assert differences(mine, theirs) == [], f"step {step}"
    assert journal_of(run) == journal_of(undisturbed)


def at_update(number: int, action: Callable[[], None], patched: pytest.MonkeyPatch) -> None:
    """Do something after an update of the training that follows."""
    add, updates = LossRecord.add, [0]

    def add_and_act(self: LossRecord, loss: Tensor) -> None:
        add(self, loss)
        updates[0] += 1
        if updates[0] == number:
            action()

    patched.setattr(LossRecord, "add", add_and_act)


def test_the_pipeline_in_a_bucket_equals_that_in_a_folder(
    cloud: Cloud,
    stage: Stage,
    move: Callable[[str], Path],
    undisturbed: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert stage("train", OFTEN) == 0
    move("second")  # every stage on a machine of its own
    assert stage("extract") == 0
    move("third")
    assert stage("cache", "--metrics scale,translation,performance") == 0
    capsys.readouterr()
    move("fourth")
    assert stage("plot", "--format png") == 0
    url = f"gs://{cloud.name}/{RUN}"
    assert f"{url}/img/translation.png" in capsys.readouterr().out.splitlines()
    assert_same(cloud, tmp_path / "bucket", undisturbed)
    in_bucket = RunFolder(tmp_path / "bucket" / RUN)

    monkeypatch.chdir(tmp_path)
    names = ["--save-dir", str(undisturbed.path.parents[1]), "--experiment", "e", "--expid", "x"]
    for name, flags in (("extract", []), ("cache", ["--metrics", "scale,translation,performance"])):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *flags, *names])
        importlib.import_module(name).main()
    for folder in ("feats", "cache"):
        files = sorted((undisturbed.path / folder).iterdir())
        assert sorted(path.name for path in (in_bucket.path / folder).iterdir()) == [
            path.name for path in files
        ]
        for path in files:
            assert (in_bucket.path / folder / path.name).read_bytes() == path.read_bytes(), path
    assert in_bucket.symmetries.read_bytes() == undisturbed.symmetries.read_bytes()
    log = (in_bucket.logs / "run.log").read_text()
    assert [word in log for word in ("train: finished", "checkpoints of 7 extracted", "cached to")]
    assert list(in_bucket.logs.glob("events.out.tfevents.*"))
    assert not list(in_bucket.logs.glob("*.lock"))

    machine = move("fifth")  # nothing new: neither checkpoints nor features are fetched
    for name in ("extract", "cache --metrics scale"):
        assert stage(*name.split(maxsplit=1)) == 0
    assert not list(machine.rglob("step*.tar")) + list(machine.rglob("step*.h5"))
    cloud.delete(f"{RUN}/feats/step4.h5")
    cloud.delete(f"{RUN}/feats/step6.h5")
    assert stage("extract") == 0
    assert [path.name for path in sorted(machine.rglob("step*.tar"))] == ["step4.tar", "step6.tar"]
    capsys.readouterr()
    assert stage("plot", "--format png") == 0
    assert f"{url}/img/translation.png is up to date" in capsys.readouterr().out
    assert stage("extract", "--overwrite --probe activations") == 0


def test_a_killed_run_goes_on_elsewhere(
    cloud: Cloud,
    stage: Stage,
    move: Callable[[str], Path],
    undisturbed: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = (
        "import os, signal, sys, train\nfrom Training.losses import LossRecord\n"
        "add, calls = LossRecord.add, []\n"
        "def die(self, loss):\n"
        "    add(self, loss)\n    calls.append(1)\n"
        f"    if len(calls) == 7: os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
        "LossRecord.add = die\nsys.exit(train.main())\n"
    )
    where = ["--save-dir", cloud.save_dir, "--experiment", "e", "--expid", "x"]
    killed = subprocess.run(
        [sys.executable, "-c", code, *OFTEN.split(), *where],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    first = local(cloud)
    move("second")
    with pytest.raises(UserError, match=r"gs://.*/e/x: train is already running \(pid \d+ on"):
        stage("train", OFTEN)
    monkeypatch.setattr(lease_module, "SECONDS", 0.0)
    assert stage("train", OFTEN) == 0
    assert_same(cloud, tmp_path / "bucket", undisturbed)
    assert first != local(cloud)
    move("machine")  # where the killed one ran
    assert stage("train", OFTEN) == 0
    assert "step 12/12 is done already" in capsys.readouterr().err
    assert_same(cloud, tmp_path / "again", undisturbed)


def test_a_killed_run_goes_on_where_it_was_at_once(
    cloud: Cloud, stage: Stage, undisturbed: RunFolder, tmp_path: Path, monkeypatch: Any
) -> None:
    """As SIGKILL leaves it: a lease and nothing sent."""
    with monkeypatch.context() as patched:
        patched.setattr(working_copy_module.WorkingCopy, "_send", lambda *_: None)
        patched.setattr(lease_module.Lease, "__exit__", lambda lease, *_: lease._ends.set())
        at_update(7, lambda: os.kill(os.getpid(), signal.SIGTERM), patched)
        assert stage("train", OFTEN) == 128 + signal.SIGTERM
    assert cloud.names(RUN) == [f"{RUN}/logs/train.lock"]
    assert stage("train", OFTEN) == 0
    run = download(cloud, tmp_path / "bucket")
    assert run.checkpoint_steps() == [0, 2, 4, 6, 7, 8, 10, 12]
    assert journal_of(run) == journal_of(undisturbed)


def test_training_survives_a_server_that_is_killed_and_comes_back(
    cloud: Cloud,
    stage: Stage,
    undisturbed: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bucket_module, "_WITHIN_UPLOAD", None)
    with monkeypatch.context() as patched:
        at_update(3, cloud.emulator.kill, patched)
        at_update(11, cloud.emulator.start, patched)
        assert stage("train", OFTEN) == 0
    assert_same(cloud, tmp_path / "bucket", undisturbed)


def test_a_server_that_stays_away_leaves_everything_here(
    cloud: Cloud,
    stage: Stage,
    undisturbed: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bucket_module, "_WITHIN_UPLOAD", None)
    monkeypatch.setattr(bucket_module, "_TIMEOUT", (0.5, 0.5))
    monkeypatch.setattr(working_copy_module, "PATIENCE", 0.2)
    make = bucket_module.Bucket.__init__
    with monkeypatch.context() as patched:
        patched.setattr(bucket_module.Bucket, "__init__", lambda b, name, _: make(b, name, 0.3))
        at_update(5, cloud.emulator.kill, patched)
        with pytest.raises(UserError, match=r"; not in the bucket yet, and kept on this machine: "):
            stage("train", OFTEN)
        with pytest.raises(Unreachable, match=f"gs://{cloud.name} does not answer"):
            stage("train", OFTEN)
    cloud.emulator.start()
    assert RunFolder(local(cloud)).checkpoint_steps() == [0, 2, 4, 6, 8, 10, 12]
    assert stage("train", OFTEN) == 0
    assert_same(cloud, tmp_path / "bucket", undisturbed)


def test_a_damaged_newest_checkpoint_is_passed_over(
    cloud: Cloud,
    stage: Stage,
    move: Callable[[str], Path],
    undisturbed: RunFolder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stage("train", OFTEN)
    cloud.damage(f"{RUN}/ckpt/step12.tar")
    cloud.write(f"{RUN}/ckpt/step10.tar", b"too short")
    move("second")
    capsys.readouterr()
    assert stage("train", OFTEN) == 0
    messages = capsys.readouterr().err
    url = f"gs://{cloud.name}/{RUN}/ckpt"
    assert f"passing over a checkpoint: {url}/step12.tar is damaged" in messages
    assert f"'gcloud storage rm {url}/step12.tar'" in messages
    assert f"passing over a checkpoint: {url}/step10.tar is truncated" in messages
    assert "continuing after step 8/12" in messages
    assert_same(cloud, tmp_path / "bucket", undisturbed)


def test_damaged_objects_are_named_by_the_other_stages(
    cloud: Cloud, stage: Stage, move: Callable[[str], Path]
) -> None:
    stage("train", TINY)
    cloud.damage(f"{RUN}/ckpt/step6.tar")
    move("second")
    url = f"gs://{cloud.name}/{RUN}"
    with pytest.raises(UserError, match=f"{url}/ckpt/step6.tar is damaged.*all 2 others are done"):
        stage("extract")
    cloud.damage(f"{RUN}/feats/step0.h5")
    move("third")
    with pytest.raises(UserError, match=f"{url}/feats/step0.h5 is damaged.*all 1 others"):
        stage("cache", "--metrics translation")
    cloud.damage(f"{RUN}/hyperparameters.json")
    move("fourth")
    with pytest.raises(Unreadable, match=f"{url}/hyperparameters.json is damaged"):
        stage("plot")


def test_overwriting_deletes_in_the_bucket(
    cloud: Cloud, stage: Stage, move: Callable[[str], Path]
) -> None:
    stage("train", OFTEN)
    stage("extract")
    cloud.write(f"{RUN}/img/scale.pdf", b"a figure")
    first = local(cloud)
    move("second")
    assert stage("train", f"{TINY} --lr 0.2 --overwrite") == 0
    names = [name.removeprefix(f"{RUN}/") for name in cloud.names(RUN)]
    assert [name for name in names if name.startswith(("ckpt", "feats", "img"))] == [
        "ckpt/step0.tar",
        "ckpt/step12.tar",
        "ckpt/step6.tar",
        "feats/probe.h5",
        "img/scale.pdf",
    ]
    assert len([name for name in names if "events" in name]) == 1
    move("machine")  # has the old run
    assert RunFolder(first).checkpoint_steps() == [0, 2, 4, 6, 8, 10, 12]
    assert stage("extract") == 0
    assert RunFolder(first).read_hyperparameters()["lr"] == 0.2
    assert len(cloud.names(f"{RUN}/feats/step")) == 3


def test_a_report_of_an_experiment(
    cloud: Cloud,
    stage: Stage,
    move: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for expid, lr in (("a", "0.1"), ("b", "0.2")):
        stage("train", f"{TINY} --lr {lr}", expid)
        stage("extract", "--probe none", expid)
        stage("cache", "--metrics performance", expid)
    move("second")
    capsys.readouterr()
    assert stage("plot", "--report", "") == 0
    url = f"gs://{cloud.name}/some/prefix/e/report.html"
    assert capsys.readouterr().out == f"{url}\n"
    page = cloud.read("some/prefix/e/report.html").decode()
    assert "e: 2 runs" in page
    move("third")
    stage("plot", "--report", "")
    assert stage("plot", "--report", "a") == 0
    assert cloud.names("some/prefix/e/a/img") == ["some/prefix/e/a/img/report.html"]
    with pytest.raises(UserError, match=r"gs://.*/some/prefix/e/c has no cache to draw"):
        stage("plot", "--report", "c")


def test_metrics_of_a_sweep_that_was_copied_here(
    cloud: Cloud,
    stage: Stage,
    move: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Trained in a folder; cached on one machine, drawn on another, as in the folder."""
    folder = tmp_path / "e"
    for expid, width in (("a", 8), ("b", 16)):
        extract_run(train_run(folder / expid, f"--model fc --width {width}"), "--probe none")
    with pytest.raises(Diverged):
        train_run(folder / "c", "--model fc --width 16 --lr 1e60")
    for file in folder.rglob("*"):
        if file.is_file() and file.suffix != ".lock":  # as scripts/sync_gcloud.sh copies
            cloud.write(f"some/prefix/{file.relative_to(tmp_path)}", file.read_bytes())

    machine = move("second")
    assert stage("cache", "--metrics transfer,gradients", "") == 0
    assert "1 of 3 runs diverged" in capsys.readouterr().out
    assert not [*machine.rglob("ckpt/*.tar")]  # what is not read is not fetched
    assert stage("cache", "--metrics transfer,gradients", "") == 0
    log = cloud.read("some/prefix/e/logs/cache.log").decode()
    assert "0 new checkpoints of 2 runs measured" in log
    cached(folder, "--metrics transfer,gradients")
    for metric in ("transfer", "gradients"):
        table = cloud.read(f"some/prefix/e/cache/{metric}.csv")
        assert table == (folder / "cache" / f"{metric}.csv").read_bytes()

    move("third")
    capsys.readouterr()
    assert stage("plot", "--format png", "") == 0  # all that there is
    drawn = [
        f"some/prefix/e/img/{metric}{part}.png"
        for metric in ("gradients", "transfer")
        for part in ("", "-exponents")
    ]
    assert capsys.readouterr().out.split() == [f"gs://{cloud.name}/{name}" for name in drawn]
    assert cloud.names("some/prefix/e/img") == sorted(drawn)
    assert stage("plot", "--report", "") == 0
    page = cloud.read("some/prefix/e/report.html").decode()
    for title in ("Gradients of the outputs", "Learning-rate transfer", "The runs compared"):
        assert f">{title}</h2>" in page


def test_a_bucket_that_is_not_there(cloud: Cloud, stage: Stage) -> None:
    cloud.client.bucket(cloud.name).delete()
    with pytest.raises(Unreachable, match=f"gs://{cloud.name}: there is no such bucket"):
        stage("train", TINY)


def test_a_full_disk_while_fetching(
    cloud: Cloud, stage: Stage, move: Callable[[str], Path]
) -> None:
    stage("train", TINY)
    move("second")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
    try:
        for name in ("extract", f"train {TINY}"):
            with pytest.raises(UserError, match=r"cannot access .*/second/.*file-size limit"):
                stage(*name.split(maxsplit=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(local(cloud).rglob("*.tmp")) + list(local(cloud).rglob("step*.tar"))
    assert stage("extract") == 0


def test_the_command_line_reports_a_refusal(cloud: Cloud) -> None:
    where = "--experiment e --expid x"
    with answering(403) as url:
        done = subprocess.run(
            [sys.executable, "train.py", "--save-dir", cloud.save_dir, *where.split()],
            cwd=ROOT,
            env=os.environ | {"STORAGE_EMULATOR_HOST": url},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"train.py: error: gs://{cloud.name}/{RUN}/: access denied")


def test_folders_do_without_the_client(tmp_path: Path) -> None:
    argv = ["--save-dir", str(tmp_path), "--experiment", "e", "--expid", "x"]
    with open_run(parse(TrainConfig, argv)) as run:
        assert run.path == tmp_path / "e" / "x"
    code = (
        "import sys\nfrom Training.config import TrainConfig\nfrom Utils.cli import parse\n"
        "from Utils.runs import open_run\n"
        f"with open_run(parse(TrainConfig, {argv})): sys.exit('google.cloud' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0

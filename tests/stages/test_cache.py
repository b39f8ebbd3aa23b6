"""cache.py as a process: what it prints, full disks, kills, other processes."""

import os
import re
import socket
from pathlib import Path

import pytest

from Metrics.summary import deviation
from tests.runs import (
    Runs,
    cache_run,
    extract_run,
    flags_of,
    mistake,
    run_code,
    run_stage,
    train_run,
)
from Utils.errors import UserError
from Utils.rundir import RunFolder

BN = "--model conv-bn --width 4 --save-freq 5"


def contents(run: RunFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run.path / "cache").iterdir()}


def test_it_prints_how_far_measurements_are_from_their_laws(own: Runs) -> None:
    run = own(BN)
    code, output, errors = run_stage("cache", run)
    assert code == 0
    assert errors.startswith(f"cache: 5 new steps of 5 cached to {run.path}/cache\n")
    lines = output.splitlines()
    assert lines[0].startswith("largest |measured − predicted| / size")
    rows = [line.split() for line in lines[2:]]
    assert [(row[1], row[2], row[3]) for row in rows] == [
        ("scale", "8", "8"),
        ("rescale", "8", "8"),
        ("translation", "265", "265"),
    ]
    assert all(0 < float(row[4]) < 1e-5 for row in rows)


RESIDUAL = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.stem, self.first = nn.Linear(64, 8), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.last, self.head = nn.LayerNorm(8), nn.Linear(8, classes)

    def forward(self, x):
        x = self.stem(x.flatten(1))
        return self.head(self.last(x + self.down(torch.relu(self.up(self.first(x))))))


def net(input_shape, num_classes):
    return Net(num_classes)
"""


def test_a_users_model_has_its_laws(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(RESIDUAL)
    flags = f"--model {tmp_path}/mine.py:net --epochs 6 --lr 0.05 --wd 1e-2"
    run = train_run(tmp_path / "e" / "x", flags)
    extract_run(run)
    found = {d.metric: d for d in map(deviation, cache_run(run)) if d is not None}
    # the residual stream; gain to up, up to down, gain to head; sums that a norm or softmax ignores
    laws = {"scale": 1, "rescale": 8 + 16 + 8, "translation": 64 + 1 + 16 + 1 + 8 + 1}
    assert {metric: d.laws for metric, d in found.items()} == laws
    assert {metric: d.open for metric, d in found.items()} == laws
    assert max(d.worst[0] for d in found.values()) < 1e-5


def test_metrics_that_run_the_network_are_computed_if_they_are_named(own: Runs) -> None:
    run = own("--model fc --width 4 --depth 3")
    named = "--metrics sharpness,certificate"
    code, output, errors = run_stage("cache", run, f"{named} --examples 32 --eigenvalues 1")
    assert (code, errors) == (0, f"cache: 3 new steps of 3 cached to {run.path}/cache\n")
    assert re.fullmatch(
        r"certified: run0 13 of 13 laws; logits moved by up to \d\.\de-0[67]\n", output
    )
    assert set(contents(run)) == {"sharpness.h5", "certificate.h5"}
    message = mistake("cache", run, "--metrics sharpness --eigenvalues 5000 --overwrite")
    assert message.startswith("--eigenvalues 5000: the network has ")


def test_mistakes_on_the_command_line(own: Runs) -> None:
    run = own(BN)
    message = mistake("cache", run, "--metrics scale,performence")
    assert message.startswith("unknown metric 'performence'; did you mean 'performance'? ")
    assert mistake("cache", run, "--subset -1").startswith("--subset -1: input should be greater")
    assert not (run.path / "cache").exists()


def test_a_full_disk_loses_nothing(own: Runs) -> None:
    run = own(BN)
    (old,) = cache_run(run, "--metrics performance")
    before = old.read_bytes()
    message = mistake("cache", run, largest_file=30_000)
    assert re.match(r"cannot access \S+/translation\.h5: the file-size limit was reached", message)
    assert set(contents(run)) == {"performance.h5", "scale.h5", "rescale.h5"}
    assert old.read_bytes() == before
    cache_run(run)
    assert len(contents(run)) == 5


def test_a_file_where_a_folder_should_be(own: Runs) -> None:
    run = own(BN)
    (run.path / "cache").touch()
    with pytest.raises(UserError, match=r"/cache: there is a file where a folder is needed"):
        cache_run(run)


def test_a_killed_caching_is_continued(own: Runs) -> None:
    whole, run = own(BN), own(BN)
    cache_run(whole)
    code = (
        "import os, signal, sys\n"
        "replace = os.replace\n"
        "def dying(source, target):\n"
        "    if str(target).endswith('translation.h5'): os.kill(os.getpid(), signal.SIGKILL)\n"
        "    replace(source, target)\n"
        "os.replace = dying\n"
        f"sys.argv = {['cache.py', *flags_of(run)]}\n"
        "import cache\n"
        "cache.main()\n"
    )
    assert run_code(code) == -9
    assert set(contents(run)) == {"scale.h5", "rescale.h5", "translation.h5.tmp"}
    cache_run(run)
    assert contents(run) == contents(whole)


def test_a_second_process_is_refused_with_the_firsts_pid_and_host(own: Runs) -> None:
    run = own(BN)
    with run.lock("cache"):
        message = mistake("cache", run)
    holder = f"pid {os.getpid()} on {socket.gethostname()}"
    assert message == f"{run.path}: cache is already running ({holder}); wait for it or stop it"

"""Sweeps that end with metrics of the whole experiment, and sweeps in one process."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import pytest

from scripts.sweep import main
from scripts.sweeps.stages import divided
from tests.runs import ROOT
from tests.scripts.sweeps import STEPS, Sweep, wait_for
from Utils.errors import UserError

GRID = (
    "--experiment e --jobs 0 --model fc --depth 3 --param mup --width 4 8 --epochs 1 "
    "--train-batch-size 240 --save-at 1 --no-laws"
)
CHECK = ["--extract", "--probe none", "--cache", "--metrics coordinates", "--stages"]


@pytest.mark.parametrize(
    ("stages", "whole"),
    [
        ({"cache": ("--metrics", "coordinates,ranks"), "train": ()}, ["cache"]),
        ({"train": (), "cache": ("--metrics", "coordinates"), "plot": ()}, ["cache", "plot"]),
        ({"cache": (), "plot": ()}, []),
        ({"cache": (), "plot": ("--metrics", "transfer")}, ["plot"]),
        ({"cache": ("--metrics", "ranks"), "plot": ("--metrics", "scale")}, ["cache"]),
        ({"train": (), "plot": ("--report",)}, []),
    ],
)
def test_metrics_say_whose_stage_it_is(
    stages: dict[str, tuple[str, ...]], whole: list[str]
) -> None:
    of_each, together = divided(stages)
    assert list(together) == whole
    assert {**of_each, **together} == stages
    order = ["train", "extract", "cache", "plot"]
    assert list(of_each) == [name for name in order if name in stages and name not in whole]


def test_metrics_of_runs_and_of_experiments_are_two_commands() -> None:
    with pytest.raises(UserError, match="give them to two commands"):
        divided({"cache": ("--metrics", "scale,coordinates")})


def test_one_process_brings_a_coordinate_check_to_its_exponents(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.sweep", "--save-dir", str(tmp_path), *GRID.split()]
    done = subprocess.run(
        [*command, *CHECK, "train,extract,cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "coordinates, all: widths 4 to 8 (2), 1 seed; " in done.stdout
    folder = tmp_path / "e"
    assert [path.name for path in folder.glob(".sweep/*")] == ["manifest.json"]  # no other process
    with h5py.File(folder / "cache" / "coordinates.h5") as file:
        assert file["widths"][()].tolist() == [4, 8]
        assert file["steps"][()].tolist() == [0, 1, 6]
    runs = sorted(folder.glob("width=*"))
    attempts = [json.loads((run / "logs" / "attempt-1.json").read_text()) for run in runs]
    assert [set(attempt["done"]) for attempt in attempts] == [{"train", "extract"}] * 2
    command_of_run = json.loads((runs[0] / "hyperparameters.json").read_text())["provenance"]
    assert command_of_run["command"].startswith("train.py --model fc")


def test_the_whole_waits_for_all_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the runs are said by the manifest alone, and one of them is elsewhere."""

    def sweep(*arguments: str) -> int:
        argv = ["sweep.py", "--save-dir", str(tmp_path), *arguments]
        monkeypatch.setattr(sys, "argv", argv)
        code = main()
        assert sys.argv is argv
        return code

    handler = signal.getsignal(signal.SIGTERM)
    assert sweep(*GRID.split(), "--stages", "train") == 0
    assert signal.getsignal(signal.SIGTERM) is handler
    capsys.readouterr()
    assert sweep("--experiment", "e", "--jobs", "0", *CHECK, "train,extract,cache,plot") == 0
    assert "2 runs: 2 done" in capsys.readouterr().out
    assert (tmp_path / "e" / "img" / "coordinates.png").exists()
    assert sweep("--experiment", "e", "--jobs", "0") == 0
    assert "coordinates, all:" in capsys.readouterr().out
    run = next((tmp_path / "e").glob("width=4*"))
    attempts = sorted((run / "logs").glob("attempt-*.json"))
    ours = json.loads(attempts[-1].read_text())
    born = Path(f"/proc/{os.getpid()}/stat").read_text().rpartition(")")[2].split()[19]
    assert ours["process"] == [os.getpid(), born]
    attempts[-1].write_text(json.dumps({**ours, "state": "running"}))
    assert sweep("--experiment", "e", "--jobs", "0") == 0
    told = "cache and plot of the experiment waits for 1 runs; give the same command then"
    assert told in capsys.readouterr().out


def test_ctrl_c_in_one_process(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, ["slow1", "slow2"])
    process = sweep.start("--jobs", "0")
    wait_for(tmp_path / "slow1")
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.endswith("sweep: stopped; the same command continues\n")
    assert sweep.attempts()["slow1"][-1]["state"] == "stopped"
    assert "slow2" not in sweep.steps()
    code, lines, errors = sweep.run("--jobs", "0")
    assert (code, lines[-1]) == (0, "2 runs: 2 done"), errors
    assert set(sweep.steps().values()) == {STEPS}


def test_slurm_needs_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = f"--save-dir {tmp_path} {GRID} --slurm time=5"
    monkeypatch.setattr(sys, "argv", ["sweep.py", *flags.split()])
    with pytest.raises(UserError, match="--jobs 0 with --slurm"):
        main()

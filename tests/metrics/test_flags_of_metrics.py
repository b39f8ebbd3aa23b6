"""Flags about single metrics: read by those of which the registry says so; else it is told."""

import json
import subprocess
import sys
from pathlib import Path

import h5py
import pytest

from Metrics import CacheConfig
from Metrics.registry import METRICS
from tests.runs import ROOT, Runs, cache_run, run_stage
from Utils.cli import parse

FLAGS = ("subset", "examples", "eigenvalues", "kernel", "kernel-on", "reference")
READERS = [entry.name for entry in METRICS if entry.flags]


@pytest.mark.parametrize("kernel_on", ["probe", "train"])
def test_caches_name_the_flags_that_their_metric_reads(own: Runs, kernel_on: str) -> None:
    run = own("--model fc --width 8 --loss mse --save-freq 4 --probe-size 8 --save-buffers grad")
    flags = f"--metrics {','.join(READERS)} --kernel-on {kernel_on} --examples 20"
    cache_run(run, flags)
    for name in READERS:
        with h5py.File(run.cache(name)) as file:
            settings = json.loads(file.attrs["settings"])
        read = {flag.replace("_", "-") for flag in METRICS[name].flags}
        if "kernel-on" in read and kernel_on == "train":
            read.add("examples")
        assert set(settings) & set(FLAGS) == read, name


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--metrics ntk --reference 4", "--reference 4 has no effect: it is for alignment, modes,"),
        ("--metrics ntk,lazy --examples 9", "--examples 9 has no effect with --kernel-on probe: "),
        ("--metrics scale --kernel full", "--kernel full has no effect: it is for ntk, spectrum,"),
        ("--eigenvalues 2", "--eigenvalues 2 has no effect: it is for sharpness"),
        ("--metrics coordinates --subset 4", "--subset 4 has no effect: it is for network, "),
        ("--metrics ntk --kernel-on train --examples 9", ""),
        ("--metrics modes --examples 9", ""),
        ("--metrics ntk,alignment --reference 4", ""),
        ("--metrics scale,network --subset 4", ""),
        ("--metrics scale --subset 32", ""),  # the default
    ],
)
def test_a_flag_that_nothing_reads_is_told(flags: str, told: str) -> None:
    expid = [] if "coordinates" in flags else ["--expid", "x"]
    lines = parse(CacheConfig, ["--experiment", "e", *expid, *flags.split()]).without_effect()
    assert len(lines) == (told != "")
    assert all(line.startswith(told) for line in lines)


def test_the_commands_tell_it(own: Runs, grid: Path) -> None:
    code, _, errors = run_stage("cache", own(""), "--metrics scale --subset 4")
    assert code == 0
    assert "cache: --subset 4 has no effect: it is for network, weights_grads, " in errors
    line = [sys.executable, str(ROOT / "cache.py"), "--metrics", "gradients", "--reference", "1"]
    place = ["--experiment", grid.name, "--save-dir", str(grid.parent)]
    found = subprocess.run([*line, *place], capture_output=True, text=True, check=True)
    assert "cache: --reference 1 has no effect: it is for alignment" in found.stderr

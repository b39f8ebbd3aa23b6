"""Caches of experiments: groups, what is new, what is missing, damage, tables, exit codes."""

import csv
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import h5py
import pytest
import xarray

from Metrics import CacheConfig
from Metrics.fits import Fit
from Metrics.registry import scope_of
from Metrics.width.caching import disagreement
from Metrics.width.command import cache_and_tell
from Metrics.width.exponents import Exponent, unconfirmed
from Metrics.width.metric import Quantity
from tests.experiments import (
    FLAGS,
    SEEDS,
    STEPS,
    WIDTHS,
    cached,
    make,
)
from tests.runs import ROOT
from Utils.cli import parse
from Utils.errors import UserError


def test_only_what_is_new_is_measured(grid: Path) -> None:
    held = grid.parent / "held"
    shutil.move(grid / "w128-s3", held)
    (first,) = cached(grid, "--metrics gradients")
    shutil.move(held, grid / "w128-s3")
    run, *_ = grid.glob("w16-s1/feats/step0.h5")
    before = first.path.read_bytes()
    run.rename(run.with_name("away.h5"))
    cached(grid, "--metrics gradients")  # one more run, and one that lacks step 0
    text = (grid / "logs" / "cache.log").read_text()
    assert "w16-s1 is left out: no features of step 0" in text
    assert f"{1 + STEPS} new checkpoints of 14 runs measured" in text
    run.with_name("away.h5").rename(run)
    (third,) = cached(grid, "--metrics gradients")
    (fresh,) = cached(grid, "--metrics gradients --overwrite")
    assert [e.row() for e in third.exponents] == [e.row() for e in fresh.exponents]
    assert before != third.path.read_bytes()
    (again,) = cached(grid, "--metrics gradients")
    assert "0 new checkpoints of 15 runs measured" in (grid / "logs" / "cache.log").read_text()
    assert again.exponents == fresh.exponents


def test_workers_find_the_same(grid: Path) -> None:
    for run in [*grid.glob("w128-*"), *grid.glob("w256-*")]:
        shutil.rmtree(run)
    (here,) = cached(grid, "--metrics gradients")
    (there,) = cached(grid, "--metrics gradients --overwrite --workers 1")
    assert there.exponents == here.exponents


def test_a_damaged_run_stops_no_other(grid: Path) -> None:
    (grid / "w16-s1" / "feats" / f"step{STEPS}.h5").write_bytes(b"no HDF5")
    with pytest.raises(UserError, match=r"w16-s1.*all 14 others are done"):
        cached(grid, "--metrics gradients")
    with h5py.File(grid / "cache" / "gradients.h5") as file:
        assert len(file["runs"]) == 14


def test_an_experiment_without_runs_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "e").mkdir()
    with pytest.raises(UserError, match="has no run that can be measured"):
        cached(tmp_path / "e", "--metrics coordinates")


def test_runs_left_out_for_one_reason_are_told_together(grid: Path) -> None:
    for seed in (1, 2, 3):
        shutil.rmtree(grid / f"w16-s{seed}" / "feats")
    cached(grid, "--metrics gradients")
    log = (grid / "logs" / "cache.log").read_text()
    assert "3 runs (w16-s1, …) are left out: no features; run extract.py first" in log


def test_an_experiment_that_is_not_there(grid: Path) -> None:
    flags = ["--save-dir", str(grid.parent), "--experiment", "spp"]
    with pytest.raises(UserError, match="unknown experiment 'spp'; did you mean 'sp'") as error:
        cache_and_tell(parse(CacheConfig, [*flags, "--metrics", "gradients"]))
    assert "available: sp" in str(error.value)


def test_the_table_is_a_csv_and_xarray_opens_the_cache(grid: Path) -> None:
    (found,) = cached(grid, "--metrics gradients")
    with open(found.path.with_suffix(".csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found.exponents)
    assert [float(row["exponent"]) for row in rows] == [e.fit.exponent for e in found.exponents]
    assert {row["predicted"] for row in rows} == {"-1/2", ""}
    groups = xarray.open_groups(found.path, engine="h5netcdf")
    assert groups["/"]["widths"].dims == ("runs",)
    assert groups["/output gradient"]["fc1"].dims == ("runs", "steps")


def test_contradictions_end_the_command_with_1(grid: Path) -> None:
    found = cached(grid, "--metrics gradients")
    assert not disagreement(found)
    for n in WIDTHS:  # what was trained with lr 8/n is now said to be trained with 8
        for seed in SEEDS:
            path = grid / f"w{n}-s{seed}" / "hyperparameters.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"lr": 8.0}))
    flags = f"--save-dir {grid.parent} --experiment sp --metrics coordinates --assert".split()
    command = [sys.executable, "cache.py", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.search(r"contradiction: own fc1, step 1 of all: -1\.\S+ \(-1/2\)!", done.stderr)
    assert done.stdout.startswith("coordinates, all: widths 16 to 256 (5), 3 seeds; ")
    row = next(line for line in done.stdout.splitlines() if line.startswith("own  "))
    assert "(-1/2)!" in row


def test_nothing_to_compare_is_no_success(tmp_path: Path) -> None:
    found = cached(make(tmp_path / "e", FLAGS, widths=(16,)), "--metrics gradients")
    with pytest.raises(UserError, match="--assert: no exponent has a prediction"):
        disagreement(found)


def test_metrics_read_runs_or_experiments() -> None:
    assert scope_of(["gradients", "coordinates"], "") == "experiment"
    assert scope_of(["gradient", "scale"], "x") == "run"
    with pytest.raises(UserError, match=r"gradients reads a whole .* scale reads single"):
        scope_of(["gradients", "scale"], "")
    with pytest.raises(UserError, match=r"--expid x: gradients reads all runs.*leave --expid out"):
        scope_of(["gradients"], "x")


def test_other_groups_and_other_predictions(tmp_path: Path) -> None:
    """Two learning rates are two groups; constant ones are unstable."""
    flags = f"{FLAGS} --no-bias"
    path = make(tmp_path / "e", flags, "1e-3")
    for run in list(path.iterdir()):
        run.rename(run.with_name(f"a-{run.name}"))
    make(path, flags, "2e-3")
    (found,) = cached(path, "--metrics coordinates")
    assert [(g.label, len(g.members)) for g in found.groups] == [("lr=0.001", 2), ("lr=0.002", 2)]
    predicted = {
        (e.quantity.name, e.quantity.layer): str(e.predicted)
        for e in found.exponents
        if e.step == 1 and e.group == "lr=0.001"
    }
    assert [predicted["own", layer] for layer in ("fc1", "fc2", "fc3")] == ["-1/2", "1/2", "1"]
    assert predicted["change", "classifier"] == "2"


def test_groups_are_told_by_what_they_have(tmp_path: Path) -> None:
    """Runs of one width each, of which one has a momentum: it follows from the optimizer."""
    path = make(tmp_path / "e", FLAGS, "1e-3", widths=(4,))
    make(path, f"{FLAGS} --optimizer momentum --momentum 0.5", "1e-3", widths=(5,))
    make(path, f"{FLAGS} --optimizer momentum --momentum 0.5", "1e-3", widths=(4,), seeds=(2,))
    (found,) = cached(path, "--metrics update-norms")
    assert {g.label for g in found.groups} == {"optimizer=sgd", "optimizer=momentum"}
    make(path, f"{FLAGS} --optimizer momentum --momentum 0.9", "1e-3", widths=(6,))
    (found,) = cached(path, "--metrics update-norms")
    assert {g.label for g in found.groups} == {
        "optimizer=sgd",
        "momentum=0.5 optimizer=momentum",
        "momentum=0.9 optimizer=momentum",
    }
    (found,) = cached(path, "--metrics init-distribution")
    assert "exponents need two widths" in found.text()


def test_theory_is_silent_where_it_does_not_apply(tmp_path: Path) -> None:
    path = make(tmp_path / "e", f"{FLAGS} --wd 0.1", "0.1")
    (found,) = cached(path, "--metrics gradients")
    assert {e.predicted for e in found.exponents} == {None}
    assert "no theory: weight decay" in found.text()
    assert all(e.verdict == "" for e in found.exponents)


def test_many_exponents_that_only_may_agree_later_are_no_agreement() -> None:
    fits = [Fit(e, 0.01, e, widths=5, seeds=5) for e in (*[0.0] * 38, -0.3, -0.3)]
    table = [
        Exponent("g", Quantity("change", f"fc{k}"), 1, fit, Fraction(0), Fraction(-1, 2))
        for k, fit in enumerate(fits)
    ]
    assert unconfirmed(table) == []
    told = "g: only 37 of 39 exponents agree with theory, 2 not yet (~)"
    assert unconfirmed(table[1:]) == [told]
    assert unconfirmed([replace(one, predicted=None) for one in table[1:]]) == []

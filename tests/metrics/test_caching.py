"""How caches are made: in one pass, bit by bit, whole or not at all."""

import gc
import shutil
import weakref
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray

from Metrics import METRICS, CacheConfig, caching
from Metrics.cache_file import Part
from Metrics.features import StepFeatures
from Metrics.metric import Metric
from Metrics.registry import DEFAULT_METRICS, OF_RUNS
from Metrics.summary import deviation, deviation_table
from tests.runs import Runs, cache_run, copy_run, extract_run, run_code, train_run
from Utils.cli import parse
from Utils.errors import UserError
from Utils.rundir import RunFolder
from Utils.storage import write_hdf5

SAVED = "--save-freq 5 --save-buffers grad,update"
BN = f"--model conv-bn --width 4 {SAVED}"
LINEAR = f"--model fc --depth 3 --width 4 --nonlinearity identity {SAVED}"
STEPS = [0, 5, 6, 10, 12]
LAWS = "--metrics scale,rescale,translation"
EVERY = f"--metrics {','.join(OF_RUNS)} --examples 16 --eigenvalues 1"


def contents(run: RunFolder) -> dict[str, bytes]:
    """The caches of a run, byte by byte."""
    return {path.name: path.read_bytes() for path in (run.path / "cache").iterdir()}


def steps_of(path: Path) -> list[int]:
    with h5py.File(path) as file:
        steps: list[int] = file["steps"][()].tolist()
    return steps


# ---------------------------------------------------------------- one pass


def test_all_metrics_are_cached_in_one_pass(own: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    run = own(BN)
    opened: list[str] = []

    def counting(name: Any, *args: Any, **kwargs: Any) -> Any:
        opened.append(str(name))
        return h5py_file(name, *args, **kwargs)

    h5py_file = h5py.File
    monkeypatch.setattr(h5py, "File", counting)
    features = [str(run.features(step)) for step in STEPS]
    assert {path.stem for path in cache_run(run)} == set(DEFAULT_METRICS)
    assert [name for name in opened if "feats" in name] == features
    opened.clear()
    cache_run(run)
    assert [name for name in opened if "feats" in name] == features


def test_features_are_let_go_one_after_another(own: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    run = own(BN)
    alive: weakref.WeakSet[StepFeatures] = weakref.WeakSet()
    compute = Part.of

    def watched(metric: Metric, features: StepFeatures) -> Part:
        alive.add(features)
        assert len(alive) == 1
        return compute(metric, features)

    monkeypatch.setattr(Part, "of", watched)
    gc.disable()
    try:
        cache_run(run)
    finally:
        gc.enable()


# ---------------------------------------------------------------- bit by bit


@pytest.mark.parametrize("order", [[0, 5, 6, 10, 12], [12, 0, 6, 10, 5], [5, 12, 10, 6, 0]])
def test_caching_step_by_step_gives_the_same_files(own: Runs, order: list[int]) -> None:
    whole, run = own(BN), own(BN)
    cache_run(whole)
    away = run.path / "away"
    away.mkdir()
    for step in STEPS:
        shutil.move(run.features(step), away)
    for step in order:
        shutil.move(away / f"step{step}.h5", run.features(step))
        cache_run(run)
    assert contents(run) == contents(whole)


def test_a_gap_is_filled_without_the_features_around_it(own: Runs) -> None:
    whole, run = own(BN), own(BN)
    cache_run(whole)
    between = run.features(6).read_bytes()
    run.features(6).unlink()
    cache_run(run)
    for step in STEPS:
        run.features(step).unlink(missing_ok=True)
    run.features(6).write_bytes(between)
    cache_run(run)
    assert contents(run) == contents(whole)


def test_the_newest_checkpoint_decides_on_the_gates(own: Runs) -> None:
    run = own(BN)
    with h5py.File(run.features(12), "a") as file:
        file["conservation/apart"][:] = True
        file["conservation/open"][:] = False
    early = run.features(5).read_bytes()
    run.features(5).unlink()
    for _ in range(2):
        cache_run(run, "--metrics scale")
        with h5py.File(run.cache("scale")) as cache:
            assert not cache["gate/conv1"][()].any()
            reason = cache["gate/conv1"].attrs["reason"]
            assert reason == "its parameters have different learning rates or momenta"
        run.features(5).write_bytes(early)
    assert steps_of(run.cache("scale")) == STEPS


def test_nothing_new_changes_nothing(own: Runs) -> None:
    run = own(BN)
    first = [path.stat().st_mtime_ns for path in cache_run(run)]
    assert [path.stat().st_mtime_ns for path in cache_run(run)] == first
    again = [path.stat().st_mtime_ns for path in cache_run(run, "--overwrite")]
    assert all(b > a for a, b in zip(first, again, strict=True))


def test_a_dense_step_that_two_checkpoints_recorded_counts_once(
    own: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, whole = own(BN), own(BN)
    cache_run(whole, LAWS)
    record = StepFeatures.record.func  # type: ignore[attr-defined]
    before: dict[str, Any] = {}

    def doubling(self: StepFeatures) -> dict[str, Any]:
        """This record and the one before, as after a checkpoint that was lost and made again."""
        new = record(self)
        joined = {k: np.concatenate([before.get(k, v[:0]), v]) for k, v in new.items()}
        before.update(new)
        return joined

    monkeypatch.setattr(StepFeatures, "record", property(doubling))
    cache_run(run, "--metrics scale")
    assert run.cache("scale").read_bytes() == whole.cache("scale").read_bytes()


def test_long_passes_are_saved_on_the_way(own: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, run = own(BN), own(BN)
    cache_run(whole)
    compute = Part.of

    def dying(metric: Metric, features: StepFeatures) -> Part:
        if features.step == 10:
            raise KeyboardInterrupt
        return compute(metric, features)

    with monkeypatch.context() as patch:
        patch.setattr(caching, "_SECONDS_BETWEEN_WRITES", -1.0)
        patch.setattr(Part, "of", dying)
        with pytest.raises(KeyboardInterrupt):
            cache_run(run)
    assert steps_of(run.cache("scale")) == [0, 5, 6]
    cache_run(run)
    assert contents(run) == contents(whole)


def test_the_dense_record_survives_a_killed_training(tmp_path: Path) -> None:
    flags = f"{BN} --optimizer momentum --momentum 0.9 --save-at log"
    whole = train_run(tmp_path / "e" / "whole", flags)
    killed = RunFolder(tmp_path / "e" / "killed")
    code = (
        "import os, signal\n"
        "from Training.losses import LossRecord\n"
        "add, steps = LossRecord.add, []\n"
        "def dying(self, loss):\n"
        "    steps.append(add(self, loss))\n"
        "    if len(steps) == 9: os.kill(os.getpid(), signal.SIGKILL)\n"
        "LossRecord.add = dying\n"
        "from tests.runs import train_run\n"
        "from pathlib import Path\n"
        f"train_run(Path({str(killed.path)!r}), {flags!r})\n"
    )
    assert run_code(code) == -9
    assert killed.checkpoint_steps()[:7] == [0, 1, 2, 3, 4, 5, 6]  # 8's was being written
    train_run(killed.path, flags)
    for run in (whole, killed):
        extract_run(run)
        cache_run(run)
    with h5py.File(killed.cache("scale")) as file:
        assert file["steps"][()].tolist() == whole.checkpoint_steps()
        expected = sorted({0, 4, 8, 12} | set(whole.checkpoint_steps()))
        assert file["dense/steps"][()].tolist() == expected
    assert contents(killed) == contents(whole)


def test_dense_steps_are_the_observed_ones_and_the_checkpoints(own: Runs) -> None:
    run = own(BN)  # observed every 4 steps
    cache_run(run, LAWS)
    for metric in ("scale", "rescale", "translation"):
        with h5py.File(run.cache(metric)) as file:
            assert file["dense/steps"][()].tolist() == [0, 4, 5, 6, 8, 10, 12]
            at = np.isin(file["dense/steps"][()], STEPS)
            for layer, curve in file["empirical"].items():
                sums = file["dense/empirical"][layer][()][at]
                np.testing.assert_allclose(sums, curve[()].sum(1), rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------- refusals


def test_a_cache_of_another_training_is_not_continued(own: Runs) -> None:
    run, other = own(BN), own(f"{BN} --seed 2")
    cache_run(run)
    before = contents(run)
    shutil.copy(other.features(6), run.features(6))
    with pytest.raises(UserError, match=r"scale\.h5: its step 6 is of another training; .*overwr"):
        cache_run(run)
    assert contents(run) == before
    cache_run(run, "--overwrite")
    assert contents(run)["scale.h5"] != before["scale.h5"]


def test_a_copied_run_can_be_continued(own: Runs, tmp_path: Path) -> None:
    run = own(BN)
    cache_run(run)
    copy = copy_run(run, tmp_path / "copy" / "x")
    extract_run(copy, "--overwrite")
    cache_run(copy)
    assert contents(copy) == contents(run)


def test_a_cache_made_with_other_flags_is_not_continued(own: Runs) -> None:
    run = own(BN)
    cache_run(run, "--metrics network --subset 5")
    before = contents(run)
    with pytest.raises(UserError, match=r"network\.h5 was made with --subset 5, not 32; .*suffix"):
        cache_run(run)
    assert contents(run) == before
    cache_run(run, "--metrics network --overwrite")
    with h5py.File(run.cache("network")) as file:
        assert file["empirical/conv1.weight"].shape == (len(STEPS), 32)


@pytest.mark.parametrize("damage", ["truncated", "empty", "no steps"])
def test_a_damaged_cache_is_named(own: Runs, damage: str) -> None:
    run = own(BN)
    cache_run(run)
    whole, path = contents(run), run.cache("rescale")
    if damage == "no steps":
        with h5py.File(path, "a") as file:
            del file["steps"]
    else:
        path.write_bytes(path.read_bytes()[: 1000 if damage == "truncated" else 0])
    with pytest.raises(UserError, match=r"rescale\.h5 is damaged .*; run cache\.py .*--overwrite"):
        cache_run(run)
    cache_run(run, "--metrics rescale --overwrite")
    assert contents(run) == whole


def test_damaged_features_are_named_after_all_others_were_cached(own: Runs) -> None:
    whole, run = own(BN), own(BN)
    cache_run(whole)
    run.features(5).write_bytes(run.features(5).read_bytes()[:1000])
    with h5py.File(run.features(10), "a") as file:
        del file["conservation/charge"]
    with pytest.raises(UserError) as caught:
        cache_run(run)
    message = str(caught.value)
    assert f"{run.features(5)} is damaged or no HDF5 file; run extract.py again" in message
    assert message.endswith("(likewise step10.h5); all 3 others are done")
    assert steps_of(run.cache("scale")) == [0, 6, 12]
    run.features(10).unlink()
    extract_run(run)
    cache_run(run)
    assert contents(run) == contents(whole)


def test_stages_that_were_forgotten(own: Runs, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"hyperparameters\.json does not exist; run train\.py"):
        cache_run(RunFolder(tmp_path / "e" / "x"))
    assert not (tmp_path / "e").exists()
    run = own(BN)
    run.symmetries.unlink()
    with pytest.raises(UserError, match=r"symmetries\.h5 does not exist; .*run train\.py"):
        cache_run(run)
    for step in STEPS:
        run.features(step).unlink()
    with pytest.raises(UserError, match=r"has no features; run extract\.py"):
        cache_run(run)


def test_one_process_at_a_time(own: Runs) -> None:
    run = own(BN)
    with run.lock("cache"), pytest.raises(UserError, match="cache is already running"):
        cache_run(run)
    with run.lock("extract"), run.lock("train"):
        cache_run(run)


# ---------------------------------------------------------------- names


def test_metrics_are_known_by_upstreams_names(own: Runs) -> None:
    run = own(BN)
    paths = cache_run(run, "--metrics scale-momentum,scale,translation-momentum")
    assert [path.name for path in paths] == ["scale.h5", "translation.h5"]


def test_unknown_metrics_get_a_suggestion() -> None:
    config = parse(CacheConfig, ["--metrics", "rescael"])
    with pytest.raises(UserError, match=r"unknown metric 'rescael'; did you mean 'rescale'\?"):
        config.metric_names()


def test_a_suffix_names_a_second_cache(own: Runs) -> None:
    run = own(BN)
    cache_run(run, "--metrics network")
    (path,) = cache_run(run, "--metrics network --subset 3 --suffix=-few")
    assert path == run.path / "cache" / "network-few.h5"
    assert set(contents(run)) == {"network.h5", "network-few.h5"}
    with pytest.raises(UserError, match=r"--suffix \.\./x: must be part of a file name"):
        parse(CacheConfig, ["--suffix", "../x"])


def test_caches_say_what_they_are(own: Runs) -> None:
    run = own(BN)
    cache_run(run, EVERY)
    hashes = set()
    for entry in map(METRICS.__getitem__, OF_RUNS):
        with h5py.File(run.cache(entry.name)) as file:
            for name in ("title", "ylabel", "units", "kind", "citation"):
                assert file.attrs[name] == getattr(entry, name)
            assert file.attrs["metric"] == entry.name
            assert "h5py" in file.attrs["versions"]
            hashes.add(file.attrs["features_hash"])
            assert len(file["sources"]) == len(STEPS)
    assert len(hashes) == 1


# ---------------------------------------------------------------- other readers


@pytest.mark.parametrize("metric", OF_RUNS)
def test_xarray_opens_every_group_with_named_dimensions(own: Runs, metric: str) -> None:
    run = own(LINEAR if metric == "balance" else BN)
    cache_run(run, f"{EVERY} --metrics {metric}")
    groups = xarray.open_groups(run.cache(metric), engine="h5netcdf")
    assert groups["/"]["steps"].values.tolist() == STEPS
    assert groups["/"]["time"].dims == ("steps",)
    with h5py.File(run.cache(metric)) as file:
        for layer, curve in file["empirical"].items():
            read = groups["/empirical"][layer]
            assert read.dims == ("steps", f"{layer} unit")
            assert np.array_equal(read.values, curve[()], equal_nan=True)
            if layer in file.get("gate", ()):
                assert groups["/gate"][layer].dims == (f"{layer} unit",)
            if "dense" in file:
                assert groups["/dense/empirical"][layer].dims == ("steps",)
                assert groups["/dense"]["time"].dims == ("steps",)
    one = xarray.open_dataset(run.cache(metric), group="empirical", engine="h5netcdf")
    assert one.sizes["steps"] == len(STEPS)


# ---------------------------------------------------------------- the table


def write_law(path: Path, measured: Any, exact: Any, paper: Any, gate: Any) -> Path:
    """A cache of one layer, of size 2."""
    arrays: dict[str, Any] = {
        "empirical/a": measured,
        "exact/a": exact,
        "theoretical/a": paper,
        "leak/a": np.full_like(measured, 1e-6),
        "size/a": np.full_like(measured, 2.0),
        "gate/a": np.array(gate, np.uint8),
    }
    root = {"kind": "law", "metric": "scale"}
    write_hdf5(path, arrays, root, array_attributes={"gate/a": {"reason": "none" * (0 in gate)}})
    return path


def test_the_table_shows_the_worst_of_the_open_laws(tmp_path: Path) -> None:
    measured = np.array([[1.0, 1, 1], [1, 1, 1]])
    exact = measured + np.array([[0, 0, 0], [2e-6, -8e-6, 7]])
    paper = measured + np.array([[0, 4e-3, 9], [0, 0, 0]])
    path = write_law(tmp_path / "run" / "cache" / "x.h5", measured, exact, paper, [1, 1, 0])
    lines = deviation_table([path]).splitlines()
    assert lines[1].split()[-1] == "leak"
    assert lines[2].split() == ["run", "scale", "3", "2", "4.0e-06", "2.0e-03", "5.0e-07"]
    assert lines[3:] == ["closed: run scale a: none"]
    assert len({len(line) for line in lines[1:3]}) == 1


def test_layers_closed_for_the_same_cause_share_a_line(tmp_path: Path) -> None:
    reasons = {
        "a": "leak 3e-01 in 4 of 4 laws; adam breaks the symmetry",
        "b": "not finite in 1 of 4 laws",
        "c": "leak 2e-02 in 1 of 9 laws; adam breaks the symmetry",
        "d": "",
        "e": "leak 1e-03 in 9 of 9 laws; adam breaks the symmetry",
    }
    arrays = {
        f"{name}/{layer}": np.ones((2, 1))
        for name in ("empirical", "exact", "theoretical", "leak", "size")
        for layer in reasons
    } | {f"gate/{layer}": np.array([not why], np.uint8) for layer, why in reasons.items()}
    attributes: dict[str, dict[str, Any]] = {
        f"gate/{layer}": {"reason": why} for layer, why in reasons.items()
    }
    path = tmp_path / "run" / "cache" / "x.h5"
    root = {"kind": "law", "metric": "scale"}
    write_hdf5(path, arrays, root, array_attributes=attributes)
    assert deviation_table([path]).splitlines()[3:] == [
        f"closed: run scale a: {reasons['a']} (and 2 more layers alike)",
        f"closed: run scale b: {reasons['b']}",
    ]
    lines = deviation_table([path], by_layer=True).splitlines()[7:]
    assert lines == [f"closed: run scale {layer}: {why}" for layer, why in reasons.items() if why]


def test_the_table_by_layer_has_a_line_for_each(tmp_path: Path) -> None:
    one = np.ones((2, 3))
    path = write_law(tmp_path / "run" / "cache" / "x.h5", one, one + 2e-6, one, [1, 1, 1])
    with h5py.File(path, "r+") as file:
        for curve in ("empirical", "theoretical", "size", "leak", "gate"):
            file.copy(f"{curve}/a", f"{curve}/b")
        file["exact/b"] = one + 6e-6
    a, b = deviation_table([path], by_layer=True).splitlines()[2:]
    assert a.split()[:6] == ["run", "scale", "a", "3", "3", "1.0e-06"]
    assert b.split()[:6] == ["run", "scale", "b", "3", "3", "3.0e-06"]


def test_a_diverged_run_is_not_praised(tmp_path: Path) -> None:
    measured = np.array([[1.0], [np.nan]])
    path = write_law(tmp_path / "run" / "cache" / "x.h5", measured, measured, measured, [1])
    summary = deviation(path)
    assert summary is not None
    assert np.isnan(summary.worst[0])


def test_the_table_needs_whole_caches(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.h5 does not exist; run cache\.py"):
        deviation_table([tmp_path / "x.h5"])

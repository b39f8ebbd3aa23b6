"""The benchmarks at tiny sizes: that they run and what their tables hold, not how fast."""

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import (
    coordinate_check,
    ensemble,
    gpu,
    infinite,
    observer,
    stages,
    tangent,
    training_loop,
)
from benchmarks.common import ratio
from Utils.rundir import RunFolder

ROOT = Path(__file__).parents[2]


def test_a_ratio_is_taken_pair_by_pair() -> None:
    assert ratio([2.0, 30.0, 8.0], [1.0, 10.0, 2.0]) == 3.0


def test_observer_table_has_a_row_per_optimizer() -> None:
    rows = observer.measure(["conv, 1x8x8"], repetitions=1, batch_size=4)
    assert [row["optimizer"] for row in rows] == ["sgd", "momentum", "nesterov", "adamw"]
    assert all(float(row["hooks / ms"]) > 0 for row in rows)


def test_training_loop_table() -> None:
    (row,) = training_loop.measure(["fc, mnist"], repetitions=1)
    assert list(row)[2:] == ["loop / bare", "loop and observer / bare"]


def test_ensemble_table() -> None:
    (row,) = ensemble.measure(2, ["SGD"], epochs=1)
    assert float(row["together / s"]) > 0
    assert list(row)[3:] == ["faster", "faster in processor time"]


def test_coordinate_check_table() -> None:
    pytest.importorskip("mup")
    rows = coordinate_check.measure([64, 96], seeds=1, repetitions=1, commands=False)
    assert [row["case"] for row in rows] == [
        "in one process, the same steps",
        "in one process, the same steps, with laws",
        "in one process, the same coordinates",
    ]
    for row in rows:
        assert list(row)[1:4] == ["ours / s", "mup / s", "ours / mup"]
        assert float(row["ours / s of processor"]) > 0 < float(row["mup / s of processor"])
    parts = coordinate_check.stages([64, 96], seeds=1, repetitions=1)
    assert list(parts) == ["train / s", "extract / s", "cache / s"]


@pytest.mark.parametrize(("case", "steps"), [("the same steps", 4), ("the same coordinates", 3)])
def test_coordinate_check_trains_the_networks_of_mup(tmp_path: Path, case: str, steps: int) -> None:
    """The same shapes, numbers of steps and examples: what the comparison rests on."""
    flags = coordinate_check.flags_of(case)
    mup_coordinates = pytest.importorskip("benchmarks.mup_coordinates")
    coordinate_check.ours(tmp_path, [64], 1, flags)
    (run,) = (RunFolder(path) for path in (tmp_path / "e").glob("width=*"))
    assert run.checkpoint_steps() == run.feature_steps() == [*range(steps + 1)]
    weights = torch.load(run.checkpoint(steps), weights_only=True)["model_state_dict"]
    batches = coordinate_check.batches(flags["train_batch_size"])
    theirs = mup_coordinates.network(64, batches[0]).state_dict()
    assert [w.shape for w in weights.values()] == [w.shape for w in theirs.values()]
    assert [len(targets) for _, targets in batches] == [1437 // steps] * 4
    assert (tmp_path / "e" / "cache" / "coordinates.csv").exists()


def test_stages_table_compares_the_same_bytes() -> None:
    rows = stages.measure(["conv"], checkpoints=1, repetitions=1)
    assert [row["rival"] for row in rows] == ["copy", "copy", "read"]
    sizes = [float(row["MB per step"]) for row in rows]
    assert max(sizes) / min(sizes) < 1.1


def test_tangent_table_has_a_row_per_way_that_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(tangent.CASES["mlp, 12, full"], examples=2, repetitions=1)
    monkeypatch.setattr(tangent, "CASES", {"small": case})
    rows = tangent.measure(["small"])
    assert [row["way"] for row in rows] == ["ours", *tangent.RIVALS]
    assert all(float(row["processor / s"]) > 0 for row in rows)


def test_infinite_table_has_both_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    make = partial(infinite._dense, 784)
    small = {"fc relu3, n=1000, d=784": (make, 4, (784,), "relu3, 1000x784")}
    monkeypatch.setattr(infinite, "CASES", small)
    monkeypatch.setattr(infinite, "_memory", lambda case, name: 0.0)
    rows = infinite.measure(list(small), repetitions=1)
    assert [row["format"] for row in rows] == ["float32", "float64"]
    assert all(float(row["ms per entry"]) > 0 for row in rows)


def test_pixels_become_predictions() -> None:
    row = infinite.from_pixels(8, threads=1)
    assert float(row["wall / s"]) > 0


def test_an_unknown_benchmark_is_named() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks", "stage"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 2
    assert "unknown benchmark 'stage'; did you mean 'stages'?" in result.stderr


def test_gpu_table_compares_three_loops_in_every_way() -> None:
    ways = ["eager", "bf16, channels-last"]
    rows = gpu.measure({"fc": "default"}, "mnist", 4, ways, steps=2, repetitions=1)
    assert [row["way"] for row in rows] == ways
    for row in rows:
        assert all(float(row[f"{loop}, images/s"]) > 0 for loop in ("bare", "loop", "observed"))
        assert float(row["observer, %"]) > -100


@pytest.mark.skipif(torch.cuda.is_available(), reason="minutes on a GPU")
def test_without_a_gpu_its_benchmark_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main()
    assert capsys.readouterr().out == "\ngpu: left out, as no CUDA GPU is visible\n"

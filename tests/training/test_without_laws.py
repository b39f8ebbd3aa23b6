"""Runs that look for no conservation laws: the same training, and metrics that say so."""

from contextlib import nullcontext
from pathlib import Path

import h5py
import pytest
import torch

from Metrics.registry import DEFAULT_METRICS, METRICS
from Models.symmetry import Laws
from tests.runs import cache_run, extract_run, flags_of, mistake, run_stage, train_run
from Training import laws as training_laws
from Training.config import TrainConfig
from Training.ensemble import train_together
from Training.run import train
from Utils.cli import parse
from Utils.rundir import RunFolder

FLAGS = "--model fc --width 8 --save-freq 4"
STEPS = [0, 4, 6, 8, 12]


def weights(run: RunFolder, step: int) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor]
    state = torch.load(run.checkpoint(step), weights_only=True)["model_state_dict"]
    return state


@pytest.mark.parametrize("flags", ["", "--optimizer momentum --momentum 0.9", "--optimizer adam"])
def test_training_is_the_same_and_nothing_is_looked_for(
    tmp_path: Path, flags: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed = train_run(tmp_path / "e" / "followed", f"{FLAGS} {flags}")
    monkeypatch.setattr(training_laws, "find_laws", None)  # a call would raise
    run = train_run(tmp_path / "e" / "run", f"{FLAGS} {flags} --no-laws")
    assert run.checkpoint_steps() == followed.checkpoint_steps() == STEPS
    for name, weight in weights(followed, 12).items():
        assert torch.equal(weights(run, 12)[name], weight)
    laws = Laws.load(run.symmetries)
    assert (len(laws), laws.note) == (0, "they were not looked for, with --no-laws")


def test_a_run_continues_without_laws_as_it_began(tmp_path: Path) -> None:
    whole, parts = (train_run(tmp_path / "e" / name, f"{FLAGS} --no-laws") for name in "ab")
    for step in (8, 12):
        parts.checkpoint(step).unlink()
    train_run(parts.path, f"{FLAGS} --no-laws")
    one, two = (torch.load(run.checkpoint(12), weights_only=True) for run in (whole, parts))
    assert all(map(torch.equal, one["model_state_dict"].values(), two["model_state_dict"].values()))
    observed = [content["observer_state_dict"] for content in (one, two)]
    assert observed[0]["time"] == observed[1]["time"] > 0
    assert "--laws was False and is now True" in mistake("train", whole, FLAGS)


def test_members_of_an_ensemble_follow_no_laws(tmp_path: Path) -> None:
    together = [RunFolder(tmp_path / "together" / str(seed)) for seed in (1, 2)]
    flags = "--epochs 2 --train-batch-size 240 --model fc --width 8 --dtype float64 --no-laws"
    argv = [[*flags.split(), "--seed", run.path.name, *flags_of(run)] for run in together]
    assert train_together([parse(TrainConfig, each) for each in argv], together) == [0, 0]
    alone = RunFolder(tmp_path / "alone" / "2")
    config = parse(TrainConfig, [*flags.split(), "--seed", "2", *flags_of(alone)])
    assert train(config, nullcontext(alone)) == 0
    for name, weight in weights(alone, 12).items():
        torch.testing.assert_close(weights(together[1], 12)[name], weight, rtol=1e-9, atol=1e-12)


def test_metrics_of_laws_are_left_out_with_the_reason(tmp_path: Path) -> None:
    run = train_run(tmp_path / "e" / "run", f"{FLAGS} --no-laws")
    assert extract_run(run, "--probe none") == len(STEPS)
    with h5py.File(run.features(12)) as file:
        assert file["conservation/time"][()] > 0
        assert set(file["conservation"]) == {"time", "last", "record"}
    code, _, errors = run_stage("cache", run)
    assert code == 0, errors
    of_laws = {"scale", "rescale", "translation", "balance", "budget", "rotation"}
    of_buffers = {name for name in DEFAULT_METRICS if METRICS[name].needs}
    made = {path.stem for path in run.path.glob("cache/*.h5")}
    assert made == set(DEFAULT_METRICS) - of_laws - of_buffers == {"performance", "network"}
    log = (run.logs / "run.log").read_text()
    reason = "not cached, as there are no laws: they were not looked for, with --no-laws"
    assert f"{reason}: scale, rescale, translation, balance, budget, rotation" in log
    assert mistake("cache", run, "--metrics scale") == f"{reason}: scale"
    assert [path.stem for path in cache_run(run, "--metrics sharpness --examples 8")] == [
        "sharpness"
    ]
    code, _, errors = run_stage("plot", run, "--format png")
    assert code == 0, errors

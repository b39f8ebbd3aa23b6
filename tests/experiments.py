"""Tiny experiments for tests: runs of several widths and seeds, and what numpy makes of them."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from Metrics import CacheConfig
from Metrics.figures import PlotConfig
from Metrics.figures.experiment import plot_experiment
from Metrics.width.caching import Findings, cache_experiment
from tests.runs import extract_run, train_run
from Utils.cli import parse
from Utils.rundir import ExperimentFolder, RunFolder

WIDTHS, SEEDS = (16, 32, 64, 128, 256), (1, 2, 3)
FLAGS = (
    "--model fc --depth 4 --nonlinearity relu --loss ce --dtype float64 --epochs 1 "
    "--train-batch-size 720 --drop-last --no-balance"
)
STEPS = 1


def make(
    path: Path,
    flags: str,
    lr: str = "8/n",
    widths: tuple[int, ...] = (16, 32),
    seeds: tuple[int, ...] = (1,),
) -> Path:
    """An experiment, trained and extracted; ``lr`` is a formula in n."""
    for n in widths:
        for seed in seeds:
            rate = eval(lr, {"n": n})
            own = f"--width {n} --seed {seed} --lr {rate}"
            extract_run(train_run(path / f"w{n}-s{seed}", f"{flags} {own}"))
    return path


def cached(path: Path, arguments: str) -> list[Findings]:
    flags = ["--save-dir", str(path.parent), "--experiment", path.name]
    config = parse(CacheConfig, [*flags, *arguments.split()])
    folder = ExperimentFolder(path)
    return cache_experiment(config, folder, [RunFolder(run) for run in folder.runs()])


def state(run: Path, step: int) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(run / "ckpt" / f"step{step}.tar")[
        "model_state_dict"
    ]
    return found


def rms(x: Any) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def forward(weights: dict[str, torch.Tensor], x: np.ndarray) -> dict[str, tuple[Any, Any]]:
    """(input, output) of the layers of a ReLU network, by numpy."""
    seen = {}
    for layer in ("fc1", "fc2", "fc3", "classifier"):
        h = x @ weights[f"{layer}.weight"].numpy().T
        if f"{layer}.bias" in weights:
            h = h + weights[f"{layer}.bias"].numpy()
        seen[layer] = (x, h)
        x = np.maximum(h, 0)
    return seen


def weights_and_pass(path: Path, run: str, step: int) -> tuple[Any, dict[str, tuple[Any, Any]]]:
    with h5py.File(path / run / "feats" / "probe.h5") as file:
        probe = file["inputs"][()].reshape(len(file["inputs"]), -1).astype(float)
    weights = state(path / run, step)
    return {k: v.numpy() for k, v in weights.items()}, forward(weights, probe)


def row_of(found: Findings, run: str, layer: str) -> dict[str, Any]:
    """The [steps] curves of a run's layer, by quantity."""
    with h5py.File(found.path) as file:
        at = file["runs"][()].astype(str).tolist().index(run)
        named = {q: file[q] for q in file if isinstance(file[q], h5py.Group) and q != "fits"}
        return {q: group[layer][at] for q, group in named.items() if layer in group}


def plotted(path: Path, arguments: str) -> list[str]:
    flags = ["--save-dir", str(path.parent), "--experiment", path.name, "--format", "png"]
    return list(plot_experiment(parse(PlotConfig, [*flags, *arguments.split()])))

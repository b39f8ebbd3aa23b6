"""What a sweep will cost: measured on its runs that are done, or on a few steps of one."""

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from Data import load_dataset
from Models import build_model
from scripts.sweeps.attempts import newest
from scripts.sweeps.manifest import Run
from scripts.sweeps.stages import Experiment
from scripts.sweeps.status import counts, standing
from Training.backends import start
from Training.checkpoints import Checkpoint, save_checkpoint
from Training.config import TrainConfig
from Training.laws import laws_of
from Training.loop import Trainer
from Training.recorder import Silence
from Training.schedule import Schedule
from Training.state import TrainingState
from Utils.amounts import bytes_text, seconds_text
from Utils.config import validate
from Utils.logging import silence

_WARM_UP, _TIMED = 2, 10

_CHANGE_NO_COST = {
    "seed",
    "init_seed",
    "lr",
    "wd",
    "momentum",
    "beta1",
    "beta2",
    "eps",
    "epochs",
    "restore_path",
}
"""Flags that do not change what a step, an evaluation or a checkpoint costs."""


@dataclass(frozen=True)
class Cost:
    """Of one kind of run.

    Attributes:
        beginning: seconds until the first step, evaluation and saving included.
        step: seconds per step.
        evaluation: seconds at the end of an epoch.
        checkpoint: bytes.
    """

    beginning: float
    step: float
    evaluation: float
    checkpoint: int


def forecast(experiment: Experiment, runs: Sequence[Run], jobs: int) -> Iterator[str]:
    """The runs with their steps, then time and disk of those that are not done; yields lines.

    Kinds of runs of which one is done are taken from it, others are timed for a few steps; but
    for those of infinite width, which are mainly kernels, and say what these take as they begin.

    Raises:
        UserError: a run cannot be begun.
    """
    standings = [standing(experiment, run) for run in runs]
    seconds, size, all_steps = 0.0, 0, 0
    costs: dict[str, Cost] = {}
    sizes: dict[str, int] = {}
    known = {_kind(run): cost for run in runs if (cost := _of_done(experiment, run))}
    for run, where in zip(runs, standings, strict=True):
        config = validate(TrainConfig, run.flags, "sweep")
        steps, epochs = _steps(config, sizes), config.epochs * config.anneal_steps
        yield f"{run.expid}: {steps} steps, {where.condition}"
        if where.condition in {"done", "diverged", "failed"}:
            continue
        all_steps += steps
        kind = _kind(run)
        if config.is_infinite and kind not in known:
            yield f"{run.expid}: how long its kernels take is told when it begins"
            continue
        if kind not in costs:
            costs[kind] = known.get(kind) or measure(config)
        cost = costs[kind]
        seconds += cost.beginning + steps * cost.step + epochs * cost.evaluation
        size += cost.checkpoint * (1 + len(config.save_steps(steps)) + epochs)
    yield f"{len(runs)} runs: {counts(standings)}; {all_steps} steps to do"
    if not costs:
        return
    how = "as done runs of their kind took" if set(costs) <= set(known) else "from a few steps"
    yield (
        f"training: about {seconds_text(seconds / jobs)} with {jobs} at a time, {how}; "
        f"checkpoints: at most {bytes_text(size)}"
    )


def _kind(run: Run) -> str:
    """What a run's cost depends on."""
    flags = {name: value for name, value in run.flags.items() if name not in _CHANGE_NO_COST}
    return json.dumps(flags, sort_keys=True)


def _steps(config: TrainConfig, sizes: dict[str, int]) -> int:
    """Steps of a run; ``sizes`` of data sets are looked up, and noted, as loading takes a while."""
    data = json.dumps([config.dataset, config.data_dir, config.data_options])
    if data not in sizes:
        dataset = load_dataset(config.dataset, config.data_dir, config.seed, **config.data_options)
        sizes[data] = len(dataset.train)
    return Schedule(config, sizes[data]).total


def _of_done(experiment: Experiment, run: Run) -> Cost | None:
    """What a run cost that one attempt trained from its beginning to its end."""
    folder = experiment.folder(run)
    last = newest(folder)
    whole = last is not None and last.begun_at < 0 and "train" in last.seconds
    if last is None or not whole or last.ended_at < 1:
        return None
    sizes = [folder.checkpoint(step).stat().st_size for step in folder.checkpoint_steps()]
    return Cost(0, last.seconds["train"] / last.ended_at, 0, max(sizes))


class _Weighing(Silence):
    """Writes each checkpoint where nobody looks, and notes its bytes."""

    def __init__(self, folder: Path):
        self._path = folder / "checkpoint.tar"

    def save(self, step: int, content: Checkpoint) -> None:
        save_checkpoint(self._path, content)

    @property
    def bytes(self) -> int:
        return self._path.stat().st_size


def measure(config: TrainConfig) -> Cost:
    """Begin a run, and take a few steps of it; nothing of it is kept.

    Raises:
        UserError: it cannot be begun.
    """
    shape = config.data_entry.input_shape
    begin = time.monotonic()
    with start(config) as backend, tempfile.TemporaryDirectory() as folder:
        dataset = load_dataset(config.dataset, config.data_dir, config.seed, **config.data_options)
        model = build_model(config, shape, dataset.entry.num_classes)
        laws = laws_of(config, model)
        state = TrainingState.initial(config, model, dataset, laws, backend)
        recorder = _Weighing(Path(folder))
        with closing(state.batches):
            trainer = Trainer(config, state, dataset.test, recorder, silence())
            built = time.monotonic()
            trainer.begin()
            evaluated = time.monotonic()
            last = trainer.total
            trainer.total = min(_WARM_UP, last)
            trainer.fit()
            warm = time.monotonic()
            trainer.total = min(_WARM_UP + _TIMED, last)
            trainer.fit()
        steps = max(trainer.total - _WARM_UP, 1)
        step = (time.monotonic() - warm) / steps
        evaluation = evaluated - built
        return Cost(evaluated - begin, step, evaluation, recorder.bytes)

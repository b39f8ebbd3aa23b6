"""From a configuration to a trained run."""

import copy
import json
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass, replace

import torch
from torch import nn

from Data import load_dataset
from Data.batches import probe_batch
from Data.dataset import Dataset
from Models import build_model
from Models.parametrization.scales import Scales
from Models.symmetry import Laws, find_laws, no_laws
from Training.backends import start
from Training.backends.backend import Backend
from Training.checkpoints import Checkpoint, load_weights, newest_checkpoint
from Training.config import TrainConfig
from Training.folder import WITHOUT_EFFECT, check_unchanged, clear, describe
from Training.loop import Trainer
from Training.parametrized import resolve
from Training.recorder import FolderRecorder, Recorder, Silence
from Training.registry import SGDS
from Training.schedule import Schedule
from Training.state import TrainingState
from Training.upstream import refuse_their_run
from Utils.errors import UserError
from Utils.logging import close, silence, stage_logger
from Utils.rundir import RunFolder
from Utils.storage import write_hdf5

_NO_WEIGHTS = "a network of infinite width has no weights, and so no conservation laws of them"

_NOT_DETERMINISTIC = " does not have a deterministic implementation"
"""How torch's error goes on after the name of an operation that --deterministic forbids."""


def list_laws(config: TrainConfig) -> str:
    """The table of the conservation laws of the model that ``config`` asks for."""
    entry = config.data_entry
    if config.is_infinite:
        return no_laws(_NO_WEIGHTS).table()
    return laws_of(config, build_model(config, entry.input_shape, entry.num_classes)).table()


def train(config: TrainConfig, folder: AbstractContextManager[RunFolder]) -> int:
    """Begin a run, or continue it from its newest readable checkpoint.

    Of several processes that train together each calls this; the first one opens the folder.

    Args:
        config: the run's configuration.
        folder: opens its folder.

    Returns:
        The exit code: 0, or 128 + n if signal n stopped it.

    Raises:
        UserError: everything that the user can mend. An old run is left as it was.
    """
    try:
        with start(config, config.workers) as backend:
            return _train_on(backend, config, folder)
    except RuntimeError as error:
        operation, found, _ = str(error).partition(_NOT_DETERMINISTIC)
        if not found:
            raise
        raise UserError(
            f"--deterministic: there is no deterministic algorithm for {operation} on this "
            "device; leave the flag out, or choose another model"
        ) from error


def _train_on(
    backend: Backend, config: TrainConfig, folder: AbstractContextManager[RunFolder]
) -> int:
    with ExitStack() as held:
        beginning = prepare(backend, config, folder, held)
        state, keeper = beginning.state, beginning.keeper
        if state.step == state.schedule.total and not beginning.is_new:
            return 0
        recorder = keeper.recorder(beginning)
        trainer = Trainer(config, state, beginning.dataset.test, recorder, keeper.log)
        if beginning.is_new:
            trainer.begin()
        code = trainer.fit()
        keeper.say_end(code)
        return code


@dataclass(frozen=True)
class Beginning:
    """What a run begins with, or continues with.

    Attributes:
        dataset: what it trains on.
        laws: of its model.
        state: from which its next step is taken.
        keeper: of its folder.
        is_new: whether there is no checkpoint yet.
    """

    dataset: Dataset
    laws: Laws
    state: TrainingState
    keeper: "Keeper"
    is_new: bool


def prepare(
    backend: Backend,
    config: TrainConfig,
    folder: AbstractContextManager[RunFolder],
    held: ExitStack,
    like: Beginning | None = None,
    beside: bool = False,
) -> Beginning:
    """Take a run's folder, and make everything that its steps need.

    Args:
        backend: where to train.
        config: the run's configuration.
        folder: opens its folder.
        held: the folder is released when this is closed.
        like: another run with the same data and architecture, whose data set and laws serve.
        beside: whether it is trained together with another, whose log lines the user reads.

    Raises:
        UserError: everything that the user can mend. An old run is left as it was.
    """
    dataset = like.dataset if like else backend.in_turn(lambda: _dataset(config))
    keeper, known = Keeper(config, held, beside), like.laws if like else None
    model: nn.Module
    seen, scales = dataset, None
    if config.is_infinite:
        from Training.infinite import begin  # brings scipy's solvers

        kernels = begin.kernels_of(config, dataset, backend.replicas)
        backend.on_first(lambda: keeper.open(folder))
        model = begin.network_of(kernels, keeper.folder, keeper.log)
        known, seen = no_laws(_NO_WEIGHTS), begin.numbered(dataset)
    else:
        model = build_model(config, dataset.entry.input_shape, dataset.entry.num_classes)
        _check_smallest_batch(config, model, dataset, backend.replicas)
        backend.on_first(lambda: keeper.open(folder))
        scales = backend.on_first(lambda: keeper.scales(dataset))
    checkpoint, laws = backend.on_first(lambda: keeper.newest(model, known, scales))
    if checkpoint is not None:
        load_weights(model, checkpoint)  # first, as all else is made for this very model
    state = TrainingState.initial(config, model, seen, laws, backend, scales)
    held.enter_context(closing(state.batches))
    backend.on_first(lambda: keeper.describe(dataset, state, scales))
    if checkpoint is not None:
        state.load_state_dict(checkpoint)
    keeper.say_where(state, checkpoint is None)
    return Beginning(seen, laws, state, keeper, checkpoint is None)


def _dataset(config: TrainConfig) -> Dataset:
    return load_dataset(config.dataset, config.data_dir, config.seed, **config.data_options)


class Keeper:
    """Has the run's folder in the first process; in the others, nothing to say.

    Args:
        config: the run's configuration.
        held: closes what is opened.
        beside: whether another run's log lines are those that the user reads.

    Attributes:
        log: where the user is told how it goes.
    """

    def __init__(self, config: TrainConfig, held: ExitStack, beside: bool = False):
        self._config, self._held, self._beside = config, held, beside
        self._run: RunFolder | None = None
        self.log = silence()

    @property
    def folder(self) -> RunFolder:
        """The run's, once it is open."""
        assert self._run is not None, "only the first process has the folder"
        return self._run

    def open(self, folder: AbstractContextManager[RunFolder]) -> None:
        """Take the folder for this training; an old run is cleared away only if it shall be."""
        self._run = run = self._held.enter_context(folder)
        refuse_their_run(run)
        self._held.enter_context(run.lock("train"))
        if self._config.overwrite:
            clear(run)
        check_unchanged(run, self._config)
        self.log = stage_logger("train", run.logs / "run.log", self._beside)
        if self._beside:
            self._held.callback(close, self.log)

    def scales(self, dataset: Dataset) -> Scales | None:
        """What the parametrization makes of learning rates; the user sees it when a run begins."""
        run, stored = self.folder, None
        if run.hyperparameters.exists():
            stored = run.read_hyperparameters().get("task", {}).get("parametrization")
        scales = resolve(self._config, dataset, stored)
        if scales is not None and stored is None:
            name = self._config.param or "--abc"
            self.log.info("parametrization %s:\n%s", name, scales.table())
        return scales

    def newest(
        self, model: nn.Module, known: Laws | None = None, scales: Scales | None = None
    ) -> tuple[Checkpoint | None, Laws]:
        """Where to continue, and the laws, which are looked for at a run's beginning.

        Args:
            model: the run's.
            known: its laws, where they have been found for another run.
            scales: of a parametrization, whose learning rates enter the charges under SGD.
        """
        run = self.folder
        checkpoint = newest_checkpoint(run, self.log)
        if checkpoint is None or not run.symmetries.exists():
            if checkpoint is not None:
                load_weights(model, checkpoint)
            laws = laws_of(self._config, model) if known is None else known
            if scales is not None and self._config.optimizer in SGDS:
                laws = replace(laws, rates={scale.name: scale.lr for scale in scales.parameters})
            laws.save(run.symmetries)
            run.publish(run.symmetries)
        return checkpoint, Laws.load(run.symmetries)

    def describe(self, dataset: Dataset, state: TrainingState, scales: Scales | None) -> None:
        """Write what later stages need besides checkpoints; a continued run has it already."""
        run, config = self.folder, self._config
        if not run.probe.exists():
            dtype = getattr(torch, config.dtype)
            inputs, targets = probe_batch(dataset, config.probe_size, config.seed, dtype=dtype)
            write_hdf5(run.probe, {"inputs": inputs.numpy(), "targets": targets.numpy()})
            run.publish(run.probe)
        if not run.hyperparameters.exists():
            task = {
                "input_shape": dataset.entry.input_shape,
                "num_classes": dataset.entry.num_classes,
                "train_size": len(dataset.train),
                "test_size": len(dataset.test),
                "phases": state.schedule.describe(),
                "replicas": state.backend.replicas,
            }
            if scales is not None:
                task["parametrization"] = scales.flat()
            run.write_hyperparameters(describe(config, str(state.backend), task))
            run.publish(run.hyperparameters)

    def recorder(self, beginning: Beginning) -> Recorder:
        """Where numbers and checkpoints go."""
        if self._run is None:
            return Silence()
        step = -1 if beginning.is_new else beginning.state.step
        return self._held.enter_context(FolderRecorder(self._run, step))

    def say_where(self, state: TrainingState, new: bool) -> None:
        """Tell the user what begins."""
        total, size = state.schedule.total, state.schedule.phases[0].batch_size
        if new:
            steps = f"{total} step{'s' * (total != 1)} of {size} examples"
            name, laws = self._config.model, f"{len(state.observer.laws)} laws, "
            if self._config.is_infinite:  # which has no weights to have laws of
                name, laws = f"{name} of infinite width", ""
            self.log.info("%s on %s: %s%s", name, state.backend, laws, steps)
        elif state.step == total:
            self.log.info("step %d/%d is done already; --overwrite starts anew", total, total)
        else:
            self.log.info("continuing after step %d/%d", state.step, total)

    def say_end(self, code: int) -> None:
        """Tell the user where the checkpoints of a finished training are."""
        if self._run is not None and code == 0:
            folder = self._run.shown(self._run.checkpoint(0).parent)
            self.log.info("finished; checkpoints are in %s", folder)


_ANY_LAWS = WITHOUT_EFFECT | {"seed", "init_seed", "lr"}
"""Flags that do not change the laws."""

_latest: dict[object, Laws] = {}
"""The laws that were found last: runs of a sweep share them, whose steps may take less time."""


def laws_of(config: TrainConfig, model: nn.Module) -> Laws:
    """The laws that a run follows: those of its model, or none if it shall not.

    Args:
        config: of the run.
        model: its network, in training mode.
    """
    if not config.laws:
        return no_laws("they were not looked for, with --no-laws")
    flags = {name: value for name, value in config.flat().items() if name not in _ANY_LAWS}
    kinds = tuple((name, type(module)) for name, module in model.named_modules())
    key = json.dumps(flags, sort_keys=True), repr(model), kinds  # a user's code may have changed
    if key not in _latest:
        shape, dtype = config.data_entry.input_shape, getattr(torch, config.dtype)
        example = torch.zeros(2, *shape, dtype=dtype)
        _latest.clear()
        _latest[key] = find_laws(model, example, config.loss, config.balance)
    return _latest[key]


def _check_smallest_batch(
    config: TrainConfig, model: nn.Module, dataset: Dataset, replicas: int
) -> None:
    """Batch normalisation cannot be trained on a batch of one: say so before the epoch's end."""
    size = len(dataset.train)
    batches = {phase.batch_size for phase in Schedule(config, size, replicas).phases}
    if not any(batch == 1 or (size % batch == 1 and not config.drop_last) for batch in batches):
        return
    shape, dtype = dataset.entry.input_shape, getattr(torch, config.dtype)
    try:
        copy.deepcopy(model).train()(torch.zeros(1, *shape, dtype=dtype))
    except ValueError as error:
        raise UserError(
            f"--train-batch-size {config.train_batch_size}: a batch of one of the {size} examples "
            f"cannot be trained on ({error}); choose another size or use --drop-last"
        ) from error

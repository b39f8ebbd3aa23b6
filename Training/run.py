"""From a configuration to a trained run."""

import copy
import logging
from contextlib import ExitStack, closing
from dataclasses import dataclass

import torch
from torch import nn

from Data import load_dataset
from Data.batches import probe_batch
from Data.dataset import Dataset
from Models import build_model
from Models.symmetry import Laws, find_laws
from Training.backends import start
from Training.backends.backend import Backend
from Training.checkpoints import Checkpoint, load_weights, newest_checkpoint
from Training.config import TrainConfig
from Training.folder import check_unchanged, clear, describe
from Training.loop import Trainer
from Training.recorder import FolderRecorder, Recorder, Silence
from Training.schedule import Schedule
from Training.state import TrainingState
from Training.upstream import refuse_their_run
from Utils.errors import UserError
from Utils.logging import silence, stage_logger
from Utils.rundir import RunFolder
from Utils.storage import write_hdf5


def list_laws(config: TrainConfig) -> str:
    """The table of the conservation laws of the model that ``config`` asks for."""
    entry = config.data_entry
    return _laws(config, build_model(config, entry.input_shape, entry.num_classes)).table()


def train(config: TrainConfig, run: RunFolder) -> int:
    """Begin a run, or continue it from its newest readable checkpoint.

    Of several processes that train together each calls this; the first one has the folder.

    Args:
        config: the run's configuration.
        run: its folder.

    Returns:
        The exit code: 0, or 128 + n if signal n stopped it.

    Raises:
        UserError: everything that the user can mend. An old run is left as it was.
    """
    with start(config, config.workers) as backend:
        return _train_on(backend, config, run)


def _train_on(backend: Backend, config: TrainConfig, run: RunFolder) -> int:
    with ExitStack() as held:
        beginning = prepare(backend, config, run, held)
        return _train(config, run, beginning)


@dataclass(frozen=True)
class Beginning:
    """What a run begins with, or continues with.

    Attributes:
        dataset: what it trains on.
        laws: of its model.
        state: of its beginning, whatever the checkpoint.
        checkpoint: where to continue, if there is one.
        log: where the user is told how it goes.
    """

    dataset: Dataset
    laws: Laws
    state: TrainingState
    checkpoint: Checkpoint | None
    log: logging.Logger


def prepare(
    backend: Backend,
    config: TrainConfig,
    run: RunFolder,
    held: ExitStack,
    like: Beginning | None = None,
) -> Beginning:
    """Take a run's folder, and make everything that its steps need.

    Args:
        backend: where to train.
        config: the run's configuration.
        run: its folder.
        held: the folder is released when this is closed.
        like: another run with the same data and architecture, whose data set and laws serve.

    Raises:
        UserError: everything that the user can mend. An old run is left as it was.
    """
    dataset = like.dataset if like else backend.in_turn(lambda: _dataset(config))
    model = build_model(config, dataset.entry.input_shape, dataset.entry.num_classes)
    _check_smallest_batch(config, model, dataset, backend.replicas)

    def take() -> None:
        refuse_their_run(run)
        held.enter_context(run.lock("train"))
        if config.overwrite:
            clear(run)
        check_unchanged(run, config)

    backend.on_first(take)
    log = stage_logger("train", run.logs / "run.log") if backend.is_first else silence()
    known = like.laws if like else None
    checkpoint, laws = backend.on_first(lambda: _newest(config, run, model, log, known))
    if checkpoint is not None:
        load_weights(model, checkpoint)  # first, as all else is made for this very model
    state = TrainingState.initial(config, model, dataset, laws, backend)
    backend.on_first(lambda: _write_descriptions(config, run, dataset, state))
    return Beginning(dataset, laws, state, checkpoint, log)


def _dataset(config: TrainConfig) -> Dataset:
    return load_dataset(config.dataset, config.data_dir, config.seed, **config.data_options)


def _newest(
    config: TrainConfig,
    run: RunFolder,
    model: nn.Module,
    log: logging.Logger,
    known: Laws | None,
) -> tuple[Checkpoint | None, Laws]:
    """Where to continue, and the laws, which are looked for at a run's beginning."""
    checkpoint = newest_checkpoint(run, log)
    if checkpoint is None or not run.symmetries.exists():
        if checkpoint is not None:
            load_weights(model, checkpoint)
        (known or _laws(config, model)).save(run.symmetries)
    return checkpoint, Laws.load(run.symmetries)


def _train(config: TrainConfig, run: RunFolder, beginning: Beginning) -> int:
    state, checkpoint, log = beginning.state, beginning.checkpoint, beginning.log
    total, backend = state.schedule.total, state.backend
    if checkpoint is None:
        size = state.schedule.phases[0].batch_size
        log.info(
            "%s on %s: %d laws, %d steps of %d examples",
            *(config.model, backend, len(state.observer.laws), total, size),
        )
    else:
        state.load_state_dict(checkpoint)
        if state.step == total:
            log.info("step %d/%d is done already; --overwrite starts anew", total, total)
            return 0
        log.info("continuing after step %d/%d", state.step, total)
    recorder: Recorder = Silence()
    with closing(state.batches):
        if backend.is_first:
            recorder = FolderRecorder(run, state.step if checkpoint else -1)
        with recorder:
            trainer = Trainer(config, state, beginning.dataset.test, recorder, log)
            if checkpoint is None:
                trainer.begin()
            return trainer.fit()


def _laws(config: TrainConfig, model: nn.Module) -> Laws:
    shape, dtype = config.data_entry.input_shape, getattr(torch, config.dtype)
    return find_laws(model, torch.zeros(2, *shape, dtype=dtype), config.loss, config.balance)


def _write_descriptions(
    config: TrainConfig, run: RunFolder, dataset: Dataset, state: TrainingState
) -> None:
    """What later stages need besides checkpoints; a continued run has it already."""
    if not run.probe.exists():
        dtype = getattr(torch, config.dtype)
        inputs, targets = probe_batch(dataset, config.probe_size, config.seed, dtype=dtype)
        write_hdf5(run.probe, {"inputs": inputs.numpy(), "targets": targets.numpy()})
    if not run.hyperparameters.exists():
        task = {
            "input_shape": dataset.entry.input_shape,
            "num_classes": dataset.entry.num_classes,
            "train_size": len(dataset.train),
            "test_size": len(dataset.test),
            "phases": state.schedule.describe(),
            "replicas": state.backend.replicas,
        }
        run.write_hyperparameters(describe(config, str(state.backend), task))


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

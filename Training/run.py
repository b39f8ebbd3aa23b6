"""From a configuration to a trained run."""

import copy
import logging
from contextlib import ExitStack, closing

import torch
from torch import nn

from Data import load_dataset
from Data.batches import probe_batch
from Data.dataset import Dataset, Examples
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

_NOT_DETERMINISTIC = " does not have a deterministic implementation"
"""How torch's error goes on after the name of an operation that --deterministic forbids."""


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
    try:
        with start(config, config.workers) as backend:
            return _train_on(backend, config, run)
    except RuntimeError as error:
        operation, found, _ = str(error).partition(_NOT_DETERMINISTIC)
        if not found:
            raise
        raise UserError(
            f"--deterministic: there is no deterministic algorithm for {operation} on this "
            "device; leave the flag out, or choose another model"
        ) from error


def _train_on(backend: Backend, config: TrainConfig, run: RunFolder) -> int:
    with ExitStack() as held:
        dataset = backend.in_turn(
            lambda: load_dataset(
                config.dataset, config.data_dir, config.seed, **config.data_options
            )
        )
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
        checkpoint, laws = backend.on_first(lambda: _newest(config, run, model, log))
        if checkpoint is not None:
            load_weights(model, checkpoint)  # first, as all else is made for this very model
        state = TrainingState.initial(config, model, dataset, laws, backend)
        backend.on_first(lambda: _write_descriptions(config, run, dataset, state))
        return _train(config, run, dataset.test, state, checkpoint, log)


def _newest(
    config: TrainConfig, run: RunFolder, model: nn.Module, log: logging.Logger
) -> tuple[Checkpoint | None, Laws]:
    """Where to continue, and the laws, which are looked for at a run's beginning."""
    checkpoint = newest_checkpoint(run, log)
    if checkpoint is None or not run.symmetries.exists():
        if checkpoint is not None:
            load_weights(model, checkpoint)
        _laws(config, model).save(run.symmetries)
    return checkpoint, Laws.load(run.symmetries)


def _train(
    config: TrainConfig,
    run: RunFolder,
    test: Examples,
    state: TrainingState,
    checkpoint: Checkpoint | None,
    log: logging.Logger,
) -> int:
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
            trainer = Trainer(config, state, test, recorder, log)
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

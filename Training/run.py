"""From a configuration to a trained run."""

import copy
from contextlib import closing

import torch
from torch import nn

from Data import load_dataset
from Data.batches import probe_batch
from Data.dataset import Dataset
from Models import build_model
from Models.symmetry import Laws, find_laws
from Training.checkpoints import load_weights, newest_checkpoint
from Training.config import TrainConfig
from Training.folder import check_unchanged, clear, describe
from Training.journal import Journal
from Training.loop import Trainer
from Training.schedule import Schedule
from Training.state import TrainingState
from Training.upstream import refuse_their_run
from Utils.devices import select_device
from Utils.errors import UserError
from Utils.logging import stage_logger
from Utils.rundir import RunFolder
from Utils.storage import write_hdf5


def list_laws(config: TrainConfig) -> str:
    """The table of the conservation laws of the model that ``config`` asks for."""
    entry = config.data_entry
    return _laws(config, build_model(config, entry.input_shape, entry.num_classes)).table()


def train(config: TrainConfig, run: RunFolder) -> int:
    """Begin a run, or continue it from its newest readable checkpoint.

    Args:
        config: the run's configuration.
        run: its folder.

    Returns:
        The exit code: 0, or 128 + n if signal n stopped it.

    Raises:
        UserError: everything that the user can mend. An old run is left as it was.
    """
    device = select_device(config.device)
    dataset = load_dataset(config.dataset, config.data_dir, config.seed, **config.data_options)
    model = build_model(config, dataset.entry.input_shape, dataset.entry.num_classes)
    _check_smallest_batch(config, model, dataset)
    refuse_their_run(run)
    with run.lock("train"):
        if config.overwrite:
            clear(run)
        check_unchanged(run, config)
        return _train(config, run, dataset, model, device)


def _train(
    config: TrainConfig, run: RunFolder, dataset: Dataset, model: nn.Module, device: torch.device
) -> int:
    log = stage_logger("train", run.logs / "run.log")
    checkpoint = newest_checkpoint(run, log)
    if checkpoint is not None:
        load_weights(model, checkpoint)  # first of all, as all else is made for this very model
    if checkpoint is None or not run.symmetries.exists():
        _laws(config, model).save(run.symmetries)
        run.publish(run.symmetries)
    laws = Laws.load(run.symmetries)
    state = TrainingState.initial(config, model, dataset, laws, device)
    _write_descriptions(config, run, dataset, state)
    total = state.schedule.total
    if checkpoint is None:
        log.info("%s on %s: %d laws, %d steps", config.model, device, len(laws), total)
    else:
        state.load_state_dict(checkpoint)
        if state.step == total:
            log.info("step %d/%d is done already; --overwrite starts anew", total, total)
            return 0
        log.info("continuing after step %d/%d", state.step, total)
    run.fetch(run.journal)
    with closing(state.batches), Journal(run.logs, state.step if checkpoint else -1) as journal:
        trainer = Trainer(config, run, state, total, dataset.test.to(device), journal, log)
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
        run.publish(run.probe)
    if not run.hyperparameters.exists():
        cuda = state.device.type == "cuda"
        device = torch.cuda.get_device_name(state.device) if cuda else "cpu"
        task = {
            "input_shape": dataset.entry.input_shape,
            "num_classes": dataset.entry.num_classes,
            "train_size": len(dataset.train),
            "test_size": len(dataset.test),
            "phases": state.schedule.describe(),
        }
        run.write_hyperparameters(describe(config, device, task))
        run.publish(run.hyperparameters)


def _check_smallest_batch(config: TrainConfig, model: nn.Module, dataset: Dataset) -> None:
    """Batch normalisation cannot be trained on a batch of one: say so before the epoch's end."""
    size = len(dataset.train)
    batches = {phase.batch_size for phase in Schedule(config, size).phases}
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

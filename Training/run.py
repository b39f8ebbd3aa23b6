"""From a configuration to a trained run."""

import copy
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass

import torch
from torch import nn

from Data import load_dataset
from Data.dataset import Dataset
from Models import build_model
from Models.symmetry import Laws, no_laws
from Training.backends import start
from Training.backends.backend import Backend
from Training.checkpoints import load_weights
from Training.config import TrainConfig
from Training.keeper import Keeper
from Training.laws import laws_of
from Training.loop import Trainer
from Training.schedule import Schedule
from Training.state import TrainingState
from Utils.errors import Diverged, UserError
from Utils.rundir import RunFolder

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
        recorder = keeper.recorder(state, beginning.is_new)
        trainer = Trainer(config, state, beginning.dataset.test, recorder, keeper.log)
        try:
            if beginning.is_new:
                trainer.begin()
            code = trainer.fit()
        except Diverged as error:
            if not config.is_infinite:
                raise
            from Training.infinite import begin  # brings scipy's solvers

            raise begin.diverged(error, config, state.model) from error
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
    keeper: Keeper
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

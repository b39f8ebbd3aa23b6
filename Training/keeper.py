"""The run's folder during training: what is written there before the first step, and where."""

from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace

import torch
from torch import nn

from Data.batches import probe_batch
from Data.dataset import Dataset
from Models.parametrization.scales import Scales
from Models.symmetry import Laws
from Training.checkpoints import Checkpoint, load_weights, newest_checkpoint
from Training.config import TrainConfig
from Training.folder import check_unchanged, clear, describe
from Training.laws import laws_of
from Training.parametrized import resolve
from Training.recorder import FolderRecorder, Recorder, Silence
from Training.registry import SGDS
from Training.state import TrainingState
from Training.upstream import refuse_their_run
from Utils.logging import close, silence, stage_logger
from Utils.rundir import RunFolder
from Utils.storage import write_hdf5


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

    def recorder(self, state: TrainingState, new: bool) -> Recorder:
        """Where numbers and checkpoints go."""
        if self._run is None:
            return Silence()
        return self._held.enter_context(FolderRecorder(self._run, -1 if new else state.step))

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

"""The training loop."""

import logging
import math
import signal
import time

import torch

from Data.batches import evaluation_batches
from Data.dataset import Examples
from Training.checkpoints import save_checkpoint
from Training.config import TrainConfig
from Training.evaluation import evaluate
from Training.interruption import Interruption
from Training.journal import Journal
from Training.losses import not_finite
from Training.registry import LOSSES
from Training.state import TrainingState
from Utils.logging import progress
from Utils.rundir import RunFolder

_SECONDS_BETWEEN_LOG_LINES = 10.0


class Trainer:
    """Runs the steps of a run that are not done yet.

    Args:
        config: the run's configuration.
        run: where checkpoints go.
        state: what the steps change.
        total: steps of the whole run.
        test: the held-out examples, on the state's device.
        journal: where numbers are reported.
        log: where the user is told how it goes.
    """

    def __init__(
        self,
        config: TrainConfig,
        run: RunFolder,
        state: TrainingState,
        total: int,
        test: Examples,
        journal: Journal,
        log: logging.Logger,
    ):
        self.config, self.run, self.state, self.total = config, run, state, total
        self.test, self.journal, self.log = test, journal, log
        self.loss_function = LOSSES[config.loss].load()
        self._last_log_line = -math.inf

    def begin(self) -> None:
        """Evaluate, observe and save the untrained model: step 0."""
        self.state.observer.record(0)
        metrics = self._evaluate()
        self._report(metrics, milestone=True)
        self._log(metrics)
        self._save(metrics)

    def fit(self) -> int:
        """Train to the end, or until a signal comes.

        Returns:
            0, or 128 + the signal's number.

        Raises:
            UserError: a loss is not finite, or a file cannot be written.
        """
        config, state = self.config, self.state
        model, optimizer = state.model, state.optimizer
        batches, losses = state.batches, state.losses
        parameters = list(model.parameters())
        save_steps = config.save_steps(self.total)
        model.train()
        with Interruption() as interruption:
            for step in progress(range(state.step + 1, self.total + 1), "training"):
                inputs, targets = batches.next()
                loss = self.loss_function(model(inputs), targets)
                optimizer.zero_grad()
                loss.backward()
                if config.clip_norm is not None:
                    torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
                optimizer.step()  # the observer's hooks run in here
                state.advance()
                losses.add(loss.detach())  # no .item(): it would wait for the device

                stopped_by = interruption.received
                epoch_ends = batches.position == 0
                observes = step % config.observe_freq == 0
                saves = epoch_ends or step in save_steps or stopped_by is not None
                if observes or saves:
                    self._pause(epoch_ends, observes or epoch_ends, saves)
                if stopped_by is not None and step < self.total:
                    return self._stop(stopped_by)
        folder = self.run.shown(self.run.checkpoint(0).parent)
        self.log.info("finished; checkpoints are in %s", folder)
        return 0

    def _pause(self, epoch_ends: bool, reports: bool, saves: bool) -> None:
        """Wait for the device, then check, observe, report and save."""
        state = self.state
        state.losses.collect(state.step)
        state.observer.record(state.step)
        metrics: dict[str, float] = {}
        if epoch_ends:
            metrics = {"train_loss": state.losses.take_mean("epoch"), **self._evaluate()}
        if reports:
            line = {**metrics, "train_loss": state.losses.take_mean("line")}
            self._report(line, milestone=epoch_ends)
            self._log(metrics or line)
        if saves:
            self._save(metrics)

    def _evaluate(self) -> dict[str, float]:
        state = self.state
        dtype = getattr(torch, self.config.dtype)
        batches = evaluation_batches(self.test, self.config.test_batch_size, state.device, dtype)
        metrics = evaluate(state.model, batches, self.loss_function)
        if not math.isfinite(metrics["test_loss"]):
            raise not_finite(f"test loss after step {state.step}", metrics["test_loss"])
        return metrics

    def _report(self, metrics: dict[str, float], milestone: bool) -> None:
        values = {"epoch": self.state.epoch, "lr": self.state.lr, **metrics}
        self.journal.write(self.state.step, values, milestone)

    def _log(self, metrics: dict[str, float]) -> None:
        state, now = self.state, time.monotonic()
        if now - self._last_log_line > _SECONDS_BETWEEN_LOG_LINES or state.step == self.total:
            self._last_log_line = now
            numbers = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            self.log.info("step %d/%d  epoch %d  %s", state.step, self.total, state.epoch, numbers)

    def _save(self, metrics: dict[str, float]) -> None:
        self.journal.sync()
        content = {**self.state.state_dict(), **metrics}
        checkpoint = self.run.checkpoint(self.state.step)
        save_checkpoint(checkpoint, content)
        self.run.publish(*self.run.logged(), checkpoint)  # the lines before what continues them
        self.state.observer.checkpointed()

    def _stop(self, number: int) -> int:
        self.log.info(
            "stopped by %s after step %d, which is saved; the same command, without --overwrite, "
            "continues",
            signal.Signals(number).name,
            self.state.step,
        )
        return 128 + number

"""The training loop."""

import logging
import math
import signal
import time
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from Data.batches import evaluation_batches
from Data.dataset import Examples
from Training.config import TrainConfig
from Training.evaluation import evaluate
from Training.interruption import Interruption
from Training.recorder import Recorder
from Training.registry import LOSSES
from Training.state import TrainingState
from Utils.errors import Diverged
from Utils.logging import progress

_SECONDS_BETWEEN_LOG_LINES = 10.0

_OVERFLOW = "without overflow"
"""How torch says that a number of the host is too large for the type of a tensor."""


class Trainer:
    """Runs the steps of a run that are not done yet.

    Args:
        config: the run's configuration.
        state: what the steps change.
        test: the held-out examples.
        recorder: where numbers and checkpoints go.
        log: where the user is told how it goes.
    """

    def __init__(
        self,
        config: TrainConfig,
        state: TrainingState,
        test: Examples,
        recorder: Recorder,
        log: logging.Logger,
    ):
        self.config, self.state, self.total = config, state, state.schedule.total
        self.test, self.recorder, self.log = test.to(state.backend.data_device), recorder, log
        self.loss_function = LOSSES[config.loss].load()
        self._last_log_line = -math.inf

    def begin(self) -> None:
        """Observe, evaluate and save the untrained model: step 0."""
        self.state.observer.record(0)
        with self._noted():
            metrics = self._evaluate()
        self._report(metrics, milestone=True)
        self._log(metrics)
        self._save(metrics)

    def fit(self) -> int:
        """Train to the end, or until a signal comes.

        Returns:
            0, or 128 + the signal's number.

        Raises:
            Diverged: a loss is not finite, or an update overflows.
            UserError: a file cannot be written.
        """
        config, state = self.config, self.state
        backend, optimizer, batches = state.backend, state.optimizer, state.batches
        parameters = list(state.model.parameters())
        save_steps = config.save_steps(self.total)
        state.model.train()
        with Interruption() as interruption, self._noted():
            for step in self._steps():
                inputs, targets = backend.place(*batches.next())
                loss = self._loss(inputs, targets)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                if config.clip_norm is not None:
                    torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
                self._update()
                state.advance()
                state.losses.add(loss.detach())  # no .item(): it would wait for the device
                backend.end_step()

                epoch_ends, observes, saves = self.due(save_steps)
                stopped_by = 0
                if observes or saves or backend.processes == 1:  # where all processes can agree
                    stopped_by = backend.largest(interruption.received or 0)
                saves = saves or stopped_by > 0
                if observes or saves:
                    self._pause(epoch_ends, observes, saves)
                if stopped_by and step < self.total:
                    return self._stop(stopped_by)
        self.recorder.finish()
        return 0

    def due(self, save_steps: Container[int]) -> tuple[bool, bool, bool]:
        """After a step: whether an epoch ends, numbers are reported, a checkpoint is saved."""
        step, epoch_ends = self.state.step, self.state.batches.position == 0
        observes = epoch_ends or step % self.config.observe_freq == 0
        return epoch_ends, observes, epoch_ends or step in save_steps

    def _steps(self) -> Iterable[int]:
        steps = range(self.state.step + 1, self.total + 1)
        return progress(steps, "training") if self.state.backend.is_first else steps

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """Let the journal say where the run diverged, if it does; a sweep's metrics count it."""
        try:
            yield
        except Diverged as error:
            self.recorder.diverged(error.step)
            raise

    def _update(self) -> None:
        """Let the optimizer move the weights; the observer's hooks run in here.

        Raises:
            Diverged: --lr is beyond the largest number of the weights' type.
        """
        try:
            self.state.optimizer.step()
        except RuntimeError as error:
            if _OVERFLOW not in str(error):
                raise
            step = self.state.step + 1
            raise Diverged.at(
                step, f"update of step {step} overflows {self.config.dtype}"
            ) from error

    def _loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of this process's share: its mean over processes is the batch's loss."""
        logits, weight = self.state.forward(inputs), self.state.batches.weight
        if weight == 0:  # of no examples; the other processes wait for these gradients
            return logits.sum() * 0
        loss: Tensor = self.loss_function(logits, targets)
        return loss if weight == 1 else loss * weight

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
        """Numbers of the test set, if they are wanted."""
        if not self.config.evaluate:
            return {}
        state, backend = self.state, self.state.backend
        dtype = getattr(torch, self.config.dtype)
        batches = evaluation_batches(
            self.test, self.config.test_batch_size, backend.data_device, dtype, backend.share
        )
        metrics = evaluate(state.model, state.forward, batches, self.loss_function, backend)
        if not math.isfinite(metrics["test_loss"]):
            what = f"test loss after step {state.step} is {metrics['test_loss']}"
            raise Diverged.at(state.step, what)
        return metrics

    def _report(self, metrics: dict[str, float], milestone: bool) -> None:
        values = {"epoch": self.state.epoch, "lr": self.state.lr, **metrics}
        self.recorder.report(self.state.step, values, milestone)

    def _log(self, metrics: dict[str, float]) -> None:
        state, now = self.state, time.monotonic()
        if now - self._last_log_line > _SECONDS_BETWEEN_LOG_LINES or state.step == self.total:
            self._last_log_line = now
            numbers = "".join(f"  {name} {value:.4g}" for name, value in metrics.items())
            self.log.info("step %d/%d  epoch %d%s", state.step, self.total, state.epoch, numbers)

    def _save(self, metrics: dict[str, float]) -> None:
        self.recorder.save(self.state.step, {**self.state.state_dict(), **metrics})
        self.state.observer.checkpointed()

    def _stop(self, number: int) -> int:
        self.recorder.finish()
        self.log.info(
            "stopped by %s after step %d, which is saved; the same command, without --overwrite, "
            "continues",
            signal.Signals(number).name,
            self.state.step,
        )
        return 128 + number

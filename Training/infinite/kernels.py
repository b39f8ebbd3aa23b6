"""The kernels of a run of infinite width: forecast, computed once, kept in its folder.

``kernels.h5`` holds, in the run's number format, the tangent kernels ``/ntk/train`` [N, N],
``/ntk/test`` [E, N] and ``/ntk/probe`` [P, N] between examples and training examples, and
``/ntk/probe_own`` [P, P] between probe examples; and where the loss is squared error, for the
spread of the ensemble, the covariances of initial outputs ``/nngp/train`` [N, N], ``/nngp/probe``
[P, N] and ``/nngp/probe_variance`` [P]; the last one alone, under any loss, where initial outputs
vanish.

Shape letters: N training, E test and P probe examples; R = N + E + P. E = 0 with ``--no-evaluate``.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import h5py
import torch
from torch import Tensor

from Data.batches import evaluation_batches, probe_batch
from Data.dataset import Dataset, Examples
from Models.infinite import InfiniteNetwork
from Models.infinite.limit import limit_network
from Models.infinite.tiles import Kernel
from Training.config import TrainConfig
from Training.infinite.kept import KeptTiles, fingerprint
from Utils.amounts import bytes_text, seconds_text
from Utils.devices import select_device
from Utils.errors import UserError
from Utils.memory import available_bytes
from Utils.rundir import RunFolder
from Utils.storage import open_hdf5, write_hdf5

_PARTS = ("train", "test", "probe")

_ADVICE = "start anew with train.py --overwrite"

_SECONDS_TO_LOG_LINE, _SECONDS_BETWEEN_LOG_LINES = 10.0, 300.0
"""Before the first line of progress, doubled after each; and at most."""

_OF_MODES = 4
"""Matrices that an eigendecomposition holds."""

_BATCH = 1024
"""Examples that are read at a time."""


def tangent_kernel(run: RunFolder) -> tuple[Tensor, dict[str, slice]]:
    """Θ(x, X) [R, N] of training, test and probe examples, and where the rows of each are.

    Raises:
        UserError: the run's kernels are missing or damaged.
    """
    with open_hdf5(run.fetch(run.kernels), _ADVICE) as file:
        parts = [file[f"ntk/{name}"] for name in _PARTS]
        dtype = torch.from_numpy(parts[0][:0]).dtype
        whole = torch.empty(sum(map(len, parts)), parts[0].shape[1], dtype=dtype)
        rows, first = {}, 0
        for name, part in zip(_PARTS, parts, strict=True):
            rows[name] = slice(first, first := first + len(part))
            if len(part):
                part.read_direct(whole[rows[name]].numpy())
    return whole, rows


def kernel_part(run: RunFolder, name: Literal["train", "test", "probe", "probe_own"]) -> Tensor:
    """One of the tangent kernels, in the run's number format.

    Args:
        run: the run's folder.
        name: as in the file, of which the module tells.

    Raises:
        UserError: the run's kernels are missing or damaged.
    """
    with open_hdf5(run.fetch(run.kernels), _ADVICE) as file:
        return torch.from_numpy(file[f"ntk/{name}"][()])


@dataclass(frozen=True)
class Prior:
    """Covariances of initial outputs, in the run's number format.

    Attributes:
        train: K(X, X) [N, N].
        probe: K(x, X) [P, N].
        probe_variance: K(x, x) [P].
    """

    train: Tensor
    probe: Tensor
    probe_variance: Tensor

    @property
    def is_zero(self) -> bool:
        """Whether all networks begin with f = 0."""
        return not self.probe_variance.any()


def prior_kernel(run: RunFolder) -> Prior | None:
    """The covariances of a run's initial outputs; ``None`` if its loss has no use for them.

    Raises:
        UserError: the run's kernels are missing or damaged.
    """

    def tensor(dataset: h5py.Dataset) -> Tensor:
        return torch.from_numpy(dataset[()])

    with open_hdf5(run.fetch(run.kernels), _ADVICE) as file:
        if "nngp" not in file:
            return None
        group = file["nngp"]
        if "train" not in group:
            variance, kernel = tensor(group["probe_variance"]), file["ntk/probe"]
            zero = variance.new_zeros(())
            return Prior(
                zero.expand(kernel.shape[1], kernel.shape[1]), zero.expand(kernel.shape), variance
            )
        return Prior(*(tensor(group[name]) for name in ("train", "probe", "probe_variance")))


@dataclass
class KernelsOfRun:
    """Computes the kernels that a run needs.

    Args:
        config: the run's configuration, of infinite width.
        dataset: what it trains on.

    Raises:
        UserError: wide networks have no kernel, or it does not fit into memory.
    """

    config: TrainConfig
    dataset: Dataset
    _network: InfiniteNetwork = field(init=False)

    def __post_init__(self) -> None:
        entry = self.dataset.entry
        self._network = limit_network(
            self.config, entry.input_shape, entry.num_classes, self.config.nngp
        )
        self._check_memory()

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.config.dtype)
        return dtype

    @property
    def _with_prior(self) -> bool:
        return self.config.loss == "mse" and not self._network.begins_at_zero

    def _sizes(self) -> tuple[int, int, int]:
        test = len(self.dataset.test)
        evaluated = test if self.config.evaluate else 0
        return len(self.dataset.train), evaluated, min(self.config.probe_size, test)

    def _stored(self) -> int:
        """Bytes of the file."""
        train, test, probe = self._sizes()
        prior = train + probe if self._with_prior else 0
        return ((train + test + probe + prior) * train + probe**2) * self._dtype.itemsize

    def _held(self) -> int:
        """Bytes in memory: Θ, and float64 matrices for the largest learning rate, or for modes."""
        train, test, probe = self._sizes()
        matrices = _OF_MODES if self.config.optimizer == "flow" else 1
        held = (train + test + probe) * train * self._dtype.itemsize + 8 * matrices * train**2
        return max(held, self._stored())

    def _check_memory(self) -> None:
        needed, free = self._held(), available_bytes()
        if needed <= free:
            return
        train, test, _ = self._sizes()
        fewer = int(train * (free / needed) ** 0.5)
        smaller = f"--train-size {fewer}" if self.config.train_size else "a smaller data set"
        raise UserError(
            f"--width inf: the kernels of {train} training and {test} test examples need "
            f"{bytes_text(needed)} of memory, and {bytes_text(free)} are free; use {smaller}"
        )

    def identity(self, inputs: Mapping[str, Tensor] | None = None) -> str:
        """Of all that the kernels depend on, but for the rounding of another device.

        Args:
            inputs: the examples, where they are read already.
        """
        others = (str(self._with_prior), str(self.config.evaluate))
        return fingerprint(self._network, inputs or self._inputs(), *others)

    def save(self, run: RunFolder, log: logging.Logger) -> None:
        """Compute the kernels, or what is missing of them, and write them into the run's folder.

        Args:
            run: the run's folder.
            log: where the user is told how long it takes.
        """
        device, inputs = select_device(self.config.device), self._inputs()
        identity, parts = self.identity(inputs), {}
        for name, x in inputs.items():
            sides = (len(x), None if name == "train" else len(inputs["train"]))
            tiling = f"{identity}, {device}, {self._network.tiling(*sides, device)}"
            parts[name] = _Part(x, KeptTiles(run, name, tiling, log))
        self._forecast(device, parts, log)
        write_hdf5(run.kernels, self._computed(device, parts, log), {"identity": identity})
        run.publish(run.kernels)

    def _forecast(
        self, device: torch.device, parts: Mapping[str, "_Part"], log: logging.Logger
    ) -> None:
        train, test, probe = self._sizes()
        get: tuple[Kernel, ...] = ("nngp", "ntk") if self._with_prior else ("ntk",)
        own = self._network.forecast(train, None, get, self._dtype, device)
        cross = self._network.forecast(test + probe, train, get, self._dtype, device)
        there = parts["train"].kept.pairs
        others = sum(part.kept.pairs for part in parts.values()) - there
        seconds = own.seconds * (1 - there / own.pairs) + cross.seconds * (1 - others / cross.pairs)
        log.info(
            "kernels of %d training, %d test and %d probe examples: about %s and %s",
            *(train, test, probe, seconds_text(seconds), bytes_text(self._stored())),
        )
        if there + others:
            share = 100 * (there + others) / (own.pairs + cross.pairs)
            log.info("continuing: %.0f %% of the kernels is there", share)

    def _computed(
        self, device: torch.device, parts: Mapping[str, "_Part"], log: logging.Logger
    ) -> Iterator[tuple[str, object]]:
        train, probe = (parts[name].inputs.to(device) for name in ("train", "probe"))
        if "test" not in parts:
            yield "ntk/test", torch.empty(0, len(train), dtype=self._dtype).numpy()
        for name, part in parts.items():
            wants_prior = self._with_prior and name != "test"
            found = self._network.kernels(
                part.inputs.to(device),
                None if name == "train" else train,
                ("nngp", "ntk") if wants_prior else ("ntk",),
                progress=_Progress(log, _SPLITS[name], part.kept.pairs),
                keeper=part.kept,
            )
            assert found.ntk is not None
            yield f"ntk/{name}", found.ntk.cpu().numpy()
            if found.nngp is not None:
                yield f"nngp/{name}", found.nngp.cpu().numpy()
        own = self._network.kernels(probe, get=("nngp", "ntk"))
        assert own.ntk is not None
        assert own.nngp is not None
        yield "ntk/probe_own", own.ntk.cpu().numpy()
        if self._with_prior or self._network.begins_at_zero:
            yield "nngp/probe_variance", own.nngp.diagonal().cpu().numpy()

    def _inputs(self) -> dict[str, Tensor]:
        """The examples of each part, in the order in which the kernels are computed."""
        config, data = self.config, self.dataset
        probe, _ = probe_batch(data, config.probe_size, config.seed, dtype=self._dtype)
        test = {"test": self._read(data.test)} if config.evaluate else {}
        return {"train": self._read(data.train), **test, "probe": probe}

    def _read(self, split: Examples) -> Tensor:
        return torch.cat([x for x, _ in evaluation_batches(split, _BATCH, dtype=self._dtype)])


@dataclass(frozen=True)
class _Part:
    """The kernel of some examples with the training examples.

    Attributes:
        inputs: the examples, on the CPU.
        kept: of its tiles.
    """

    inputs: Tensor
    kept: KeptTiles


_SPLITS = {"train": "training", "test": "test", "probe": "probe"}
"""The examples whose kernels with the training examples are stored, in words."""


class _Progress:
    """Says now and then, ever more rarely, how far a kernel is, and how long it will take.

    Args:
        log: where.
        examples: of what.
        before: pairs of examples that are there at the beginning.
    """

    def __init__(self, log: logging.Logger, examples: str, before: int = 0):
        self._log, self._examples, self._before = log, examples, before
        self._began = self._last = time.monotonic()
        self._pause = _SECONDS_TO_LOG_LINE

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last < self._pause or done == total:
            return
        self._last, self._pause = now, min(2 * self._pause, _SECONDS_BETWEEN_LOG_LINES)
        left = seconds_text((now - self._began) / (done - self._before) * (total - done))
        what = (self._examples, 100 * done / total, left)
        self._log.info("kernel of %s examples: %.0f %%, about %s left", *what)

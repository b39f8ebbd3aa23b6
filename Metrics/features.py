"""The features of one step, read as they are needed."""

import math
import mmap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np
import torch
from h5py import h5d
from numpy.typing import NDArray
from torch import Tensor

from Models.symmetry import Laws
from Utils.errors import UserError
from Utils.storage import datasets, open_hdf5


class NotRecorded(UserError):
    """The run did not record what a metric needs; the other metrics go on without it."""


class StepFeatures:
    """One ``feats/step{N}.h5``, shared by all metrics of a pass.

    Args:
        path: the file.
        file: the same, open.
        laws: the run's laws.
    """

    def __init__(self, path: Path, file: h5py.File, laws: Laws):
        self._path, self._file, self._laws = path, file, laws
        self._known: dict[str, NDArray[np.float64]] = {}
        self._tensors: dict[str, Tensor] = {}

    @property
    def source(self) -> str:
        """What identifies the checkpoint that the features came from."""
        return str(self._file.attrs["source"])

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @cached_property
    def step(self) -> int:
        """Updates done."""
        return int(self._file.attrs["step"])

    @property
    def observed(self) -> bool:
        """Whether the run had an observer of its laws; those of neural-mechanics had none."""
        return "conservation/update" not in self._file

    @property
    def time(self) -> float:
        """Time of gradient flow, Σ η(1−α)/(1−β)."""
        return float(self._file["conservation/time"][()])

    @cached_property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Shapes by the names of all parameters, in the network's order."""
        return {name: dataset.shape for name, dataset in datasets(self._file["params"])}

    def parameter(self, name: str) -> Tensor:
        """One parameter."""
        return self._tensor(f"params/{name}")

    def buffer(self, parameter: str, name: str) -> Tensor | None:
        """A parameter's buffer; ``None`` if there is none, or none yet."""
        path = f"buffers/{parameter}.{name}"
        return self._tensor(path) if path in self._file else None

    def last_step(self, parameter: str, name: str) -> Tensor:
        """What ``--save-buffers`` kept of the last step of a parameter; NaN before the first."""
        if self.step == 0:
            return torch.full(self._file[f"params/{parameter}"].shape, math.nan)
        return self._tensor(f"buffers/{parameter}.{name}")

    def last_step_number(self, parameter: str, name: str) -> float:
        """The same, of a buffer that is a single number."""
        return math.nan if self.step == 0 else float(self.last_step(parameter, name))

    def _tensor(self, path: str) -> Tensor:
        """An array, mapped from the file rather than copied out of it; not to be written to."""
        if path not in self._tensors:
            array = h5d.open(self._file.id, path.encode())  # half the time of self._file[path]
            offset, size = array.get_offset(), math.prod(array.shape)
            if offset is None or not size:
                values = h5py.Dataset(array)[()]
            else:
                values = np.frombuffer(self._bytes, array.dtype, size, offset).reshape(array.shape)
            with warnings.catch_warnings():  # of memory that must not be written to
                warnings.simplefilter("ignore", UserWarning)
                self._tensors[path] = torch.from_numpy(values)
        return self._tensors[path]

    @cached_property
    def _bytes(self) -> mmap.mmap:
        """The whole file; private copies of pages, made if written to, would count as memory."""
        with open(self._path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def model_state(self) -> dict[str, Tensor]:
        """All parameters and the modules' buffers, by their names in the network.

        Mapped from the file like those of :meth:`parameter`, not to be written to.
        """
        groups = [name for name in ("params", "state") if name in self._file]
        return {
            name: self._tensor(f"{group}/{name}")
            for group in groups
            for name, _ in datasets(self._file[group])
        }

    def metric(self, name: str) -> float:
        """A number saved with the checkpoint; NaN if it was not evaluated there."""
        metrics = self._file["metrics"]
        return float(metrics[name][()]) if name in metrics else float("nan")

    def probe(self, name: str) -> NDArray[np.float64] | None:
        """An array on the probe batch, in float64; ``None`` if extract.py has not made it."""
        path = f"probe/{name}"
        return self._file[path][()].astype(np.float64) if path in self._file else None

    @property
    def ensemble_loss(self) -> float:
        """Of a run of infinite width, the mean training loss of the networks; NaN if unknown."""
        path = "ensemble/train_loss"
        return float(self._file[path][()]) if path in self._file else float("nan")

    def conservation(self, name: str) -> NDArray[np.float64]:
        """What the observer knew of each law, [K]; raises :class:`NotRecorded` without one."""
        if name not in self._known:
            self._known[name] = self._observation(name)[()]
        return self._known[name]

    @property
    def parts(self) -> dict[str, NDArray[np.float64]]:
        """What has changed each charge since the start, [K] each: decay, kinetic and leak."""
        kinetic, leak = self.conservation("kinetic"), self.conservation("leak")
        change = self.conservation("charge") - self.conservation("start")
        return {"decay": change - kinetic - leak, "kinetic": kinetic, "leak": leak}

    def _observation(self, name: str) -> h5py.Group | h5py.Dataset:
        path = f"conservation/{name}"
        if path not in self._file and not self.observed:
            raise NotRecorded(f"neural-mechanics recorded no {name} of each law")
        return self._file[path]

    @cached_property
    def record(self) -> dict[str, NDArray[np.float64]]:
        """The observer's record since the previous checkpoint: [T] and [T, families].

        Raises:
            NotRecorded: there was no observer.
        """
        group = self._observation("record")
        return {name: group[name][()] for name in group}

    @cached_property
    def charges(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The measured charges and their sizes, [K] each, in float64."""
        return self._laws.measure_with_sizes(self.parameter)


@contextmanager
def step_features(path: Path, laws: Laws) -> Iterator[StepFeatures]:
    """Open the features of one step.

    Raises:
        Unreadable: the file is missing, damaged, or lacks something that was asked for.
    """
    with open_hdf5(path, "run extract.py again") as file:
        yield StepFeatures(path, file, laws)

"""Where a network is trained: one process, several with a device each, or the cores of a TPU.

A further kind of device is one more subclass of :class:`Training.backends.backend.Backend` and
one line in :func:`start`. Importing this package costs nothing.
"""

import os
from typing import TYPE_CHECKING

from Training.backends.config import BackendConfig

if TYPE_CHECKING:
    from Training.backends.backend import Backend


def start(config: BackendConfig, workers: int | None = None) -> "Backend":
    """The backend that the flags and torchrun's environment ask for, to be used with ``with``.

    Args:
        config: where to train.
        workers: cores of a TPU to use at most.

    Raises:
        UserError: there is no such device here.
    """
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    if config.tpu is not None:
        from Training.backends.cores import Cores

        return Cores(config, workers)
    if "LOCAL_RANK" in os.environ:
        from Training.backends.processes import Processes

        return Processes(config)
    from Training.backends.backend import Backend
    from Utils.devices import select_device

    return Backend(config, select_device(config.device))

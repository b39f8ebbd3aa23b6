"""How it is trained: configuration, optimizers, schedules, the loop, checkpoints in and out.

Importing this room costs nothing; ``torch`` is imported by the modules that compute.
"""

from Training.config import TrainConfig
from Training.registry import BUFFERS, LOSSES, OPTIMIZERS, SCHEDULES, OptimizerEntry

__all__ = ["BUFFERS", "LOSSES", "OPTIMIZERS", "SCHEDULES", "OptimizerEntry", "TrainConfig"]

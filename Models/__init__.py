"""What is trained: a registry of architectures, and any model that a user brings.

Importing this room costs nothing; ``torch`` is imported when a model is built.
"""

from Models.build import build_model
from Models.config import ModelConfig
from Models.registry import MODELS, NONLINEARITIES, ModelEntry, Nonlinearity

__all__ = [
    "MODELS",
    "NONLINEARITIES",
    "ModelConfig",
    "ModelEntry",
    "Nonlinearity",
    "build_model",
]

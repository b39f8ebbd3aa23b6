"""The flags that say which model is built."""

from typing import Any, Literal, Self

import pydantic
from pydantic import Field

from Models.registry import MODELS, NONLINEARITIES
from Utils.config import Config, refuse_unread, with_defaults


class ModelConfig(Config):
    """What :func:`Models.build_model` needs to know, apart from the data's shape.

    After validation every option that the model reads has its value, and every other is
    ``None``.

    Raises:
        UserError: an unknown model or nonlinearity.
        pydantic.ValidationError: an option that the model does not read.
    """

    model: str = Field(
        "conv",
        description="A model listed above, or your own: path/to/file.py:function or "
        "package.module:function; the function gets (input_shape, num_classes).",
    )
    depth: int | None = Field(
        None, ge=2, description="Layers with weights, the classifier included."
    )
    width: int | None = Field(None, ge=1, description="Neurons or channels of each hidden layer.")
    nonlinearity: str | None = Field(
        None, description="The elementwise function after each hidden layer, listed above."
    )
    bias: bool = Field(True, description="Whether linear and convolutional layers have a bias.")
    dtype: Literal["float32", "float64"] = Field(
        "float32", description="Number format of parameters, inputs and gradients."
    )
    seed: int = Field(1, ge=0, description="Every stream of randomness is derived from it.")

    @property
    def is_user_model(self) -> bool:
        """Whether the model is a function of the user's, not a registered one."""
        return ":" in self.model

    @pydantic.model_validator(mode="before")
    @classmethod
    def _fill_in_the_models_defaults(cls, values: dict[str, Any]) -> dict[str, Any]:
        name = values.get("model", cls.model_fields["model"].default)
        known = isinstance(name, str) and name in MODELS
        return with_defaults(values, MODELS[name].options) if known else values

    @pydantic.model_validator(mode="after")
    def _check_options(self) -> Self:
        if not self.is_user_model:
            MODELS[self.model]  # raises if unknown
        refuse_unread(self, "model", {entry.name: entry.options for entry in MODELS})
        if self.is_user_model and not self.bias:
            raise ValueError(f"--no-bias: not read by --model {self.model}; leave it out")
        if self.nonlinearity is not None:
            NONLINEARITIES[self.nonlinearity]  # raises if unknown
        return self

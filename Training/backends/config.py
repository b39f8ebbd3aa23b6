"""The flags that say where, and in which precision, a network is trained."""

from typing import Literal, Self

import pydantic
from pydantic import Field

from Utils.config import Config
from Utils.devices import DeviceName

BARE_TPU = "local"
"""What ``--tpu`` without a name means: the cores of this machine."""


class BackendConfig(Config):
    """What :func:`Training.backends.start` needs to know.

    Raises:
        pydantic.ValidationError: flags that do not go together.
    """

    device: DeviceName = Field("auto", description="auto takes a GPU where there is one.")
    tpu: str | None = Field(
        None,
        description="Train on all cores of this TPU VM; with a name, only if that is the VM's.",
        json_schema_extra={"bare": BARE_TPU},
    )
    precision: Literal["full", "bf16"] = Field(
        "full", description="bf16: networks compute in bfloat16, weights and charges stay full."
    )
    tf32: bool = Field(
        False, description="Let GPUs round factors of float32 products to 10 bits (TensorFloat32)."
    )
    channels_last: bool = Field(
        False, description="Keep images with their channels innermost; faster on some devices."
    )
    compile: bool = Field(False, description="Compile the network with torch.compile.")
    deterministic: bool = Field(
        False, description="Only deterministic algorithms, where a GPU has faster ones."
    )

    @pydantic.model_validator(mode="after")
    def _check_tpu(self) -> Self:
        if self.tpu is None:
            return self
        if self.device != "auto":
            raise ValueError(f"--tpu trains on TPU cores; leave out --device {self.device}")
        if self.compile:
            raise ValueError("--tpu compiles every step already; leave out --compile")
        return self

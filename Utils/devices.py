"""The device a stage computes on."""

from typing import TYPE_CHECKING, Literal

from Utils.errors import UserError

if TYPE_CHECKING:
    import torch

DeviceName = Literal["auto", "cpu", "cuda"]


def select_device(name: DeviceName) -> "torch.device":
    """The torch device called ``name``; ``auto`` takes a GPU where there is one.

    Raises:
        UserError: ``cuda`` was asked for and there is none.
    """
    import torch

    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError("--device cuda: no CUDA GPU is visible; use --device cpu")
    return torch.device("cuda" if available and name != "cpu" else "cpu")

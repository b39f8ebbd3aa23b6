"""The device a stage computes on, and the way from there to the host."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from Utils.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

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


def to_host(tensors: "Sequence[Tensor]") -> "Tensor":
    """Tensors of one shape, stacked on the CPU; waits for the device.

    They are moved one by one: XLA would compile a stack of every other number of tensors anew.
    """
    import torch

    return torch.stack([tensor.cpu() for tensor in tensors])


def for_float64(tensor: "Tensor") -> "Tensor":
    """The tensor where float64 is at home: a TPU's goes to the CPU, others stay."""
    return tensor.cpu() if tensor.device.type == "xla" else tensor


def snapshot(content: Any) -> Any:
    """A copy on the CPU of tensors in plain containers, which later changes do not reach."""
    import torch

    if isinstance(content, torch.Tensor):
        held = content.detach()
        return held.clone() if held.device.type == "cpu" else held.cpu()
    if isinstance(content, dict):
        return type(content)((key, snapshot(value)) for key, value in content.items())
    if isinstance(content, (list, tuple)):
        return type(content)(snapshot(value) for value in content)
    return content

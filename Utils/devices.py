"""The device a stage computes on, and the ways there and back to the host."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from Utils.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DeviceName = Literal["auto", "cpu", "cuda"]


def select_device(name: DeviceName) -> "torch.device":
    """The torch device called ``name``; ``auto`` takes a GPU where there is one.

    A GPU multiplies float32 in full, unless :func:`allow_tf32` is called afterwards.

    Raises:
        UserError: ``cuda`` was asked for and there is none.
    """
    import torch

    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError("--device cuda: no CUDA GPU is visible; use --device cpu")
    if not available or name == "cpu":
        return torch.device("cpu")
    allow_tf32(False)
    return torch.device("cuda")


def allow_tf32(allowed: bool) -> None:
    """Whether NVIDIA GPUs may round factors of float32 products to TensorFloat32's 10 bits.

    By the older of torch's two interfaces: ``torch.compile`` asks that one, which fails once
    the newer, ``fp32_precision``, has been used (pytorch/pytorch#166387, in torch 2.9).
    """
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Please use the new API settings")
        torch.set_float32_matmul_precision("high" if allowed else "highest")
        torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def full_products() -> Iterator[None]:
    """Matrix products of float32 are not rounded in here, even where TensorFloat32 is allowed."""
    import torch

    if torch.backends.cuda.matmul.fp32_precision != "tf32":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("high")


def to_device(tensor: "Tensor", device: "torch.device | str") -> "Tensor":
    """A tensor on its way to a device. A GPU's earlier work is not waited for.

    Only a copy from pinned memory need not wait; torch keeps that memory until it is done.
    """
    import torch

    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def to_host(tensors: "Sequence[Tensor]") -> "Tensor":
    """Tensors of one shape, stacked on the CPU; waits for the device.

    A GPU stacks them first, to be waited for once. XLA would compile a stack of every other
    number of tensors anew, so there they are moved one by one.
    """
    import torch

    if tensors[0].device.type == "cuda":
        return torch.stack(list(tensors)).cpu()
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

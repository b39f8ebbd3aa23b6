"""What a network's inside does on a batch: which units are on, and the kernels of its layers.

Shape letters: N examples.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from Metrics.kernels.measures import Floats

_RECTIFIERS = {torch.ops.aten.relu, torch.ops.aten.relu_, torch.ops.aten.leaky_relu}


@dataclass(frozen=True)
class Activity:
    """What was seen in one pass.

    Attributes:
        patterns: [N, units] for each rectifier, in the order of the calls: whether its inputs
            are positive.
        features: [N, N] h hᵀ / n of the n outputs h of each layer that has parameters; in a
            network at infinite width, its NNGP kernel.
    """

    patterns: Sequence[NDArray[np.bool_]]
    features: Mapping[str, Floats]


def activity(model: nn.Module, tensors: Mapping[str, Tensor], inputs: Tensor) -> Activity:
    """Send a batch through a network.

    Args:
        model: in evaluation mode.
        tensors: its parameters and buffers, by name.
        inputs: [N, ...].
    """
    features: dict[str, Floats] = {}
    with torch.no_grad(), _features(model, features, len(inputs)), _Rectifiers() as seen:
        functional_call(model, dict(tensors), (inputs,))
    return Activity(seen.patterns, features)


class _Rectifiers(TorchDispatchMode):
    """Notes the signs of what rectifiers read, whether modules or functions call them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.patterns: list[NDArray[np.bool_]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket in _RECTIFIERS:
            self.patterns.append((args[0] > 0).flatten(1).cpu().numpy())
        return func(*args, **(kwargs or {}))


@contextmanager
def _features(model: nn.Module, features: dict[str, Floats], examples: int) -> Iterator[None]:
    """Note the kernel of what each layer gives when it is called first."""

    def hook(name: str) -> Callable[..., None]:
        def note(_: nn.Module, __: Any, output: Any) -> None:
            if name not in features and isinstance(output, Tensor) and len(output) == examples:
                h = output.flatten(1).double()
                features[name] = (h @ h.T / h.shape[1]).cpu().numpy()

        return note

    own = [(n, m) for n, m in model.named_modules() if n and list(m.parameters(recurse=False))]
    handles = [module.register_forward_hook(hook(name)) for name, module in own]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

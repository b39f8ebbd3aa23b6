"""What a run's model says to its fixed probe batch, in evaluation mode."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from Models.config import INFINITE
from Training.checkpoints import Checkpoint
from Training.config import ExtractConfig
from Training.rebuild import rebuild_model
from Utils.devices import select_device
from Utils.errors import UserError
from Utils.rundir import RunFolder
from Utils.storage import open_hdf5


def open_probe(
    config: ExtractConfig, run: RunFolder, hyperparameters: dict[str, Any]
) -> Callable[[Path, Checkpoint], dict[str, Any]]:
    """What makes the arrays of ``/probe`` of a checkpoint, given also its path.

    Args:
        config: what to compute, and where.
        run: the run's folder.
        hyperparameters: the run's.

    Raises:
        UserError: it cannot be made for this run.
    """
    if hyperparameters.get("width") == INFINITE:
        from Training.infinite.probe import InfiniteProbe

        return InfiniteProbe(config, run, hyperparameters)
    return Probe(config, run, hyperparameters)


class Probe:
    """Runs a run's model on its probe batch.

    Args:
        config: what to compute, and where.
        run: the run's folder.
        hyperparameters: the run's.

    Raises:
        UserError: the model cannot be built, or the probe batch cannot be read.
    """

    def __init__(self, config: ExtractConfig, run: RunFolder, hyperparameters: dict[str, Any]):
        self._device = select_device(config.device)
        model = rebuild_model(run, hyperparameters, "use --probe none")
        self._model = model.to(self._device).eval()
        self._activations: dict[str, Any] = {}
        advice = "delete it and run train.py for this run again, or use --probe none"
        with open_hdf5(run.probe, advice) as file:
            self._inputs = torch.from_numpy(file["inputs"][()]).to(self._device)
        if config.probe == "activations":
            for name, module in self._model.named_modules():
                if name and not any(module.children()):
                    module.register_forward_hook(self._keep(f"probe/activations/{name}"))

    def _keep(self, path: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self._activations[path] = _array(output.clone())  # it may be changed in place

        return hook

    @torch.no_grad()
    def __call__(self, path: Path, checkpoint: Checkpoint) -> dict[str, Any]:
        """``probe/logits`` [N, classes] and, if asked for, ``probe/activations/<module>``."""
        self._activations.clear()
        try:
            self._model.load_state_dict(checkpoint["model_state_dict"])
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{path} does not fit the model ({reason}); bring the model's code back, or use "
                "--probe none"
            ) from error
        return {"probe/logits": _array(self._model(self._inputs)), **self._activations}


def _array(tensor: Tensor) -> Any:
    """A tensor as numpy sees it, bfloat16, which numpy lacks, as float32."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()

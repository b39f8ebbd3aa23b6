"""What a run of infinite width says to its probe batch."""

from pathlib import Path
from typing import Any

import torch

from Training.checkpoints import Checkpoint
from Training.config import ExtractConfig
from Training.function_space.kernels import apply
from Training.infinite.ensemble import EnsembleVariance, NoVariance, Variance
from Training.infinite.kernels import prior_kernel, tangent_kernel
from Training.rebuild import rebuild_config
from Utils.errors import UserError
from Utils.rundir import RunFolder


class InfiniteProbe:
    """Outputs on the probe batch, and where it is known their variance over the ensemble.

    Args:
        config: what to compute.
        run: the run's folder.
        hyperparameters: the run's.

    Raises:
        UserError: activations are asked for; the kernels cannot be read.
    """

    def __init__(self, config: ExtractConfig, run: RunFolder, hyperparameters: dict[str, Any]):
        if config.probe == "activations":
            raise UserError(
                "--probe activations: a network of infinite width has no single activations; "
                "use --probe logits"
            )
        training = rebuild_config(run, hyperparameters)
        kernel, rows = tangent_kernel(run)
        self._cross = kernel[rows["probe"]].double()
        self._variance: Variance | None = None
        prior = prior_kernel(run)
        if prior is not None and prior.is_zero:
            self._variance = NoVariance(len(self._cross))
        elif prior is not None:
            outputs = hyperparameters["task"]["num_classes"]
            train = kernel[rows["train"]]
            self._variance = EnsembleVariance(training, train, self._cross, prior, outputs)

    def __call__(self, path: Path, checkpoint: Checkpoint) -> dict[str, Any]:
        """``probe/logits`` [P, C]; with squared error, or where f begins at 0, of the ensemble:

        ``probe/variance`` [P] of each logit, and at ends of epochs ``ensemble/train_loss``, the
        mean of its networks' training losses.
        """
        found = {"probe/logits": apply(self._cross, checkpoint["model_state_dict"]["dual"])}
        if self._variance is not None:
            step = checkpoint["step"]
            found["probe/variance"] = self._variance(step)
            if "train_loss" in checkpoint:
                loss = checkpoint["train_loss"] + self._variance.of_losses(step)
                found["ensemble/train_loss"] = torch.tensor(loss, dtype=torch.float64)
        return {name: tensor.numpy() for name, tensor in found.items()}

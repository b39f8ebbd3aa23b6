"""What stage 1 trains in place of a model with weights where --width is inf."""

import logging
import math

import torch
from torch import nn

from Data.dataset import Dataset
from Training.config import TrainConfig
from Training.discrete_laws import Coefficients
from Training.function_space import largest_curvature, largest_lr
from Training.infinite.kernels import KernelsOfRun, tangent_kernel
from Training.infinite.network import FunctionSpaceNetwork, numbered
from Training.registry import LOSSES
from Utils.errors import Diverged, UserError
from Utils.rundir import RunFolder
from Utils.storage import open_hdf5

__all__ = ["kernels_of", "network_of", "numbered"]

_LARGEST_FLOW = 4000
"""Numbers N C up to which the flow of a loss other than squared error is followed."""


def kernels_of(config: TrainConfig, dataset: Dataset, replicas: int) -> KernelsOfRun:
    """What will compute the kernels; whatever is refused is refused here, before a file is made.

    Args:
        config: the run's configuration.
        dataset: what it trains on.
        replicas: devices that train together.

    Raises:
        UserError: these data, or this network, cannot be trained in function space.
    """
    size = len(dataset.train)
    if replicas > 1:
        raise UserError(f"--width inf trains on one device, not on {replicas}; leave out the rest")
    if config.augment and dataset.entry.augmentation:
        raise UserError(
            f"--width inf: kernels are of the examples themselves, and --dataset {config.dataset} "
            "changes them at random; add --no-augment"
        )
    if config.optimizer == "flow":
        _check_flow(config, size, dataset.entry.num_classes)
    return KernelsOfRun(config, dataset)


def _check_flow(config: TrainConfig, size: int, outputs: int) -> None:
    if config.train_batch_size < size:
        raise UserError(
            f"--optimizer flow is of the whole training set, not of --train-batch-size "
            f"{config.train_batch_size}; use --train-batch-size {size}"
        )
    if config.loss != "mse" and size * outputs > _LARGEST_FLOW:
        raise UserError(
            f"--optimizer flow: with --loss {config.loss} its solver's cost grows as the cube of "
            f"examples times outputs, {size * outputs} here, at most {_LARGEST_FLOW}; use --loss "
            "mse, fewer examples, or --optimizer sgd with a small --lr"
        )


def network_of(kernels: KernelsOfRun, run: RunFolder, log: logging.Logger) -> FunctionSpaceNetwork:
    """The network in function space, whose kernels are computed if the run has none yet.

    Args:
        kernels: computes them.
        run: the run's folder.
        log: where the user is told how long it takes, and of too large a learning rate.
    """
    config, dataset = kernels.config, kernels.dataset
    is_new = not _are_there(kernels, run)
    if is_new:
        kernels.save(run, log)
    run.remove_kernel_parts()
    tangent, _ = tangent_kernel(run)
    network = FunctionSpaceNetwork(
        tangent, dataset.entry.num_classes, LOSSES[config.loss].load(), dataset.train.targets
    )
    if is_new and config.optimizer != "flow":
        _tell_largest_lr(config, network, log)
    return network


def _are_there(kernels: KernelsOfRun, run: RunFolder) -> bool:
    """Whether the run has its kernels, and not those of a command that got no further."""
    if not run.fetch(run.kernels).exists():
        return False
    if run.hyperparameters.exists():
        return True
    with open_hdf5(run.kernels, "delete it, and run the same command again") as file:
        return bool(file.attrs.get("identity") == kernels.identity())


def _tell_largest_lr(
    config: TrainConfig, network: FunctionSpaceNetwork, log: logging.Logger
) -> None:
    largest = _largest_lr(config, network)
    assert config.lr is not None
    if config.lr > largest:
        log.warning(
            "--lr %g is above %.3g, up to which steps on all examples stay bounded at first",
            *(config.lr, largest),
        )
    elif math.isfinite(largest):
        log.info("steps on all examples stay bounded up to --lr %.3g", largest)


def diverged(error: Diverged, config: TrainConfig, network: nn.Module) -> Diverged:
    """The same error with advice that helps a network in function space."""
    assert isinstance(network, FunctionSpaceNetwork)
    largest, advice = _largest_lr(config, network), "lower --lr"
    if math.isfinite(largest):
        advice += f": steps on all examples stay bounded up to {largest:.3g}"
        advice += "" if config.loss == "mse" else " at first"
        if config.train_batch_size < len(network.targets):
            advice += ", mini-batches may need less"
    return Diverged.at(error.step, error.what, advice)


def _largest_lr(config: TrainConfig, network: FunctionSpaceNetwork) -> float:
    """The learning rate up to which steps on the whole training set stay bounded, at f = 0."""
    outputs = torch.zeros_like(network.dual)
    kernel, targets = network.tangent[: len(outputs)], network.targets.to(outputs.device)
    curvature = largest_curvature(kernel, network.loss, outputs, targets)
    rule = Coefficients(
        config.lr or 0.0, 0.0, config.momentum or 0.0, config.dampening or 0.0, config.nesterov
    )
    return largest_lr(curvature, rule)

"""Base learning rates of a first step that has its own, measured once at a reference width.

The first step of IP-LLR undoes powers of the width, not constants (activations' gains, numbers
of layers), which it raises to high powers. So the learning rate of each layer is chosen such that
its own update has a given size: 1 in hidden layers, 0.1 in the readout, as Hajjar et al. (2021,
arXiv 2110.15596) do in their code at every width anew. Here it is done at one width, for one seed
and one batch, so that runs of all widths and seeds get the same numbers and no power of the
width is hidden in them.
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from Data.batches import random_batch
from Data.dataset import Dataset
from Models.parametrization.network import Parametrized
from Models.parametrization.scales import Scales
from Training.config import TrainConfig
from Training.registry import LOSSES, OPTIMIZERS
from Utils.errors import UserError

_HIDDEN, _READOUT = 1.0, 0.1
_SEED, _EXAMPLES = 0, 256


def calibrate(config: TrainConfig, dataset: Dataset) -> dict[str, float]:
    """For each layer's weight, and bias, the η of the first step's η n^{-C}.

    A step is taken on half of a batch, layer by layer: each layer's update is measured on the
    other half behind the layers that have been updated. The first layer keeps --lr.

    Args:
        config: the run's; only its width and seed are others here.
        dataset: where the batch comes from.

    Raises:
        UserError: the model is no chain; or a layer's update is zero or not finite at this width.
    """
    reference = config.model_copy(update={"width": config.calibrate_width, "seed": _SEED})
    entry, optimizer = dataset.entry, OPTIMIZERS[config.optimizer]
    assert optimizer.family is not None  # the configuration was checked
    network = Parametrized(reference, entry.input_shape, entry.num_classes)
    if network.hidden_layers is None:
        raise UserError(
            f"--calibrate-width {config.calibrate_width} goes through a plain chain of layers, "
            f"which --model {config.model} is not; leave it out, or use fc or conv"
        )
    scales = network.scales(optimizer.family, optimizer.decay)
    model = network.build()
    dtype = getattr(torch, config.dtype)
    inputs, targets = random_batch(dataset.train, _EXAMPLES, _SEED, "probe", dtype=dtype)
    half = (len(inputs) + 1) // 2
    loss: Tensor = LOSSES[config.loss].load()(model(inputs[:half]), targets[:half])
    loss.backward()  # type: ignore[no-untyped-call]
    layers = [name for name, m in model.named_modules() if "weight" in m._parameters]
    rates: dict[str, float] = {}
    for place, name in enumerate(layers):
        target = _READOUT if name == layers[-1] else _HIDDEN
        own = _own_update(model, name, inputs[half:], scales)
        rate = config.lr if place == 0 else target / own if own else float("inf")
        if rate is None or not 0 < rate < float("inf"):
            raise UserError(
                f"--calibrate-width {config.calibrate_width}: the first update of {name} does "
                f"{own:.3g} there; choose a smaller width, or --dtype float64"
            )
        _apply(model, name, rate, scales)
        rates |= {f"{name}.{p}": rate for p in dict(model.get_submodule(name).named_parameters())}
    return rates


@torch.no_grad()
def _own_update(model: nn.Module, name: str, inputs: Tensor, scales: Scales) -> float:
    """rms of ΔW x for a base learning rate of 1, x what the layer reads now."""
    layer, read = model.get_submodule(name), []
    hook = layer.register_forward_pre_hook(lambda _, arguments: read.append(arguments[0]))
    model(inputs)
    hook.remove()
    weight = layer.get_parameter("weight")
    assert weight.grad is not None
    zero = {n: torch.zeros_like(p) for n, p in layer.named_parameters()}
    step = -scales.of(f"{name}.weight").first_lr * weight.grad
    own: Tensor = functional_call(layer, {**zero, "weight": step}, (read[0],))
    return float(own.square().mean().sqrt())


@torch.no_grad()
def _apply(model: nn.Module, name: str, rate: float, scales: Scales) -> None:
    for own, parameter in model.get_submodule(name).named_parameters():
        assert parameter.grad is not None
        parameter.sub_(rate * scales.of(f"{name}.{own}").first_lr * parameter.grad)

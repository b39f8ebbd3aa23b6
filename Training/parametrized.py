"""The parametrization of a run: its scales, its theory, and what its folder keeps of it."""

from typing import Any

from Data.dataset import Dataset
from Models.parametrization.network import Parametrized
from Models.parametrization.report import report
from Models.parametrization.scales import Scales
from Training.calibration import calibrate
from Training.config import TrainConfig
from Training.registry import OPTIMIZERS


def explanation(config: TrainConfig) -> str:
    """What the parametrization does as the width grows, as text; at a width its numbers, too.

    Args:
        config: with ``--param`` or ``--abc``.

    Raises:
        UserError: roles cannot be inferred, or the parametrization is not for this model.
    """
    entry = config.data_entry
    finite = config.at_reference_width() if config.is_infinite else config
    network = Parametrized(finite, entry.input_shape, entry.num_classes)
    family = OPTIMIZERS[config.optimizer].family
    assert family is not None  # the configuration was checked
    depth = network.hidden_layers or 2
    text = report(config.param or "--abc", network.abc(family), depth, family, config.bias)
    if network.hidden_layers is None:
        text += "\n(of a chain of three layers; the roles of this model have the same exponents)"
    if config.is_infinite:
        return text
    return f"{text}\n\n{network.scales(family, OPTIMIZERS[config.optimizer].decay).table()}"


def resolve(config: TrainConfig, dataset: Dataset, stored: dict[str, Any] | None) -> Scales | None:
    """The scales of a run's parameters; ``None`` without a parametrization.

    Args:
        config: the run's configuration.
        dataset: what it trains on, for --calibrate-width.
        stored: what an earlier part of the run has kept of them, if there was one.
    """
    if not config.is_parametrized:
        return None
    if stored is not None:
        return Scales.from_flat(stored)
    entry, optimizer = dataset.entry, OPTIMIZERS[config.optimizer]
    assert optimizer.family is not None  # the configuration was checked
    network = Parametrized(config, entry.input_shape, entry.num_classes)
    scales = network.scales(optimizer.family, optimizer.decay)
    if config.calibrate_width is None:
        return scales
    return scales.with_first_lrs(calibrate(config, dataset), config.lr or 1.0)

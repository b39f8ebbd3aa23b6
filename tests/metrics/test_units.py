"""Which parameters make up the units of a layer."""

import pytest
import torch
from torch import nn

from Metrics.units import UnitLayer, sums_by_unit, unit_layers
from Models import ModelConfig, build_model
from Utils.config import validate


class Together(nn.Module):
    """Modules whose parameters are easily taken for one another's."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.token = nn.Parameter(torch.zeros(1, 1, 6))
        self.conv = nn.Conv2d(4, 6, 3)
        self.bare = nn.Linear(6, 6, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.attention = nn.MultiheadAttention(6, 2)
        self.recurrent = nn.LSTM(6, 3)
        self.upwards = nn.ConvTranspose2d(6, 4, 2)


def test_every_kind_of_module() -> None:
    shapes = {name: tuple(p.shape) for name, p in Together().named_parameters()}
    assert unit_layers(shapes) == [
        UnitLayer("scale", ("scale",), False),
        UnitLayer("token", ("token",), True),
        UnitLayer("conv", ("conv.weight", "conv.bias"), True),
        UnitLayer("bare", ("bare.weight",), True),
        UnitLayer("norm", ("norm.weight", "norm.bias"), False),
        UnitLayer("attention", ("attention.in_proj_weight", "attention.in_proj_bias"), True),
        UnitLayer(
            "attention.out_proj", ("attention.out_proj.weight", "attention.out_proj.bias"), True
        ),
        # both biases fit both weights, all have 4 · 3 rows
        UnitLayer("recurrent.weight_ih_l0", ("recurrent.weight_ih_l0",), True),
        UnitLayer("recurrent.weight_hh_l0", ("recurrent.weight_hh_l0",), True),
        UnitLayer("recurrent.bias_ih_l0", ("recurrent.bias_ih_l0",), False),
        UnitLayer("recurrent.bias_hh_l0", ("recurrent.bias_hh_l0",), False),
        # the first axis of this weight counts inputs
        UnitLayer("upwards.weight", ("upwards.weight",), True),
        UnitLayer("upwards.bias", ("upwards.bias",), False),
    ]


@pytest.mark.parametrize(
    ("model", "model_class", "layers"),
    [("vit", "default", None), ("resnet18", "tinyimagenet", 41), ("vgg11-bn", "tinyimagenet", 19)],
)
def test_every_parameter_has_its_place(model: str, model_class: str, layers: int | None) -> None:
    config = validate(ModelConfig, {"model": model, "model_class": model_class}, "test")
    network = build_model(config, (3, 32, 32), 10)
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
    found = unit_layers(shapes)
    assert sorted(name for layer in found for name in layer.parameters) == sorted(shapes)
    assert len({layer.name for layer in found}) == len(found)
    for layer in found:
        assert len({shapes[name][0] for name in layer.parameters}) == 1
    if layers:  # one for each convolution, linear layer and normalisation
        assert len(found) == layers


def test_sums_are_over_all_axes_but_the_first() -> None:
    x = torch.arange(24.0).reshape(2, 3, 4)
    assert sums_by_unit(x).tolist() == [sum(range(12)), sum(range(12, 24))]
    assert sums_by_unit(torch.tensor([1.0, 2.0])).tolist() == [1, 2]
    assert sums_by_unit(torch.tensor(3.0)).tolist() == [3]

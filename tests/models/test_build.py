"""The registered models: sizes, names, initialisation, options."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from Models import MODELS, NONLINEARITIES, ModelConfig, ModelEntry, build_model
from Utils.config import validate
from Utils.errors import UserError

MNIST, CIFAR = (1, 28, 28), (3, 32, 32)
DEFAULT = MODELS["default"]
EVERY = [
    pytest.param(name, entry, id=f"{name}/{entry.name}")
    for name in MODELS
    for entry in MODELS[name]
]


def shape_for(name: str) -> tuple[int, ...]:
    """Inputs that a model of the default class reads."""
    return (12, 7) if name == "transformer" else MNIST


def configure(**options: Any) -> ModelConfig:
    return validate(ModelConfig, options, "test")


def build(shape: tuple[int, ...] = MNIST, **options: Any) -> nn.Module:
    return build_model(configure(**options), shape, 10)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "shape", "parameters"),
    [
        ("logistic", MNIST, 7_850),
        ("fc", MNIST, 119_910),
        ("fc-bn", MNIST, 120_910),
        ("conv", MNIST, 260_458),
        ("conv", CIFAR, 337_834),
        ("conv-bn", MNIST, 260_458 + 2 * 64),
    ],
)
def test_sizes_are_those_of_neural_mechanics(
    name: str, shape: tuple[int, ...], parameters: int
) -> None:
    assert count(build(shape, model=name)) == parameters


@pytest.mark.parametrize("name", DEFAULT.names)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_model_maps_a_batch_to_logits_and_can_be_trained(name: str, dtype: str) -> None:
    model = build(shape_for(name), model=name, dtype=dtype)
    inputs = torch.randn(4, *shape_for(name), dtype=getattr(torch, dtype))
    logits = model(inputs)
    assert logits.shape == (4, 10)
    assert logits.dtype == inputs.dtype
    logits.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_preactivation_blocks_are_a_stream_and_its_branches() -> None:
    """Against the formula, from the weights alone."""
    model = build((2, 5, 4), model="preact-resnet", depth=2, width=3, dtype="float64")
    weights = dict(model.named_parameters())

    def conv(name: str, x: Tensor) -> Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    inputs = torch.randn(3, 2, 5, 4, dtype=torch.float64)
    x = conv("stem", inputs)
    for block in ("block1", "block2"):
        x = x + conv(f"{block}.conv2", conv(f"{block}.conv1", x.relu()).relu()) / 2**0.5
    features = x.relu().sum((2, 3)) / 20
    expected = features @ weights["classifier.weight"].T + weights["classifier.bias"]
    assert torch.allclose(model(inputs), expected, rtol=1e-12)
    assert len(weights) == 2 * (1 + 4 + 1)


def test_convolutions_read_images() -> None:
    with pytest.raises(UserError, match=r"conv reads images .* not inputs of shape 20; choose"):
        build((20,), model="conv-bn")


def test_layers_are_named_for_figures() -> None:
    names = [name.removesuffix(".weight") for name in build(model="fc-bn", depth=3).state_dict()]
    assert [n for n in names if "." not in n] == ["fc1", "bn1", "fc2", "bn2", "classifier"]
    names = [name.removesuffix(".weight") for name in build(model="conv-bn").state_dict()]
    assert [n for n in names if "." not in n] == ["conv1", "bn1", "conv2", "bn2", "classifier"]


OPTIONS: dict[str, Any] = {
    "depth": 4,
    "width": 8,
    "nonlinearity": "tanh",
    "bias": False,
    "heads": 2,
    "kv_heads": 2,
    "positions": "rope",
    "qk_norm": True,
    "norm": "rmsnorm",
    "mlp": "swiglu",
    "patch_size": 7,
    "pretrained": True,
}


@pytest.mark.parametrize(("model_class", "entry"), EVERY)
def test_options_are_read_or_refused(model_class: str, entry: ModelEntry) -> None:
    reads = {*entry.options, *(["pretrained"] if entry.pretrained else [])}
    assert reads <= OPTIONS.keys()
    for option, value in OPTIONS.items():
        flags = {"model": entry.name, "model_class": model_class, option: value}
        if option in reads:
            assert getattr(configure(**flags), option) == value
            continue
        flag = "--no-bias" if option == "bias" else f"--{option.replace('_', '-')}"
        with pytest.raises(UserError, match=f"^{flag}: not read by --model {entry.name}; leave"):
            configure(**flags)


@pytest.mark.parametrize("name", DEFAULT.names)
def test_options_change_the_model(name: str) -> None:
    shape = shape_for(name)
    for option in DEFAULT[name].options:
        if option != "heads":  # they share out the same weights
            changed = build(shape, model=name, **{option: OPTIONS[option]})
            assert str(build(shape, model=name)) != str(changed)
    without_bias = build(shape, model=name, bias=False)
    for module in without_bias.modules():
        assert not isinstance(module, (nn.Linear, nn.Conv2d)) or module.bias is None


@pytest.mark.parametrize(("model_class", "entry"), EVERY)
def test_every_model_runs_forwards_and_backwards(model_class: str, entry: ModelEntry) -> None:
    """Shapes only: a device without numbers makes large networks cheap."""
    shape = shape_for(entry.name) if model_class == "default" else (3, 64, 64)
    with torch.device("meta"):
        model = build(shape, model=entry.name, model_class=model_class)
        logits = model(torch.randn(2, *shape))
        assert logits.shape == (2, 10)
        logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_models_defaults_are_part_of_the_configuration() -> None:
    written_out = configure(model="fc", depth=6, width=100, nonlinearity="relu")
    assert configure(model="fc") == written_out
    assert configure(model="logistic").depth is None


def test_initialisation_depends_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = build(model="fc", seed=3).state_dict()
    state = torch.get_rng_state()
    torch.manual_seed(2)
    second = build(model="fc", seed=3, dtype="float64").state_dict()
    other = build(model="fc", seed=4).state_dict()
    assert all(torch.equal(first[k].double(), second[k]) for k in first)
    assert not torch.equal(first["fc1.weight"], other["fc1.weight"])
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state), "building a model drew from the global state"


@pytest.mark.parametrize("name", NONLINEARITIES.names)
def test_degrees_of_homogeneity_are_true(name: str) -> None:
    entry = NONLINEARITIES[name]
    function = entry.load()()
    x = torch.linspace(-3, 3, 101, dtype=torch.float64)
    degrees = [p for p in (1, 2, 3) if torch.allclose(function(2 * x), 2**p * function(x))]
    assert degrees == ([] if entry.degree is None else [entry.degree])


def test_unknown_names_are_refused_with_a_suggestion() -> None:
    with pytest.raises(UserError, match="unknown model 'cnov'; did you mean 'conv'"):
        configure(model="cnov")
    message = "unknown model of --model-class imagenet 'resnt18'; did you mean 'resnet18'"
    with pytest.raises(UserError, match=message):
        configure(model="resnt18", model_class="imagenet")
    with pytest.raises(UserError, match="unknown nonlinearity 'rleu'; did you mean 'relu'"):
        configure(model="fc", nonlinearity="rleu")


def test_the_class_of_a_model_must_be_given() -> None:
    message = "--model vgg16 is not of --model-class default; use --model-class tinyimagenet or i"
    with pytest.raises(UserError, match=message):
        configure(model="vgg16")
    with pytest.raises(
        UserError, match=r"resnet18-nobn is not of .* imagenet; use .* tinyimagenet$"
    ):
        configure(model="resnet18-nobn", model_class="imagenet")
    with pytest.raises(UserError, match="--model-class huge: input should be 'default', 'tinyim"):
        configure(model="vgg16", model_class="huge")
    with pytest.raises(UserError, match=r"--model-class: not read by --model a\.py:f"):
        configure(model="a.py:f", model_class="imagenet")
    assert configure(model="vgg16", model_class="imagenet").bias


def test_importing_the_room_does_not_import_torch() -> None:
    code = "import Models, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

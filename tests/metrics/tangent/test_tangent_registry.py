"""Kernels of the registry's models, against the length of a pulled back vector."""

import pytest
import torch
from torch import Tensor, nn

from Metrics.tangent import tangent_kernel
from Metrics.tangent.network import Network
from Models import MODELS, ModelConfig, build_model
from Utils.config import validate

IMAGES, SEQUENCES, CLASSES = (3, 8, 8), (5, 6), 3
LARGE = ("vgg11-bn", "resnet18")


def build(shape: tuple[int, ...], **flags: object) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = build_model(validate(ModelConfig, dict(flags), "test"), shape, CLASSES).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_var is not None
            module.running_var.uniform_(0.5, 2)
    return model, torch.randn(2, *shape, dtype=torch.float64)


def check(model: nn.Module, inputs: Tensor) -> None:
    """uᵀ Θ_l u = |J_lᵀ u|² for random u [N, C], whatever computes Θ."""
    found = tangent_kernel(model, inputs, form="full", per_layer=True)
    network = Network(model)
    logits = model(inputs)
    for _ in range(3):
        u = torch.randn_like(logits)
        pulled = torch.autograd.grad(
            logits, list(network.parameters.values()), u, retain_graph=True, materialize_grads=True
        )
        squares = {
            n: float(g.square().sum()) for n, g in zip(network.parameters, pulled, strict=True)
        }
        for layer, names in network.layers.items():
            form = torch.einsum("nc,nmcd,md->", u, found.layers[layer], u)
            assert float(form) == pytest.approx(sum(squares[name] for name in names), rel=1e-10)


@pytest.mark.parametrize("name", MODELS["default"].names)
def test_models(name: str) -> None:
    shape = SEQUENCES if name == "transformer" else IMAGES
    check(*build(shape, model=name))


@pytest.mark.parametrize("name", LARGE)
def test_models_for_images(name: str) -> None:
    shape = (3, 32, 32) if name.startswith("vgg") else IMAGES
    check(*build(shape, model=name, model_class="tinyimagenet"))


@pytest.mark.parametrize("param", ["ntk", "mup", "mean-field"])
def test_parametrized_models(param: str) -> None:
    check(*build(IMAGES, model="fc", param=param, width=16, depth=3))


@pytest.mark.parametrize(
    "flags",
    [
        {"positions": "rope", "norm": "rmsnorm", "mlp": "swiglu", "kv_heads": 2},
        {"qk_norm": True, "positions": "none", "bias": False},
    ],
)
def test_transformers(flags: dict[str, object]) -> None:
    model, inputs = build(SEQUENCES, model="transformer", width=16, **flags)
    check(model, inputs)
    routes = tangent_kernel(model, inputs).routes
    assert "jacobian" not in routes.values()  # every call of the project's own models is known

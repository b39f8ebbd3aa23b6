"""From finite networks to infinite ones: those of the registry, those that have no limit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from Models import NONLINEARITIES, ModelConfig, build_model
from Models.infinite import InfiniteNetwork, Parametrization, infinite_network
from Models.infinite.layers.pointwise import Dropout, Nonlinearity
from Models.infinite.limit import limit_network
from Models.parametrization.network import Parametrized
from tests.models.infinite.references import agrees
from Utils.config import validate
from Utils.errors import UserError


def config_of(**flags: Any) -> ModelConfig:
    return validate(ModelConfig, flags, "test")


def layers(network: InfiniteNetwork) -> list[str]:
    return [type(step.layer).__name__ for step in network.program.steps]


# ---------------------------------------------------------------------- models of the registry


@pytest.mark.parametrize(
    ("flags", "shape"),
    [
        ({"model": "fc", "depth": 3, "width": 400}, (1, 2, 3)),
        ({"model": "conv", "depth": 3, "width": 64, "nonlinearity": "tanh"}, (2, 4, 4)),
        ({"model": "fc", "depth": 2, "width": 400, "bias": False, "param": "sp-lr1n"}, (5,)),
        ({"model": "preact-resnet", "depth": 2, "width": 64}, (2, 3, 3)),
    ],
)
def test_a_run_has_the_kernel_of_its_parametrization(flags: Any, shape: tuple[int, ...]) -> None:
    """Seeds of one configuration, each parameter's learning rate counted, against the limit."""
    flags = {"param": "ntk", "dtype": "float64", **flags}
    config = config_of(**flags)
    x = torch.randn(3, *shape, dtype=torch.float64)
    scales = Parametrized(config, shape, 4).scales("sgd", "gradient")
    nngp, ntk = [], []
    for seed in range(10):
        model = build_model(config_of(**flags, seed=seed), shape, 4)
        named = list(model.named_parameters())
        outputs = model(x)
        nngp.append((outputs @ outputs.T / 4).detach())
        total = torch.zeros(3, 3, dtype=torch.float64)
        for c in range(4):
            rows = []
            for i in range(3):
                found = torch.autograd.grad(outputs[i, c], [p for _, p in named], retain_graph=True)
                parts = zip(found, named, strict=True)
                rows.append(
                    torch.cat([g.flatten() * scales.of(name).lr ** 0.5 for g, (name, _) in parts])
                )
            jacobian = torch.stack(rows)
            total += jacobian @ jacobian.T / 4
        ntk.append(total)
    kernels = infinite_network(config, shape, 4).kernels(x)
    assert kernels.nngp is not None
    assert kernels.ntk is not None
    assert agrees(torch.stack(nngp), kernels.nngp, 0.03)
    assert agrees(torch.stack(ntk), kernels.ntk, 0.03)


def test_the_width_of_a_run_does_not_matter() -> None:
    x = torch.randn(2, 1, 4, 4)
    kernels = [
        infinite_network(config_of(model="conv", width=w, param="ntk"), (1, 4, 4), 3).kernels(x).ntk
        for w in (8, 32)
    ]
    narrow, wide = kernels
    assert narrow is not None
    assert wide is not None
    assert torch.allclose(narrow, wide, rtol=1e-5)


@pytest.mark.parametrize("name", NONLINEARITIES.names)
def test_every_nonlinearity_has_its_dual(name: str) -> None:
    config = config_of(model="fc", depth=2, width=4, nonlinearity=name)
    network = infinite_network(config, (3,), 2, Parametrization())
    found = [s.layer.dual for s in network.program.steps if isinstance(s.layer, Nonlinearity)]
    kinds = {"relu2": "RectifiedPower", "gelu": "Gelu"}
    kinds |= dict.fromkeys(("relu", "leaky-relu", "abs"), "PiecewiseLinear")
    if name == "identity":
        assert found == []
    else:
        assert type(found[0]).__name__ == kinds.get(name, "Mehler")


@pytest.mark.parametrize(
    ("flags", "shape", "reason"),
    [
        ({"model": "fc-bn"}, (4,), "bn1: batch normalisation couples"),
        ({"model": "conv-bn"}, (1, 4, 4), "batch normalisation couples"),
        ({"model": "transformer"}, (3, 4), "infinite width: "),
        ({"model": "vit"}, (1, 8, 8), "infinite width: "),
        ({"model": "vgg11", "model_class": "tinyimagenet"}, (3, 32, 32), "average pooling"),
        (
            {"model": "resnet18-nobn", "model_class": "tinyimagenet"},
            (3, 8, 8),
            "layer1.0.relu: relu reads sum, whose values are not Gaussian",
        ),
    ],
)
def test_models_without_a_limit_are_refused(
    flags: Any, shape: tuple[int, ...], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        infinite_network(config_of(**flags), shape, 3, Parametrization())


@pytest.mark.parametrize("param", ["mean-field", "ip-non-centered", "ipllr"])
def test_parametrizations_without_a_kernel_are_refused(param: str) -> None:
    config = config_of(model="fc", depth=3, width=8, param=param)
    with pytest.raises(UserError, match="no kernel at initialisation"):
        infinite_network(config, (4,), 3)


@pytest.mark.parametrize("param", ["mup", "hybrid:1/3"])
def test_small_readouts_have_the_kernel_of_ntk_at_initialisation(param: str) -> None:
    """At this width, too: larger rates undo them exactly. The outputs are smaller."""
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).double()
    found, ntk = (
        infinite_network(config_of(model="fc", depth=3, width=8, param=p), (4,), 3).kernels(x)
        for p in (param, "ntk")
    )
    torch.testing.assert_close(found.ntk, ntk.ntk, rtol=1e-14, atol=0)
    assert ntk.nngp is not None
    smaller = {"mup": 8.0, "hybrid:1/3": 2.0}[param]
    torch.testing.assert_close(found.nngp, ntk.nngp / smaller, rtol=1e-14, atol=0)


def test_weights_of_nonzero_mean_have_no_kernel(tmp_path: Path) -> None:
    path = tmp_path / "mean.yaml"
    ntk = "input: {c: 0}\nhidden: {a: 1/2}\nreadout: {a: 1/2}\n"

    def network(text: str) -> InfiniteNetwork:
        path.write_text(text)
        config = config_of(model="fc", depth=3, width=8, abc=str(path))
        return infinite_network(config, (4,), 3)

    assert network(ntk).program.steps
    with pytest.raises(UserError, match="no kernel at initialisation"):
        network(f"{ntk}mean: 1\n")


GAINS = """
from torch import nn

class Net(nn.Module):
    def __init__(self, input_shape, num_classes, width):
        super().__init__()
        self.first, self.norm = nn.Linear(4, width), nn.RMSNorm(width)
        self.last = nn.Linear(width, num_classes)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in TRAINED)

    def forward(self, x):
        return self.last(self.norm(self.first(x)))
"""


def gains(folder: Path, trained: str, **flags: Any) -> ModelConfig:
    """Of a network of which one parameter is trained."""
    path = folder / f"{trained.replace('.', '_')}.py"
    path.write_text(f"{GAINS}\nTRAINED = ({trained!r},)\n")
    return config_of(model=f"{path}:Net", **flags)


def test_frozen_layers_of_a_run_are_no_part_and_gains_have_its_rate(tmp_path: Path) -> None:
    """Θ = Σ_p s_p J_p J_pᵀ over what is trained; of the n gains and the n weights of each output
    of a readout of variance 1/n, |J_p|² is 1 and n."""
    x = torch.randn(3, 4, dtype=torch.float64)

    def part(trained: str) -> Tensor:
        config = gains(tmp_path, trained, width=8, param="sp-lr1n")
        rate = Parametrized(config, (4,), 3).scales("sgd", "gradient").of(trained).lr
        found = infinite_network(config, (4,), 3).kernels(x).ntk
        assert found is not None
        return found / rate

    torch.testing.assert_close(part("last.bias"), torch.ones(3, 3).double())
    torch.testing.assert_close(part("last.weight"), 8 * part("norm.weight"))


def test_gains_at_infinity(tmp_path: Path) -> None:
    """Under NTK they learn, at 1/n not; nor where the readout alone does."""
    x = torch.randn(3, 4, dtype=torch.float64)

    def part(param: str, readout_only: bool = False) -> Tensor:
        config = gains(tmp_path, "norm.weight", width="inf", param=param)
        found = limit_network(config, (4,), 3, readout_only).kernels(x)
        assert found.ntk is not None
        assert found.nngp is not None
        return found.ntk / found.nngp

    torch.testing.assert_close(part("ntk"), torch.ones(3, 3).double())
    assert not part("sp-lr1n").any()
    assert not part("ntk", readout_only=True).any()


def test_without_a_parametrization_there_is_no_limit() -> None:
    with pytest.raises(UserError, match="--param ntk"):
        infinite_network(config_of(model="fc"), (4,), 3)


# ---------------------------------------------------------------------- modules


def net(function: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict(parts)

        def forward(self, x: Tensor) -> Tensor:
            return function(self.parts, x)

    return Net()


def linear(inputs: int = 4, outputs: int = 4) -> nn.Linear:
    return nn.Linear(inputs, outputs)


REFUSED: dict[str, tuple[nn.Module, str]] = {
    "two nonlinearities added": (
        net(
            lambda m, x: m["c"](m["a"](x).relu() + m["b"](x).relu()),
            a=linear(),
            b=linear(),
            c=linear(),
        ),
        "means do not vanish",
    ),
    "dependent branches": (
        net(lambda m, x: m["b"](m["a"](x).relu() + 2 * m["a"](x)), a=linear(), b=linear()),
        "used twice",
    ),
    "input added": (net(lambda m, x: x + m["a"](x), a=linear()), "input itself"),
    "dependent gate": (
        net(lambda m, x: (m["a"](x) + (y := m["b"](x))) * y.sigmoid(), a=linear(), b=linear()),
        "branches of a product share their last layer",
    ),
    "gate before a nonlinearity": (
        net(lambda m, x: (m["a"](x) * m["b"](x)).relu(), a=linear(), b=linear()),
        "reads product, whose values are not Gaussian",
    ),
    "positions concatenated": (
        net(lambda m, x: torch.cat([m["a"](x)[None], m["b"](x)[None]]), a=linear(), b=linear()),
        "infinite width: ",
    ),
    "nonlinearity of the input": (net(lambda m, x: m["a"](x.relu()), a=linear()), "the input"),
    "norm after relu": (
        net(
            lambda m, x: m["b"](m["n"](m["a"](x).relu())), a=linear(), n=nn.LayerNorm(4), b=linear()
        ),
        "RMS",
    ),
    "trained gains": (
        net(
            lambda m, x: m["b"](m["n"](m["a"](x)).relu()), a=linear(), n=nn.LayerNorm(4), b=linear()
        ),
        "elementwise_affine=False",
    ),
    "computed weights": (net(lambda m, x: F.linear(x, 2 * m["a"].weight), a=linear()), "parameter"),
    "data": (
        net(lambda m, x: m["a"](x) if x.sum() > 0 else x, a=linear()),
        "cannot be traced",
    ),
    "softmax": (net(lambda m, x: m["a"](x).softmax(-1), a=linear()), "softmax"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_modules_without_a_limit_are_refused_with_the_reason(case: str) -> None:
    module, reason = REFUSED[case]
    with pytest.raises(UserError, match=reason) as caught:
        infinite_network(module, (4,))
    assert "\n" not in str(caught.value)


def test_functions_of_one_value_become_one_nonlinearity() -> None:
    written = net(
        lambda m, x: m["b"](torch.relu(y := m["a"](x)) - 0.2 * torch.relu(-y)),
        a=linear(),
        b=linear(),
    )
    network = infinite_network(written, (4,))
    leaky = infinite_network(nn.Sequential(linear(), nn.LeakyReLU(0.2), linear()), (4,))
    assert layers(network)[-2:] == ["Nonlinearity", "Affine"]
    x = torch.randn(3, 4, dtype=torch.float64)
    found, expected = network.kernels(x).ntk, leaky.kernels(x).ntk
    assert found is not None
    assert expected is not None
    assert torch.allclose(found, expected, rtol=1e-12)


def test_dropout_is_on_in_training_only() -> None:
    module = nn.Sequential(linear(), nn.ReLU(), nn.Dropout(0.25), linear())
    x = torch.randn(3, 4, dtype=torch.float64)
    off, on = (infinite_network(module, (4,), training=t).kernels(x).nngp for t in (False, True))
    assert off is not None
    assert on is not None
    ratio = on / off
    assert torch.allclose(ratio.diagonal(), torch.full((3,), 4 / 3, dtype=torch.float64))
    assert torch.allclose(ratio - torch.diag(ratio.diagonal() - 1), torch.ones(3, 3).double())
    assert Dropout.__name__ in layers(infinite_network(module, (4,), training=True))


def test_frozen_layers_are_not_part_of_the_tangent_kernel() -> None:
    module = nn.Sequential(linear(), nn.ReLU(), linear())
    x = torch.randn(3, 4, dtype=torch.float64)
    for parameter in module[0].parameters():
        parameter.requires_grad_(False)
    last = infinite_network(module, (4,)).kernels(x)
    assert last.ntk is not None
    assert last.nngp is not None
    assert torch.allclose(last.ntk, last.nngp)  # the readout alone: its covariance


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"kind": "mup"}, "use 'ntk' or 'standard'"),
        ({"width_scale": 2.0}, "standard"),
        ({"weight_variance": {"b": 1.0}}, r"add '\*'"),
        ({"weight_variance": 0.0}, "must be positive"),
    ],
)
def test_scalings_are_checked(scaling: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        infinite_network(linear(), (4,), scaling=Parametrization(**scaling))


def test_variances_are_found_by_name() -> None:
    module = nn.Sequential(linear(), nn.ReLU(), linear())
    x = torch.randn(2, 4, dtype=torch.float64)
    scaling = Parametrization(
        weight_variance={"2": 3.0, "*": 2.0}, bias_variance={"0": 0.5, "*": 0}
    )
    found = infinite_network(module, (4,), scaling=scaling).kernels(x).nngp
    q = 2 * (x * x).mean(1) + 0.5
    assert found is not None
    assert torch.allclose(found.diagonal(), 3 * q / 2)


@pytest.mark.parametrize(
    ("x", "get", "message"),
    [
        (torch.zeros(2, 3), ("nngp",), r"\[n, 4\]"),
        (torch.zeros(0, 4), ("nngp",), "at least one"),
        (torch.zeros(2, 4), ("nngp", "ntkgp"), "'nngp', 'ntk'"),
        (torch.zeros(2, 4, dtype=torch.bfloat16), ("nngp",), "float32 or float64"),
    ],
)
def test_examples_are_checked(x: Tensor, get: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        infinite_network(linear(), (4,)).kernels(x, get=get)

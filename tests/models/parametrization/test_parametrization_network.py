"""Initial numbers: one draw for all parametrizations, or the network's own at a base width."""

import copy
import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from Models import NONLINEARITIES, ModelConfig, build_model
from Models.parametrization.gain import nonlinearity_gain
from Utils.config import validate
from Utils.errors import UserError
from Utils.seeds import stream_seed

SHAPE = (1, 8, 8)


def build(**flags: Any) -> dict[str, torch.Tensor]:
    config = validate(ModelConfig, {"model": "fc", "depth": 4, **flags}, "command line")
    return dict(build_model(config, SHAPE, 10).state_dict())


@pytest.mark.parametrize(
    ("param", "powers"),
    [
        ("sp", (0, 0.5, 0.5)),
        ("ntk", (0, 0.5, 0.5)),
        ("mup", (0, 0.5, 1)),
        ("mup-table8", (0, 0.5, 1)),
        ("hybrid:0.5", (0, 0.5, 0.75)),
        ("ip", (0, 1, 1)),
        ("ipllr", (0, 1, 1)),
    ],
)
def test_one_draw_serves_all_parametrizations(param: str, powers: tuple[float, ...]) -> None:
    names = ("fc1.weight", "fc2.weight", "classifier.weight")
    found, standard = build(param=param, width=64), build(param="sp", width=64)
    for name, power, usual in zip(names, powers, (0, 0.5, 0.5), strict=True):
        torch.testing.assert_close(found[name] * 64.0 ** (power - usual), standard[name])
        gain = 1 if name.startswith("c") else 2**0.5
        std = found[name].std() / gain * 64.0 ** (power - (0 if "1" in name else 0.5))
        assert std * 8 == pytest.approx(1, rel=0.1)
    assert not found["fc1.bias"].any()


def test_a_mean_and_biases() -> None:
    usual, centered = build(param="ip-non-centered", width=64), build(param="ip", width=64)
    torch.testing.assert_close(
        usual["fc2.weight"] - centered["fc2.weight"], torch.full((64, 64), 1 / 64)
    )
    assert torch.equal(usual["fc1.weight"], centered["fc1.weight"])
    assert build(param="ipllr-bias", width=256)["fc2.bias"].std() == pytest.approx(1, rel=0.2)


def test_streams_of_widths_and_parameters_are_apart() -> None:
    narrow, wide = (build(param="ntk", width=n) for n in (32, 64))
    corner = wide["fc2.weight"][:32, :32].flatten() * 2**0.5
    stacked = torch.stack([narrow["fc2.weight"].flatten(), corner, narrow["fc3.weight"].flatten()])
    assert (torch.corrcoef(stacked) - torch.eye(3)).abs().max() < 0.1
    beginnings = [m["fc1.weight"][:16].flatten() for m in (narrow, wide)]
    assert (torch.corrcoef(torch.stack(beginnings)) - torch.eye(2)).abs().max() < 0.15
    assert stream_seed(1, "init") != stream_seed(1, "init", 32) != stream_seed(1, "init", 64)


@pytest.mark.parametrize("model", ["fc", "fc-bn", "conv", "vit"])
@pytest.mark.parametrize("param", ["mup", "ntk", "ip"])
def test_at_the_base_width_nothing_changes(model: str, param: str) -> None:
    flags = {"model": model, "depth": 2, "width": 16}
    plain, based = build(**flags), build(**flags, param=param, base_width=16)
    assert all(torch.equal(plain[name], based[name]) for name in plain)


def test_beyond_the_base_width_own_numbers_are_scaled() -> None:
    found = build(param="mup", width=512, base_width=32)
    base = build(width=32)
    for name, power in {"fc1.weight": 0, "fc1.bias": 0, "fc2.weight": -0.5, "fc2.bias": 0}.items():
        ratio = float(found[name].std() / base[name].std())
        assert ratio == pytest.approx(16.0**power, rel=0.25)
    readout = build(param="mup", width=512, base_width=32)["classifier.weight"]
    assert float(readout.std() / base["classifier.weight"].std()) == pytest.approx(1 / 16, rel=0.2)


def test_an_initialisation_that_does_not_shrink_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def f(s, c, width):\n"
        "    net = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, width),\n"
        "                        nn.Linear(width, c))\n"
        "    nn.init.normal_(net[2].weight, 0, 0.01)\n"
        "    return net\n"
    )
    with pytest.raises(UserError, match=r"initialisation of 2.weight goes as width\^-?0\.0\d, not"):
        build(model=f"{tmp_path}/net.py:f", depth=None, param="mup", width=64, base_width=32)


def test_a_parametrized_model_is_plain_and_survives_copies_and_files() -> None:
    config = validate(ModelConfig, {"model": "fc", "param": "mup", "width": 32}, "command line")
    model = build_model(config, SHAPE, 10)
    copied = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    plain = build_model(validate(ModelConfig, {"model": "fc", "width": 32}, "c"), SHAPE, 10)
    plain.load_state_dict(torch.load(file, weights_only=True))
    compiled: nn.Module = torch.compile(model, backend="eager")  # type: ignore[assignment]
    x = torch.randn(3, *SHAPE)
    assert all(torch.equal(model(x), other(x)) for other in (copied, plain, compiled))


def test_gains_keep_the_size_of_preactivations() -> None:
    exact = {"relu": 2**0.5, "identity": 1.0, "abs": 1.0, "relu2": (2 / 3) ** 0.5}
    exact["leaky-relu"] = (2 / (1 + 0.01**2)) ** 0.5
    for name, value in exact.items():
        assert nonlinearity_gain(name) == pytest.approx(value, rel=1e-7)
    z = torch.randn(400_000)
    for entry in NONLINEARITIES:
        mean_square = float(entry.load()()(z.clone()).square().mean())
        assert nonlinearity_gain(entry.name) ** 2 * mean_square == pytest.approx(1, rel=0.02)


def test_transformers_take_no_gain() -> None:
    """As normalisations keep the size of what their sums add up."""
    found = build(model="vit", depth=1, heads=2, patch_size=2, width=64, param="ntk")
    for name in ("attention.k", "attention.v", "mlp.up"):
        weight = found[f"blocks.0.{name}.weight"]
        assert float(weight.std()) * weight.shape[1] ** 0.5 == pytest.approx(1, rel=0.05)

"""Roles of parameters, from what grows with the width."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from Models import MODELS, ModelConfig, build_model
from Models.parametrization.network import Parametrized
from Models.parametrization.roles import chain_of
from Utils.config import validate
from Utils.errors import UserError

SHAPES = {"transformer": (6, 7)}


def roles(shape: tuple[int, ...] = (1, 8, 8), **flags: object) -> dict[str, str]:
    config = validate(ModelConfig, {"param": "mup", **flags}, "command line")
    return {p.name: p.role for p in Parametrized(config, shape, 10).places}


@pytest.mark.parametrize("model", [e.name for e in MODELS["default"] if "width" in e.options])
def test_every_registered_model_with_a_width_has_roles(model: str) -> None:
    found = roles(SHAPES.get(model, (1, 8, 8)), model=model, width=16)
    weights = {n: r for n, r in found.items() if n.endswith("weight")}
    first, *_, last = (n for n, r in weights.items() if r in {"input", "hidden", "readout"})
    assert (found[first], found[last], found["classifier.bias"]) == ("input", "readout", "finite")
    assert last == "classifier.weight"
    assert list(found.values()).count("readout") == list(found.values()).count("input") == 1
    assert all(role == "vector" for n, role in found.items() if "norm" in n or n.startswith("bn"))


def test_a_transformers_queries_and_positions() -> None:
    found = roles(model="vit", width=16, depth=1)
    assert found["positions"] == "vector"
    assert found["blocks.0.attention.q.weight"] == "query"
    assert found["blocks.0.attention.k.weight"] == "hidden"
    assert found["embedding.patches.weight"] == "input"


MODEL = """
from torch import nn
import torch

class Net(nn.Module):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
    def forward(self, x):
        return x.flatten(1)[:, :10]

def conv_out(s, c, width):
    return Net(a=nn.Conv2d(1, width, 3), b=nn.Conv2d(width, c, 3))
def transposed(s, c, width):
    return Net(a=nn.Conv2d(1, width, 3), b=nn.ConvTranspose2d(width, 2 * width, 3),
               c=nn.ConvTranspose2d(2 * width, c, 3))
def tied(s, c, width):
    net = Net(a=nn.Embedding(64, width), b=nn.Linear(width, 64))
    net.b.weight = net.a.weight
    return net
def raw(s, c, width):
    net = Net(a=nn.Linear(64, width))
    net.out = nn.Parameter(torch.zeros(c, width))
    return net
def heads(s, c, width):
    return Net(a=nn.Linear(64, width), b=nn.MultiheadAttention(width, 2), c=nn.Linear(width, c))
def fixed(s, c, width):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, c))
def renamed(s, c, width):
    return Net(**{f"a{width}": nn.Linear(64, width)})
def narrow(s, c):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, c))
def fine(s, c, width):
    return Net(a=nn.Embedding(64, width), b=nn.Linear(width, 5), d=nn.Linear(5, width),
               e=nn.LayerNorm(width), f=nn.PReLU(), g=nn.GRU(width, width), h=nn.Linear(5, 3),
               i=nn.ConvTranspose2d(3, width, 2), j=nn.Conv2d(width, width, 3, groups=width))
def words(s, c, width):
    return Net(a=nn.Embedding(2 * width, width), b=nn.Linear(width, c))
def mixed(s, c, width):
    net = Net(a=nn.Linear(64, width), c=nn.Linear(width, c), d=nn.Embedding(64, width))
    net.mix = nn.Parameter(torch.randn(width, width) / width**0.5)
    return net
def silent(s, c, width):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, c))
    nn.init.zeros_(net[3].weight)
    return net
def looks(s, c, width):
    first = nn.Linear(64, width)
    assert first.weight.abs().sum().item() > 0
    return nn.Sequential(nn.Flatten(), first, nn.Tanh(), nn.Linear(width, c))
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "net.py").write_text(MODEL)
    return str(tmp_path / "net.py")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("conv_out", "role of b.weight is ambiguous: it is a convolution that reads growing"),
        ("transposed", "role of c.weight is ambiguous: it is a transposed .* c.weight=readout"),
        ("tied", "role of a.weight is ambiguous: it is tied between Embedding and Linear"),
        ("raw", "role of out is ambiguous: it belongs to no layer that is known"),
        ("words", "role of a.weight is ambiguous: it is an embedding with more entries"),
        ("heads", "role of b.in_proj_weight is ambiguous: it holds .* b.in_proj_weight=hidden$"),
        ("fixed", "changes the size of no parameter"),
        ("renamed", "is a parameter of one width only"),
        ("narrow", "the function has no argument width, which --width is handed to"),
    ],
)
def test_what_cannot_be_known_is_refused(mine: str, function: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        roles(model=f"{mine}:{function}", width=8)


def test_a_users_roles_go_before(mine: str) -> None:
    assert (
        roles(model=f"{mine}:conv_out", width=8, roles="b.weight=readout")["b.weight"] == "readout"
    )
    assert roles(model=f"{mine}:raw", width=8, roles="o*=readout")["out"] == "readout"


def test_a_users_layers(mine: str) -> None:
    found = roles(model=f"{mine}:fine", width=8)
    expected = {
        "a.weight": "input",
        "b.weight": "readout",
        "b.bias": "finite",
        "d.weight": "input",
        "d.bias": "vector",
        "e.weight": "vector",
        "f.weight": "finite",
        "g.weight_hh_l0": "hidden",
        "g.bias_hh_l0": "vector",
        "h.weight": "finite",
        "i.weight": "input",
        "j.weight": "input",
    }
    assert {name: found[name] for name in expected} == expected


def test_how_many_numbers_an_output_sums(mine: str) -> None:
    """And whether their number grows; of a bias, whether that of its layer does."""
    config = validate(ModelConfig, {"model": f"{mine}:fine", "param": "ntk", "width": 8}, "c")
    found = {p.name: p for p in Parametrized(config, (1, 8, 8), 10).places}
    expected = {
        "a.weight": (1, False),  # which is looked up
        "b.weight": (8, True),
        "b.bias": (1, True),
        "d.weight": (5, False),
        "g.weight_hh_l0": (8, True),
        "i.weight": (3 * 2 * 2, False),
        "j.weight": (3 * 3, False),
    }
    assert {n: (found[n].fan_in, found[n].fan_in_grows) for n in expected} == expected


@pytest.mark.parametrize(("param", "power"), [("ntk", 0), ("ip", -0.5)])
def test_numbers_that_a_model_draws_itself_are_scaled_from_what_they_are(
    mine: str, param: str, power: float
) -> None:
    """Of a matrix n^{-1/2} U without a layer that is to be n^{-s} U, and of an embedding."""
    given = {"model": f"{mine}:mixed", "param": param, "width": 64, "roles": "mix=hidden"}
    for base, growth in (({}, 64), ({"base_width": 32}, 2)):
        model = build_model(validate(ModelConfig, {**given, **base}, "c"), (1, 8, 8), 10)
        std = {name: float(p.detach().std()) for name, p in model.named_parameters()}
        assert std["mix"] * 8 == pytest.approx(growth**power, rel=0.05)
        assert std["d.weight"] == pytest.approx(1, rel=0.05)


def test_weights_that_begin_at_zero_shrink_as_they_like(mine: str) -> None:
    given = {"model": f"{mine}:silent", "param": "mup", "width": 256, "base_width": 128}
    model = build_model(validate(ModelConfig, given, "c"), (1, 8, 8), 10)
    assert not model.get_parameter("3.weight").any()


def test_a_model_that_looks_at_its_numbers_is_made_with_them(mine: str) -> None:
    found = roles(model=f"{mine}:looks", width=8)
    assert list(found.values()) == ["input", "vector", "readout", "finite"]


def test_a_width_is_needed(mine: str) -> None:
    with pytest.raises(UserError, match="needs the --width of your model"):
        roles(model=f"{mine}:fine")


def test_chains() -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 2)))
    assert chain_of(plain) == ["1.weight", "2.1.weight"]
    assert chain_of(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))) is None
    shared = nn.Linear(3, 3)
    assert chain_of(nn.Sequential(shared, nn.ReLU(), shared)) is None
    assert chain_of(nn.Sequential(nn.Conv1d(1, 2, 3), nn.ConvTranspose1d(2, 1, 3))) is None
    assert chain_of(nn.Sequential(nn.TransformerEncoderLayer(8, 2, 8), nn.Linear(8, 2))) is None


@pytest.mark.parametrize("own", [True, False])
def test_finding_roles_draws_no_numbers(mine: str, own: bool) -> None:
    before = torch.get_rng_state()
    roles(model=f"{mine}:looks" if own else "fc", width=8)
    assert torch.equal(before, torch.get_rng_state())

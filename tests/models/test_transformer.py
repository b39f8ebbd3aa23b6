"""Transformers: attention against its formula, positions, what a token sees, sizes, laws."""

import subprocess
import sys
from itertools import product
from math import cos, sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from Models import ModelConfig, build_model
from Models.attention import MLP, Attention, Rotation
from tests.models.symmetry.certificate import assert_no_false_law
from Utils.config import validate
from Utils.errors import UserError

WIDTH, HEADS, SIZE, TOKENS = 12, 3, 4, 5
SEQUENCE, IMAGE = (TOKENS, 7), (2, 8, 12)
ROOT = Path(__file__).parents[2]


def build(name: str, shape: tuple[int, ...], **options: Any) -> nn.Module:
    flags = {"model": name, "dtype": "float64", "width": WIDTH, "heads": HEADS, **options}
    return build_model(validate(ModelConfig, flags, "test"), shape, 3)


def attention(kv_heads: int = HEADS, **options: Any) -> Attention:
    flags: dict[str, Any] = {"bias": True, "causal": False, "rope": None, "qk_norm": False}
    return Attention(WIDTH, HEADS, kv_heads, **{**flags, **options}).double()


def tokens(count: int = 2) -> Tensor:
    return torch.randn(count, TOKENS, WIDTH, dtype=torch.float64)


# ---------------------------------------------------------------------- attention


def rotated(x: Tensor) -> Tensor:
    """Rows t of [T, d] as complex numbers, turned by t / 10000^(2i/d)."""
    numbers = torch.view_as_complex(x.reshape(len(x), -1, 2))
    i, t = torch.arange(x.shape[1] // 2), torch.arange(len(x))[:, None]
    turned = numbers * torch.exp(1j * t / 10_000 ** (2 * i.double() / x.shape[1]))
    return torch.view_as_real(turned).flatten(1)


def plain(layer: Attention, x: Tensor, causal: bool, rope: bool, qk_norm: bool) -> Tensor:
    """Attention of one sequence [T, W], head by head as the formula is written."""
    kv_heads = layer.k.out_features // SIZE
    heads = []
    for head in range(HEADS):
        mine = slice(head * SIZE, (head + 1) * SIZE)
        shared = head // (HEADS // kv_heads)
        theirs = slice(shared * SIZE, (shared + 1) * SIZE)
        q = x @ layer.q.weight[mine].T + layer.q.bias[mine]
        k = x @ layer.k.weight[theirs].T + layer.k.bias[theirs]
        v = x @ layer.v.weight[theirs].T + layer.v.bias[theirs]
        if qk_norm:
            q, k = (y / y.square().mean(1, keepdim=True).sqrt() for y in (q, k))
        if rope:
            q, k = rotated(q), rotated(k)
        scores = q @ k.T / sqrt(SIZE)
        if causal:
            later = torch.ones(len(x), len(x)).triu(1).bool()
            scores = scores.masked_fill(later, -torch.inf)
        weights = scores.exp() / scores.exp().sum(1, keepdim=True)
        heads.append(weights @ v)
    return torch.cat(heads, 1) @ layer.o.weight.T + layer.o.bias


@pytest.mark.parametrize(
    ("kv_heads", "causal", "rope", "qk_norm"),
    [*product([1, HEADS], [False, True], [False, True], [False, True])],
)
def test_attention_is_its_formula(kv_heads: int, causal: bool, rope: bool, qk_norm: bool) -> None:
    layer = attention(kv_heads, causal=causal, rope=TOKENS if rope else None, qk_norm=qk_norm)
    inputs = tokens()
    expected = torch.stack([plain(layer, x, causal, rope, qk_norm) for x in inputs])
    torch.testing.assert_close(layer(inputs), expected, rtol=1e-12, atol=1e-12)


def test_attention_is_torchs_where_heads_share_nothing() -> None:
    layer = attention(causal=True)
    reference = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).double()
    parts = (layer.q, layer.k, layer.v)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        reference.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
    reference.out_proj.load_state_dict(layer.o.state_dict())
    inputs = tokens()
    later = torch.ones(TOKENS, TOKENS).triu(1).bool()
    expected, _ = reference(inputs, inputs, inputs, attn_mask=later)
    torch.testing.assert_close(layer(inputs), expected, rtol=1e-12, atol=1e-12)


def test_grouped_keys_are_repeated_keys() -> None:
    grouped, full = attention(1, rope=TOKENS), attention(rope=TOKENS)
    state = grouped.state_dict()
    for name in ("k.weight", "k.bias", "v.weight", "v.bias"):
        state[name] = torch.cat([state[name]] * HEADS)
    full.load_state_dict(state)
    inputs = tokens()
    torch.testing.assert_close(grouped(inputs), full(inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("part", ["q", "k"])
def test_normalised_queries_and_keys_have_no_size(part: str) -> None:
    for qk_norm in (True, False):
        layer, inputs = attention(qk_norm=qk_norm, bias=False), tokens()
        before = layer(inputs)
        with torch.no_grad():
            layer.get_parameter(f"{part}.weight")[SIZE : 2 * SIZE] *= 3.0
        assert torch.allclose(layer(inputs), before, rtol=1e-12, atol=1e-12) == qk_norm


def test_rotated_products_depend_on_the_distance_only() -> None:
    q, k = torch.randn(2, 6, dtype=torch.float64)
    rotate = Rotation(20, 6)
    scores = rotate(q.expand(20, 6)) @ rotate(k.expand(20, 6)).T
    for distance in range(-19, 20):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    assert scores[0].std() > 0.1
    assert torch.allclose(rotate(q.expand(20, 6)).norm(dim=1), q.norm())


def test_swiglu() -> None:
    layer, x = MLP(WIDTH, "swiglu", nn.SiLU(), bias=True), torch.randn(2, TOKENS, WIDTH)
    gate, up = layer.gate, layer.up
    assert gate is not None
    a = x @ gate.weight.T + gate.bias
    hidden = a / (1 + torch.exp(-a)) * (x @ up.weight.T + up.bias)
    torch.testing.assert_close(layer(x), hidden @ layer.down.weight.T + layer.down.bias)


# ---------------------------------------------------------------------- what a token sees


def features(model: nn.Module, inputs: Tensor) -> Tensor:
    """The tokens after the last block, [N, T, W]."""
    kept: list[Tensor] = []
    hook = model.get_submodule("blocks").register_forward_hook(lambda _, __, out: kept.append(out))
    model(inputs)
    hook.remove()
    return kept[0]


def sequences(name: str = "transformer") -> Tensor:
    return torch.randn(2, *(SEQUENCE if name == "transformer" else IMAGE), dtype=torch.float64)


@pytest.mark.parametrize("positions", ["learned", "rope", "none"])
def test_a_token_sees_itself_and_those_before(positions: str) -> None:
    model, inputs = build("transformer", SEQUENCE, positions=positions), sequences()
    changed = inputs.clone()
    changed[:, 3] += 1
    difference = (features(model, changed) - features(model, inputs)).abs().amax((0, 2))
    assert (difference[:3] == 0).all()
    assert (difference[3:] > 1e-6).all()
    assert not torch.allclose(model(changed), model(inputs)), "the last token sees all"


def test_without_positions_one_block_does_not_know_the_order() -> None:
    inputs = sequences()
    shuffled = inputs[:, [2, 0, 3, 1, 4]]
    for positions, depth in product(("none", "rope", "learned"), (1, 2)):
        model = build("transformer", SEQUENCE, positions=positions, depth=depth)
        same = torch.allclose(model(shuffled), model(inputs), rtol=1e-12, atol=1e-12)
        # in a second block, tokens carry what they saw before themselves
        assert same == (positions == "none" and depth == 1), (positions, depth)


@pytest.mark.parametrize("positions", ["learned", "rope", "none"])
def test_patches_without_positions_are_a_set(positions: str) -> None:
    model, inputs = build("vit", IMAGE, positions=positions), sequences("vit")
    rolled = inputs.roll((4, 4), (2, 3))  # by one patch
    assert torch.allclose(model(rolled), model(inputs), rtol=1e-12) == (positions == "none")


def test_the_length_of_a_token() -> None:
    model = build("vit", IMAGE)
    assert features(model, sequences("vit")).shape == (2, 6, WIDTH)
    assert features(build("transformer", SEQUENCE), sequences()).shape == (2, TOKENS, WIDTH)


# ---------------------------------------------------------------------- sizes, options


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("options", "per_block", "biases"),
    [
        ({}, 4 * 144 + 8 * 144 + 4 * 12, 4 * 12 + 48 + 12),
        ({"kv_heads": 1, "norm": "rmsnorm"}, 2 * 144 + 2 * 48 + 8 * 144 + 2 * 12, 32 + 48 + 12),
        ({"mlp": "swiglu", "qk_norm": True}, 4 * 144 + 3 * 12 * 32 + 4 * 12, 48 + 2 * 32 + 12),
        ({"positions": "rope"}, 4 * 144 + 8 * 144 + 4 * 12 - 60 // 2, 4 * 12 + 48 + 12),
    ],
)
def test_sizes(options: dict[str, Any], per_block: int, biases: int, bias: bool) -> None:
    model = build("transformer", SEQUENCE, depth=2, bias=bias, **options)
    norm = 12 if options.get("norm") == "rmsnorm" else 24
    expected = 7 * 12 + 5 * 12 + 2 * (per_block + bias * biases) + norm + 12 * 3 + bias * 3
    assert sum(p.numel() for p in model.parameters()) == expected


def test_nonlinearities_follow_from_the_kind_of_hidden_layer() -> None:
    assert isinstance(build("vit", IMAGE).get_submodule("blocks.0.mlp.activation"), nn.GELU)
    for options, kind in (({}, nn.SiLU), ({"nonlinearity": "relu"}, nn.ReLU)):
        model = build("vit", IMAGE, mlp="swiglu", **options)
        assert isinstance(model.get_submodule("blocks.1.mlp.activation"), kind)


def test_both_number_formats_compute_the_same() -> None:
    inputs, options = sequences(), {"positions": "rope", "mlp": "swiglu", "kv_heads": 1}
    double = build("transformer", SEQUENCE, **options)
    single = build("transformer", SEQUENCE, **options, dtype="float32")
    torch.testing.assert_close(single(inputs.float()).double(), double(inputs), rtol=0, atol=1e-5)
    cosines = double.get_buffer("blocks.0.attention.rotation.cos")
    assert abs(cosines[4, 1].item() - cos(4 / 10_000 ** (2 / 4))) < 1e-15


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("vit", IMAGE, {"heads": 5}, "--width 12 is not a multiple of --heads 5; change one"),
        ("vit", IMAGE, {"kv_heads": 2}, "--heads 3 is not a multiple of --kv-heads 2; change one"),
        (
            "vit",
            IMAGE,
            {"heads": 4, "positions": "rope"},
            "even number per head, .* / --heads 4 = 3",
        ),
        ("vit", IMAGE, {"patch_size": 5}, "--patch-size 5 does not divide images of 8x12 pixels"),
        ("vit", SEQUENCE, {}, "vit reads images .* not inputs of shape 5x7"),
        (
            "transformer",
            IMAGE,
            {},
            "reads sequences .* not inputs of shape 2x8x12; use --model vit",
        ),
        ("vit", IMAGE, {"heads": 0}, "--heads 0: input should be greater than or equal to 1"),
        ("vit", IMAGE, {"norm": "batch"}, "--norm batch: input should be 'layernorm' or 'rmsnorm'"),
    ],
)
def test_what_does_not_fit_is_refused(
    name: str, shape: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build(name, shape, **options)


@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_a_transformer_learns_what_the_first_token_was(positions: str) -> None:
    model = build("transformer", (4, 3), positions=positions, dtype="float32")
    numbers = torch.cartesian_prod(*[torch.arange(3)] * 4)
    inputs, targets = nn.functional.one_hot(numbers, 3).float(), numbers[:, 0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert (model(inputs).argmax(1) == targets).float().mean() > 0.9


# ---------------------------------------------------------------------- laws


@pytest.mark.parametrize("name", ["transformer", "vit"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mlp": "swiglu", "norm": "rmsnorm", "positions": "rope", "kv_heads": 1, "bias": False},
        {"nonlinearity": "relu", "qk_norm": True, "positions": "none"},
    ],
    ids=["plain", "as in llama", "normalised queries"],
)
def test_laws_hold(name: str, options: dict[str, Any]) -> None:
    model = build(name, SEQUENCE if name == "transformer" else IMAGE, **options)
    laws = assert_no_false_law(model, torch.cat([sequences(name)] * 3))
    stream = next(f for f in laws.of_kind("scale") if f.layer.startswith("embedding"))
    writers = {f"blocks.{k}.{part}.weight" for k in (0, 1) for part in ("attention.o", "mlp.down")}
    assert writers <= set(stream.parameters), "the whole residual stream is normalised"
    gains = [f for f in laws.of_kind("rescale") if "norm" in f.parameters[0]]
    assert sum(map(len, gains)) >= 5 * WIDTH


def test_the_command_line() -> None:
    flags = "--model vit --width 8 --heads 2 --mlp swiglu --positions none --depth 1 --no-bias"
    command = [sys.executable, "train.py", "--list-laws", *flags.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "blocks.0.mlp.up|blocks.0.mlp.down" in done.stdout

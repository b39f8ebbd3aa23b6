"""Operations that nobody described pin what they touch: no law is false, no model an error."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from tests.models.symmetry.certificate import EPSILON, Net, assert_no_false_law, diagonal

HIDDEN = 4


def rows() -> Tensor:
    return torch.rand(6, 5, dtype=torch.float64) + 0.1


def sequences() -> Tensor:
    return torch.randn(6, 7, 4, dtype=torch.float64)


def images() -> Tensor:
    return torch.randn(6, 3, 8, 8, dtype=torch.float64)


def tokens() -> Tensor:
    return torch.randint(7, (6, 5))


def between(function: Callable[[Tensor], Tensor]) -> nn.Module:
    """Two linear layers with a function of the hidden vector between them."""
    first, second = nn.Linear(5, HIDDEN), nn.Linear(HIDDEN, 3)
    return Net(lambda net, x: net.second(function(net.first(x))), first=first, second=second)


# ---------------------------------------------------------------------- functions

#: positively homogeneous, neuron by neuron: one rescale law per hidden neuron
HOMOGENEOUS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "cube": lambda h: h.pow(3),
    "power 1.5": lambda h: h.abs().pow(1.5),
    "power 0 times": lambda h: h.pow(0) * h,
    "square root": lambda h: h.abs().sqrt(),
    "reciprocal": lambda h: 2 / h,
    "square": torch.square,
    "product with itself": lambda h: h * h,
    "mask": lambda h: h * (h > 0),
    "mask as floats": lambda h: h * (h > 0).to(h.dtype),
    "constant factor": lambda h: -3 * h / 2,
    "clamp at 0": lambda h: h.clamp(min=0),
    "detached factor": lambda h: h * h.detach(),
    "detached norm": lambda h: h / h.detach().norm(),
    "argmax as factor": lambda h: h * h.argmax(1, keepdim=True),
    "count of entries as factor": lambda h: h * torch.linalg.vector_norm(h, 0, 1, keepdim=True),
    "random factor": lambda h: h * torch.rand_like(h),
    "dropout": lambda h: F.dropout(h, 0.5),
    "roll": lambda h: h.roll(1, 1),
    "flip": lambda h: h.flip(1) * h.flip(1),
    "both signs": lambda h: torch.cat([h.relu(), (-h).relu()], 1)[:, 2:6],
    "largest of both signs": lambda h: torch.stack([h, -h]).max(0)[0],
    "clone, then in place": lambda h: h.clone().mul_(2),
    "same type": lambda h: h.to(torch.float64).contiguous(),
}

#: homogeneous of degree 0 in the hidden vector as a whole: one scale law
NORMALISED: dict[str, Callable[[Tensor], Tensor]] = {
    "3-norm": lambda h: h / torch.linalg.vector_norm(h, 3, 1, keepdim=True),
    "infinity-norm": lambda h: h / torch.linalg.vector_norm(h, torch.inf, 1, keepdim=True),
    "norm": lambda h: h / h.norm(dim=1, keepdim=True),
    "normalize": lambda h: F.normalize(h, dim=1, eps=EPSILON),
    "deviation": lambda h: h / (h.std(1, keepdim=True) + EPSILON),
    "largest": lambda h: h / h.abs().amax(1, keepdim=True),
    "largest, with its place": lambda h: h / torch.max(h.abs(), dim=1, keepdim=True)[0],
    "mean size of the batch": lambda h: h / h.abs().mean(),
    "root of a sum": lambda h: h / (h * h).sum().sqrt(),
    "root mean square": lambda h: F.rms_norm(h, (HIDDEN,), eps=EPSILON),
    "guarded root": lambda h: h * (h.pow(2).mean(1, keepdim=True) + EPSILON).rsqrt(),
    "guarded power": lambda h: h * ((h * h).mean(1, keepdim=True) + EPSILON).pow(-0.5),
}

OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "elu": F.elu,
    "selu": F.selu,
    "softplus": F.softplus,
    "hardtanh": F.hardtanh,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "softshrink": F.softshrink,
    "threshold": lambda h: F.threshold(h, 0.1, 0),
    "log": lambda h: (h.abs() + 1).log(),
    "cosine": torch.cos,
    "softmax": lambda h: h.softmax(1),
    "log-sum-exp": lambda h: h.logsumexp(1, keepdim=True) + h,
    "cumulative sum": lambda h: h.cumsum(1),
    "cumulative maximum": lambda h: h.cummax(1)[0],
    "product of all": lambda h: h.prod(1, keepdim=True) * h,
    "sorted": lambda h: h.sort(1)[0],
    "largest two": lambda h: F.pad(h.topk(2, 1)[0], (0, 2)),
    "gathered": lambda h: h.gather(1, h.argsort(1)),
    "indexed": lambda h: h[:, [2, 0, 1, 3]],
    "scattered": lambda h: h.scatter_add(1, torch.zeros_like(h, dtype=torch.long), h),
    "masked": lambda h: h.masked_fill(h > 0, 0.5),
    "where": lambda h: torch.where(h > 0.1, h, 0.5 * h * h),
    "largest plus": lambda h: h.max(1, keepdim=True)[0] + h,
    "largest with the mean": lambda h: torch.maximum(h, h.mean(1, keepdim=True)),
    "clamp": lambda h: h.clamp(-0.1, 0.3),
    "clamp at the mean": lambda h: torch.clamp(h, min=h.mean()),
    "plus 1": lambda h: h + 1,
    "1 minus": lambda h: 1 - h,
    "sign times root": lambda h: h.sign() * h.abs().sqrt(),
    "rounded plus": lambda h: h.round() + h,
    "integer part plus": lambda h: (3 * h).long() + h,
    "place of the largest plus": lambda h: h + F.one_hot(h.argmax(1), HIDDEN),
    "power of a power": lambda h: h.abs().pow(h.sigmoid()),
    "2 to the power": lambda h: 2**h,
    "division rounded down": lambda h: torch.div(h, 0.3, rounding_mode="floor") + h,
    "division truncated": lambda h: torch.div(h, h.abs().mean(), rounding_mode="trunc") + h,
    "sum with weight 0": lambda h: torch.add(h, h * h, alpha=0),
    "constant of weight 1e5": lambda h: torch.add(h.abs(), 1e-4, alpha=1e5).sqrt(),
    "small constant under a root": lambda h: torch.sqrt(h.relu() + 1e-3),
    "small constant under a root of squares": lambda h: (h.pow(2) + 1e-3).sqrt(),
    "small constant, squared": lambda h: (h + 1e-3).pow(2),
    "small constant, halved": lambda h: (h + 1e-3) / 2,
    "small constant in a denominator": lambda h: 1 / (h.abs() + 1e-3),
    "statistic plus a small constant": lambda h: h * (h.abs().mean(1, keepdim=True) + 1e-3),
    "statistic minus a small constant": lambda h: h / (h.std(1, keepdim=True) - 1e-3),
    "variance plus a square": lambda h: h.var(1, keepdim=True) + h * h,
    "variance and mean": lambda h: torch.var_mean(h, 1, keepdim=True)[0] + h,
    "minus the batch's mean": lambda h: (h - h.mean(0)) / h.std(0),
    "bits": lambda h: h + h.view(torch.int64).view(torch.float64),
    "noise": lambda h: h + torch.randn_like(h),
    "alpha dropout": lambda h: F.alpha_dropout(h, 0.3, training=True),
    "random leak": lambda h: F.rrelu(h, training=True),
    "matrix products": lambda h: h @ h.t() @ h,
    "attention over the batch": lambda h: (h @ h.t()).softmax(1) @ h,
    "outer products": lambda h: torch.einsum("ni,nj->nij", h, h).sum(2),
    "Fourier transform": lambda h: torch.fft.fft(h).abs(),
    "quantisation": lambda h: torch.fake_quantize_per_tensor_affine(
        h.float(), 0.1, 0, -8, 8
    ).double(),
    "interpolation": lambda h: torch.lerp(h, h * h, 0.5),
    "angle": lambda h: torch.atan2(h, h.flip(1)),
    "upper triangle": lambda h: h.triu(),
    "straight through": lambda h: h + (h.round() - h).detach(),
    "foreach": lambda h: torch._foreach_mul([h, h], 2.0)[0],
    "foreach in place": lambda h: (lambda z: (torch._foreach_mul_([z], 2.0), z)[1])(h.clone()),
    "index put": lambda h: h.index_put((torch.tensor([0]),), torch.ones(HIDDEN).double()),
    "renorm": lambda h: h.renorm(2, 0, 1.0),
    "whitening": lambda h: h @ torch.linalg.inv(h.t() @ h + torch.eye(HIDDEN).double()),
    "function over a batch": lambda h: torch.vmap(torch.relu)(h),
    "batch as features": lambda h: h.t().reshape(len(h), HIDDEN),
}


@pytest.mark.parametrize("name", HOMOGENEOUS)
def test_homogeneous_functions_have_a_law_per_neuron(name: str) -> None:
    torch.manual_seed(0)
    laws = assert_no_false_law(between(HOMOGENEOUS[name]), rows())
    assert diagonal(laws) == HIDDEN


@pytest.mark.parametrize("name", NORMALISED)
def test_normalised_vectors_have_a_scale_law(name: str) -> None:
    torch.manual_seed(0)
    laws = assert_no_false_law(between(NORMALISED[name]), rows())
    assert [family.kind for family in laws.families[:2]] == ["scale", "translation"]
    assert diagonal(laws) == 1


@pytest.mark.parametrize("name", OTHERS)
def test_no_law_is_false_whatever_the_function(name: str) -> None:
    torch.manual_seed(0)
    assert_no_false_law(between(OTHERS[name]), rows())


# ---------------------------------------------------------------------- layers


def rows_with(function: Callable[[Any, Tensor], Any], **parts: Any) -> Callable[[], Any]:
    return lambda: (Net(function, head=nn.Linear(HIDDEN, 3), **parts), rows())


def with_fixed_statistics() -> nn.Module:
    norm = nn.BatchNorm1d(HIDDEN)
    norm.train = lambda mode=True: norm.eval() if mode else norm  # type: ignore[method-assign]
    norm.training = False
    return nn.Sequential(nn.Linear(5, HIDDEN), norm, nn.ReLU(), nn.Linear(HIDDEN, 3))


def squeeze_and_excitation(gate: Callable[[Tensor], Tensor]) -> nn.Module:
    def forward(net: Any, x: Tensor) -> Any:
        h = torch.relu(net.features(x))
        weight = gate(net.up(torch.relu(net.down(h.mean((2, 3))))))
        return net.head((h * weight[:, :, None, None]).mean((2, 3)))

    return Net(
        forward,
        features=nn.Conv2d(3, HIDDEN, 3),
        down=nn.Linear(HIDDEN, 2),
        up=nn.Linear(2, HIDDEN),
        head=nn.Linear(HIDDEN, 3),
    )


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "gated linear unit": rows_with(
        lambda net, x: net.head(F.glu(net.first(x))), first=nn.Linear(5, 8)
    ),
    "bilinear": rows_with(
        lambda net, x: net.head(net.two(x, torch.relu(net.first(x)))),
        first=nn.Linear(5, 4),
        two=nn.Bilinear(5, 4, HIDDEN),
    ),
    "attention": lambda: (
        Net(
            lambda net, x: net.head(
                F.scaled_dot_product_attention(net.q(x), net.k(x), net.v(x)).mean(1)
            ),
            **{name: nn.Linear(4, 4) for name in "qkv"},
            head=nn.Linear(4, 3),
        ),
        sequences(),
    ),
    "multi-head attention": lambda: (
        Net(
            lambda net, x: net.head(net.attention(x, x, x)[0].mean(1)),
            attention=nn.MultiheadAttention(4, 2, batch_first=True),
            head=nn.Linear(4, 3),
        ),
        sequences(),
    ),
    "transformer, norm first": lambda: (
        Net(
            lambda net, x: net.head(net.encoder(x)[:, 0]),
            encoder=nn.TransformerEncoderLayer(4, 2, 8, 0.1, batch_first=True, norm_first=True),
            head=nn.Linear(4, 3),
        ),
        sequences(),
    ),
    "transformer, norm last": lambda: (
        Net(
            lambda net, x: net.head(net.encoder(x).mean(1)),
            encoder=nn.TransformerEncoderLayer(4, 2, 8, 0.1, batch_first=True),
            head=nn.Linear(4, 3),
        ),
        sequences(),
    ),
    "class token": lambda: (
        Net(
            lambda net, x: net.head(
                net.norm(torch.cat([net.token.expand(len(x), -1, -1), x], 1) + net.place)[:, 0]
            ),
            token=nn.Parameter(torch.rand(1, 1, 4)),
            place=nn.Parameter(torch.rand(1, 8, 4)),
            norm=nn.LayerNorm(4),
            head=nn.Linear(4, 3),
        ),
        sequences(),
    ),
    "last place": lambda: (
        Net(
            lambda net, x: net.head((net.first(x) + net.place)[:, -1]),
            first=nn.Linear(4, 4),
            place=nn.Parameter(torch.rand(7, 4)),
            head=nn.Linear(4, 3),
        ),
        sequences(),
    ),
    "LSTM": lambda: (
        Net(
            lambda net, x: net.head(net.lstm(x)[0][:, -1]),
            lstm=nn.LSTM(4, 3, batch_first=True),
            head=nn.Linear(3, 3),
        ),
        sequences(),
    ),
    "GRU": lambda: (
        Net(
            lambda net, x: net.head(net.gru(x)[0][:, -1]),
            gru=nn.GRU(4, 3, 2, batch_first=True, bidirectional=True),
            head=nn.Linear(6, 3),
        ),
        sequences(),
    ),
    "weight norm": rows_with(
        lambda net, x: net.head(torch.relu(net.first(x))),
        first=parametrizations.weight_norm(nn.Linear(5, HIDDEN)),
    ),
    "spectral norm": rows_with(
        lambda net, x: net.head(torch.relu(net.first(x))),
        first=parametrizations.spectral_norm(nn.Linear(5, HIDDEN)),
    ),
    "orthogonal weight": rows_with(
        lambda net, x: net.head(torch.relu(net.first(x))),
        first=parametrizations.orthogonal(nn.Linear(5, HIDDEN)),
    ),
    "standardised weight": rows_with(
        lambda net, x: net.head(
            torch.relu(F.linear(x, net.weight / net.weight.std(1, keepdim=True)))
        ),
        weight=nn.Parameter(torch.rand(HIDDEN, 5)),
    ),
    "scaled weight": rows_with(
        lambda net, x: net.head(torch.relu(F.linear(x, net.weight * net.scale))),
        weight=nn.Parameter(torch.rand(HIDDEN, 5)),
        scale=nn.Parameter(torch.rand(())),
    ),
    "weight of one output": lambda: (
        Net(
            lambda net, x: net.head(torch.relu(F.linear(x, net.weight))[:, None]),
            weight=nn.Parameter(torch.rand(5)),
            head=nn.Linear(1, 3),
        ),
        rows(),
    ),
    "weight on the left": rows_with(
        lambda net, x: net.head(torch.relu(net.weight @ x.t()).t()),
        weight=nn.Parameter(torch.rand(HIDDEN, 5)),
    ),
    "einsum": rows_with(
        lambda net, x: net.head(torch.relu(torch.einsum("ni,oi->no", x, net.weight))),
        weight=nn.Parameter(torch.rand(HIDDEN, 5)),
    ),
    "addmm": rows_with(
        lambda net, x: net.head(torch.relu(torch.addmm(net.bias, x, net.weight))),
        weight=nn.Parameter(torch.rand(5, HIDDEN)),
        bias=nn.Parameter(torch.rand(HIDDEN)),
    ),
    "weights from a network": rows_with(
        lambda net, x: net.head(torch.bmm(net.make(x).view(-1, HIDDEN, 5), x[:, :, None])[..., 0]),
        make=nn.Linear(5, 5 * HIDDEN),
    ),
    "convolution made by a network": lambda: (
        Net(
            lambda net, x: net.head(
                F.conv2d(x, net.make(x.mean((0, 2, 3))).view(4, 3, 3, 3)).mean((2, 3))
            ),
            make=nn.Linear(3, 108),
            head=nn.Linear(4, 3),
        ),
        images(),
    ),
    "distances to prototypes": lambda: (
        Net(
            lambda net, x: -torch.cdist(net.first(x), net.prototypes),
            first=nn.Linear(5, 4),
            prototypes=nn.Parameter(torch.rand(3, 4)),
        ),
        rows(),
    ),
    "gain computed from a bias": rows_with(
        lambda net, x: net.head(F.layer_norm(x, (5,), net.a + net.b, net.b, EPSILON)[:, :HIDDEN]),
        a=nn.Parameter(torch.rand(5)),
        b=nn.Parameter(torch.rand(5)),
    ),
    "batch norm with fixed statistics": lambda: (with_fixed_statistics(), rows()),
    "batch norm over places": lambda: (
        Net(
            lambda net, x: net.head(torch.relu(net.norm(net.first(x))).mean(1)),
            first=nn.Linear(4, 4),
            norm=nn.BatchNorm1d(7),
            head=nn.Linear(4, 3),
        ),
        sequences(),
    ),
    "batch norm of flattened places": lambda: (
        Net(
            lambda net, x: net.head(net.norm(net.first(x).flatten(1)).view(-1, 7, 4).mean(1)),
            first=nn.Linear(4, 4),
            norm=nn.BatchNorm1d(28),
            head=nn.Linear(4, 3),
        ),
        sequences(),
    ),
    "batch norm of flattened examples": lambda: (
        Net(
            lambda net, x: net.head(net.norm(net.first(x).flatten(0, 1)).view(-1, 7, 4).mean(1)),
            first=nn.Linear(4, 4),
            norm=nn.BatchNorm1d(4),
            head=nn.Linear(4, 3),
        ),
        sequences(),
    ),
    "normalised over the examples' axis": rows_with(
        lambda net, x: net.head(
            F.batch_norm(net.first(x).t(), None, None, training=True, eps=EPSILON).t()
        ),
        first=nn.Linear(5, HIDDEN),
    ),
    "layer norm over places": lambda: (
        Net(
            lambda net, x: net.head(net.norm(net.first(x)).mean((2, 3))),
            first=nn.Conv2d(3, 4, 3),
            norm=nn.LayerNorm(6),
            head=nn.Linear(4, 3),
        ),
        images(),
    ),
    "local response norm": lambda: (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.LocalResponseNorm(2), nn.Flatten(), nn.Linear(144, 3)),
        images(),
    ),
    "excitation by a sigmoid": lambda: (squeeze_and_excitation(torch.sigmoid), images()),
    "excitation by a ReLU": lambda: (squeeze_and_excitation(torch.relu), images()),
    "embedding with a padding row": lambda: (
        Net(
            lambda net, x: net.head(torch.relu(net.embed(x)).mean(1)),
            embed=nn.Embedding(7, 4, padding_idx=2),
            head=nn.Linear(4, 3),
        ),
        tokens(),
    ),
    "embedding bag": lambda: (
        nn.Sequential(nn.EmbeddingBag(7, 4), nn.ReLU(), nn.Linear(4, 3)),
        tokens(),
    ),
    "embedding of bounded norm": lambda: (
        Net(
            lambda net, x: net.head(net.embed(x).mean(1)),
            embed=nn.Embedding(7, 4, max_norm=1.0),
            head=nn.Linear(4, 3),
        ),
        tokens(),
    ),
    "indexed table": lambda: (
        Net(
            lambda net, x: net.head(net.norm(net.table[x]).mean(1)),
            table=nn.Parameter(torch.rand(7, 4)),
            norm=nn.LayerNorm(4),
            head=nn.Linear(4, 3),
        ),
        tokens(),
    ),
    "one-hot tokens": lambda: (
        Net(
            lambda net, x: net.head(torch.relu(net.first(F.one_hot(x, 7).double())).mean(1)),
            first=nn.Linear(7, 4),
            head=nn.Linear(4, 3),
        ),
        tokens(),
    ),
    "whole numbers as input": lambda: (
        Net(
            lambda net, x: net.head(torch.relu(net.first(x.double()))),
            first=nn.Linear(5, 4),
            head=nn.Linear(4, 3),
        ),
        tokens(),
    ),
    "examples one by one": lambda: (
        Net(
            lambda net, x: net.head(
                torch.stack([torch.relu(net.first(example)).mean((1, 2)) for example in x])
            ),
            first=nn.Conv2d(3, 6, 3),
            head=nn.Linear(6, 3),
        ),
        images(),
    ),
    "sequences one by one": lambda: (
        Net(  # without a batch axis, places would be where channels are expected
            lambda net, x: net.head(net.norm(torch.stack([net.first(e) for e in x])).mean(2)),
            first=nn.Conv1d(7, 4, 3, padding=1),
            norm=nn.LayerNorm(4),
            head=nn.Linear(4, 3),
        ),
        sequences(),
    ),
}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("name", MODELS)
def test_no_law_is_false_whatever_the_model(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    assert not assert_no_false_law(model, inputs).note


# ---------------------------------------------------------------------- pooling, padding

POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "max": lambda h: F.max_pool2d(h, 3, 2, 1, ceil_mode=True),
    "max with places": lambda h: F.max_pool2d(h, 2, return_indices=True)[0],
    "max and back": lambda h: F.max_unpool2d(*F.max_pool2d(h, 2, return_indices=True), (2, 2)),
    "average": lambda h: F.avg_pool2d(h, 2),
    "average with padding": lambda h: F.avg_pool2d(h, 3, 2, 1),
    "average of what is there": lambda h: F.avg_pool2d(h, 3, 2, 1, True, False),
    "average with its own divisor": lambda h: F.avg_pool2d(h, 3, divisor_override=5),
    "adaptive average": lambda h: F.adaptive_avg_pool2d(h, (1, None)),
    "adaptive max": lambda h: F.adaptive_max_pool2d(h, 3),
    "power average": lambda h: F.lp_pool2d(h, 2, 2),
    "fractional": lambda h: F.fractional_max_pool2d(h, 2, output_size=4),
    "nearest": lambda h: F.interpolate(h, scale_factor=2),
    "bilinear": lambda h: F.interpolate(h, size=(5, 11), mode="bilinear"),
    "bicubic": lambda h: F.interpolate(h, scale_factor=2, mode="bicubic"),
    "patches and back": lambda h: F.fold(F.unfold(h, 2, stride=2), (6, 6), 2, stride=2),
    "sampled": lambda h: F.grid_sample(
        h, torch.zeros(len(h), 4, 4, 2).double(), align_corners=False
    ),
    "whole channels dropped": lambda h: F.dropout2d(h, 0.5),
    "without batch": lambda h: torch.stack([F.max_pool2d(e, 3, 1, 1) for e in h]),
    "narrow, without batch": lambda h: torch.stack([F.max_pool2d(e, (1, 3), 1) for e in h]),
    "reflected border": lambda h: F.pad(h, (1, 1, 1, 1), "reflect"),
    "repeated border": lambda h: F.pad(h, (1, 1, 1, 1), "replicate"),
    "circular border": lambda h: F.pad(h, (1, 1, 1, 1), "circular"),
    "border of ones": lambda h: F.pad(h, (1, 1, 1, 1), value=1.0),
    "border of zeros": lambda h: F.pad(h, (1, 1, 1, 1)),
    "border cut off": lambda h: F.pad(h, (-1, -1, 0, -1)),
}


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("name", POOLS)
def test_no_law_is_false_whatever_mixes_places(name: str, norm: str) -> None:
    torch.manual_seed(0)
    norms = {"batch": nn.BatchNorm2d(4), "group": nn.GroupNorm(2, 4), "none": nn.ReLU()}
    model = Net(
        lambda net, x: net.head(torch.relu(net.norm(POOLS[name](net.first(x)))).mean((2, 3))),
        first=nn.Conv2d(3, 4, 3),
        norm=norms[norm],
        head=nn.Linear(4, 3),
    )
    assert_no_false_law(model, images())


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_no_law_is_false_for_convolutions_that_pad_differently(mode: str) -> None:
    torch.manual_seed(0)
    second = nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode)  # type: ignore[arg-type]
    layers = (nn.Conv2d(3, 4, 3), nn.ReLU(), second, nn.Flatten(), nn.Linear(144, 3))
    assert_no_false_law(nn.Sequential(*layers), images())


# ---------------------------------------------------------------------- outputs and losses


READOUTS: dict[str, Callable[[Tensor], Any]] = {
    "logits": lambda y: y,
    "logarithms of probabilities": lambda y: y.log_softmax(1),
    "normalised over examples": lambda y: y.log_softmax(0),
    "probabilities": lambda y: y.softmax(1),
    "scaled and moved": lambda y: y / 3 - 1,
    "two outputs": lambda y: (y, y[:, :2]),
    "one more class": lambda y: torch.cat([y, torch.zeros_like(y[:, :1])], 1),
    "logits at many places": lambda y: y[:, :, None].expand(-1, -1, 4),
    "classes on another axis": lambda y: y[:, None].expand(-1, 2, -1),
    "reshaped": lambda y: y.flatten().view(-1, 3),
}


@pytest.mark.parametrize("loss", ["ce", "mse"])
@pytest.mark.parametrize("name", READOUTS)
def test_no_law_is_false_whatever_is_returned(name: str, loss: str) -> None:
    torch.manual_seed(0)
    model = Net(
        lambda net, x: READOUTS[name](net.second(torch.relu(net.first(x)))),
        first=nn.Linear(5, HIDDEN),
        second=nn.Linear(HIDDEN, 3),
    )
    laws = assert_no_false_law(model, rows(), loss)
    assert diagonal(laws) == HIDDEN


def test_a_shift_of_all_logits_is_a_law_of_cross_entropy_alone() -> None:
    model = between(torch.relu)
    assert len(assert_no_false_law(model, rows(), "ce").linear) == HIDDEN + 1
    assert len(assert_no_false_law(model, rows(), "mse").linear) == 0

"""Models made of the operations whose laws are known: all of their laws must be found."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from Models import ModelConfig, build_model
from tests.models.symmetry.attention import Attention, Block
from tests.models.symmetry.certificate import EPSILON, Net
from Utils.config import validate

IMAGE, WIDTH, CLASSES = (2, 4, 4), 4, 3
TOKENS, LENGTH = 5, 4


class Case(NamedTuple):
    """A model and a batch for it; ``inputs`` are replaced by random ones of their kind."""

    build: Callable[[], nn.Module]
    inputs: Tensor
    loss: str = "ce"


ZOO: dict[str, Case] = {}


def model(
    inputs: Tensor, loss: str = "ce", name: str = ""
) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Enter a builder into the zoo under its own name."""

    def enter(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        ZOO[name or build.__name__] = Case(build, inputs, loss)
        return build

    return enter


images = torch.zeros(8, *IMAGE, dtype=torch.float64)
large_images = torch.zeros(6, 2, 8, 8, dtype=torch.float64)
vectors = torch.zeros(8, 5, dtype=torch.float64)
sequences = torch.zeros(8, LENGTH, 5, dtype=torch.float64)
tokens = torch.full((10, LENGTH), TOKENS - 1)


def registered(name: str, **options: object) -> Callable[[], nn.Module]:
    config = validate(ModelConfig, {"model": name, **options}, "test")
    return lambda: build_model(config, IMAGE, CLASSES)


for entry, options in {
    "logistic": {},
    "fc": {"depth": 3, "width": WIDTH},
    "fc-bn": {"depth": 3, "width": WIDTH},
    "conv": {"depth": 3, "width": WIDTH},
    "conv-bn": {"depth": 3, "width": WIDTH},
}.items():
    model(images, name=entry)(registered(entry, **options))
    model(images, "mse", name=f"{entry}, mse")(registered(entry, **options))
for nonlinearity in ("leaky-relu", "abs", "relu2", "identity"):
    model(images, name=f"fc, {nonlinearity}")(
        registered("fc", depth=4, width=WIDTH, nonlinearity=nonlinearity)
    )


# ---------------------------------------------------------------------- convolutional


def vgg(norm: bool) -> nn.Module:
    def stage(inputs: int, outputs: int) -> list[nn.Module]:
        normalisation = [nn.BatchNorm2d(outputs)] if norm else []
        return [nn.Conv2d(inputs, outputs, 3, padding=1), *normalisation, nn.ReLU()]

    features = [*stage(2, 3), *stage(3, 3), nn.MaxPool2d(2), *stage(3, 4), nn.MaxPool2d(2)]
    head = [nn.Linear(16, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 4), nn.ReLU(), nn.Dropout()]
    pool = [nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*features, *pool, *head, nn.Linear(4, CLASSES))


model(large_images, name="vgg")(partial(vgg, False))
model(large_images, name="vgg-bn")(partial(vgg, True))


class BasicBlock(nn.Module):
    """ResNet's, with a 1x1 convolution on the shortcut where shapes change."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: bool):
        super().__init__()

        def layer(i: int, kernel: int, step: int) -> nn.Module:
            convolution = nn.Conv2d(i, outputs, kernel, step, kernel // 2, bias=not norm)
            normalisation = nn.BatchNorm2d(outputs) if norm else nn.Identity()
            return nn.Sequential(convolution, normalisation)

        self.first = layer(inputs, 3, stride)
        self.second = layer(outputs, 3, 1)
        self.relu = nn.ReLU(inplace=True)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else layer(inputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.second(self.relu(self.first(x)))
        out += self.shortcut(x)
        result: Tensor = self.relu(out)
        return result


def resnet(norm: bool) -> nn.Module:
    stem: list[nn.Module] = [nn.Conv2d(2, 3, 3, padding=1, bias=not norm)]
    stem += [nn.BatchNorm2d(3)] if norm else []
    blocks = [BasicBlock(3, 3, 1, norm), BasicBlock(3, 4, 2, norm), BasicBlock(4, 4, 1, norm)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES)]
    return nn.Sequential(*stem, nn.ReLU(), *blocks, *head)


model(large_images, name="resnet-bn")(partial(resnet, True))
model(large_images, name="resnet")(partial(resnet, False))
model(large_images, "mse", name="resnet, mse")(partial(resnet, False))


@model(large_images)
def mobile_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1, groups=3),
        nn.GroupNorm(3, 6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, CLASSES),
    )


@model(large_images)
def dense_net() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Any:
        x = torch.relu(net.stem(x))
        x = torch.cat([x, torch.relu(net.first(x))], 1)
        x = torch.cat([x, torch.relu(net.second(x))], 1)
        x = functional.avg_pool2d(net.transition(x), 2)
        return net.head(torch.relu(net.norm(x)).mean((2, 3)))

    return Net(
        forward,
        stem=nn.Conv2d(2, 3, 3),
        first=nn.Conv2d(3, 2, 3, padding=1),
        second=nn.Conv2d(5, 2, 3, padding=1),
        transition=nn.Conv2d(7, 4, 1),
        norm=nn.BatchNorm2d(4),
        head=nn.Linear(4, CLASSES),
    )


@model(large_images)
def padded_shortcut() -> nn.Module:
    """The first ResNets' shortcut without parameters: every second pixel, zero channels added."""

    def forward(net: Any, x: Tensor) -> Any:
        x = torch.relu(net.stem_norm(net.stem(x)))
        y = net.norm(net.convolution(x))
        x = torch.relu(y + functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1)))
        return net.head(x.mean((2, 3)))

    return Net(
        forward,
        stem=nn.Conv2d(2, 3, 3, padding=1),
        stem_norm=nn.BatchNorm2d(3),
        convolution=nn.Conv2d(3, 5, 3, stride=2, padding=1),
        norm=nn.BatchNorm2d(5),
        head=nn.Linear(5, CLASSES),
    )


@model(large_images)
def hour_glass() -> nn.Module:
    """Transposed convolutions, one of them grouped, and both kinds of largest values."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2),
        nn.PReLU(4),
        nn.ConvTranspose2d(4, 4, 3, stride=2, groups=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(5),
        nn.ConvTranspose2d(4, 3, 2),
        nn.GroupNorm(1, 3),
        nn.ReLU(),
        nn.AvgPool2d(3),
        nn.Flatten(),
        nn.Linear(12, CLASSES),
    )


@model(large_images)
def channel_shuffle() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.ReLU(),
        nn.ChannelShuffle(2),
        nn.Conv2d(4, 4, 3, groups=2, bias=False),
        nn.BatchNorm2d(4),
        nn.ChannelShuffle(2),
        nn.PixelUnshuffle(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, CLASSES),
    )


@model(large_images)
def fully_convolutional() -> nn.Module:
    """The classifier is a 1x1 convolution, averaged over places."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2),
        nn.LeakyReLU(0.1),
        nn.Conv2d(4, CLASSES, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


@model(large_images)
def places_with_gains() -> nn.Module:
    """Gains and offsets of single places, pooled in windows that overlap and in others."""
    return nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.LayerNorm([3, 6, 6]),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Conv2d(3, 2, 2),
        nn.LayerNorm([2, 2, 2]),
        nn.LeakyReLU(),
        nn.Upsample(scale_factor=2),
        nn.AvgPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(18, CLASSES),
    )


@model(large_images)
def instance_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.InstanceNorm2d(4, affine=True),
        nn.ReLU(),
        nn.Conv2d(4, 3, 3),
        nn.InstanceNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, CLASSES),
    )


@model(torch.zeros(6, 3, 8, dtype=torch.float64))
def one_dimensional() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool1d(2),
        nn.Conv1d(4, 4, 3, groups=2),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Flatten(),
        nn.Linear(4, CLASSES),
    )


# ---------------------------------------------------------------------- residual streams


class RMSNorm(nn.Module):
    """Written by hand, as in many language models."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = EPSILON

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class LayerNorm(nn.Module):
    """Written by hand."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = EPSILON

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        variance = x.var(-1, keepdim=True, unbiased=False)
        return centred / torch.sqrt(variance + self.eps) * self.weight + self.bias


def mixer(norm: Callable[[int], nn.Module], pre: bool) -> nn.Module:
    """Two residual blocks on a sequence: one mixes places, one mixes channels."""
    width = WIDTH

    def places(net: Any, x: Tensor) -> Any:
        return net.place_out(torch.relu(net.place_in(x.transpose(1, 2)))).transpose(1, 2)

    def channels(net: Any, x: Tensor) -> Any:
        return net.channel_out(torch.relu(net.channel_in(x)))

    def forward(net: Any, x: Tensor) -> Any:
        x = net.embed(x)
        for part, normalise in ((places, net.norm1), (channels, net.norm2)):
            x = x + part(net, normalise(x)) if pre else normalise(x + part(net, x))
        return net.head(net.norm3(x).mean(1) if pre else x.mean(1))

    return Net(
        forward,
        embed=nn.Linear(5, width),
        norm1=norm(width),
        place_in=nn.Linear(LENGTH, 3),
        place_out=nn.Linear(3, LENGTH),
        norm2=norm(width),
        channel_in=nn.Linear(width, 3),
        channel_out=nn.Linear(3, width),
        norm3=norm(width) if pre else nn.Identity(),
        head=nn.Linear(width, CLASSES),
    )


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layer norm": nn.LayerNorm,
    "RMS norm": nn.RMSNorm,
    "own RMS norm": RMSNorm,
    "own layer norm": LayerNorm,
}
for kind, norm in NORMS.items():
    model(sequences, name=f"mixer, {kind} before")(partial(mixer, norm, True))
    model(sequences, name=f"mixer, {kind} after")(partial(mixer, norm, False))


@model(vectors)
def residual_relu_stream() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Any:
        x = torch.relu(net.embed(x))
        x = x + net.first(torch.relu(net.up(x)))
        return net.head(torch.relu(x + net.second(x)))

    return Net(
        forward,
        embed=nn.Linear(5, WIDTH),
        up=nn.Linear(WIDTH, 3),
        first=nn.Linear(3, WIDTH),
        second=nn.Linear(WIDTH, WIDTH, bias=False),
        head=nn.Linear(WIDTH, CLASSES),
    )


# ---------------------------------------------------------------------- embeddings, bare weights


@model(tokens)
def token_embedding() -> nn.Module:
    return Net(
        lambda net, x: net.head(torch.relu(net.embed(x)).mean(1)),
        embed=nn.Embedding(TOKENS, WIDTH),
        head=nn.Linear(WIDTH, CLASSES),
    )


@model(tokens)
def positional_embedding() -> nn.Module:
    return Net(
        lambda net, x: net.head(torch.relu(net.embed(x) + net.position).mean(1)),
        embed=nn.Embedding(TOKENS, WIDTH),
        position=nn.Parameter(torch.rand(LENGTH, WIDTH)),
        head=nn.Linear(WIDTH, CLASSES),
    )


@model(tokens)
def two_embeddings_and_layer_norm() -> nn.Module:
    return Net(
        lambda net, x: net.head(
            net.norm(net.embed(x) + net.places(torch.arange(LENGTH)) + net.offset).mean(1)
        ),
        embed=nn.Embedding(TOKENS, WIDTH),
        places=nn.Embedding(LENGTH, WIDTH),
        offset=nn.Parameter(torch.rand(WIDTH)),
        norm=nn.LayerNorm(WIDTH),
        head=nn.Linear(WIDTH, CLASSES),
    )


@model(vectors)
def bare_matrices() -> nn.Module:
    return Net(
        lambda net, x: torch.relu(torch.relu(x @ net.first_matrix) @ net.second.t() + net.bias)
        @ net.last_matrix,
        first_matrix=nn.Parameter(torch.rand(5, WIDTH)),
        second=nn.Parameter(torch.rand(3, WIDTH)),
        bias=nn.Parameter(torch.rand(3)),
        last_matrix=nn.Parameter(torch.rand(3, CLASSES)),
    )


class TiedEmbedding(nn.Module):
    """The readout is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, WIDTH)
        self.hidden = nn.Linear(WIDTH, WIDTH)
        self.readout = nn.Linear(WIDTH, TOKENS)
        self.readout.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.readout(torch.relu(self.hidden(torch.relu(self.embed(x)))).mean(1))
        return logits


model(tokens, name="tied embedding")(TiedEmbedding)


@model(vectors)
def layer_applied_twice() -> nn.Module:
    return Net(
        lambda net, x: net.head(torch.relu(net.twice(torch.relu(net.twice(net.first(x)))))),
        first=nn.Linear(5, WIDTH),
        twice=nn.Linear(WIDTH, WIDTH),
        head=nn.Linear(WIDTH, CLASSES),
    )


@model(vectors)
def frozen_layer() -> nn.Module:
    return nn.Sequential(
        nn.Linear(5, WIDTH),
        nn.LeakyReLU(0.3),
        nn.Linear(WIDTH, WIDTH).requires_grad_(False),
        nn.LeakyReLU(0.3),
        nn.Linear(WIDTH, 3),
        nn.BatchNorm1d(3),
        nn.ReLU(),
        nn.Linear(3, CLASSES),
    )


@model(vectors)
def frozen_bias() -> nn.Module:
    net = nn.Sequential(nn.Linear(5, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))
    net[0].bias.requires_grad_(False)
    return net


@model(vectors)
def gated() -> nn.Module:
    """A true product: a gate that is a homogeneous function of its own weights."""
    return Net(
        lambda net, x: net.down(torch.relu(net.gate(x)) * net.up(x)),
        gate=nn.Linear(5, WIDTH),
        up=nn.Linear(5, WIDTH),
        down=nn.Linear(WIDTH, CLASSES),
    )


@model(vectors)
def scaled_features() -> nn.Module:
    """Gains of their own between linear layers, one per channel and one for all."""
    return Net(
        lambda net, x: net.head(torch.relu(net.first(x) * net.gain) * net.scale),
        first=nn.Linear(5, WIDTH),
        gain=nn.Parameter(torch.rand(WIDTH)),
        scale=nn.Parameter(torch.rand(())),
        head=nn.Linear(WIDTH, CLASSES),
    )


def transformer(**options: Any) -> nn.Module:
    return Block(5, CLASSES, Attention(8, 2, **options))


for kind, choice in {
    "plain": dict[str, Any](),
    "grouped keys": {"groups": 1},
    "no bias": {"bias": False},
    "rope": {"rope": True},
    "qk-norm": {"qk_norm": True},
    "explicit softmax": {"explicit": True},
}.items():
    model(sequences, name=f"transformer, {kind}")(partial(transformer, **choice))

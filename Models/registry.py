"""The models and nonlinearities that exist, by the names that the user types."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from Models.parametrization.exponents import Role
from Utils.errors import UserError
from Utils.registry import Entry, Registry

Setting = int | str | bool | None


@dataclass(frozen=True)
class ModelEntry(Entry):
    """An architecture.

    The builder is called as ``builder(input_shape, num_classes, **settings, **options)``.

    Attributes:
        options: the flags that the model reads, by field name, with their default values;
            ``None`` follows from the others.
        settings: what distinguishes it from the other models of the same builder.
        pretrained: torchvision's name of the same architecture, if --pretrained can load its
            weights; else empty.
        roles: of parameters whose role in a parametrization shapes do not tell, by name or
            pattern.
    """

    options: Mapping[str, Setting] = field(default_factory=dict)
    settings: Mapping[str, Setting] = field(default_factory=dict)
    pretrained: str = ""
    roles: Mapping[str, Role] = field(default_factory=dict)


@dataclass(frozen=True)
class Nonlinearity(Entry):
    """An elementwise function; the builder makes its module.

    Attributes:
        degree: p where f(cx) = c^p f(x) for every c > 0, else ``None``. Only homogeneous
            functions give rescale laws.
    """

    degree: int | None = None


_BIAS: Mapping[str, Setting] = {"bias": True}
_FULLY_CONNECTED = {"depth": 6, "width": 100, "nonlinearity": "relu", **_BIAS}
_CONVOLUTIONAL = {"depth": 3, "width": 32, "nonlinearity": "relu", **_BIAS}
_TRANSFORMER: Mapping[str, Setting] = {
    "depth": 2,
    "width": 64,
    "nonlinearity": None,
    "heads": 4,
    "kv_heads": None,
    "positions": "learned",
    "qk_norm": False,
    "norm": "layernorm",
    "mlp": "mlp",
    **_BIAS,
}

_TRANSFORMER_ROLES: Mapping[str, Role] = {
    "positions": "vector",
    "blocks.*.attention.q.weight": "query",
}

_DEFAULT = [
    ModelEntry(
        "logistic",
        "Models.fully_connected:logistic",
        "one linear layer",
        options=_BIAS,
    ),
    ModelEntry(
        "fc",
        "Models.fully_connected:fully_connected",
        "fully connected, by default 5 hidden layers of 100",
        options=_FULLY_CONNECTED,
    ),
    ModelEntry(
        "fc-bn",
        "Models.fully_connected:fully_connected",
        "fc with batch normalisation before each nonlinearity",
        options=_FULLY_CONNECTED,
        settings={"batch_norm": True},
    ),
    ModelEntry(
        "conv",
        "Models.convolutional:convolutional",
        "3x3 convolutions, by default 2 of 32 channels, and a linear classifier",
        options=_CONVOLUTIONAL,
    ),
    ModelEntry(
        "conv-bn",
        "Models.convolutional:convolutional",
        "conv with batch normalisation before each nonlinearity",
        options=_CONVOLUTIONAL,
        settings={"batch_norm": True},
    ),
    ModelEntry(
        "preact-resnet",
        "Models.preactivation:preactivation_resnet",
        "residual 3x3 convolutions, nonlinearities first, no normalisation; mean of positions",
        "He et al. (2016), Identity mappings in deep residual networks, arXiv 1603.05027",
        options=_CONVOLUTIONAL,
    ),
    ModelEntry(
        "transformer",
        "Models.transformer:transformer",
        "decoder-only transformer of vectors or one-hot tokens; its last position is classified",
        "Vaswani et al. (2017), Attention is all you need, arXiv 1706.03762",
        options=_TRANSFORMER,
        roles=_TRANSFORMER_ROLES,
    ),
    ModelEntry(
        "vit",
        "Models.transformer:vit",
        "vision transformer: patches of an image as tokens, their mean is classified",
        "Dosovitskiy et al. (2021), An image is worth 16x16 words, arXiv 2010.11929",
        options={**_TRANSFORMER, "patch_size": 4},
        roles=_TRANSFORMER_ROLES,
    ),
]

_VGG_PAPER = "Simonyan and Zisserman (2015), Very deep convolutional networks, arXiv 1409.1556"
_RESNET_PAPER = "He et al. (2016), Deep residual learning for image recognition, arXiv 1512.03385"
_WIDE_PAPER = "Zagoruyko and Komodakis (2016), Wide residual networks, arXiv 1605.07146"

_VGGS = [(layers, suffix) for suffix in ("", "-bn") for layers in (11, 13, 16, 19)]
_RESNETS = [("", layers) for layers in (18, 34, 50, 101, 152)]
_WIDE_RESNETS = [("wide-", layers) for layers in (18, 34, 50, 101)]


def _small_vgg(layers: int, suffix: str) -> ModelEntry:
    normalised = "with batch normalisation, " if suffix else ""
    return ModelEntry(
        f"vgg{layers}{suffix}",
        "Models.vgg:vgg",
        f"VGG-{layers} {normalised}for images from 32x32",
        _VGG_PAPER,
        settings={"layers": layers, "batch_norm": bool(suffix)},
        options=_BIAS,
    )


def _small_resnet(wide: str, layers: int, suffix: str) -> ModelEntry:
    doubled = ", twice as wide inside its blocks" if wide else ""
    plain = ", without normalisation" if suffix else ""
    return ModelEntry(
        f"{wide}resnet{layers}{suffix}",
        "Models.resnet:resnet",
        f"ResNet-{layers} with a 3x3 stem{doubled}{plain}",
        _WIDE_PAPER if wide else _RESNET_PAPER,
        settings={"layers": layers, "wide": bool(wide), "batch_norm": not suffix},
    )


def _torchvision(name: str, architecture: str, description: str, citation: str) -> ModelEntry:
    return ModelEntry(
        name,
        "Models.imagenet:torchvision_model",
        f"torchvision's {description}",
        citation,
        settings={"architecture": architecture},
        pretrained=architecture,
    )


_TINY_IMAGENET = [_small_vgg(layers, suffix) for layers, suffix in _VGGS] + [
    _small_resnet(wide, layers, suffix)
    for suffix in ("", "-nobn")
    for wide, layers in _RESNETS + _WIDE_RESNETS
]
_IMAGENET = [
    *(
        _torchvision(
            f"vgg{layers}{suffix}",
            f"vgg{layers}{suffix.replace('-', '_')}",
            f"VGG-{layers}{' with batch normalisation' if suffix else ''}",
            _VGG_PAPER,
        )
        for layers, suffix in _VGGS
    ),
    *(
        _torchvision(f"resnet{layers}", f"resnet{layers}", f"ResNet-{layers}", _RESNET_PAPER)
        for _, layers in _RESNETS
    ),
    *(
        _torchvision(
            f"wide-resnet{layers}",
            f"wide_resnet{layers}_2",
            f"ResNet-{layers}, twice as wide inside its blocks",
            _WIDE_PAPER,
        )
        for layers in (50, 101)
    ),
]

MODELS: Mapping[str, Registry[ModelEntry]] = {
    "default": Registry("model", _DEFAULT),
    "tinyimagenet": Registry("model of --model-class tinyimagenet", _TINY_IMAGENET),
    "imagenet": Registry("model of --model-class imagenet", _IMAGENET),
}
"""The models of each --model-class; a name may be in several."""


def find_model(model_class: str, name: str) -> ModelEntry:
    """The entry called ``name`` in a class.

    Args:
        model_class: a key of :data:`MODELS`.
        name: what follows ``--model``.

    Raises:
        UserError: there is none; names the classes that have it, or the nearest name.
    """
    elsewhere = [other for other in MODELS if name in MODELS[other]]
    if elsewhere and model_class not in elsewhere:
        raise UserError(
            f"--model {name} is not of --model-class {model_class}; "
            f"use --model-class {' or '.join(elsewhere)}"
        )
    return MODELS[model_class][name]


NONLINEARITIES: Registry[Nonlinearity] = Registry(
    "nonlinearity",
    [
        Nonlinearity("relu", "torch.nn:ReLU", "max(x, 0)", degree=1),
        Nonlinearity("leaky-relu", "torch.nn:LeakyReLU", "max(x, x/100)", degree=1),
        Nonlinearity("abs", "Models.activations:Abs", "|x|", degree=1),
        Nonlinearity("relu2", "Models.activations:SquaredReLU", "max(x, 0)²", degree=2),
        Nonlinearity("identity", "torch.nn:Identity", "x: a deep linear network", degree=1),
        Nonlinearity("tanh", "torch.nn:Tanh", "hyperbolic tangent"),
        Nonlinearity("sigmoid", "torch.nn:Sigmoid", "1 / (1 + exp(-x))"),
        Nonlinearity("gelu", "torch.nn:GELU", "x Φ(x), Φ the normal distribution function"),
        Nonlinearity("silu", "torch.nn:SiLU", "x sigmoid(x)"),
        Nonlinearity("softplus", "torch.nn:Softplus", "log(1 + exp(x))"),
        Nonlinearity("elu", "torch.nn:ELU", "x if x > 0, else exp(x) - 1"),
    ],
    aliases={"linear": "identity", "swish": "silu"},
)

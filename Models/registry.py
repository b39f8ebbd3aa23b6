"""The models and nonlinearities that exist, by the names that the user types."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from Utils.registry import Entry, Registry


@dataclass(frozen=True)
class ModelEntry(Entry):
    """An architecture.

    The builder is called as ``builder(input_shape, num_classes, **options)``.

    Attributes:
        options: the flags that the model reads, by field name, with their default values.
    """

    options: Mapping[str, int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Nonlinearity(Entry):
    """An elementwise function; the builder makes its module.

    Attributes:
        degree: p where f(cx) = c^p f(x) for every c > 0, else ``None``. Only homogeneous
            functions give rescale laws.
    """

    degree: int | None = None


_FULLY_CONNECTED: Mapping[str, int | str] = {"depth": 6, "width": 100, "nonlinearity": "relu"}
_CONVOLUTIONAL: Mapping[str, int | str] = {"depth": 3, "width": 32, "nonlinearity": "relu"}

MODELS: Registry[ModelEntry] = Registry(
    "model",
    [
        ModelEntry(
            "logistic",
            "Models.fully_connected:logistic",
            "one linear layer",
        ),
        ModelEntry(
            "fc",
            "Models.fully_connected:fully_connected",
            "fully connected, by default 5 hidden layers of 100",
            options=_FULLY_CONNECTED,
        ),
        ModelEntry(
            "fc-bn",
            "Models.fully_connected:fully_connected_bn",
            "fc with batch normalisation before each nonlinearity",
            options=_FULLY_CONNECTED,
        ),
        ModelEntry(
            "conv",
            "Models.convolutional:convolutional",
            "3x3 convolutions, by default 2 of 32 channels, and a linear classifier",
            options=_CONVOLUTIONAL,
        ),
        ModelEntry(
            "conv-bn",
            "Models.convolutional:convolutional_bn",
            "conv with batch normalisation before each nonlinearity",
            options=_CONVOLUTIONAL,
        ),
    ],
)

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

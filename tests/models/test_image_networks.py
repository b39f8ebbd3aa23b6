"""VGGs and ResNets: sizes, structure, initialisation, laws; torchvision's own ones."""

from typing import Any

import pytest
import torch
import torchvision
from sklearn.datasets import load_digits
from torch import Tensor, nn

from Models import MODELS, ModelConfig, build_model
from Models.symmetry import Laws, find_laws
from tests.models.symmetry.certificate import EPSILON, TOLERANCE, leaks
from Utils.config import validate
from Utils.errors import UserError
from Utils.seeds import stream_seed

SMALL, TINY = (3, 32, 32), (3, 64, 64)


def build(
    name: str,
    shape: tuple[int, ...] = SMALL,
    classes: int = 10,
    model_class: str = "tinyimagenet",
    **options: Any,
) -> nn.Module:
    flags = {"model": name, "model_class": model_class, **options}
    return build_model(validate(ModelConfig, flags, "test"), shape, classes)


def without_numbers(*args: Any, **options: Any) -> nn.Module:
    """The model on a device that keeps shapes only: large ones cost nothing."""
    with torch.device("meta"):
        return build(*args, **options)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def theirs(architecture: str, **options: Any) -> nn.Module:
    model: nn.Module = getattr(torchvision.models, architecture)(**options)
    return model


# ---------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("name", "shape", "classes", "millions"),
    [
        ("vgg16", SMALL, 10, 14.91),
        ("vgg16", TINY, 200, 18.07),
        ("vgg16-bn", SMALL, 10, 14.92),
        ("vgg16-bn", TINY, 200, 18.08),
        ("resnet18", TINY, 200, 11.27),
    ],
)
def test_sizes_are_those_of_neural_mechanics(
    name: str, shape: tuple[int, ...], classes: int, millions: float
) -> None:
    assert round(count(without_numbers(name, shape, classes)) / 1e6, 2) == millions


@pytest.mark.parametrize("name", ["vgg11", "vgg13-bn", "vgg16", "vgg19-bn"])
@pytest.mark.parametrize(("shape", "d"), [(SMALL, 512), (TINY, 2048), ((1, 40, 100), 1536)])
def test_vggs_have_torchvisions_convolutions_and_three_linear_layers(
    name: str, shape: tuple[int, ...], d: int
) -> None:
    with torch.device("meta"):
        convolutions = count(theirs(name.replace("-", "_")).features)  # type: ignore[arg-type]
    convolutions -= (3 - shape[0]) * 9 * 64
    linear = d * (d // 2) + d // 2 + (d // 2) ** 2 + d // 2 + d // 2 * 7 + 7
    assert count(without_numbers(name, shape, 7)) == convolutions + linear


@pytest.mark.parametrize("name", [n for n in MODELS["tinyimagenet"].names if "resnet" in n])
def test_resnets_differ_from_torchvisions_in_what_their_name_says(name: str) -> None:
    layers = int("".join(c for c in name if c.isdigit()))
    bottleneck, wide = layers >= 50, name.startswith("wide")
    with torch.device("meta"):
        plain = theirs(f"wide_resnet{layers}_2" if wide and bottleneck else f"resnet{layers}")
    expected = (
        count(plain) - 7 * 7 * 3 * 64 + 3 * 3 * 2 * 64 - (1000 - 7) * (2049, 513)[layers < 50]
    )
    inner = [m for n, m in plain.named_modules() if ".conv" in n and isinstance(m, nn.Conv2d)]
    if wide and not bottleneck:  # every convolution of a block has twice the weights
        expected += sum(m.weight.numel() for m in inner)
        expected += sum(m.num_features for n, m in plain.named_modules() if n.endswith(".bn1"))
        expected += sum(m.num_features for n, m in plain.named_modules() if n.endswith(".bn1"))
    model = without_numbers(name, (2, 8, 8), 7)
    if name.endswith("-nobn"):
        normalised = without_numbers(name.removesuffix("-nobn"), (2, 8, 8), 7)
        norms = [m for m in normalised.modules() if isinstance(m, nn.BatchNorm2d)]
        expected -= sum(map(count, norms))
        assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert count(model) == expected


def test_wide_resnets_are_wider() -> None:
    wide = [n for n in MODELS["tinyimagenet"].names if n.startswith("wide")]
    assert len(wide) == 8
    for name in wide:
        widened, plain = without_numbers(name), without_numbers(name.removeprefix("wide-"))
        assert count(widened) > 1.9 * count(plain)
        first, before = (m.get_submodule("layer1.0.conv2") for m in (widened, plain))
        assert first.in_channels == 2 * int(before.in_channels)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- structure


@pytest.mark.parametrize("size", [1, 8, 11])
def test_small_resnets_keep_the_size_of_the_image_at_first(size: int) -> None:
    model, sizes = build("resnet18", (1, size, size)), []

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        sizes.append(output.shape[-1])

    for stage in (1, 2, 3, 4):
        model.get_submodule(f"layer{stage}").register_forward_hook(note)
    model(torch.randn(2, 1, size, size))
    assert sizes == [-(-size // step) for step in (1, 2, 4, 8)]


def test_dropout_and_poolings_of_a_vgg() -> None:
    kinds = [type(m) for m in build("vgg16-bn", bias=False).modules()]
    convolution = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    expected = [c for n in (2, 2, 3, 3, 3) for c in [*convolution * n, nn.MaxPool2d]]
    expected += [nn.Linear, nn.ReLU, nn.Dropout] * 2 + [nn.Linear]
    assert [k for k in kinds if k not in (nn.Sequential, nn.Flatten)] == expected


@pytest.mark.parametrize(
    ("name", "model_class", "shape", "message"),
    [
        (
            "vgg11-bn",
            "tinyimagenet",
            (1, 28, 28),
            "vgg11-bn reads images of at least 32x32 .* shape 1x28x28",
        ),
        ("vgg11", "tinyimagenet", (20, 5), "not inputs of shape 20x5"),
        ("resnet18", "tinyimagenet", (20, 5), "resnet18 reads images .* not inputs of shape 20x5"),
        ("resnet18", "imagenet", (1, 64, 64), "reads images in 3 colours, not 1; use"),
        ("vgg11", "imagenet", (3, 64, 31), "at least 32x32 pixels, not inputs of shape 3x64x31"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    name: str, model_class: str, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        without_numbers(name, shape, model_class=model_class)


# ---------------------------------------------------------------------- torchvision's


@pytest.mark.parametrize("name", MODELS["imagenet"].names)
def test_large_models_are_torchvisions(name: str) -> None:
    known = {"wide-resnet50": "wide_resnet50_2", "wide-resnet101": "wide_resnet101_2"}
    with torch.device("meta"):
        reference = theirs(known.get(name, name.replace("-", "_")), num_classes=17)
        mine = build(name, TINY, 17, model_class="imagenet")
    assert type(mine) is type(reference)
    shapes = [{n: t.shape for n, t in m.state_dict().items()} for m in (mine, reference)]
    assert shapes[0] == shapes[1]


def test_large_models_compute_what_torchvisions_do() -> None:
    mine = build("resnet18", SMALL, 7, model_class="imagenet", seed=3).eval()
    torch.manual_seed(stream_seed(3, "init"))
    reference = theirs("resnet18", num_classes=7).eval()
    inputs = torch.randn(2, *SMALL)
    assert torch.equal(mine(inputs), reference(inputs))


# ---------------------------------------------------------------------- initialisation


def growth(model: nn.Module) -> float:
    """How many times larger the squares of the last features are than those of the stem."""
    sizes: list[float] = []

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        sizes.append(float(output.square().mean()))

    for name in ("relu", "layer4"):
        model.get_submodule(name).register_forward_hook(note)
    with torch.no_grad():
        model(torch.randn(2, 3, 16, 16))
    return sizes[1] / sizes[0]


def test_deep_resnets_without_normalisation_neither_explode_nor_vanish() -> None:
    model = build("resnet101-nobn")
    assert 0.1 < growth(model) < 10
    blocks = 33
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith("conv3"):
                module.weight *= blocks**0.5
    assert growth(model) > 1e6, "the factor that the test is about is not needed"


def test_a_resnet_without_normalisation_learns() -> None:
    digits = load_digits()
    inputs = torch.tensor(digits.images[:16, None] / 8 - 1, dtype=torch.float32)
    targets = torch.tensor(digits.target[:16])
    model, losses = build("resnet18-nobn", (1, 8, 8)), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for _ in range(12):
        loss = nn.functional.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# ---------------------------------------------------------------------- laws


def quadratic(laws: Laws) -> dict[str, int]:
    return {kind: sum(map(len, laws.of_kind(kind))) for kind in ("scale", "rescale")}


def test_the_laws_of_vgg16_bn() -> None:
    """Every filter's scale; every gain and neuron of the classifier with what reads it."""
    laws = find_laws(build("vgg16-bn", TINY, 200), torch.zeros(2, *TINY), "ce")
    assert quadratic(laws) == {"scale": 4_224, "rescale": 4_224 + 2_048}
    assert len(laws.quadratic) == 10_496
    assert laws.lawless == ()


@pytest.mark.parametrize("suffix", ["", "-bn"])
@pytest.mark.parametrize(
    ("layers", "filters"), [(11, 2_752), (13, 2_944), (16, 4_224), (19, 5_504)]
)
def test_the_laws_of_every_vgg(layers: int, filters: int, suffix: str) -> None:
    model = without_numbers(f"vgg{layers}{suffix}")
    laws = find_laws(model, torch.zeros(2, *SMALL, device="meta"), "ce")
    assert quadratic(laws) == {"scale": filters if suffix else 0, "rescale": filters + 2 * 256}
    assert laws.lawless == ()


FILTERS, INNER, STREAM = 64 + 4 * 960 + 896, 2 * 960, 960
"""Channels of ResNet-18: of all convolutions, inside blocks, and of the residual streams."""


@pytest.mark.parametrize(
    ("name", "model_class", "scale", "rescale"),
    [
        ("vgg11", "imagenet", 0, 2_752 + 2 * 4_096),
        ("resnet18", "imagenet", FILTERS, INNER + STREAM),
        ("wide-resnet18", "tinyimagenet", FILTERS + INNER, 2 * INNER + STREAM),
        (
            "resnet50-nobn",
            "tinyimagenet",
            0,
            2 * (3 * 64 + 4 * 128 + 6 * 256 + 3 * 512) + 64 + 4 * STREAM,
        ),
    ],
)
def test_numbers_of_laws(name: str, model_class: str, scale: int, rescale: int) -> None:
    shape = SMALL if "vgg" in name else (3, 8, 8)
    model = without_numbers(name, shape, 4, model_class)
    laws = find_laws(model, torch.zeros(2, *shape, device="meta"), "ce")
    assert quadratic(laws) == {"scale": scale, "rescale": rescale}
    assert laws.lawless == ()


@pytest.mark.parametrize(
    ("name", "scale", "rescale"),
    [
        ("vgg16", 0, 3 * 13 + 2 * 1),
        ("vgg16-bn", 3 * 13, 3 * 13 + 2 * 1),
        ("resnet18", FILTERS, INNER + STREAM),
        ("resnet18-nobn", 0, INNER + STREAM),
    ],
)
def test_laws_hold(name: str, scale: int, rescale: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("Models.vgg._CHANNELS", (3, 3, 3, 3, 3))
    shape = SMALL if "vgg" in name else (3, 4, 4)
    model = build(name, shape, 4, dtype="float64")
    laws = find_laws(model, torch.zeros(2, *shape, dtype=torch.float64), "ce")
    assert quadratic(laws) == {"scale": scale, "rescale": rescale}
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = EPSILON
        for parameter in model.parameters():
            size = parameter.abs().mean() + 0.01
            parameter.add_(0.3 * size * torch.randn_like(parameter))
    leak = leaks(model, torch.randn(6, *shape, dtype=torch.float64), laws)
    assert leak.max() < TOLERANCE

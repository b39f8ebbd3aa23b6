"""What is said about the laws: names, signs, values, reasons, files; and to the model: nothing."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.func import vmap

from Models.symmetry import KINDS, Laws, find_laws
from tests.models.symmetry.certificate import Net, assert_no_false_law
from tests.models.symmetry.zoo import RMSNorm, mixer, resnet, vgg
from Utils.errors import UserError


def rows(count: int = 2) -> Tensor:
    return torch.rand(count, 5)


def two_layers(activation: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 4), activation or nn.ReLU(), nn.Linear(4, 3))


def families_of(model: nn.Module, example: Tensor, loss: str = "ce") -> list[tuple[str, str, int]]:
    laws = find_laws(model, example, loss)
    return [(family.kind, family.layer, len(family)) for family in laws.families]


# ---------------------------------------------------------------------- families and names


def test_families_of_two_layers() -> None:
    assert families_of(two_layers(), rows()) == [
        ("rescale", "0|2", 4),
        ("translation", "2.weight", 4),
        ("translation", "2.bias", 1),
    ]


def test_families_with_batch_norm() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )
    assert families_of(model, torch.zeros(2, 2, 4, 4)) == [
        ("scale", "0", 4),
        ("rescale", "1|4", 4),
        ("translation", "4.weight", 16),
        ("translation", "0.bias", 4),
        ("translation", "4.bias", 1),
    ]


def test_families_of_a_residual_stream() -> None:
    assert families_of(mixer(RMSNorm, True), torch.zeros(2, 4, 5), "mse") == [
        ("scale", "embed+place_out+channel_out", 1),
        ("rescale", "norm1|place_in", 1),
        ("rescale", "place_in|place_out", 3),
        ("rescale", "norm2|channel_in", 4),
        ("rescale", "channel_in|channel_out", 3),
        ("rescale", "norm3|head", 4),
    ]


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: torchvision.models.resnet18(num_classes=10), (2, 3, 32, 32)),
        (lambda: torchvision.models.DenseNet(4, (2, 2), 8, num_classes=10), (2, 3, 32, 32)),
        (lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=10), (2, 3, 32, 32)),
        (
            lambda: torchvision.models.VisionTransformer(16, 4, 5, 2, 8, 16, num_classes=10),
            (2, 3, 16, 16),
        ),
        (lambda: vgg(False), (2, 2, 8, 8)),
        (lambda: resnet(False), (2, 2, 8, 8)),
    ],
    ids=["resnet18", "densenet", "shufflenet", "vit", "vgg", "resnet"],
)
def test_names_are_unique_short_and_no_paths(build: Any, shape: tuple[int, ...]) -> None:
    laws = find_laws(build(), torch.zeros(shape), "ce")
    names = [(family.kind, family.layer) for family in laws.families]
    assert len(set(names)) == len(names)
    assert max(len(layer) for _, layer in names) < 130
    assert not any("/" in layer for _, layer in names)
    assert not laws.note


def test_the_laws_of_resnet18() -> None:
    """theory/symmetry.md section 5."""
    laws = find_laws(torchvision.models.resnet18(num_classes=10), torch.zeros(2, 3, 32, 32), "ce")
    assert len(laws.quadratic) == 7_680
    assert laws.lawless == ()
    streams = {f.layer: f for f in laws.of_kind("rescale")}
    first = streams["bn1+layer1.0.bn2+layer1.1.bn2|layer1.0.conv1+…(3 more)"]
    assert len(first) == 64
    assert "layer2.0.downsample.0.weight" in first.parameters


def test_a_module_may_have_a_slash_in_its_name() -> None:
    model = nn.Sequential()
    for name in ("a/b", "a_b"):
        model.add_module(name, nn.Linear(5, 5))
        model.add_module(f"{name} norm", nn.BatchNorm1d(5))
        model.add_module(f"{name} activation", nn.ReLU())
    model.add_module("c", nn.Linear(5, 3))
    assert [layer for _, layer, _ in families_of(model, rows(), "mse")] == [
        "a_b",
        "a_b (2)",
        "a_b norm|a_b",
        "a_b norm|c",
        "a_b.bias",
        "a_b.bias (2)",
    ]


def test_families_cover_all_laws_in_order() -> None:
    laws = find_laws(resnet(True), torch.zeros(2, 2, 8, 8), "ce")
    edges = [(family.start, family.stop) for family in laws.families]
    assert edges[0][0] == 0
    assert edges[-1][1] == len(laws)
    assert all(a[1] == b[0] for a, b in pairwise(edges))
    kinds = [KINDS.index(family.kind) for family in laws.families]
    assert kinds == sorted(kinds)
    quadratic = [family for family in laws.families if family.kind != "translation"]
    assert quadratic[-1].stop == len(laws.quadratic)
    assert set(laws.parameters) == {name for f in laws.families for name in f.parameters}


def test_laws_are_independent() -> None:
    for model in (resnet(False), resnet(True), vgg(True)):
        laws = find_laws(model, torch.zeros(2, 2, 8, 8), "ce")
        for charges in (laws.quadratic, laws.linear):
            assert np.linalg.matrix_rank(charges.matrix.toarray()) == len(charges)


# ---------------------------------------------------------------------- signs and values


def layers(model: nn.Sequential) -> list[Any]:
    """The modules that have weights."""
    return [module for module in model if list(module.parameters())]


def values(laws: Laws, model: nn.Module, layer: str, kind: str) -> np.ndarray:
    parameters = dict(model.named_parameters())
    measured = laws.measure(lambda name: parameters[name].detach())
    (family,) = (f for f in laws.families if (f.kind, f.layer) == (kind, layer))
    return measured[family.units]


@pytest.mark.parametrize(
    ("activation", "degree"), [(nn.ReLU(), 1), (nn.LeakyReLU(), 1), (None, 2), (None, 3)]
)
def test_rescale_laws_count_what_is_read_positively(
    activation: nn.Module | None, degree: int
) -> None:
    power = Net(lambda net, x: x.relu().pow(degree))
    model = two_layers(activation or power)
    laws = find_laws(model, rows(), "mse")
    first, second = layers(model)
    written = first.weight.square().sum(1) + first.bias.square()
    expected = degree * second.weight.square().sum(0) - written
    found = values(laws, model, "0|2", "rescale")
    assert np.allclose(found, expected.detach().double().numpy(), rtol=1e-6)


def test_scale_laws_are_positive() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    laws = find_laws(model, rows(), "mse")
    first, _, _ = layers(model)
    expected = first.weight.square().sum() + first.bias.square().sum()
    assert np.allclose(values(laws, model, "0", "scale"), expected.item(), rtol=1e-6)


def test_rescale_from_a_flattened_convolution_reads_its_blocks() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    laws = find_laws(model, torch.zeros(2, 2, 4, 4), "mse")
    convolution, readout = layers(model)
    written = convolution.weight.square().sum((1, 2, 3)) + convolution.bias.square()
    expected = readout.weight.square().sum(0).view(4, 4).sum(1) - written
    found = values(laws, model, "0|3", "rescale")
    assert np.allclose(found, expected.detach().double().numpy(), rtol=1e-6)


def test_grouped_convolutions_read_within_their_group() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 1, groups=2), nn.Flatten())
    laws = find_laws(model, torch.zeros(2, 2, 1, 1), "mse")
    first, second = layers(model)
    read = second.weight.square().view(2, 3, 2).sum(1).reshape(4)
    expected = read - first.weight.square().flatten(1).sum(1) - first.bias.square()
    found = values(laws, model, "0|2", "rescale")
    assert np.allclose(found, expected.detach().double().numpy(), rtol=1e-6)


def test_translation_laws_are_sums_over_classes() -> None:
    model = two_layers()
    laws = find_laws(model, rows(), "ce")
    weight, bias = (p.detach().double() for p in model[2].parameters())
    assert np.allclose(values(laws, model, "2.weight", "translation"), weight.sum(0).numpy())
    assert np.allclose(values(laws, model, "2.bias", "translation"), bias.sum().item())


def test_exchanged_biases_are_differences() -> None:
    """What one bias of a residual sum gains the other may lose."""
    model = Net(
        lambda net, x: net.head(torch.tanh(net.left(x) + net.right(x.square()))),
        left=nn.Linear(5, 4),
        right=nn.Linear(5, 4),
        head=nn.Linear(4, 3),
    )
    laws = find_laws(model, rows(), "mse")
    parameters = {name: p.detach().double() for name, p in model.named_parameters()}
    expected = parameters["left.bias"] - parameters["right.bias"]
    assert np.allclose(values(laws, model, "left.bias+right.bias", "translation"), expected.numpy())


def test_sizes_are_what_charges_would_be_without_cancellation() -> None:
    model = two_layers()
    laws = find_laws(model, rows(), "ce")
    parameters = dict(model.named_parameters())
    charges, sizes = laws.measure_with_sizes(lambda name: parameters[name].detach())
    assert np.array_equal(charges, laws.measure(lambda name: parameters[name].detach()))
    assert (np.abs(charges) <= sizes * (1 + 1e-12)).all()
    first, second = layers(model)
    written = first.weight.square().sum(1) + first.bias.square()
    expected = written + second.weight.square().sum(0)
    assert np.allclose(sizes[:4], expected.detach().double().numpy(), rtol=1e-6)


def test_charges_of_several_networks_are_those_of_each() -> None:
    """Weights small and large, squares, sums and inner products; to the last bit."""
    wide = nn.Sequential(nn.Linear(5, 300), nn.ReLU(), nn.Linear(300, 250), nn.Linear(250, 3))
    laws = find_laws(wide, rows(), "ce")
    assert {family.kind for family in laws.families} == {"rescale", "balance", "translation"}
    weights = {name: torch.randn(2, *p.shape) for name, p in wide.named_parameters()}
    assert any(weight[0].numel() > 1 << 16 for weight in weights.values())
    reduced = vmap(lambda own: laws.reduced(own.__getitem__))(weights)
    together = laws.combined(reduced.numpy())
    for place in range(2):
        own = {name: weight[place] for name, weight in weights.items()}
        alone = laws.measure_with_sizes(own.__getitem__)
        assert np.array_equal(together[0][place], alone[0])
        assert np.array_equal(together[1][place], alone[1])


# ---------------------------------------------------------------------- reasons


def reasons_of(model: nn.Module, example: Tensor, loss: str = "mse") -> dict[str, str]:
    return dict(find_laws(model, example, loss).lawless)


@pytest.mark.parametrize(
    ("activation", "why"),
    [
        (nn.Tanh(), "tanh does not preserve its scale"),
        (nn.GELU(), "gelu does not preserve its scale"),
        (nn.Softplus(), "softplus does not preserve its scale"),
    ],
)
def test_the_operation_that_takes_a_law_is_named(activation: nn.Module, why: str) -> None:
    reasons = reasons_of(two_layers(activation), rows())
    assert reasons["0.weight"] == reasons["0.bias"] == why
    assert reasons["2.bias"] == "it feeds the model's output, whose scale the loss fixes"


def test_attention_and_computed_weights_have_reasons() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        q, k, v = net.q(x), net.k(x), net.v(x)
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return torch.nn.functional.linear(mixed.mean(1), net.weight.exp())

    model = Net(
        forward,
        q=nn.Linear(5, 4),
        k=nn.Linear(5, 4),
        v=nn.Linear(5, 4),
        weight=nn.Parameter(torch.rand(3, 4)),
    )
    reasons = reasons_of(model, torch.rand(2, 6, 5))
    assert "q.weight" not in reasons  # shares laws with k
    assert reasons["weight"] == "exp does not preserve its scale"


def test_every_parameter_has_a_law_or_a_reason() -> None:
    for model in (resnet(False), mixer(nn.LayerNorm, False)):
        shape = (2, 2, 8, 8) if isinstance(model, nn.Sequential) else (2, 4, 5)
        laws = find_laws(model, torch.zeros(shape), "mse")
        named = {name for name, _ in model.named_parameters()}
        assert set(laws.parameters) | {name for name, _ in laws.lawless} == named
        assert not set(laws.parameters) & {name for name, _ in laws.lawless}
        assert all(why for _, why in laws.lawless)


def test_the_table_lists_each_family_once_then_the_rest() -> None:
    table = find_laws(two_layers(), rows(), "mse").table().splitlines()
    assert table == [
        "kind     layer  laws  parameters",
        "rescale  0|2    4     0.weight, 0.bias, 2.weight",
        "4 laws",
        "",
        "parameters without a law",
        "2.bias  it feeds the model's output, whose scale the loss fixes",
    ]


# ---------------------------------------------------------------------- files


def assert_same(left: Laws, right: Laws) -> None:
    for a, b in ((left.quadratic, right.quadratic), (left.linear, right.linear)):
        assert a.reductions == b.reductions
        assert a.matrix.shape == b.matrix.shape
        assert (a.matrix != b.matrix).nnz == 0
    assert left.families == right.families
    assert left.lawless == right.lawless
    assert left.note == right.note
    assert left.table() == right.table()


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: resnet(False), (2, 2, 8, 8)),
        (lambda: mixer(nn.LayerNorm, True), (2, 4, 5)),
        (lambda: two_layers(nn.Tanh()), (2, 5)),
        (lambda: nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4)), (2, 2, 4, 4)),
        (lambda: nn.Flatten(), (2, 5)),
    ],
    ids=["resnet", "mixer", "no quadratic law", "grouped", "no parameters"],
)
@pytest.mark.parametrize("loss", ["ce", "mse"])
def test_laws_survive_a_file(build: Any, shape: tuple[int, ...], loss: str, tmp_path: Path) -> None:
    laws = find_laws(build(), torch.zeros(shape), loss)
    laws.save(tmp_path / "symmetries.h5")
    assert_same(laws, Laws.load(tmp_path / "symmetries.h5"))


def test_a_note_survives_a_file(tmp_path: Path) -> None:
    model = Net(lambda net, x: net.head(x if x.sum() > 0 else -x), head=nn.Linear(5, 3))
    laws = find_laws(model, rows(), "ce")
    laws.save(tmp_path / "symmetries.h5")
    assert_same(laws, Laws.load(tmp_path / "symmetries.h5"))


def test_a_damaged_file_is_the_users_to_know(tmp_path: Path) -> None:
    (tmp_path / "symmetries.h5").write_bytes(b"not HDF5")
    with pytest.raises(UserError, match=r"symmetries\.h5"):
        Laws.load(tmp_path / "symmetries.h5")


# ---------------------------------------------------------------------- any model


def depends_on_data(net: Any, x: Tensor) -> Any:
    h = net.head(x)
    return h if h.sum() > 0 else -h


def selects_by_data(net: Any, x: Tensor) -> Any:
    return net.head(x) + x[x > 0].sum()


def raises(net: Any, x: Tensor) -> Any:
    raise ValueError("\nof two\nlines")


def needs_many_examples(net: Any, x: Tensor) -> Any:
    return net.head(x.view(3, -1, 5)).mean(0)


@pytest.mark.parametrize("forward", [depends_on_data, selects_by_data, raises, needs_many_examples])
def test_a_model_that_cannot_be_traced_has_no_laws_and_one_line(
    forward: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    laws = find_laws(Net(forward, head=nn.Linear(5, 3)), rows(), "ce")
    assert len(laws) == 0
    assert laws.note
    assert "\n" not in laws.note
    assert laws.table() == f"no laws: {laws.note}"
    assert laws.measure(lambda name: torch.zeros(())).shape == (0,)
    assert capfd.readouterr() == ("", "")


def test_laws_that_hold_for_one_batch_size_only_are_no_laws() -> None:
    """The examples' axis is read as features: which neurons mix depends on the batch."""
    model = Net(
        lambda net, x: net.head(torch.relu(net.first(x)).t().reshape(len(x), 4)),
        first=nn.Linear(5, 4),
        head=nn.Linear(4, 3),
    )
    assert families_of(model, rows()) == [
        ("translation", "head.weight", 4),
        ("translation", "head.bias", 1),
    ]
    assert_no_false_law(model, rows(6).double())


def test_examples_moved_and_moved_back_keep_all_laws() -> None:
    model = Net(
        lambda net, x: net.head(torch.relu(net.first(x).flatten(0, 1)).view(len(x), -1, 4).mean(1)),
        first=nn.Linear(5, 4),
        head=nn.Linear(4, 3),
    )
    assert families_of(model, torch.zeros(2, 3, 5))[0] == ("rescale", "first|head", 4)


def test_a_model_may_have_no_parameters() -> None:
    laws = find_laws(nn.Flatten(), torch.zeros(2, 3), "ce")
    assert len(laws) == 0
    assert not laws.families
    assert not laws.lawless


def test_integers_as_input() -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(20, 3))
    found = families_of(model, torch.zeros(2, 5, dtype=torch.long), "mse")
    assert found == [("rescale", "0|2", 4), ("balance", "0|2", 10)]


class Keeper(nn.Module):
    """A model that keeps what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)
        self.drop = nn.Dropout()
        self.history: list[Tensor] = []
        self.named: dict[str, Tensor] = {}
        self.calls = 0

    def forward(self, x: Tensor) -> Any:
        self.hidden = self.drop(torch.relu(self.norm(self.first(x))))
        self.history.append(self.hidden)
        self.named["hidden"] = self.hidden
        self.calls += 1
        return self.head(self.hidden)


@pytest.mark.parametrize("called_before", [False, True])
def test_the_model_is_left_as_it_was(called_before: bool) -> None:
    model = Keeper()
    example = rows()
    if called_before:
        model(example)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes, history, random = dict(vars(model)), list(model.history), torch.get_rng_state()
    laws = find_laws(model, example, "ce")
    assert len(laws.quadratic) == 8
    assert vars(model) == attributes
    assert [id(tensor) for tensor in model.history] == [id(tensor) for tensor in history]
    assert len(model.named) == model.calls == called_before
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert all(module.training for module in model.modules())


def test_the_same_model_has_the_same_laws() -> None:
    model = resnet(False)
    first, second = (find_laws(model, torch.zeros(2, 2, 8, 8), "ce") for _ in range(2))
    assert_same(first, second)

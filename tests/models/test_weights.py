"""Weights from files: which are taken, which are refused."""

import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from Models import ModelConfig, build_model
from Models.weights import _torchvisions_name, load_pretrained
from Utils.config import validate
from Utils.errors import UserError

SHAPE, FLAGS = (1, 4, 4), {"model": "fc-bn", "depth": 3, "width": 5}


def build(**flags: Any) -> nn.Module:
    return build_model(validate(ModelConfig, {**FLAGS, **flags}, "test"), SHAPE, 3)


def another() -> nn.Module:
    """The same architecture with weights and statistics of its own."""
    model = build(seed=7)
    model(torch.randn(9, *SHAPE))
    return model


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "weights.tar"


def same(model: nn.Module, state: dict[str, Tensor]) -> bool:
    mine = model.state_dict()
    return all(torch.equal(mine[name].double(), tensor.double()) for name, tensor in state.items())


# ---------------------------------------------------------------------- --restore-path


@pytest.mark.parametrize("form", ["checkpoint", "state dict", "parallel", "old", "before zip"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_are_those_of_the_file(form: str, dtype: str, file: Path) -> None:
    state = dict(another().state_dict())
    content: Any = state
    if form == "checkpoint":
        content = {"step": 12, "model_state_dict": state, "optimizer_state_dict": {}}
    elif form == "parallel":
        content = {"model_state_dict": {f"module.{name}": t for name, t in state.items()}}
    elif form == "old":  # before torch counted batches
        content = {name: t for name, t in state.items() if not name.endswith("_tracked")}
    torch.save(content, file, _use_new_zipfile_serialization=form != "before zip")
    model = build(restore_path=str(file), dtype=dtype)
    assert same(model, {name: t for name, t in state.items() if not name.endswith("_tracked")})
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}
    assert all(p.requires_grad for p in model.parameters())
    assert not same(build(dtype=dtype), state)


UPSTREAM = {
    "layer1.0.conv1.": "conv2_x.0.residual_function.0.",
    "layer1.0.bn1.": "conv2_x.0.residual_function.1.",
    "layer1.0.conv2.": "conv2_x.0.residual_function.3.",
    "layer1.0.bn2.": "conv2_x.0.residual_function.4.",
    "layer1.0.conv3.": "conv2_x.0.residual_function.6.",
    "layer1.0.bn3.": "conv2_x.0.residual_function.7.",
    "layer1.0.downsample.0.": "conv2_x.0.shortcut.0.",
    "layer4.2.conv1.": "conv5_x.2.residual_function.0.",
    "conv1.": "conv1.0.",
    "bn1.": "conv1.1.",
}
NOT_NORMALISED = {
    "layer1.0.conv2.": "conv2_x.0.residual_function.2.",
    "layer1.0.conv3.": "conv2_x.0.residual_function.4.",
}


@pytest.mark.parametrize("suffix", ["", "-nobn"])
def test_upstreams_names_in_resnets_are_understood(suffix: str) -> None:
    names = {**UPSTREAM, **(NOT_NORMALISED if suffix else {})}
    config = {"model": f"resnet50{suffix}", "model_class": "tinyimagenet"}
    with torch.device("meta"):
        state = build_model(validate(ModelConfig, config, "test"), SHAPE, 3).state_dict()
    ours = [ours for ours in names if any(name.startswith(ours) for name in state)]
    assert len(ours) == (6 if suffix else 10)
    theirs = {f"{names[start]}weight": start for start in ours}
    for name, start in theirs.items():
        assert _torchvisions_name(name, dict.fromkeys(theirs, torch.empty(0))) == f"{start}weight"


PLACES = {
    "logistic": {"classifier": 1},
    "fc": {"fc1": 1, "fc2": 3, "classifier": 5},
    "fc-bn": {"fc1": 1, "bn1": 2, "fc2": 4, "bn2": 5, "classifier": 7},
    "conv": {"conv1": 0, "conv2": 2, "classifier": 5},
}
"""Where upstream's Sequential has the layers of its default class, here of depth 3."""


@pytest.mark.parametrize("model", PLACES)
def test_upstreams_default_class_counts_its_layers(model: str, file: Path) -> None:
    flags = {"model": model} | ({} if model == "logistic" else {"depth": 3, "width": 5})

    def built(**more: Any) -> nn.Module:
        return build_model(validate(ModelConfig, {**flags, **more}, "test"), SHAPE, 3)

    state = built(seed=7).state_dict()
    parts = [(*name.partition("."), tensor) for name, tensor in state.items()]
    theirs = {f"{PLACES[model][layer]}.{rest}": tensor for layer, _, rest, tensor in parts}
    torch.save({"model_state_dict": theirs}, file)
    assert same(built(restore_path=str(file)), state)
    theirs["9.weight"] = torch.zeros(1)
    torch.save(theirs, file)
    with pytest.raises(UserError, match=r"does not fit the model: unexpected: 9\.weight; give"):
        built(restore_path=str(file))


def test_a_model_of_ones_own_can_be_restored(file: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import torch\ndef f(s, n): return torch.nn.Sequential("
        "torch.nn.Flatten(), torch.nn.Linear(16, n))\n"
    )
    torch.save({"1.weight": torch.ones(3, 16), "1.bias": torch.zeros(3)}, file)
    flags = {"model": f"{tmp_path / 'own.py'}:f", "restore_path": str(file)}
    model = build_model(validate(ModelConfig, flags, "test"), SHAPE, 3)
    assert model(torch.ones(1, *SHAPE)).tolist() == [[16.0] * 3]


def test_the_architecture_alone_needs_no_file() -> None:
    config = validate(ModelConfig, {**FLAGS, "restore_path": "no/such/file"}, "test")
    assert same(build_model(config, SHAPE, 3, weights=False), build().state_dict())


def renamed(state: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("fc1", "layer"): tensor for name, tensor in state.items()}


def widened(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "fc2.weight": torch.zeros(5, 6)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            renamed,
            r"does not fit the model: missing: fc1\.weight, fc1\.bias; "
            r"unexpected: layer\.weight, layer\.bias; give a file of the same model$",
        ),
        (widened, r"model: of another shape: fc2\.weight \[5, 6\], not \[5, 5\]; give"),
        (lambda s: {"fc1.weight": s["fc1.weight"]}, r"missing: fc1\.bias, .* and \d+ more; give"),
        (lambda s: {}, "holds no weights; give a checkpoint or a state dict"),
        (lambda s: {"epoch": 3}, "holds no weights"),
        (lambda s: s["fc1.weight"], "holds no weights"),
        (lambda s: Path("x"), "holds more than tensors and plain containers.* run code"),
    ],
)
def test_other_contents_are_refused(change: Any, message: str, file: Path) -> None:
    torch.save(change(dict(another().state_dict())), file)
    with pytest.raises(UserError, match=message) as caught:
        build(restore_path=str(file))
    assert str(caught.value).startswith(f"--restore-path {file}")
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(file: Path) -> None:
    with pytest.raises(UserError, match=r"weights\.tar: there is no such file; give a checkpoint"):
        build(restore_path=str(file))
    with pytest.raises(UserError, match="is a folder"):
        build(restore_path=str(file.parent))
    torch.save(another().state_dict(), file)
    whole = file.read_bytes()
    for content in (b"", b"weights", whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"is damaged|no file of torch\.save") as caught:
            build(restore_path=str(file))
        assert "\n" not in str(caught.value)


def test_weights_have_one_origin(file: Path) -> None:
    flags = {"model": "resnet18", "model_class": "imagenet", "pretrained": True}
    with pytest.raises(UserError, match="--pretrained and --restore-path are two origins"):
        validate(ModelConfig, {**flags, "restore_path": str(file)}, "test")
    with pytest.raises(UserError, match=r"^--pretrained: not read by --model resnet18; leave it"):
        validate(ModelConfig, {**flags, "model_class": "tinyimagenet"}, "test")


# ---------------------------------------------------------------------- --pretrained

RESNET = "resnet18-f37072fd.pth"
"""What torchvision calls the file; its documentation lists the address."""


def pretrained(folder: Path, classes: int) -> nn.Module:
    flags = {"model": "resnet18", "model_class": "imagenet", "pretrained": True}
    config = validate(ModelConfig, {**flags, "model_dir": str(folder)}, "test")
    return build_model(config, (3, 32, 32), classes)


def test_without_network_the_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(url: str, target: str, hash_prefix: str) -> None:
        assert url == f"https://download.pytorch.org/models/{RESNET}"
        assert (target, hash_prefix) == (str(tmp_path / "new" / RESNET), "f37072fd")
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    message = f"put the file {RESNET} into {tmp_path / 'new'}, or choose its folder with --model-d"
    with pytest.raises(UserError, match=message):
        pretrained(tmp_path / "new", 1000)


@pytest.mark.parametrize("classes", [1000, 10])
def test_the_file_in_the_folder_is_used(tmp_path: Path, classes: int) -> None:
    torch.manual_seed(5)
    state = dict(torchvision.models.resnet18().state_dict())
    torch.save(state, tmp_path / RESNET)
    model = pretrained(tmp_path, classes)
    if classes != 1000:
        fresh = validate(ModelConfig, {"model": "resnet18", "model_class": "imagenet"}, "test")
        head = build_model(fresh, (3, 32, 32), classes).get_submodule("fc").state_dict()
        state |= {f"fc.{name}": tensor for name, tensor in head.items()}
    assert same(model, state)


def test_other_weights_under_that_name_are_refused(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / RESNET)
    with pytest.raises(
        UserError, match=rf"--pretrained .*{RESNET} does not fit the model: missing"
    ):
        pretrained(tmp_path, 10)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"a folder is needed|file, not a folder"):
        load_pretrained(nn.Linear(1, 1), "resnet18", str(tmp_path / "file"))

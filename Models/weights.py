"""Weights from files: torchvision's, and those of checkpoints."""

import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from Utils.errors import UserError, storage_error

StateDict = Mapping[str, Tensor]


def load_pretrained(model: nn.Module, architecture: str, model_dir: str) -> None:
    """Give ``model`` torchvision's weights, trained on ImageNet with its first recipe.

    The last layer keeps its initial weights where the number of classes is not ImageNet's 1000.

    Args:
        model: made by torchvision's constructor.
        architecture: torchvision's name for it.
        model_dir: the folder that holds the file, or is given it.

    Raises:
        UserError: the file is missing and cannot be downloaded, or is damaged.
    """
    url: str = torchvision.models.get_model_weights(architecture)["IMAGENET1K_V1"].url
    path = Path(model_dir).expanduser() / url.rpartition("/")[2]
    if not path.exists():
        _download(url, path)
    state = dict(_read_state_dict(path, f"--pretrained {path}"))
    own = model.state_dict()
    for name in list(own)[-2:]:  # the last layer's weight and bias
        if name in state and len(state[name]) != len(own[name]):
            state[name] = own[name]
    _load(model, state, f"--pretrained {path}")


def _download(url: str, path: Path) -> None:
    """Fetch a file whose name ends with the beginning of its SHA-256."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, path.parent) from error
    try:
        torch.hub.download_url_to_file(url, str(path), path.stem.rpartition("-")[2])
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"--pretrained: {url} cannot be downloaded ({' '.join(str(error).split())}); "
            f"put the file {path.name} into {path.parent}, or choose its folder with --model-dir"
        ) from error


def restore(model: nn.Module, file: str) -> None:
    """Give ``model`` the parameters and buffers in a file, converted to its number format.

    Args:
        model: the network.
        file: a checkpoint of train.py or of upstream neural-mechanics, whose weights are its
            ``model_state_dict``, or a state dict itself; saved from ``DataParallel`` or not.

    Raises:
        UserError: the file cannot be read, or holds another model's weights.
    """
    flag = f"--restore-path {file}"
    state = _read_state_dict(Path(file).expanduser(), flag)
    _load(model, with_our_names(model, state), flag)


def with_our_names(model: nn.Module, state: StateDict) -> dict[str, Tensor]:
    """The tensors of a state dict by the names they have in ``model``, in the same order.

    ``module.`` of DataParallel is taken off, and upstream neural-mechanics' names of the same
    tensors are translated: its default class counts the modules of a Sequential, its small
    ResNets have names of their own; its VGGs and torchvision's networks need nothing.

    Args:
        model: the network here; may be on the device "meta".
        state: by any of these names; others are kept.
    """
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    if any(name.startswith("conv2_x.") for name in state):
        return {_torchvisions_name(name, state): tensor for name, tensor in state.items()}
    if isinstance(model, nn.Sequential) and all(name[:1].isdecimal() for name in state):
        names = [name for name, _ in model.named_children()]
        return {_named_place(name, names): tensor for name, tensor in state.items()}
    return dict(state)


def _named_place(name: str, names: Sequence[str]) -> str:
    """``3.weight`` by the name of the module at place 3."""
    place, _, rest = name.partition(".")
    known = place.isdecimal() and int(place) < len(names)
    return f"{names[int(place)]}.{rest}" if known else name


def _torchvisions_name(name: str, state: StateDict) -> str:
    """What torchvision calls a tensor of upstream's small ResNets.

    There a block is a list of convolutions, normalisations if there are any, and ReLUs.
    """
    layers = ("conv", "bn") if "conv1.1.weight" in state else ("conv",)

    def layer(match: re.Match[str]) -> str:
        which, kind = divmod(int(match[1]), len(layers) + 1)
        return f".{layers[kind]}{which + 1}."

    name = re.sub(r"^conv1\.([01])\.", lambda m: ("conv1.", "bn1.")[int(m[1])], name)
    name = re.sub(r"^conv(\d)_x\.", lambda m: f"layer{int(m[1]) - 1}.", name)
    name = re.sub(r"\.residual_function\.(\d)\.", layer, name)
    return name.replace(".shortcut.", ".downsample.")


def _read_state_dict(path: Path, flag: str) -> StateDict:
    """The weights in a file, on the CPU, read without running any code."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{flag}: there is no such file; give a checkpoint") from None
    except OSError as error:
        raise storage_error(error, path) from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{flag} holds more than tensors and plain containers, or is no file of torch.save; "
            "it is not read, because that could run code; save the state dict alone"
        ) from error
    except Exception as error:  # damaged bytes can raise anything
        reason = next(iter(str(error).splitlines()), "no message")
        raise UserError(f"{flag} is damaged ({reason}); give another file") from error
    state = content.get("model_state_dict", content) if isinstance(content, dict) else content
    if not (isinstance(state, dict) and state) or not all(
        isinstance(tensor, Tensor) for tensor in state.values()
    ):
        raise UserError(f"{flag} holds no weights; give a checkpoint or a state dict")
    return state


def _load(model: nn.Module, state: StateDict, flag: str) -> None:
    # Files from before torch 0.4.1 lack what batch normalisation with momentum never reads.
    own = model.state_dict().items()
    counters = {name: tensor for name, tensor in own if name.endswith("num_batches_tracked")}
    state = {**counters, **state}
    if found := misfit(model, state):
        raise UserError(f"{flag} does not fit the model: {found}; give a file of the same model")
    model.load_state_dict(dict(state))


def misfit(model: nn.Module, state: StateDict) -> str:
    """Why a state dict is not the model's: a few names of each kind; empty if it is."""
    own = model.state_dict()
    shapes = [
        f"{name} {list(state[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    problems = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "of another shape": shapes,
    }
    return "; ".join(f"{what}: {_some(names)}" for what, names in problems.items() if names)


def _some(names: Iterable[str], most: int = 3) -> str:
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest

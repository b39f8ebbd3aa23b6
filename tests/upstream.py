"""Run folders as neural-mechanics writes them: its networks, its optimizer, its files.

Written anew from what its files contain; batches are random numbers, as no test reads data.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import MultiStepLR

from Utils.rundir import RunFolder

FLAGS: dict[str, Any] = {
    "data_dir": "data",
    "dataset": "mnist",
    "dampening": 0.0,
    "epochs": 2,
    "expid": "x",
    "experiment": "e",
    "gpu": 0,
    "loss": "ce",
    "lr": 0.1,
    "lr_drop_rate": 0.1,
    "lr_drops": [],
    "model": "fc",
    "model_class": "default",
    "momentum": 0.0,
    "nesterov": False,
    "optimizer": "custom_sgd",
    "overwrite": False,
    "pretrained": False,
    "save": True,
    "save_buffers": [],
    "save_dir": "results",
    "save_freq": None,
    "seed": 1,
    "test_batch_size": 256,
    "tpu": None,
    "train_batch_size": 20_000,
    "verbose": 0,
    "wd": 0.0,
    "workers": 4,
}
"""What argparse makes of few flags; 20,000 of MNIST's images are 3 steps per epoch."""

SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}


def dense(hidden: int, batch_norm: bool) -> nn.Module:
    """logistic, fc and fc-bn."""
    layers: list[nn.Module] = [nn.Flatten()]
    width = 784
    for _ in range(hidden):
        norm = [nn.BatchNorm1d(100)] if batch_norm else []
        layers += [nn.Linear(width, 100), *norm, nn.ReLU()]
        width = 100
    return nn.Sequential(*layers, nn.Linear(width, 10))


def convolutional() -> nn.Module:
    """conv."""
    first, second = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
    classifier = nn.Linear(32 * 784, 10)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), classifier)


class VGG11(nn.Module):
    """tinyimagenet's vgg11 for 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        features: list[nn.Module] = []
        channels = 3
        for stage in ([64], [128], [256] * 2, [512] * 2, [512] * 2):
            for outputs in stage:
                features += [nn.Conv2d(channels, outputs, 3, padding=1), nn.ReLU()]
                channels = outputs
            features.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*features)
        sizes = [(512, 256), (256, 256)]
        hidden = [m for a, b in sizes for m in (nn.Linear(a, b), nn.ReLU(), nn.Dropout())]
        self.classifier = nn.Sequential(*hidden, nn.Linear(256, 10))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.residual_function = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            path = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(path, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.residual_function(x) + self.shortcut(x))


class ResNet18(nn.Module):
    """tinyimagenet's resnet18 for 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        stem = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.conv1 = nn.Sequential(stem, nn.BatchNorm2d(64), nn.ReLU())
        channels = 64
        for i, outputs in enumerate((64, 128, 256, 512)):
            first = Block(channels, outputs, 1 if i == 0 else 2)
            self.add_module(f"conv{i + 2}_x", nn.Sequential(first, Block(outputs, outputs, 1)))
            channels = outputs
        self.fc = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for i in range(2, 6):
            x = self.get_submodule(f"conv{i}_x")(x)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


MODELS = {
    "logistic": lambda: dense(0, False),
    "fc": lambda: dense(5, False),
    "fc-bn": lambda: dense(5, True),
    "conv": convolutional,
    "vgg11": VGG11,
    "resnet18": ResNet18,
}


class CustomSGD(torch.optim.Optimizer):
    """``custom_sgd``: SGD whose first velocity is dampened, too, and its integrals of squares.

    Attributes:
        squares: of every step by parameter, in float64.
    """

    def __init__(self, model: nn.Module, flags: dict[str, Any]):
        names = ("lr", "momentum", "dampening", "nesterov")
        options = {name: flags[name] for name in names} | {"weight_decay": flags["wd"]}
        super().__init__(model.parameters(), options)
        self.save_buffers = flags["save_buffers"]
        self.squares: list[list[Tensor]] = []
        lr, beta = flags["lr"] * (1 - flags["dampening"]), flags["momentum"]
        gamma = (1 - beta) / (lr * (1 + beta))
        omega = np.sqrt(4 * flags["wd"] / (lr * (1 + beta)))
        self.rates = 2 * flags["wd"], gamma, omega

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        group, squares = self.param_groups[0], []
        for p in group["params"]:
            state, d = self.state[p], p.grad + group["weight_decay"] * p
            if group["momentum"]:
                old = state.get("momentum_buffer", torch.zeros_like(p))
                v = group["momentum"] * old + (1 - group["dampening"]) * d
                state["momentum_buffer"] = v
                d = d + group["momentum"] * v if group["nesterov"] else v
            p.sub_(group["lr"] * d)
            state["step"] = state.get("step", -1) + 1
            time = group["lr"] * (1 - group["dampening"]) * state["step"]
            self._integrate(time, d, state.setdefault("buffers", {}))
            squares.append(d.double() ** 2)
        self.squares.append(squares)

    def _integrate(self, time: float, d: Tensor, buffers: dict[str, Tensor]) -> None:
        rate, gamma, omega = self.rates
        delta = np.sqrt(abs(gamma**2 - omega**2))
        if gamma < omega:
            both = np.exp(gamma * time) * np.array([np.cos(delta * time), np.sin(delta * time)])
        elif gamma == omega:
            both = np.exp(gamma * time) * np.array([1.0, time])
        else:
            both = np.exp(np.array([gamma - delta, gamma + delta]) * time)
        grown = {"sgd": {"integral_buffer": np.exp(rate * time)}}
        grown["mom"] = {"integral_buffer_1": both[0], "integral_buffer_2": both[1]}
        for kind in ("sgd", "mom"):
            if kind in self.save_buffers:
                for name, weight in grown[kind].items():
                    new = d**2 * float(weight)
                    buffers[name] = buffers[name] + new if name in buffers else new


@dataclass
class Trained:
    """A run of neural-mechanics.

    Attributes:
        run: its folder.
        model: the network after training, with their names.
        squares: of every step by parameter, if its optimizer was ``custom_sgd``.
        rates: the learning rate of every step.
    """

    run: RunFolder
    model: nn.Module
    squares: list[dict[str, Tensor]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def weights(self, step: int) -> dict[str, Tensor]:
        """The state dict of a checkpoint in float64."""
        content = torch.load(self.run.checkpoint(step), weights_only=False)
        return {name: tensor.double() for name, tensor in content["model_state_dict"].items()}


def train(
    path: Path, dtype: torch.dtype = torch.float32, legacy: bool = False, **flags: Any
) -> Trained:
    """Train as ``train.py`` of neural-mechanics does, and leave its files in ``path``."""
    flags = {**FLAGS, **flags}
    run = RunFolder(path)
    run.checkpoint(0).parent.mkdir(parents=True)
    run.hyperparameters.write_text(json.dumps(flags, sort_keys=True, indent=4))
    torch.manual_seed(flags["seed"])
    model = MODELS[flags["model"]]().to(dtype)
    optimizer = _optimizer(model, flags)
    scheduler = MultiStepLR(optimizer, flags["lr_drops"], flags["lr_drop_rate"])
    examples = {"mnist": 60_000, "cifar10": 50_000}[flags["dataset"]]
    per_epoch = -(-examples // flags["train_batch_size"])
    trained = Trained(run, model)

    def save(epoch: int, step: int, metrics: dict[str, Any]) -> None:
        content = {
            "epoch": epoch,
            "step": step,
            "model_state_dict": model.state_dict(),
            "optimizer_state_dict": optimizer.state_dict(),
            "scheduler_state_dict": scheduler.state_dict(),
            **metrics,
        }
        torch.save(content, run.checkpoint(step), _use_new_zipfile_serialization=not legacy)

    evaluated = {"test_loss": 2.5, "accuracy1": np.float64(12.5), "accuracy5": np.float64(50.0)}
    save(0, 0, {"train_loss": 0, **evaluated})
    for epoch in range(flags["epochs"]):
        for batch in range(per_epoch):
            step = epoch * per_epoch + batch + 1
            inputs = torch.randn(8, *SHAPES[flags["dataset"]], dtype=dtype)
            loss = functional.cross_entropy(model(inputs), torch.randint(0, 10, (8,)))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            trained.rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if flags["save_freq"] and step % flags["save_freq"] == 0:
                save(epoch, step, {})
        save(epoch, step, {"train_loss": loss.item(), **evaluated})
        scheduler.step()
    names = [name for name, _ in model.named_parameters()]
    for squares in getattr(optimizer, "squares", []):
        trained.squares.append(dict(zip(names, squares, strict=True)))
    return trained


def _optimizer(model: nn.Module, flags: dict[str, Any]) -> torch.optim.Optimizer:
    """Made as its ``utils/load.py`` makes it."""
    parameters, common = model.parameters(), {"lr": flags["lr"], "weight_decay": flags["wd"]}
    options = {name: flags[name] for name in ("momentum", "dampening", "nesterov")}
    if flags["optimizer"] == "custom_sgd":
        return CustomSGD(model, flags)
    if flags["optimizer"] == "momentum":
        return torch.optim.SGD(parameters, **common, **options)
    if flags["optimizer"] == "adam":
        return torch.optim.Adam(parameters, **common)
    return torch.optim.SGD(parameters, **common)

"""Which networks are trained for which figure, at the paper's scale and at a small one.

The hyper-parameters of the large scale are those of Kunin et al. (ICLR 2021) and of the scripts
in the history of its repository; the small one keeps what the figure shows: as many multiples of
the times 1/λ and 1/(1−β) pass, by less data, smaller networks and larger λ. Points of the same
name are the same run, trained once for all figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Scale = Literal["small", "paper"]


@dataclass(frozen=True)
class Point:
    """One run.

    Attributes:
        expid: its name.
        flags: of train.py, without those that name the run.
        label: what distinguishes it within its figure, as mathtext.
        cache_flags: of cache.py, beside the metrics.
    """

    expid: str
    flags: str
    label: str = field(compare=False)
    cache_flags: str = ""


@dataclass(frozen=True)
class Cell:
    """One panel: a layer's curves of one metric of one run.

    Attributes:
        point: the run.
        metric: a name in the registry.
        layer: the position of the layer, or its name.
    """

    point: Point
    metric: str
    layer: int | str = 0


@dataclass(frozen=True)
class Grid:
    """A page of panels, over the time of gradient flow or over steps."""

    title: str
    rows: Sequence[Sequence[Cell]]
    x: Literal["time", "step"] = "time"


def motivation(scale: Scale) -> list[Grid]:
    """Single weights beside the norms of channels, without and with normalisation."""
    plain, normalised = (
        _sgd(scale, bn, 1e-3 if scale == "small" else 1e-4) for bn in (False, True)
    )
    second = {False: "conv2.weight", True: "features.3.weight"}[scale == "paper"]
    rows = [
        [Cell(normalised, "network", second), Cell(normalised, "scale", 1)],
        [Cell(plain, "network", 2), Cell(plain, "rescale", 0)],
    ]
    return [Grid("Single weights, and what their symmetries make of them", rows)]


def sgd(scale: Scale) -> list[Grid]:
    """The three symmetries under weight decay λ and plain SGD."""
    decays = (0.0, 1e-3, 5e-3, 1e-2) if scale == "small" else (0.0, 1e-4, 5e-4, 1e-3)
    plain, normalised = ([_sgd(scale, bn, wd) for wd in decays] for bn in (False, True))
    rows = _of_symmetries(plain, normalised, 3 if scale == "paper" else 0)
    return [Grid("SGD with weight decay", rows)]


def early(scale: Scale) -> list[Grid]:
    """An earlier grid on CIFAR-100; at the small scale, fully connected networks."""
    decays = (0.0, 1e-3, 1e-2) if scale == "small" else (0.0, 1e-4, 1e-3, 1e-2)
    rows = [
        [Cell(_early(scale, bn, wd), metric, 1) for wd in decays]
        for metric, bn in (("scale", True), ("rescale", False))
    ]
    return [Grid("Earlier grid, SGD with weight decay", rows)]


def momentum(scale: Scale) -> list[Grid]:
    """Momentum β by weight decay λ, from overdamped to underdamped; dampening on own pages."""
    betas = (0.8, 0.9, 0.99)
    decays = (0.0, 1e-3, 1e-2) if scale == "small" else (0.0, 1e-4, 5e-4, 1e-3)
    always = scale == "small"  # one small network with normalisation has all three symmetries
    grids = []
    for dampening in (0.0,) if scale == "small" else (0.0, 0.01):
        for metric, bn in (("translation", always), ("rescale", always), ("scale", True)):
            layer = {"translation": 0, "rescale": 3 if scale == "paper" else 0, "scale": 1}[metric]
            points = [[_momentum(scale, bn, b, dampening, wd) for wd in decays] for b in betas]
            cells = [[Cell(point, metric, layer) for point in row] for row in points]
            extra = rf", $\alpha = {dampening:g}$" if dampening else ""
            grids.append(Grid(f"{metric.title()} with momentum{extra}", cells))
    return grids


def drops(scale: Scale) -> list[Grid]:
    """Learning rates that differ, and one that drops."""
    points = _drops(scale)
    metrics = ("scale", "rescale")
    rows = [[Cell(point, metric, 1) for point in points] for metric in metrics]
    return [Grid("Learning rates", rows, x="step")]


def long(scale: Scale) -> list[Grid]:
    """A run ten times as long, far beyond the time 1/λ in which the start is forgotten."""
    epochs, wd = (200, 1e-2) if scale == "small" else (1000, 1e-4)
    saves = " --save-at log" if scale == "small" else " --save-freq 2500"
    rows = []
    for metric, bn in (("scale", True), ("rescale", False)):
        network = _small_fc(bn) if scale == "small" else _network(scale, bn, "cifar100")
        rest = f"--lr 0.1 --wd {wd:g} --epochs {epochs}{saves}"
        point = Point(f"long{'-bn' * bn}", f"{network} {rest}", f"{epochs} epochs")
        rows.append([Cell(point, metric, layer) for layer in (0, 1)])
    return [Grid("A long run", rows)]


def batches(scale: Scale) -> list[Grid]:
    """Batch sizes: the kinetic term shrinks with the noise of the gradient."""
    sizes = (32, 128, 512) if scale == "small" else (128, 1024, 8192)
    epochs, wd = (20, 1e-2) if scale == "small" else (100, 1e-4)
    points = [
        Point(
            f"batch-{size}",
            f"{_network(scale, True, 'cifar100')} --lr 0.1 --wd {wd:g} --epochs {epochs} "
            f"--train-batch-size {size} --save-at log",
            f"$S = {size}$",
        )
        for size in sizes
    ]
    rows = [[Cell(point, metric, 1) for point in points] for metric in ("scale", "rescale")]
    return [Grid("Batch sizes", rows)]


def phase_by_decay(scale: Scale) -> list[Grid]:
    """Phase portraits of a fully connected network under momentum, by weight decay."""
    small = scale == "small"
    network = f"{_small_fc(True)} --lr 0.01" if small else "--dataset mnist --model fc-bn --lr 1e-3"
    epochs = 30 if small else 100
    decays = (0.0, 1e-2, 1e-1) if small else (0.0, 1e-4, 1e-3, 1e-2, 1e-1)
    rest = f"--optimizer momentum --momentum 0.9 --epochs {epochs} --save-at log"
    points = [
        Point(f"phase-wd{wd:g}", f"{network} {rest} --wd {wd:g} --save-buffers update", "")
        for wd in decays
    ]
    return [Grid(point.expid, [[Cell(point, "phase")]]) for point in points]


def phase(scale: Scale) -> list[Grid]:
    """The runs whose phase portraits are drawn, each on a page of its own."""
    return [Grid(point.expid, [[Cell(point, "phase")]]) for point in _drops(scale)]


def diffusion(scale: Scale) -> list[Grid]:
    """Displacements from the middle of a run on, at a constant learning rate; three seeds each.

    The follow-up paper continues from a trained ResNet-18; here the first half of the run trains.
    """
    small = scale == "small"
    network = (
        f"{_small_fc(True)} --lr 0.04 --wd 1e-2 --train-batch-size 64"
        if small
        else (
            "--dataset imagenet --model-class imagenet --model resnet18 --lr 0.1 --wd 1e-4 "
            "--train-batch-size 256"
        )
    )
    per_epoch, epochs = (1437 // 64, 60) if small else (1281167 // 256, 20)
    start = per_epoch * epochs // 2
    lags = {0} | {round(10 ** (k / 5)) for k in range(50)}
    steps = sorted(start + lag + k for lag in lags for k in (0, 1) if start + lag < 2 * start)
    saves = ",".join(map(str, dict.fromkeys(steps)))
    rows = []
    for beta in (0.0, 0.9):
        chosen = f"momentum --momentum {beta:g}" if beta else "sgd"
        rest = f"--optimizer {chosen} --epochs {epochs} --drop-last --save-buffers grad"
        rows.append(
            [
                Cell(
                    Point(
                        f"diffusion-b{beta:g}-s{seed}",
                        f"{network} {rest} --save-at {saves} --seed {seed}",
                        rf"$\beta = {beta:g}$",
                        f"--subset {0 if small else 100}",
                    ),
                    "weights_grads_full",
                )
                for seed in (1, 2, 3)
            ]
        )
    return [Grid("Displacement after training", rows, x="step")]


_LONG = " --train-batch-size 128 --epochs 100 --save-freq 250"
_SHORT = " --train-batch-size 64 --epochs 20 --save-at log"


def _small_fc(bn: bool) -> str:
    return f"--dataset digits --model fc{'-bn' * bn} --depth 3 --width 32"


def _network(scale: Scale, bn: bool, dataset: str = "tiny-imagenet") -> str:
    if scale == "small":
        return f"--dataset digits --model conv{'-bn' * bn} --width 16"
    return f"--dataset {dataset} --model-class tinyimagenet --model vgg16{'-bn' * bn}"


def _sgd(scale: Scale, bn: bool, wd: float) -> Point:
    short = " --train-batch-size 256 --epochs 100 --save-freq 500"
    flags = f"{_network(scale, bn)} --lr 0.1 --wd {wd:g}{_SHORT if scale == 'small' else short}"
    return Point(f"sgd{'-bn' * bn}-wd{wd:g}", flags, rf"$\lambda = {_number(wd)}$")


def _momentum(scale: Scale, bn: bool, beta: float, dampening: float, wd: float) -> Point:
    network, rest = (
        (_small_fc(bn), f" --lr 0.04{_SHORT}")
        if scale == "small"
        else (_network(scale, bn), f" --lr 0.1{_LONG}")
    )
    flags = f"{network}{rest} --optimizer momentum --momentum {beta:g} --wd {wd:g}"
    name = f"momentum{'-bn' * bn}-b{beta:g}-wd{wd:g}"
    if dampening:
        flags, name = f"{flags} --dampening {dampening:g}", f"{name}-a{dampening:g}"
    return Point(name, flags, rf"$\beta = {beta:g},\ \lambda = {_number(wd)}$")


def _early(scale: Scale, bn: bool, wd: float) -> Point:
    small = scale == "small"
    network = _small_fc(bn) if small else _network(scale, bn, "cifar100")
    flags = f"{network} --lr 0.1 --wd {wd:g}{_SHORT if small else _LONG}"
    return Point(f"early{'-bn' * bn}-wd{wd:g}", flags, rf"$\lambda = {_number(wd)}$")


def _drops(scale: Scale) -> list[Point]:
    """Constant learning rates, and drops after a third and two thirds, which are ours.

    The runs keep their updates, from which phase portraits are made.
    """
    small = scale == "small"
    rest = f"--wd {1e-2 if small else 1e-4:g}{_SHORT if small else _LONG} --save-buffers update"
    network = _network(scale, True, "cifar100")
    drops = "7,14" if small else "33,66"
    return [
        Point("rate-0.1", f"{network} --lr 0.1 {rest}", r"$\eta = 0.1$"),
        Point("rate-0.01", f"{network} --lr 0.01 {rest}", r"$\eta = 0.01$"),
        Point("drops", f"{network} --lr 0.1 --lr-drops {drops} {rest}", r"$\eta = 0.1$, dropping"),
    ]


def _of_symmetries(
    plain: Sequence[Point], normalised: Sequence[Point], pair: int
) -> list[list[Cell]]:
    """A row per symmetry: which networks show it, and in which layer."""
    return [
        [Cell(point, "translation", 0) for point in plain],
        [Cell(point, "rescale", pair) for point in plain],
        [Cell(point, "scale", 1) for point in normalised],
    ]


def _number(value: float) -> str:
    """A number as mathtext, powers of ten as such."""
    if not value:
        return "0"
    mantissa, exponent = f"{value:e}".split("e")
    factor = float(mantissa)
    power = f"10^{{{int(exponent)}}}"
    return power if factor == 1 else rf"{factor:g} \times {power}"

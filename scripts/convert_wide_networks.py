"""Turn a YAML configuration of wide-networks into one that ``train.py --config`` reads.

::

    python scripts/convert_wide_networks.py fc_ipllr_mnist.yaml --dataset mnist --output ipllr.yaml
    python train.py --config ipllr.yaml --experiment e --expid x

Which parametrization a network had was chosen by the job that read the file, not by the file;
``--job`` names it. Jobs overwrote values of the file by their own flags and constants: what is
converted is the file. Comments in the output say what has no counterpart.
"""

import sys
from math import ceil
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script, not a module

import yaml
from pydantic import Field

from Data import DATASETS
from Training import TrainConfig
from Utils.cli import parse
from Utils.config import Config, validate
from Utils.errors import UserError, run_stage
from Utils.mappings import read_mapping
from Utils.storage import write_atomically

_PARAMS = {
    "fc_mup": "mup",
    "fc_ipllr": "ipllr",
    "standard_fc_ip": "ip",
    "fc_ip_non_centered": "ip-non-centered",
    "fc_ip_bias": "ipllr-bias",
    "fc_ntk": "ntk",
}
"""Our parametrizations by the names of their jobs, without ``_run.py``."""

_LOSSES = {"cross_entropy": "ce", "mse": "mse"}

_EXAMPLES = {"mnist": 60_000, "cifar10": 50_000, "cifar100": 50_000}

_TRANSLATED = frozenset(
    {"name", "architecture", "activation", "loss", "optimizer", "scheduler", "initializer"}
    | {"normalization", "training"}
)


class ConvertConfig(Config):
    """Turn a YAML configuration of wide-networks into one for train.py --config."""

    file: str = Field("", description="The configuration; as the first argument, without --file.")
    job: Literal[
        "auto", "fc_mup", "fc_ipllr", "standard_fc_ip", "fc_ip_non_centered", "fc_ip_bias", "fc_ntk"
    ] = Field("auto", description="The job that read it; auto: fc_ipllr with a warm-up, else IP.")
    dataset: Literal["mnist", "cifar10", "cifar100"] = Field(
        "mnist", description="What the job trained on, flattened and in grey."
    )
    output: str = Field("", description="Where to write; to the terminal without it.")
    overwrite: bool = Field(False, description="Replace that file.")


def convert(theirs: dict[str, Any], job: str, dataset: str) -> tuple[dict[str, Any], list[str]]:
    """Our flags, and remarks on what they do not say.

    Args:
        theirs: the content of the file.
        job: a key of the jobs, or "auto".
        dataset: its name, which is the same here.

    Raises:
        UserError: something in the file has no counterpart that would give the same network.
    """
    unknown = sorted(set(theirs) - _TRANSLATED)
    if unknown:
        raise UserError(f"{unknown[0]}: not a key of wide-networks' fully connected networks")
    architecture, training = _part(theirs, "architecture"), _part(theirs, "training")
    scheduler = _part(theirs, "scheduler")
    warm = scheduler.get("name") in {"warmup_switch", "warmup_switch_bias"}
    if job == "auto":
        job = "fc_ipllr" if warm else "standard_fc_ip"
    if theirs.get("normalization"):
        raise UserError(
            "normalization: layers between are not converted; use --model fc-bn by hand"
        )
    batch_size = int(training.get("batch_size") or 512)
    flags: dict[str, Any] = {
        "dataset": dataset,
        "model": "fc",
        "param": _PARAMS[job],
        "depth": int(_needed(architecture, "architecture", "n_layers")),
        "width": int(_needed(architecture, "architecture", "width")),
        "bias": bool(architecture.get("bias")) or job == "fc_ip_bias",
        "nonlinearity": str(_part(theirs, "activation").get("name") or "relu").replace("_", "-"),
        "loss": _loss(_part(theirs, "loss").get("name") or "cross_entropy"),
        **_optimizer(_part(theirs, "optimizer")),
        "train_batch_size": batch_size,
        "epochs": _epochs(training, batch_size, dataset),
    }
    remarks = _remarks(architecture, scheduler, dataset, flags)
    validate(TrainConfig, flags, "converted")  # nothing is written that train.py would refuse
    return flags, remarks


def _part(theirs: dict[str, Any], name: str) -> dict[str, Any]:
    part = theirs.get(name) or {}
    if not isinstance(part, dict):
        raise UserError(f"{name}: {part!r} where wide-networks has several keys")
    return part


def _needed(part: dict[str, Any], where: str, name: str) -> Any:
    if part.get(name) is None:
        raise UserError(f"{where}.{name} is missing in the file; add it")
    return part[name]


def _loss(name: str) -> str:
    if name not in _LOSSES:
        raise UserError(f"loss {name}: there is none here; there are {' and '.join(_LOSSES)}")
    return _LOSSES[name]


def _optimizer(optimizer: dict[str, Any]) -> dict[str, Any]:
    params = dict(optimizer.get("params") or {})
    name = str(optimizer.get("name") or "sgd")
    flags = {"lr": float(_needed(params, "optimizer.params", "lr"))}
    params.pop("lr")
    if params.get("momentum"):
        flags["momentum"], name = float(params.pop("momentum")), "momentum"
    if params.get("weight_decay"):
        flags["wd"] = float(params.pop("weight_decay"))
    left = sorted(key for key, value in params.items() if value)
    if left:
        raise UserError(
            f"optimizer.params.{left[0]}: not converted; give train.py its flag by hand"
        )
    return {"optimizer": "rms" if name == "rmsprop" else name, **flags}


def _epochs(training: dict[str, Any], batch_size: int, dataset: str) -> int:
    """Training ended after so many epochs or steps, whichever came first."""
    per_epoch = ceil(_EXAMPLES[dataset] / batch_size)
    epochs = int(training.get("n_epochs") or 25)
    steps = float(training.get("n_steps") or epochs * per_epoch)
    return min(epochs, ceil(steps / per_epoch))


def _remarks(
    architecture: dict[str, Any],
    scheduler: dict[str, Any],
    dataset: str,
    flags: dict[str, Any],
) -> list[str]:
    shape = DATASETS[dataset].input_shape
    remarks = [f"images of {'x'.join(map(str, shape))} are taken as they are, neither grey nor cut"]
    given = (scheduler.get("params") or {}).get("calibrate_base_lr")
    if given:
        remarks.append("rates were calibrated anew at every width; --calibrate-width does it once")
    if not architecture.get("bias") and flags["param"] != "ipllr-bias":
        remarks.append("the first layer always had a bias there; --bias gives one to all layers")
    remarks.append("trials: repeat with --seed")
    return remarks


def main() -> None:
    """Parse the command line, convert, and write or print."""
    arguments = sys.argv[1:]
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--file", *arguments]
    config = parse(ConvertConfig, arguments)
    if not config.file:
        raise UserError("which file? python scripts/convert_wide_networks.py CONFIG.yaml")
    theirs = read_mapping(Path(config.file), config.file, "architecture: …")
    flags, remarks = convert(theirs, config.job, config.dataset)
    head = "".join(f"# {remark}\n" for remark in remarks)
    text = f"# from {Path(config.file).name} of wide-networks\n{head}{yaml.safe_dump(flags)}"
    if not config.output:
        print(text, end="")
        return
    output = Path(config.output)
    if output.exists() and not config.overwrite:
        raise UserError(f"--output {output}: exists already; use --overwrite, or another name")
    write_atomically(output, lambda file: file.write_text(text))


if __name__ == "__main__":
    run_stage(main)

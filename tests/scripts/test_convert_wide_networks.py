"""Configurations of wide-networks, as its repository has them, become ours."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.runs import ROOT
from Training import TrainConfig
from Utils.cli import parse

THEIRS = """
name:
  StandardFcIP
architecture: {n_layers: 4, input_size: 784, width: 1024, bias: false, output_size: 10}
activation: {name: "relu"}
loss: {name: "cross_entropy", params: {reduction: "mean"}}
optimizer: {name: "sgd", params: {lr: 0.01}}
scheduler: {name: "warmup_switch", params: {n_warmup_steps: 1, lr_decay: }}
initializer: {name: "custom", params: {var: 2.0}}
training: {batch_size: 128, n_epochs: 25, n_steps: 1.0e+4}
"""


def convert(folder: Path, text: str, *arguments: str) -> tuple[int, str, str]:
    file = folder / "theirs.yaml"
    file.write_text(text)
    command = [sys.executable, str(ROOT / "scripts" / "convert_wide_networks.py"), str(file)]
    result = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    return result.returncode, result.stdout, result.stderr


def test_train_reads_what_comes_out(tmp_path: Path) -> None:
    ours = tmp_path / "ours.yaml"
    assert convert(tmp_path, THEIRS, "--output", str(ours)) == (0, "", "")
    config = parse(TrainConfig, ["--config", str(ours)])
    assert (config.model, config.depth, config.width, config.bias) == ("fc", 4, 1024, False)
    assert (config.param, config.optimizer, config.lr) == ("ipllr", "sgd", 0.01)
    assert (config.dataset, config.train_batch_size) == ("mnist", 128)
    assert config.epochs == 22, "10,000 steps of 469 an epoch"
    code, _, errors = convert(tmp_path, THEIRS, "--output", str(ours))
    assert code == 2
    assert "exists already; use --overwrite" in errors


@pytest.mark.parametrize(
    ("job", "param"), [("fc_mup", "mup"), ("standard_fc_ip", "ip"), ("fc_ip_bias", "ipllr-bias")]
)
def test_the_job_tells_the_parametrization(tmp_path: Path, job: str, param: str) -> None:
    code, output, errors = convert(tmp_path, THEIRS, "--job", job, "--dataset", "cifar10")
    assert (code, errors) == (0, "")
    content = yaml.safe_load(output)
    assert (content["param"], content["bias"]) == (param, param == "ipllr-bias")
    assert content["epochs"] == 25


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"cross_entropy"', '"logistic"', "loss logistic: there is none here"),
        ("n_layers: 4, ", "", "architecture.n_layers is missing in the file"),
        ("{lr: 0.01}", "{lr: 0.01, nesterov: true}", "optimizer.params.nesterov: not converted"),
        ("activation:", "activations:", "activations: not a key of wide-networks'"),
        ('"relu"', '"swoosh"', "unknown nonlinearity 'swoosh'"),
        ("name:\n", "{", "not YAML"),
    ],
)
def test_mistakes(tmp_path: Path, old: str, new: str, message: str) -> None:
    code, _, errors = convert(tmp_path, THEIRS.replace(old, new, 1))
    assert code == 2
    assert message in errors
    assert len(errors.splitlines()) == 1

"""The flags of train.py: what they accept, and what they say of what they refuse."""

import re
from typing import Any

import pytest

from Training import TrainConfig
from Utils.cli import parse
from Utils.config import validate
from Utils.errors import UserError


def configure(**values: Any) -> TrainConfig:
    return validate(TrainConfig, values, "test")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--momentum 0.9",
            "--momentum: not read by --optimizer sgd; leave it out",
        ),
        ("--nesterov", "--nesterov: not read by --optimizer sgd"),
        ("--optimizer momentum", "needs a --momentum above 0"),
        (
            "--optimizer momentum --momentum .9 --nesterov --dampening .1",
            "--nesterov needs --dampening 0, not 0.1",
        ),
        ("--lr 0", r"--lr 0\S*: input should be greater than 0"),
        ("--optimizer lion --eps 1", "--eps: not read by --optimizer lion"),
        ("--lr nan", "--lr nan: input should be a finite number"),
        ("--momentum 1", r"--momentum 1\S*: input should be less than 1"),
        ("--wd -1", r"--wd -1\S*: input should be greater than or equal to 0"),
        ("--lr-drops 20,10", "--lr-drops 20,10: must be ascending epochs"),
        ("--wd-on matrices", "--wd-on matrices: nothing decays with --wd 0"),
        ("--lr-drops 0", "must be ascending epochs"),
        ("--save-at often", "must be log or steps"),
        ("--observe-freq 0", "--observe-freq 0: input should be greater than or equal to 1"),
        ("--clip-norm 0", r"--clip-norm 0\S*: input should be greater than 0"),
        ("--dataset mnsit", "unknown dataset 'mnsit'; did you mean 'mnist'"),
        ("--optimizer sdg", "unknown optimizer 'sdg'; did you mean 'sgd'"),
        ("--loss cee", "unknown loss 'cee'; did you mean 'ce'"),
        (
            "--dataset teacher-student",
            "--loss ce: not for the regression of --dataset teacher-student; use --loss mse",
        ),
        ("--model cnov", "unknown model 'cnov'; did you mean 'conv'"),
        ("--dtype float16", "float16"),
        (
            "--save-buffers grad,grda",
            "unknown buffer 'grda'; did you mean 'grad'",
        ),
        (
            "--save-buffers mom",
            "--save-buffers mom: .*--optimizer momentum, which says nothing of sgd; use sgd",
        ),
        (
            "--optimizer momentum --momentum .9 --save-buffers grad,sgd",
            "--save-buffers sgd: .*--optimizer sgd, which says nothing of momentum; use mom",
        ),
        (
            "--optimizer adam --save-buffers sgd",
            "--save-buffers sgd: .*says nothing of adam; leave it out",
        ),
        ("--epoch 3", "unknown flag '--epoch'; did you mean '--epochs'"),
    ],
)
def test_mistakes_on_the_command_line(arguments: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(TrainConfig, arguments.split())
    assert re.search(message, str(caught.value))
    assert "\n" not in str(caught.value)


def test_the_flags_of_the_issue_are_understood() -> None:
    arguments = (
        "--dataset digits --model conv --lr 0.05 --wd 1e-3 --epochs 30 --save-freq 50 "
        "--experiment e --expid x --lr-drops 10,20 --save-at log,7"
    )
    config = parse(TrainConfig, arguments.split())
    assert config.lr_drops == (10, 20)
    assert config.save_at == ("log", "7")
    assert config.width == 32


def test_upstreams_custom_sgd_is_sgd_with_or_without_momentum() -> None:
    assert configure(optimizer="custom_sgd", momentum=0.0).optimizer == "sgd"
    assert configure(optimizer="custom_sgd", momentum=0.9).optimizer == "momentum"


def test_a_regression_has_its_loss_and_a_classification_either() -> None:
    assert configure().loss == "ce"
    assert configure(dataset="teacher-student", loss="mse").data_entry.task == "regression"
    assert configure(dataset="sparse-parity", loss="mse").data_entry.task == "classification"


def test_steps_with_a_checkpoint() -> None:
    assert configure().save_steps(100) == set()
    assert configure(save_freq=30).save_steps(100) == {30, 60, 90}
    assert configure(save_at="5,200,100").save_steps(100) == {5, 100}
    log = sorted(configure(save_at="log").save_steps(1000))
    assert log[:9] == [1, 2, 3, 4, 5, 6, 8, 10, 13]
    assert sum(100 < step <= 1000 for step in log) == 10


def test_the_flat_form_can_be_read_back() -> None:
    data = {"dataset": "gaussian-mixture", "classes": 3}
    config = configure(**data, model="fc", lr_drops="3,4", save_at="log", clip_norm=1.5)
    assert validate(TrainConfig, config.flat(), "hyperparameters.json") == config

"""The flags of the data: defaults of the chosen dataset, and refusal of what it does not read."""

import pytest

from Data import DATASETS, DataConfig
from Utils.cli import parse
from Utils.errors import UserError

VALUES = {
    "workers": 1,
    "train_size": 11,
    "test_size": 12,
    "train_fraction": 0.5,
    "modulus": 5,
    "bits": 7,
    "parity_bits": 2,
    "dimension": 6,
    "classes": 3,
    "separation": 1.5,
    "teacher_width": 2,
    "noise": 0.25,
}


def configure(arguments: str) -> DataConfig:
    return parse(DataConfig, arguments.split())


def flag(option: str) -> str:
    return "--" + option.replace("_", "-")


def test_every_option_is_tried_here() -> None:
    assert VALUES.keys() == DataConfig.model_fields.keys() - {"dataset", "data_dir"}
    assert VALUES.keys() == {option for entry in DATASETS for option in entry.options}


@pytest.mark.parametrize("name", DATASETS.names)
def test_unset_options_have_the_datasets_defaults(name: str) -> None:
    config = configure(f"--dataset {name}")
    assert config.data_options == DATASETS[name].options
    assert config.data_entry == DATASETS[name]
    others = VALUES.keys() - DATASETS[name].options
    assert all(getattr(config, option) is None for option in others)


@pytest.mark.parametrize("name", DATASETS.names)
@pytest.mark.parametrize("option", VALUES)
def test_options_are_read_or_refused(name: str, option: str) -> None:
    arguments = f"--dataset {name} {flag(option)} {VALUES[option]}"
    if option in DATASETS[name].options:
        assert configure(arguments).data_options[option] == VALUES[option]
    elif option == "workers":  # changes no number: commands that have it everywhere are welcome
        assert configure(arguments).data_options == DATASETS[name].options
    else:
        with pytest.raises(UserError) as caught:
            configure(arguments)
        expected = f"{flag(option)}: not read by --dataset {name}; leave it out (command line)"
        assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("arguments", "input_shape", "classes"),
    [
        ("modular-addition --modulus 5", (3, 6), 5),
        ("sparse-parity --bits 7", (7,), 2),
        ("teacher-student --dimension 6", (6,), 1),
        ("gaussian-mixture --dimension 6 --classes 3", (6,), 3),
        ("imagenet --classes 100", (3, 224, 224), 100),
        ("mnist", (1, 28, 28), 10),
    ],
)
def test_the_shape_is_known_before_anything_is_loaded(
    arguments: str, input_shape: tuple[int, ...], classes: int
) -> None:
    entry = configure(f"--dataset {arguments}").data_entry
    assert (entry.input_shape, entry.num_classes) == (input_shape, classes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("modular-addition --modulus 1", "--modulus 1: input should be greater than or equal"),
        ("modular-addition --train-fraction 1", "--train-fraction 1.*should be less than 1"),
        ("sparse-parity --bits 4 --parity-bits 5", "--parity-bits 5: there are only --bits 4"),
        ("sparse-parity --bits 2", "--parity-bits 3: there are only --bits 2"),
        ("teacher-student --noise -1", "--noise -1.*greater than or equal to 0"),
        ("gaussian-mixture --classes 1", "--classes 1: input should be greater than or equal"),
        ("gaussian-mixture --train-size 0", "--train-size 0: input should be greater"),
        ("imagenet --workers -1", "--workers -1: input should be greater"),
        ("sparse-party", "unknown dataset 'sparse-party'; did you mean 'sparse-parity'"),
    ],
)
def test_mistakes_on_the_command_line(arguments: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        configure(f"--dataset {arguments}")

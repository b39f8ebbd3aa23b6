"""A run that begins with another run's weights."""

from pathlib import Path

import pytest
import torch

from tests.training.helpers import MODEL, Train
from Training.checkpoints import load_checkpoint
from Training.config import ExtractConfig
from Training.extraction import extract
from Utils.config import validate
from Utils.errors import UserError
from Utils.rundir import RunFolder


def test_restored_weights_are_those_of_step_0(
    trains: Train, run: RunFolder, tmp_path: Path
) -> None:
    trains()
    last = max(run.checkpoint_steps())
    source = tmp_path / "source.tar"
    run.checkpoint(last).rename(source)
    other = RunFolder(tmp_path / "e" / "y")
    flags = f"{MODEL} --expid y --seed 9 --restore-path {source} --epochs 1"
    assert trains(flags) == 0
    begun, given = load_checkpoint(other.checkpoint(0)), load_checkpoint(source)
    for name, tensor in given["model_state_dict"].items():
        assert torch.equal(begun["model_state_dict"][name], tensor)
    assert begun["step"] == 0
    assert not begun["optimizer_state_dict"]["state"]
    with pytest.raises(UserError, match="trained with other flags: --restore-path was"):
        trains(flags.replace(str(source), str(other.checkpoint(0))))
    source.unlink()
    config = validate(ExtractConfig, {"probe": "logits"}, "test")
    assert extract(config, other) == len(other.checkpoint_steps())

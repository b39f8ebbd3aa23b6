"""Checkpoints read in place: the same numbers as torch.load gives, and no code is run."""

import os
import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from Training.stored import StoredTensor, stored_checkpoint
from Utils.errors import UserError
from Utils.storage import write_hdf5

BASE = torch.arange(48.0).reshape(2, 4, 3, 2)

TENSORS = {
    "float64": BASE.double() / 7,
    "float16": BASE.half(),
    "bfloat16": torch.tensor([1.0, -0.1, float("nan"), 3e38]).bfloat16(),
    "int64": torch.arange(3),
    "bool": torch.tensor([True, False]),
    "complex": torch.tensor([1 + 2j]),
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 3),
    "channels last": BASE.contiguous(memory_format=torch.channels_last),
    "transposed": BASE.reshape(6, 8).T,
    "slice": BASE[1, 1:3],
    "column": BASE.reshape(6, 8)[:, 3],
    "expanded": torch.tensor([2.0]).expand(5),
    "large": torch.arange(700_001, dtype=torch.float32),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_come_out_as_they_are(name: str, tmp_path: Path) -> None:
    tensor = TENSORS[name]
    torch.save({"model_state_dict": {"x": tensor}, "step": 3}, tmp_path / "c.tar")
    with stored_checkpoint(tmp_path / "c.tar") as content:
        assert content["step"] == 3
        stored = content["model_state_dict"]["x"]
        assert isinstance(stored, StoredTensor)
        write_hdf5(tmp_path / "f.h5", [("x", stored.stream())])
    expected = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    with h5py.File(tmp_path / "f.h5") as file:
        found = file["x"][()]
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert np.array_equal(found, expected, equal_nan=name == "bfloat16")


def test_shared_storages_are_read_for_each(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    torch.save({"model_state_dict": {"a": whole, "b": whole[2:]}}, tmp_path / "c.tar")
    with stored_checkpoint(tmp_path / "c.tar") as content:
        read = [list(x.stream().pieces()) for x in content["model_state_dict"].values()]
    assert [piece.tolist() for (piece,) in read] == [[0, 1, 2, 3, 4, 5], [2, 3, 4, 5]]


def test_what_it_does_not_know_is_left_to_torch(tmp_path: Path) -> None:
    path = tmp_path / "c.tar"
    parameter = torch.nn.Parameter(torch.ones(2))
    torch.save({"model_state_dict": {"x": parameter}}, path)
    with stored_checkpoint(path) as content:
        assert isinstance(content["model_state_dict"]["x"], Tensor)
    torch.save({"model_state_dict": {}}, path, _use_new_zipfile_serialization=False)
    with stored_checkpoint(path) as content:
        assert content == {"model_state_dict": {}}


class Harmful:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_no_code_is_run(tmp_path: Path) -> None:
    torch.save({"model_state_dict": {"x": Harmful(tmp_path / "harm")}}, tmp_path / "c.tar")
    with (
        pytest.raises(UserError, match="more than tensors"),
        stored_checkpoint(tmp_path / "c.tar"),
    ):
        pass
    assert not (tmp_path / "harm").exists()
    torch.save({"model_state_dict": {"x": Harmful(tmp_path / "harm")}}, tmp_path / "d.tar", pickle)
    torch.load(tmp_path / "d.tar", weights_only=False)
    assert (tmp_path / "harm").exists()  # it would have

"""Features: what was in the checkpoint, bit for bit, and what the model says to the probe batch."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.runs import Runs, extract_run, train_run
from Training import extraction
from Utils.errors import UserError
from Utils.rundir import RunFolder

BN = "--model conv-bn --width 4 --save-freq 5"
MOMENTUM = "--model conv-bn --width 4 --optimizer momentum --momentum 0.9 --dtype float64"
STEPS = [0, 5, 6, 10, 12]

PARAMETERS = {
    f"{layer}.{part}"
    for layer in ("conv1", "bn1", "conv2", "bn2", "classifier")
    for part in ("weight", "bias")
}
STATISTICS = {
    f"{layer}.{part}"
    for layer in ("bn1", "bn2")
    for part in ("running_mean", "running_var", "num_batches_tracked")
}


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content


def stamps(run: RunFolder) -> dict[int, int]:
    return {step: run.features(step).stat().st_mtime_ns for step in run.feature_steps()}


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Save a checkpoint again after a change."""
    content = load(path)
    change(content)
    torch.save(content, path)


def same(stored: Any, tensor: torch.Tensor) -> bool:
    expected = tensor.numpy()
    return stored.dtype == expected.dtype and np.array_equal(stored[()], expected)


@pytest.mark.parametrize(("flags", "steps"), [(BN, STEPS), (MOMENTUM, [0, 6, 12])])
def test_features_hold_every_tensor_of_the_checkpoint(
    trained: Runs, flags: str, steps: list[int]
) -> None:
    run = trained(flags)
    assert run.feature_steps() == run.checkpoint_steps() == steps
    for step in steps:
        checkpoint = load(run.checkpoint(step))
        tensors = checkpoint["model_state_dict"]
        with h5py.File(run.features(step)) as file:
            assert file.attrs["step"] == step
            assert set(file["params"]) == PARAMETERS
            assert set(file["state"]) == STATISTICS
            assert set(tensors) == PARAMETERS | STATISTICS
            assert all(same(file["params"][name], tensors[name]) for name in PARAMETERS)
            assert all(same(file["state"][name], tensors[name]) for name in STATISTICS)


def test_parameters_are_listed_in_the_networks_order(trained: Runs) -> None:
    run = trained(BN)
    names = [n for n in load(run.checkpoint(5))["model_state_dict"] if n in PARAMETERS]
    with h5py.File(run.features(5)) as file:
        assert list(file["params"]) == names
    assert names != sorted(names)


def test_optimizer_buffers_are_named_for_their_parameter(trained: Runs) -> None:
    run = trained(MOMENTUM)
    optimizer = load(run.checkpoint(12))["optimizer_state_dict"]
    names = [n for n in load(run.checkpoint(12))["model_state_dict"] if n in PARAMETERS]
    with h5py.File(run.features(12)) as file:
        assert set(file["buffers"]) == {f"{name}.momentum_buffer" for name in PARAMETERS}
        for index, name in enumerate(names):
            buffer = optimizer["state"][index]["momentum_buffer"]
            assert same(file["buffers"][f"{name}.momentum_buffer"], buffer)
            assert buffer.abs().sum() > 0
    with h5py.File(run.features(0)) as file:
        assert "buffers" not in file


def test_numbers_and_the_observers_knowledge_are_there_in_full(trained: Runs) -> None:
    run = trained(BN)
    for step in STEPS:
        checkpoint = load(run.checkpoint(step))
        with h5py.File(run.features(step)) as file:
            known = {name: file["metrics"][name][()] for name in file["metrics"]}
            assert known == {n: checkpoint[n] for n in extraction.METRICS if n in checkpoint}
            assert ("test_loss" in known) == (step in {0, 6, 12})
            observed = checkpoint["observer_state_dict"]
            assert file["conservation/time"].dtype == np.float64
            assert file["conservation/time"][()] == observed["time"]
            for name in ("charge", "paper", "leak", "open"):
                assert same(file["conservation"][name], observed[name])
            for name, tensor in observed["record"].items():
                assert same(file["conservation/record"][name], tensor)


def test_arrays_are_contiguous_and_uncompressed(trained: Runs) -> None:
    run = trained(BN)
    sizes = 0
    with h5py.File(run.features(12)) as file:
        for name in PARAMETERS:
            dataset = file["params"][name]
            assert (dataset.chunks, dataset.compression) == (None, None)
            offset = dataset.id.get_offset()
            raw = run.features(12).read_bytes()[offset : offset + dataset.nbytes]
            assert raw == dataset[()].tobytes()
            sizes += dataset.nbytes
    assert run.features(12).stat().st_size < 8 * sizes


def forward(tensors: dict[str, Any], inputs: Any) -> dict[str, Any]:
    """conv-bn in evaluation mode, written out."""

    def part(layer: str) -> tuple[Any, Any]:
        return tensors[f"{layer}.weight"], tensors[f"{layer}.bias"]

    outputs, x = {}, inputs
    for i in ("1", "2"):
        x = outputs[f"conv{i}"] = F.conv2d(x, *part(f"conv{i}"), padding=1)
        mean, var = tensors[f"bn{i}.running_mean"], tensors[f"bn{i}.running_var"]
        x = outputs[f"bn{i}"] = F.batch_norm(x, mean, var, *part(f"bn{i}"))
        x = outputs[f"act{i}"] = x.clamp(min=0)
    x = outputs["flatten"] = x.flatten(1)
    outputs["classifier"] = F.linear(x, *part("classifier"))
    return outputs


def test_the_probes_outputs_are_the_models_in_evaluation_mode(own: Runs) -> None:
    run = own(BN)
    assert extract_run(run, "--probe activations") == len(STEPS)
    with h5py.File(run.probe) as file:
        inputs = torch.from_numpy(file["inputs"][()])
    assert inputs.shape == (64, 1, 8, 8)
    for step in (0, 12):
        expected = forward(load(run.checkpoint(step))["model_state_dict"], inputs)
        with h5py.File(run.features(step)) as file:
            activations = file["probe/activations"]
            assert set(activations) == set(expected)
            for name, value in expected.items():
                np.testing.assert_allclose(activations[name][()], value, rtol=1e-5, atol=1e-5)
            assert np.array_equal(file["probe/logits"][()], activations["classifier"][()])


def test_activations_are_those_before_they_are_changed_in_place(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def model(s, c):\n"
        "    layers = nn.Flatten(), nn.Linear(64, 16), nn.ReLU(inplace=True), nn.Linear(16, c)\n"
        "    return nn.Sequential(*layers)\n"
    )
    run = train_run(tmp_path / "e" / "x", f"--model {tmp_path}/mine.py:model --epochs 0")
    extract_run(run, "--probe activations")
    with h5py.File(run.features(0)) as file:
        before, after = (file[f"probe/activations/{layer}"][()] for layer in "12")
    assert before.min() < 0
    assert np.array_equal(np.maximum(before, 0), after)


def test_the_probe_is_filled_in_where_there_is_less_and_skipped_otherwise(own: Runs) -> None:
    run = own(BN)
    assert extract_run(run, "--probe none --overwrite") == len(STEPS)
    with h5py.File(run.features(5)) as file:
        assert "probe" not in file
    assert extract_run(run, "--probe none") == 0
    assert extract_run(run) == len(STEPS)
    with h5py.File(run.features(5)) as file:
        assert set(file["probe"]) == {"logits"}
    assert extract_run(run, "--probe activations") == len(STEPS)
    before = stamps(run)
    for less in ("activations", "logits", "none"):
        assert extract_run(run, f"--probe {less}") == 0
    assert stamps(run) == before
    with h5py.File(run.features(5)) as file:
        assert set(file["probe"]) == {"logits", "activations"}


def test_only_new_and_rewritten_checkpoints_are_extracted(own: Runs) -> None:
    run = own(BN)
    before = stamps(run)
    run.features(10).unlink()
    rewrite(run.checkpoint(5), lambda content: content["model_state_dict"]["conv1.bias"].add_(1))
    assert extract_run(run) == 2
    after = stamps(run)
    assert {step for step in STEPS if after[step] != before[step]} == {5, 10}
    with h5py.File(run.features(5)) as file:
        bias = load(run.checkpoint(5))["model_state_dict"]["conv1.bias"]
        assert same(file["params"]["conv1.bias"], bias)


def test_what_a_checkpoint_holds_counts_and_not_when_it_was_written(own: Runs) -> None:
    run = own(BN)  # a copy: all its files are newer than the features say
    assert extract_run(run) == 0
    rewrite(run.checkpoint(5), lambda content: None)
    assert extract_run(run) == 0
    assert extract_run(run, "--overwrite") == len(STEPS)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_a_damaged_checkpoint_is_named_after_all_others_were_extracted(
    own: Runs, damage: str
) -> None:
    run = own(BN)
    for step in STEPS[1:]:
        run.features(step).unlink()
    for step in (0, 6):
        content = run.checkpoint(step).read_bytes()
        text = {"truncated": content[: len(content) // 2], "empty": b"", "text": b"no checkpoint"}
        run.checkpoint(step).write_bytes(text[damage])
    features = run.features(0).read_bytes()
    with pytest.raises(UserError) as caught:
        extract_run(run)
    message = str(caught.value)
    assert message.startswith(f"{run.checkpoint(0)} is truncated or no checkpoint; ")
    assert message.endswith(" (likewise step6.tar); all 3 others are done")
    assert run.feature_steps() == [0, 5, 10, 12]
    assert run.features(0).read_bytes() == features


def test_damaged_features_are_made_again(own: Runs) -> None:
    run = own(BN)
    whole = {step: run.features(step).read_bytes() for step in STEPS}
    run.features(5).write_bytes(whole[5][:1000])
    run.features(10).write_bytes(b"")
    with h5py.File(run.features(12), "a") as file:
        del file.attrs["source"]
    assert extract_run(run) == 3
    assert {step: run.features(step).read_bytes() for step in STEPS} == whole


def test_leftovers_of_a_killed_process_do_no_harm(own: Runs) -> None:
    run = own(BN)
    whole = run.features(5).read_bytes()
    run.features(5).unlink()
    run.features(5).with_name("step5.h5.tmp").write_bytes(b"half")
    run.features(5).with_name("notes.h5").write_bytes(b"")
    assert run.feature_steps() == [0, 6, 10, 12]
    assert extract_run(run) == 1
    assert run.features(5).read_bytes() == whole


def test_a_run_that_is_not_there(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "e" / "x")
    with pytest.raises(UserError, match=r"hyperparameters\.json does not exist; run train\.py"):
        extract_run(run)
    assert not run.path.exists()


def test_a_run_without_checkpoints(own: Runs) -> None:
    run = own(BN)
    shutil.rmtree(run.checkpoint(0).parent)
    with pytest.raises(UserError, match=r"has no checkpoints; run train\.py"):
        extract_run(run)


@pytest.mark.parametrize("content", ["[]", "{}", "{", '{"lr": 0.1}'])
def test_a_spoiled_configuration(own: Runs, content: str) -> None:
    run = own(BN)
    run.hyperparameters.write_text(content)
    with pytest.raises(UserError, match=r"hyperparameters\.json is "):
        extract_run(run)


def test_a_configuration_of_another_program_still_gives_the_weights(own: Runs) -> None:
    run = own(BN)
    run.hyperparameters.write_text('{"seed": 1, "model": "conv"}')
    with pytest.raises(UserError, match=r"hyperparameters\.json lacks '\w+'; use --probe none"):
        extract_run(run, "--overwrite")
    assert extract_run(run, "--overwrite --probe none") == len(STEPS)


def test_a_missing_or_damaged_probe_batch(own: Runs) -> None:
    run = own(BN)
    run.probe.write_bytes(run.probe.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"probe\.h5 is damaged .* or use --probe none"):
        extract_run(run, "--overwrite")
    run.probe.unlink()
    with pytest.raises(UserError, match=r"probe\.h5 does not exist; .*train\.py .* --probe none"):
        extract_run(run, "--overwrite")
    assert run.feature_steps() == STEPS


def test_a_checkpoint_of_another_program(own: Runs) -> None:
    run = own(BN)
    rewrite(run.checkpoint(5), lambda content: content.pop("observer_state_dict"))
    with pytest.raises(UserError, match=r"step5\.tar is no checkpoint of this .*'observer_state"):
        extract_run(run)
    with h5py.File(run.features(5)) as file:
        assert "conservation" in file


def test_the_users_model_may_be_gone_or_changed(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    source = (
        "from torch import nn\ndef m(s, c): return nn.Sequential(nn.Flatten(), nn.Linear(64, {}))"
    )
    file.write_text(source.format("c"))
    run = train_run(tmp_path / "e" / "x", f"--model {file}:m")
    file.write_text(source.format("c), nn.ReLU(), nn.Linear(c, c"))
    with pytest.raises(UserError, match=r"step0\.tar does not fit the model .*or use --probe none"):
        extract_run(run)
    file.unlink()
    with pytest.raises(UserError, match=r"there is no file .*mine\.py; .*use --probe none"):
        extract_run(run)
    assert extract_run(run, "--probe none") == 3


def test_one_process_at_a_time(own: Runs) -> None:
    run = own(BN)
    with run.lock("extract"), pytest.raises(UserError, match="extract is already running"):
        extract_run(run)

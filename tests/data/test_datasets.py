"""Every registered dataset, its files, and the messages where they are missing or damaged."""

import fcntl
import gzip
import io
import shutil
import socket
import subprocess
import sys
import tarfile
import urllib.request
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from Data import DATASETS, load_dataset
from Data.dataset import Split
from tests.data.helpers import splits
from Utils.errors import UserError

DOWNLOADED = ["mnist", "cifar10", "cifar100"]
OPTIONS: dict[str, dict[str, int]] = {
    "tiny-imagenet": {"workers": 0},
    "imagenet": {"workers": 0, "classes": 3},
}
FOLDERS = {
    "mnist": "MNIST/raw",
    "cifar10": "cifar-10-batches-py",
    "cifar100": "cifar-100-python",
}


def test_importing_the_room_does_not_import_torch() -> None:
    program = "import sys, Data; Data.DATASETS.table(); sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == 0


@pytest.mark.parametrize("name", DATASETS.names)
def test_every_dataset_is_what_its_entry_says(
    name: str, store: Path, tiny_imagenet: Path, imagenet: Path
) -> None:
    options = OPTIONS.get(name, {})
    dataset = load_dataset(name, store, **options)
    entry = dataset.entry
    assert entry == DATASETS[name].configured(options)
    assert len(entry.mean) == len(entry.std)
    assert len(entry.mean) == (1 if entry.procedural else entry.input_shape[0])
    assert entry.description
    assert entry.citation
    for split in (dataset.train, dataset.test):
        assert split.entry is entry
        inputs, targets = map(torch.cat, zip(*split.in_order(100), strict=True))
        assert inputs.shape == (len(split), *entry.input_shape)
        assert inputs.dtype == torch.uint8 or entry.procedural
        assert inputs.is_floating_point() or inputs.max() <= entry.max_value
        assert torch.equal(targets, split.targets)
        if entry.task == "regression":
            assert targets.dtype == torch.float64
            assert targets.shape == (len(split), entry.num_classes)
        else:
            assert targets.dtype == torch.int64
            assert targets.shape == (len(split),)


@pytest.mark.parametrize("name", [entry.name for entry in DATASETS if entry.form])
def test_the_listed_shape_is_that_of_the_default_options(name: str) -> None:
    entry = DATASETS[name]
    assert entry.configured({}) == entry
    assert entry.configured(entry.options) == entry


@pytest.mark.parametrize("name", DOWNLOADED)
def test_files_are_read_exactly(
    name: str, store: Path, arrays: Any, connections: list[str]
) -> None:
    train, test = splits(name, str(store))
    for split, (images, labels) in ((train, arrays[name]["train"]), (test, arrays[name]["test"])):
        assert torch.equal(split.inputs, torch.from_numpy(images))
        assert torch.equal(split.targets, torch.from_numpy(labels))
    assert connections == []


def test_unknown_dataset_is_suggested() -> None:
    with pytest.raises(UserError, match="unknown dataset 'minst'; did you mean 'mnist'"):
        load_dataset("minst")


@pytest.mark.parametrize(
    ("name", "archives", "place"),
    [
        ("mnist", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"], "MNIST/raw"),
        ("cifar10", ["cifar-10-python.tar.gz"], ""),
        ("cifar100", ["cifar-100-python.tar.gz"], ""),
    ],
)
def test_missing_files_are_named_in_one_line(
    name: str,
    archives: list[str],
    place: str,
    tmp_path: Path,
    connections: list[str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(UserError) as caught:
        load_dataset(name, tmp_path / "store")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"dataset {name}: not in {tmp_path / 'store' / FOLDERS[name]} ")
    assert message.endswith(f"into {tmp_path / 'store' / place}")
    assert all(archive in message for archive in archives)
    assert "no network in tests" in message
    assert connections
    assert capfd.readouterr() == ("", "")


def test_files_are_downloaded_quietly(
    store: Path, arrays: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = store / FOLDERS["mnist"]
    files = {f"{path.name}.gz": gzip.compress(path.read_bytes()) for path in folder.iterdir()}
    shutil.rmtree(folder)

    class Response(io.BytesIO):
        url = None
        length = 1

    def serve(request: urllib.request.Request) -> Response:
        return Response(files[request.full_url.rpartition("/")[2]])

    monkeypatch.setattr("urllib.request.urlopen", serve)
    train, _ = splits("mnist", store)
    assert torch.equal(train.inputs, torch.from_numpy(arrays["mnist"]["train"][0]))
    assert capfd.readouterr() == ("", "")


def test_a_silent_server_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts = []

    def hang(*args: Any, **kwargs: Any) -> None:
        timeouts.append(socket.getdefaulttimeout())
        raise TimeoutError("timed out")

    monkeypatch.setattr("urllib.request.urlopen", hang)
    before = socket.getdefaulttimeout()
    with pytest.raises(UserError, match=r"cannot be downloaded \(timed out\)"):
        load_dataset("mnist", tmp_path)
    assert timeouts == [10.0]
    assert socket.getdefaulttimeout() == before


def test_a_data_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"dataset cifar10: not in .*Not a directory"):
        load_dataset("cifar10", tmp_path / "file" / "store")


def test_processes_download_one_at_a_time(tmp_path: Path, connections: list[str]) -> None:
    with ThreadPoolExecutor() as pool, open(tmp_path / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = pool.submit(load_dataset, "cifar10", tmp_path)
        with pytest.raises(TimeoutError):
            second.result(timeout=0.2)
        assert connections == []
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert isinstance(second.exception(timeout=10), UserError)
    assert connections


def test_mnist_archives_put_by_hand_are_unpacked(store: Path, connections: list[str]) -> None:
    _, expected = splits("mnist", store)
    for path in list((store / FOLDERS["mnist"]).iterdir()):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    _, test = splits("mnist", store)
    assert torch.equal(test.inputs, expected.inputs)
    assert connections == []


@pytest.mark.filterwarnings("ignore:Python 3.14 will, by default, filter:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "archive"),
    [("cifar10", "cifar-10-python.tar.gz"), ("cifar100", "cifar-100-python.tar.gz")],
)
def test_cifar_archives_put_by_hand_are_unpacked(
    name: str, archive: str, store: Path, connections: list[str]
) -> None:
    expected, _ = splits(name, store)
    folder = store / FOLDERS[name]
    with tarfile.open(store / archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    shutil.rmtree(folder)
    train, _ = splits(name, store)
    assert torch.equal(train.inputs, expected.inputs)
    assert connections == []


@pytest.mark.parametrize("damage", [lambda b: b[:100], lambda b: b"", lambda b: b"\xff" * 99])
def test_damaged_mnist_is_reported(damage: Callable[[bytes], bytes], store: Path) -> None:
    path = store / FOLDERS["mnist"] / "t10k-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError) as caught:
        load_dataset("mnist", store)
    assert f"{path.parent} is incomplete or damaged" in str(caught.value)
    assert "delete it" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_mnist_labels_of_other_images_are_reported(store: Path) -> None:
    folder = store / FOLDERS["mnist"]
    shutil.copy(folder / "t10k-labels-idx1-ubyte", folder / "train-labels-idx1-ubyte")
    with pytest.raises(UserError, match=r"damaged \(20 inputs and 7 targets\)"):
        load_dataset("mnist", store)


def test_cifar_with_wrong_checksums_is_reported(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(
        "torchvision.datasets.cifar.download_and_extract_archive", lambda *a, **k: 0
    )
    with pytest.raises(UserError, match="cifar-10-batches-py is incomplete or damaged"):
        load_dataset("cifar10", store)


def test_digits_are_split_once_and_for_all(tmp_path: Path) -> None:
    train, test = splits("digits", tmp_path)
    assert (len(train), len(test)) == (1437, 360)
    in_train = torch.bincount(train.targets).double()
    in_test = torch.bincount(test.targets).double()
    assert ((in_test - (in_train + in_test) / 5).abs() < 1).all()
    assert test.targets[:12].tolist() == [0, 2, 4, 7, 1, 6, 8, 9, 5, 3, 0, 2]
    assert zlib.crc32(test.inputs.numpy().tobytes()) == 3540928922
    assert list(tmp_path.iterdir()) == []


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    rows = [torch.cat([s.inputs.flatten(1), s.targets[:, None]], 1) for s in splits("digits")]
    theirs = torch.cat([torch.from_numpy(images), torch.from_numpy(labels)[:, None]], 1)
    assert sorted(torch.cat(rows).tolist()) == sorted(theirs.tolist())


def test_digits_are_normalised_by_their_training_images() -> None:
    entry = DATASETS["digits"]
    inputs = splits("digits")[0].inputs.double() / entry.max_value
    assert inputs.mean().item() == pytest.approx(entry.mean[0], abs=5e-5)
    assert inputs.std().item() == pytest.approx(entry.std[0], abs=5e-5)


def test_a_split_must_be_what_its_entry_describes() -> None:
    entry = DATASETS["digits"]
    inputs, targets = torch.zeros(3, 1, 8, 8), torch.tensor([0, 9, 5])
    assert len(Split(entry, inputs, targets)) == 3
    with pytest.raises(ValueError, match=r"inputs of shape \(8, 8\), expected \(1, 8, 8\)"):
        Split(entry, inputs[:, 0], targets)
    with pytest.raises(ValueError, match="2 inputs and 3 targets"):
        Split(entry, inputs[:2], targets)
    with pytest.raises(ValueError, match="0 inputs and 0 targets"):
        Split(entry, inputs[:0], targets[:0])
    for wrong in (targets + 1, targets - 1):
        with pytest.raises(ValueError, match="not class numbers from 0 to 9"):
            Split(entry, inputs, wrong)
    regression = DATASETS["teacher-student"]
    inputs = torch.zeros(3, 20)
    assert len(Split(regression, inputs, torch.zeros(3, 1))) == 3
    for outputs in (torch.zeros(3), torch.zeros(3, 2), torch.zeros(3, 1, dtype=torch.int64)):
        with pytest.raises(ValueError, match="not 1 floating outputs"):
            Split(regression, inputs, outputs)

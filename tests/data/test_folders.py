"""Tiny ImageNet and its set-up; ImageNet's image folders. torchvision's own loader is the judge."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets, transforms

from Data import load_dataset
from Data.tiny_imagenet import set_up
from tests.data.helpers import splits
from Utils.errors import UserError

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "setup_tiny_imagenet.py"


def validation_images(data_dir: Path) -> dict[str, bytes]:
    """The content of every validation image, by its name."""
    paths = (data_dir / "tiny-imagenet-200" / "val").rglob("*.JPEG")
    return {path.name: path.read_bytes() for path in paths}


def annotations(data_dir: Path) -> dict[str, str]:
    text = (data_dir / "tiny-imagenet-200" / "val" / "val_annotations.txt").read_text()
    return {line.split("\t")[0]: line.split("\t")[1] for line in text.splitlines()}


def set_up_by_script(data_dir: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(SCRIPT), "--data-dir", str(data_dir)]
    return subprocess.run(command, cwd=data_dir, capture_output=True, text=True, check=False)


class TestTinyImagenet:
    def test_set_up_sorts_every_validation_image_and_can_be_repeated(
        self, tiny_archive: Path
    ) -> None:
        before = validation_images(tiny_archive)
        done = set_up_by_script(tiny_archive)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith("is set up; 200 images were moved\n")
        assert validation_images(tiny_archive) == before
        val = tiny_archive / "tiny-imagenet-200" / "val"
        for name, wnid in annotations(tiny_archive).items():
            assert (val / wnid / "images" / name).is_file()
        assert not (val / "images").exists()
        assert set_up(tiny_archive) == 0
        assert validation_images(tiny_archive) == before

    def test_a_killed_set_up_is_continued(self, tiny_archive: Path) -> None:
        before = validation_images(tiny_archive)
        program = (
            "import os, signal, sys\n"
            "from pathlib import Path\n"
            "from Data.tiny_imagenet import set_up\n"
            "rename, moves = os.rename, []\n"
            "def dying(*paths):\n"
            "    if len(moves) == 71: os.kill(os.getpid(), signal.SIGKILL)\n"
            "    moves.append(rename(*paths))\n"
            "os.rename = dying\n"
            f"set_up(Path({str(tiny_archive)!r}))\n"
        )
        killed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
        assert killed.returncode == -9
        assert validation_images(tiny_archive) == before
        with pytest.raises(UserError, match="has no class folders yet"):
            load_dataset("tiny-imagenet", tiny_archive, workers=0)
        assert set_up(tiny_archive) == 200 - 71
        assert validation_images(tiny_archive) == before
        assert len(load_dataset("tiny-imagenet", tiny_archive, workers=0).test) == 200

    def test_images_and_classes_are_those_of_torchvisions_image_folder(
        self, tiny_imagenet: Path
    ) -> None:
        for split, part in zip(
            splits("tiny-imagenet", tiny_imagenet, workers=0), ("train", "val"), strict=True
        ):
            folder = datasets.ImageFolder(
                tiny_imagenet / "tiny-imagenet-200" / part, transforms.PILToTensor()
            )
            assert split.targets.tolist() == folder.targets
            assert torch.equal(split.inputs, torch.stack([image for image, _ in folder]))
        wnids = sorted(set(annotations(tiny_imagenet).values()))
        paths = [Path(path) for path, _ in folder.samples]
        for path, target in zip(paths, split.targets.tolist(), strict=True):
            assert annotations(tiny_imagenet)[path.name] == wnids[target]

    def test_workers_decode_the_same(self, tiny_imagenet: Path) -> None:
        for here, there in zip(
            splits("tiny-imagenet", tiny_imagenet, workers=0),
            splits("tiny-imagenet", tiny_imagenet, workers=1),
            strict=True,
        ):
            assert torch.equal(here.inputs, there.inputs)

    def test_the_layout_that_upstream_leaves_is_read(self, tiny_imagenet: Path) -> None:
        _, expected = splits("tiny-imagenet", tiny_imagenet, workers=0)
        val = tiny_imagenet / "tiny-imagenet-200" / "val"
        for path in list(val.rglob("*.JPEG")):
            path.rename(path.parents[1] / path.name)
        for folder in list(val.glob("*/images")):
            folder.rmdir()
        (val / "val_annotations.txt").unlink()
        assert set_up(tiny_imagenet) == 0
        _, test = splits("tiny-imagenet", tiny_imagenet, workers=0)
        assert torch.equal(test.inputs, expected.inputs)

    def test_missing_files_are_named_in_one_line(self, tmp_path: Path) -> None:
        for action in (lambda: load_dataset("tiny-imagenet", tmp_path), lambda: set_up(tmp_path)):
            with pytest.raises(UserError) as caught:
                action()
            message = str(caught.value)
            assert f"there is no {tmp_path}/tiny-imagenet-200/train; unzip http" in message
            assert f"setup_tiny_imagenet.py --data-dir {tmp_path}" in message
            assert "\n" not in message
        done = set_up_by_script(tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"setup_tiny_imagenet.py: error: {message}\n"

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda val: (val / "val_annotations.txt").unlink(), "there is no .*annotations"),
            (lambda val: (val / "images" / "val_7.JPEG").unlink(), "1 annotated .*val_7.JPEG"),
            (lambda val: (val / "images" / "more.JPEG").touch(), "more.JPEG is not in .*annot"),
            (
                lambda val: (val / "val_annotations.txt").write_text("val_0.JPEG n01\n"),
                "line 1 of .* is no annotation: 'val_0.JPEG n01'",
            ),
            (
                lambda val: (val / "val_annotations.txt").write_text("val_0.JPEG\t../n01\t1\n"),
                "line 1 of .* is no annotation",
            ),
        ],
    )
    def test_set_up_never_loses_an_image(
        self, tiny_archive: Path, damage: Callable[[Path], None], message: str
    ) -> None:
        damage(tiny_archive / "tiny-imagenet-200" / "val")
        before = validation_images(tiny_archive)
        for _ in range(2):
            with pytest.raises(UserError, match=message):
                set_up(tiny_archive)
            assert validation_images(tiny_archive) == before
            with pytest.raises(UserError, match=r"run python scripts/setup_tiny_imagenet\.py"):
                load_dataset("tiny-imagenet", tiny_archive, workers=0)

    def test_set_up_overwrites_nothing(self, tiny_archive: Path) -> None:
        wnid = annotations(tiny_archive)["val_7.JPEG"]
        other = tiny_archive / "tiny-imagenet-200" / "val" / wnid / "images" / "val_7.JPEG"
        other.parent.mkdir(parents=True)
        other.write_bytes(b"something else")
        with pytest.raises(UserError, match=r"both .*val_7\.JPEG and .*val_7\.JPEG exist"):
            set_up(tiny_archive)
        assert other.read_bytes() == b"something else"
        assert (tiny_archive / "tiny-imagenet-200" / "val" / "images" / "val_7.JPEG").is_file()

    @pytest.mark.parametrize(
        ("content", "reason"),
        [(b"", "cannot identify"), (b"\xff\xd8\xff\xe0", ""), (None, r"\(32, 48\) pixels")],
    )
    def test_damaged_images_are_named(
        self, tiny_imagenet: Path, content: bytes | None, reason: str
    ) -> None:
        path = next((tiny_imagenet / "tiny-imagenet-200" / "train").rglob("*.JPEG"))
        if content is None:
            Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(path)
        else:
            path.write_bytes(content)
        with pytest.raises(UserError, match=f"image {path} cannot be read .*{reason}") as caught:
            load_dataset("tiny-imagenet", tiny_imagenet, workers=0)
        assert "\n" not in str(caught.value)


class TestImagenetFolders:
    def test_images_and_classes_are_those_of_torchvisions_image_folder(
        self, imagenet: Path
    ) -> None:
        dataset = load_dataset("imagenet", imagenet, classes=3, workers=0)
        evaluation = transforms.Compose(
            [transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()]
        )
        for split, part in ((dataset.train, "train"), (dataset.test, "val")):
            folder = datasets.ImageFolder(imagenet / "imagenet_raw" / part, evaluation)
            assert split.targets.tolist() == folder.targets
            inputs = torch.cat([inputs for inputs, _ in split.in_order(2)])
            assert torch.equal(inputs, torch.stack([image for image, _ in folder]))
        assert len(dataset.train) == 11
        assert len(dataset.test) == 5

    @pytest.mark.parametrize("classes", [2, 1000])
    def test_the_number_of_classes_must_be_right(self, imagenet: Path, classes: int) -> None:
        with pytest.raises(UserError, match=f"--classes is {classes}; use --classes 3"):
            load_dataset("imagenet", imagenet, classes=classes)

    def test_missing_folders_are_named_in_one_line(self, imagenet: Path, tmp_path: Path) -> None:
        folder = imagenet / "imagenet_raw"
        (folder / "val" / "n00000002").rename(folder / "n00000002")
        with pytest.raises(UserError, match="class folder n00000002 is not in both train and val"):
            load_dataset("imagenet", imagenet, classes=3)
        (folder / "val" / "n00000002").mkdir()
        with pytest.raises(UserError, match="no valid file for the classes n00000002") as caught:
            load_dataset("imagenet", imagenet, classes=3)
        assert "\n" not in str(caught.value)
        with pytest.raises(UserError, match=r"empty/imagenet_raw/train: it is not there; put"):
            load_dataset("imagenet", tmp_path / "empty")

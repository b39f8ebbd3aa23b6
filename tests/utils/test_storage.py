"""Files are whole or absent, and arrays come back as they were."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.runs import run_code
from Utils.errors import Unreadable, UserError
from Utils.storage import datasets, open_hdf5, read_json, write_atomically, write_hdf5, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------- atomicity


def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_atomically(path, lambda file: file.write_text("old"))

    def write(file: Path) -> None:
        assert file.parent == path.parent  # on the same disk, so that it can be renamed
        file.write_text("half")
        assert path.read_text() == "old"

    write_atomically(path, write)
    assert path.read_text() == "half"
    assert names(path.parent) == ["a.txt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(file: Path) -> None:
        file.write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_atomically(path, write)
    assert (path.read_text(), names(tmp_path)) == ("old", ["a.txt"])


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    code = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from Utils.storage import write_atomically\n"
        "def write(file):\n"
        "    file.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"write_atomically(Path({str(path)!r}), write)\n"
    )
    assert run_code(code) == -9
    assert path.read_text() == "old"
    write_atomically(path, lambda file: file.write_text("new"))
    assert (path.read_text(), names(tmp_path)) == ("new", ["a.txt"])


def test_the_content_is_on_the_disk_before_the_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("fsync", "replace"):
        monkeypatch.setattr(f"os.{name}", lambda *_, name=name: calls.append(name))
    write_atomically(tmp_path / "a.txt", lambda file: file.write_text("new"))
    assert calls == ["fsync", "replace"]


@pytest.mark.parametrize("where", ["file/a.txt", "file/below/a.txt", "folder"])
def test_paths_that_cannot_be_written(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(UserError, match=r"cannot access .*everything written before is intact"):
        write_atomically(tmp_path / where, lambda file: file.write_text("new"))
    assert names(tmp_path) == ["file", "folder"]


# ---------------------------------------------------------------- JSON


def test_json_comes_back(tmp_path: Path) -> None:
    content = {"b": [1, 2.5, None], "a": {"ü": True}}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json", "", "") == content
    assert list(json.loads((tmp_path / "a.json").read_text())) == ["a", "b"]


def test_unreadable_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(UserError, match=r"a\.json does not exist; train first$"):
        read_json(path, "train first", "restore it")
    path.write_text('{"a": ')
    with pytest.raises(UserError, match=r"a\.json is damaged \(.*\); restore it$"):
        read_json(path, "train first", "restore it")
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"a\.json: this path is a folder"):
        read_json(path, "train first", "restore it")


# ---------------------------------------------------------------- HDF5

ARRAYS: dict[str, Any] = {
    "z/w": np.arange(6.0).reshape(2, 3),
    "z/a/b": np.array([True, False]),
    "z/a/empty": np.zeros((0, 3), np.float32),
    "t": np.arange(2),
    "word": "ü",
    "b": np.float32(0.1),
}


def test_arrays_come_back_as_they_were_and_in_order(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "a.h5", ARRAYS, {"step": 3}, array_attributes={"z/w": {"why": "so"}})
    with open_hdf5(tmp_path / "a.h5", "") as file:
        found = {path: dataset[()] for path, dataset in datasets(file)}
        assert list(found) == ["z/w", "z/a/b", "z/a/empty", "t", "word", "b"]
        assert file.attrs["step"] == 3
        assert file["z/w"].attrs["why"] == "so"
    assert found.pop("word").decode() == "ü"
    for path, array in found.items():
        assert array.dtype == np.asarray(ARRAYS[path]).dtype
        assert np.array_equal(array, ARRAYS[path])


def test_the_same_arrays_make_the_same_file(tmp_path: Path) -> None:
    for name in ("a.h5", "b.h5"):
        write_hdf5(tmp_path / name, ARRAYS, {"step": 3})
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_dimension_scales_are_attached_and_named(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "a.h5", ARRAYS | {"u": np.arange(3)}, None, {"z/w": ("t", "u")})
    with h5py.File(tmp_path / "a.h5") as file:
        assert [dim[0].name for dim in file["z/w"].dims] == ["/t", "/u"]
        assert [dim.keys() for dim in file["z/w"].dims] == [["t"], ["u"]]


def test_a_large_array_is_written_in_full(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(1 << 20,))
    write_hdf5(tmp_path / "a.h5", {"x": array})
    with h5py.File(tmp_path / "a.h5") as file:
        assert np.array_equal(file["x"][()], array)
        offset = file["x"].id.get_offset()
    assert np.array_equal(np.fromfile(tmp_path / "a.h5", offset=offset, count=1 << 20), array)


def test_a_full_disk_is_one_error_and_no_crash(tmp_path: Path) -> None:
    """HDF5's own driver would print a traceback for each object, and crash at exit."""
    path = tmp_path / "a.h5"
    write_hdf5(path, {"old": 1})
    old = path.read_bytes()
    code = (
        "import contextlib, io, resource, sys\n"
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from Utils.errors import UserError\n"
        "from Utils.storage import write_hdf5\n"
        "printed = io.StringIO()\n"
        f"path = Path({str(path)!r})\n"
        "arrays = {f'g{i}/{j}': np.ones(100) for i in range(9) for j in range(9)}\n"
        "for limit in (0, 1000, 30_000):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))\n"
        "    try:\n"
        "        with contextlib.redirect_stderr(printed): write_hdf5(path, arrays)\n"
        "    except UserError as error:\n"
        "        assert 'a.h5: the file-size limit was reached' in str(error)\n"
        "    else:\n"
        "        sys.exit(3)\n"
        "assert printed.getvalue() == '', printed.getvalue()\n"
    )
    assert run_code(code) == 0
    assert (path.read_bytes(), names(tmp_path)) == (old, ["a.h5"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"a\.h5 does not exist; make it$"),
        (b"", r"a\.h5 is damaged or no HDF5 file; make it$"),
        (b"no HDF5", r"a\.h5 is damaged or no HDF5 file; make it$"),
        ("truncated", r"a\.h5 is damaged or no HDF5 file; make it$"),
        ("whole", r"a\.h5 is damaged or incomplete \(.*'nothing'.*\); make it$"),
    ],
)
def test_unreadable_hdf5(tmp_path: Path, content: bytes | str | None, message: str) -> None:
    path = tmp_path / "a.h5"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        write_hdf5(path, ARRAYS)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if content == "truncated" else whole)
    with pytest.raises(Unreadable, match=message), open_hdf5(path, "make it") as file:
        file["nothing"]


def test_a_folder_is_no_hdf5_file(tmp_path: Path) -> None:
    message = r"a file was expected|damaged or no HDF5"
    with pytest.raises(UserError, match=message), open_hdf5(tmp_path, "make it"):
        pass

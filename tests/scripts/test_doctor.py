"""The doctor, as a process, on this machine and on what is broken for it."""

import json
import re
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from scripts.health import Finding, Level
from scripts.health.devices import TOLERANCES, check_torchvision, check_xla, judge
from scripts.health.machine import judge_shared_memory
from scripts.health.storage import judge_space
from scripts.health.versions import check_versions
from tests.scripts.doctors import ROOT, doctor, failure


def test_this_machine_is_healthy(tmp_path: Path) -> None:
    """Everything at once, XLA on a CPU included, in the time that is promised."""
    begin = time.monotonic()
    code, lines = doctor("--save-dir", str(tmp_path / "new" / "folder"), PJRT_DEVICE="CPU")
    assert code == 0
    assert time.monotonic() - begin < 60  # 8 s on a quiet machine, which this one may not be
    checked = {line.split()[1] for line in lines[:-1] if line.startswith(("ok", "warn"))}
    names = {"python", "packages", "torch", "machine", "disk", "hdf5", "cpu", "torchvision", "xla"}
    assert names <= checked
    (xla,) = (line for line in lines if "xla  " in line)
    assert re.search(r"1 × CPU; .* float64 \de-1\d, float32 \de-0[78], bfloat16 \de-03$", xla)
    assert re.fullmatch(r"0 failed, \d+ to look at, \d+ ok", lines[-1])
    assert list(tmp_path.iterdir()) == []


def test_it_runs_as_a_module_and_says_what_it_can_do() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.doctor", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--save-dir" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "xla,gpu"], "--only: unknown check 'gpu'; available: versions, "),
        (["--timeout", "0"], "--timeout 0.0: give a number of seconds above 0"),
        (["--save-dirs", "a"], "unrecognized arguments: --save-dirs a; see --help"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "doctor.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"doctor.py: error: {message}")


def test_it_starts_without_any_package(tmp_path: Path) -> None:
    """-S leaves out the packages: what needs them is a failure, not a traceback."""
    done = subprocess.run(
        [
            *(sys.executable, "-S", str(ROOT / "scripts" / "doctor.py")),
            *("--only", "versions,disk,hdf5,cpu", "--save-dir", str(tmp_path)),
        ],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (1, "")
    levels = [(line.split()[0], line.split()[1]) for line in done.stdout.splitlines()[:-1]]
    assert [x for x in levels if x[0] != "fix:"] == [
        *(("FAIL", "versions"), ("ok", "disk"), ("FAIL", "hdf5"), ("FAIL", "cpu")),
    ]
    assert "No module named 'packaging'" in done.stdout
    assert "fix: python -m pip install -r requirements.txt" in done.stdout


# Versions


def pretend(folder: Path, name: str, number: str, *needs: str) -> str:
    """Metadata of a package, found before the real one by Python started with this PYTHONPATH."""
    metadata = folder / f"{name.replace('-', '_')}-{number}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {number}"]
    metadata.write_text("\n".join([*lines, *(f"Requires-Dist: {need}" for need in needs), ""]))
    return str(folder)


def test_torch_xla_for_another_torch(tmp_path: Path) -> None:
    found, fix = failure("--only=versions", PYTHONPATH=pretend(tmp_path, "torch-xla", "2.7.0"))
    assert found == f"torch-xla    2.7.0 is made for another torch than {version('torch')}"
    assert "pip install -r requirements.txt" in fix


def test_torchvision_for_another_torch(tmp_path: Path) -> None:
    path = pretend(tmp_path, "torchvision", "0.26.0", "torch==2.11.0")
    found, _ = failure("--only=versions", PYTHONPATH=path)
    assert found == f"torchvision  0.26.0 is made for torch==2.11.0, not {version('torch')}"


def test_a_package_that_is_too_old(tmp_path: Path) -> None:
    found, _ = failure("--only=versions", PYTHONPATH=pretend(tmp_path, "h5py", "2.0"))
    assert found == "h5py         2.0; >=3.11 is needed"


def test_a_package_that_was_not_tested_is_a_warning(tmp_path: Path) -> None:
    code, lines = doctor("--only=versions", PYTHONPATH=pretend(tmp_path, "numpy", "99.0"))
    assert code == 0
    (line,) = (line for line in lines if line.startswith("warn"))
    assert line.split()[1:3] == ["numpy", "99.0;"]


def test_a_python_that_is_too_old(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('requires-python = ">=4.2"\n')
    (tmp_path / "requirements.txt").touch()
    (finding,) = check_versions(tmp_path)
    assert (finding.level, finding.what) == ("FAIL", "python")


def test_a_missing_package(tmp_path: Path) -> None:
    project = '[project]\nrequires-python = ">=3.11"\ndependencies = ["no-such-thing>=1"]\n'
    (tmp_path / "pyproject.toml").write_text(project.replace("[project]\n", "[project]\n\n"))
    (tmp_path / "requirements.txt").write_text("no-such-thing==2  # why\n")
    (finding,) = (f for f in check_versions(tmp_path) if f.level == "FAIL")
    assert finding.what == "no-such-thing"
    assert finding.found == "not installed; >=1 is needed"


# Devices


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise ImportError('torch_xla.so: undefined symbol: x')", "ImportError: torch_xla.so: un"),
        ("import os; os.abort()", "exit -6"),
    ],
)
def test_an_xla_that_does_not_start(tmp_path: Path, code: str, message: str) -> None:
    (tmp_path / "torch_xla.py").write_text(code)
    found, fix = failure("--only=xla", PYTHONPATH=str(tmp_path), PJRT_DEVICE="TPU")
    assert found.startswith(f"xla          PJRT_DEVICE=TPU: {message}")
    assert "PJRT_DEVICE=CPU or unset" in fix


def test_a_tpu_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch_xla.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (finding,) = check_xla(seconds=0.5)
    assert (finding.level, finding.what) == ("FAIL", "xla")
    assert "end the process that holds the TPU" in finding.fix


@pytest.mark.parametrize(("kind", "levels"), [("CPU", ["FAIL", "ok"]), ("TPU", ["ok"])])
def test_tpu_chips_that_are_not_used(
    monkeypatch: pytest.MonkeyPatch, kind: str, levels: list[Level]
) -> None:
    answer = {"errors": {"float64": 1e-16}, "type": kind, "count": 8, "chips": 4}
    done = subprocess.CompletedProcess([], 0, f"a warning\n{json.dumps(answer)}\n", "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    findings = list(check_xla())
    assert [finding.level for finding in findings] == levels
    assert findings[-1].found.startswith(f"8 × {kind};")


@pytest.mark.parametrize(
    ("errors", "level", "names"),
    [
        ({"float64": 1e-16, "float32": 1e-7, "bfloat16": 2e-3}, "ok", []),
        ({"float64": 1e-16, "float32": 2e-3, "bfloat16": 2e-3}, "warn", ["float32"]),
        ({"float64": 1e-8, "float32": 1e-7, "bfloat16": 2e-3}, "warn", ["float64"]),
        ({"float64": 1e-16, "float32": 0.5, "bfloat16": 2e-3}, "FAIL", []),
        ({"float64": 0.5, "float32": 2e-3, "bfloat16": 2e-3}, "FAIL", []),
        ({"float64": 1e-16, "float32": float("nan"), "bfloat16": 2e-3}, "FAIL", []),
        ({"float64": 1e-16, "float32": 1e-7, "bfloat16": 0.5}, "FAIL", []),
    ],
)
def test_errors_are_judged(errors: dict[str, float], level: Level, names: list[str]) -> None:
    finding = judge("tpu", "a TPU", errors)
    assert finding.level == level
    assert bool(finding.fix) == (level != "ok")
    for name in names:
        assert f"{name} {errors[name]:.0e} (at most {TOLERANCES[name][0]:.0e})" in finding.found
        assert finding.fix.startswith(f"{name} is computed in a narrower format")


def test_a_broken_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    (finding,) = check_torchvision()
    assert finding.level == "FAIL"
    assert finding.found.startswith("ModuleNotFoundError: import of torchvision halted")
    assert "pip install" in finding.fix


def test_a_torchvision_that_computes_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import ops

    monkeypatch.setattr(ops, "nms", lambda boxes, scores, threshold: scores.argsort())
    (finding,) = check_torchvision()
    assert (finding.level, bool(finding.fix)) == ("FAIL", True)


# The disk


@pytest.mark.parametrize("name", ["disk", "hdf5"])
def test_a_folder_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    """A file in its place: neither root nor anybody else can make a folder there."""
    (tmp_path / "file").touch()
    found, fix = failure(f"--only={name}", "--save-dir", str(tmp_path / "file" / "results"))
    assert found.startswith(name)
    assert str(tmp_path / "file") in found
    assert "--save-dir" in fix


@pytest.mark.parametrize("name", ["disk", "hdf5"])
def test_a_full_disk(tmp_path: Path, name: str) -> None:
    """Files may have 100 bytes; the limit is inherited by the process."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        code, lines = doctor(f"--only={name}", "--save-dir", str(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1
    assert lines[0].startswith(f"FAIL  {name}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("finding", "level"),
    [
        (judge_space(Path("a"), 10**10), "ok"),
        (judge_space(Path("a"), 10**9), "warn"),
        (judge_space(Path("a"), 10**6), "FAIL"),
        (judge_shared_memory(10**9), "ok"),
        (judge_shared_memory(64 * 2**20), "warn"),
    ],
)
def test_space_is_judged(finding: Finding, level: Level) -> None:
    assert finding.level == level
    assert bool(finding.fix) == (level != "ok")

"""``scripts/run_on_tpu.sh`` and what it has the hosts do, against a stand-in for gcloud."""

import os
import re
import shlex
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.scripts.gcloud import FLAGS, NODE, PLACE, ROOT, GCloud, link, reply


def remote(call: list[str]) -> str:
    """The line of shell that a call of ssh runs on every host."""
    assert call[:7] == [*NODE, "ssh", "lm-0", *PLACE]
    assert "--worker=all" in call
    return call[-1].removeprefix("--command=")


def test_a_command_runs_on_all_hosts_with_its_words_intact(gcloud: GCloud, tmp_path: Path) -> None:
    """The line is run by another shell, sh, in place of the host's."""
    words = ["two words", "it's", '"$HOME"', "a\nb", "", "*", "--lr=0.1", "µ"]
    code, *_ = gcloud.run("run_on_tpu", "lm-0", *FLAGS, "--no-sync", "--", "printf", "<%s>", *words)
    assert code == 0
    (call,) = gcloud.calls
    (tmp_path / "learning-mechanics").mkdir()
    line = remote(call).replace("/tmp/run_on_tpu", str(tmp_path / "run"))
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout.decode() == "".join(f"<{word}>" for word in words)


def test_the_dashes_may_be_left_out(gcloud: GCloud) -> None:
    gcloud.run(
        "run_on_tpu", "--zone=us-east5-b", "--project=p", "--no-sync", "lm-0", "ls", "--help"
    )
    assert remote(gcloud.calls[0]).endswith("exec ls --help")


@pytest.mark.parametrize("code", [0, 3, 130])
def test_log_and_exit_code_are_the_commands(gcloud: GCloud, code: int) -> None:
    gcloud.answer({"tpu-vm ssh": [reply("step 1\n", code, err="warning\n")]})
    done = gcloud.run("run_on_tpu", "lm-0", *FLAGS, "--no-sync", "--", "python", "train.py")
    assert done == (code, "step 1\n", "warning\n")


def test_the_working_tree_is_copied_first(gcloud: GCloud) -> None:
    """The stand-in keeps nothing, so a wrapper around it copies the archive away."""
    program = gcloud.folder / "bin" / "gcloud"
    program.rename(program.with_name("gcloud-stand-in"))
    program.write_text('#!/bin/sh\n[ "$4" != scp ] || cp "$5" kept\nexec gcloud-stand-in "$@"\n')
    program.chmod(0o755)
    assert gcloud.run("run_on_tpu", "lm-0", *FLAGS, "--", "python", "train.py")[0] == 0
    copied, unpacked, command = gcloud.calls
    archive = copied[4]
    assert copied == [*NODE, "scp", archive, "lm-0:tree.tgz", *PLACE, "--worker=all"]
    assert not Path(archive).parent.exists()
    with tarfile.open(gcloud.folder / "kept") as tree:
        names = set(tree.getnames())
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert {name for name in tracked if (ROOT / name).exists()} <= names
    assert not any(name.startswith((".git/", "results/", ".venv/")) for name in names)
    assert remote(unpacked).endswith("bash scripts/setup_tpu_host.sh")
    assert remote(command).endswith("exec python train.py")


def test_a_failed_copy_runs_nothing(gcloud: GCloud) -> None:
    gcloud.answer({"tpu-vm ssh": [reply(code=9)]})
    assert gcloud.run("run_on_tpu", "lm-0", *FLAGS, "--", "python", "train.py")[0] == 9
    assert [call[3] for call in gcloud.calls] == ["scp", "ssh"]


def test_a_second_copy_removes_what_is_gone_and_keeps_results(
    gcloud: GCloud, tmp_path: Path
) -> None:
    """The line that unpacks, run here as a host would, on two archives."""
    gcloud.run("run_on_tpu", "lm-0", *FLAGS, "--", "true")
    line = remote(gcloud.calls[1])
    host = tmp_path / "host"
    for names in (["a b.py", "scripts/setup_tpu_host.sh", "ä"], ["scripts/setup_tpu_host.sh"]):
        host.mkdir(exist_ok=True)
        with tarfile.open(host / "tree.tgz", "w:gz") as tree:
            for name in names:
                (tmp_path / "file").write_text("touch results-are-kept\n")
                tree.add(tmp_path / "file", name)
        subprocess.run(["sh", "-c", line], cwd=host, check=True)
    assert {path.name for path in (host / "learning-mechanics").iterdir()} == {
        *("scripts", "results-are-kept", ".tree.tgz"),
    }


@pytest.fixture
def host(gcloud: GCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a host: a folder here, which the stand-in copies to and runs commands in."""
    home = tmp_path / "home"
    (home / "learning-mechanics" / ".venv" / "bin").mkdir(parents=True)
    (home / "learning-mechanics" / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (gcloud.folder / "bin" / "gcloud").write_text(
        '#!/bin/bash\nif [ "$4" = scp ]; then exec cp "$5" "$HOST/${6#*:}"; fi\n'
        'command=${*: -1}; cd "$HOST" && exec sh -c "${command#--command=}"\n'
    )
    monkeypatch.setenv("HOST", str(home))
    return home


def test_the_tree_arrives_and_runs(gcloud: GCloud, host: Path) -> None:
    """From the copy to the exit code, with a host that has its environment already."""
    environment = host / "learning-mechanics" / ".venv"
    (environment / "installed").write_text((ROOT / "requirements.txt").read_text())
    code = "import os, sys, Utils; print(os.environ['PJRT_DEVICE'], Utils.__file__); sys.exit(5)"
    done = gcloud.run("run_on_tpu", "lm-0", *FLAGS, "--", "python", "-c", code)
    assert done == (5, f"TPU {host / 'learning-mechanics' / 'Utils' / '__init__.py'}\n", "")
    assert (environment / "bin" / "python").exists()


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "INT"), (signal.SIGTERM, "TERM")])
def test_signals_reach_the_command(
    gcloud: GCloud, host: Path, number: signal.Signals, name: str
) -> None:
    """Ctrl-C goes to the script's process group; the command gets it once, and ends itself."""
    code = (
        "import signal, sys, time\n"
        "def end(*_): print('saved a checkpoint', flush=True); sys.exit(77)\n"
        f"signal.signal(signal.SIG{name}, end)\n"
        "print('step 1', flush=True)\n"
        "time.sleep(60)"
    )
    words = ["lm-0", *FLAGS, "--no-sync", "--", "python", "-c", code]
    with gcloud.start("run_on_tpu", *words) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "step 1\n"
        os.killpg(process.pid, number)
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (77, "saved a checkpoint\n")
    assert errors == f"run_on_tpu.sh: passing SIG{name} on to the command\n"


@pytest.mark.parametrize(
    ("usable", "making"),
    [
        ("python3.12", ["python3.12 -m venv .venv"]),
        (
            "",
            [
                "python3 -m pip install --user --quiet uv==0.13.9",
                "python3 -m uv venv --quiet --seed --python 3.12 .venv",
            ],
        ),
    ],
)
def test_the_host_is_set_up_once(tmp_path: Path, usable: str, making: list[str]) -> None:
    """With stand-ins for python, of which one or none says that its version will do."""
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts" / "setup_tpu_host.sh"
    script.write_text((ROOT / "scripts" / "setup_tpu_host.sh").read_text())
    (tmp_path / "requirements.txt").write_text((ROOT / "requirements.txt").read_text())
    programs = tmp_path / "bin"
    programs.mkdir()
    path = link(programs, "bash", "cmp", "cp", "dirname", "mkdir", "rm", "sed", "sh")
    for name in ("python3.13", "python3.12", "python3"):
        (programs / name).write_text(
            f'#!/bin/sh\necho "{name} $*" >> log\n[ "$1" != -c ] || exit {int(name != usable)}\n'
            'case "$*" in *venv*) mkdir -p .venv/bin; '
            f"cp {programs}/{name} .venv/bin/python;; esac\n"
        )
        (programs / name).chmod(0o755)
    for _ in range(2):
        subprocess.run([programs / "bash", script], env={"PATH": path}, cwd="/", check=True)
    calls = [line for line in (tmp_path / "log").read_text().splitlines() if " -c " not in line]
    (pinned,) = re.findall(r"^torch-xla==([0-9.]+)", (ROOT / "requirements.txt").read_text(), re.M)
    assert calls[:-1] == making
    assert calls[-1].endswith(
        "-m pip install --quiet --disable-pip-version-check "
        f"-r requirements.txt torch-xla[tpu]=={pinned}"
    )


def test_a_dry_run_prints_what_a_run_calls(gcloud: GCloud) -> None:
    arguments = ["lm-0", *FLAGS, "--no-sync", "--", "python", "train.py", "it's", "a b"]
    _, output, _ = gcloud.run("run_on_tpu", "--dry-run", *arguments)
    gcloud.run("run_on_tpu", *arguments)
    printed, (called,) = shlex.split(output), gcloud.calls
    number = re.compile(r"run_on_tpu\.\d+")
    assert [number.sub("", word) for word in printed] == [
        "gcloud",
        *(number.sub("", word) for word in called),
    ]

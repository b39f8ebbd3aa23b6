"""The shell scripts for TPU VMs and buckets, against a stand-in that records their calls."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.scripts.gcloud import ROOT, GCloud, reply

SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))
NODE = ["compute", "tpus", "tpu-vm"]
QUEUED = ["compute", "tpus", "queued-resources"]
PLACE = ["--zone=us-east5-b", "--project=p"]
FLAGS = ["--zone", "us-east5-b", "--project=p"]
CREATE = [*FLAGS, "--type", "v6e-8", "--poll", "0.01", "--no-install"]


@pytest.fixture
def gcloud(tmp_path: Path) -> GCloud:
    return GCloud(tmp_path / "gcloud")


def test_shellcheck_finds_nothing() -> None:
    checker = Path(sys.executable).with_name("shellcheck")
    files = [str(path.relative_to(ROOT)) for path in (*SCRIPTS, ROOT / ".ci" / "run")]
    assert len(files) >= 7
    done = subprocess.run(
        [checker, "--external-sources", *files], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("script", ["make_tpus", "run_on_tpu", "sync_gcloud", "kill_all"])
def test_help_names_every_flag(gcloud: GCloud, script: str) -> None:
    code, output, errors = gcloud.run(script, "--help")
    assert (code, errors, gcloud.calls) == (0, "", [])
    source = (ROOT / "scripts" / f"{script}.sh").read_text()
    flags = re.findall(r"^ {8}(--[a-z-]+)[ |)]", source, re.MULTILINE)
    for flag in {*flags, "--dry-run", "--project"} - {"--"}:
        assert flag in output


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("make_tpus --type v6e-8", "--zone is missing; give the zone"),
        ("make_tpus --zone z", "--type is missing; give an accelerator type"),
        ("make_tpus --zone z --type tpu9-1", "--type tpu9-1: no image is known for it"),
        ("make_tpus --zone z --type v4-8 --count 0", "--count 0: give a number of nodes"),
        ("make_tpus --zone z --type", "--type is missing its value"),
        ("make_tpus --zone z --typ v4-8", "unknown argument '--typ'"),
        ("run_on_tpu --zone z -- true", "the TPU VM's name is missing"),
        ("run_on_tpu lm-0 --zone z", "the command is missing"),
        ("run_on_tpu lm-0 -- true", "--zone is missing"),
        ("sync_gcloud results", "1 places given"),
        ("sync_gcloud a b", "neither place is a bucket"),
        ("sync_gcloud gs://a gs://b", "both places are buckets"),
        ("sync_gcloud missing gs://b/p", "missing is no folder"),
        ("kill_all --zone z", "--prefix is missing"),
        ("kill_all --zone z --prefix=", "--prefix is missing"),
    ],
)
def test_mistakes_are_one_line_and_call_nothing(gcloud: GCloud, line: str, message: str) -> None:
    script, *arguments = line.split()
    code, output, errors = gcloud.run(script, *arguments)
    assert (code, output, gcloud.calls) == (2, "", [])
    (error,) = errors.splitlines()
    assert error.startswith(f"{script}.sh: error: {message}")


def test_a_machine_without_gcloud_is_told(gcloud: GCloud) -> None:
    (gcloud.folder / "bin" / "gcloud").unlink()
    environment = gcloud.environment | {"PATH": f"{gcloud.folder / 'bin'}"}
    for tool in ("bash", "awk", "dirname"):
        (gcloud.folder / "bin" / tool).symlink_to(str(shutil.which(tool)))
    done = subprocess.run(
        ["bash", ROOT / "scripts" / "kill_all.sh", "--zone", "z", "--prefix", "lm"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "gcloud is not installed" in done.stderr


# Creating


def created(gcloud: GCloud) -> list[list[str]]:
    return sorted(call for call in gcloud.calls if call[3] == "create")


def test_queued_nodes_are_created_and_waited_for(gcloud: GCloud) -> None:
    states = ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    replies = [reply(code=1), *(reply(f"{state}\n") for state in states)]
    gcloud.answer({"queued-resources describe a-0": replies, "queued-resources describe": replies})
    arguments = ["--queued", "--spot", "--count", "2", "--prefix", "a", "--", "--network=my net"]
    code, output, errors = gcloud.run("make_tpus", *CREATE, *arguments)
    assert (code, output) == (0, "")
    assert created(gcloud) == [
        [
            *(*QUEUED, "create", name, *PLACE, "--accelerator-type=v6e-8", f"--node-id={name}"),
            *("--runtime-version=v2-alpha-tpuv6e", "--spot", "--network=my net"),
        ]
        for name in ("a-0", "a-1")
    ]
    for name in ("a-0", "a-1"):
        described = [*QUEUED, "describe", name, *PLACE, "--format=value(state.state)"]
        assert gcloud.calls.count(described) >= 3
        said = re.findall(rf"^make_tpus.sh: {name}: (\w+)$", errors, re.MULTILINE)
        assert said == states
    assert errors.splitlines()[-1] == "make_tpus.sh: ready: a-0 a-1"


def test_a_node_is_created_directly(gcloud: GCloud) -> None:
    states = [reply(code=1), reply("CREATING\n"), reply("READY\n")]
    gcloud.answer({"tpu-vm describe": states, "tpu-vm create": [reply(seconds=0.2)]})
    assert gcloud.run("make_tpus", *CREATE, "--type=v5litepod-8")[0] == 0
    image = "--version=v2-alpha-tpuv5-lite"
    assert created(gcloud) == [
        [*NODE, "create", "lm-0", *PLACE, "--accelerator-type=v5litepod-8", image]
    ]


def test_what_exists_is_only_waited_for(gcloud: GCloud) -> None:
    gcloud.answer({"tpu-vm describe": [reply("CREATING\n"), reply("READY\n")]})
    code, _, errors = gcloud.run("make_tpus", *CREATE)
    assert (code, created(gcloud)) == (0, [])
    assert "lm-0 exists already" in errors


def test_one_failure_leaves_the_other_nodes(gcloud: GCloud) -> None:
    gone, reason = reply(code=1), reply("out of quota\n")
    gcloud.answer(
        {
            "queued-resources describe lm-0": [gone, reply("FAILED\n"), reason],
            "queued-resources describe lm-1": [gone, reply("ACTIVE\n")],
        }
    )
    code, _, errors = gcloud.run("make_tpus", *CREATE, "--queued", "--count=2")
    assert code == 1
    assert "lm-0: it will not run: out of quota" in errors
    assert "lm-1: ACTIVE" in errors
    (last,) = [line for line in errors.splitlines() if "failed: " in line]
    assert "failed: lm-0; scripts/kill_all.sh --prefix lm --zone=us-east5-b --project=p" in last


def test_a_refused_creation_is_reported(gcloud: GCloud) -> None:
    refusal = reply(code=1, err="There is no more capacity in the zone\n")
    gcloud.answer({"tpu-vm describe": [reply(code=1)], "tpu-vm create": [refusal]})
    code, _, errors = gcloud.run("make_tpus", *CREATE)
    assert code == 1
    assert "There is no more capacity in the zone" in errors
    assert "lm-0: it was not created, see above" in errors


@pytest.mark.parametrize(
    ("state", "message"),
    [("PREEMPTED", "it will not run"), ("SUSPENDED", "it will not run"), ("", "it is gone")],
)
def test_states_that_end_the_waiting(gcloud: GCloud, state: str, message: str) -> None:
    last = reply(f"{state}\n") if state else reply(code=1)
    gcloud.answer({"tpu-vm describe": [reply("CREATING\n"), reply("CREATING\n"), last]})
    code, _, errors = gcloud.run("make_tpus", *CREATE)
    assert code == 1
    assert f"lm-0: {message}" in errors


def test_waiting_ends(gcloud: GCloud) -> None:
    gcloud.answer({"queued-resources describe": [reply("WAITING_FOR_RESOURCES\n")]})
    code, _, errors = gcloud.run("make_tpus", *CREATE, "--queued", "--timeout", "0")
    assert code == 1
    assert "lm-0: not ready after 0 s; run this again to go on waiting" in errors


@pytest.mark.parametrize("code", [0, 1])
def test_ready_nodes_are_installed_and_checked(gcloud: GCloud, code: int) -> None:
    gcloud.answer({"tpu-vm describe": [reply("READY\n")], "tpu-vm ssh": [reply(code=code)]})
    flags = [flag for flag in CREATE if flag != "--no-install"]
    done, _, errors = gcloud.run("make_tpus", *flags)
    calls = [call[3:5] for call in gcloud.calls if call[3] in {"scp", "ssh"}]
    copied = next(call for call in gcloud.calls if call[3] == "scp")
    assert (copied[-4], copied[-3:-1]) == ("lm-0:tree.tgz", PLACE)
    assert done == code
    if code:
        assert "lm-0: it runs, but installing or the doctor failed on it" in errors
    else:
        assert calls == [["scp", copied[4]], ["ssh", "lm-0"], ["ssh", "lm-0"]]
        assert gcloud.calls[-1][-1].endswith("exec python -m scripts.doctor")


# Running


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


def test_the_host_is_set_up_once(tmp_path: Path) -> None:
    """With stand-ins for python: one that is too old, and one that makes environments."""
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts" / "setup_tpu_host.sh"
    script.write_text((ROOT / "scripts" / "setup_tpu_host.sh").read_text())
    (tmp_path / "requirements.txt").write_text((ROOT / "requirements.txt").read_text())
    programs = tmp_path / "bin"
    programs.mkdir()
    made = f"mkdir -p .venv/bin; cp {programs}/python3.12 .venv/bin/python"
    for name, code in (("python3.13", 1), ("python3.12", 0)):
        text = f'#!/bin/sh\necho "{name} $*" >> log\n[ "$1" != -c ] || exit {code}\n'
        (programs / name).write_text(f'{text}[ "$2" != venv ] || {{ {made}; }}\n')
        (programs / name).chmod(0o755)
    environment = {"PATH": f"{programs}:/usr/bin:/bin"}
    for _ in range(2):
        subprocess.run(["bash", script], env=environment, cwd="/", check=True)
    calls = [line for line in (tmp_path / "log").read_text().splitlines() if " -c " not in line]
    (pinned,) = re.findall(r"^torch-xla==([0-9.]+)", (ROOT / "requirements.txt").read_text(), re.M)
    assert calls == [
        "python3.12 -m venv .venv",
        "python3.12 -m pip install --quiet --disable-pip-version-check "
        f"-r requirements.txt torch-xla[tpu]=={pinned}",
    ]


# Results and the end


@pytest.mark.parametrize("into_bucket", [True, False])
def test_results_are_synchronised_either_way(gcloud: GCloud, into_bucket: bool) -> None:
    local, bucket = "my results", "gs://b/a prefix"
    if into_bucket:
        (gcloud.folder / local).mkdir()
    places = [local, bucket] if into_bucket else [bucket, local]
    assert gcloud.run("sync_gcloud", *places, "--project", "p")[0] == 0
    (call,) = gcloud.calls
    assert call[:3] == ["storage", "rsync", "--recursive"]
    assert call[4:] == ["--project=p", *places]
    pattern = re.compile(call[3].removeprefix("--exclude="))
    names = ["demo/a/ckpt/step1.tar.tmp", "demo/a/logs/train.lock", "demo/a/ckpt/step1.tar"]
    assert [bool(pattern.match(name)) for name in names] == [True, True, False]
    assert (gcloud.folder / local).is_dir()


def test_a_failed_synchronisation_is_told(gcloud: GCloud) -> None:
    gcloud.answer({"storage rsync": [reply(code=1, err="denied\n")]})
    assert gcloud.run("sync_gcloud", "gs://b/p", "here") == (1, "", "denied\n")


LISTS = {
    "queued-resources list": [reply("lm-0\tACTIVE\nlm-1\tFAILED\nother\tACTIVE\n")],
    "tpu-vm list": [
        reply("lm-0\tREADY\nlm-9\tPREEMPTED\nalm-0\tREADY\n"),
        reply("lm-9\tPREEMPTED\nalm-0\tREADY\nlm-00\tREADY\n"),
    ],
}


def deleted(gcloud: GCloud) -> list[list[str]]:
    return [call for call in gcloud.calls if call[3] == "delete"]


@pytest.mark.parametrize("asked", [True, False])
def test_all_with_the_prefix_are_deleted(gcloud: GCloud, asked: bool) -> None:
    """Queued resources with their nodes first, then the other nodes; only what was shown."""
    gcloud.answer(LISTS)
    arguments = [*FLAGS, "--prefix", "lm", *([] if asked else ["--yes"])]
    code, output, _ = gcloud.run("kill_all", *arguments, answer="y\n")
    assert code == 0
    assert [line.split()[-2:] for line in output.splitlines()] == [
        *(["lm-0", "ACTIVE"], ["lm-1", "FAILED"], ["lm-0", "READY"], ["lm-9", "PREEMPTED"]),
    ]
    assert deleted(gcloud) == [
        [*QUEUED, "delete", "lm-0", "--force", *PLACE, "--quiet"],
        [*QUEUED, "delete", "lm-1", "--force", *PLACE, "--quiet"],
        [*NODE, "delete", "lm-9", *PLACE, "--quiet"],
    ]


@pytest.mark.parametrize("answer", ["n\n", "\n", ""])
def test_without_a_yes_nothing_is_deleted(gcloud: GCloud, answer: str) -> None:
    gcloud.answer(LISTS)
    code, _, errors = gcloud.run("kill_all", *FLAGS, "--prefix", "lm", answer=answer)
    assert (code, errors) == (1, "kill_all.sh: nothing was deleted\n")
    assert deleted(gcloud) == []


def test_nothing_to_delete(gcloud: GCloud) -> None:
    gcloud.answer(LISTS)
    code, output, errors = gcloud.run("kill_all", *FLAGS, "--prefix", "lm-00", "--yes")
    assert (code, output) == (0, "")
    assert errors == "kill_all.sh: nothing in us-east5-b begins with 'lm-00'\n"


@pytest.mark.parametrize("kind", ["queued-resources", "tpu-vm"])
def test_a_failed_list_is_not_an_empty_one(gcloud: GCloud, kind: str) -> None:
    gcloud.answer({f"{kind} list": [reply(code=1, err="no account\n")]})
    code, output, errors = gcloud.run("kill_all", *FLAGS, "--prefix", "lm", "--yes")
    assert (code, output) == (1, "")
    assert "no account" in errors
    assert "cannot be listed" in errors


def test_a_failed_deletion_does_not_stop_the_others(gcloud: GCloud) -> None:
    gcloud.answer(LISTS | {"queued-resources delete lm-0": [reply(code=1)]})
    code, _, errors = gcloud.run("kill_all", *FLAGS, "--prefix", "lm", "--yes")
    assert code == 1
    assert errors.endswith("not deleted: lm-0; run this again\n")
    assert [call[4] for call in deleted(gcloud)] == ["lm-0", "lm-1", "lm-9"]


# Dry runs


@pytest.mark.parametrize(
    ("line", "calls"),
    [
        (
            "make_tpus --zone z --type v4-8 --count 2",
            ["create", "create", *2 * ["scp", *2 * ["ssh"]]],
        ),
        ("make_tpus --zone z --type v4-8 --queued --no-install", ["create"]),
        ("run_on_tpu lm-0 --zone z -- python 'a b'", ["scp", "ssh", "ssh"]),
        ("run_on_tpu lm-0 --zone z --no-sync -- python 'a b'", ["ssh"]),
        ("sync_gcloud gs://b/p results", ["--recursive"]),
        ("kill_all --zone z --prefix lm", ["list", "list", "delete", "delete"]),
    ],
)
def test_dry_runs_print_the_commands_and_run_nothing(
    gcloud: GCloud, line: str, calls: list[str]
) -> None:
    script, *arguments = shlex.split(line)
    code, output, errors = gcloud.run(script, "--dry-run", *arguments)
    assert (code, errors, gcloud.calls) == (0, "", [])
    assert not (gcloud.folder / "results").exists()
    # What was printed is a script: run, it makes these calls.
    subprocess.run(["sh", "-e", "-c", output], env=gcloud.environment, check=True)
    index = 2 if script == "sync_gcloud" else 3
    assert [call[index] for call in gcloud.calls] == calls


def test_the_documented_commands_are_right(gcloud: GCloud) -> None:
    page = (ROOT / "docs" / "operating.md").read_text()
    lines = re.findall(r"^ +scripts/(\w+)\.sh (.+)$", page, re.MULTILINE)
    assert {script for script, _ in lines} == {"make_tpus", "run_on_tpu", "sync_gcloud", "kill_all"}
    for script, arguments in lines:
        code, output, errors = gcloud.run(script, "--dry-run", *shlex.split(arguments))
        assert (code, errors) == (0, "")
        assert output


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

"""What the scripts that call gcloud have in common, ``sync_gcloud.sh`` and ``kill_all.sh``."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripts.gcloud import FLAGS, NODE, PLACE, QUEUED, ROOT, GCloud, link, reply

SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))


def test_shellcheck_finds_nothing() -> None:
    checker = Path(sys.executable).with_name("shellcheck")
    files = [str(path.relative_to(ROOT)) for path in (*SCRIPTS, ROOT / ".ci" / "run")]
    assert len(files) >= 7
    done = subprocess.run(
        [checker, "--external-sources", *files], cwd=ROOT, capture_output=True, text=True
    )
    assert not done.stdout, done.stdout
    assert done.returncode == 0


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
    environment = gcloud.environment | {"PATH": link(gcloud.folder / "bin", "bash", "dirname")}
    done = subprocess.run(
        ["bash", ROOT / "scripts" / "kill_all.sh", "--zone", "z", "--prefix", "lm"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "gcloud is not installed" in done.stderr


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

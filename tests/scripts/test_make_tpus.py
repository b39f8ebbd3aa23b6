"""``scripts/make_tpus.sh``, against a stand-in for gcloud that records its calls."""

import re

import pytest

from tests.scripts.gcloud import FLAGS, NODE, PLACE, QUEUED, GCloud, reply

CREATE = [*FLAGS, "--type", "v6e-8", "--poll", "0.01", "--no-install"]


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


def test_a_look_may_fail_now_and_then(gcloud: GCloud) -> None:
    gone, waiting = reply(code=1), reply("ACCEPTED\n")
    replies = [gone, gone, gone, waiting, gone, gone, waiting, gone, gone, reply("ACTIVE\n")]
    gcloud.answer({"queued-resources describe": replies})
    assert gcloud.run("make_tpus", *CREATE, "--queued")[0] == 0


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

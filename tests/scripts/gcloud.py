"""A recording stand-in for ``gcloud``, which answers as it is told."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

NODE = ["compute", "tpus", "tpu-vm"]
QUEUED = ["compute", "tpus", "queued-resources"]
PLACE = ["--zone=us-east5-b", "--project=p"]
FLAGS = ["--zone", "us-east5-b", "--project=p"]

# Replies are kept per call, oldest first; the last one stays. `lock` keeps calls apart that
# run at the same time.
_PROGRAM = """\
import fcntl, json, os, pathlib, sys, time
folder = pathlib.Path(os.environ["GCLOUD_FOLDER"])
argv = sys.argv[1:]
with open(folder / "lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    with open(folder / "calls", "a") as calls:
        calls.write(json.dumps(argv) + "\\n")
    rules = json.loads((folder / "rules").read_text())
    for words, replies in rules:
        if argv[: len(words)] == words or argv[2 : 2 + len(words)] == words:
            reply = replies.pop(0) if len(replies) > 1 else replies[0]
            (folder / "rules").write_text(json.dumps(rules))
            break
    else:
        reply = {}
time.sleep(reply.get("seconds", 0))
print(reply.get("out", ""), end="", flush=True)
print(reply.get("err", ""), end="", file=sys.stderr)
sys.exit(reply.get("code", 0))
"""


def reply(out: str = "", code: int = 0, err: str = "", seconds: float = 0) -> dict[str, object]:
    """One answer: what is printed, after how many seconds, and the exit code."""
    return {"out": out, "err": err, "code": code, "seconds": seconds}


@dataclass(frozen=True)
class GCloud:
    """The stand-in, first on the PATH of the scripts it starts.

    Attributes:
        folder: its program, the rules and the record of calls.
    """

    folder: Path

    def __post_init__(self) -> None:
        program = self.folder / "bin" / "gcloud"
        program.parent.mkdir(parents=True)
        program.write_text(f"#!{sys.executable} -IS\n{_PROGRAM}")
        program.chmod(0o755)
        self.answer({})

    def answer(self, rules: dict[str, list[dict[str, object]]]) -> None:
        """Set the replies by the first words of a call (``compute tpus`` may be left out)."""
        content = [(shlex.split(words), replies) for words, replies in rules.items()]
        (self.folder / "rules").write_text(json.dumps(content))

    @property
    def calls(self) -> list[list[str]]:
        """The arguments of each call so far."""
        record = self.folder / "calls"
        return [json.loads(x) for x in record.read_text().splitlines()] if record.exists() else []

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return os.environ | {"PATH": path, "GCLOUD_FOLDER": str(self.folder)}

    def start(self, script: str, *arguments: str) -> "subprocess.Popen[str]":
        """Start ``scripts/<script>.sh``."""
        return subprocess.Popen(
            [str(ROOT / "scripts" / f"{script}.sh"), *arguments],
            env=self.environment,
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a process group of its own, as in a terminal
        )

    def run(self, script: str, *arguments: str, answer: str = "") -> tuple[int, str, str]:
        """Run a script; returns its exit code, and what it wrote to stdout and stderr."""
        process = self.start(script, *arguments)
        output, errors = process.communicate(answer, timeout=60)
        return process.returncode, output, errors


def link(folder: Path, *tools: str) -> str:
    """A PATH of one folder, with programs of this machine."""
    for tool in tools:
        (folder / tool).symlink_to(str(shutil.which(tool)))
    return str(folder)

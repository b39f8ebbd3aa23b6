"""A sweep over networks of one test's own, which misbehave and keep a journal of all steps."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.runs import ROOT

STEPS = 6
"""Of each run."""

_MODELS = """
import os, signal, time
from pathlib import Path
from torch import nn

FOLDER = Path(__file__).parent

def once(name):
    try:
        (FOLDER / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True

def network(name, classes):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    gradients = []
    def on_step(gradient):
        gradients.append(gradient)
        with open(FOLDER / "journal", "a") as journal:
            journal.write(name + "\\n")
        if name.startswith("slow"):
            (FOLDER / name).touch()
            time.sleep(0.3)
        if len(gradients) != 3:
            return
        if name == "raises" and not (FOLDER / "mended").exists():
            raise ArithmeticError("no such number")
        if name == "is_killed" and once("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "sees_the_machine_die" and once("dying"):
            time.sleep(60)
    model[1].weight.register_hook(on_step)
    return model

def __getattr__(name):
    return lambda input_shape, num_classes: network(name, num_classes)
"""


class Sweep:
    """Runs of six steps with a checkpoint after each.

    Args:
        folder: for everything.
        names: of the runs.

    Attributes:
        environment: in which it is started.
    """

    def __init__(self, folder: Path, names: list[str]):
        self.folder = folder
        file = folder / "models.py"
        file.write_text(_MODELS)
        self.config = folder / "sweep.yaml"
        content = {
            "experiment": "e",
            "save_dir": str(folder),
            "jobs": 2,
            "save_freq": 1,
            "epochs": 1,
            "train_batch_size": 240,
            "model": [f"{file}:{name}" for name in names],
        }
        self.config.write_text(json.dumps(content))  # which is YAML
        self.environment: Mapping[str, str] = os.environ | {"OMP_NUM_THREADS": "1"}

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start ``python -m scripts.sweep`` in a group of processes of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "scripts.sweep", *arguments, "--config", str(self.config)],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str) -> tuple[int, list[str], str]:
        """Its exit code, the lines it prints, and its errors."""
        process = self.start(*arguments)
        output, errors = process.communicate(timeout=240)
        return process.returncode, output.splitlines(), errors

    def steps(self) -> Counter[str]:
        """How often a gradient was computed in each run."""
        return Counter((self.folder / "journal").read_text().split())

    def attempts(self) -> dict[str, list[dict[str, Any]]]:
        """The attempts at each run that was begun."""
        found = {}
        for run in (self.folder / "e").glob("*/hyperparameters.json"):
            name = json.loads(run.read_text())["model"].rpartition(":")[2]
            files = sorted((run.parent / "logs").glob("attempt-*.json"))
            found[name] = [json.loads(file.read_text()) for file in files]
        return found


def wait_for(path: Path) -> None:
    """Wait until there is such a file."""
    end = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.02)

"""The doctor as the process that a user starts."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

FORGOTTEN = {"GOOGLE_APPLICATION_CREDENTIALS", "STORAGE_EMULATOR_HOST", "PJRT_DEVICE"}


def doctor(*arguments: str, **environment: str) -> tuple[int, list[str]]:
    """Run the doctor; returns its exit code and lines."""
    variables = {name: value for name, value in os.environ.items() if name not in FORGOTTEN}
    done = subprocess.run(
        [sys.executable, "-B", str(ROOT / "scripts" / "doctor.py"), *arguments],
        env=variables | {"OMP_NUM_THREADS": "1"} | environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout.splitlines()


def failure(*arguments: str, **environment: str) -> tuple[str, str]:
    """The first failure, and its fix, of a doctor that must find one."""
    code, lines = doctor(*arguments, **environment)
    assert code == 1
    index = next(i for i, line in enumerate(lines) if line.startswith("FAIL  "))
    assert lines[index + 1].startswith("      fix: ")
    return lines[index].removeprefix("FAIL  "), lines[index + 1].removeprefix("      fix: ")

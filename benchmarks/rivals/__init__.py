"""neural-tangents' times beside ours: measured in its own environment, or stored ones.

``NEURAL_TANGENTS`` names the interpreter of that environment
(``scripts/neural_tangents/requirements.txt``)::

    NEURAL_TANGENTS=ENV/bin/python python -m benchmarks tangent infinite
    NEURAL_TANGENTS=ENV/bin/python python -m benchmarks.rivals     # measure and store all cases

Without it a benchmark shows the times in ``neural_tangents.json``, and says so: they are another
machine's unless yours has measured them.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rivals.cases import Case
from Utils.errors import UserError

ROOT = Path(__file__).parents[2]
STORED = Path(__file__).with_name("neural_tangents.json")
VARIABLE = "NEURAL_TANGENTS"

_SINGLE_THREAD = {
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "OMP_NUM_THREADS": "1",
    "JAX_PLATFORMS": "cpu",
}


def interpreter() -> Path | None:
    """The interpreter that ``NEURAL_TANGENTS`` names; none where it is not set.

    Raises:
        UserError: where it names no file.
    """
    value = os.environ.get(VARIABLE)
    if not value:
        return None
    if not Path(value).is_file():
        message = f"{VARIABLE} is {value!r}, which is no file; name the interpreter of an"
        raise UserError(f"{message} environment with neural-tangents, or unset it")
    return Path(value).absolute()  # not resolved: a link is how an environment is entered


def neural_tangents(
    cases: Iterable[Case],
    python: Path | None,
    repetitions: int = 5,
    budget: float = 60,
    limit: float = 600,
) -> Iterator[dict[str, Any]]:
    """Times of neural-tangents, in order, per case and implementation.

    Args:
        cases: what is timed.
        python: interpreter of the other environment; without one, stored times are given.
        repetitions: at most; the fastest counts.
        budget: processor seconds after which no repetition of an implementation begins.
        limit: seconds by the clock after which an implementation is given up.

    Yields:
        ``case``, ``implementation``, ``stored`` (whether not measured now), and either ``error``
        or ``cpu_s``, ``first_s`` (processor seconds; the second compiles too), ``peak_mb``,
        ``repetitions`` and ``load``; stored rows ``processor`` and ``date`` too, and only
        those are given that were stored.
    """
    if python is None:
        yield from _stored(cases)
        return
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            arrays = Path(folder) / "arrays.npz"
            np.savez(arrays, allow_pickle=False, **case.arrays())
            for task in case.tasks():
                terms = {"arrays": str(arrays), "repetitions": repetitions, "budget": budget}
                answer = _ask(python, {**task, **terms}, limit)
                label = {"case": case.name, "implementation": task["implementation"]}
                yield {**label, "stored": False, **answer}


def _stored(cases: Iterable[Case]) -> Iterator[dict[str, Any]]:
    rows = {(row["case"], row["implementation"]): row for row in json.loads(STORED.read_text())}
    for case in cases:
        for task in case.tasks():
            row = rows.get((case.name, task["implementation"]))
            if row is not None:
                yield {**row, "stored": True}


def kernel(case: Case, python: Path) -> np.ndarray[Any, Any]:
    """What the rival's last implementation computes for a case, to hold ours against.

    Returns:
        [N, N], [N, N, C, C], or [2, N, N] with NNGP and NTK.
    """
    with tempfile.TemporaryDirectory() as folder:
        arrays, found = Path(folder) / "arrays.npz", Path(folder) / "kernel.npy"
        np.savez(arrays, allow_pickle=False, **case.arrays())
        *_, task = case.tasks()
        files = {"arrays": str(arrays), "save": str(found), "repetitions": 1, "budget": 0.0}
        answer = _ask(python, {**task, **files}, limit=600)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        loaded: np.ndarray[Any, Any] = np.load(found)
        return loaded


def _ask(python: Path, task: dict[str, Any], limit: float) -> dict[str, Any]:
    """One task's answer, or its error in a line."""
    try:
        done = subprocess.run(
            [str(python), "-W", "ignore", "-m", "scripts.neural_tangents.timing"],
            input=json.dumps(task),
            cwd=ROOT,
            env={**os.environ, **_SINGLE_THREAD},
            timeout=limit,
            capture_output=True,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {limit:.0f} s"}
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"error": said[-1]}
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer

"""Times one computation of neural-tangents on one core: a case comes as JSON, and so do its times.

    ENV/bin/python -m scripts.neural_tangents.timing < case.json

``benchmarks.rivals`` writes the cases and starts this, one process per case, so that neither
memory nor compiled code of one meets another. A case holds ``kind`` (``empirical`` or
``analytic``), ``layers``, ``dtype``, ``arrays`` (an .npz file with ``inputs`` and weights),
``repetitions`` (at most) and ``budget`` (their processor seconds, after which none begins). An
empirical one holds ``implementation`` and ``traced`` too. Where ``save`` names a file, the kernel
is saved there.

The answer: ``cpu_s`` (processor seconds of the fastest repetition), ``first_s`` (of the first
call, which compiles), ``peak_mb`` (most growth of resident memory during a repetition),
``repetitions``, ``load`` (mean number of running processes in the last minute).

Imported in the environment of requirements.txt only.
"""

import ctypes
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scripts.neural_tangents.networks import finite, infinite, nt, parameters

IMPLEMENTATIONS = {
    "Jacobian contraction": 1,
    "NTK-vector products": 2,
    "structured derivatives": 3,
}


def empirical(case: dict[str, Any], arrays: dict[str, Any]) -> Callable[[], Any]:
    """The kernel of a finite network at its inputs; images come channels first, as torch's."""
    x = arrays.pop("inputs")
    x = jnp.asarray(np.moveaxis(x, 1, -1), case["dtype"])
    weights, statistics = parameters(arrays, case["dtype"])
    kernel = nt.empirical_ntk_fn(
        finite(case["layers"], statistics),
        trace_axes=(-1,) if case["traced"] else (),
        vmap_axes=0,
        implementation=IMPLEMENTATIONS[case["implementation"]],
    )
    compiled = jax.jit(lambda x, weights: kernel(x, None, weights))
    return lambda: compiled(x, weights)


def analytic(case: dict[str, Any], arrays: dict[str, Any]) -> Callable[[], Any]:
    """NNGP and NTK of an infinite network at its inputs, channels last."""
    x = jnp.asarray(arrays["inputs"], case["dtype"])
    _, _, kernel = infinite(case["layers"])

    def both(x: Any) -> Any:
        found = kernel(x, None, ("nngp", "ntk"))
        return jnp.stack([found.nngp, found.ntk])

    compiled = jax.jit(both)
    return lambda: compiled(x)


def measure(call: Callable[[], Any], repetitions: int, budget: float) -> dict[str, float]:
    """Times and memory of a call that returns arrays not yet computed."""
    cpu = time.process_time()
    jax.block_until_ready(call())
    first = time.process_time() - cpu
    seconds: list[float] = []
    growth: list[float] = []
    while not seconds or (len(seconds) < repetitions and sum(seconds) < budget):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # else memory kept from the last call hides this one's
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        cpu = time.process_time()
        jax.block_until_ready(call())
        seconds.append(time.process_time() - cpu)
        growth.append(_resident("VmHWM") - before)
    return {
        "cpu_s": min(seconds),
        "first_s": first,
        "peak_mb": max(growth),
        "repetitions": len(seconds),
        "load": os.getloadavg()[0],
    }


def _resident(key: str) -> float:
    """Megabytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(key))


def main() -> None:
    """Read a case, measure it, print the answer."""
    case = json.load(sys.stdin)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # before XLA counts the cores
    jax.config.update("jax_enable_x64", case["dtype"] == "float64")
    arrays = dict(np.load(case["arrays"]))
    call = {"empirical": empirical, "analytic": analytic}[case["kind"]](case, arrays)
    answer = measure(call, case["repetitions"], case["budget"])
    if case.get("save"):
        np.save(case["save"], np.asarray(call()))
    print(json.dumps(answer))


if __name__ == "__main__":
    main()

"""Golden arrays of neural-tangents, in float64: kernels, predictions, empirical kernels.

    ENV/bin/python -m scripts.neural_tangents.golden [FOLDER]

writes ``kernels.npz``, ``predictions.npz`` and ``empirical.npz`` to ``tests/golden`` or the folder
given, in about three minutes. ``tests/neural_tangents.py`` reads them, and says what they hold.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scripts.neural_tangents.cases import cases, inputs
from scripts.neural_tangents.empirical import empirical
from scripts.neural_tangents.networks import infinite
from scripts.neural_tangents.predictions import predictions

Arrays = dict[str, Any]


def kernels() -> Arrays:
    """Inputs, cases as JSON, and per case the stacked [2, N, N] NNGP and NTK.

    Entries that neural-tangents itself gives as NaN stay so: where rounding takes |cos| past 1.
    """
    points = inputs()
    described = cases()
    arrays: Arrays = {f"inputs/{name}": array for name, array in points.items()}
    arrays["cases"] = json.dumps(described)
    for number, case in enumerate(described):
        _, _, kernel = infinite(case["layers"])
        found = kernel(points[case["inputs"]], None, ("nngp", "ntk"))
        both = np.stack([found.nngp, found.ntk]).astype(np.float64)
        arrays[f"kernels/{number:03}"] = both
        unknown = f": {np.isnan(both).sum()} entries are NaN" if np.isnan(both).any() else ""
        print(f"{number:03} {case['name']}{unknown}", flush=True)
    return arrays


def main() -> None:
    """Write the three files."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "tests/golden")
    jax.config.update("jax_enable_x64", True)
    for name, make in {
        "empirical": empirical,
        "predictions": predictions,
        "kernels": kernels,
    }.items():
        np.savez_compressed(folder / f"{name}.npz", **make())
        print(f"{name}.npz: {(folder / f'{name}.npz').stat().st_size / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    main()

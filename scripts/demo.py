"""Two small networks through the four stages: ``python -m scripts.demo``.

Runs the plain commands of the README one after another, as a user would type them, then
prints where the figures are and how far every measurement was from its law.
"""

import shlex
import subprocess
import sys
import time
from pathlib import Path

from Metrics.registry import DEFAULT_METRICS
from Utils.rundir import RunFolder

ROOT = Path(__file__).resolve().parent.parent

RUNS = {
    "conv-bn": "--model conv-bn --lr 0.1 --wd 1e-3",
    "fc": "--model fc --optimizer momentum --momentum 0.9 --lr 0.02 --wd 1e-3",
}
"""The flags of the demo's runs: batch normalisation under plain SGD, none under momentum."""


def commands(expid: str, flags: str) -> list[str]:
    """The four stages of one run, as one types them."""
    run = f"--experiment demo --expid {expid}"
    train = f"train.py --dataset digits {flags} --epochs 30 --save-at log {run}"
    return [train, *(f"{stage}.py {run}" for stage in ("extract", "cache", "plot"))]


def main() -> int:
    """Run the demo; returns the first exit code that is not 0."""
    begin = time.monotonic()
    for expid, flags in RUNS.items():
        for command in commands(expid, flags):
            print(f"\n$ python {command}", flush=True)
            code = subprocess.run([sys.executable, *shlex.split(command)], cwd=ROOT).returncode
            if code:
                return code
    from Metrics.summary import deviation_table  # brings h5py, which the stages need not wait for

    runs = {expid: RunFolder(ROOT / "results" / "demo" / expid) for expid in RUNS}
    paths = [run.cache(name) for run in runs.values() for name in DEFAULT_METRICS]
    caches = [path for path in paths if path.exists()]  # not those that need --save-buffers
    print(f"\n{deviation_table(caches)}\n\nfigures:")
    for run in runs.values():
        print(f"  {run.path.relative_to(ROOT)}/img")
    print(f"done in {time.monotonic() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

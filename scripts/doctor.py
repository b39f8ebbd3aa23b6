"""Is everything here that the pipeline needs? ``python -m scripts.doctor``, or this file.

One line per check, ``ok``, ``warn`` or ``FAIL``, and below each that is not ok what mends it.
The exit code is 1 if anything failed. It uses no package to start, so that it also runs in a
broken environment.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script, not a module

from scripts.health import INSTALL, Finding, one_line
from scripts.health.devices import check_cpu, check_cuda, check_torchvision, check_xla
from scripts.health.machine import check_machine
from scripts.health.storage import check_bucket, check_disk, check_hdf5
from scripts.health.versions import check_versions
from Utils.errors import UserError, run_stage

Check = Callable[[], Iterable[Finding]]


def checks(save_dir: str, seconds: float) -> dict[str, Check]:
    """All checks by name, in the order in which they report.

    Args:
        save_dir: where results will go, a folder or ``gs://bucket/prefix``.
        seconds: to wait for the bucket.
    """
    return {
        "versions": check_versions,
        "machine": check_machine,
        "disk": lambda: check_disk(save_dir),
        "hdf5": lambda: check_hdf5(save_dir),
        "bucket": lambda: check_bucket(save_dir, seconds),
        "cpu": check_cpu,
        "cuda": check_cuda,
        "torchvision": check_torchvision,
        "xla": check_xla,
    }


def findings(name: str, check: Check) -> list[Finding]:
    """What a check finds; that it could not run is a failure, too."""
    try:
        return list(check())
    except Exception as error:
        return [Finding("FAIL", name, one_line(error), INSTALL)]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Mistakes are one line, as everywhere."""
        raise UserError(f"{message}; see --help")


def parse_arguments(names: list[str]) -> argparse.Namespace:
    """The command line; raises :class:`UserError` if it is wrong."""
    parser = _Parser(
        description="Check versions, devices, torchvision, HDF5, the disk and the bucket."
    )
    parser.add_argument(
        "--save-dir",
        default="results",
        help="where results will go, a folder or gs://bucket/prefix (default: results)",
    )
    parser.add_argument(
        "--only", metavar="NAME,…", default=",".join(names), help=f"of {', '.join(names)}"
    )
    parser.add_argument(
        "--timeout", type=float, default=8, help="seconds to wait for the bucket (default: 8)"
    )
    arguments = parser.parse_args()
    arguments.only = [name.strip() for name in arguments.only.split(",")]
    unknown = [name for name in arguments.only if name not in names]
    if unknown:
        raise UserError(f"--only: unknown check '{unknown[0]}'; available: {', '.join(names)}")
    if not arguments.timeout > 0:
        raise UserError(f"--timeout {arguments.timeout}: give a number of seconds above 0")
    return arguments


def main() -> int:
    """Run the checks; returns 1 if one failed."""
    arguments = parse_arguments(list(checks("", 1)))
    chosen = checks(arguments.save_dir, arguments.timeout)
    levels = []
    with ThreadPoolExecutor(1) as pool:
        # XLA takes longest, in a process of its own: it works while the others do.
        xla = pool.submit(findings, "xla", check_xla) if "xla" in arguments.only else None
        for name in chosen:
            if name not in arguments.only:
                continue
            found = xla.result() if name == "xla" and xla else findings(name, chosen[name])
            for finding in found:
                print(finding, flush=True)
                levels.append(finding.level)
    failed, warned = levels.count("FAIL"), levels.count("warn")
    print(f"{failed} failed, {warned} to look at, {levels.count('ok')} ok")
    return 1 if failed else 0


if __name__ == "__main__":
    run_stage(main)

"""Measure neural-tangents in every case, store its times, and print them.

    NEURAL_TANGENTS=ENV/bin/python python -m benchmarks.rivals [BEGINNING OF A NAME …]

About half an hour on a quiet core. The benchmarks show the stored times where the variable is not
set.
"""

import datetime
import json
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks.common import Row, print_table, processor
from benchmarks.rivals import STORED, VARIABLE, interpreter, neural_tangents
from benchmarks.rivals.cases import CASES
from Utils.errors import UserError, run_stage

_COLUMNS = {"cpu_s": "cpu / s", "first_s": "first / s", "peak_mb": "peak / MB", "load": "load"}


def main(starts: Sequence[str]) -> None:
    """Measure the cases whose names begin with one of ``starts``, store each row, print all."""
    python = interpreter()
    if python is None:
        raise UserError(f"nothing to measure: {VARIABLE} names no interpreter")
    cases = [case for case in CASES if case.name.startswith(tuple(starts))]
    if not cases:
        names = "; ".join(case.name for case in CASES)
        raise UserError(f"no case begins with {' or '.join(starts)}; the cases are {names}")
    where = {"processor": processor(), "date": str(datetime.date.today())}
    rows: list[dict[str, Any]] = []
    for row in neural_tangents(cases, python):
        rows.append({key: value for key, value in row.items() if key != "stored"} | where)
        store(rows[-1])
    print_table("neural-tangents 0.6.5, jax 0.4.24, one core", [_cells(row) for row in rows])


def store(row: dict[str, Any]) -> None:
    """Put a row in the place of the one that was stored for its case and implementation."""
    rows = {_key(old): old for old in json.loads(STORED.read_text())} | {_key(row): row}
    STORED.write_text(json.dumps([*rows.values()], indent=1) + "\n")


def _key(row: dict[str, Any]) -> tuple[str, str]:
    return row["case"], row["implementation"]


def _cells(row: dict[str, Any]) -> Row:
    times = {title: row.get(key, row.get("error", "")) for key, title in _COLUMNS.items()}
    return {"case": row["case"], "implementation": row["implementation"], **times}


if __name__ == "__main__":
    run_stage(partial(main, sys.argv[1:] or [""]))

"""Measure neural-tangents in every case, store its times, and print them.

    NEURAL_TANGENTS=ENV/bin/python python -m benchmarks.rivals

About half an hour on a quiet core. The benchmarks show the stored times where the variable is not
set.
"""

import datetime
import json
from typing import Any

from benchmarks.common import Row, print_table, processor
from benchmarks.rivals import STORED, VARIABLE, interpreter, neural_tangents
from benchmarks.rivals.cases import ANALYTIC, EMPIRICAL
from Utils.errors import UserError, run_stage

_COLUMNS = {"cpu_s": "cpu / s", "first_s": "first / s", "peak_mb": "peak / MB", "load": "load"}


def main() -> None:
    """Measure, store after every row, print."""
    python = interpreter()
    if python is None:
        raise UserError(f"nothing to measure: {VARIABLE} names no interpreter")
    rows: list[dict[str, Any]] = []
    for row in neural_tangents((*EMPIRICAL, *ANALYTIC), python):
        rows.append({key: value for key, value in row.items() if key != "stored"})
        found = {"processor": processor(), "date": str(datetime.date.today()), "rows": rows}
        STORED.write_text(json.dumps(found, indent=1) + "\n")
    print_table("neural-tangents 0.6.5, jax 0.4.24, one core", [_cells(row) for row in rows])


def _cells(row: dict[str, Any]) -> Row:
    times = {title: row.get(key, row.get("error", "")) for key, title in _COLUMNS.items()}
    return {"case": row["case"], "implementation": row["implementation"], **times}


if __name__ == "__main__":
    run_stage(main)

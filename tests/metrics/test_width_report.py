"""The report of an experiment: its own metrics first, and the runs as far as they have caches."""

from pathlib import Path

import pytest

from Metrics.figures._config import PlotConfig
from Metrics.figures.report import write_report
from tests.experiments import SEEDS, WIDTHS, cached
from tests.runs import cache_run
from tests.stages.test_report import Page
from Utils.cli import parse
from Utils.errors import UserError
from Utils.rundir import RunFolder


def reported(path: Path, arguments: str = "") -> Page:
    flags = ["--report", "--save-dir", str(path.parent), "--experiment", path.name]
    list(write_report(parse(PlotConfig, [*flags, *arguments.split()])))
    return Page((path / "report.html").read_text())


def test_exponents_are_in_the_page(grid: Path) -> None:
    (found,) = cached(grid, "--metrics gradients")
    cache_run(RunFolder(grid / "w128-s2"), "--metrics performance")
    page = reported(grid)
    assert page.stack == []
    assert page.heads[:2] == [f"sp: {len(WIDTHS) * len(SEEDS)} runs", "Gradients of the outputs"]
    (caption,) = [text for text in page.tables if text.startswith("Exponents of the width")]
    head, *rows = page.tables[caption]
    shown = {(r[0], int(r[1]), h): c for r in rows for h, c in zip(head[2:], r[2:], strict=True)}
    for e in found.exponents:
        at = (e.quantity.name, e.step, e.quantity.layer or "network")
        assert shown[at] == e.cell().replace("-", "−")
    assert len(page.images) == 3  # of the experiment two, of one run the losses
    assert {"gradients", "run2"} <= set(page.ids)
    assert "run1" not in page.ids  # which has no cache, and is compared only
    compared = next(rows for text, rows in page.tables.items() if text.startswith("The last eval"))
    assert len(compared) == 1 + len(WIDTHS) * len(SEEDS)


def test_a_page_knows_when_an_experiment_has_changed(grid: Path) -> None:
    cached(grid, "--metrics gradients")
    flags = ["--report", "--save-dir", str(grid.parent), "--experiment", grid.name]
    config = parse(PlotConfig, flags)
    (first,) = write_report(config)
    assert list(write_report(config)) == [f"{first} is up to date"]
    cached(grid, "--metrics transfer")
    assert list(write_report(config)) == [first]
    with pytest.raises(UserError, match="unknown layer 'fc9'"):
        reported(grid, "--layers fc9 --metrics gradients")

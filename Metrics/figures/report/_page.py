"""The page: what was read of the runs, put into the template."""

from collections.abc import Sequence
from pathlib import Path

import jinja2

from Metrics.figures.report._experiment import ExperimentReport
from Metrics.figures.report._flags import differing
from Metrics.figures.report._run import RunReport

Rows = list[list[str]]

MOST_ROWS = 40
"""Of runs compared, above which the table is folded."""


def render(
    title: str,
    experiment: Sequence[ExperimentReport],
    runs: Sequence[RunReport],
    command: str,
    mark: str,
) -> str:
    """The HTML text of a page.

    Args:
        title: of the page.
        experiment: metrics of all runs together.
        runs: what it tells of.
        command: what it was made by.
        mark: the fingerprint by which a later run sees whether it is up to date.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # names of runs, layers and files are the user's
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("page.html.jinja")
    compared = comparison(runs) if len(runs) > 1 else []
    return template.render(
        title=title,
        experiment=experiment,
        runs=runs,
        compared=compared,
        most_rows=MOST_ROWS,
        command=command,
        mark=mark,
    )


def comparison(runs: Sequence[RunReport]) -> Rows:
    """The runs side by side, in text; the first row heads the columns.

    What came out is first: flags may be so many that one has to scroll for them.
    """
    flags = differing([run.hyperparameters for run in runs])
    head = ["run", "test loss", "accuracy", "laws", "exact law", "paper", *flags]
    rows = [
        [run.name, *_outcome(run), *values]
        for run, *values in zip(runs, *flags.values(), strict=True)
    ]
    return [head, *rows]


def _outcome(run: RunReport) -> list[str]:
    loss, accuracy = (run.final.get(name) for name in ("test_loss", "accuracy1"))
    exact, paper = run.worst
    return [
        "–" if loss is None else f"{loss:.4g}",
        "–" if accuracy is None else f"{accuracy:.4g}",
        "–" if run.laws is None else str(len(run.laws)),
        "–" if exact is None else f"{exact:.1e}",
        "–" if paper is None else f"{paper:.1e}",
    ]

"""What the page says of an experiment as a whole: figures and tables of exponents."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from Metrics.figures._cache import Header
from Metrics.figures._experiment import ExperimentCache, FittedExponent, read_experiment
from Metrics.figures._options import NothingToDraw, Options, check_layers, select_layers
from Metrics.figures._style import settings
from Metrics.figures.experiment import Draw, figures_of
from Metrics.figures.report._figures import Picture, data_uri, pixels, sentence
from Metrics.registry import METRICS
from Metrics.width import table as tables


@dataclass(frozen=True)
class Table:
    """The exponents of a group of runs.

    Attributes:
        label: of the group; empty if it is the only one.
        caption: how many widths and seeds, and how many exponents agree with theory.
        rows: in text; the first one heads the columns.
    """

    label: str
    caption: str
    rows: list[list[str]]


@dataclass(frozen=True)
class ExperimentReport:
    """One metric of an experiment.

    Attributes:
        metric: its name.
        pictures: its figures.
        tables: one for each group of runs.
    """

    metric: str
    pictures: list[Picture]
    tables: list[Table]

    @property
    def title(self) -> str:
        return METRICS[self.metric].title


def header_of(path: Path) -> Header:
    """What tells whether a page shows an experiment's cache as it is now."""
    cache = read_experiment(path)
    return Header(path, cache.metric, cache.features_hash, tuple(f.layer for f in cache.fits))


def read_metric(path: Path, options: Options, most: int) -> ExperimentReport:
    """Read and draw an experiment's cache.

    Args:
        path: of the cache.
        options: how figures are drawn; layers that the metric does not have are not asked for.
        most: bytes of a figure, above which it is drawn in pixels.

    Raises:
        UserError: the file is damaged, or LaTeX fails.
    """
    cache = read_experiment(path)
    check_layers([fit.layer for fit in cache.fits], options.layers)
    pictures = [_picture(cache, draw, options, most) for draw in figures_of(cache).values()]
    return ExperimentReport(
        cache.metric, pictures, [_table(cache, label, options) for label in cache.labels]
    )


def _picture(cache: ExperimentCache, draw: Draw, options: Options, most: int) -> Picture:
    entry = METRICS[cache.metric]
    words = (entry.name, entry.title, sentence(entry.description), entry.citation)
    try:
        with settings(options.use_tex):
            figure = draw(cache, options)
    except NothingToDraw as reason:
        return Picture(*words, sentence(str(reason).partition(": ")[2]))
    source = data_uri(figure, options, most)
    widths = sorted(set(cache.widths.tolist()))
    what = f"{len(cache.widths)} runs of {len(widths)} widths from {widths[0]} to {widths[-1]}"
    return Picture(*words, "", source, f"{entry.title}: {what}", *pixels(figure))


def _table(cache: ExperimentCache, label: str, options: Options) -> Table:
    own: Sequence[FittedExponent] = [f for f in cache.fits if f.group == label]
    wanted = select_layers([f.layer for f in own], options.layers)
    shown = [f for f in own if f.layer in wanted]
    members = cache.groups == label
    widths, seeds = (len(set(x[members].tolist())) for x in (cache.widths, cache.seeds))
    caption = f"Exponents of the width: {widths} widths, {seeds} seed{'s' if seeds > 1 else ''}; "
    caption += tables.summary([f.verdict for f in shown])
    ended = int((cache.diverged[members] >= 0).sum())
    if ended:
        caption += f"; {ended} of {int(members.sum())} runs diverged"
    rows = tables.rows({(f.quantity, f.step, f.layer): f.cell() for f in shown})
    return Table(label if len(cache.labels) > 1 else "", caption, rows)

"""What plot.py does for metrics of a whole experiment."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from Metrics.figures import _ensemble, _histogram, _transfer
from Metrics.figures._cache import Header
from Metrics.figures._config import PlotConfig
from Metrics.figures._ensemble import draw_ensemble
from Metrics.figures._experiment import ExperimentCache, read_experiment
from Metrics.figures._exponents import MOST_GROUPS, draw_sizes, groups_of
from Metrics.figures._files import fingerprint, is_current, save
from Metrics.figures._forest import draw_forest
from Metrics.figures._histogram import draw_histogram
from Metrics.figures._options import NothingToDraw, Options, check_layers
from Metrics.figures._phases import axes_of, draw_phases
from Metrics.figures._style import settings
from Metrics.figures._transfer import draw_transfer
from Metrics.figures.run import cache_command
from Metrics.registry import OF_EXPERIMENTS
from Utils.errors import UserError
from Utils.rundir import ExperimentFolder, file_name
from Utils.runs import open_experiment

Draw = Callable[[ExperimentCache, Options], Figure]

_FIGURES: dict[str, dict[str, Draw]] = {
    "exponents": {"": draw_sizes, "-exponents": draw_forest},
    "coordinates": {"": draw_sizes, "-exponents": draw_forest, "-phases": draw_phases},
    "outputs": {"": draw_histogram, "-exponents": draw_forest},
    "ensemble": {"": draw_ensemble, "-exponents": draw_forest},
    "transfer": {"": draw_transfer, "-exponents": draw_forest},
}
"""What is drawn of the kinds of metrics, by what is added to the names of the files."""

_MOST_GROUPS = {
    "exponents": MOST_GROUPS,
    "coordinates": MOST_GROUPS,
    "outputs": _histogram.MANY,
    "ensemble": _ensemble.MANY,
    "transfer": _transfer.MANY,
}


def figures_of(cache: ExperimentCache) -> dict[str, Draw]:
    """What can be drawn of a cache, by what is added to the names of the files."""
    wanted, groups = dict(_FIGURES[cache.kind]), groups_of(cache)
    if len(axes_of(cache)) != 2:
        wanted = {part: draw for part, draw in wanted.items() if draw is not draw_phases}
    if len(groups) < 2 or wanted[""] is not draw_sizes:
        return wanted
    del wanted[""]
    of_groups = {
        f"-{file_name(group)}": partial(draw_sizes, group=group) for group in groups[:MOST_GROUPS]
    }
    return of_groups | wanted


def experiment_caches(experiment: ExperimentFolder, config: PlotConfig) -> dict[str, Path]:
    """The caches of the experiment's metrics that are asked for and there, all if none is named."""
    wanted = [n for n in config.metric_names() or OF_EXPERIMENTS if n in OF_EXPERIMENTS]
    paths = {n: experiment.fetch(experiment.cache(n, config.suffix)) for n in wanted}
    return {name: path for name, path in paths.items() if path.exists()}


def plot_experiment(config: PlotConfig) -> Iterator[str]:
    """Draw the figures of an experiment that are not up to date; yields where each one is.

    Raises:
        UserError: no cache, an unknown layer, a file that cannot be read or written, or another
            process that draws the same experiment.
    """
    with open_experiment(config) as (experiment, _), experiment.lock("plot"):
        paths = experiment_caches(experiment, config)
        for metric in config.metric_names():
            if metric not in paths:
                path = experiment.cache(metric, config.suffix)
                raise UserError(f"{path} does not exist; run '{cache_command(config)}' first")
        if not paths:
            raise UserError(
                f"{experiment.path} has no cache of all its runs; name one run by --expid, or run "
                f"'{cache_command(config)} --metrics …' with one of {', '.join(OF_EXPERIMENTS)}"
            )
        for metric, path in paths.items():
            cache = read_experiment(path)
            check_layers([f.layer for f in cache.fits], config.layers)
            for what in figures_of(cache).items():
                yield from _plot(experiment, path, cache, what, config)
            count, most = len(cache.labels), _MOST_GROUPS[cache.kind]
            if count > most:
                yield f"{metric}: {most} of {count} groups drawn"


def _plot(
    experiment: ExperimentFolder,
    path: Path,
    cache: ExperimentCache,
    what: tuple[str, Draw],
    config: PlotConfig,
) -> Iterator[str]:
    part, draw = what
    mark = fingerprint([Header(path, cache.metric, cache.features_hash, ())], config.options)
    drawn: Figure | None = None
    for extension in config.format:
        figure = experiment.figure(cache.metric + part, config.suffix, extension)
        if config.plot_dir:
            figure = Path(config.plot_dir).expanduser() / figure.name
        experiment.fetch(figure)
        if not config.overwrite and is_current(figure, [path], mark):
            yield f"{experiment.shown(figure)} is up to date"
            continue
        try:
            drawn = drawn or _drawn(cache, draw, config)
        except NothingToDraw as reason:
            yield str(reason)
            return
        save(drawn, figure, path, config.options, mark)
        experiment.publish(figure)
        yield experiment.shown(figure)


def _drawn(cache: ExperimentCache, draw: Draw, config: PlotConfig) -> Figure:
    with settings(config.use_tex):
        figure = draw(cache, config.options)
        figure.draw_without_rendering()
    return figure

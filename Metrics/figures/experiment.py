"""What plot.py does for metrics of a whole experiment."""

from collections.abc import Callable, Iterator
from pathlib import Path

from matplotlib.figure import Figure

from Metrics.figures._cache import Header
from Metrics.figures._config import PlotConfig
from Metrics.figures._experiment import ExperimentCache, read_experiment
from Metrics.figures._exponents import MANY, draw_forest, draw_sizes, quantities_of
from Metrics.figures._files import fingerprint, is_current, save
from Metrics.figures._histogram import draw_histogram
from Metrics.figures._options import NothingToDraw, Options, check_layers
from Metrics.figures._phases import axes_of, draw_phases
from Metrics.figures._style import settings
from Metrics.figures._transfer import draw_transfer
from Metrics.figures.run import cache_command
from Utils.errors import UserError
from Utils.rundir import ExperimentFolder
from Utils.runs import open_experiment

Draw = Callable[[ExperimentCache, Options], Figure]

_FIGURES: dict[str, dict[str, Draw]] = {
    "exponents": {"": draw_sizes, "-exponents": draw_forest},
    "coordinates": {"": draw_sizes, "-exponents": draw_forest, "-phases": draw_phases},
    "outputs": {"": draw_histogram, "-exponents": draw_forest},
    "transfer": {"": draw_transfer, "-exponents": draw_forest},
}
"""What is drawn of the kinds of metrics, by what is added to the names of the files."""


def plot_experiment(config: PlotConfig) -> Iterator[str]:
    """Draw the figures of an experiment that are not up to date; yields where each one is.

    Raises:
        UserError: no cache, an unknown layer, a file that cannot be read or written, or another
            process that draws the same experiment.
    """
    with open_experiment(config) as (experiment, _), experiment.lock("plot"):
        for metric in config.metric_names():
            path = experiment.fetch(experiment.cache(metric, config.suffix))
            if not path.exists():
                raise UserError(f"{path} does not exist; run '{cache_command(config)}' first")
            cache = read_experiment(path)
            check_layers([f.layer for f in cache.fits], config.layers)
            for part, draw in _FIGURES[cache.kind].items():
                if draw is draw_phases and len(axes_of(cache)) != 2:
                    continue
                yield from _plot(experiment, path, cache, (part, draw), config)
            if cache.kind != "transfer" and (count := len(quantities_of(cache))) > MANY:
                yield f"{metric}: {MANY} of {count} quantities of groups drawn"


def _plot(
    experiment: ExperimentFolder,
    path: Path,
    cache: ExperimentCache,
    what: tuple[str, Draw],
    config: PlotConfig,
) -> Iterator[str]:
    part, draw = what
    mark = fingerprint([Header(path, cache.metric, cache.features_hash, ())], config.options)
    for extension in config.format:
        figure = experiment.figure(cache.metric + part, config.suffix, extension)
        if config.plot_dir:
            figure = Path(config.plot_dir).expanduser() / figure.name
        experiment.fetch(figure)
        if not config.overwrite and is_current(figure, [path], mark):
            yield f"{experiment.shown(figure)} is up to date"
            continue
        try:
            with settings(config.use_tex):
                drawn = draw(cache, config.options)
                drawn.draw_without_rendering()
        except NothingToDraw as reason:
            yield str(reason)
            return
        save(drawn, figure, path, config.options, mark)
        experiment.publish(figure)
        yield experiment.shown(figure)

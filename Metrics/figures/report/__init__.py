"""One self-contained HTML page of a run, or of all runs of an experiment."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from Metrics.figures._config import PlotConfig
from Metrics.figures._files import command, fingerprint, is_current
from Metrics.figures._options import check_layers
from Metrics.figures.experiment import experiment_caches
from Metrics.figures.report._experiment import header_of, read_metric
from Metrics.figures.report._page import render
from Metrics.figures.report._run import RunCaches, read_run
from Metrics.figures.run import cache_command, headers
from Utils.errors import UserError
from Utils.rundir import ExperimentFolder, Folder, RunFolder
from Utils.runs import open_experiment, open_run
from Utils.storage import write_atomically


def write_report(config: PlotConfig) -> Iterator[str]:
    """Write the page of a run, or of its experiment if no run is named; yields where it is.

    The page of an experiment begins with the metrics of all its runs.

    Raises:
        UserError: no run or no cache, an unknown metric or layer, a file that cannot be read or
            written, or another process that draws one of the runs.
    """
    with ExitStack() as stack:
        place: RunFolder | ExperimentFolder
        whole: list[Path] = []
        if config.expid:
            place = stack.enter_context(open_run(config))
            runs = [place]
        else:
            place, runs = stack.enter_context(open_experiment(config))
            whole = [*experiment_caches(place, config).values()]
        if not runs:
            path, advice = config.experiment_path, "train one, or mend --experiment or --save-dir"
            raise UserError(f"{path} has no runs; {advice}")
        wanted = _caches_of(runs, config, whole)
        drawn = [place, *(each.run for each in wanted if each.headers)]
        for folder in dict.fromkeys(drawn):
            stack.enter_context(folder.lock("plot"))
        yield _write(place, wanted, whole, config)


def _caches_of(
    runs: Sequence[RunFolder], config: PlotConfig, whole: Sequence[Path]
) -> list[RunCaches]:
    """The runs with the caches to show; there is at least one, or one of the experiment."""
    wanted = [RunCaches(run, tuple(headers(run, config, must=bool(config.expid)))) for run in runs]
    if whole:
        return wanted  # which know their layers themselves
    if not any(run.headers for run in wanted):
        path, advice = config.experiment_path, cache_command(config)
        raise UserError(f"no run of {path} has a cache to draw; run '{advice} --expid …' first")
    layers = [layer for run in wanted for header in run.headers for layer in header.layers]
    check_layers(layers, config.layers)
    return wanted


def _write(
    place: Folder, runs: Sequence[RunCaches], whole: Sequence[Path], config: PlotConfig
) -> str:
    page = place.fetch(_page_path(config))
    drawn = [*map(header_of, whole), *(header for run in runs for header in run.headers)]
    mark = fingerprint(drawn, config.options)
    sources = [*whole, *(source for run in runs for source in run.sources)]
    if not config.overwrite and is_current(page, sources, mark):
        return f"{place.shown(page)} is up to date"
    most = min(_LARGEST_FIGURE, _LARGEST_PAGE // len(drawn))
    experiment = [read_metric(path, config.options, most) for path in whole]
    reports = [read_run(run, config.options, most) for run in runs]
    name = config.expid or f"{config.experiment}: {len(runs)} runs"
    text = render(name, experiment, reports, command(), mark)
    write_atomically(page, lambda file: file.write_text(text, encoding="utf-8"))
    place.publish(page)
    return place.shown(page)


_LARGEST_PAGE = 7_000_000  # bytes of all figures of a page, which base64 makes 4/3 of
_LARGEST_FIGURE = 1_000_000


def _page_path(config: PlotConfig) -> Path:
    name = f"report{config.suffix}.html"
    if config.plot_dir:
        return Path(config.plot_dir).expanduser() / name
    if config.expid:
        return RunFolder(config.run_path).figure("report", config.suffix, "html")
    return config.experiment_path / name

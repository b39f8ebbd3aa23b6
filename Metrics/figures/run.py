"""What plot.py does: find the caches, draw the figures that are not up to date."""

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from Metrics.figures._cache import Header, read_cache, read_header
from Metrics.figures._config import PlotConfig
from Metrics.figures._draw import draw_cache, remark
from Metrics.figures._files import fingerprint, is_current, save
from Metrics.figures._options import NothingToDraw, check_layers, select_layers
from Metrics.registry import METRICS
from Utils.errors import UserError
from Utils.rundir import RunFolder
from Utils.runs import open_run


def plot_run(config: PlotConfig) -> Iterator[str]:
    """Draw the figures of a run that are not up to date; yields where each figure is.

    Raises:
        UserError: no cache, an unknown metric or layer, a file that cannot be read or written,
            or another process that draws the same run.
    """
    with open_run(config) as run:
        found = headers(run, config)
        check_layers([layer for header in found for layer in header.layers], config.layers)
        with run.lock("plot"):
            for header in found:
                wanted = [w for w in config.layers if select_layers(header.layers, [w])]
                if config.layers and header.layers and not wanted:
                    yield f"{header.metric}: not drawn, it has none of these layers"
                else:
                    yield from _plot(run, header, config, tuple(wanted))


def _plot(
    run: RunFolder, header: Header, config: PlotConfig, layers: tuple[str, ...]
) -> Iterator[str]:
    options = replace(config.options, layers=layers)
    mark = fingerprint([header], options)
    figures = [run.fetch(_figure_path(run, header, config, name)) for name in config.format]
    stale = [f for f in figures if config.overwrite or not is_current(f, [header.path], mark)]
    yield from (f"{run.shown(path)} is up to date" for path in figures if path not in stale)
    if not stale:
        return
    cache = read_cache(header.path)
    try:
        figure = draw_cache(cache, options)
    except NothingToDraw as reason:
        yield str(reason)
        return
    for path in stale:
        save(figure, path, header.path, options, mark)
        run.publish(path)
        yield run.shown(path)
    if left_out := remark(cache, options):
        yield left_out


def _figure_path(run: RunFolder, header: Header, config: PlotConfig, extension: str) -> Path:
    path = run.figure(header.metric, config.suffix, extension)
    return Path(config.plot_dir).expanduser() / path.name if config.plot_dir else path


def headers(run: RunFolder, config: PlotConfig, must: bool = True) -> list[Header]:
    """The caches to draw: those asked for, in that order, or every one there is.

    Args:
        run: the run.
        config: what is asked for.
        must: whether it is the user's mistake if a cache, or all, are missing.
    """
    advice = f"run '{cache_command(config)}' first"
    caches = {name: run.fetch(run.cache(name, config.suffix)) for name in METRICS.names}
    names = config.metric_names() or [name for name, path in caches.items() if path.exists()]
    if not must:
        return [read_header(caches[name]) for name in names if caches[name].exists()]
    if not names:
        raise UserError(f"{run.path} has no cache to draw; {advice}")
    for name in names:
        if not caches[name].exists():
            raise UserError(f"{caches[name]} does not exist; {advice}")
    return [read_header(caches[name]) for name in names]


def cache_command(config: PlotConfig) -> str:
    """The command that makes what is missing, with the run's flags."""
    flags = {
        "--experiment": config.experiment,
        "--expid": config.expid,
        "--save-dir": "" if config.save_dir == "results" else config.save_dir,
        "--metrics": ",".join(config.metrics),
        "--suffix": config.suffix,
    }
    given = [part for flag, value in flags.items() if value for part in (flag, value)]
    return shlex.join(["python", "cache.py", *given])

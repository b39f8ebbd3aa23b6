"""The figures of the paper, from networks trained for them: ``python -m scripts.paper_figures``.

docs/paper.md has a table of the figures, their grids and the minutes they take.
"""

import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from scripts.paper import grids
from scripts.paper.grids import Cell, Grid, Scale
from scripts.paper.training import Experiment, is_done, needed, train_all
from Utils.buckets.places import bucket_place
from Utils.cli import parse
from Utils.config import Config, Names
from Utils.errors import UserError, run_stage
from Utils.registry import Entry, Registry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_EXPERIMENTS: Mapping[Scale, str] = {"small": "paper-small", "paper": "paper"}


@dataclass(frozen=True)
class PaperFigure(Entry):
    """A figure; the builder draws a page of it, from nothing or from a grid and its caches.

    Attributes:
        grids: its pages at a scale; ``None`` for toys, which need no runs.
        alone: whether each page is the figure of one cache, as plot.py draws it.
    """

    grids: Callable[[Scale], list[Grid]] | None = None
    alone: bool = False


_GRID = "scripts.paper.curves:draw_grid"

FIGURES: Registry[PaperFigure] = Registry(
    "figure",
    [
        PaperFigure(
            "fig1", _GRID, "single weights beside the norms of channels", grids=grids.motivation
        ),
        PaperFigure(
            "fig2", "scripts.paper.geometry:draw_fields", "gradient fields of three symmetries"
        ),
        PaperFigure(
            "fig3", "scripts.paper.geometry:draw_charges", "lines, circles, hyperbolas of flow"
        ),
        PaperFigure("fig4", "scripts.paper.geometry:draw_modified", "the modified equation"),
        PaperFigure("fig5", _GRID, "SGD: three symmetries by weight decay", grids=grids.sgd),
        PaperFigure("early", _GRID, "SGD: the earlier grid", grids=grids.early),
        PaperFigure("momentum", _GRID, "momentum by weight decay", grids=grids.momentum),
        PaperFigure("drops", _GRID, "learning rates, one of which drops", grids=grids.drops),
        PaperFigure("long", _GRID, "a run ten times as long", grids=grids.long),
        PaperFigure("batches", _GRID, "batch sizes", grids=grids.batches),
        PaperFigure(
            "phase-decay",
            "Metrics.figures:draw",
            "phase portraits under momentum, by weight decay",
            grids=grids.phase_by_decay,
            alone=True,
        ),
        PaperFigure(
            "phase",
            "Metrics.figures:draw",
            "phase portraits of the runs of drops",
            grids=grids.phase,
            alone=True,
        ),
        PaperFigure(
            "diffusion",
            "scripts.paper.diffusion:draw_diffusion",
            "displacement and velocity after training (follow-up paper)",
            grids=grids.diffusion,
        ),
    ],
)


class PaperConfig(Config):
    """Train what the paper's figures show, skipping what is done, and draw them."""

    scale: Scale = Field(
        "small", description="small: minutes on a CPU; paper: the paper's networks, days on a GPU."
    )
    only: Names = Field((), description="Which figures, listed above; all if none.")
    out: str = Field("", description="Folder for the figures; results/paper/figures/<scale>.")
    save_dir: str = Field("results", description="Folder that holds the experiments.")
    data_dir: str = Field("", description="Folder with the downloaded data sets.")
    jobs: int | None = Field(
        None, ge=1, description="Runs at a time; at the small scale one per core, else one."
    )
    dry_run: bool = Field(False, description="Print the commands, do nothing.")

    @property
    def figures(self) -> list[PaperFigure]:
        """Those asked for; raises :class:`UserError` for an unknown one."""
        return [FIGURES[name] for name in self.only] or list(FIGURES)

    @property
    def experiment(self) -> Experiment:
        """Where the runs of the scale are; raises :class:`UserError` if that is a bucket."""
        if bucket_place(self.save_dir) is not None:
            raise UserError(f"--save-dir {self.save_dir}: these figures need a folder; give one")
        return Experiment(_EXPERIMENTS[self.scale], self.save_dir, self.data_dir)

    @property
    def folder(self) -> Path:
        """Where figures are written; the scales do not overwrite each other's."""
        if self.out:
            return Path(self.out).expanduser()
        return Path(self.save_dir).expanduser() / "paper" / "figures" / self.scale


def main() -> None:
    """Parse the command line, train, draw, and print where each figure is."""
    config = parse(PaperConfig, epilog=f"figures:\n{FIGURES.table()}")
    for line in paper_figures(config):
        print(line, flush=True)


def paper_figures(config: PaperConfig) -> Iterator[str]:
    """Bring the runs to their caches and draw the figures; yields what was done.

    Raises:
        UserError: an unknown figure, a stage that failed, or a file that cannot be written.
    """
    pages = {figure: figure.grids(config.scale) for figure in config.figures if figure.grids}
    runs = needed(grid for of_figure in pages.values() for grid in of_figure)
    experiment = config.experiment
    if config.dry_run:
        for point, metrics in runs.items():
            for command in experiment.commands(point, metrics):
                yield shlex.join(["python", *command])
        return
    left = {p: m for p, m in runs.items() if not is_done(experiment, p, m)}
    yield f"{len(runs) - len(left)} of {len(runs)} runs are done"
    jobs = config.jobs or (os.cpu_count() or 1 if config.scale == "small" else 1)
    begin = time.monotonic()
    for point, seconds in train_all(experiment, left, jobs):
        yield f"{point.expid}: trained, extracted, cached in {seconds:.0f} s"
    for figure in config.figures:
        yield from _draw(figure, pages.get(figure, []), config)
    yield f"done in {(time.monotonic() - begin) / 60:.1f} minutes"


def _draw(figure: PaperFigure, pages: list[Grid], config: PaperConfig) -> Iterator[str]:
    from Metrics.figures.parts import settings, write_figure

    def cache(cell: Cell) -> Path:
        return config.experiment.run(cell.point).cache(cell.metric)

    draw = figure.load()
    makers: dict[str, Callable[[], Figure]] = {figure.name: draw}
    if figure.grids and not figure.alone:
        several = len(pages) > 1
        makers = {
            f"{figure.name}{f'-{i}' * several}": partial(draw, page, cache)
            for i, page in enumerate(pages, start=1)
        }
    elif figure.grids:
        makers = {
            f"{figure.name}-{page.title}": partial(draw, cache(page.rows[0][0])) for page in pages
        }
    for name, make in makers.items():
        with settings(use_tex=False):
            drawn = make()
        for extension in ("pdf", "png"):
            path = config.folder / f"{name}.{extension}"
            write_figure(drawn, path, f"python -m scripts.paper_figures --scale {config.scale}")
            yield str(path)


if __name__ == "__main__":
    run_stage(main)

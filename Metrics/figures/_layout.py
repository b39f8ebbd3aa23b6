"""Where the panels of a figure are, in inches: the same on every machine, aligned, no overlap."""

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLUMN_WIDTH = 3.4  # of a two-column page
PAGE_WIDTH = 6.8

_LEFT, _RIGHT, _GAP = 0.68, 0.14, 0.50
_TITLE, _NOTE, _MAIN, _SPACE, _LOWER = 0.36, 0.13, 1.25, 0.07, 0.52
_TICKS, _X_LABEL = 0.22, 0.18
_Y_LABEL = 0.44  # from the axis to its label


@dataclass(frozen=True)
class Cell:
    """One panel's axes.

    Attributes:
        main: the curves.
        lower: the residuals below them; ``None`` in figures without theory.
        width: of both, in inches.
        leftmost: whether it carries the labels of the vertical axes.
        at_bottom: whether it carries the label of the horizontal axis.
    """

    main: Axes
    lower: Axes | None
    width: float
    leftmost: bool = True
    at_bottom: bool = True

    @property
    def bottom(self) -> Axes:
        return self.lower or self.main


def grid(
    count: int, lower: bool, header: float, notes: bool = False, labels: bool = False
) -> tuple[Figure, list[Cell]]:
    """A figure of ``count`` panels: one in a page's column, more across the page.

    Args:
        count: how many panels, at least 1.
        lower: whether each has a lower panel for residuals.
        header: room above the panels, in inches.
        notes: whether each needs a line for a note under its title.
        labels: whether others than the lowest name their horizontal axes.
    """
    columns = {1: 1, 2: 2, 4: 2}.get(count, 3)
    width = COLUMN_WIDTH if count == 1 else PAGE_WIDTH
    panel = (width - _LEFT - _RIGHT - (columns - 1) * _GAP) / columns
    title = _TITLE + notes * _NOTE
    row = title + _MAIN + lower * (_SPACE + _LOWER) + _TICKS + labels * _X_LABEL
    last = 0 if labels else _X_LABEL
    figure = Figure(figsize=(width, header + -(-count // columns) * row + last))
    cells = []
    for i in range(count):
        left = _LEFT + (i % columns) * (panel + _GAP)
        top = header + (i // columns) * row + title
        main, below = _panel(figure, left, top, panel, lower)
        cells.append(Cell(main, below, panel, i % columns == 0, i + columns >= count))
    return figure, cells


def wide(header: float, margin: float) -> tuple[Figure, Cell]:
    """A figure of one panel across the page, with a margin on its right, in inches."""
    top = header + _TITLE
    height = top + 2 * _MAIN + _SPACE + 2 * _LOWER + _TICKS + _X_LABEL
    figure = Figure(figsize=(PAGE_WIDTH, height))
    panel = PAGE_WIDTH - _LEFT - margin
    main, below = _panel(figure, _LEFT, top, panel, lower=True, scale=2)
    return figure, Cell(main, below, panel)


def charts(
    count: int, header: float, columns: int, height: float, beside: float, left: float = _LEFT
) -> tuple[Figure, list[Cell]]:
    """A figure of ``count`` panels without theory below them, with room for words.

    Args:
        count: how many panels, at least 1.
        header: room above the panels, in inches.
        columns: side by side.
        height: of a panel, in inches.
        beside: room on the right of every panel.
        left: room on the left of the first panel of a row.
    """
    width = COLUMN_WIDTH if columns == 1 and left == _LEFT and not beside else PAGE_WIDTH
    if columns == 1 and beside:
        width = COLUMN_WIDTH + beside
    panel = (width - left - _RIGHT - (columns - 1) * _GAP) / columns - beside
    row = _TITLE + height + _TICKS
    figure = Figure(figsize=(width, header + -(-count // columns) * row + _X_LABEL))
    cells = []
    for i in range(count):
        x = left + (i % columns) * (panel + beside + _GAP)
        main = _axes(figure, x, header + (i // columns) * row + _TITLE, panel, height)
        cells.append(Cell(main, None, panel, i % columns == 0, i + columns >= count))
    return figure, cells


def _panel(
    figure: Figure, left: float, top: float, width: float, lower: bool, scale: int = 1
) -> tuple[Axes, Axes | None]:
    main = _axes(figure, left, top, width, scale * _MAIN)
    main.yaxis.set_label_coords(-_Y_LABEL / width, 0.5)
    if not lower:
        return main, None
    below = _axes(figure, left, top + scale * _MAIN + _SPACE, width, scale * _LOWER)
    below.yaxis.set_label_coords(-_Y_LABEL / width, 0.5)
    below.sharex(main)
    main.tick_params(labelbottom=False)
    return main, below


def _axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes by their upper left corner and size, in inches from the figure's upper left."""
    total_width, total_height = figure.get_size_inches()
    return figure.add_axes(
        (
            left / total_width,
            1 - (top + height) / total_height,
            width / total_width,
            height / total_height,
        )
    )

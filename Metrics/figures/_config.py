"""The flags of plot.py."""

from typing import Self

import pydantic
from pydantic import Field

from Metrics.figures._options import Options, X
from Metrics.registry import own_names
from Utils.config import Names, RunConfig
from Utils.errors import UserError
from Utils.registry import unknown

FORMATS = ("pdf", "png", "svg")


class PlotConfig(RunConfig):
    """Draw the caches of a run, or without --expid those of all its experiment's runs together.

    Figures show what was measured, what theory predicts, and the difference.
    """

    metrics: Names = Field(
        (), description="Metrics to draw, listed above; every one that has a cache if none."
    )
    suffix: str = Field("", description="Suffix of the caches, as given to cache.py.")
    layers: Names = Field(
        (), description="Layers to draw, by their names or those of modules in them; all if none."
    )
    layer_wise: bool = Field(
        False, description="Sum the conserved quantities over the units of each layer."
    )
    max_units: int = Field(
        12, ge=1, description="Most curves in a panel; of more units, evenly spaced ones."
    )
    x: X = Field("step", description="step, or time: the sum of the effective learning rates.")
    format: Names = Field(("pdf", "png"), description="File formats: pdf, png, svg.")
    plot_dir: str = Field("", description="Folder for the figures; the run's img/ if not given.")
    report: bool = Field(
        False,
        description="Write one HTML page instead of single figures: of the run, or if --expid is "
        "left out of the experiment, its own metrics first and then its runs.",
    )
    legend: bool = Field(True, description="Whether figures have a legend.")
    use_tex: bool = Field(False, description="Set text with LaTeX, which has to be installed.")

    @pydantic.field_validator("format")
    @classmethod
    def _known_formats(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in FORMATS:
                raise UserError(f"--format: {unknown('format', name, FORMATS)}")
        if not value:
            raise ValueError(f"needs at least one of {', '.join(FORMATS)}")
        return value

    @pydantic.field_validator("suffix")
    @classmethod
    def _in_one_folder(cls, value: str) -> str:
        if "/" in value or "\0" in value:
            raise ValueError("must be a part of a file name, without '/'")
        return value

    @pydantic.model_validator(mode="after")
    def _formats_of_figures_only(self) -> Self:
        if self.report and self.format != type(self).model_fields["format"].default:
            raise ValueError("--format: not read with --report, whose figures are within the page")
        return self

    def metric_names(self) -> list[str]:
        """The metrics by their own names, each once; raises ``UserError`` for unknown ones."""
        return own_names(self.metrics, self.expid)

    @property
    def options(self) -> Options:
        """How figures are drawn."""
        return Options(
            layers=self.layers,
            layer_wise=self.layer_wise,
            max_units=self.max_units,
            x=self.x,
            use_tex=self.use_tex,
            legend=self.legend,
        )

"""What the figures of gradients and phase portraits show, against synthetic caches."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from numpy.typing import NDArray

from Metrics.figures import draw
from tests.metrics.test_figures import RATE, STEPS, check_page, lines, words
from Utils.storage import write_hdf5

Floats = NDArray[np.float64]
REASON = "the optimizer rescales weight decay with the gradient"


def write(path: Path, kind: str, arrays: dict[str, Any], reason: str = "") -> Path:
    """A cache of a metric of some kind."""
    head = {"metric": kind, "kind": kind, "title": kind.title(), "ylabel": "$y$"}
    head |= {"units": "1", "citation": "", "features_hash": "f00d", "versions": "{}"}
    reasons = {name: {"reason": reason} for name in arrays if name.startswith("gate/")}
    write_hdf5(
        path, {"steps": STEPS, "time": STEPS * RATE} | arrays, head, array_attributes=reasons
    )
    return path


def walk(units: int, seed: int) -> Floats:
    """[T, units] positive, unknown at first."""
    values: Floats = np.random.default_rng(seed).uniform(0.5, 1.5, (len(STEPS), units))
    values[0] = np.nan
    return values


def portraits(path: Path, layers: dict[str, int], reason: str = "") -> Path:
    arrays: dict[str, Any] = {}
    for seed, (name, units) in enumerate(layers.items()):
        position = walk(units, seed)
        arrays |= {
            f"position/{name}": position,
            f"empirical/{name}": walk(units, seed + 100) - 1,
            f"theoretical/{name}": np.full_like(position, np.nan) if reason else -0.2 * position,
            f"gate/{name}": np.full(units, not reason, np.uint8),
        }
    return write(path, "phase", arrays, reason)


def segments(axes: Any) -> list[Floats]:
    """The polylines of an axes, put together again from their segments."""
    found = [c for c in axes.collections if isinstance(c, LineCollection)]
    parts = [np.array(collection.get_segments()) for collection in found]
    return [np.vstack([part[:, 0], part[-1:, 1]]) for part in parts]


def test_portraits_are_velocities_over_positions(tmp_path: Path) -> None:
    cache = portraits(tmp_path / "phase.h5", {"conv1": 3, "conv2": 30})
    figure = draw(cache)
    small, large = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["conv1", "conv2"]
    for unit, drawn in enumerate(segments(small)):
        expected = np.stack([walk(3, 0)[1:, unit], walk(3, 100)[1:, unit] - 1], axis=1)
        np.testing.assert_allclose(drawn, expected)
    assert len(segments(small)) == 3
    assert len(segments(large)) == 12
    assert "12 of 30 units" in words(figure)
    (dashed,) = [line for line in small.get_lines() if line.get_linestyle() == "--"]
    x, y = (np.asarray(data) for data in dashed.get_data())
    np.testing.assert_allclose(y, -0.2 * x)
    assert (np.diff(x) >= 0).all()
    assert (x.min(), x.max()) == (np.nanmin(walk(3, 0)), np.nanmax(walk(3, 0)))


def test_time_is_told_by_the_colour(tmp_path: Path) -> None:
    axes = draw(portraits(tmp_path / "phase.h5", {"conv1": 1})).axes[0]
    (collection,) = axes.collections
    colours = np.asarray(collection.get_colors())  # type: ignore[attr-defined]
    assert len(np.unique(colours, axis=0)) == len(STEPS) - 2  # one for each known segment
    assert (np.diff(colours[:, 1]) > 0).all()  # viridis grows greener


def test_without_a_known_decay_no_line_is_drawn(tmp_path: Path) -> None:
    figure = draw(portraits(tmp_path / "phase.h5", {"conv1": 3}, REASON))
    assert not lines(figure.axes[0], "--")
    assert "weight decay alone" not in words(figure)
    assert "no prediction: the optimizer" in words(figure)


def test_a_run_without_steps_can_be_drawn(tmp_path: Path) -> None:
    unknown = np.full((len(STEPS), 2), np.nan)
    groups = ("position", "empirical", "theoretical")
    arrays: dict[str, Any] = {f"{group}/a": unknown for group in groups}
    arrays["gate/a"] = np.ones(2, np.uint8)
    check_page(draw(write(tmp_path / "phase.h5", "phase", arrays)))
    both = {f"{group}/a": unknown for group in ("empirical", "gradient")}
    check_page(draw(write(tmp_path / "weights.h5", "gradients", both)))


def test_gradients_are_drawn_below_their_weights_in_the_same_colours(tmp_path: Path) -> None:
    weights, gradients = walk(3, 0), walk(3, 1)
    weights[0] = [3.0, 1.0, 2.0]
    arrays = {"empirical/a": weights, "gradient/a": gradients}
    main, lower = draw(write(tmp_path / "weights.h5", "gradients", arrays)).axes
    for axes, values in ((main, weights), (lower, gradients)):
        for drawn, unit in zip(lines(axes, "-"), (1, 2, 0), strict=True):
            np.testing.assert_array_equal(drawn, values[:, unit])
    colours = [[line.get_color() for line in axes.get_lines()] for axes in (main, lower)]
    assert colours[0] == colours[1]
    assert lower.get_ylabel() == "gradient"


def test_norms_that_are_far_apart_are_drawn_on_a_logarithmic_axis(tmp_path: Path) -> None:
    wide, narrow = walk(5, 0) ** 20, walk(5, 0)
    figure = draw(write(tmp_path / "g.h5", "units", {"empirical/a": wide, "empirical/b": narrow}))
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear"]
    assert "5 units" in words(figure)


@pytest.mark.parametrize(("count", "reason"), [(1, ""), (2, REASON), (5, "")])
def test_any_number_of_layers_fits(tmp_path: Path, count: int, reason: str) -> None:
    names = {f"features.{i}.block.conv": 8 for i in range(count)}
    check_page(draw(portraits(tmp_path / "phase.h5", names, reason)))
    both = {
        f"{group}/{name}": 1e-7 * walk(8, 0)
        for group in ("empirical", "gradient")
        for name in names
    }
    check_page(draw(write(tmp_path / "weights.h5", "gradients", both)))

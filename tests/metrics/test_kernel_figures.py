"""Panels of the tangent kernel's figures, from caches that are written here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from Metrics.figures import draw
from tests.metrics.test_figures import check_page, words
from Utils.storage import write_hdf5

STEPS = np.arange(4)
ONES = np.ones(4)


def cache(path: Path, metric: str, arrays: Mapping[str, Any]) -> Path:
    said = {"metric": metric, "kind": metric, "title": metric, "ylabel": "y", "units": "1"}
    said |= {"citation": "", "features_hash": "f00d", "versions": "{}"}
    write_hdf5(path, {**arrays, "steps": STEPS, "time": 0.1 * STEPS}, said)
    return path


def spectrum(path: Path, condition: Mapping[str, Any]) -> Path:
    arrays: dict[str, Any] = {"lr/network": 0.1 * ONES, "largest lr/network": ONES}
    for name, values in condition.items():
        arrays[f"empirical/{name}"] = np.geomspace(100, 1e-3, 8) * np.exp(STEPS)[:, None]
        arrays[f"condition number/{name}"] = values
        for rank in ("effective rank", "participation ratio", "stable rank"):
            arrays[f"{rank}/{name}"] = 2 * ONES
    return cache(path, "spectrum", arrays)


def test_condition_numbers_that_are_infinite_are_told(tmp_path: Path) -> None:
    known, late = 1e3 * np.exp(STEPS), np.where(STEPS < 2, np.inf, 1e4)
    cases = {
        "Θ": ({"network": late, "centred": known}, 2),
        "Θ and centred": ({"network": np.inf * ONES, "centred": late}, 1),
        "": ({"network": known, "centred": known}, 2),
    }
    for number, (beyond, (condition, curves)) in enumerate(cases.items()):
        figure = draw(spectrum(tmp_path / f"{number}.h5", condition))
        check_page(figure)  # no title of a row lies on what the row above counts
        note = "infinite where" in words(figure)
        assert note is bool(beyond)
        assert not note or f"{beyond}: infinite" in words(figure)
        (panel,) = (a for a in figure.axes if a.get_title(loc="left") == "condition number")
        assert len(panel.lines) == curves


def test_rounding_at_the_reference_is_no_error_of_a_prediction(tmp_path: Path) -> None:
    """There the network and its linear model are one, and 1e-7 would be most of the panel."""
    arrays: dict[str, Any] = {}
    change = np.array([0.0, 0.3, 0.4, 0.5])
    errors = np.array([1e-7, 0.1, 0.2, 0.3])
    for name, values in (("loss", ONES), ("accuracy", ONES), ("outputs", change)):
        arrays[f"empirical/{name}"] = values[:, None]
        arrays[f"weights/{name}"] = errors
        arrays[f"descent/{name}"] = arrays[f"flow/{name}"] = np.nan * ONES
    figure = draw(cache(tmp_path / "linearized.h5", "linearized", arrays))
    panel = figure.axes[-1]
    _, predicted = (np.asarray(line.get_ydata()) for line in panel.lines)
    np.testing.assert_array_equal(predicted, [np.nan, 0.1, 0.2, 0.3])
    assert panel.get_ylim()[0] > 0.01


def kernels(path: Path, classes: Any, directions: int) -> Path:
    count = len(classes)
    every = np.broadcast_to(np.eye(count), (4, count, count))
    arrays: dict[str, Any] = {"kernel/network": every, "class/network": np.tile(classes, (4, 1))}
    for name in ("distance", "cka"):
        arrays[f"{name}/network"] = np.ones((4, 4))
    for name in ("change", "velocity"):
        arrays[f"{name}/network"] = 0.1 * STEPS
    arrays["angle/network"] = 0.1 * np.ones((4, directions))
    arrays["empirical/network"] = ONES[:, None]
    return cache(path, "kernels", arrays)


@pytest.mark.parametrize("first", [0, 10, 100])
def test_names_of_many_classes_do_not_touch(tmp_path: Path, first: int) -> None:
    classes = np.sort(np.random.default_rng(0).integers(first, first + 60, 64)).astype(float)
    check_page(draw(kernels(tmp_path / "ntk.h5", classes, 3)))


def test_an_eigenspace_of_all_directions_cannot_turn(tmp_path: Path) -> None:
    classes = np.arange(8.0)
    assert "always 0" in words(draw(kernels(tmp_path / "all.h5", classes, 8)))
    assert "always 0" not in words(draw(kernels(tmp_path / "some.h5", classes, 7)))

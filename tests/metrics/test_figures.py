"""What figures show, against synthetic caches."""

from itertools import combinations
from pathlib import Path
from typing import Any

import h5py
import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

from Metrics.figures import NothingToDraw, draw
from Metrics.figures._style import log_ticks
from Utils.errors import UserError
from Utils.storage import write_hdf5

STEPS = np.arange(0, 201, 20)
DENSE = np.arange(0, 201, 5)
RATE = 0.1
LAYERS = {"conv1": 4, "conv2": 64, "bn2|classifier": 3}
REASON = "leak 3e-04 in 12 of 64 laws"


def write_law(
    path: Path,
    layers: dict[str, int],
    closed: dict[str, list[int]] | None = None,
    metric: str = "scale",
    noise: float = 1e-7,
    **attributes: str,
) -> Path:
    """A cache of decaying oscillations, measured with relative noise.

    Args:
        path: of the cache.
        layers: how many units each has.
        closed: the units of a layer whose gates are closed.
        metric: its name.
        noise: relative deviation of the measurements from the exact law.
        attributes: root attributes that differ from the usual ones.
    """
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {"steps": STEPS, "time": STEPS * RATE}
    arrays |= {"dense/steps": DENSE, "dense/time": DENSE * RATE}
    reasons = {}
    for depth, (name, units) in enumerate(layers.items(), start=1):
        start, speed = random.uniform(0.5, 1.5, units) * depth, random.uniform(0.02, 0.06, units)
        gate = np.ones(units, np.uint8)
        gate[(closed or {}).get(name, [])] = 0
        reasons[f"gate/{name}"] = {"reason": "" if gate.all() else REASON}
        arrays[f"gate/{name}"] = gate
        curves = _curves(STEPS, start, speed, noise * random.standard_normal((len(STEPS), units)))
        arrays |= {f"{kind}/{name}": values for kind, values in curves.items()}
        arrays[f"size/{name}"] = np.broadcast_to(start, (len(STEPS), units))
        arrays[f"leak/{name}"] = np.zeros((len(STEPS), units))
        dense = _curves(DENSE, start, speed, noise * random.standard_normal((len(DENSE), units)))
        residual = np.abs(dense["empirical"] - dense["exact"]) / start
        arrays |= {f"dense/{kind}/{name}": values.sum(axis=1) for kind, values in dense.items()}
        arrays[f"dense/residual/{name}"] = residual.max(axis=1)
    root = _attributes(metric, "law", "Scale symmetry", r"$|W_i|^2 + b_i^2$") | attributes
    write_hdf5(path, arrays, root, array_attributes=reasons)
    return path


def write_curves(path: Path, metric: str, curves: dict[str, NDArray[np.float64]]) -> Path:
    """A cache of curves without theory, each [T, units]."""
    arrays: dict[str, Any] = {f"empirical/{name}": values for name, values in curves.items()}
    arrays |= {"steps": STEPS, "time": STEPS * RATE}
    write_hdf5(path, arrays, _attributes(metric, "curves", metric.title(), r"$\theta_i$"))
    return path


def write_performance(path: Path) -> Path:
    """Evaluated at every other checkpoint."""
    falling = np.exp(-STEPS / 50)[:, None].copy()
    falling[1::2] = np.nan
    names = {"train_loss": 2.0, "test_loss": 2.3, "accuracy1": 90.0, "accuracy5": 50.0}
    curves = {name: scale * falling for name, scale in names.items()}
    return write_curves(path, "performance", curves)


def _curves(
    steps: NDArray[np.int64],
    start: NDArray[np.float64],
    speed: NDArray[np.float64],
    noise: NDArray[np.float64],
) -> dict[str, NDArray[np.float64]]:
    at = steps[:, None]
    exact = start * np.exp(-at / 150) * (1 + 0.3 * np.sin(speed * at))
    paper = exact * (1 + 1e-2 * at / 200)
    return {"empirical": exact * (1 + noise), "exact": exact, "theoretical": paper}


def _attributes(metric: str, kind: str, title: str, ylabel: str) -> dict[str, str]:
    named = {"metric": metric, "kind": kind, "title": title, "ylabel": ylabel}
    return named | {"units": "1", "citation": "", "features_hash": "f00d", "versions": "{}"}


@pytest.fixture
def law(tmp_path: Path) -> Path:
    return write_law(tmp_path / "scale.h5", LAYERS)


def lines(axes: Axes, style: str) -> list[NDArray[np.float64]]:
    """The vertical data of the curves of a style; ``axhline``, of two points, is none."""
    found = [line for line in axes.get_lines() if line.get_linestyle() == style]
    return [y for y in (np.asarray(line.get_ydata()) for line in found) if len(y) > 2]


def panels(figure: Figure) -> dict[str, tuple[Axes, Axes]]:
    """Main and residual axes by layer."""
    mains, lowers = figure.axes[::2], figure.axes[1::2]
    names = [axes.get_title(loc="left").replace(" ", "") for axes in mains]
    return dict(zip(names, zip(mains, lowers, strict=True), strict=True))


def columns(array: NDArray[np.float64]) -> list[list[float]]:
    return sorted(array.T.tolist())


def texts(figure: Figure) -> list[Text]:
    """What can be read on the page."""
    found = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    for axes in figure.axes:
        legend = axes.get_legend()
        found += [*axes.texts, axes.title, *(legend.get_texts() if legend else ())]
        found += [t for t in axes.get_children() if isinstance(t, Text) and t not in found]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            found += [axis.label, axis.get_offset_text(), *(tick.label1 for tick in ticks)]
    return [text for text in found if text.get_visible() and text.get_text()]


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in texts(figure))


class TestUnits:
    def test_measurements_and_both_predictions_are_the_arrays_of_the_cache(self, law: Path) -> None:
        main, _ = panels(draw(law))["conv1"]
        with h5py.File(law) as h5:
            for style, kind in (("-", "empirical"), ("--", "exact"), (":", "theoretical")):
                drawn = sorted(line.tolist() for line in lines(main, style))
                assert drawn == columns(h5[kind]["conv1"][()]), kind

    def test_predictions_lie_on_top_and_are_black(self, law: Path) -> None:
        main, _ = panels(draw(law))["conv1"]
        order = {line.get_linestyle(): line.get_zorder() for line in main.get_lines()}
        assert order["-"] < order[":"] < order["--"]
        dashed = [line for line in main.get_lines() if line.get_linestyle() == "--"]
        assert {line.get_color() for line in dashed} == {"k"}

    def test_residuals_are_relative_to_the_size_on_a_logarithmic_axis(self, law: Path) -> None:
        main, lower = panels(draw(law))["conv1"]
        with h5py.File(law) as h5:
            deviation = np.abs(h5["empirical/conv1"][()] - h5["exact/conv1"][()])
            expected = deviation / h5["size/conv1"][()]
        floor = lower.get_ylim()[0]
        drawn = np.array(sorted(line.tolist() for line in lines(lower, "-")))
        assert lower.get_yscale() == "log"
        assert lower.get_xlim() == main.get_xlim()
        np.testing.assert_allclose(
            drawn, columns(np.maximum(expected, 1.5 * floor)), rtol=1e-12, atol=0
        )

    def test_papers_residual_is_the_largest_of_the_units(self, law: Path) -> None:
        _, lower = panels(draw(law))["conv1"]
        with h5py.File(law) as h5:
            deviation = np.abs(h5["empirical/conv1"][()] - h5["theoretical/conv1"][()])
            expected = (deviation / h5["size/conv1"][()]).max(axis=1)
        (drawn,) = lines(lower, ":")
        np.testing.assert_allclose(drawn[1:], expected[1:])

    def test_of_many_units_evenly_spaced_ones_are_drawn(self, law: Path) -> None:
        figure = draw(law, max_units=4)
        main, _ = panels(figure)["conv2"]
        with h5py.File(law) as h5:
            chosen = h5["empirical/conv2"][()][:, [0, 21, 42, 63]]
        assert sorted(line.tolist() for line in lines(main, "-")) == columns(chosen)
        assert "4 of 64 units" in words(figure)
        assert len(lines(panels(draw(law))["conv2"][0], "-")) == 12

    def test_horizontal_axis_is_steps_or_time(self, law: Path) -> None:
        for figure, at in ((draw(law), STEPS), (draw(law, x="time"), STEPS * RATE)):
            for line in panels(figure)["conv1"][0].get_lines():
                np.testing.assert_array_equal(line.get_xdata(), at)
        assert "gradient-flow time" in words(draw(law, x="time"))


class TestLayerSums:
    def test_dense_record_is_drawn(self, law: Path) -> None:
        main, lower = panels(draw(law, layer_wise=True))["bn2|classifier"]
        with h5py.File(law) as h5:
            for style, kind in (("-", "empirical"), ("--", "exact"), (":", "theoretical")):
                (drawn,) = lines(main, style)
                np.testing.assert_array_equal(drawn, h5[f"dense/{kind}/bn2|classifier"][()])
            (residual,) = lines(lower, "-")
            expected = h5["dense/residual/bn2|classifier"][()]
        np.testing.assert_array_equal(residual, np.maximum(expected, residual.min()))

    def test_without_dense_record_checkpoints_are_summed(self, law: Path) -> None:
        with h5py.File(law, "r+") as h5:
            del h5["dense"]
            expected = h5["exact/conv2"][()].sum(axis=1)
        (drawn,) = lines(panels(draw(law, layer_wise=True))["conv2"][0], "--")
        np.testing.assert_allclose(drawn, expected)

    def test_more_layers_than_fit_share_one_panel_with_a_key(self, tmp_path: Path) -> None:
        law = write_law(tmp_path / "scale.h5", {f"block{i}|next{i}": 2 for i in range(13)})
        figure = draw(law)
        main, lower = figure.axes
        assert [len(lines(main, style)) for style in ("-", "--", ":")] == [13, 13, 13]
        assert len(lines(lower, "-")) == 13
        assert "block0 | next0" in words(figure)
        assert "block12 | next12" in words(figure)
        assert len({str(line.get_color()) for line in main.get_lines()}) == 13 + 2


class TestGates:
    def test_closed_layer_has_no_prediction_and_says_why(self, tmp_path: Path) -> None:
        law = write_law(tmp_path / "scale.h5", LAYERS, closed={"conv1": [0, 1, 2, 3]})
        for layer_wise in (False, True):
            main, lower = panels(draw(law, layer_wise=layer_wise))["conv1"]
            assert lines(main, "-")
            assert not [line for line in main.get_lines() if line.get_linestyle() != "-"]
            assert not lower.get_lines()
            (note,) = (text.get_text() for text in lower.texts)
            assert " ".join(note.split()) == f"no prediction: {REASON}"
            assert lines(panels(draw(law))["conv2"][0], "--")

    def test_why_many_layers_are_closed_is_said_once(self, tmp_path: Path) -> None:
        names = {f"layer{i}": 2 for i in range(13)}
        closed = {name: [0, 1] for name in names}
        every = draw(write_law(tmp_path / "every.h5", names, closed=closed))
        _, lower = every.axes
        (note,) = (text.get_text() for text in lower.texts)
        assert " ".join(note.split()) == f"closed gates in 13 of 13 layers; {REASON}"
        del closed["layer0"]
        some = draw(write_law(tmp_path / "some.h5", names, closed=closed))
        assert not some.axes[1].texts
        assert f"closed gates in 12 of 13 layers; {REASON}" in words(some)

    def test_closed_units_have_no_prediction(self, tmp_path: Path) -> None:
        law = write_law(tmp_path / "scale.h5", LAYERS, closed={"conv1": [1, 3]})
        figure = draw(law)
        main, lower = panels(figure)["conv1"]
        with h5py.File(law) as h5:
            opened = h5["exact/conv1"][()][:, [0, 2]]
        assert len(lines(main, "-")) == 4
        assert sorted(line.tolist() for line in lines(main, "--")) == columns(opened)
        assert len(lines(lower, "-")) == 2
        assert f"unpredicted: {REASON}" in words(figure)

    def test_sum_of_a_layer_leaves_closed_units_out(self, tmp_path: Path) -> None:
        law = write_law(tmp_path / "scale.h5", LAYERS, closed={"conv1": [1, 3]})
        figure = draw(law, layer_wise=True)
        main, _ = panels(figure)["conv1"]
        with h5py.File(law) as h5:
            for style, kind in (("-", "empirical"), ("--", "exact"), (":", "theoretical")):
                (drawn,) = lines(main, style)
                np.testing.assert_allclose(drawn, h5[f"{kind}/conv1"][()][:, [0, 2]].sum(axis=1))
        assert "sum of 2 of 4 units" in words(figure)


class TestAxes:
    def test_residuals_of_exactly_zero_lie_on_the_floor(self, tmp_path: Path) -> None:
        law = write_law(tmp_path / "scale.h5", LAYERS, noise=0.0)
        for layer_wise in (False, True):
            for _, lower in panels(draw(law, layer_wise=layer_wise)).values():
                low, high = lower.get_ylim()
                assert 0 < low < np.finfo(np.float32).eps < high
                assert all(low < y.min() and y.max() < high for y in lines(lower, "-"))

    @pytest.mark.parametrize(
        ("noise", "precision"), [(1e-7, "float32 rounding"), (1e-15, "float64 rounding")]
    )
    def test_residuals_stand_beside_the_rounding_of_their_precision(
        self, tmp_path: Path, noise: float, precision: str
    ) -> None:
        figure = draw(write_law(tmp_path / "scale.h5", LAYERS, noise=noise))
        assert precision in words(figure)

    def test_conserved_quantity_looks_conserved(self, law: Path) -> None:
        with h5py.File(law, "r+") as h5:
            constant = np.array([[1.0], [2.0], [4.0], [8.0]]).T * np.ones((len(STEPS), 1))
            h5["empirical/conv1"][()] = constant * (1 + 1e-7)
            h5["exact/conv1"][()] = h5["theoretical/conv1"][()] = constant
        low, high = panels(draw(law, layers=("conv1",)))["conv1"][0].get_ylim()
        assert high - low > 1e-3

    def test_theory_that_runs_away_does_not_press_the_measurements_flat(self, law: Path) -> None:
        before = panels(draw(law))["conv1"][0].get_ylim()
        with h5py.File(law, "r+") as h5:
            h5["theoretical/conv1"][()] = 1e30
        main, lower = panels(draw(law))["conv1"]
        assert main.get_ylim() == before
        assert lower.get_ylim()[1] < 10

    def test_diverged_run_can_be_drawn(self, law: Path) -> None:
        with h5py.File(law, "r+") as h5:
            for kind in ("empirical", "exact"):
                values = h5[f"{kind}/conv1"][()]
                values[5:] = np.inf
                h5[f"{kind}/conv1"][()] = values
            h5["empirical/conv2"][()] = np.nan
        assert np.isfinite(panels(draw(law))["conv1"][0].get_ylim()).all()

    def test_zeros_can_be_drawn(self, law: Path) -> None:
        with h5py.File(law, "r+") as h5:
            for kind in ("empirical", "exact", "theoretical", "size"):
                h5[f"{kind}/conv1"][()] = 0.0
        low, high = panels(draw(law))["conv1"][0].get_ylim()
        assert low < 0 < high

    def test_first_checkpoint_alone_can_be_drawn(self, tmp_path: Path) -> None:
        cache = tmp_path / "performance.h5"
        first = {"steps": STEPS[:1], "time": STEPS[:1] * RATE, "empirical/test_loss": [[2.3]]}
        write_hdf5(cache, first, _attributes("performance", "curves", "Performance", ""))
        check_page(draw(cache))

    def test_look_does_not_depend_on_the_users_settings(self, law: Path) -> None:
        with matplotlib.rc_context({"font.size": 30, "axes.labelsize": 30, "axes.grid": True}):
            check_page(draw(law))


class TestLayers:
    def test_chosen_by_name_or_by_a_module_in_it(self, law: Path) -> None:
        assert list(panels(draw(law, layers=("bn2|classifier",)))) == ["bn2|classifier"]
        assert list(panels(draw(law, layers=("classifier", "conv1")))) == [
            "conv1",
            "bn2|classifier",
        ]

    def test_unknown_layer_gets_a_suggestion(self, law: Path) -> None:
        with pytest.raises(UserError, match=r"unknown layer 'conv3'; did you mean 'conv2'\?"):
            draw(law, layers=("conv3",))

    def test_order_is_that_of_the_file(self, tmp_path: Path) -> None:
        names = ["conv10", "conv2", "a"]
        law = write_law(tmp_path / "scale.h5", dict.fromkeys(names, 2))
        assert list(panels(draw(law))) == names

    def test_model_without_the_law_has_nothing_to_draw(self, tmp_path: Path) -> None:
        with pytest.raises(
            NothingToDraw, match="scale: not drawn, the network has nothing of this kind"
        ):
            draw(write_law(tmp_path / "scale.h5", {}))


@pytest.mark.parametrize(
    ("low", "high", "scale"), [(7e-5, 1.2e-4, "linear"), (0.2, 0.4, "log"), (0.1, 3, "log")]
)
def test_a_logarithmic_axis_has_two_ticks_or_is_linear(low: float, high: float, scale: str) -> None:
    axes = Figure().add_subplot()
    log_ticks(axes, low, high)
    seen = [tick for tick in axes.get_yticks() if low <= tick <= high]
    assert axes.get_yscale() == scale
    assert len(seen) >= 2


class TestCurves:
    def test_checkpoints_without_evaluation_are_left_out(self, tmp_path: Path) -> None:
        figure = draw(write_performance(tmp_path / "performance.h5"))
        assert [axes.get_title(loc="left") for axes in figure.axes] == ["loss", "accuracy (%)"]
        for axes in figure.axes:
            for line in axes.get_lines():
                np.testing.assert_array_equal(line.get_xdata(), STEPS[::2])
                assert np.isfinite(np.asarray(line.get_ydata())).all()

    def test_losses_that_fall_far_are_logarithmic(self, tmp_path: Path) -> None:
        steps = np.arange(len(STEPS), dtype=np.float64)[:, None]
        for factor, scale in ((2.0, "log"), (1.01, "linear")):
            curves = {"test_loss": np.exp(-np.log(factor) * steps), "accuracy1": 1.0 + steps}
            loss, accuracy = draw(
                write_curves(tmp_path / f"{scale}.h5", "performance", curves)
            ).axes
            assert (loss.get_yscale(), accuracy.get_yscale()) == (scale, "linear")

    def test_run_that_was_never_evaluated_has_nothing_to_draw(self, tmp_path: Path) -> None:
        unknown = np.full((len(STEPS), 1), np.nan)
        cache = write_curves(tmp_path / "performance.h5", "performance", {"test_loss": unknown})
        with pytest.raises(NothingToDraw, match="no checkpoint was evaluated"):
            draw(cache)

    def test_network_shows_some_values_of_some_parameters(self, tmp_path: Path) -> None:
        values = np.random.default_rng(0).standard_normal((len(STEPS), 32)).cumsum(axis=0)
        parameters = {f"fc{i}.weight": values for i in range(20)}
        cache = write_curves(tmp_path / "network.h5", "network", parameters)
        figure = draw(cache)
        assert len(figure.axes) == 12
        assert {len(axes.get_lines()) for axes in figure.axes} == {12}
        assert len(draw(cache, layers=("fc3",)).axes) == 1


FIGURES = [
    {},
    {"layer_wise": True},
    {"legend": False},
    {"layers": ("conv1",)},
    {"x": "time", "layers": ("conv1", "conv2")},
]


class TestPage:
    @pytest.mark.parametrize("options", FIGURES)
    def test_text_is_readable_on_the_page(self, tmp_path: Path, options: dict[str, Any]) -> None:
        closed = {"conv2": [1, 2], "bn2|classifier": [0, 1, 2]}
        law = write_law(tmp_path / "scale.h5", LAYERS, closed=closed)
        check_page(draw(law, **options))

    @pytest.mark.parametrize("count", [1, 2, 4, 5, 12, 30])
    def test_any_number_of_layers_fits(self, tmp_path: Path, count: int) -> None:
        names = [f"features.{i}.block.conv|features.{i}.block.norm" for i in range(count)]
        check_page(draw(write_law(tmp_path / "scale.h5", dict.fromkeys(names, 8))))

    def test_curves_fit(self, tmp_path: Path) -> None:
        check_page(draw(write_performance(tmp_path / "performance.h5")))

    def test_legend_can_be_left_out(self, law: Path) -> None:
        assert draw(law).legends
        assert not draw(law, legend=False).legends

    def test_markup_in_names_is_shown_as_it_is(self, tmp_path: Path) -> None:
        law = write_law(tmp_path / "scale.h5", {"a$b_1$": 2}, title="cost in $ and ε")
        shown = words(draw(law))
        assert r"a\$b_1\$" in shown
        assert r"cost in \$ and ε" in shown


def check_page(figure: Figure) -> None:
    """Assert that all text is large enough, on the page, and overlaps no other text."""
    assert figure.get_figwidth() <= 6.8
    assert figure.get_figheight() <= 11
    figure.set_dpi(300)
    figure.draw_without_rendering()
    page, shown = figure.bbox, texts(figure)
    places = [text.get_window_extent() for text in shown]
    for text, place in zip(shown, places, strict=True):
        assert float(text.get_fontsize()) >= 7, text
        assert page.x0 - 1 <= place.x0 < place.x1 <= page.x1 + 1, text
        assert page.y0 - 1 <= place.y0 < place.y1 <= page.y1 + 1, text
    for (first, a), (second, b) in combinations(zip(shown, places, strict=True), 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        along = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert across < 1 or along < 1, (first, second)


class TestFiles:
    def test_damaged_cache_is_the_users_to_mend(self, law: Path) -> None:
        law.write_bytes(law.read_bytes()[:1000])
        with pytest.raises(UserError, match=r"damaged .*; run cache.py for this run again"):
            draw(law)

    def test_incomplete_cache_is_the_users_to_mend(self, law: Path) -> None:
        with h5py.File(law, "r+") as h5:
            del h5["exact/conv2"]
        with pytest.raises(UserError, match=r"incomplete .*; run cache.py for this run again"):
            draw(law)

"""Learning-rate transfer: what is drawn of seeds, minima, and runs that diverged."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy import stats

from Metrics.figures._experiment import read_experiment
from Metrics.figures._options import Options
from Metrics.figures._transfer import Mean, draw_transfer
from tests.experiments import FLAGS, cached, make
from Utils.errors import Diverged

RATES = ("0.01", "0.1", "1")
SEEDS = (1, 2)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two widths, two seeds, three learning rates and one at which every run diverges."""
    path = tmp_path_factory.mktemp("results") / "e"

    def add(rate: str, width: int, seed: int) -> None:
        make(path, f"{FLAGS} --observe-freq 1", rate, (width,), (seed,))

    for rate in RATES:
        for width in (16, 32):
            for seed in SEEDS:
                add(rate, width, seed)
                made = path / f"w{width}-s{seed}"
                made.rename(made.with_name(f"lr{rate}-w{width}-s{seed}"))
    for seed in SEEDS:
        with pytest.raises(Diverged):
            add("1e200", 32, seed)
    return path


def test_runs_that_diverged_are_counted(swept: Path) -> None:
    (found,) = cached(swept, "--metrics transfer")
    assert "2 of 14 runs diverged: 2 of 2 at lr 1e+200" in found.text()
    with h5py.File(found.path) as file:
        ended = dict(zip(file["runs"].asstr()[()], file["diverged"][()].tolist(), strict=True))
    assert {name for name, step in ended.items() if step >= 0} == {"w32-s1", "w32-s2"}
    best = [e for e in found.exponents if e.quantity.name == "best lr"]
    assert [e.fit.seeds for e in best] in ([2], [])  # not hidden by the seeds that diverged
    assert not any(e.quantity.name == "loss at lr 1e+200" for e in found.exponents)
    (again,) = cached(swept, "--metrics transfer")
    assert again.exponents == found.exponents
    (other,) = cached(swept, "--metrics gradients")  # which needs weights
    assert "diverged" not in other.text()


def test_means_and_intervals_are_drawn(swept: Path) -> None:
    (found,) = cached(swept, "--metrics transfer")
    cache = read_experiment(found.path)
    over_rates, over_widths, over_steps = draw_transfer(cache, Options()).axes
    losses = cache.curves["train loss", "network"][:, -1]
    crosses = [line for line in over_rates.lines if line.get_marker() == "x"]
    assert [line.get_xdata().tolist() for line in crosses] == [[1e200]]  # type: ignore[union-attr]
    curve = over_rates.lines[0]
    narrow = [losses[(cache.widths == 16) & np.isclose(cache.rates, float(r))] for r in RATES]
    assert np.array(curve.get_ydata()) == pytest.approx([stats.gmean(seeds) for seeds in narrow])
    band = over_rates.collections[0].get_paths()[0].vertices
    for rate, seeds in zip(RATES, narrow, strict=True):
        logs = np.log(seeds)
        ends = stats.t.interval(0.95, 1, logs.mean(), stats.sem(logs))
        drawn = np.array(band)[np.isclose(np.array(band)[:, 0], float(rate)), 1]
        assert np.log([drawn.min(), drawn.max()]) == pytest.approx(ends)
    assert over_steps.get_title(loc="left") == "at learning rate 0.1"
    assert over_widths.get_ylabel() == "best learning rate"


def test_one_seed_has_no_interval() -> None:
    assert Mean.of(np.array([0.3])).ends == pytest.approx((0.3, 0.3))

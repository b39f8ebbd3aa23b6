"""The certificate in caches: laws that hold, nearly hold, and do not hold."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy import sparse

from Metrics.figures import draw
from Metrics.summary import deviation_table
from Models.symmetry import Charges, Family, Laws, Reduction
from tests.runs import Runs, cache_run, extract_run, train_run
from Utils.rundir import RunFolder

CERTIFY = "--metrics certificate --examples 128"
CURVES = ("logits", "loss", "leak")


def largest(run: RunFolder, curve: str, kind: str = "") -> float:
    """The largest value of a curve over steps, units and the families of a kind."""
    with h5py.File(run.cache("certificate")) as file:
        if curve == "charge":
            names = ("empirical", "exact", "size")
            triples = [[file[c][n][()] for c in names] for n in file["size"] if kind in n]
            return max(float((np.abs(q - e) / s).max()) for q, e, s in triples)
        return max(float(x[()].max()) for name, x in file[curve].items() if kind in name)


def gates(run: RunFolder) -> dict[str, tuple[list[int], str]]:
    with h5py.File(run.cache("certificate")) as file:
        return {n: (g[()].tolist(), g.attrs["reason"]) for n, g in file["gate"].items()}


@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 1e-5), ("float64", 1e-13)])
def test_exact_symmetries_are_certified_to_rounding(own: Runs, dtype: str, rounding: float) -> None:
    run = own(f"--model fc --width 8 --depth 3 --lr 0.1 --dtype {dtype}")
    cache_run(run, CERTIFY)
    assert max(largest(run, curve) for curve in CURVES) < rounding
    assert largest(run, "charge") < rounding / 10
    assert gates(run) == {
        "rescale fc1|fc2": ([1] * 8, ""),
        "rescale fc2|classifier": ([1] * 8, ""),
        "translation classifier.weight": ([1] * 8, ""),
        "translation classifier.bias": ([1], ""),
    }
    with h5py.File(run.cache("certificate")) as file:
        moved = file["empirical/rescale fc1|fc2"][0]
        assert np.abs(moved).max() > 0.1
        assert file["rounding/rescale fc1|fc2"][0] == np.finfo(dtype).eps


def test_the_epsilon_of_a_normalisation_is_seen(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        + "".join(
            f"def {name}(s, c):\n"
            f"    norm = nn.BatchNorm1d(8, eps={eps})\n"
            "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), norm, nn.ReLU(), "
            "nn.Linear(8, c))\n"
            for name, eps in (("tiny", 1e-8), ("small", 1e-6), ("large", 1.0))
        )
    )
    found: dict[str, Any] = {}
    for name in ("tiny", "small", "large"):
        run = train_run(tmp_path / "e" / name, f"--model {tmp_path}/mine.py:{name} --dtype float64")
        extract_run(run, "--probe none")
        cache_run(run, CERTIFY)
        found[name] = {c: largest(run, c, "scale") for c in CURVES} | {"gates": gates(run)}
        assert largest(run, "charge") < 1e-13  # whatever the network makes of it
        assert largest(run, "logits", "translation") < 1e-13
    for curve in CURVES:
        assert 90 < found["small"][curve] / found["tiny"][curve] < 110
    assert found["small"]["gates"]["scale 1"] == ([1] * 8, "")
    open_, reason = found["large"]["gates"]["scale 1"]
    assert open_ == [0] * 8
    assert reason.startswith(f"logits move by {found['large']['logits']:.0e}; leak ")
    assert found["large"]["gates"]["translation 1.bias"] == ([1] * 8, "")


EYE = np.eye(4)


@pytest.mark.parametrize(
    ("flags", "reductions", "matrix", "kind"),
    [
        ("--model conv --width 4", [Reduction("conv1.weight", "row")], EYE, "scale"),
        (
            "--model conv-bn --width 4",
            [Reduction("conv2.weight", "column"), Reduction("conv1.weight", "row")],
            np.hstack([EYE, -EYE]),
            "rescale",
        ),
        (
            "--model logistic --loss mse",
            [Reduction("classifier.bias", "element")],
            np.ones((1, 10)),
            "translation",
        ),
    ],
)
def test_a_law_that_does_not_hold_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: str,
    reductions: list[Reduction],
    matrix: Any,
    kind: Any,
) -> None:
    charges = Charges(tuple(reductions), sparse.csr_matrix(matrix))
    none = Charges((), sparse.csr_matrix((0, 0)))
    names = tuple(reduction.parameter for reduction in reductions)
    family = Family(kind, "wrong", 0, len(matrix), names)
    pair = (none, charges) if kind == "translation" else (charges, none)
    laws = Laws(pair[0], pair[1], (family,), ())
    monkeypatch.setattr("Training.keeper.laws_of", lambda *_: laws)
    run = train_run(tmp_path / "e" / "x", flags)
    extract_run(run, "--probe none")
    cache_run(run, CERTIFY)
    ((open_, reason),) = gates(run).values()
    assert open_ == [0] * len(matrix)
    assert f"in {len(matrix)} of {len(matrix)} laws" in reason
    assert largest(run, "logits") > 0.02
    said = deviation_table([run.cache("certificate")]).splitlines()
    assert said[0].startswith(f"certified: x 0 of {len(matrix)} laws; logits moved by up to ")
    assert said[1:] == [f"not certified: x {kind} wrong: {reason}"]
    assert largest(run, "charge") < 1e-5  # the charge moves as stated all the same
    figure = draw(run.cache("certificate"))
    assert "not certified" in [text.get_text() for text in figure.axes[0].texts]


def test_one_false_law_among_true_ones_leaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reductions = [Reduction("fc2.weight", "column"), Reduction("fc1.weight", "row")]
    reductions += [Reduction("fc1.bias", "element")]
    signs = np.diag([1.0, 1, -1, 1])
    charges = Charges(tuple(reductions), sparse.csr_matrix(np.hstack([EYE, -signs, -signs])))
    family = Family("rescale", "wrong", 0, 4, tuple(r.parameter for r in reductions))
    laws = Laws(charges, Charges((), sparse.csr_matrix((0, 0))), (family,), ())
    monkeypatch.setattr("Training.keeper.laws_of", lambda *_: laws)
    run = train_run(tmp_path / "e" / "x", "--model fc --width 4 --depth 3 --dtype float64")
    extract_run(run, "--probe none")
    cache_run(run, CERTIFY)
    with h5py.File(run.cache("certificate")) as file:
        leak = file["leak/rescale wrong"][-1]
    assert (leak > 1e-10).tolist() == [False, False, True, False]
    ((open_, reason),) = gates(run).values()
    assert open_ == [0] * 4  # the units were moved together, and the logits noticed
    assert "in 1 of 4 laws" in reason


def test_the_figure(own: Runs) -> None:
    run = own("--model conv-bn --width 4")
    cache_run(run, CERTIFY)
    figure = draw(run.cache("certificate"))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[:3] == ["scale conv1", "scale conv2", "rescale bn1 | conv2"]
    assert len(titles) == len(gates(run)) == 8
    labels = [text.get_text() for text in figure.legends[0].texts]
    assert labels[-2:] == ["gate", "float32 rounding"]
    for axes in figure.axes:
        assert axes.get_yscale() == "log"
        gate, rounding = axes.lines[1].get_ydata(), axes.lines[0].get_ydata()
        assert set(np.asarray(gate)) == {1e-3}
        assert set(np.asarray(rounding)) == {np.finfo("float32").eps}
    with h5py.File(run.cache("certificate")) as file:
        logits = file["logits/scale conv1"][()]
    assert np.array_equal(np.asarray(figure.axes[0].lines[2].get_ydata()), logits)
    kinds = [
        a.get_title(loc="left") for a in draw(run.cache("certificate"), layers=("scale",)).axes
    ]
    assert kinds == ["scale conv1", "scale conv2"]
    some = [a.get_title(loc="left") for a in draw(run.cache("certificate"), layers=("bn1",)).axes]
    assert some == ["rescale bn1 | conv2"]


def test_a_diverged_network_is_not_certified(own: Runs) -> None:
    run = own("--model fc --width 4 --depth 3")
    with h5py.File(run.features(12), "a") as file:
        file["params/fc1.weight"][:] = np.inf
    cache_run(run, "--metrics sharpness,certificate --examples 32")
    assert not any(any(open_) for open_, _ in gates(run).values())
    with h5py.File(run.cache("sharpness")) as file:
        assert np.isnan(file["empirical/Hessian"][-1]).all()
        assert np.isfinite(file["empirical/Hessian"][:-1]).all()
    for metric in ("sharpness", "certificate"):
        draw(run.cache(metric))


def test_a_run_without_laws_has_an_empty_certificate(own: Runs) -> None:
    run = own("--model logistic --loss mse")
    cache_run(run, CERTIFY)
    with h5py.File(run.cache("certificate")) as file:
        assert file["steps"][()].tolist() == [0, 6, 12]
        assert "gate" not in file
    assert deviation_table([run.cache("certificate")]) == ""

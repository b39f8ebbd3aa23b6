"""Networks whose initial outputs vanish as they widen, and what they become: ``hybrid:s``.

Shape letters: S networks, P probe examples, C outputs.
"""

import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from Metrics.width.ensemble import MEAN, VARIANCE, Ensemble
from Metrics.width.theory import ChainTheory
from Models.config import ModelConfig
from Models.infinite.layers.affine import Affine
from Models.infinite.limit import begins_at_zero, limit_network
from Models.infinite.network import InfiniteNetwork
from Models.parametrization import build_parametrization
from tests.experiments import cached, plotted
from tests.runs import Runs, extract_run, flags_of, train_run
from Training.config import TrainConfig
from Training.ensemble import train_together
from Training.infinite.kernels import prior_kernel
from Utils.cli import parse
from Utils.config import validate
from Utils.errors import UserError
from Utils.rundir import RunFolder

CLOUDS = (
    "--dataset gaussian-mixture --train-size 24 --test-size 10 --dimension 5 --classes 3 "
    "--probe-size 6 --model fc --depth 3 --nonlinearity tanh --lr 0.3 --train-batch-size 12 "
    "--epochs 3 --no-laws"
)
WIDTHS, NETWORKS, LAST = (32, 512), 12, 6


def _limit(**flags: Any) -> InfiniteNetwork:
    values = {"model": "fc", "depth": 3, "width": "inf", **flags}
    return limit_network(validate(ModelConfig, values, "test"), (1, 4, 4), 3)


@pytest.mark.parametrize("model", ["fc", "conv", "preact-resnet"])
@pytest.mark.parametrize("s", ["0", "1/4", "0.9"])
def test_the_kernel_is_that_of_ntk_and_the_covariance_is_zero(model: str, s: str) -> None:
    """Larger rates undo the smaller readout: n^{s} times n^{−s} in every layer."""
    x = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    ntk = _limit(model=model, param="ntk").kernels(x)
    limit = _limit(model=model, param=f"hybrid:{s}")
    found = limit.kernels(x)
    torch.testing.assert_close(found.ntk, ntk.ntk, rtol=1e-14, atol=0)
    assert ntk.nngp is not None
    factor = 1.0 if s == "0" else 0.0
    assert limit.begins_at_zero == (s != "0")
    torch.testing.assert_close(found.nngp, factor * ntk.nngp, rtol=0, atol=0)


def test_layers_whose_rates_do_not_undo_the_readout_stand_still(tmp_path: Path) -> None:
    """Here the first one's, by --abc: the kernel is that of NTK without its part."""
    path = tmp_path / "slow.yaml"
    layers = "input: {c: 0}\nhidden: {a: 1/2, c: -1/2}\nreadout: {a: 3/4, c: -1/2}"
    path.write_text(f"{layers}\nvector: {{c: -1/2}}\n")
    x = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    found = _limit(abc=str(path), bias=False).kernels(x).ntk
    ntk = _limit(param="ntk", bias=False)
    first, *others = ntk.program.steps
    assert isinstance(first.layer, Affine)
    still = replace(first.layer, rates=replace(first.layer.rates, weight_rate=0.0))
    program = replace(ntk.program, steps=(replace(first, layer=still), *others))
    torch.testing.assert_close(found, InfiniteNetwork(program, (1, 4, 4)).kernels(x).ntk)
    whole = ntk.kernels(x).ntk
    assert found is not None
    assert whole is not None
    assert (found.diagonal() < 0.9 * whole.diagonal()).all()


def test_small_readouts_within_a_network_and_drawn_biases_are_refused(tmp_path: Path) -> None:
    """There they change more than the size of the outputs, or do not decide on it."""
    path = tmp_path / "drawn.yaml"
    layers = "input: {c: -1/2}\nhidden: {a: 1/2, c: -1/2}\nreadout: {a: 3/4, c: -1/2}"
    path.write_text(f"{layers}\nvector: {{c: -1/2}}\nbias_std: 1\n")
    with pytest.raises(UserError, match="initial outputs are a bias that does not shrink"):
        _limit(abc=str(path))
    model = tmp_path / "bottleneck.py"
    model.write_text(BOTTLENECK)
    with pytest.raises(UserError, match="here it is not the end of the network"):
        _limit(model=f"{model}:Bottleneck", depth=None, param="hybrid:1/2")


BOTTLENECK = """
from torch import nn

class Bottleneck(nn.Module):
    def __init__(self, input_shape, num_classes, width):
        super().__init__()
        self.wide = nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.ReLU())
        self.middle, self.end = nn.Linear(width, 3), nn.Linear(3, num_classes)

    def forward(self, x):
        return self.end(self.middle(self.wide(x)).tanh())
"""

# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks that differ in their initial weights alone, and their limit; for reading only."""
    path = tmp_path_factory.mktemp("results") / "e"
    flags = f"{CLOUDS} --loss mse --param hybrid:0.5"
    for n in WIDTHS:
        runs = [RunFolder(path / f"w{n}-{seed}") for seed in range(NETWORKS)]
        configs = [
            parse(
                TrainConfig,
                [*flags.split(), "--width", str(n), "--init-seed", str(seed), *flags_of(run)],
            )
            for seed, run in enumerate(runs)
        ]
        assert train_together(configs, runs) == [0] * NETWORKS
        for run in runs:
            extract_run(run)
    extract_run(train_run(path / "inf", f"{flags} --width inf --dtype float64"))
    return path


def _probe(run: Path, name: str, step: int = LAST) -> NDArray[np.float64]:
    with h5py.File(run / "feats" / f"step{step}.h5") as file:
        values: NDArray[np.float64] = file[f"probe/{name}"][()]
    return values


def _outputs(experiment: Path, width: int, step: int = LAST) -> NDArray[np.float64]:
    """[S, P, C]."""
    runs = (experiment / f"w{width}-{seed}" for seed in range(NETWORKS))
    return np.array([_probe(run, "logits", step) for run in runs]).astype(float)


def test_wide_networks_approach_the_limit_as_their_exponents_say(
    experiment: Path, tmp_path: Path
) -> None:
    """Outputs begin at n^{−¼} and end that far from those of the limit, each; and n^{½} times the
    variance of networks is that of the NTK ensemble, which begins with f_0 of size 1."""
    flags = f"{CLOUDS} --loss mse --param ntk --width inf --dtype float64"
    ntk = train_run(tmp_path / "e" / "ntk", flags)
    extract_run(ntk)
    mean = _probe(experiment / "inf", "logits")
    np.testing.assert_allclose(_probe(ntk.path, "logits"), mean, rtol=1e-12)
    for step in (0, LAST):
        middle = _probe(experiment / "inf", "logits", step)
        sizes = [np.sqrt(np.square(_outputs(experiment, n, step) - middle).mean()) for n in WIDTHS]
        assert np.log(sizes[1] / sizes[0]) / np.log(16) == pytest.approx(-1 / 4, abs=0.08)
        variance = _outputs(experiment, 512, step).var(0, ddof=1) * 512**0.5
        expected = _probe(ntk.path, "variance", step)[:, None]
        assert np.mean(variance / expected) == pytest.approx(1, abs=0.25)
    assert sizes[1] < 0.5 * np.sqrt(np.square(mean).mean())


def test_nothing_spreads_at_infinity(experiment: Path, own: Runs) -> None:
    """Under any loss; and no covariance is computed or stored for it."""
    of_ce = own(f"{CLOUDS} --loss ce --param hybrid:0.5 --width inf")
    for run in (experiment / "inf", of_ce.path):
        for step in (0, LAST):
            assert not _probe(run, "variance", step).any()
        with h5py.File(run / "feats" / f"step{LAST}.h5") as file:
            checkpoint = torch.load(run / "ckpt" / f"step{LAST}.tar", weights_only=True)
            assert file["ensemble/train_loss"][()] == pytest.approx(checkpoint["train_loss"])
        with h5py.File(run / "kernels.h5") as file:
            assert list(file["nngp"]) == ["probe_variance"]
        prior = prior_kernel(RunFolder(run))
        assert prior is not None
        assert prior.is_zero
        assert (prior.train.shape, prior.probe.shape) == ((24, 24), (6, 24))


def test_the_ensemble_is_told_in_units_of_the_limits_outputs(
    experiment: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """No division by the spread that is 0; the mean and variance by plain numpy."""
    copy = Path(shutil.copytree(experiment, tmp_path / "e"))
    (found,) = cached(copy, "--metrics ensemble")
    with h5py.File(copy / "cache" / "ensemble.h5") as file:
        tables = {name: dataset[()] for name, dataset in file["ensembles"].items()}
        steps = file["steps"][()].tolist()
    unit = np.square(_probe(copy / "inf", "logits")).mean()
    for row, n in enumerate(WIDTHS):
        for t, step in enumerate(steps):
            outputs, middle = _outputs(copy, n, step), _probe(copy / "inf", "logits", step)
            variance = outputs.var(0, ddof=1).mean() / unit
            assert tables["deviation of the variance"][row, t] == pytest.approx(variance)
            d = (outputs - middle).reshape(NETWORKS, -1)
            pairs = [d[i] @ d[j] for i in range(NETWORKS) for j in range(NETWORKS) if i != j]
            square = np.mean(pairs) / d.shape[1] / unit
            assert tables["squared deviation of the mean"][row, t] == pytest.approx(square)
    variances = {e.step: e for e in found.exponents if e.quantity == VARIANCE}
    assert variances[0].predicted == variances[LAST].predicted == Fraction(-1, 2)
    assert variances[LAST].fit.exponent == pytest.approx(-0.5, abs=0.2)
    assert "of the size of its outputs" in found.text()
    assert "nan" not in found.text()
    assert len(plotted(copy, "--metrics ensemble")) > 0
    assert not [str(w.message) for w in recwarn if "divide" in str(w.message)]


def test_exponents_of_means_and_variances() -> None:
    """NTK's 1/n; with δ the start's n^{−2δ} and what is learnt, n^{−2r}, the larger of them under
    losses with curvature of their own."""
    for s, loss, mean, variance in (
        ("0", "mse", -1, -1),
        ("1/2", "mse", Fraction(-1, 2), Fraction(-1, 2)),
        ("3/4", "mse", Fraction(-1, 4), Fraction(-3, 4)),
        ("1/4", "mse", Fraction(-3, 4), Fraction(-1, 4)),
        ("1/4", "ce", Fraction(-1, 4), Fraction(-1, 4)),
    ):
        theory = ChainTheory(None, abc=build_parametrization(f"hybrid:{s}", "sgd", 2))
        assert Ensemble().predicted(MEAN, 3, theory, loss) == mean
        assert Ensemble().predicted(VARIANCE, 3, theory, loss) == variance
        assert Ensemble().predicted(MEAN, 0, theory, loss) is None


def test_which_parametrizations_begin_at_zero() -> None:
    for param, expected in (("ntk", False), ("sp-lr1n", False), ("hybrid:0.1", True)):
        config = validate(ModelConfig, {"model": "fc", "width": "inf", "param": param}, "test")
        assert begins_at_zero(config, (1, 4, 4), 3) == expected

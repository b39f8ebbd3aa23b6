"""neural-tangents' column: stored, asked of its environment, and right where it is at hand."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import functional_call, jacrev

from benchmarks import rivals
from benchmarks.rivals.__main__ import main
from benchmarks.rivals.cases import CASES, INFINITE, Analytic, Case, Empirical
from benchmarks.rivals.networks import NETWORKS, POOL, Finite, resnet18
from Utils.errors import UserError

ROOT = Path(__file__).parents[2]
SMALL = Empirical("mlp", 3, dtype="float64", implementations=("structured derivatives",))

Answer = dict[str, object]


@pytest.fixture
def pretender(tmp_path: Path) -> Path:
    """An interpreter that stores what it is asked and the environment, and answers with 2 s."""
    script = tmp_path / "python"
    code = (
        "import json, os, pathlib, sys\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "case = json.load(sys.stdin)\n"
        "assert pathlib.Path(case['arrays']).is_file()\n"
        "asked = {'argv': sys.argv[1:], 'case': case, 'flags': os.environ['XLA_FLAGS']}\n"
        "(folder / 'asked.json').write_text(json.dumps(asked))\n"
        "if case['dtype'] == 'float32': sys.exit('Traceback …\\nXlaRuntimeError: no memory')\n"
        "print(json.dumps({'cpu_s': 2.0, 'repetitions': case['repetitions']}))\n"
    )
    script.write_text(f"#!{sys.executable}\n{code}")
    script.chmod(0o755)
    return script


def test_the_rival_is_asked_for_one_thread_and_its_answer_labelled(pretender: Path) -> None:
    (row,) = rivals.neural_tangents([SMALL], pretender, repetitions=3)
    label = {"case": "mlp, 3, full, float64", "implementation": "structured derivatives"}
    assert row == {**label, "stored": False, "cpu_s": 2.0, "repetitions": 3}
    asked = json.loads((pretender.parent / "asked.json").read_text())
    assert asked["argv"][-2:] == ["-m", "scripts.neural_tangents.timing"]
    assert "multi_thread_eigen=false" in asked["flags"]
    assert asked["case"]["layers"] == NETWORKS["mlp"][0]


def test_a_failure_of_the_rival_is_a_row_and_not_an_end(pretender: Path) -> None:
    cases = [Empirical("mlp", 3, implementations=("Jacobian contraction",)), SMALL]
    failed, done = rivals.neural_tangents(cases, pretender)
    assert failed["error"] == "XlaRuntimeError: no memory"
    assert done["cpu_s"] == 2.0


def test_stored_rows_cover_every_case_and_say_that_they_are_stored() -> None:
    stored = list(rivals.neural_tangents(CASES, None))
    asked = [(case.name, task["implementation"]) for case in CASES for task in case.tasks()]
    assert [(row["case"], row["implementation"]) for row in stored] == asked
    assert all(row["stored"] for row in stored)
    assert all("error" in row or row["cpu_s"] > 0 for row in stored)


def test_an_interpreter_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(rivals.VARIABLE, raising=False)
    assert rivals.interpreter() is None
    monkeypatch.setenv(rivals.VARIABLE, "/nowhere/python")
    with pytest.raises(UserError, match="NEURAL_TANGENTS is '/nowhere/python', which is no file"):
        rivals.interpreter()


def test_measuring_without_an_interpreter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(rivals.VARIABLE, raising=False)
    with pytest.raises(UserError, match="NEURAL_TANGENTS names no interpreter"):
        main([""])


def test_what_is_measured_takes_the_place_of_what_was_stored(
    pretender: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(rivals.VARIABLE, str(pretender))
    stored = pretender.with_name("stored.json")
    name, way = "cnn, 16, full, float64", "structured derivatives"
    others = {"case": "other", "implementation": way, "cpu_s": 1.0}
    stored.write_text(json.dumps([{**others, "case": name}, others]))
    monkeypatch.setattr("benchmarks.rivals.__main__.STORED", stored)
    main(["cnn, 16"])
    changed, kept = json.loads(stored.read_text())
    assert (changed["case"], changed["cpu_s"]) == (name, 2.0)
    assert kept == others
    assert name in capsys.readouterr().out
    with pytest.raises(UserError, match="no case begins with vgg; the cases are mlp, 64, full"):
        main(["vgg"])


@pytest.mark.parametrize(
    ("name", "parameters"), [("mlp", 669_706), ("cnn", 66_218), ("resnet18", 701_466)]
)
def test_networks_have_the_size_they_say(name: str, parameters: int) -> None:
    layers, shape = NETWORKS[name]
    network = Finite(layers)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network(torch.zeros(2, *shape, dtype=torch.float64)).shape == (2, 10)


LIVE: list[Case] = [
    SMALL,
    Empirical("cnn", 2, True, "float64", ("Jacobian contraction",)),
    Empirical("tiny", 2, False, "float64", ("structured derivatives",)),
    Analytic("relu3", (4, 5), "float64"),
]


@pytest.mark.skipif(rivals.VARIABLE not in os.environ, reason="needs neural-tangents' environment")
@pytest.mark.parametrize("case", LIVE, ids=lambda case: str(case.name))
def test_the_rival_computes_the_same(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    head = [POOL, {"layer": "linear", "at": "fc", "in": 4, "out": 10}]
    beginning = resnet18(2)[:9]  # to the end of the first block whose shortcut is a convolution
    monkeypatch.setitem(NETWORKS, "tiny", (beginning + head, (3, 6, 6)))
    python = rivals.interpreter()
    assert python is not None
    found = rivals.kernel(case, python)
    if isinstance(case, Analytic):
        assert found.shape == (2, 4, 4)
        variance = 1 + 0.01 * (1 + len(INFINITE[case.network]) // 2)
        diagonal = 2 * (case.inputs() ** 2).mean(1) + variance - 1
        np.testing.assert_allclose(np.diag(found[0]), diagonal)
        return
    network = Finite(NETWORKS[case.network][0])
    x = torch.from_numpy(case.inputs())
    weights = {k: v.detach() for k, v in network.named_parameters()}
    jacobians = jacrev(lambda w: functional_call(network, w, (x,)))(weights)
    j = torch.cat([part.flatten(2) for part in jacobians.values()], dim=2)
    full = torch.einsum("iap,jbp->ijab", j, j)
    expected = torch.einsum("ijaa->ij", full) / 10 if case.traced else full
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-9, atol=1e-10)

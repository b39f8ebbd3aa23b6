"""The text of --explain."""

import re

import pytest

from Models.parametrization import build_parametrization
from Models.parametrization.exponents import Family
from Models.parametrization.report import report


@pytest.mark.parametrize(
    ("name", "family", "depth", "verdict"),
    [
        ("mup", "sgd", 1, "mup, SGD, 1 hidden layer: stable, feature learning, r = 0"),
        ("ntk", "adam", 3, "ntk, Adam, 3 hidden layers: stable, kernel regime, r = 1/2"),
        ("sp", "sgd", 4, "sp, SGD, 4 hidden layers: unstable, r = -3/2"),
        (
            "ip",
            "sgd",
            3,
            "ip, SGD, 3 hidden layers: layers vanish at initialisation, trivial, r = ",
        ),
        ("ipllr", "sgd", 6, "ipllr, SGD, 6 hidden layers: stable, feature learning, r = 0"),
    ],
)
def test_the_verdict(name: str, family: Family, depth: int, verdict: str) -> None:
    text = report(name, build_parametrization(name, family, depth), depth, family, bias=False)
    assert text.startswith(verdict)


def test_the_table() -> None:
    text = report("mup", build_parametrization("mup", "sgd", 2), 2, "sgd", bias=True)
    cells = (re.split(r"\s{2,}", line.strip()) for line in text.splitlines())
    lines = {name: values for name, *values in cells}
    assert lines["preactivation"] == ["0", "0", "-1/2"]
    assert lines["propagated"] == ["–", "0", "0"]
    assert lines["s = a + b"] == ["0", "+1/2", "+1"]
    assert lines["C = 2a + c"] == ["-1", "0", "+1"]
    assert "mup-table8 (θ = -1/2, 0, -1/2)" in text
    assert text.endswith("features' kernel: width^(0)")

"""The symmetry of the abc form, and the names that it gives to parametrizations."""

from dataclasses import replace
from fractions import Fraction as F

import pytest

from Models.parametrization import (
    Exponents,
    Family,
    build_parametrization,
    explain,
    recognise,
    symmetry_between,
)
from Models.parametrization.equivalence import move
from Utils.errors import UserError


@pytest.mark.parametrize("family", ["sgd", "adam"])
def test_forms_of_maximal_update_are_one(family: Family) -> None:
    mup, table = (build_parametrization(n, family, 3) for n in ("mup", "mup-table8"))
    assert symmetry_between(mup, table, family) == (F(1, 2), F(0), F(0), F(1, 2))
    assert set(recognise(table, family)) == {"mup", "mup-table8", "hybrid:1"}
    assert symmetry_between(mup, build_parametrization("ntk", family, 3), family) is None


@pytest.mark.parametrize("family", ["sgd", "adam"])
@pytest.mark.parametrize(
    "name", ["sp", "ntk", "mup", "mean-field", "hybrid:1/3", "ip-non-centered"]
)
def test_moving_along_the_symmetry_changes_no_prediction(name: str, family: Family) -> None:
    abc = build_parametrization(name, family, 3)
    theta = (F(1), F(-1, 3), F(5, 7), F(2))
    moved = move(abc, theta, family)
    assert moved != abc
    assert explain(moved, 3, family) == explain(abc, 3, family)
    assert recognise(moved, family)[name] == theta


def test_first_steps_and_biases_are_part_of_it() -> None:
    abc, theta = build_parametrization("ipllr", "sgd", 2), (F(1), F(-1, 3), F(2))
    moved = move(abc, theta, "sgd")
    assert explain(moved, 2) == explain(abc, 2)
    assert recognise(moved, "sgd") == {"ipllr": theta}
    assert symmetry_between(abc, replace(abc, bias_std=1.0), "sgd") is None


@pytest.mark.parametrize("s", [F(1, 3), F(5, 2)])
def test_no_hybrid_has_such_a_readout(s: F) -> None:
    abc = build_parametrization("ntk", "sgd", 2)
    assert recognise(replace(abc, layers=(*abc.layers[:-1], Exponents(b=s))), "sgd") == {}


def test_one_hidden_layer_of_mean_field_is_maximal_update() -> None:
    assert set(recognise(build_parametrization("ip", "sgd", 1), "sgd")) >= {"mup", "mean-field"}
    assert set(recognise(build_parametrization("ip", "sgd", 2), "sgd")) == {"mean-field"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mpu", "unknown parametrization 'mpu'; did you mean 'mup'"),
        ("hybrid", "write it as hybrid:0.5"),
        ("mup:1", "write it as mup"),
        ("hybrid:2", "goes from 0 to 1"),
        ("hybrid:x", "'x' is no number"),
    ],
)
def test_mistakes_in_names(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_parametrization(text, "sgd", 3)


def test_a_first_step_against_vanishing_gradients_is_not_for_adam() -> None:
    with pytest.raises(UserError, match="use --param ip"):
        build_parametrization("ipllr", "adam", 3)

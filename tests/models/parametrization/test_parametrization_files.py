"""Files of exponents and of mup's base shapes, and every way in which they can be wrong."""

import json
from fractions import Fraction as F
from pathlib import Path
from typing import Any

import pytest

from Models import ModelConfig, build_model
from Models.parametrization import build_parametrization, recognise
from Models.parametrization.abc_file import parse_abc, read_inline
from Models.parametrization.base_shapes import grown_dimensions
from Models.parametrization.exponents import fraction
from Models.parametrization.network import Parametrized
from Utils.config import validate
from Utils.errors import UserError

NTK = """
input: {a: 0, b: 0, c: 0}
hidden: {a: 1/2, b: 0.0, c: 0}
readout: {a: 0.5}
"""


def config(tmp_path: Path, abc: str, **flags: Any) -> ModelConfig:
    (tmp_path / "abc.yaml").write_text(abc)
    given = {"model": "fc", "depth": 4, "width": 16, "abc": str(tmp_path / "abc.yaml"), **flags}
    return validate(ModelConfig, given, "command line")


def test_exponents_from_a_file_are_those_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "ntk.yaml").write_text(NTK)
    abc = parse_abc(read_inline("--abc", str(tmp_path / "ntk.yaml")), 3)
    assert abc == build_parametrization("ntk", "sgd", 3)
    assert "ntk" in recognise(abc, "sgd")


def test_exponents_as_people_write_them() -> None:
    given = {"1": F(1), -0.5: F(-1, 2), "1/3": F(1, 3), 0.37: F(37, 100), 0.3333333: F(1, 3)}
    assert all(fraction(value) == exponent for value, exponent in given.items())
    for value in (True, None, [1], "x", "1/0", float("nan")):
        with pytest.raises(ValueError, match="is no number"):
            fraction(value)


def test_a_run_does_not_need_the_file_again(tmp_path: Path) -> None:
    first = config(tmp_path, NTK)
    (tmp_path / "abc.yaml").unlink()
    again = validate(ModelConfig, first.flat(), "hyperparameters.json")
    assert again == first
    named = validate(ModelConfig, {**first.flat(), "abc": "", "param": "ntk"}, "command line")
    models = [dict(build_model(c, (1, 8, 8), 10).named_parameters()) for c in (again, named)]
    assert all(models[0][name].equal(models[1][name]) for name in models[0])


def test_layers_first_steps_and_roles(tmp_path: Path) -> None:
    layers = "[{a: 0, c: -1, first: -2}, {a: 1}, {a: 1, c: -2}, {a: 1, b: -1/4, c: -1}]"
    given = f"layers: {layers}\nfirst_steps: 3\nmean: 1\nroles: {{fc3.weight: readout}}\n"
    network = Parametrized(config(tmp_path, given), (1, 8, 8), 10)
    abc = network.abc("sgd")
    assert [e.s for e in abc.layers] == [0, 1, 1, F(3, 4)]
    assert (abc.first_steps, abc.mean, abc.layers[0].first) == (3, 1.0, F(-2))
    scales = network.scales("sgd", "gradient")
    assert scales.of("fc1.weight").first_lr == 16**2
    assert scales.of("fc2.weight").lr == 16**-2
    assert scales.of("fc3.weight").role == "readout"
    assert scales.of("fc3.weight").lr == scales.of("classifier.weight").lr == 1 / 16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "expected 'name: …' lines, found list"),
        ("a: [", "not YAML"),
        ("inputs: {}", "unknown key 'inputs'; did you mean 'input'"),
        ("input: {}", "hidden, readout missing"),
        (NTK + "layers: [{}, {}]", "layers and input, hidden, readout say the same"),
        ("layers: [{}, {}]", "layers has 2 entries and the network 4 layers with weights"),
        ("layers: [{}]", "at least two layers"),
        ("layers: 3", "layers: must be a list"),
        (NTK.replace("0.5", "half"), "readout: 'half' is no number"),
        (NTK.replace("0.5", "true"), "readout: True is no number"),
        (NTK.replace("{a: 0.5}", "{d: 1}"), "readout: unknown exponent 'd'"),
        (NTK.replace("{a: 0.5}", "1"), "readout: must be a mapping"),
        (NTK + "first_steps: 1", "first_steps and a 'first' beside some c go together"),
        (NTK + "first_steps: x", "must be a number of steps"),
        (NTK + "roles: {fc2.weight: hiden}", "unknown role 'hiden'; did you mean 'hidden'"),
        (NTK + "roles: 2", "roles: must be a mapping"),
        (NTK + "decay: none", "unknown decay 'none'"),
        (NTK + "bias_std: -1", "bias_std -1.0: must not be negative"),
    ],
)
def test_mistakes_in_exponents(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Parametrized(config(tmp_path, text), (1, 8, 8), 10).abc("sgd")


BSH = """
fc1.weight: [16, null]
fc1.bias: [16]
fc2.weight: [16, 16]
fc2.bias: [16]
fc3.weight: [16, 16]
fc3.bias: [16]
classifier.weight: [null, 16]
classifier.bias: [null]
"""


def based(tmp_path: Path, text: str, **flags: Any) -> Parametrized:
    (tmp_path / "base.bsh").write_text(text)
    given = {"model": "fc", "depth": 4, "width": 64, "param": "mup"}
    given |= {"base_shapes": str(tmp_path / "base.bsh"), **flags}
    return Parametrized(validate(ModelConfig, given, "command line"), (1, 8, 8), 10)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_base_shapes_mean_a_base_width(tmp_path: Path, prefix: str) -> None:
    text = "\n".join(prefix + line for line in BSH.strip().splitlines())
    from_file = based(tmp_path, text).scales("adam", "decoupled")
    config = validate(
        ModelConfig,
        {"model": "fc", "depth": 4, "width": 64, "param": "mup", "base_width": 16},
        "command line",
    )
    from_width = Parametrized(config, (1, 8, 8), 10).scales("adam", "decoupled")
    assert from_file.parameters == from_width.parameters
    assert from_file.relative_to == "base shapes"


def test_what_does_not_grow_itself_has_its_layers_growth() -> None:
    """Of two parts that have grown by 2 and by 4; a parameter of neither has not grown."""
    base = {"a.weight": [8, None], "b.weight": [None, 8], "c.weight": [None, 4], "d": [None]}
    shapes = {"a.weight": (16, 5), "b.weight": (3, 16), "c.weight": (3, 16), "d": (2,)}
    biases = {"b.bias": (3,), "c.bias": (3,)}
    content = json.dumps(base | {"b.bias": [None], "c.bias": [None]})
    grows, growth = grown_dimensions(content, shapes | biases)
    assert growth == {"a.weight": 2, "b.weight": 2, "c.weight": 4, "d": 1} | {
        "b.bias": 2,
        "c.bias": 4,
    }
    assert grows["b.weight"] == (False, True)
    one = {name: base[name] for name in ("a.weight", "b.weight", "d")}
    assert grown_dimensions(json.dumps(one), {n: shapes[n] for n in one})[1]["d"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("fc3.bias: [16]", ""), "--base-shapes lacks fc3.bias"),
        (("fc3.bias: [16]", "fc3.bias: [16]\nfc9.bias: [1]"), "has fc9.bias, which the model"),
        (("fc3.bias: [16]", "fc3.bias: [16, 16]"), "2 dimensions there and 1 in the model"),
        (("fc2.weight: [16, 16]", "fc2.weight: [16, 32]"), "by different factors"),
        (("fc3.bias: [16]", "fc3.bias: wide"), "no list of sizes and nulls"),
    ],
)
def test_mistakes_in_base_shapes(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        based(tmp_path, BSH.replace(*change)).scales("sgd", "gradient")

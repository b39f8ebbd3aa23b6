"""Explicit exponents: ``--abc file.yaml``.

::

    input:   {a: 0,   b: 0, c: 0}       # or layers: [{…}, …], one per weight of a chain
    hidden:  {a: 1/2, b: 0, c: 0}
    readout: {a: 1/2, b: 0, c: 0, first: -1}
    vector:  {c: 0}                     # left out: s = 0 and the input's learning rate
    finite:  {}                         # left out: all zero
    query:   {…}                        # left out: hidden's
    biases:  [{…}, …]                   # beside layers; left out: vector, the last one finite
    first_steps: 1                      # for how many steps c is what first says
    mean: 0
    bias_std: 0
    decay: literal
    roles: {name.of.a.parameter: readout}

The configuration keeps the content as one line of JSON, so that a run does not depend on the
file after it has begun.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from Models.parametrization.exponents import ABC, Decay, Exponents, Role, fraction
from Utils.errors import UserError
from Utils.mappings import parse_mapping, read_mapping
from Utils.registry import unknown

ROLES: tuple[Role, ...] = get_args(Role)

_CHAIN = ("input", "hidden", "readout")
_LISTS = ("layers", "biases")
_NUMBERS = ("mean", "bias_std")
_KEYS = {*ROLES, *_LISTS, *_NUMBERS, "first_steps", "decay", "roles"}


def read_inline(flag: str, value: str) -> str:
    """A YAML or JSON mapping as one line of JSON.

    Args:
        flag: what was given, for messages.
        value: a file's path, or the mapping itself, which begins with ``{``.

    Raises:
        UserError: it cannot be read, or is no mapping.
    """
    where, lines = f"{flag} {value}", "name: …"
    if value.lstrip().startswith("{"):
        content = parse_mapping(value, where, lines)
    else:
        content = read_mapping(Path(value).expanduser(), where, lines)
    try:
        return json.dumps(content)
    except TypeError as error:
        raise UserError(f"{flag} {value}: {error}; write plain numbers and names") from None


def roles_in(inline: str) -> dict[str, Role]:
    """The roles that the file gives to parameters.

    Args:
        inline: the file's content, from :func:`read_inline`.
    """
    roles: dict[str, Role] = json.loads(inline).get("roles", {})
    return roles


def parse_abc(inline: str, hidden_layers: int) -> ABC:
    """The exponents that a file lists.

    Args:
        inline: its content, from :func:`read_inline`.
        hidden_layers: L.

    Raises:
        UserError: keys that do not exist, exponents that are no numbers, roles or layers that
            are missing, a number of layers other than L + 1.
    """
    try:
        return _abc(json.loads(inline), hidden_layers)
    except ValueError as error:
        raise UserError(f"--abc: {error}") from None


def is_layerwise(inline: str) -> bool:
    """Whether the file lists layers, so that they must form a chain."""
    return "layers" in json.loads(inline)


def layers_of(inline: str) -> int:
    """L of the layers that a file lists; 2 if it lists roles."""
    layers = json.loads(inline).get("layers")
    return len(layers) - 1 if isinstance(layers, list) else 2


def _abc(content: Mapping[str, Any], hidden_layers: int) -> ABC:
    for key in content:
        if key not in _KEYS:
            raise ValueError(unknown("key", key, _KEYS))
    named = {role: _exponents(role, content[role]) for role in ROLES if role in content}
    layers = _layers(content, named, hidden_layers)
    vector = named.get("vector", Exponents(layers[0].a, -layers[0].a, layers[0].c, layers[0].first))
    finite = named.get("finite", Exponents())
    biases = _list(content, "biases", hidden_layers) or (*[vector] * hidden_layers, finite)
    query = named.get("query", layers[1])
    every = (*layers, *biases, vector, finite, query)
    first_steps = content.get("first_steps", 0)
    if not isinstance(first_steps, int) or isinstance(first_steps, bool) or first_steps < 0:
        raise ValueError(f"first_steps {first_steps!r}: must be a number of steps")
    if (first_steps > 0) != any(e.first is not None for e in every):
        raise ValueError("first_steps and a 'first' beside some c go together; give both or none")
    decay = content.get("decay", "literal")
    if decay not in get_args(Decay):
        raise ValueError(unknown("decay", str(decay), get_args(Decay)))
    _check_roles(content.get("roles", {}))
    mean, bias_std = (float(fraction(content.get(key, 0))) for key in _NUMBERS)
    if bias_std < 0:
        raise ValueError(f"bias_std {bias_std}: must not be negative")
    return ABC(layers, biases, vector, finite, query, first_steps, mean, bias_std, decay)


def _layers(
    content: Mapping[str, Any], named: Mapping[Role, Exponents], hidden_layers: int
) -> tuple[Exponents, ...]:
    layers = _list(content, "layers", hidden_layers)
    doubled = [role for role in _CHAIN if role in content]
    if layers and doubled:
        raise ValueError(f"layers and {', '.join(doubled)} say the same; give one of them")
    if layers:
        return layers
    missing = [role for role in _CHAIN if role not in content]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing; give a, b and c of each, or layers")
    return (named["input"], *[named["hidden"]] * (hidden_layers - 1), named["readout"])


def _list(content: Mapping[str, Any], key: str, hidden_layers: int) -> tuple[Exponents, ...]:
    values = content.get(key, [])
    if not isinstance(values, list):
        raise ValueError(f"{key}: must be a list of mappings with a, b and c")
    if values and len(values) != hidden_layers + 1:
        raise ValueError(
            f"{key} has {len(values)} entries and the network {hidden_layers + 1} layers with "
            "weights; give one per layer"
        )
    if values and len(values) < 2:
        raise ValueError(f"{key}: a network with a width has at least two layers with weights")
    return tuple(_exponents(f"{key}[{k}]", value) for k, value in enumerate(values, start=1))


def _exponents(name: str, value: Any) -> Exponents:
    if not isinstance(value, dict):
        raise ValueError(f"{name}: must be a mapping, as in {{a: 0, b: 1/2, c: 0}}")
    for key in value:
        if key not in {"a", "b", "c", "first"}:
            raise ValueError(f"{name}: {unknown('exponent', str(key), ('a', 'b', 'c', 'first'))}")
    try:
        return Exponents(**{key: fraction(number) for key, number in value.items()})
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _check_roles(roles: Any) -> None:
    if not isinstance(roles, dict):
        raise ValueError("roles: must be a mapping from parameters to roles")
    for role in roles.values():
        if role not in ROLES:
            raise ValueError(unknown("role", str(role), ROLES))

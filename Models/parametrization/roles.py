"""Which role each parameter of a model has, from what grows when the model is made wider."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from Models.parametrization.exponents import Role
from Utils.errors import UserError
from Utils.registry import unknown

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_MATRICES = (nn.Linear, _ConvNd, nn.RNNBase)

Grown = Mapping[str, tuple[bool, ...]]
"""For each parameter by name, which of its dimensions grow with the width."""


@dataclass(frozen=True)
class Place:
    """What a parameter is in its network.

    Attributes:
        name: of the parameter.
        shape: its own.
        role: inferred or given.
        kind: a layer's weight or bias, or something else (gains, embeddings, positions).
        fan_in: numbers that make one output of the layer; 1 for others.
        fan_in_grows: whether they grow with the width, or for others, whether the role says so.
        layer: its layer, from 0, where all weights form a chain; else ``None``.
        reads: the role of the layer's weight, for a bias.
        given: whether the user gave the role.
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    kind: Literal["weight", "bias", "other"]
    fan_in: int = 1
    fan_in_grows: bool = False
    layer: int | None = None
    reads: Role | None = None
    given: bool = False


def grown(narrow: nn.Module, wide: nn.Module) -> Grown:
    """What differs between two networks that differ in width.

    Args:
        narrow: of some width.
        wide: of another.

    Raises:
        UserError: they do not have the same parameters, or the same numbers of dimensions.
    """
    pairs = [dict(m.named_parameters()) for m in (narrow, wide)]
    if pairs[0].keys() != pairs[1].keys():
        name = min(pairs[0].keys() ^ pairs[1].keys())
        raise UserError(
            f"--width: {name} is a parameter of one width only, so that widths cannot be compared; "
            "let the width change sizes alone"
        )
    found = {}
    for name, parameter in pairs[0].items():
        one, other = parameter.shape, pairs[1][name].shape
        if len(one) != len(other):
            raise UserError(f"--width changes the number of dimensions of {name}; keep it")
        found[name] = tuple(x != y for x, y in zip(one, other, strict=True))
    if not any(map(any, found.values())):
        raise UserError("--width changes the size of no parameter; use it in the model")
    return found


def infer_roles(model: nn.Module, grows: Grown, given: Mapping[str, Role]) -> list[Place]:
    """The place of every parameter, in the model's order.

    Args:
        model: at the width of the run; its numbers are not looked at.
        grows: which dimensions grow.
        given: roles by name or pattern (``blocks.*.q.weight``), which go before inferred ones.

    Raises:
        UserError: a given name does not exist; or the role is ambiguous, with what to do.
    """
    names = [name for name, _ in model.named_parameters()]
    owners = _owners(model)
    chosen: dict[str, Role] = {}
    for pattern, role in given.items():
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            raise UserError(f"--roles {pattern}={role}: {unknown('parameter', pattern, names)}")
        chosen |= dict.fromkeys(matching, role)
    chain = {name: k for k, name in enumerate(chain_of(model) or ())}
    places: dict[str, Place] = {}
    for name, parameter in model.named_parameters():
        places[name] = _place(name, parameter, owners[name], grows[name], chosen.get(name))
    for name, place in places.items():
        weight = places.get(name.rpartition(".")[0] + ".weight")
        if place.kind == "bias" and weight is not None:
            grows_in, layer = weight.fan_in_grows, chain.get(weight.name)
            extra = {"fan_in_grows": grows_in, "layer": layer, "reads": weight.role}
            places[name] = Place(**{**vars(place), **extra})
        elif name in chain:
            places[name] = Place(**{**vars(place), "layer": chain[name]})
    return list(places.values())


def chain_of(model: nn.Module) -> list[str] | None:
    """The weights of a plain chain of layers in their order; ``None`` if the model is no chain.

    A chain is made of nested ``nn.Sequential``, and of linear layers, convolutions and modules
    without parameters; its theory knows no normalisations and no residual connections.

    Args:
        model: any.
    """
    weights: list[str] = []
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, nn.Linear | _ConvNd) and not isinstance(module, _ConvTransposeNd):
            weights.append(f"{name}.weight" if name else "weight")
        elif own or (any(module.children()) and not isinstance(module, nn.Sequential)):
            return None
    unique = len({id(m) for m in model.modules()})
    repeated = unique != sum(1 for _ in model.named_modules(remove_duplicate=False))
    return None if repeated else weights


def _owners(model: nn.Module) -> dict[str, list[nn.Module]]:
    """The modules that hold each parameter; several where it is tied."""
    first: dict[int, str] = {id(p): name for name, p in model.named_parameters()}
    owners: dict[str, list[nn.Module]] = defaultdict(list)
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners[first[id(parameter)]].append(module)
    return owners


def _place(
    name: str,
    parameter: nn.Parameter,
    owners: list[nn.Module],
    grows: tuple[bool, ...],
    role: Role | None,
) -> Place:
    shape, owner = tuple(parameter.shape), owners[0]
    matrix = isinstance(owner, _MATRICES) and len(shape) > 1
    is_bias = isinstance(owner, _MATRICES) and len(shape) == 1
    outer, inner = grows[:2] if len(grows) > 1 else (any(grows), False)
    fan_in = prod(shape[1:]) if matrix else 1
    if matrix and isinstance(owner, _ConvTransposeNd):
        outer, inner, fan_in = inner, outer, shape[0] * prod(shape[2:])
    given = role is not None
    if role is None:
        role = _inferred(name, owners, grows, (outer, inner))
    if given or not matrix:
        inner = role in {"hidden", "query", "readout"}
    kind: Literal["weight", "bias", "other"] = (
        "weight" if matrix else "bias" if is_bias else "other"
    )
    return Place(name, shape, role, kind, fan_in, inner, given=given)


def _inferred(
    name: str, owners: list[nn.Module], grows: tuple[bool, ...], dimensions: tuple[bool, bool]
) -> Role:
    owner, count = owners[0], sum(grows)
    if len({_use(o) for o in owners}) > 1:
        kinds = " and ".join(sorted({type(o).__name__ for o in owners}))
        raise _ambiguous(
            name,
            f"is tied between {kinds}, whose rules differ",
            "untie them, or multiply the output by 1/width in the forward and give the other role",
            "input",
        )
    if isinstance(owner, nn.MultiheadAttention) and name.endswith("in_proj_weight"):
        raise _ambiguous(
            name,
            "holds queries, keys and values together, and muP scales queries apart",
            "use separate layers, or give the role hidden to keep attention's 1/√d",
        )
    if len(grows) < 2 or isinstance(owner, _NORMS):
        return "vector" if count else "finite"
    if not isinstance(owner, (*_MATRICES, nn.Embedding)):
        if not count:
            return "finite"
        raise _ambiguous(name, "belongs to no layer that is known", "give its role")
    if count > 2 or any(grows[2:]):
        raise _ambiguous(name, "has a kernel or several dimensions that grow", "give its role")
    outer, inner = dimensions
    if isinstance(owner, nn.Embedding):
        if grows[0]:
            raise _ambiguous(
                name,
                "is an embedding with more entries at larger widths",
                "give all widths the same number of entries, or give its role",
            )
        return "input" if grows[1] else "finite"
    if inner and not outer and isinstance(owner, _ConvNd):
        what = "transposed convolution" if isinstance(owner, _ConvTransposeNd) else "convolution"
        raise _ambiguous(
            name,
            f"is a {what} that reads growing channels and writes a fixed number",
            "give the role readout if its outputs are the network's, after sums over channels "
            "alone; else hidden",
            "readout",
        )
    if outer and inner:
        return "hidden"
    return "input" if outer else "readout" if inner else "finite"


def _use(owner: nn.Module) -> type:
    """Owners of one use share their rules."""
    return next(
        (kind for kind in (*_MATRICES, nn.Embedding) if isinstance(owner, kind)), type(owner)
    )


def _ambiguous(name: str, why: str, advice: str, role: Role = "hidden") -> UserError:
    return UserError(
        f"--param: the role of {name} is ambiguous: it {why}; {advice}, as in "
        f"--roles {name}={role}"
    )

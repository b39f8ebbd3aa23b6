"""From a model to its conservation laws."""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn

from Models.symmetry.balance import alike, balance, certified
from Models.symmetry.charges import Charges
from Models.symmetry.elimination import Floats, Ints, scaled_rows
from Models.symmetry.export import ExportedGraph, UntraceableError, operation
from Models.symmetry.frames import Frame, find_frames
from Models.symmetry.labels import Solution
from Models.symmetry.laws import Family, Kind, Laws
from Models.symmetry.reductions import Reduction
from Models.symmetry.scale import ScalePropagation, Slot
from Models.symmetry.shift import ShiftPropagation

_MOVED_WEIGHTS = frozenset(("linear", "matmul", "mm", "embedding")) | {
    f"{kind}{axes}d" for kind in ("conv", "conv_transpose") for axes in (1, 2, 3)
}


def find_laws(model: nn.Module, example: Tensor, loss: str, matrices: bool = True) -> Laws:
    """The conservation laws of a model under gradient descent on a loss.

    Every law reported is a symmetry of the exported graph; a graph with operations unknown
    here may have more.

    Args:
        model: the network, in training mode; it is left unchanged.
        example: a batch of at least two inputs.
        loss: "ce" (softmax cross-entropy over axis 1: ignores a common shift of the logits)
            or another, which counts as fixing the logits.
        matrices: whether to look for matrix laws, whose number grows as the square of the
            width.

    Returns:
        the laws; none, with a note, for a model that cannot be analysed.
    """
    try:
        graph = ExportedGraph(model, example)
        one_more = torch.cat([example, example[:1]])
        graphs = [graph, ExportedGraph(model, one_more)] if graph.rearranges_examples else [graph]
    except UntraceableError as error:
        return no_laws(f"it cannot be analysed: {error}")
    except Exception as error:  # torch.export raises errors of every type
        first_line = next(iter(str(error).strip().splitlines()), "no message")
        return no_laws(
            f"torch.export cannot trace this model ({type(error).__name__}: {first_line})"
        )
    # where examples are moved, what is a law may depend on how many there are
    scale = _common([_scale_laws(graph) for graph in graphs])
    if matrices:
        scale = _with_matrix_laws(scale, certified(_common_frames(graphs), model, example))
    translation = _common([_translation_laws(graph, loss == "ce") for graph in graphs])
    families = _named(scale.members, 0) + _named(translation.members, len(scale.charges))
    covered = {name for family in families for name in family.parameters}
    lawless = ((name, why) for name, why in _reasons(graph, scale).items() if name not in covered)
    return Laws(scale.charges, translation.charges, families, tuple(lawless))


class _Members(NamedTuple):
    """A family before it has a name."""

    kind: Kind
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    laws: int


class _Found(NamedTuple):
    """Laws, their families in the same order, and why other parameters have none."""

    charges: Charges
    members: list[_Members]
    reasons: dict[str, str]


_EMPTY = sparse.csr_matrix((0, 0))


def no_laws(note: str) -> Laws:
    """The laws of a model that has none that are known.

    Args:
        note: why.
    """
    return Laws(Charges((), _EMPTY), Charges((), _EMPTY), (), (), note)


def _common(founds: list[_Found]) -> _Found:
    """The laws of the first that are laws of all."""
    charges, members, reasons = founds[0]
    for other in founds[1:]:
        same = charges.reductions == other.charges.reductions
        laws = set(_law_keys(other.charges.matrix)) if same else set()
        kept = np.array([key in laws for key in _law_keys(charges.matrix)], bool)
        ends = np.cumsum([family.laws for family in members])
        counts = [int(part.sum()) for part in np.split(kept, ends[:-1])] if members else []
        members = [f._replace(laws=n) for f, n in zip(members, counts, strict=True) if n]
        charges = Charges(charges.reductions, charges.matrix[kept])
    return _Found(charges, members, reasons)


def _law_keys(matrix: sparse.csr_matrix) -> Iterator[bytes]:
    """Each row as something to compare, whatever its rounding errors."""
    for start, stop in pairwise(matrix.indptr):
        digits = np.round(matrix.data[start:stop], 9)
        yield matrix.indices[start:stop].tobytes() + digits.tobytes()


def _reasons(graph: ExportedGraph, found: _Found) -> dict[str, str]:
    """For each parameter why it would have no law."""
    reasons = dict.fromkeys(graph.weights, "no gradient reaches it")
    reasons |= found.reasons
    reasons |= dict.fromkeys(graph.frozen, "it is frozen, complex, or changed by a hook")
    return reasons | dict.fromkeys(graph.unused, "the model does not use it")


# ---------------------------------------------------------------------- scale and rescale


def _scale_laws(graph: ExportedGraph) -> _Found:
    propagation = ScalePropagation(graph)
    propagation.run()
    solution = propagation.system.solve()
    slots, blocks = [], []
    for slot in propagation.slots:
        block = solution.coefficients(slot.labels)
        if block.nnz:
            slots.append(slot)
            blocks.append(block)
    reasons = _pins(propagation.slots, solution)
    if not slots:
        return _Found(Charges((), _EMPTY), [], reasons)
    matrix = _used_columns(sparse.vstack(blocks, format="csr")).T.tocsr()
    owner = np.repeat(np.arange(len(slots)), [block.shape[0] for block in blocks])
    reads = np.array([slot.reads for slot in slots])
    matrix, is_scale = _oriented(matrix, reads[owner])
    order, groups = _grouped(matrix, owner, is_scale)
    families: list[_Members] = []
    for first, count in groups:
        row = matrix[first]
        members = dict.fromkeys(owner[row.indices].tolist())
        kind: Kind = "scale" if is_scale[first] else "rescale"
        writers = tuple(slots[i].parameter for i in members if not slots[i].reads)
        readers = tuple(slots[i].parameter for i in members if slots[i].reads)
        families.append(_Members(kind, writers, readers, count))
    reductions = tuple(Reduction(s.parameter, s.reduction, s.groups) for s in slots)
    return _Found(Charges(reductions, matrix[order]), families, reasons)


def _oriented(
    matrix: sparse.csr_matrix, reads: NDArray[Any]
) -> tuple[sparse.csr_matrix, NDArray[Any]]:
    """Fix each law's sign and size.

    Scale laws are positive. Rescale laws count what is read positively and what is written
    negatively, as upstream's. The first entry that writes has coefficient ±1.
    """
    matrix = matrix.sorted_indices()
    starts = matrix.indptr[:-1]
    low = np.minimum.reduceat(matrix.data, starts)
    high = np.maximum.reduceat(matrix.data, starts)
    is_scale = (low > 0) | (high < 0)
    wanted = np.where(is_scale, 1.0, -1.0)
    factor = np.empty(matrix.shape[0])
    for k, start in enumerate(starts):
        entries = slice(start, matrix.indptr[k + 1])
        writes = ~reads[matrix.indices[entries]]
        data = matrix.data[entries]
        chosen = data[writes][0] if writes.any() else -data[0] * wanted[k]
        factor[k] = wanted[k] / chosen
    return scaled_rows(matrix, factor), is_scale


def _grouped(
    matrix: sparse.csr_matrix, owner: NDArray[Any], is_scale: NDArray[Any]
) -> tuple[Ints, list[tuple[int, int]]]:
    """Laws made of the same slots belong together.

    Returns:
        the laws' order by family, and each family's first law (before ordering) and size.
    """
    families: dict[tuple[bool, bytes], list[int]] = {}
    for k in range(matrix.shape[0]):
        indices = matrix.indices[matrix.indptr[k] : matrix.indptr[k + 1]]
        key = (not is_scale[k], np.unique(owner[indices]).tobytes())
        families.setdefault(key, []).append(k)
    ordered = sorted(families.items(), key=lambda item: (item[0][0], matrix[item[1][0]].indices[0]))
    members = [sorted(laws, key=lambda k: matrix.indices[matrix.indptr[k]]) for _, laws in ordered]
    order = np.array([k for laws in members for k in laws], dtype=np.int64)
    return order, [(laws[0], len(laws)) for laws in members]


def _pins(slots: list[Slot], solution: Solution) -> dict[str, str]:
    """Why each parameter's labels are pinned, the side that writes first."""
    reasons: dict[str, str] = {}
    for slot in sorted(slots, key=lambda slot: slot.reads):
        reason = solution.reason(slot.labels)
        if reason and slot.parameter not in reasons:
            reasons[slot.parameter] = reason
    return reasons


# ---------------------------------------------------------------------- balance


def _common_frames(graphs: list[ExportedGraph]) -> list[Frame]:
    """The frames of the first graph that are frames of all."""
    first, *others = map(find_frames, graphs)
    return [frame for frame in first if all(frame in frames for frames in others)]


def _with_matrix_laws(found: _Found, frames: list[Frame]) -> _Found:
    """Add the laws of frames after the others."""
    charges, members = [found.charges], list(found.members)
    for group in alike(frames):
        added = balance(group)
        charges.append(added)
        for frame in group:
            writers = tuple(side.parameter for side in frame if not side.reads)
            readers = tuple(side.parameter for side in frame if side.reads)
            members.append(_Members("balance", writers, readers, len(added) // len(group)))
    reductions = tuple(r for part in charges for r in part.reductions)
    matrix = sparse.block_diag([part.matrix for part in charges], format="csr")
    return _Found(Charges(reductions, matrix), members, found.reasons)


# ---------------------------------------------------------------------- translation


def _translation_laws(graph: ExportedGraph, invariant_logits: bool) -> _Found:
    reductions: list[Reduction] = []
    blocks: list[sparse.csr_matrix] = []
    families: list[_Members] = []
    shapes = {parameter.name: parameter.shape for parameter in graph.parameters.values()}
    moves = _weight_moves(graph, invariant_logits)
    for name, (axis, basis) in moves.items():
        rows = tuple(map(tuple, basis.tolist()))
        reductions.append(Reduction(name, "projection", axis=axis, basis=rows))
        count = len(rows) * shapes[name].numel() // shapes[name][axis]
        blocks.append(sparse.csr_matrix(sparse.identity(count)))
        families.append(_Members("translation", (name,), (), count))
    biases, bias_families = _bias_laws(graph, invariant_logits, moves)
    reductions += biases.reductions
    blocks.append(biases.matrix)
    charges = Charges(tuple(reductions), sparse.block_diag(blocks, format="csr"))
    return _Found(charges, families + bias_families, {})


_Moves = dict[str, tuple[int, Floats]]
"""Per weight: the axis along which it may move, and the moves [R, entries of the axis]."""


def _weight_moves(graph: ExportedGraph, invariant_logits: bool) -> _Moves:
    """Moves of a weight's column by a multiple of whatever it reads."""
    moves: _Moves = {}
    for node in graph.nodes:
        if node.op != "call_function" or operation(node).name not in _MOVED_WEIGHTS:
            continue
        propagation = ShiftPropagation(graph, invariant_logits, node)
        propagation.run()
        solution = propagation.system.solve()
        for written in propagation.written:
            basis = _normalised(_used_columns(solution.coefficients(written.labels)).T.tocsr())
            if 0 < basis.shape[0] < basis.shape[1]:  # all of them: no gradient reaches the weight
                moves[written.parameter] = written.axis or 0, basis.toarray().round(12)
    return moves


def _bias_laws(
    graph: ExportedGraph, invariant_logits: bool, moves: _Moves
) -> tuple[Charges, list[_Members]]:
    """Laws of moves that are the same for every input."""
    propagation = ShiftPropagation(graph, invariant_logits)
    propagation.run()
    solution = propagation.system.solve()
    found = [(w, solution.coefficients(w.labels)) for w in propagation.written]
    found = [(written, block) for written, block in found if block.nnz]
    if not found:
        return Charges((), _EMPTY), []
    parameters = [written.parameter for written, _ in found]
    kinds: list[Literal["element", "column"]]
    kinds = ["element" if written.axis is None else "column" for written, _ in found]
    matrix = _used_columns(sparse.vstack([b for _, b in found], format="csr")).T.tocsr()
    owner = np.repeat(np.arange(len(found)), [block.shape[0] for _, block in found])
    new = [k for k in range(matrix.shape[0]) if not _implied(matrix[k], owner, parameters, moves)]
    matrix = _normalised(matrix[new])
    order, groups = _grouped(matrix, owner, np.ones(matrix.shape[0], bool))
    families: list[_Members] = []
    for first, count in groups:
        names = (parameters[i] for i in dict.fromkeys(owner[matrix[first].indices]))
        families.append(_Members("translation", tuple(names), (), count))
    return Charges(tuple(map(Reduction, parameters, kinds)), matrix[order]), families


def _implied(
    law: sparse.csr_matrix, owner: NDArray[Any], parameters: list[str], moves: _Moves
) -> bool:
    """Whether a law of an embedding's columns is the sum of laws of its rows."""
    owners = set(owner[law.indices])
    name = parameters[owners.pop()]
    if owners or name not in moves:
        return False
    basis = moves[name][1]
    mine = np.array(parameters)[owner] == name
    extended = np.vstack([basis, law.toarray()[:, mine]])
    return bool(np.linalg.matrix_rank(extended) == np.linalg.matrix_rank(basis))


# ---------------------------------------------------------------------- shared


def _used_columns(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """Drop the columns of labels that no entry depends on."""
    return matrix[:, np.unique(matrix.indices)]


def _normalised(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """Scale every row so that its first entry is 1."""
    matrix = matrix.sorted_indices()
    return scaled_rows(matrix, 1 / matrix.data[matrix.indptr[:-1]])


def _named(families: list[_Members], start: int) -> tuple[Family, ...]:
    """Give each family its place among the laws and a short, unique name."""
    named: list[Family] = []
    taken: set[tuple[Kind, str]] = set()
    for kind, writers, readers, count in families:
        parts = (writers, readers) if kind != "translation" else (writers,)
        short = _module_of if kind != "translation" else str
        layer = "|".join(_joined(dict.fromkeys(map(short, part))) for part in parts if part)
        layer = layer.replace("/", "_")  # names are also paths in files
        name, number = layer, 2
        while (kind, name) in taken:
            name, number = f"{layer} ({number})", number + 1
        taken.add((kind, name))
        parameters = tuple(dict.fromkeys(writers + readers))
        named.append(Family(kind, name, start, start + count, parameters))
        start += count
    return tuple(named)


def _module_of(parameter: str) -> str:
    return parameter.rpartition(".")[0] or parameter


def _joined(modules: Iterable[str], most: int = 3, longest: int = 40) -> str:
    """The names, siblings without their parent's; or the first one and how many more there are."""
    first, *others = modules
    parent = first.rpartition(".")[0]
    short = [name.removeprefix(f"{parent}.") if parent else name for name in others]
    joined = "+".join([first, *short])
    long = len(others) >= most or len(joined) > longest
    return f"{first}+…({len(others)} more)" if others and long else joined

"""Θ = J Jᵀ by rows of J: for every network, and for batches whose examples see each other."""

from torch import Tensor

from Metrics.tangent.assembly import Kernels, above_diagonal
from Metrics.tangent.contraction import Gram
from Metrics.tangent.network import Network, Rows
from Metrics.tangent.plan import Plan
from Metrics.tangent.rows import coupled_rows, flat, jacobian_rows
from Metrics.tangent.schedule import blocks
from Utils.amounts import bytes_text
from Utils.errors import UserError


def jacobian_kernels(
    network: Network,
    inputs: Tensor,
    others: Tensor | None,
    plan: Plan,
    per_layer: bool,
    memory: int,
) -> dict[str, Tensor]:
    """Θ_l of every layer, or their sum under the name "".

    Args:
        network: whose kernel it is; if its examples see each other, both batches are whole.
        inputs: [N, ...].
        others: [M, ...] or ``None`` for the same.
        plan: of the network.
        per_layer: whether the layers are kept apart.
        memory: bytes for temporaries.

    Raises:
        UserError: the rows of one example do not fit.
    """
    like = next(iter(network.parameters.values()))
    same, columns = others is None, inputs if others is None else others
    logits, traced = plan.logits, plan.sizes.traced
    size, chunk = rows_at_once(network, plan, memory)
    rows = blocks(len(inputs), len(inputs) if size >= len(inputs) + len(columns) else size)
    across = list(above_diagonal(rows)) if same else []
    kernels = Kernels((len(inputs), len(columns)), traced)
    for i, low in enumerate(rows):
        left = _rows(network, inputs, low, chunk)
        for high in rows[i:] if same else blocks(len(columns), size):
            right = None if same and high == low else _rows(network, columns, high, chunk)
            shape = (low.stop - low.start, high.stop - high.start)
            grams: dict[str, Gram] = {}
            for name, values in left.items():
                key = network.layer_of[name] if per_layer else ""
                if key not in grams:
                    grams[key] = Gram(shape, logits, traced, right is None, like)
                grams[key].add_rows(values, None if right is None else right[name])
            for key, gram in grams.items():
                kernels.add(key, gram.result(), (low, high))
    kernels.mirror(across)
    return kernels.found


def rows_at_once(network: Network, plan: Plan, memory: int) -> tuple[int, int]:
    """Examples in a block of rows, and in the network at a time.

    A third of the memory each for two blocks and for what makes them.

    Raises:
        UserError: not even one fits.
    """
    each = plan.logits * sum(p.numel() * p.element_size() for p in network.parameters.values())
    size = memory // (3 * each)
    if not size:
        raise UserError(
            f"the Jacobian of one example takes {bytes_text(each)}, and two with what makes "
            f"them are to fit into {bytes_text(memory)}; give more memory, or use route='products'"
        )
    scalar = next(iter(network.parameters.values())).element_size()
    each = (3 + plan.logits) * plan.numbers * scalar
    return size, max(1, min(size, memory // (3 * each)))


def _rows(network: Network, batch: Tensor, examples: slice, chunk: int) -> Rows:
    """[n, C, P_i] of every parameter."""
    names = list(network.parameters)
    if network.couples_examples:
        found = coupled_rows(network, batch, names, examples)
    else:
        found = jacobian_rows(network, batch[examples], names, chunk)
    return {name: flat(rows) for name, rows in found.items()}

"""The kernel that moves outputs where parameters have learning rates of their own."""

from collections.abc import Mapping

from torch import Tensor, nn

from Metrics.tangent.kernel import tangent_kernel
from Metrics.tangent.routes import Form


def weighted_kernel(
    model: nn.Module,
    inputs: Tensor,
    factors: Mapping[str, float],
    others: Tensor | None = None,
    *,
    form: Form = "traced",
) -> Tensor:
    """Σ_p s_p J_p J_pᵀ, in float64: [N, M], the mean over logits; or full, [N, M, C, C].

    Args:
        model: maps [N, ...] to logits [N, C]; in the mode (training, evaluation) it is in.
        inputs: [N, ...], on the model's device.
        factors: s_p, by name; parameters without one do not count, nor do frozen ones.
        others: [M, ...]; ``None`` stands for ``inputs``, and halves the work.
        form: "traced" is the mean over logits, "full" has all pairs of them.

    Raises:
        UserError: as :func:`tangent_kernel` does.
        ValueError: no parameter counts.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total: Tensor | None = None
    try:
        for factor in sorted({factors[name] for name in trained if factors.get(name)}):
            for name, parameter in trained.items():  # one kernel for all that share a factor
                parameter.requires_grad_(factors.get(name) == factor)
            part = factor * tangent_kernel(model, inputs, others, form=form).total.double()
            total = part if total is None else total.add_(part)
    finally:
        for parameter in trained.values():
            parameter.requires_grad_(True)
    if total is None:
        raise ValueError("no trained parameter has a factor")
    return total

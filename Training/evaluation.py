"""How well a model does on held-out data.

Shape letters: N examples, C classes.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss_function: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, float]:
    """Loss and accuracies over all batches; the model is left in training mode.

    Args:
        model: maps inputs to logits [N, C].
        batches: pairs of inputs and targets, on the model's device: [N] int64, or [N, C]
            floating in a regression.
        loss_function: mean loss of a batch.

    Returns:
        ``test_loss``, the mean over examples; unless in a regression, ``accuracy1`` and
        ``accuracy5``, the percentage of examples whose target is the first, or among the first
        min(5, C).
    """
    model.eval()
    sums: Tensor | float = 0.0
    examples = 0
    for inputs, targets in batches:
        logits = model(inputs)
        loss = loss_function(logits, targets).double() * len(targets)
        sums = sums + torch.stack([loss, *_hits(logits, targets)])
        examples += len(targets)
    model.train()
    test_loss, *accuracies = (torch.as_tensor(sums) / examples).tolist()
    names = ("accuracy1", "accuracy5")[: len(accuracies)]
    return {"test_loss": test_loss, **{n: 100 * a for n, a in zip(names, accuracies, strict=True)}}


def _hits(logits: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """How many examples are right at first, and among the first five; nothing in a regression."""
    if targets.is_floating_point():
        return ()
    ranked = logits.topk(min(5, logits.shape[1])).indices  # [N, min(5, C)]
    hits = ranked == targets[:, None]
    return hits[:, 0].sum(), hits.sum()

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
        batches: pairs of inputs and targets [N] int64, on the model's device.
        loss_function: mean loss of a batch.

    Returns:
        ``test_loss``, the mean over examples; ``accuracy1`` and ``accuracy5``, the percentage
        of examples whose target is the first, or among the first min(5, C).
    """
    model.eval()
    sums: Tensor | float = 0.0
    examples = 0
    for inputs, targets in batches:
        logits = model(inputs)
        ranked = logits.topk(min(5, logits.shape[1])).indices  # [N, min(5, C)]
        hits = ranked == targets[:, None]
        loss = loss_function(logits, targets).double() * len(targets)
        sums = sums + torch.stack([loss, hits[:, 0].sum(), hits.sum()])
        examples += len(targets)
    model.train()
    test_loss, first, among_five = (torch.as_tensor(sums) / examples).tolist()
    return {"test_loss": test_loss, "accuracy1": 100 * first, "accuracy5": 100 * among_five}

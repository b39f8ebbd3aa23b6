"""How well a model does on held-out data.

Shape letters: N examples, C classes.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from Training.backends.backend import Backend, Forward
from Utils.devices import to_host


@torch.no_grad()
def evaluate(
    model: nn.Module,
    forward: Forward,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss_function: Callable[[Tensor, Tensor], Tensor],
    backend: Backend,
) -> dict[str, float]:
    """Loss and accuracies over all batches; the model is left in training mode.

    Args:
        model: the network.
        forward: the same as what maps inputs to logits [N, C].
        batches: this process's pairs of inputs and targets, on the backend's data device:
            [N] int64, or [N, C] floating in a regression.
        loss_function: mean loss of a batch.
        backend: where the model is.

    Returns:
        ``test_loss``, the mean over examples; unless in a regression, ``accuracy1`` and
        ``accuracy5``, the percentage of examples whose target is the first, or among the first
        min(5, C).
    """
    model.eval()
    examples, regression, rows = 0, False, list[Tensor]()
    for inputs, targets in batches:
        examples += len(targets)
        regression = targets.is_floating_point()
        inputs, targets = backend.place(inputs, targets)
        logits = forward(inputs)
        loss = loss_function(logits, targets).double() * len(targets)
        rows.append(torch.stack([loss, *([] if regression else _hits(logits, targets))]))
        backend.end_step()
    model.train()
    sums = torch.zeros(4, dtype=torch.float64)  # this process may have had no batch
    sums[0] = examples
    if rows:
        sums[1 : 2 if regression else 4] = to_host(rows).sum(0)
    examples, loss, *hits = backend.total(sums).tolist()
    accuracies = {f"accuracy{k}": 100 * n / examples for k, n in zip((1, 5), hits, strict=True)}
    return {"test_loss": loss / examples, **({} if regression else accuracies)}


def _hits(logits: Tensor, targets: Tensor) -> list[Tensor]:
    """How many examples are right at first, and among the first five."""
    ranked = logits.topk(min(5, logits.shape[1])).indices  # [N, min(5, C)]
    hits = ranked == targets[:, None]
    return [hits[:, 0].sum(), hits.sum()]

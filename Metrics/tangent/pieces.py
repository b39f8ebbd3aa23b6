"""How the derivative with respect to one source follows from that of a call's output.

Letters in shapes: n examples, g groups, X positions (pixels, tokens), K numbers in and O numbers
out at each of them, C logits.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Product:
    """J = Σ_x g_x u_xᵀ: linear layers and convolutions.

    Attributes:
        source: the weight [g O, K...] (or its transpose).
        inputs: of the call, with n times some count of rows.
        unfold: maps a slice of the inputs to the features u [n, g, X, K].
        fold: maps derivatives [n, *output shape of an example] to [n, g, X, O].
        transposed: whether the source is [K, O].
        sizes: (g, X, K, O).
        lookup: whether the features are [n, g, X, 1], the place of the only 1 in u, or -1.
        window: sizes of a convolution's kernel, if features come with its channels innermost.
    """

    source: Tensor
    inputs: Tensor
    unfold: Map
    fold: Map
    transposed: bool
    sizes: tuple[int, int, int, int]
    lookup: bool = False
    window: tuple[int, ...] = ()

    def arranged(self, rows: Tensor) -> Tensor:
        """Rows [n, C, *shape of the source] of J [n, C, numbers] in the order of the features.

        Args:
            rows: as :meth:`rows` gives them.
        """
        if not self.window:
            return rows.view(*rows.shape[:2], *self.source.shape)
        outputs, channels = self.source.shape[:2]
        return rows.view(*rows.shape[:2], outputs, *self.window, channels).movedim(-1, 3)

    def rows(self, features: Tensor, derivatives: Tensor, into: Tensor | None = None) -> Tensor:
        """J [n, C, numbers of the source], as its features are ordered.

        Args:
            features: [n, g, X, K].
            derivatives: [n, C, g, X, O].
            into: of the result's shape, rows contiguous: where it is written to, if given.
        """
        n, c, g, x, o = derivatives.shape
        k = self.sizes[2]
        if into is not None and g == 1 < x and not (self.lookup or self.transposed):
            torch.bmm(_left(derivatives), features[:, 0], out=into.view(n, c * o, k))
            return into
        found = self._rows(features, derivatives)
        return found if into is None else into.copy_(found)

    def _rows(self, features: Tensor, derivatives: Tensor) -> Tensor:
        n, c, g, x, o = derivatives.shape
        k = self.sizes[2]
        if self.lookup:
            return _scattered(features, derivatives, k)
        if x == 1:
            found = derivatives.transpose(-1, -2) * features[:, None]  # [n, C, g, O, K]
        elif g == 1:
            found = torch.bmm(_left(derivatives), features[:, 0]).view(n, c, 1, o, k)
        else:
            left = derivatives.permute(0, 2, 1, 4, 3).reshape(n * g, c * o, x)
            products = torch.bmm(left, features.reshape(n * g, x, k))
            found = products.view(n, g, c, o, k).transpose(1, 2)
        if self.transposed:
            found = found.transpose(-1, -2)
        return found.reshape(n, c, -1)


@dataclass(frozen=True)
class Reduction:
    """J is a sum of the derivatives, each times a number that is known: biases, gains.

    Attributes:
        source: the parameter.
        reduce: maps derivatives [n, *output shape of an example] to [n, *shape of the source].
        shift: whether it is a bias that is added to products.
    """

    source: Tensor
    reduce: Map
    shift: bool = False


Piece = Product | Reduction


def _left(derivatives: Tensor) -> Tensor:
    """[n, C O, X] of derivatives [n, C, 1, X, O], without a copy where all of them are asked for.

    They lie in memory as [n, X, C, O] or as [n, C, O, X].
    """
    found = derivatives[:, :, 0]
    if found.stride(-1) == 1:
        return found.transpose(1, 2).flatten(2).transpose(1, 2)
    return found.transpose(-1, -2).flatten(1, 2)


def _scattered(indices: Tensor, derivatives: Tensor, size: int) -> Tensor:
    """[n, C, K O]: derivatives [n, C, 1, X, O] added up where the indices [n, 1, X, 1] say."""
    n, c, _, x, o = derivatives.shape
    rows = derivatives.new_zeros(n, c, size + 1, o)  # one more for what is left out
    places = (indices % (size + 1)).expand(n, c, x, o)
    return rows.scatter_add_(2, places, derivatives[:, :, 0])[:, :, :-1].flatten(2)


def pull_back(source: Tensor, parameter: Tensor, rows: Tensor) -> Tensor:
    """Derivatives with respect to a parameter from those of what is made of it.

    Args:
        source: with its graph.
        parameter: it is made of.
        rows: [..., *shape of the source].

    Returns:
        [..., *shape of the parameter].
    """
    if source is parameter:
        return rows
    lead = rows.shape[: rows.dim() - source.dim()]
    flat = rows.reshape(-1, *source.shape)
    with slow_operations_allowed():
        (found,) = torch.autograd.grad(
            source, parameter, flat, retain_graph=True, is_grads_batched=True
        )
    return found.view(*lead, *parameter.shape)


@contextmanager
def slow_operations_allowed() -> Iterator[None]:
    """Without the warning that ``vmap`` takes an operation example by example."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        yield

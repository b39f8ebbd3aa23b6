"""Products of all pairs of rows."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def gram(x: "Tensor") -> "Tensor":
    """X Xᵀ: [n, n] from [n, d].

    On a CPU by numpy, which multiplies half of the pairs only (BLAS's SYRK, Dongarra et al. 1990);
    torch multiplies all of them and takes twice as long.

    Args:
        x: float32 or float64, on any device.
    """
    import torch

    if x.device.type != "cpu":
        return x @ x.T
    array = x.detach().numpy()
    return torch.from_numpy(array @ array.T)

"""b max(x, 0)^n + a max(−x, 0)^n: steps, squared ReLU, …

E[max(x,0)^n max(y,0)^n] = s^n J_n(θ)/2π with the arc-cosine functions of Cho and Saul (2009),
equations 4 to 6:

    J₀ = π − θ                     J₂ = 3 sin θ cos θ + (π − θ)(1 + 2 cos² θ)
    J₁ = sin θ + (π − θ) cos θ     J₃ = 4 sin θ + 11 sin θ cos² θ + (π − θ)(9 cos θ + 6 cos³ θ)

and opposite sides, x > 0 > y, have π − θ in the place of θ.
"""

from math import pi, prod

import torch
from torch import Tensor

from Models.infinite.duals.dual import Dual


class RectifiedPower(Dual):
    """The dual of b max(x, 0)^n + a max(−x, 0)^n.

    Args:
        degree: n, from 0 to 3.
        positive: b.
        negative: a.
    """

    def __init__(self, degree: int, positive: float = 1.0, negative: float = 0.0):
        if not 0 <= degree <= 3:
            raise ValueError(f"degree {degree} is not from 0 to 3")
        self.degree, self.positive, self.negative = degree, positive, negative

    def __call__(self, q12: Tensor, q11: Tensor, q22: Tensor) -> tuple[Tensor, Tensor]:
        n, a, b = self.degree, self.negative, self.positive
        s = q11.sqrt() * q22.sqrt()
        c = (q12 / s).nan_to_num_(0.0).clamp_(-1, 1)
        kernel = _power(s, n) * _both(n, c, a * a + b * b, 2 * a * b) / (2 * pi)
        if n == 0:
            return kernel, torch.zeros_like(q12)
        # f' has the sign of the side: opposite sides multiply to −ab.
        slope = n * n * _power(s, n - 1) * _both(n - 1, c, a * a + b * b, -2 * a * b) / (2 * pi)
        return kernel, slope

    def variance(self, q: Tensor) -> Tensor:
        moment = prod(range(2 * self.degree - 1, 0, -2))  # E z^{2n} = (2n − 1)!!
        square = (self.positive**2 + self.negative**2) / 2
        return square * moment * _power(q, self.degree)


def _power(x: Tensor, n: int) -> Tensor:
    """x^n for x ≥ 0, and 0 for x = 0 also if n = 0: a step is 0 at 0."""
    return x ** n if n else (x > 0).to(x.dtype)


def _both(n: int, c: Tensor, same: float, opposite: float) -> Tensor:
    """``same`` J_n(θ) + ``opposite`` J_n(π − θ)."""
    result = same * _arc_cosine(n, c)
    return result + opposite * _arc_cosine(n, -c) if opposite else result


def _arc_cosine(n: int, c: Tensor) -> Tensor:
    """J_n."""
    sine, rest = ((1 - c) * (1 + c)).sqrt(), torch.acos(-c)  # π − θ
    if n == 0:
        return rest
    if n == 1:
        return sine + rest * c
    if n == 2:
        return 3 * sine * c + rest * (1 + 2 * c * c)
    return sine * (4 + 11 * c * c) + rest * c * (9 + 6 * c * c)

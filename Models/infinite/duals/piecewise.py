"""f(x) = b x for x > 0 and a x for x < 0: ReLU, leaky ReLU, |x|, the identity.

With c = q₁₂/s = cos θ, s = √(q₁₁ q₂₂), A = (a² + b²)/2 and B = (a − b)²/2π,

    K' = A − B θ        K = s (A c + B (sin θ − θ cos θ))

(Cho and Saul 2009, "Kernel methods for deep learning", equations 3 to 6, for a = 0, b = 1.)
E[f²] = A q keeps ratios of variances, so that the new cosine is K/(A s), and 1 − cosine follows
from 1 − cosine:

    u' = u − (r/π) (sin θ − θ cos θ),   u = 1 − c,   r = π B/A = (a − b)²/(a² + b²) ≤ 2.

θ = 2 arcsin √(u/2) has no cancellation in it, whereas arccos c loses half of all digits at
|c| → 1, and the tangent kernel with it.
"""

from collections.abc import Callable
from functools import cached_property
from math import pi

import torch
from torch import Tensor

from Models.infinite.duals.dual import Dual

FAR_FROM_ANTIPODES = 0.1
"""Where 1 + c is at least this, 2 − u is accurate enough."""


class Angle:
    """Of pairs of Gaussians.

    Args:
        u: 1 − c.
        later: gives 1 + c without loss of digits where that is small; ``None`` where all of it is
            far from 0, so that 2 − u says the same.
    """

    def __init__(self, u: Tensor, later: Callable[[], Tensor] | None = None):
        self.u, self._later = u, later

    @cached_property
    def p(self) -> Tensor | None:
        """1 + c, found when it is needed; ``None`` where 2 − u is accurate."""
        if self._later is None or not self.u.numel():
            return None
        if float(self.u.max()) < 2 - FAR_FROM_ANTIPODES:
            return None
        self.u.clamp_(max=2)
        return self._later().clamp_(0, 2)


class PiecewiseLinear(Dual):
    """The dual of a min(x, 0) + b max(x, 0).

    Args:
        negative: a.
        positive: b; not both are zero.
        at_zero: f'(0), which torch takes for derivatives where a variance is zero.
    """

    def __init__(self, negative: float, positive: float, at_zero: float = 0.0):
        self.negative, self.positive, self.at_zero = negative, positive, at_zero
        self.square = (negative**2 + positive**2) / 2
        """A."""
        self.kink = (negative - positive) ** 2 / (2 * pi)
        """B."""

    def __call__(self, q12: Tensor, q11: Tensor, q22: Tensor) -> tuple[Tensor, Tensor]:
        s = q11.sqrt() * q22.sqrt()
        c = (q12 / s).nan_to_num_(0.0).clamp_(-1, 1)
        new, slope = self.turn(Angle(1 - c, lambda: 1 + c))
        return self.square * s * (1 - new.u), self.where_zero(slope, q11, q22)

    def variance(self, q: Tensor) -> Tensor:
        return self.square * q

    def turn(self, angle: Angle) -> tuple[Angle, Tensor]:
        """The angle after the nonlinearity, and K'.

        Args:
            angle: before it.
        """
        if self.kink == 0:
            return angle, torch.full_like(angle.u, self.square)
        r = pi * self.kink / self.square
        if angle.p is None:
            half, rise = _half_angle(angle.u)
            slope = half.mul_(-2 * self.kink).add_(self.square)
            return Angle(torch.sub(angle.u, rise, alpha=r / pi).clamp_(min=0)), slope
        # Beyond a right angle, from the angle φ = π − θ: sin θ − θ cos θ = h(φ) + π (1 − p).
        u, p = angle.u, angle.p
        acute = u <= p
        half, rise = _half_angle(torch.minimum(u, p))
        theta = torch.where(acute, 2 * half, pi - 2 * half)
        slope = self.square - self.kink * theta
        rise = rise * (r / pi)
        new = torch.where(acute, u - rise, (2 - r) + (r - 1) * p - rise).clamp_(min=0)
        if r >= FAR_FROM_ANTIPODES:
            return Angle(new), slope
        return Angle(new, lambda: torch.where(acute, 2 - new, r + (1 - r) * p + rise)), slope

    def where_zero(self, slope: Tensor, q11: Tensor, q22: Tensor) -> Tensor:
        """K' with f'(0) in the place of f' where a variance is zero.

        Args:
            slope: K', changed in place.
            q11: variances, in a shape that broadcasts.
            q22: the same.
        """
        one, other = q11 == 0, q22 == 0
        mean = (self.negative + self.positive) / 2
        slope.masked_fill_(one | other, self.at_zero * mean)
        return slope.masked_fill_(one & other, self.at_zero**2)


def _half_angle(u: Tensor) -> tuple[Tensor, Tensor]:
    """θ/2, and sin θ − θ cos θ, where u = 1 − cos θ."""
    half = (u * 0.5).sqrt_().asin_()
    rise = torch.rsub(u, 2).mul_(u).sqrt_()
    # Rounded to θ ε, which moves the next angle by ε: no series is needed for small θ.
    return half, rise.sub_(half, alpha=2).addcmul_(half, u, value=2)

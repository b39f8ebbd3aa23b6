"""Integrals of functions of Gaussians that may have a kink at zero, in float64."""

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from math import pi

import numpy as np
import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]

_EDGES = (0.0, 1 / 256, 1 / 64, 1 / 16, 1 / 4, *(float(k) for k in range(1, 14)))
"""Panels of z = |x|/√q: fine near zero, where wide Gaussians see all of a function's shape; at 13
the density is 2e-37."""

_PANEL, _RADII, _ARC = 24, 160, 24
"""Gauss-Legendre nodes of each panel, of radii, and of each arc."""


@lru_cache
def _legendre(count: int) -> tuple[Tensor, Tensor]:
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


@lru_cache
def _panels(count: int) -> tuple[Tensor, Tensor]:
    """Nodes z > 0 and weights of the integral over z from 0 to 13."""
    nodes, weights = _legendre(count)
    spans = [(a, b - a) for a, b in pairwise(_EDGES)]
    z = torch.cat([a + width * nodes for a, width in spans])
    return z, torch.cat([width * weights for _, width in spans])


@lru_cache
def normal_nodes(count: int = _PANEL) -> tuple[Tensor, Tensor]:
    """Nodes and weights of E g(z), z standard normal; 2 · 17 · ``count`` of them.

    Args:
        count: in each panel.
    """
    z, weights = _panels(count)
    weights = weights * torch.exp(-z * z / 2) / (2 * pi) ** 0.5
    return torch.cat([-z.flip(0), z]), torch.cat([weights.flip(0), weights])


def hermite_coefficients(f: Function, q: Tensor, terms: int) -> Tensor:
    """a_k = E[f(√q z) He_k(z)]/√k! for k < ``terms``: [terms, *q.shape], float64.

    Args:
        f: elementwise.
        q: variances, any shape.
        terms: how many.
    """
    z, weights = (x.to(q.device) for x in normal_nodes())
    values = f(q.double().sqrt().reshape(-1, 1) * z) * weights
    return (_hermite(terms).to(q.device) @ values.T).reshape(terms, *q.shape)


@lru_cache
def _hermite(terms: int) -> Tensor:
    """He_k(z)/√k! at the nodes: [terms, nodes]."""
    z, _ = normal_nodes()
    basis = torch.empty(terms, len(z), dtype=torch.float64)
    basis[0] = 1
    if terms > 1:
        basis[1] = z
    for k in range(2, terms):
        basis[k] = (z * basis[k - 1] - (k - 1) ** 0.5 * basis[k - 2]) / k**0.5
    return basis


def mean_square(f: Function, q: Tensor, count: int = _PANEL) -> Tensor:
    """E[f(√q z)²], in the shape of ``q``, float64.

    Args:
        f: elementwise.
        q: variances, any shape.
        count: nodes in each panel.
    """
    z, weights = (x.to(q.device) for x in normal_nodes(count))
    return (f(q.double().sqrt().unsqueeze(-1) * z).square() * weights).sum(-1)


def mean_product(
    f: Function, u: Tensor, p: Tensor, q11: Tensor, q22: Tensor, radii: int = _RADII
) -> Tensor:
    """E[f(x) f(y)] for each pair, by polar coordinates: 96 · ``radii`` values of f twice each.

    x = √q₁₁ r cos φ and y = √q₂₂ r cos(φ − θ), r² exponential: on each of the four arcs
    between the zeros of the two cosines, f(x) f(y) is smooth where f is, apart from zero.

    Args:
        f: elementwise.
        u: 1 − cos θ, [M], float64.
        p: 1 + cos θ.
        q11: variances, [M].
        q22: variances, [M].
        radii: nodes of r.
    """
    theta = 2 * torch.atan2(u.clamp(min=0).sqrt(), p.clamp(min=0).sqrt())
    r, radial = (x.to(u.device) for x in _radii(radii))
    nodes, weights = (x.to(u.device) for x in _legendre(_ARC))
    total = torch.zeros_like(u)
    starts = (-pi / 2 + 0 * theta, theta - pi / 2, pi / 2 + 0 * theta, theta + pi / 2)
    widths = (theta, pi - theta, theta, pi - theta)
    for start, width in zip(starts, widths, strict=True):
        angle = start[:, None] + width[:, None] * nodes  # [M, arc]
        x = q11.sqrt()[:, None] * angle.cos()
        y = q22.sqrt()[:, None] * (angle - theta[:, None]).cos()
        product = f(x[..., None] * r) * f(y[..., None] * r)  # [M, arc, radii]
        total += (product @ radial) @ weights * width / (2 * pi)
    return total


@lru_cache
def _radii(count: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of E g(r), r² = z₁² + z₂²: density r e^{−r²/2}."""
    r, weights = _panels(max(4, count // (len(_EDGES) - 1)))
    return r, weights * r * torch.exp(-r * r / 2)

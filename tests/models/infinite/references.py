"""Kernels by other ways than ours: 50 digits, wide finite networks."""

from collections.abc import Callable, Sequence
from itertools import product
from math import sqrt
from typing import Any

import mpmath as mp
import torch
from torch import Tensor, nn


def angle_kernels(s: mp.mpf, q: mp.mpf, a: float, b: float) -> tuple[mp.mpf, mp.mpf]:
    """K and K' of a min(x, 0) + b max(x, 0), from Cho and Saul's integrals, in 50 digits."""
    if s == 0:
        return mp.mpf(0), mp.mpf(0)
    theta = mp.acos(max(mp.mpf(-1), min(mp.mpf(1), q / s)))
    same = (mp.mpf(a) ** 2 + mp.mpf(b) ** 2) / (2 * mp.pi)  # both on one side of zero
    other = mp.mpf(a) * mp.mpf(b) / mp.pi  # on opposite sides
    near = mp.sin(theta) + (mp.pi - theta) * mp.cos(theta)
    far = mp.sin(theta) - theta * mp.cos(theta)
    kernel = s * (same * near - other * far)
    return kernel, same * (mp.pi - theta) + other * theta


def dense_exactly(
    x: Tensor, depth: int, a: float, b: float, weight: float, bias: float
) -> tuple[Tensor, Tensor]:
    """NNGP and NTK (NTK parametrization) of a fully connected network, in 50 digits."""
    mp.mp.dps = 50
    rows = [[mp.mpf(float(v)) for v in row] for row in x.tolist()]
    n, w, c = len(rows), mp.mpf(weight), mp.mpf(bias)
    cells: list[Any] = list(product(range(n), repeat=2))
    q: dict[Any, mp.mpf] = {(i, j): mp.fdot(rows[i], rows[j]) / len(rows[0]) for i, j in cells}
    t = dict.fromkeys(cells, mp.mpf(0))
    for layer in range(depth + 1):
        q = {ij: w * q[ij] + c for ij in cells}
        t = {ij: q[ij] + w * t[ij] for ij in cells}
        if layer < depth:
            found = {
                (i, j): angle_kernels(mp.sqrt(q[i, i] * q[j, j]), q[i, j], a, b) for i, j in cells
            }
            q = {ij: found[ij][0] for ij in cells}
            t = {ij: t[ij] * found[ij][1] for ij in cells}
    return _matrix(q, n), _matrix(t, n)


def convolution_exactly(
    x: Tensor, layers: Sequence[int], weight: float, bias: float, pooled: bool
) -> tuple[Tensor, Tensor]:
    """The same of 1-d convolutions of three (SAME) with ReLU, mean of positions or flattened.

    Args:
        x: [n, channels, positions].
        layers: the stride of each convolution.
        weight: variance of weights times their number.
        bias: variance of biases.
        pooled: whether positions are averaged, not flattened.
    """
    mp.mp.dps = 50
    n, channels, size = x.shape
    w, c = mp.mpf(weight), mp.mpf(bias)
    values = [[[mp.mpf(float(v)) for v in row] for row in image] for image in x.tolist()]
    q: dict[Any, mp.mpf] = {
        (i, j, p, r): mp.fsum(values[i][k][p] * values[j][k][r] for k in range(channels)) / channels
        for i, j, p, r in product(range(n), range(n), range(size), range(size))
    }
    t = dict.fromkeys(q, mp.mpf(0))
    for stride in layers:
        out = (size - 1) // stride + 1
        cells: list[Any] = list(product(range(n), range(n), range(out), range(out)))

        def mean(block: dict[Any, mp.mpf], cell: Any, stride: int = stride) -> mp.mpf:
            i, j, p, r = cell
            taps = [(i, j, stride * p + k, stride * r + k) for k in (-1, 0, 1)]
            return mp.fsum(block.get(tap, mp.mpf(0)) for tap in taps) / 3

        new = {cell: w * mean(q, cell) + c for cell in cells}
        t = {cell: new[cell] + w * mean(t, cell) for cell in cells}
        found = {}
        for i, j, p, r in cells:
            s = mp.sqrt(new[i, i, p, p] * new[j, j, r, r])
            found[i, j, p, r] = angle_kernels(s, new[i, j, p, r], 0, 1)
        q = {cell: found[cell][0] for cell in cells}
        t = {cell: t[cell] * found[cell][1] for cell in cells}
        size = out
    pairs: list[Any] = list(product(range(n), repeat=2))
    spots = [(p, r) for p, r in product(range(size), repeat=2) if pooled or p == r]
    q, t = (
        {(i, j): mp.fsum(block[i, j, p, r] for p, r in spots) / len(spots) for i, j in pairs}
        for block in (q, t)
    )
    t = {ij: w * q[ij] + c + w * t[ij] for ij in pairs}
    q = {ij: w * q[ij] + c for ij in pairs}
    return _matrix(q, n), _matrix(t, n)


def _matrix(cells: dict[Any, mp.mpf], n: int) -> Tensor:
    rows = [[float(cells[i, j]) for j in range(n)] for i in range(n)]
    return torch.tensor(rows, dtype=torch.float64)


def sampled(
    make: Callable[[], nn.Module],
    x: Tensor,
    rates: Callable[[str, nn.Parameter], tuple[float, float]],
    samples: int,
) -> tuple[Tensor, Tensor]:
    """f fᵀ and the tangent kernel of finite networks, per output: [samples, n, n] each.

    Args:
        make: a network with weights of any size.
        x: inputs.
        rates: standard deviation and learning rate of a parameter.
        samples: networks.
    """
    nngp, ntk = [], []
    for seed in range(samples):
        torch.manual_seed(seed)
        network = make().double().eval()
        named = list(network.named_parameters())
        for name, parameter in named:
            std, _ = rates(name, parameter)
            if std >= 0:
                nn.init.normal_(parameter, 0, std)
        outputs = network(x)
        nngp.append((outputs @ outputs.T / outputs.shape[1]).detach())
        total = torch.zeros(len(x), len(x), dtype=torch.float64)
        for c in range(outputs.shape[1]):
            rows = []
            for i in range(len(x)):
                found = torch.autograd.grad(outputs[i, c], [p for _, p in named], retain_graph=True)
                parts = zip(found, named, strict=True)
                rows.append(torch.cat([g.flatten() * sqrt(rates(*p)[1]) for g, p in parts]))
            jacobian = torch.stack(rows)
            total += jacobian @ jacobian.T
        ntk.append(total / outputs.shape[1])
    return torch.stack(nngp), torch.stack(ntk)


def agrees(samples: Tensor, kernel: Tensor, bias: float) -> bool:
    """Whether the mean of samples is the kernel, up to 4 standard errors and a share of it."""
    error = samples.std(0) / len(samples) ** 0.5
    room = 4 * error + bias * kernel.abs().max()
    return bool(((samples.mean(0) - kernel).abs() <= room).all())

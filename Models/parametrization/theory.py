"""What a parametrization does as the width n grows: the exponent of every logged quantity.

A quantity with exponent e is Θ(n^e). The recursions are those of an MLP with L hidden layers,
finite inputs and outputs, after one step and after two, at random initialisation (Yang and Hu
2021, arXiv 2011.14522, carried over to one learning rate per layer, to vanishing or
exploding layers, and to a first step of its own). Nonlinearities have outputs of nonzero mean
wherever layers vanish or explode, as relu has; Adam is taken with ε → 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from Models.parametrization.exponents import ABC, HALF, ONE, ZERO, Family

Numbers = tuple[Fraction, ...]
Regime = Literal["unstable", "feature learning", "kernel regime", "trivial"]


@dataclass(frozen=True)
class Theory:
    """The predictions for one parametrization, depth and family of optimizers.

    Attributes:
        stable: whether layers are Θ(1) at initialisation, outputs at most that, and no change
            grows with the width.
        trivial: whether the outputs' change vanishes.
        regime: what the two say together with r; of the second step where the first differs.
        r: −max over hidden layers of the exponent of a layer's change in the first step.
        initial: at initialisation: ``preactivation`` (rms of h, layers 1 … L+1, the last one
            the outputs), ``gradient`` (rms of ∂f/∂h, 1 … L), ``operator norm`` and ``frobenius
            norm`` of W₀ (1 … L+1).
        first: after the first step: ``own`` (rms of ΔW x, 1 … L+1), ``propagated`` (rms of
            W₀ Δx, 1 … L+1; ``None`` in layer 1), ``bias`` (of the bias's change, if there are
            any), ``change`` (rms of Δh; the last one is Δf), norms of ΔW, and under SGD
            ``kernel``, the layer's part of the tangent kernel Σ lr |∂f/∂W|².
        later: the same after a second step, without norms; after the first one with the later
            learning rates, where the first steps have others.
        relative_kernel: of the relative change of the tangent kernel and of the features'
            kernel, for a smooth nonlinearity; ``None`` where it diverges or layers vanish.
    """

    stable: bool
    trivial: bool
    regime: Regime
    r: Fraction
    initial: dict[str, Numbers]
    first: dict[str, tuple[Fraction | None, ...]]
    later: dict[str, tuple[Fraction | None, ...]]
    relative_kernel: Fraction | None


@dataclass
class _Step:
    """What one step does: own updates, biases, propagated changes and their sum."""

    own: list[Fraction] = field(default_factory=list)
    bias: list[Fraction] = field(default_factory=list)
    propagated: list[Fraction | None] = field(default_factory=list)
    change: list[Fraction] = field(default_factory=list)

    def table(self, with_bias: bool) -> dict[str, tuple[Fraction | None, ...]]:
        rows: dict[str, Sequence[Fraction | None]] = {"own": self.own}
        rows |= {"bias": self.bias} if with_bias else {}
        rows |= {"propagated": self.propagated, "change": self.change}
        return {name: tuple(row) for name, row in rows.items()}


def explain(abc: ABC, depth: int, optimizer: Family = "sgd", bias: bool = False) -> Theory:
    """The predictions for ``abc``.

    Args:
        abc: exponents of depth + 1 layers.
        depth: L, the number of hidden layers.
        optimizer: its family.
        bias: whether the layers have biases.

    Raises:
        ValueError: ``abc`` is of another depth.
    """
    if abc.hidden_layers != depth:
        raise ValueError(f"abc is of {abc.hidden_layers} hidden layers, not {depth}")
    engine = _Recursion(abc, optimizer, bias)
    h = engine.preactivations()
    g = engine.gradients()
    first = engine.step(h, g, first=True)
    h1 = [max(x, d) for x, d in zip(h, first.change, strict=True)]
    later = engine.step(h1, engine.next_gradients(h, g), first=False)
    switched = abc.first_steps > 0
    decisive = later if switched else first
    moved, moves = max(decisive.change[:-1]), decisive.change[-1]
    grows = max(moved, moves, max(h)) > 0 or (switched and max(first.change) > 0)
    alive = switched or all(x == 0 for x in h[:-1])
    regime: Regime = (
        "trivial" if moves < 0 else "kernel regime" if moved < 0 else "feature learning"
    )
    r = -max(first.change[:-1])
    relative = None
    if alive and not grows:
        relative = max(2 * moved, moved - HALF) if moved < 0 else ZERO
    tables = [first.table(bias), later.table(bias)]
    tables[0] |= engine.norms_of_updates(h, g)
    if optimizer == "sgd":
        tables[0]["kernel"] = engine.kernels(h, g, first=True)
        tables[1]["kernel"] = engine.kernels(h1, engine.next_gradients(h, g), first=False)
    return Theory(
        stable=alive and not grows,
        trivial=moves < 0,
        regime="unstable" if grows else regime,
        r=r,
        initial={"preactivation": tuple(h), "gradient": tuple(g), **engine.norms_of_weights()},
        first=tables[0],
        later=tables[1],
        relative_kernel=relative,
    )


class _Recursion:
    """The recursions over layers; index 0 is layer 1, index L the readout."""

    def __init__(self, abc: ABC, family: Family, bias: bool):
        self.abc, self.family, self.bias = abc, family, bias
        self.depth = abc.hidden_layers
        self.s = [e.s for e in abc.layers]
        # A mean of the weights sums n terms coherently, noise √n of them.
        self.sums = [HALF] + [ONE if abc.mean else HALF] * self.depth

    def rates(self, first: bool) -> list[Fraction]:
        return [e.rate(self.family, first) for e in self.abc.layers]

    def preactivations(self) -> list[Fraction]:
        """p₁ = −s₁, p_l = p_{l−1} + ½ − s_l; not less than a bias that is drawn."""
        h: list[Fraction] = []
        for layer in range(self.depth + 1):
            x = -self.s[layer] + (h[-1] + self.sums[layer] if layer else ZERO)
            if self.bias and self.abc.bias_std:
                x = max(x, -self.abc.biases[layer].s)
            h.append(x)
        return h

    def gradients(self) -> list[Fraction]:
        """g_L = −s_{L+1}, g_{l−1} = g_l + ½ − s_l."""
        g = [-self.s[self.depth]]
        for layer in range(self.depth - 1, 0, -1):
            g.insert(0, g[0] + self.sums[layer] - self.s[layer])
        return g

    def next_gradients(self, h: list[Fraction], g: list[Fraction]) -> list[Fraction]:
        """After a first step of SGD: also through ΔW, whose columns are aligned with what flows
        back. Of Adam, whose steps do not depend on the size of gradients, nobody reads them."""
        rates = self.rates(first=True)
        new = [max(-self.s[self.depth], h[self.depth - 1] - rates[-1])]
        for layer in range(self.depth - 1, 0, -1):
            through = new[0] + ONE - rates[layer] + h[layer - 1] + g[layer]
            new.insert(0, max(new[0] + self.sums[layer] - self.s[layer], through))
        return new

    def step(self, h: list[Fraction], g: list[Fraction], first: bool) -> _Step:
        """u_l = g_l − C_l + 1 + p_{l−1} + max(p_{l−1}, δ_{l−1}), and δ_l = max of all changes."""
        done, rates, sgd = _Step(), self.rates(first), self.family == "sgd"
        for layer in range(self.depth + 1):
            flows = g[layer] if layer < self.depth and sgd else ZERO  # Adam divides it out
            own, propagated = flows - rates[layer], None
            if layer:
                reads = max(h[layer - 1], done.change[-1])
                own += ONE + reads + (h[layer - 1] if sgd else ZERO)
                aligned = ONE if layer == self.depth else self.sums[layer]
                propagated = done.change[-1] + aligned - self.s[layer]
            shift = flows - self.abc.biases[layer].rate(self.family, first)
            done.own.append(own)
            done.bias.append(shift)
            done.propagated.append(propagated)
            parts = [own, propagated, shift if self.bias else None]
            done.change.append(max(part for part in parts if part is not None))
        return done

    def norms_of_weights(self) -> dict[str, Numbers]:
        hidden = range(1, self.depth)
        operator = [self.sums[i] - s if i in hidden else HALF - s for i, s in enumerate(self.s)]
        frobenius = [(ONE if i in hidden else HALF) - s for i, s in enumerate(self.s)]
        return {"operator norm": tuple(operator), "frobenius norm": tuple(frobenius)}

    def norms_of_updates(self, h: list[Fraction], g: list[Fraction]) -> dict[str, Numbers]:
        """Of ΔW after the first step: both norms are alike, its rank is at most the batch."""
        norms = []
        for layer, rate in enumerate(self.rates(first=True)):
            norm = -rate + (HALF if layer < self.depth else ZERO) + (HALF if layer else ZERO)
            if self.family == "sgd":
                norm += (g[layer] if layer < self.depth else ZERO) + (h[layer - 1] if layer else 0)
            norms.append(norm)
        return {"update operator norm": tuple(norms), "update frobenius norm": tuple(norms)}

    def kernels(self, h: list[Fraction], g: list[Fraction], first: bool) -> Numbers:
        """K_l: −C_l + (2 g_l + 1, below the readout) + (1 + 2 p_{l−1}, above the first layer)."""
        return tuple(
            -rate
            + (2 * g[layer] + ONE if layer < self.depth else ZERO)
            + (ONE + 2 * h[layer - 1] if layer else ZERO)
            for layer, rate in enumerate(self.rates(first))
        )

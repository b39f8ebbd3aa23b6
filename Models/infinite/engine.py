"""Blocks of the kernels of a network: one tile of pairs of examples at a time.

Without pooling only pairs of equal positions are needed (p = p'). With it all are, and in images
they are computed one row offset at a time: for fixed p'₀ − p₀ = δ the block [p₀, p₁, p₁'] is closed
under convolutions and nonlinearities, so that all layers run on a block that fits the cache, and
only what pooling makes of it is kept.
"""

from dataclasses import dataclass, field
from functools import cached_property
from math import sqrt
from typing import Literal

import torch
from torch import Tensor

from Models.infinite.compiled.route import pooled
from Models.infinite.compiled.stack import Stack
from Models.infinite.duals.piecewise import Angle
from Models.infinite.layers.layer import Sides, State, View
from Models.infinite.layers.positions import Flatten, Pool
from Models.infinite.layout import Layout
from Models.infinite.program import INPUT, Program, Step

Mode = Literal["diagonal", "full", "stream"]

STREAM_FROM = 1 << 16
"""Numbers per pair of examples from which row offsets are computed one at a time."""


def mode_of(program: Program) -> Mode:
    """How a network's blocks are laid out."""
    if not program.mixes:
        return "diagonal"
    many = max(Layout(sizes).count for sizes in program.sizes) > STREAM_FROM
    return "stream" if many and program.streams else "full"


def numbers_per_pair(program: Program, stack: Stack | None = None) -> int:
    """Of the largest block, per pair of examples.

    Args:
        program: the network.
        stack: what the compiled kernel does of it, slab by slab; ``None`` if nothing.
    """
    mode, sizes = mode_of(program), program.sizes
    after = [Layout(s).count for s, m in zip(sizes, program.mixed, strict=True) if m]
    if stack is not None:
        return max(after)
    if mode == "diagonal":
        return max(Layout(s, (0,) * len(s)).count for s in sizes)
    if mode == "full":
        return max(Layout(s).count for s in sizes)
    before = [Layout(s, (0,)).count for s, m in zip(sizes, program.mixed, strict=True) if not m]
    return max(before + after)


@dataclass
class Examples:
    """One side of a tile.

    Attributes:
        inputs: [C, *sizes, n]; a view.
        variances: of every value, [*sizes, n]; those of values that need more are missing.
        own: covariances between the positions of each example where read, [*sizes, *sizes, n].
    """

    inputs: Tensor
    variances: dict[int, Tensor] = field(default_factory=dict)
    own: dict[int, Tensor] = field(default_factory=dict)

    @property
    def features(self) -> Tensor:
        """Inputs over the root of their number C."""
        return self.inputs / sqrt(self.inputs.shape[0])

    @cached_property
    def unit(self) -> Tensor:
        """Inputs over their norm at each position."""
        norm = self.inputs.square().sum(0).sqrt()
        return self.inputs / torch.where(norm == 0, 1, norm)

    @classmethod
    def of(cls, program: Program, inputs: Tensor, stack: Stack | None = None) -> "Examples":
        """From a batch.

        Args:
            program: the network.
            inputs: [n, *input_shape].
            stack: as of :class:`Tile`.
        """
        if program.channel_axis is None:
            x = inputs.flatten(1).T
        else:
            x = inputs.movedim(0, -1).movedim(program.channel_axis, 0)
        examples = cls(x, {INPUT: x.square().mean(0)})
        examples._follow(program)
        if program.reads_own_mixture:
            examples._complete(program, stack)
            examples._follow(program)
        return examples

    def _follow(self, program: Program) -> None:
        """Variances that others tell."""
        for k, step in enumerate(program.steps, start=1):
            maps = [self.variances[i] for i in step.inputs if i in self.variances]
            if k not in self.variances and len(maps) == len(step.inputs):
                q = step.layer.variance(maps)
                if q is not None:
                    self.variances[k] = q

    def _complete(self, program: Program, stack: Stack | None) -> None:
        """Variances after mixing, from each example's kernel with itself."""
        found: list[Examples] = []
        for n in range(self.inputs.shape[-1]):
            known = {k: q[..., n : n + 1] for k, q in self.variances.items()}
            alone = Examples(self.inputs[..., n : n + 1], known)
            same = torch.ones(1, 1, dtype=torch.bool)
            Tile(program, alone, alone, tangent=False, same=same, stack=stack).run(own=True)
            found.append(alone)
        for k in found[0].variances:
            self.variances[k] = torch.cat([example.variances[k] for example in found], -1)
        for k in found[0].own:
            self.own[k] = torch.cat([example.own[k] for example in found], -1)


class Tile:
    """Both kernels of some pairs of examples.

    Args:
        program: the network.
        one: side 1, n examples.
        other: side 2, m examples.
        tangent: whether the tangent kernel is asked for.
        same: which pairs are twice the same example, [n, m], or ``None``.
        stack: what the compiled kernel does of the network; ``None`` if torch does all of it.
    """

    def __init__(
        self,
        program: Program,
        one: Examples,
        other: Examples,
        tangent: bool,
        same: Tensor | None,
        stack: Stack | None = None,
    ):
        self.program, self.one, self.other = program, one, other
        self.tangent, self.mode, self.stack = tangent, mode_of(program), stack
        self.same = None if same is None else same.to(one.inputs.device)
        self._held: dict[int, Sides] = {}

    def run(self, own: bool = False, cosines: Tensor | None = None) -> State:
        """The state of the output, as covariances: q and t, [n, m].

        Args:
            own: whether both sides are one example, whose missing variances are noted.
            cosines: of the inputs, where they are known, [n, m].
        """
        steps = list(enumerate(self.program.steps, start=1))
        states: dict[int, State] = {}
        layouts: dict[int, Layout] = {}
        if self.stack is not None or self.mode == "stream":
            states = self._streamed(own) if self.stack is None else self._compiled(self.stack, own)
            layouts = {k: Layout(self.program.sizes[k]) for k in states}
            steps = [(k, step) for k, step in steps if self.program.mixed[k]]
            if own:
                for k in states:
                    self._note(k, states[k], layouts[k])
        else:
            sizes = self.program.input_sizes
            layouts[INPUT] = Layout(sizes, (0,) * len(sizes) if self.mode == "diagonal" else ())
            states[INPUT] = self._input(layouts[INPUT], cosines)
        last, reaches = _last_uses(self.program), self.program.reaches
        for k, step in steps:
            if own and reaches[k] is None:
                continue
            if k not in states:
                states[k], layouts[k] = self._apply(k, step, states, layouts)
                if own:
                    self._note(k, states[k], layouts[k])
            for read in step.inputs:
                if last[read] == k and read in states:
                    del states[read]
        if own:
            return State()
        end, layout = states[len(self.program.steps)], layouts[len(self.program.steps)]
        value = len(self.program.steps)
        q = end.covariance(self._sides(value) if self._known(value) else None, layout)
        return State(q, None, end.t)

    # ------------------------------------------------------------------ one step

    def _apply(
        self, k: int, step: Step, states: dict[int, State], layouts: dict[int, Layout]
    ) -> tuple[State, Layout]:
        before = tuple(layouts[i] for i in step.inputs)
        offsets = before[0].offsets
        if step.layer.positions == "keep":
            offsets = tuple(o // step.layer.stride(d) for d, o in enumerate(offsets))
        else:
            offsets = ()
        layout = Layout.of(self.program.sizes[k], offsets)
        sides = tuple(self._sides(i) if self._known(i) else None for i in step.inputs)
        # Without variances of their outputs layers return covariances, which then suffice.
        out = self._sides(k) if self._known(k) and k <= self.program.last_reader else None
        end = step.inputs[-1]
        own = (self.one.own[end], self.other.own[end]) if step.layer.reads_own else None
        view = View(before, layout, sides, out, self.tangent, self.same, own)
        return step.layer.apply([states[i] for i in step.inputs], view), layout

    def _known(self, k: int) -> bool:
        return k in self.one.variances

    def _sides(self, k: int) -> Sides:
        if k not in self._held:
            self._held[k] = Sides(self.one.variances[k], self.other.variances[k])
        return self._held[k]

    def _note(self, k: int, state: State, layout: Layout) -> None:
        """What both sides know of a value from their kernel alone."""
        if k in self.program.owned:
            known = self._sides(k) if self._known(k) else None
            self.one.own[k] = state.covariance(known, layout)[..., 0].clone()
        if self._known(k):
            return
        step = self.program.steps[k - 1]
        if all(self._known(i) for i in step.inputs):
            found = step.layer.variance([self.one.variances[i] for i in step.inputs])
            if found is not None:
                self.one.variances[k] = found
                return
        assert state.q is not None
        diagonal = layout.diagonal(state.q)
        assert diagonal is not None
        self.one.variances[k] = diagonal[..., 0].clone()

    def _input(self, layout: Layout, cosines: Tensor | None = None) -> State:
        if not self.program.angles:
            if cosines is not None:
                return State(self._sides(INPUT).scaled(cosines, layout))
            return State(layout.products(self.one.features, self.other.features))
        one, other = self.one.unit, self.other.unit
        u = layout.deficit(one, other, cosines=cosines, same=self.same)
        return State(None, Angle(u, lambda: layout.deficit(one, -other)))

    # ------------------------------------------------------------------ one row offset at a time

    def _compiled(self, stack: Stack, own: bool) -> dict[int, State]:
        """The same as :meth:`_streamed`."""
        angles = self.program.angles
        inputs = [x.unit if angles else x.features for x in (self.one, self.other)]
        sides = {
            k: self._sides(k) for step in stack.instructions for k in (*step.sides, step.value)
        }
        reach = 1 + (self.program.reaches[INPUT] or 0) if own else None
        return {
            stack.pool: pooled(stack, sides, (inputs[0], inputs[1]), self.tangent, self.same, reach)
        }

    def _streamed(self, own: bool) -> dict[int, State]:
        """The first values after mixing; of an example itself, as far as variances need them."""
        program = self.program
        kept: dict[int, State] = {}
        reach = max(
            size[0] * stride
            for size, stride, mixed in zip(
                program.sizes, program.strides, program.mixed, strict=True
            )
            if not mixed
        )
        if own:
            reach = min(reach, 1 + (program.reaches[INPUT] or 0))
        for offset in range(1 - reach, reach):
            self._stream_offset(offset, kept)
        return kept

    def _stream_offset(self, offset: int, kept: dict[int, State]) -> None:
        program, last = self.program, _last_uses(self.program)
        layouts = {INPUT: Layout.of(program.input_sizes, (offset,))}
        states: dict[int, State] = {}
        wanted = _reached(program, offset)
        if not wanted:
            return
        states[INPUT] = self._input(layouts[INPUT])
        for k, step in enumerate(program.steps, start=1):
            if k not in wanted:
                continue
            if not program.mixed[k]:
                states[k], layouts[k] = self._apply(k, step, states, layouts)
            elif len(step.inputs) == 1 and isinstance(step.layer, (Pool, Flatten)):
                i = step.inputs[0]
                self._gather(k, step.layer, states[i], layouts[i], kept)
            for read in step.inputs:
                if last[read] == k:
                    states.pop(read, None)

    def _gather(
        self, k: int, layer: Pool | Flatten, state: State, layout: Layout, kept: dict[int, State]
    ) -> None:
        if layout.lengths[0] == 0:
            return
        total = kept.setdefault(k, State())
        i = self.program.steps[k - 1].inputs[0]
        total.q = layer.gather(total.q, state.covariance(self._sides(i), layout), layout)
        if state.t is not None:
            total.t = layer.gather(total.t, state.t, layout)


def _last_uses(program: Program) -> dict[int, int]:
    return {read: k for k, step in enumerate(program.steps, start=1) for read in step.inputs}


def _reached(program: Program, offset: int) -> set[int]:
    """Values that an offset of the input in the first dimension is part of, and that are read."""
    reached = {INPUT}
    for k, step in enumerate(program.steps, start=1):
        stride = program.strides[k]
        inputs_there = all(i in reached for i in step.inputs)
        if not inputs_there or program.mixed[step.inputs[0]]:
            continue
        there = offset % stride == 0 and abs(offset // stride) < (program.sizes[k] or (0,))[0]
        if program.mixed[k] or there:
            reached.add(k)
    ends = {k for k in reached if program.mixed[k]}
    return reached if ends else set()

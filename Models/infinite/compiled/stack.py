"""What the compiled kernel is told of a network: its layers up to the first pooling.

It takes images whose layers keep row offsets apart (:mod:`Models.infinite.engine`), among them
convolutions with circular padding, where offsets are counted modulo the height: convolutions and
linear layers, sums of two branches, and either piecewise linear nonlinearities or error functions.
Other networks are computed by torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from math import pi, prod

from Models.infinite.duals.closed import Erf
from Models.infinite.duals.piecewise import FAR_FROM_ANTIPODES, PiecewiseLinear
from Models.infinite.layers.affine import Affine
from Models.infinite.layers.layer import Layer
from Models.infinite.layers.pointwise import Nonlinearity, Scale, Sum
from Models.infinite.layers.positions import Pad, Pool
from Models.infinite.layers.window import Window
from Models.infinite.program import INPUT, Program, Step


class Kind(IntEnum):
    """What a step of a stack does; numbers of plan.h."""

    INPUT = 0
    AFFINE = 1
    SUM = 2
    SCALE = 3
    PIECEWISE = 4
    ERF = 5


@dataclass(frozen=True)
class Instruction:
    """One step.

    Attributes:
        kind: what it does.
        layer: that of the program; convolutions have windows in both dimensions.
        reads: the values whose kernels it reads.
        sides: the values whose variances its layer reads, which may be padded.
        value: that it makes.
        opposite: whether 1 + cosine is followed, as antipodes have not met a nonlinearity yet.
        windows: in both dimensions, their padding included; none if it has no windows.
        numbers: of the layer, in the order of slab.cpp.
        frees: values that nothing reads afterwards.
    """

    kind: Kind
    layer: Layer | None
    reads: tuple[int, ...]
    sides: tuple[int, ...]
    value: int
    opposite: bool
    windows: tuple[Window, ...] = ()
    numbers: tuple[float, ...] = ()
    frees: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Stack:
    """The layers of a network up to the first pooling.

    Attributes:
        program: the network.
        instructions: in order, the input first.
        pool: the value that pooling makes.
        wraps: whether padding is circular.
    """

    program: Program
    instructions: tuple[Instruction, ...]
    pool: int
    wraps: bool

    @property
    def end(self) -> int:
        """The value that is pooled."""
        return self.instructions[-1].value

    @property
    def numbers(self) -> int:
        """Entries of all blocks of a pair of images."""
        return sum(prod(self.program.sizes[step.value]) ** 2 for step in self.instructions)

    def slots(self) -> dict[int, int]:
        """Where each value lies: places are used again, convolutions do not work in place."""
        found: dict[int, int] = {}
        free: list[int] = []
        count = 0
        for step in self.instructions:
            after = list(step.frees)
            if step.kind != Kind.AFFINE:
                free += [found[k] for k in after]
            if not free:
                free.append(count)
                count += 1
            found[step.value] = free.pop()
            if step.kind == Kind.AFFINE:
                free += [found[k] for k in after]
        return found

    def offsets(self, reach: int | None) -> list[tuple[int, int]]:
        """Row offsets δ of the input, and how often each counts for an image with itself.

        There −δ mirrors δ: one of both is computed and counts twice, the other not at all.

        Args:
            reach: only smaller offsets are wanted; ``None`` if all are.
        """
        stride, height = self.program.strides[self.end], self.program.sizes[self.end][0]
        if self.wraps:
            return [(k, _times(k, (height - k) % height)) for k in range(height)]
        limit = height if reach is None else min(height, -(-reach // stride))
        return [(k * stride, _times(-k, k)) for k in range(1 - limit, limit)]


def _times(one: int, mirrored: int) -> int:
    return 1 if one == mirrored else 2 * (one < mirrored)


def stack_of(program: Program) -> Stack | None:
    """What the compiled kernel can do of a network; ``None`` if nothing."""
    borders = [
        k
        for k, step in enumerate(program.steps, start=1)
        if program.mixed[k] and not all(program.mixed[i] for i in step.inputs)
    ]
    if len(program.input_sizes) != 2 or len(borders) != 1:
        return None
    step = program.steps[borders[0] - 1]
    if not isinstance(step.layer, Pool) or len(step.inputs) != 1:
        return None
    try:
        instructions, wraps = _Lowering(program, step.inputs[0]).done()
    except _NotCompiledError:
        return None
    return Stack(program, instructions, borders[0], wraps)


class _NotCompiledError(Exception):
    """A layer is not among those that the compiled kernel has."""


class _Lowering:
    """Makes the instructions of one value.

    Args:
        program: the network.
        end: the value.
    """

    def __init__(self, program: Program, end: int):
        self._program, self._end = program, end
        self._steps = _ancestors(program, end)
        pads = {k: step for k, step in self._steps.items() if isinstance(step.layer, Pad)}
        self._padded = {k: step.inputs[0] for k, step in pads.items()}
        # Whether convolutions over several rows pad with zeros, whether circularly.
        self._paddings: set[bool] = set()

    def done(self) -> tuple[tuple[Instruction, ...], bool]:
        """The instructions, and whether padding is circular."""
        if self._end in self._padded:
            raise _NotCompiledError
        opposite = {INPUT: self._program.angles}
        found = [Instruction(Kind.INPUT, None, (), (), INPUT, opposite[INPUT])]
        last = {i: k for k, step in self._steps.items() for i in self._reads(step)}
        for k, step in self._steps.items():
            if k in self._padded:
                continue
            reads = self._reads(step)
            follows = all(opposite[i] for i in reads)
            # A sum is as far from antipodes as the branch that is, up to the share of that.
            opposite[k] = follows and not isinstance(step.layer, Nonlinearity)
            frees = frozenset(i for i in reads if last[i] == k)
            raw = Instruction(Kind.SUM, step.layer, reads, step.inputs, k, follows, frees=frees)
            found.append(self._instruction(step, raw))
        if len(self._paddings) > 1:
            raise _NotCompiledError
        return tuple(found), self._paddings == {True}

    def _reads(self, step: Step) -> tuple[int, ...]:
        return tuple(self._padded.get(i, i) for i in step.inputs)

    def _instruction(self, step: Step, raw: Instruction) -> Instruction:
        """With the kind, windows and numbers of the step's layer."""
        layer = step.layer
        pads = [i for i in step.inputs if i in self._padded]
        if any(i in self._padded for i in raw.reads) or (pads and not isinstance(layer, Affine)):
            raise _NotCompiledError
        if isinstance(layer, Affine):
            return self._affine(layer, step.inputs[0], raw)
        if isinstance(layer, Scale):
            return replace(raw, kind=Kind.SCALE, numbers=(layer.factor**2,))
        if isinstance(layer, Nonlinearity):
            kind, numbers = _nonlinearity(layer, self._program.angles)
            return replace(raw, kind=kind, numbers=numbers)
        if isinstance(layer, Sum) and len(set(raw.reads)) == 2 == len(raw.reads):
            return raw
        raise _NotCompiledError

    def _affine(self, layer: Affine, read: int, raw: Instruction) -> Instruction:
        windows = layer.windows or (Window(1), Window(1))
        layer = replace(layer, windows=windows)
        if read in self._padded:
            pad = self._steps[read].layer
            assert isinstance(pad, Pad)
            padded = _zeros if pad.shifts else _circular
            sizes = self._program.sizes[raw.reads[0]]
            windows = tuple(map(padded, windows, pad.sources, sizes))
            circular = not pad.shifts
            if circular and self._program.sizes[raw.value] != sizes:
                raise _NotCompiledError
            self._paddings.add(circular)
        elif windows != (Window(1), Window(1)):
            self._paddings.add(False)
        rates, taps = layer.rates, prod(w.size for w in windows)
        ratio = rates.weight_rate / rates.weight
        numbers = (
            rates.weight / taps,
            rates.bias,
            ratio,
            rates.bias_rate - ratio * rates.bias,
        )
        return replace(raw, kind=Kind.AFFINE, layer=layer, windows=windows, numbers=numbers)


def _ancestors(program: Program, end: int) -> dict[int, Step]:
    """Steps that a value depends on, in order, by the values that they make."""
    found: set[int] = set()
    wanted = [end]
    while wanted:
        k = wanted.pop()
        if k != INPUT and k not in found:
            found.add(k)
            wanted += program.steps[k - 1].inputs
    return {k: program.steps[k - 1] for k in sorted(found)}


def _zeros(window: Window, source: Sequence[int], count: int) -> Window:
    """The window with zeros before it, its own and others."""
    if sum(k >= 0 for k in source) != count:
        raise _NotCompiledError
    return replace(window, padding=window.padding + source.index(0))


def _circular(window: Window, source: Sequence[int], count: int) -> Window:
    """The window with the circular padding that comes before it."""
    before = -source[0] % count
    padded = tuple((k - before) % count for k in range(len(source)))
    if padded != tuple(source) or window != Window(window.size, dilation=window.dilation):
        raise _NotCompiledError
    return replace(window, padding=before)


def _nonlinearity(layer: Nonlinearity, angles: bool) -> tuple[Kind, tuple[float, ...]]:
    dual = layer.dual
    if isinstance(dual, PiecewiseLinear):
        r = pi * dual.kink / dual.square
        mean = (dual.negative + dual.positive) / 2
        if r >= FAR_FROM_ANTIPODES:
            numbers = (r, dual.square, dual.kink, dual.at_zero * mean, dual.at_zero**2)
            return Kind.PIECEWISE, numbers
    elif isinstance(dual, Erf) and not angles:
        square = 2 * dual.a**2 / pi
        return Kind.ERF, (2 * dual.b**2, square, 2 * dual.b**2 * square, dual.c**2)
    raise _NotCompiledError

"""Both kernels after the first pooling, by the compiled kernel."""

from collections.abc import Sequence

import torch
from torch import Tensor

from Models.infinite.compiled.stack import Instruction, Kind, Stack
from Models.infinite.layers.affine import Affine, not_zero
from Models.infinite.layers.layer import Sides, State, View
from Models.infinite.layers.pointwise import Sum
from Models.infinite.layers.positions import Pool
from Models.infinite.layout import Layout
from Models.infinite.program import INPUT

_TOGETHER = 5
"""Features are read so many at a time; as in numerics.h."""

_GROUPS = 4
"""Partial sums per pair, whatever the number of threads; as in slab.cpp."""


def pooled(
    stack: Stack,
    sides: dict[int, Sides],
    inputs: tuple[Tensor, Tensor],
    tangent: bool,
    same: Tensor | None,
    reach: int | None,
) -> State:
    """q and t after pooling, in the layout of all pairs.

    Args:
        stack: the layers; the library is loaded.
        sides: variances of all values up to the pooling.
        inputs: of both sides, unit vectors where angles are followed, else numbers over √C:
            [C, H, W, n] and [C, H, W, m]; float32 or float64, on the CPU.
        tangent: whether the tangent kernel is asked for.
        same: which pairs are twice one image, [n, m], or ``None``.
        reach: only smaller row offsets are wanted; ``None`` if all are.
    """
    program, (n, m) = stack.program, (x.shape[-1] for x in inputs)
    pool = program.steps[stack.pool - 1].layer
    assert isinstance(pool, Pool)
    features = [_features(step, sides, inputs, program.angles) for step in stack.instructions]
    maps = [_maps(stack, sides, features, side) for side in (0, 1)]
    table, has_tangent = _table(stack, sides, tangent)
    slots = stack.slots()
    numbers = [[*step.numbers, *[0.0] * (5 - len(step.numbers))] for step in stack.instructions]
    tables = [
        table,
        torch.tensor(numbers, dtype=torch.float64),
        torch.tensor([size if len(size) == 2 else (0, 0) for size in program.sizes]),
        torch.tensor(program.strides),
        torch.tensor([one.shape[2] for one, _ in features]),
        *(torch.tensor(w, dtype=torch.float64) for w in pool.weights),
        torch.tensor(stack.offsets(reach)),
        torch.zeros(n, m, dtype=torch.bool) if same is None else same.contiguous(),
    ]
    end = [1 + max(slots.values()), program.angles, stack.wraps, stack.end, slots[stack.end]]
    shape = (n, m, _GROUPS, 1 + has_tangent, *2 * program.sizes[stack.pool])
    sums = torch.zeros(shape, dtype=torch.float64)
    torch.ops.learning_mechanics_slab.pooled(
        tables, maps[0], maps[1], [*map(int, end), int(has_tangent)], sums
    )
    found = sums.sum(2).to(inputs[0].dtype).permute(2, 3, 4, 5, 6, 0, 1).contiguous()
    return State(found[0], None, found[1] if has_tangent else None)


def _features(
    step: Instruction, sides: dict[int, Sides], inputs: tuple[Tensor, Tensor], angles: bool
) -> tuple[Tensor, Tensor]:
    """What 1 − α·α' is found from, of both sides: [n, H, F, W], F a multiple of five."""
    if step.kind == Kind.INPUT:
        one, other = inputs
    elif isinstance(step.layer, (Affine, Sum)) and angles:
        known = tuple(sides[k] for k in step.sides)
        view = View((), Layout(), known, sides[step.value], tangent=False, same=None)
        one, other = step.layer.features(view)
    else:
        none = inputs[0].new_empty(0, 0, 0, 0)
        return none, none
    return _rows(one), _rows(other)


def _rows(features: Tensor) -> Tensor:
    missing = -len(features) % _TOGETHER
    zeros = features.new_zeros(missing, *features.shape[1:])
    return torch.cat([features, zeros]).permute(3, 1, 0, 2).contiguous()


def _maps(
    stack: Stack, sides: dict[int, Sides], features: Sequence[tuple[Tensor, Tensor]], side: int
) -> list[Tensor]:
    """Standard deviations of values [n, H, W]; by instruction, what nonlinearities divide by and
    features."""
    none = features[0][side].new_empty(0)
    read = {INPUT, stack.end} | {step.value for step in stack.instructions}
    count = len(stack.program.sizes)
    roots = [_images(sides[k].roots[side]) if k in read else none for k in range(count)]
    divisors = []
    for step in stack.instructions:
        divisor = none
        if step.kind == Kind.PIECEWISE:
            divisor = 1 / not_zero(roots[step.reads[0]])
        elif step.kind == Kind.ERF:
            known = sides[step.reads[0]]
            variance = _images((known.one, known.other)[side])
            divisor = (1 + step.numbers[0] * variance).sqrt()
        divisors.append(divisor)
    return [*roots, *divisors, *(both[side] for both in features)]


def _images(x: Tensor) -> Tensor:
    return x.movedim(-1, 0).contiguous()


def _table(stack: Stack, sides: dict[int, Sides], tangent: bool) -> tuple[Tensor, bool]:
    """The instructions, in the columns of plan.h; whether the end has a tangent kernel."""
    slots = stack.slots()
    has = {INPUT: False}
    rows = []
    for step in stack.instructions:
        reads = [*step.reads, INPUT, INPUT][:2]
        tangents = [has[k] and k in step.reads for k in reads]
        has[step.value] = tangent and (step.kind == Kind.AFFINE or any(tangents))
        zeros = step.kind == Kind.PIECEWISE and sides[step.reads[0]].has_zero
        row = [step.kind, slots[step.value], *(slots[k] for k in reads), reads[0], step.value]
        row += [*tangents, has[step.value], step.opposite, zeros]
        for w in step.windows or ():
            row += [w.size, w.stride, w.padding, w.dilation]
        rows.append([int(x) for x in row + [0] * (19 - len(row))])
    return torch.tensor(rows), has[stack.end]

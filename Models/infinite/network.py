"""The kernels of an infinitely wide network, tile by tile."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from Models.infinite.compiled.library import is_loaded, is_wanted
from Models.infinite.compiled.stack import Stack, stack_of
from Models.infinite.engine import Examples, Tile, mode_of, numbers_per_pair
from Models.infinite.layout import NEAR
from Models.infinite.program import Program
from Models.infinite.tiles import Filling, Keeper, Kernel, Nowhere, Plan, size_of, twins
from Utils.errors import UserError
from Utils.gram import gram

Progress = Callable[[int, int], None]
"""Called after each tile with the pairs done and all of them."""

BLOCK = {"cpu": 1 << 17, "cuda": 1 << 22}
"""Numbers in the largest block: what fits a core's cache, and what keeps a GPU busy."""

COMPILED_FROM = 1 << 25
"""Entries of all layers' blocks from which the compiled kernel is used: a third of a second."""

_HELD = 1 << 21
"""Numbers that it reads of all images of a tile, about."""

_BLOCKS = 8
"""Blocks that are alive at a time, about."""

_MAPS = 12
"""Numbers per position that the compiled kernel reads of an image, about."""


@dataclass(frozen=True)
class Kernels:
    """Of two sets of examples.

    Attributes:
        nngp: covariance of each output at initialisation, [n, m]; ``None`` if not asked for.
        ntk: tangent kernel of each output, the mean over outputs of a finite network's; likewise.
    """

    nngp: Tensor | None
    ntk: Tensor | None


@dataclass(frozen=True)
class Forecast:
    """What kernels will cost.

    Attributes:
        seconds: extrapolated from one tile.
        result_bytes: of the kernels asked for.
        working_bytes: of everything else, about.
        pairs: of examples to be computed.
        mode: "diagonal", "full" or "stream": which pairs of positions are held at a time.
    """

    seconds: float
    result_bytes: int
    working_bytes: int
    pairs: int
    mode: str


class InfiniteNetwork:
    """A network of infinite width.

    Args:
        program: its layers.
        input_shape: of one example.

    Attributes:
        begins_at_zero: whether its initial outputs vanish, though its layers do not tell so.
    """

    def __init__(self, program: Program, input_shape: Sequence[int]):
        self.program, self.input_shape = program, tuple(input_shape)
        self.begins_at_zero = False

    @torch.no_grad()
    def kernels(
        self,
        x1: Tensor,
        x2: Tensor | None = None,
        get: Sequence[Kernel] = ("nngp", "ntk"),
        dtype: torch.dtype | None = None,
        progress: Progress | None = None,
        block: int | None = None,
        keeper: Keeper | None = None,
    ) -> Kernels:
        """Both kernels of all pairs, on the device of ``x1``.

        Of one set of examples only the upper triangle of tiles is computed.

        Args:
            x1: [n, *input_shape].
            x2: [m, *input_shape]; ``None`` is ``x1`` itself, each example being its own twin.
            get: which kernels.
            dtype: float32 or float64; that of ``x1`` if left out.
            progress: called after each tile.
            block: numbers in the largest block; the result does not depend on it, time and
                memory do.
            keeper: of tiles, from which the computation goes on, for :meth:`tiling`.

        Raises:
            UserError: examples of another shape, an unknown kernel or another number format.
        """
        self._check(x1, x2, get)
        dtype = dtype or (x1.dtype if x1.is_floating_point() else torch.float32)
        if dtype not in NEAR:
            raise UserError(f"kernels: dtype {dtype} is not float32 or float64; choose one")
        x1 = x1.to(dtype)
        x2 = None if x2 is None else x2.to(x1)
        plan = self._plan(len(x1), None if x2 is None else len(x2), x1.device, block)
        return self._computed(x1, x2, get, plan, progress, keeper)

    def _computed(
        self,
        x1: Tensor,
        x2: Tensor | None,
        get: Sequence[Kernel],
        plan: Plan,
        progress: Progress | None = None,
        keeper: Keeper | None = None,
    ) -> Kernels:
        n, m = len(x1), len(x1 if x2 is None else x2)
        kinds: tuple[Kernel, ...] = ("nngp", "ntk")
        found = {kernel: x1.new_empty(n, m) for kernel in kinds if kernel in get}
        cosines = self._cosines(x1) if x2 is None else None
        filling = Filling(plan, found, x2 is None, keeper or Nowhere())
        try:
            for rows, columns, one, other in self._tiles(x1, x2, plan, filling.missing()):
                same = twins(rows, columns) if x2 is None else None
                known = None if cosines is None else cosines[rows, columns]
                tile = Tile(self.program, one, other, "ntk" in get, same, plan.stack)
                state = tile.run(cosines=known)
                filling.fill(rows, columns, {"nngp": state.q, "ntk": state.t})
                if progress is not None:
                    progress(filling.done + size_of(rows, columns), filling.total)
        except KeyboardInterrupt:
            filling.keep(is_last=True)
            raise
        if self.begins_at_zero and "nngp" in found:
            found["nngp"].zero_()
        return Kernels(found.get("nngp"), found.get("ntk"))

    @torch.no_grad()
    def forecast(
        self,
        n: int,
        m: int | None = None,
        get: Sequence[Kernel] = ("nngp", "ntk"),
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        block: int | None = None,
    ) -> Forecast:
        """Time and memory of the kernels of n examples, or of n and m, from one tile.

        Args:
            n: examples of side 1.
            m: of side 2; ``None`` where it is side 1.
            get: which kernels.
            dtype: of the computation.
            device: where it runs.
            block: as in :meth:`kernels`.
        """
        plan = self._plan(n, m, torch.device(device), block)
        rows, columns = min(plan.rows, n), min(plan.columns, m or n)
        shape = (max(rows, columns), *self.input_shape)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype).to(device)
        seconds = []
        for _ in range(2):  # the first warms up
            start = time.perf_counter()
            found = self._computed(x[:rows], x[:columns], get, plan)
            _ = [float(k[0, 0]) for k in (found.nngp, found.ntk) if k is not None]
            seconds.append(time.perf_counter() - start)
        pairs = plan.pairs(n, m)
        item = torch.finfo(dtype).bits // 8
        held = self._per_example() * (rows + columns) * (_MAPS if plan.stack else 1)
        held += _BLOCKS * rows * columns * numbers_per_pair(self.program, plan.stack)
        return Forecast(
            min(seconds) * pairs / (rows * columns),
            len(get) * n * (m or n) * item,
            held * item + (0 if m is not None or self.program.input_sizes else n * n * item),
            pairs,
            mode_of(self.program),
        )

    def tiling(self, n: int, m: int | None, device: torch.device) -> str:
        """Into which tiles a kernel is cut, and who computes them; its bits depend on it."""
        return str(self._plan(n, m, device, None))

    def _check(self, x1: Tensor, x2: Tensor | None, get: Sequence[Kernel]) -> None:
        for x in (x1,) if x2 is None else (x1, x2):
            if tuple(x.shape[1:]) != self.input_shape or len(x) == 0:
                raise UserError(
                    f"kernels: examples of shape {list(x.shape)} are not [n, "
                    f"{', '.join(map(str, self.input_shape))}]; give such, at least one"
                )
        if not get or set(get) - {"nngp", "ntk"}:
            raise UserError(f"kernels: get={tuple(get)} is unknown; use 'nngp', 'ntk' or both")

    def _plan(self, n: int, m: int | None, device: torch.device, block: int | None) -> Plan:
        stack = self._stack(n * (n + 1) // 2 if m is None else n * m, device)
        count = numbers_per_pair(self.program, stack)
        block = block or BLOCK.get(device.type, BLOCK["cpu"])
        pairs = max(1, block // count)
        if mode_of(self.program) == "diagonal":
            side = max(1, int(pairs**0.5))
            return Plan(side, side, None)
        # Where all pairs of positions are held, rows would be copied.
        if stack is not None:
            pairs = min(pairs, max(1, _HELD // (_MAPS * self._per_example())))
        return Plan(1, pairs, stack)

    def _per_example(self) -> int:
        """Numbers of all maps of an example."""
        return sum(prod(sizes) for sizes in self.program.sizes)

    def _stack(self, pairs: int, device: torch.device) -> Stack | None:
        """What the compiled kernel does, where it is worth compiling."""
        if device.type != "cpu" or mode_of(self.program) == "diagonal":
            return None
        stack = stack_of(self.program)
        if stack is None or pairs * stack.numbers < COMPILED_FROM:
            return None
        return stack if is_wanted() and is_loaded() else None

    def _cosines(self, x: Tensor) -> Tensor | None:
        """Of all pairs at once, where examples have no positions."""
        if self.program.input_sizes:
            return None
        flat = x.flatten(1)
        norm = flat.norm(dim=1, keepdim=True)
        return gram(flat / torch.where(norm == 0, 1, norm))

    def _tiles(
        self,
        x1: Tensor,
        x2: Tensor | None,
        plan: Plan,
        missing: Iterator[tuple[slice, slice]],
    ) -> Iterator[tuple[slice, slice, Examples, Examples]]:
        right = x1 if x2 is None else x2
        # Without positions they are views and few numbers, and what kernels of examples with
        # themselves tell is expensive; others are cheaper to find again than to hold.
        hold = not self.program.input_sizes or self.program.reads_own_mixture
        held: dict[int, Examples] = {}
        top, one = -1, Examples(x1)
        for rows, columns in missing:
            if rows.start != top:
                top, one = rows.start, Examples.of(self.program, x1[rows], plan.stack)
            other = held.get(columns.start)
            if other is None:
                other = Examples.of(self.program, right[columns], plan.stack)
                if hold:
                    held[columns.start] = other
            yield rows, columns, one, other

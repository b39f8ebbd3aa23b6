"""In which pieces the work is done, so that what it needs at a time fits into the memory."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from Metrics.tangent.plan import Plan
from Metrics.tangent.terms import Term
from Utils.amounts import bytes_text
from Utils.errors import UserError

_MOST = 5 << 29
"""Bytes of temporaries on a CPU, unless told otherwise: ResNet-18 then stays below 4 GB."""


_PASSED = 192 << 20
"""Bytes in the network's passes at a time on a CPU: more only takes more fresh memory, which
costs more than the fewer calls save."""


_HELD = 32 << 20
"""Bytes of derivatives at a time on a CPU of which J is formed at once."""


_PART = 32 << 20
"""Most bytes of J at a time on a CPU: enough for fast products, and few fresh pages."""


@dataclass(frozen=True)
class Schedule:
    """The order of the work.

    Attributes:
        groups: of terms, whose stores fit into the memory together; the network is
            differentiated once for each.
        rows: blocks of examples on the left.
        columns: blocks on the right.
        chunk: examples that go through the network at a time.
        logits: whose derivatives are held at a time where J is formed from them at once.
        budget: bytes of J at a time.
        bytes_: of what is kept, and of what passes and contractions leave to each other: memory
            that one has returned is in pieces that seldom fit the other.
    """

    groups: list[list[Term]]
    rows: list[slice]
    columns: list[slice]
    chunk: int
    logits: int
    budget: int
    bytes_: int


def make_schedule(plan: Plan, size: tuple[int, int | None], like: Tensor, memory: int) -> Schedule:
    """Three quarters of the memory for stores, an eighth each for passes and for J.

    Args:
        plan: of the network.
        size: (N, M) examples; M is ``None`` if they are the same.
        like: a tensor on the network's device, in its number format.
        memory: bytes for temporaries.

    Raises:
        UserError: one example does not fit.
    """
    n, m = size
    scalar = like.dtype.itemsize
    each = passed(plan) * scalar
    chunk = memory // 8 // each
    if not chunk:
        raise UserError(
            f"one example needs {bytes_text(each)} in the network's passes, which may take "
            f"{bytes_text(memory // 8)}; give more memory, or use route='products'"
        )
    if like.device.type == "cpu":
        chunk = max(1, min(chunk, _PASSED // each))
    chunk = even(n, chunk)
    largest = max(plan.stored.values()) * scalar
    room = memory // 4 * 3
    if largest * (n + (m or 0)) <= room:
        rows, columns = [slice(0, n)], [slice(0, m or n)]
    else:
        block = max(1, room // (2 * largest))
        rows = blocks(n, block)
        columns = rows if m is None else blocks(m, block)
    held = rows[0].stop + (0 if m is None and len(rows) == 1 else columns[0].stop)
    groups = _groups(plan, held * scalar, room)
    logits, budget = plan.logits, memory // 8
    if like.device.type == "cpu":
        logits = even(logits, max(1, _HELD // max(1, chunk * plan.formed * scalar)))
        budget = min(budget, _PART)
    kept = held * max(sum(plan.stored[term] for term in group) for group in groups) * scalar
    passing = chunk * (plan.numbers + logits * plan.formed) * scalar
    bytes_ = kept + passing + min(budget, kept)
    return Schedule(groups, rows, columns, chunk, logits, budget, bytes_)


def passed(plan: Plan) -> int:
    """Numbers of an example in the network: outputs, gradients, derivatives not kept elsewhere."""
    again = any(term.kind == "jacobian" for term in plan.terms)
    return 3 * plan.numbers + plan.logits * (plan.numbers if again else plan.formed)


def blocks(length: int, size: int) -> list[slice]:
    """Consecutive slices of at most ``size``."""
    return [slice(low, min(low + size, length)) for low in range(0, length, size)]


def even(length: int, most: int) -> int:
    """The size of blocks of about equal size, none larger than ``most``."""
    return -(-length // -(-length // most))


def _groups(plan: Plan, scale: int, room: int) -> list[list[Term]]:
    """Consecutive terms whose stored numbers times ``scale`` fit into ``room`` bytes."""
    groups: list[list[Term]] = [[]]
    filled = 0
    for term in plan.terms:
        size = plan.stored[term] * scale
        if groups[-1] and filled + size > room:
            groups.append([])
            filled = 0
        groups[-1].append(term)
        filled += size
    return groups


def default_memory(device: torch.device) -> int:
    """Bytes of temporaries: half of what is free, on a CPU at most 2.5 GiB."""
    free = available_memory(device)
    return free // 2 if device.type == "cuda" else min(free // 2, _MOST)


def available_memory(device: torch.device) -> int:
    """Bytes that are free on a device; where the system does not tell, 4 GiB.

    Args:
        device: of the network.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return min(_free() or [4 << 30])


def _free() -> list[int]:
    """What the system and the control group of the process leave."""
    found = []
    information = Path("/proc/meminfo")
    if information.exists():
        lines = dict(line.split(":") for line in information.read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) << 10)
    limit, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit.exists() and (text := limit.read_text().strip()) != "max":
        found.append(int(text) - int(used.read_text()))
    return found

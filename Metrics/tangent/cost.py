"""What a tangent kernel will cost, before any work.

Seconds are floating point operations, bytes and calls over the rates of this machine, which are
measured once in a process, in a tenth of a second.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from Metrics.tangent.contraction import accumulating
from Metrics.tangent.jacobian import rows_at_once
from Metrics.tangent.network import Network, look_at
from Metrics.tangent.passes import record
from Metrics.tangent.plan import Plan, make_plan
from Metrics.tangent.routes import Form, Route, check_choice, choose
from Metrics.tangent.schedule import blocks, default_memory, make_schedule, passed

_FORWARD, _BACKWARD = 4, 8
"""How often a number passes through memory on its way through the network, and back."""

_PROBE, _TERM, _VMAP = 10, 10, 15
"""Calls that take as long as the check on two examples (of each call of the network), as the
contraction of a parameter, and as a call that is differentiated under ``vmap``."""


_COPIES = 3
"""How often fresh memory is taken for rows of J under ``vmap``."""


@dataclass(frozen=True)
class Forecast:
    """The work ahead.

    Attributes:
        flops: floating point operations: two per multiply-add.
        bytes_: of memory at the peak, beside the model and the inputs.
        seconds: of this machine: processor time, or time on the accelerator.
    """

    flops: float
    bytes_: float
    seconds: float


@dataclass(frozen=True)
class _Work:
    """In passes through the network and in contractions."""

    passes: float
    contractions: float
    traffic: float
    fresh: float
    calls: float


@dataclass(frozen=True)
class Rates:
    """Of a device and number format, per second; and seconds of a call.

    Attributes:
        convolution: multiply-adds and additions of one that is differentiated by its input.
        product: the same of a matrix product.
        traffic: bytes read and written.
        fresh: bytes of memory that the system hands out anew.
        call: seconds of one that does nearly nothing.
    """

    convolution: float
    product: float
    traffic: float
    fresh: float
    call: float


def forecast(
    model: nn.Module,
    inputs: Tensor,
    others: Tensor | None = None,
    *,
    form: Form = "traced",
    per_layer: bool = False,
    route: Route = "auto",
    memory: int | None = None,
) -> Forecast:
    """What :func:`Metrics.tangent.tangent_kernel` would cost with the same arguments.

    The network sees two examples; everything else follows from shapes.

    Raises:
        UserError: as the kernel itself, except for want of memory.
    """
    check_choice("form", form, Form)
    network = look_at(model, inputs)
    columns = None if others is None else len(others)
    plan = make_plan(network, inputs, columns, form == "traced", count=True)
    memory = default_memory(inputs.device) if memory is None else memory
    chosen = choose(network, plan, route, memory)
    work = _works(network, plan, chosen, per_layer, memory)
    like = next(iter(network.parameters.values()))
    rates = measured_rates(like.device, like.dtype)
    flops = 2 * (work.passes + work.contractions)
    seconds = 2 * work.passes / rates.convolution + 2 * work.contractions / rates.product
    seconds += work.traffic / rates.traffic + work.fresh / rates.fresh
    seconds += work.calls * rates.call
    return Forecast(flops, needed_bytes(network, plan, chosen, per_layer, memory), seconds)


def needed_bytes(network: Network, plan: Plan, route: str, per_layer: bool, memory: int) -> float:
    """Bytes of the result and of temporaries.

    Args:
        network: whose kernel it is.
        plan: of the network.
        route: that is taken.
        per_layer: whether the layers are kept apart.
        memory: bytes for temporaries.
    """
    like = next(iter(network.parameters.values()))
    sizes = plan.sizes
    scalar = accumulating(like.dtype).itemsize
    numbers = sizes.rows * sizes.columns * (1 if sizes.traced else sizes.logits**2)
    kernels = (len(network.layers) + 1) if per_layer else 1
    if route == "structured":
        columns = None if sizes.symmetric else sizes.columns
        temporaries = make_schedule(plan, (sizes.rows, columns), like, memory).bytes_
    else:
        stored = sum(plan.stored.values()) + passed(plan)
        temporaries = min(memory, 2 * stored * sizes.examples * scalar)
    return kernels * numbers * scalar + temporaries


def _works(network: Network, plan: Plan, route: str, per_layer: bool, memory: int) -> _Work:
    sizes, c = plan.sizes, plan.logits
    parameters = list(network.parameters.values())
    numbers, scalar = sum(p.numel() for p in parameters), parameters[0].element_size()
    blocks_of_logits = c if sizes.traced else c * c
    kernel = sizes.rows * sizes.columns * (1 if sizes.traced else c * c) * scalar
    gram = sizes.pairs * blocks_of_logits * numbers
    there, back = _FORWARD * plan.numbers * scalar, _BACKWARD * plan.numbers * scalar
    first = _PROBE * plan.calls + _TERM * len(plan.terms)
    if route == "products":
        layers = len(network.layers) if per_layer else 1
        pairs = float(sizes.columns * c * sizes.rows * (1 + layers))
        calls: float = sizes.columns * c * plan.calls * (2 + 2 * layers)
        products = pairs * numbers / sizes.rows
        traffic = pairs * back + sizes.columns * c * _BACKWARD * numbers * scalar
        return _Work(3 * pairs * plan.flops, products, traffic, kernel, calls + first)
    if route == "jacobian":
        size, chunk = rows_at_once(network, plan, memory)
        seen = _seen(sizes.rows, None if sizes.symmetric else sizes.columns, size)
        batch = sizes.rows if network.couples_examples else 1
        passes = seen * (1 + 2 * c * batch) * plan.flops
        traffic = seen * (there + c * (4 * batch * back + 8 * numbers * scalar))
        chunks = seen * c if network.couples_examples else _VMAP * -(-seen // chunk)
        fresh = kernel + _COPIES * seen * c * numbers * scalar
        return _Work(passes, gram, traffic, fresh, chunks * plan.calls + first)
    columns = None if sizes.symmetric else sizes.columns
    schedule = make_schedule(plan, (sizes.rows, columns), parameters[0], memory)
    seen = _seen(sizes.rows, columns, schedule.rows[0].stop) * len(schedule.groups)
    stored = 4 * sum(plan.stored.values()) * scalar
    again = sum(1 for term in plan.terms if term.kind == "jacobian") > 0
    share = (len(schedule.groups) + 1) / (2 * len(schedule.groups))  # how deep passes go back
    traffic = seen * (there + share * c * back) + sizes.examples * stored
    calls = -(-seen // schedule.chunk) * (2 + c) * plan.calls + first
    passes = seen * (1 + share * c) * (3 if again else 1) * plan.flops
    fresh = kernel + seen / sizes.examples * schedule.bytes_
    return _Work(passes, sum(plan.work.values()), traffic, fresh, calls)


def _seen(rows: int, columns: int | None, block: int) -> float:
    """Examples that are differentiated, if pairs of blocks are taken."""
    parts = len(blocks(rows, block))
    if columns is None:
        return rows * (parts + 1) / 2
    return rows + columns * parts


# ---------------------------------------------------------------------- this machine


_FRESH = 40 << 20
"""Bytes that C libraries return to the system as soon as they are free."""


@lru_cache
def measured_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """What a device reaches in one process; about 0.1 s when first asked.

    Args:
        device: of the network.
        dtype: of the network.
    """
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    images, kernels = random(8, 32, 16, 16), random(32, 32, 3, 3)
    left, right = random(512, 512), random(512, 512)
    large = random(1 << 21)
    layers = nn.Sequential(*(nn.Linear(2, 2) for _ in range(16))).to(device, dtype)
    few, weights = random(2, 2), list(layers.parameters())

    def passes() -> None:
        torch.autograd.grad(record(Network(layers), few).logits.sum(), weights)

    differentiated = images.clone().requires_grad_()
    slopes = functional.conv2d(differentiated, kernels, padding=1)
    ones = torch.ones_like(slopes)

    def back() -> None:
        torch.autograd.grad(slopes, differentiated, ones, retain_graph=True)

    convolution = _seconds(device, back)
    product = _seconds(device, lambda: left @ right)
    return Rates(
        2 * 8 * 32 * 32 * 9 * 256 / convolution,
        2 * 512**3 / product,
        3 * large.numel() * large.element_size() / _seconds(device, lambda: large + large),
        _FRESH / _seconds(device, lambda: torch.zeros(_FRESH, dtype=torch.uint8, device=device)),
        _seconds(device, passes) / 32,
    )


def _seconds(device: torch.device, call: Callable[[], object]) -> float:
    """The least of several runs."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    times = []
    for _ in range(5):
        start = clock()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(clock() - start)
    return max(min(times[1:]), 1e-9)

"""Measuring the runs of an experiment: every run once at every step, by one of several workers."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial

from Metrics.config import CacheConfig
from Metrics.registry import METRICS
from Metrics.width.infinite import HasLimit, limit_at, refused
from Metrics.width.layout import FAN_IN, FAN_OUT
from Metrics.width.members import Member
from Metrics.width.metric import Quantity, Values, WidthMetric
from Metrics.width.network import AGAIN, Network
from Metrics.width.store import Measurements
from Utils.errors import Unreachable, UserError
from Utils.logging import progress
from Utils.storage import open_hdf5
from Utils.workers import Failure, shared_out

_Job = tuple[Member, Mapping[int, tuple[str, ...]]]
"""A run, and by step the metrics that have to be measured there."""

_Found = Mapping[int, Mapping[str, Values | None]]


def measure(
    config: CacheConfig, members: Sequence[Member], stored: Mapping[str, Measurements]
) -> tuple[int, dict[str, set[str]], dict[str, UserError]]:
    """Measure what is not stored.

    Args:
        config: the command line.
        members: the runs.
        stored: by metric; what was measured is added.

    Returns:
        how many checkpoints were new; by metric, the runs whose features lack the outputs that it
        reads, which are looked at again the next time; and what failed, by run.
    """
    sources, failed = _sources(members)
    for measured in stored.values():
        measured.keep(sources)
    outside = {name: refused(METRICS[name].load()(), members) for name in stored}
    jobs = []
    for member in members:
        missing: dict[int, tuple[str, ...]] = {}
        for step in member.steps:
            key = (member.name, step)
            wanted = [n for n in stored if key in sources and member.name not in outside[n]]
            new_here = tuple(n for n in wanted if key not in stored[n].sources)
            missing |= {step: new_here} if new_here else {}
        if missing and member.name not in failed:
            jobs.append((member, missing))
    make = partial(_Computation, config)
    new, lacking = 0, {name: set[str]() for name in stored}
    with closing(shared_out(make, jobs, config.workers, _name)) as each:
        for (member, _), found in progress(each, "measuring", len(jobs)):
            if isinstance(found, Failure):
                if isinstance(found.error, Unreachable):
                    raise found.error
                failed[member.name] = found.error
                continue
            for step, by_metric in found.items():
                new += any(values is not None for values in by_metric.values())
                for name, values in by_metric.items():
                    source = sources[member.name, step]
                    if values is None:
                        lacking[name].add(member.name)
                    else:
                        stored[name].add(member.name, step, source, values)
    return new, lacking, failed


def _sources(
    members: Sequence[Member],
) -> tuple[dict[tuple[str, int], str], dict[str, UserError]]:
    """What identifies the checkpoint of every run and step, and which runs are unreadable."""
    sources: dict[tuple[str, int], str] = {}
    failed: dict[str, UserError] = {}
    for member in members:
        try:
            of_run = {(member.name, step): _source(member, step) for step in member.steps}
        except Unreachable:
            raise
        except UserError as error:
            failed[member.name] = error
        else:
            sources |= of_run
    return sources, failed


def _source(member: Member, step: int) -> str:
    path = member.run.features(step)
    tagged = member.run.tags(path).get("source")
    if tagged is not None:
        return tagged
    with open_hdf5(member.run.fetch(path), AGAIN) as file:
        return str(file.attrs["source"])


def _name(job: _Job) -> str:
    return str(job[0].run.path)


class _Computation:
    """Measures one run after another.

    Args:
        config: the command line.
    """

    def __init__(self, config: CacheConfig):
        self._config = config
        self._metrics: dict[str, WidthMetric] = {
            name: METRICS[name].load()() for name in config.metric_names()
        }

    def __call__(self, job: _Job) -> _Found:
        """Raises ``UserError`` if a file is damaged or the network cannot be built."""
        member, missing = job
        if member.is_infinite:
            return {step: self._of_limit(member, step, names) for step, names in missing.items()}
        network = Network(member, self._config)
        found: dict[int, dict[str, Values | None]] = {}
        for step, names in missing.items():
            with network.at(step) as checkpoint:
                found[step] = {n: self._metrics[n].measure(checkpoint) for n in names}
                for name, values in found[step].items():
                    if step == 0 and values is not None and self._metrics[name].reads_layers:
                        found[step][name] = {**_fans(network), **values}
        return found

    def _of_limit(
        self, member: Member, step: int, names: Sequence[str]
    ) -> dict[str, Values | None]:
        found: dict[str, Values | None] = {}
        with limit_at(member, step) as limit:
            for name in names:
                metric = self._metrics[name]
                assert isinstance(metric, HasLimit)
                found[name] = metric.measure_limit(limit)
        return found


def _fans(network: Network) -> Values:
    """How many numbers one output of each layer reads, and how many outputs there are."""
    values: dict[Quantity, float] = {}
    for name, (weight, _) in network.initial.items():
        for what, count in zip((FAN_IN, FAN_OUT), (weight[0].numel(), len(weight)), strict=True):
            values[Quantity(what, name)] = float(count)
    return values

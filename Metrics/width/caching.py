"""From the features of an experiment's runs to exponents: one pass over runs and steps.

Every run is measured once at every step, by this process or one of several workers; what a
cache holds already is not measured again. Then exponents are fitted to all there is.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from Metrics.config import CacheConfig
from Metrics.registry import METRICS, MetricEntry
from Metrics.width.exponents import (
    MOST,
    Exponent,
    exponents_of,
    table_text,
    unconfirmed,
    write_csv,
)
from Metrics.width.members import Group, Member, grouped, read_members
from Metrics.width.metric import FAN_IN, FAN_OUT, Cells, Quantity, Values, WidthMetric
from Metrics.width.network import AGAIN, Network
from Metrics.width.store import Measurements, write
from Metrics.width.table import summary
from Metrics.width.theory import Fans, theory_of
from Utils.errors import Unreachable, UserError, left_out
from Utils.logging import progress, stage_logger
from Utils.rundir import ExperimentFolder, RunFolder
from Utils.storage import open_hdf5
from Utils.workers import Failure, shared_out


@dataclass(frozen=True)
class Findings:
    """What came of one metric.

    Attributes:
        metric: its name.
        path: of its cache.
        groups: the runs.
        exponents: of all groups.
        silent: why theory says nothing, by group.
    """

    metric: str
    path: Path
    groups: tuple[Group, ...]
    exponents: tuple[Exponent, ...]
    silent: Mapping[str, str]

    def text(self) -> str:
        """For the terminal: a table for each group."""
        lines = []
        for group in self.groups:
            own = [e for e in self.exponents if e.group == group.label]
            widths, seeds = ({getattr(m, n) for m in group.members} for n in ("width", "seed"))
            head = f"{self.metric}, {group.label}: widths {min(widths)} to {max(widths)}"
            reason = self.silent.get(group.label, "")
            told = f"no theory: {reason}" if reason else summary([e.verdict for e in own])
            some = f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
            lines += [f"{head} ({len(widths)}), {some}; {told}"]
            why = "exponents need two widths" if len(widths) == 1 else "nothing was measured"
            lines += [*_ended(group), *(table_text(own) if own else [why]), ""]
        return "\n".join(lines).rstrip()


def _ended(group: Group) -> Iterator[str]:
    """Which runs of a group have diverged, if any."""
    by_rate = Counter(float(m.flag("lr")) for m in group.members)
    ended = Counter(float(m.flag("lr")) for m in group.members if m.diverged is not None)
    if ended:
        where = ", ".join(f"{n} of {by_rate[lr]} at lr {lr:g}" for lr, n in sorted(ended.items()))
        yield f"{ended.total()} of {len(group.members)} runs diverged: {where}"


def cache_experiment(
    config: CacheConfig, experiment: ExperimentFolder, runs: Sequence[RunFolder]
) -> list[Findings]:
    """Bring the caches of an experiment up to the features of its runs.

    Args:
        config: which metrics.
        experiment: the folder of the caches.
        runs: all runs.

    Returns:
        what came of each metric.

    Raises:
        UserError: no run can be measured, or a cache is damaged; or some runs could not be
            measured, after all others were.
    """
    members, skipped = read_members(runs)
    log = stage_logger("cache", experiment.logs / "cache.log")
    for name, reason in skipped.items():
        log.info("%s is left out: %s", name, reason)
    if not any(member.steps for member in members):
        raise UserError(
            f"{experiment.path} has no run that can be measured; train runs of several --width "
            "and run extract.py for each"
        )
    with experiment.lock("cache"):
        entries = [METRICS[name] for name in config.metric_names()]
        paths = {e.name: experiment.fetch(experiment.cache(e.name, config.suffix)) for e in entries}
        stored = {name: Measurements(path, config.overwrite) for name, path in paths.items()}
        new, failed = _measure(config, members, stored)
        told = "%d new checkpoints of %d runs measured"
        log.info(told, new, sum(1 for member in members if member.steps))
        found = []
        for entry in entries:
            path = paths[entry.name]
            found.append(_fit(entry, path, members, stored[entry.name]))
            table = path.with_suffix(".csv")
            write_csv(table, found[-1].exponents)
            experiment.publish(path, table)
            log.info("%s", experiment.shown(table))
    if failed:
        raise left_out(failed, len(members))
    return found


def disagreement(found: Sequence[Findings]) -> bool:
    """Whether an exponent contradicts theory, or too few of a group agree; tells which.

    Raises:
        UserError: none could be compared.
    """
    exponents = [exponent for findings in found for exponent in findings.exponents]
    if not any(exponent.verdict for exponent in exponents):
        raise UserError(
            "--assert: no exponent has a prediction; train runs of at least two --width with an "
            "optimizer that theory knows"
        )
    wrong = [exponent for exponent in exponents if exponent.verdict == "contradicts"]
    log = stage_logger("cache")
    for e in wrong:
        where = " ".join(filter(None, (e.quantity.name, e.quantity.layer)))
        log.info("contradiction: %s, step %d of %s: %s", where, e.step, e.group, e.cell())
    few = unconfirmed(exponents)
    for text in few:
        log.info("%s; at least %.0f %% have to", text, 100 * MOST)
    return bool(wrong or few)


_Job = tuple[Member, Mapping[int, tuple[str, ...]]]
"""A run, and by step the metrics that have to be measured there."""

_Found = Mapping[int, Mapping[str, Values]]


def _measure(
    config: CacheConfig, members: Sequence[Member], stored: Mapping[str, Measurements]
) -> tuple[int, dict[str, UserError]]:
    """Measure what is not stored; returns how many checkpoints were new, and what failed."""
    sources, failed = _sources(members)
    for measured in stored.values():
        measured.keep(sources)
    jobs = []
    for member in members:
        missing: dict[int, tuple[str, ...]] = {}
        for step in member.steps:
            key = (member.name, step)
            lacking = tuple(n for n, m in stored.items() if key in sources and key not in m.sources)
            missing |= {step: lacking} if lacking else {}
        if missing and member.name not in failed:
            jobs.append((member, missing))
    make = partial(_Computation, config)
    new = 0
    with closing(shared_out(make, jobs, config.workers, _name)) as each:
        for (member, _), found in progress(each, "measuring", len(jobs)):
            if isinstance(found, Failure):
                if isinstance(found.error, Unreachable):
                    raise found.error
                failed[member.name] = found.error
                continue
            for step, by_metric in found.items():
                new += 1
                for name, values in by_metric.items():
                    source = sources[member.name, step]
                    stored[name].add(member.name, step, source, values)
    return new, failed


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
        network = Network(member, self._config)
        found: dict[int, dict[str, Values]] = {}
        for step, names in missing.items():
            with network.at(step) as checkpoint:
                found[step] = {n: dict(self._metrics[n].measure(checkpoint)) for n in names}
                for name in names:
                    if step == 0 and self._metrics[name].reads_layers:
                        found[step][name] = {**_fans(network), **found[step][name]}
        return found


def _fans(network: Network) -> Values:
    """How many numbers one output of each layer reads, and how many outputs there are."""
    values: dict[Quantity, float] = {}
    for name, (weight, _) in network.initial.items():
        for what, count in zip((FAN_IN, FAN_OUT), (weight[0].numel(), len(weight)), strict=True):
            values[Quantity(what, name)] = float(count)
    return values


def _fit(
    entry: MetricEntry, path: Path, members: Sequence[Member], stored: Measurements
) -> Findings:
    """Fit all exponents of a metric, and write its cache."""
    metric: WidthMetric = entry.load()()
    measured = [
        m
        for m in members
        if (m.name, 0) in stored.sources or (metric.counts_diverged and m.diverged is not None)
    ]
    groups = grouped(measured, metric.within)
    exponents: list[Exponent] = []
    silent: dict[str, str] = {}
    told: dict[str, dict[str, str]] = {}
    for group in groups:
        theory = theory_of(group, _fans_by_width(group, stored.cells))
        told[group.label] = theory.coordinates()
        if reason := metric.silence(group, theory):
            silent[group.label] = reason
        observations = metric.observations(group.members, stored.cells)
        exponents += exponents_of(metric, group.label, observations, theory)
    write(path, entry, stored, groups, exponents, told)
    return Findings(entry.name, path, tuple(groups), tuple(exponents), silent)


def _fans_by_width(group: Group, cells: Cells) -> dict[int, dict[str, Fans]]:
    width = {member.name: member.width for member in group.members}
    numbers: dict[tuple[int, str], dict[str, int]] = {}
    for cell, value in cells.items():
        if cell.quantity.name in (FAN_IN, FAN_OUT) and cell.run in width:
            layer = numbers.setdefault((width[cell.run], cell.quantity.layer), {})
            layer[cell.quantity.name] = int(value)
    fans: dict[int, dict[str, Fans]] = {}
    for (n, name), pair in numbers.items():
        fans.setdefault(n, {})[name] = (pair[FAN_IN], pair[FAN_OUT])
    return fans

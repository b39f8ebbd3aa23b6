"""From the features of an experiment's runs to exponents: one pass over runs and steps.

Every run is measured once at every step, by this process or one of several workers; what a
cache holds already is not measured again. Then exponents are fitted to all there is.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from Metrics.config import CacheConfig
from Metrics.registry import METRICS, MetricEntry
from Metrics.width.ensemble import Ensemble, Together
from Metrics.width.exponents import (
    MOST,
    Exponent,
    exponents_of,
    table_text,
    unconfirmed,
    write_csv,
)
from Metrics.width.infinite import refused
from Metrics.width.layout import FAN_IN, FAN_OUT
from Metrics.width.measuring import measure
from Metrics.width.members import Group, Member, grouped, read_members, strays
from Metrics.width.metric import Cells, WidthMetric
from Metrics.width.store import Measurements, write
from Metrics.width.table import summary
from Metrics.width.theory import Fans, theory_of
from Utils.errors import UserError, left_out
from Utils.logging import stage_logger
from Utils.rundir import ExperimentFolder, RunFolder


@dataclass(frozen=True)
class Findings:
    """What came of one metric.

    Attributes:
        metric: its name.
        path: of its cache.
        groups: the runs.
        exponents: of all groups.
        silent: why theory says nothing, by group.
        left_out: runs of infinite width that are the limit of no group, by the reason.
        lines: what is to be told besides exponents, by group.
    """

    metric: str
    path: Path
    groups: tuple[Group, ...]
    exponents: tuple[Exponent, ...]
    silent: Mapping[str, str]
    left_out: Mapping[str, Sequence[str]]
    lines: Mapping[str, Sequence[str]]

    def text(self) -> str:
        """For the terminal: a table for each group."""
        lines = []
        for group in self.groups:
            own = [e for e in self.exponents if e.group == group.label]
            widths, seeds = ({getattr(m, n) for m in group.members} for n in ("width", "seed"))
            several = f"widths {min(widths)} to {max(widths)}"
            span = several if len(widths) > 1 else f"width {min(widths)}"
            head = f"{self.metric}, {group.label}: {span}"
            reason = self.silent.get(group.label, "")
            told = f"no theory: {reason}" if reason else summary([e.verdict for e in own])
            some = f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
            limit = " and infinity" if group.limits else ""
            lines += [f"{head}{limit} ({len(widths)}), {some}; {told}"]
            why = "exponents need two widths" if len(widths) == 1 else "nothing was measured"
            table, more = table_text(own), self.lines.get(group.label, ())
            lines += [*_ended(group), *(table if own else [why] if not more else []), *more, ""]
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
    for line in config.without_effect():
        log.warning(line)
    for reason, runs_of_it in _by_reason(skipped).items():
        log.info("%s left out: %s", _named(runs_of_it), reason)
    if not any(member.steps for member in members if not member.is_infinite):
        raise UserError(
            f"{experiment.path} has no run that can be measured; train runs of several --width "
            "and run extract.py for each"
        )
    with experiment.lock("cache"):
        entries = [METRICS[name] for name in config.metric_names()]
        paths = {e.name: experiment.fetch(experiment.cache(e.name, config.suffix)) for e in entries}
        stored = {name: Measurements(path, config.overwrite) for name, path in paths.items()}
        new, lacking, failed = measure(config, members, stored)
        told = "%d new checkpoints of %d runs measured"
        log.info(told, new, sum(1 for member in members if member.steps))
        found = []
        for entry in entries:
            path = paths[entry.name]
            without = lacking[entry.name]
            if without:
                which = ", ".join(sorted(without)) if len(without) < 3 else f"{len(without)} runs"
                log.info(
                    "%s: %s without outputs on the probe batch; run extract.py --probe logits, "
                    "and then this again",
                    *(entry.name, which),
                )
            found.append(_fit(entry, path, members, stored[entry.name], without))
            for reason, names in found[-1].left_out.items():
                text = "%s: --width inf of %s left out: %s"
                log.info(text, entry.name, _named(names), reason)
            table = path.with_suffix(".csv")
            write_csv(table, found[-1].exponents)
            experiment.publish(path, table)
            log.info("%s", experiment.shown(table))
    if failed:
        raise left_out(failed, len(members))
    return found


def _by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """Runs by why they are left out, from why each one is."""
    found: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        found.setdefault(reason, []).append(name)
    return found


def _named(names: Sequence[str]) -> str:
    """Runs as the subject of a sentence."""
    if len(names) < 3:
        return " and ".join(names) + (" is" if len(names) == 1 else " are")
    return f"{len(names)} runs ({names[0]}, …) are"


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


def _fit(
    entry: MetricEntry,
    path: Path,
    members: Sequence[Member],
    stored: Measurements,
    lacking: Collection[str],
) -> Findings:
    """Fit all exponents of a metric, and write its cache; some members may lack its numbers."""
    metric: WidthMetric = entry.load()()
    outside = refused(metric, members)
    measured = [
        m
        for m in members
        if (m.name, 0) in stored.sources
        or m.name in lacking
        or (metric.counts_diverged and m.diverged is not None)
        if m.name not in outside
    ]
    groups = grouped(measured, metric.within)
    exponents: list[Exponent] = []
    ensembles: list[Together] = []
    lines: dict[str, Sequence[str]] = {}
    silent: dict[str, str] = {}
    told: dict[str, dict[str, str]] = {}
    for group in groups:
        theory = theory_of(group, _fans_by_width(group, stored.cells))
        told[group.label] = theory.coordinates()
        if reason := metric.silence(group, theory):
            silent[group.label] = reason
        observations = metric.observations(group.members, stored.cells)
        exponents += exponents_of(metric, group.label, observations, theory)
        if isinstance(metric, Ensemble):
            ensembles.append(metric.together(group, stored, theory))
            exponents += ensembles[-1].exponents
            lines[group.label] = ensembles[-1].lines
    write(path, entry, stored, groups, exponents, told, [one.tables for one in ensembles])
    alone = _by_reason(outside | strays(measured, groups, metric.within))
    return Findings(entry.name, path, tuple(groups), tuple(exponents), silent, alone, lines)


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

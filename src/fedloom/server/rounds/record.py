"""Makes the lines written for a round: its record, and its choice of clients."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence

from fedloom.core.history import Choice, NodeShare, RoundRecord, Timing, Traffic
from fedloom.core.records import ClientReport, Info, Mean, Metrics, metric_values
from fedloom.server.fleet.nodes import Node
from fedloom.server.rounds.choices import report_line
from fedloom.server.rounds.open_round import OpenRound

LEFT_OUT = "left_out"
"""Section of a record: metrics that some clients' numbers are no part of, and which clients; by what they are of."""


def round_choice(round: OpenRound) -> Choice:
    """Return the line for `choices.jsonl`."""
    trained_as_probed = any(report.num_trained for report in round.probed)
    return Choice(
        round=round.number,
        cohort=list(round.context.cohort),
        probed=[report_line(report) for report in round.probed],
        trained=[] if trained_as_probed else [report_line(report) for report in round.updates()],
        missed=round.missed(),
        population=round.roster.population,
    )


def round_record(
    round: OpenRound, shares: Mapping[str, NodeShare], timing: Timing, stale: int, info: Info
) -> RoundRecord:
    """Return the line for `rounds.jsonl`.

    Args:
        round: with all its phases done.
        shares: what each node did in it.
        timing: its `total_s` and `checkpoint_s`; the rest is known to the round.
        stale: results that arrived after their round had closed.
        info: the strategy's and the selection's own numbers.
    """
    reports = [*round.probed, *round.aggregated]
    metrics, left_out = sum_metrics(round.aggregated)
    missing = {about: names for about, names in (("training", left_out), ("evaluation", round.left_out)) if names}
    sections = {**round.sections, **({LEFT_OUT: missing} if missing else {})}
    worked = [report for report in reports if report.num_trained] or reports
    seconds: dict[str, float] = {}
    for report in worked:
        seconds[str(report.client)] = seconds.get(str(report.client), 0.0) + report.seconds
    return RoundRecord(
        round=round.number,
        cohort=round.sampled or list(round.context.cohort),
        candidates=[report.client for report in round.probed],
        probe={str(report.client): dict(_short(report.info)) for report in round.probed if report.info},
        num_examples=sum(report.num_examples for report in round.updates()),
        local_trainings=sum(report.num_trained for report in reports),
        metrics=metric_values(metrics),
        evaluation=round.evaluation,
        traffic=_traffic([*reports, *round.monitored], shares),
        timing=timing.model_copy(
            update={
                "waiting_s": round.counts.waiting_s,
                "aggregation_s": round.counts.aggregation_s,
                "evaluation_s": round.evaluation_s,
                "training_s": sum(report.seconds for report in worked),
            }
        ),
        client_seconds=seconds,
        failures=list(round.counts.failures),
        unneeded=round.superseded,
        refusals=dict(round.counts.refusals),
        stale=stale,
        duplicates=round.counts.duplicates,
        reassigned=round.counts.reassigned,
        restored=round.counts.restored,
        nodes=dict(shares),
        info=dict(info),
        monitor=dict(round.reading.info) if round.reading is not None else {},
        sections={feature: dict(values) for feature, values in sections.items()},
    )


def _traffic(reports: Sequence[ClientReport], shares: Mapping[str, NodeShare]) -> Traffic:
    return Traffic(
        bytes_down=sum(report.bytes_down for report in reports),
        bytes_up=sum(report.bytes_up for report in reports),
        params_down=sum(report.params_down for report in reports),
        params_up=sum(report.params_up for report in reports),
        wire_bytes_down=sum(share.wire_bytes_down for share in shares.values()),
        wire_bytes_up=sum(share.wire_bytes_up for share in shares.values()),
    )


MAX_NAMES, FURTHER = 1024, "(further metrics)"
"""Names of metrics that a round's record has at most, and what stands for the clients that report more."""
_LONGEST = 64
"""Length limit of a list in a round's record; longer ones are raw data of a measure."""


def _short(info: Info) -> Info:
    return {key: value for key, value in info.items() if not isinstance(value, list) or len(value) <= _LONGEST}


def sum_metrics(reports: Sequence[ClientReport]) -> tuple[dict[str, Mean], dict[str, list[int]]]:
    """Add all reports' metrics up.

    Returns:
        The sums, and by metric the clients whose numbers were left out: they, or a sum with them, are not finite, or
        they are of weight 0 and not 0. A metric of which nothing is left has the sum NaN. Of metrics beyond
        `MAX_NAMES` only the clients are listed, under `FURTHER`.
    """
    total: dict[str, tuple[float, float]] = {}
    left_out: dict[str, list[int]] = {}
    for report in reports:
        for name, mean in report.metrics.items():
            summed, weight = mean.sum, mean.weight
            if before := total.get(name):
                summed, weight = before[0] + summed, before[1] + weight
            elif len(total) + len(left_out) >= MAX_NAMES and name not in left_out:
                further = left_out.setdefault(FURTHER, [])
                further += [] if report.client in further[-1:] else [report.client]
                continue
            measured = mean.weight > 0 or mean.sum == 0
            if measured and math.isfinite(summed) and math.isfinite(weight):
                total[name] = summed, weight
            else:
                left_out.setdefault(name, []).append(report.client)
    none_left = {name: Mean(math.nan, 1.0) for name in left_out if name not in total and name != FURTHER}
    return {name: Mean(*pair) for name, pair in total.items()} | none_left, left_out


def evaluated(metrics: Metrics, exponentials: Mapping[str, str]) -> dict[str, float] | None:
    """Return an evaluation's means, and the workload's `exponentials` of them; None if nothing was measured."""
    values = metric_values(metrics)
    for name, exponent in exponentials.items():
        if exponent in values:
            values[name] = math.exp(values[exponent]) if values[exponent] < _LARGEST_EXPONENT else math.inf
    return values or None


def not_finite(values: Mapping[str, float], exponentials: Mapping[str, str]) -> tuple[str, ...]:
    """Return the metrics that are NaN or infinite, sorted, but for exponentials of a finite one, which overflow."""
    odd = {name for name, value in values.items() if not math.isfinite(value)}
    return tuple(sorted(name for name in odd if exponentials.get(name, name) in odd))


_LARGEST_EXPONENT = math.log(sys.float_info.max)


Counts = tuple[int, float, int, int]
"""What a node has done for a run so far: groups, seconds, and bytes of the node down and up."""


def counts_of(nodes: Mapping[str, Node], run_id: str) -> dict[str, Counts]:
    """Return what nodes have done for a run so far; those that have only worked for others are omitted."""
    return {
        name: (jobs, node.busy_s.get(run_id, 0.0), node.bytes_down, node.bytes_up)
        for name, node in nodes.items()
        if (jobs := node.groups_done.get(run_id, 0)) or not any(node.groups_done.values())
    }


def shares(nodes: Mapping[str, Node], run_id: str, before: Mapping[str, Counts]) -> dict[str, NodeShare]:
    """Return each node's share of a run since `before`; nodes without any are omitted.

    Bytes are the node's, of all runs it serves at the time; a node that served only others in between is omitted.
    """
    found, nothing = {}, (0, 0.0, 0, 0)
    for name, now in counts_of(nodes, run_id).items():
        earlier = before.get(name, nothing)
        if now != earlier:
            jobs, busy_s, down, up = (count - known for count, known in zip(now, earlier, strict=True))
            found[name] = NodeShare(jobs=int(jobs), busy_s=busy_s, wire_bytes_down=int(down), wire_bytes_up=int(up))
    return found

"""What the exchanges of one round add up to, and the round's record made of it."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedloom.core.history import Choice, NodeShare, RoundRecord, Timing, Traffic
from fedloom.core.records import (
    ClientFailure,
    ClientReport,
    Exchange,
    Metrics,
    RoundContext,
    add_metrics,
    metric_values,
)
from fedloom.server.fleet.nodes import Node
from fedloom.server.rounds.choices import told
from fedloom.server.rounds.fold import Collected


@dataclass
class Tally:
    """Sums over a round."""

    folded: list[ClientReport] = field(default_factory=list)
    """Reports of the answers that were folded."""
    probed: list[ClientReport] = field(default_factory=list)
    """Reports of candidates, whose updates (if they trained) stayed where they were."""
    watched: list[ClientReport] = field(default_factory=list)
    """Reports to a monitor: they cost traffic, and are no part of training."""
    collected: list[int] = field(default_factory=list)
    """Clients asked for an update that had waited with them."""
    failures: list[ClientFailure] = field(default_factory=list)
    waiting_s: float = 0.0
    aggregation_s: float = 0.0
    duplicates: int = 0
    reassigned: int = 0
    restored: int = 0
    refusals: dict[str, str] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)
    """Clients that were put out, where some of the cohort were spare."""
    unneeded: list[int] = field(default_factory=list)

    def add(self, collected: Collected, exchange: Exchange, *, probe: bool = False) -> None:
        """Count an exchange."""
        (self.probed if probe or exchange.park else self.folded).extend(collected.reports)
        if exchange.collects is not None:
            self.collected = [job.client for job in exchange.jobs]
        self.failures += collected.failures
        self.waiting_s += collected.waiting_s
        self.aggregation_s += collected.aggregation_s
        self.duplicates += collected.duplicates
        self.reassigned += collected.reassigned
        self.restored += collected.restored
        self.refusals |= collected.refusals

    def watch(self, collected: Collected) -> None:
        """Count a monitor's question."""
        self.watched.extend(collected.reports)
        self.waiting_s += collected.waiting_s
        self.reassigned += collected.reassigned
        self.restored += collected.restored

    def trained(self) -> Sequence[ClientReport]:
        """One report for each client that trained: the candidates' where they did, else those of the cohort."""
        return [report for report in self.probed if report.num_trained] or self.updates()

    def updates(self) -> Sequence[ClientReport]:
        """One report for each update that was folded: not those of a strategy's other questions, beside training."""
        return [report for report in self.folded if report.num_trained] or self.folded

    def choice(self, context: RoundContext) -> Choice:
        """The line for `choices.jsonl`."""
        trained_as_probed = any(report.num_trained for report in self.probed)
        return Choice(
            round=context.round,
            cohort=list(context.cohort),
            probed=[told(report) for report in self.probed],
            collected=self.collected,
            trained=[] if trained_as_probed else [told(report) for report in self.updates()],
            missed=sorted({failure.client for failure in self.failures}),
        )

    def record(
        self,
        context: RoundContext,
        shares: Mapping[str, NodeShare],
        evaluation: dict[str, float] | None,
        timing: Timing,
        stale: int,
        info: Mapping[str, Any],
        monitor: Mapping[str, Any],
    ) -> RoundRecord:
        """The line for `rounds.jsonl`."""
        reports = [*self.probed, *self.folded]
        costly = [*reports, *self.watched]
        seconds: dict[str, float] = {}
        worked = [report for report in reports if report.num_trained] or reports
        for report in worked:
            seconds[str(report.client)] = seconds.get(str(report.client), 0.0) + report.seconds
        return RoundRecord(
            round=context.round,
            cohort=self.collected or self.asked or list(context.cohort),
            candidates=[report.client for report in self.probed],
            probe={str(report.client): _short(report.info) for report in self.probed if report.info},
            num_examples=sum(report.num_examples for report in self.updates()),
            local_trainings=sum(report.num_trained for report in reports),
            metrics=metric_values(sum_metrics(self.folded)),
            evaluation=evaluation,
            traffic=Traffic(
                bytes_down=sum(report.bytes_down for report in costly),
                bytes_up=sum(report.bytes_up for report in costly),
                params_down=sum(report.params_down for report in costly),
                params_up=sum(report.params_up for report in costly),
                wire_bytes_down=sum(share.wire_bytes_down for share in shares.values()),
                wire_bytes_up=sum(share.wire_bytes_up for share in shares.values()),
            ),
            timing=timing.model_copy(update={"training_s": sum(report.seconds for report in worked)}),
            client_seconds=seconds,
            failures=self.failures,
            unneeded=self.unneeded,
            refusals=self.refusals,
            stale=stale,
            duplicates=self.duplicates,
            reassigned=self.reassigned,
            restored=self.restored,
            nodes=dict(shares),
            info=dict(info),
            monitor=dict(monitor),
            sections=_parking(reports),
        )


def _parking(reports: Sequence[ClientReport]) -> dict[str, dict[str, Any]]:
    """The section on parked updates: the clients that trained again because theirs was gone."""
    retrained = [report.client for report in reports if report.num_retrained]
    return {"parking": {"retrained": retrained}} if retrained else {}


_LONGEST = 64
"""Numbers of a list that a round's record keeps; longer ones are a measure's raw material, not something to read."""


def _short(info: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in info.items() if not isinstance(value, list) or len(value) <= _LONGEST}


def sum_metrics(reports: Sequence[ClientReport]) -> Metrics:
    """All reports' metrics as one set."""
    total: Metrics = {}
    for report in reports:
        total = add_metrics(total, report.metrics)
    return total


def evaluated(metrics: Metrics, exponentials: Mapping[str, str]) -> dict[str, float] | None:
    """An evaluation's means, and the workload's `exponentials` of them; None where nothing was measured."""
    values = metric_values(metrics)
    for name, exponent in exponentials.items():
        if exponent in values:
            values[name] = math.exp(values[exponent]) if values[exponent] < _LARGEST_EXPONENT else math.inf
    return values or None


_LARGEST_EXPONENT = math.log(sys.float_info.max)


def shares(
    nodes: Mapping[str, Node], run_id: str, before: Mapping[str, NodeShare] | None = None
) -> dict[str, NodeShare]:
    """What each node has done for a run, or has done since `before`; nodes that did nothing are left out.

    Bytes are the node's, of all runs it serves at the time; a node that served only others in between is left out.
    """
    found = {}
    for name, node in nodes.items():
        now = NodeShare(
            jobs=node.groups_done.get(run_id, 0),
            busy_s=node.busy_s.get(run_id, 0.0),
            wire_bytes_down=node.bytes_down,
            wire_bytes_up=node.bytes_up,
        )
        earlier = (before or {}).get(name, NodeShare())
        values = {key: value - getattr(earlier, key) for key, value in now.model_dump().items()}
        for_others = not now.jobs and any(node.groups_done.values())
        if any(values.values()) and not for_others:
            found[name] = NodeShare(**values)
    return found

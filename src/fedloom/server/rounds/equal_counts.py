"""Gives clients equal weights if some withhold their number of examples, whatever the others report."""

from __future__ import annotations

from dataclasses import replace

from fedloom.core.accumulators import UpdateList
from fedloom.core.records import ClientReport, Mean, Metrics, Update
from fedloom.server.rounds.counts import Collected


def counted_alike(collected: Collected) -> Collected:
    """Return an exchange's outcome with one example for each client that has any, and metrics of weight one.

    A client that withholds its size reports one example: beside the true sizes of others its metrics, and updates that
    a strategy weighs by their examples, would count for nothing.
    """
    total = collected.total
    if isinstance(total, UpdateList):
        total.updates = [(client, _update(update)) for client, update in total.updates]
    return replace(collected, reports=tuple(map(_report, collected.reports)))


def _update(update: Update) -> Update:
    return replace(update, num_examples=min(update.num_examples, 1), metrics=_metrics(update.metrics))


def _report(report: ClientReport) -> ClientReport:
    return replace(report, num_examples=min(report.num_examples, 1), metrics=_metrics(report.metrics))


def _metrics(metrics: Metrics) -> Metrics:
    return {name: Mean(mean.value, 1.0) if mean.weight > 0 else mean for name, mean in metrics.items()}

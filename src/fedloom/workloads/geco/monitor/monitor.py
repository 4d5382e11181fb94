"""The server half of the monitor of explanations: adds histograms up."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fedloom.core.protocols import Monitor, MonitorReading, MonitorRequest
from fedloom.core.records import ClientReport, Info
from fedloom.workloads.geco.monitor.config import Config
from fedloom.workloads.geco.monitor.totals import Totals

HEADLINE = "mass_accuracy"
"""Median mass accuracy of the last network's best explainer; with a network's name behind, of that one's best."""


class ExplanationBias(Monitor):
    """Mass accuracies of all clients, from histograms alone: their sum is exactly the pooled sentences' histogram.

    The measure is GECOBench's (arXiv 2406.11547): the share of an explanation's absolute weight on the words that
    differ between a sentence's versions. Medians of histograms, gaps between versions, and the relative mass accuracy,
    log(median / median of the first record), are ours.
    """

    def __init__(self, config: Config) -> None:
        self._config = config

    def request(self, population: int, rng: np.random.Generator) -> MonitorRequest:
        """Return parts of held-out data, or clients drawn at random."""
        count = self._config.clients
        if self._config.data == "held_out":
            return MonitorRequest(clients=tuple(range(count)), parts=count)
        if population <= count:
            return MonitorRequest(clients=tuple(range(population)))
        drawn = np.sort(rng.choice(population, size=count, replace=False))
        return MonitorRequest(clients=tuple(map(int, drawn)))

    def read(self, reports: Sequence[ClientReport], earlier: Sequence[Info]) -> MonitorReading:
        """Return medians of each network and explainer, their gaps, and warnings."""
        given = [report for report in reports if "histograms" in report.info]
        if not given:
            return MonitorReading(metrics={}, info={})
        totals = Totals.of([report.info for report in given])
        info = totals.info(earlier)
        info["clients"] = [_line(report) for report in given]
        return MonitorReading(metrics=_metrics(totals), info=info, warnings=_warnings(totals))


def _metrics(totals: Totals) -> dict[str, float]:
    nets = list(totals.histograms)
    found = {HEADLINE: totals.best(nets[-1])[1], f"{HEADLINE}_chance": totals.chance_median}
    if len(nets) > 1:
        found |= {f"{HEADLINE}_{net}": totals.best(net)[1] for net in nets}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _warnings(totals: Totals) -> dict[str, str]:
    count = int(totals.sentences.sum())
    if totals.num_scored or not count:
        return {}
    return {
        "no explanation is scored": (
            f"none of {count} sentences is classified correctly by every network; train longer, or set "
            "monitor.only_correct = false"
        )
    }


def _line(report: ClientReport) -> dict[str, object]:
    """Return a client's medians for the record."""
    totals = Totals.of([report.info])
    found = {net: {name: totals.median(net, name) for name in names} for net, names in totals.histograms.items()}
    known = {net: {name: value for name, value in each.items() if math.isfinite(value)} for net, each in found.items()}
    return {"client": report.client, "scored": totals.num_scored, "medians": known}


def build_monitor(config: Config) -> ExplanationBias:
    """Return the server half a `Config` describes."""
    return ExplanationBias(config)

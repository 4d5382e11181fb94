"""Evaluations of the global model on each client: its metrics, the worst client, the 10th percentile, the spread."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from fedloom.core.protocols import Roster
from fedloom.core.records import ClientFailure, ClientReport, JsonObject
from fedloom.server.rounds.record import evaluated

SECTION = "sites"
"""Section of a round's record with the evaluation of each site."""
ON_CLIENTS = "on_clients"
"""Section with the evaluation on each virtual client's own data."""
FINE_TUNED = "sites_fine_tuned"
"""Section with the same of the global model after local training on each site."""
_LOWER = ("loss", "error", "perplexity")
"""Endings of names of metrics of which less is better."""


def site_section(
    roster: Roster,
    reports: Sequence[ClientReport],
    failures: Sequence[ClientFailure],
    exponentials: Mapping[str, str],
) -> JsonObject:
    """Return the section of a round's record about its evaluation on sites.

    Args:
        roster: names the sites, or the virtual clients.
        reports: of those that have evaluated.
        failures: of those that have not.
        exponentials: metrics that are the exponential of another one, by name.

    Returns:
        `sites`: each one's name and metrics; `missing`: why sites have none; by metric the `worst` site's value,
        `p10`, the value that 90 % of the sites reach: the 10th percentile, counted from the worst, and `spread`, the
        standard deviation over the sites, in the metric's unit. Sites without a finite value of a metric do not count
        in it. Virtual clients are listed likewise.
    """
    found = {report.client: evaluated(report.metrics, exponentials) or {} for report in reports}
    rows: list[JsonObject] = [
        {"client": client, "site": roster.name(client), "metrics": found[client]} for client in sorted(found)
    ]
    names = sorted({name for metrics in found.values() for name in metrics})
    finite = {
        name: {
            client: value for client, metrics in found.items() if math.isfinite(value := metrics.get(name, math.nan))
        }
        for name in names
    }
    measured = {name: values for name, values in finite.items() if values}
    return {
        "sites": rows,
        "missing": {roster.name(failure.client): failure.words for failure in failures},
        "worst": {name: _worst(name, values, roster) for name, values in measured.items()},
        "p10": {name: _tail(name, list(values.values())) for name, values in measured.items()},
        "spread": {name: float(np.std(list(values.values()))) for name, values in measured.items()},
    }


def lower_is_better(metric: str) -> bool:
    """Return whether lower values of a metric are better, by its name."""
    return metric.endswith(_LOWER)


def _worst(name: str, values: Mapping[int, float], roster: Roster) -> JsonObject:
    pick = max if lower_is_better(name) else min
    client = pick(sorted(values), key=lambda each: values[each])
    return {"site": roster.name(client), "value": values[client]}


def _tail(name: str, values: Sequence[float]) -> float:
    return float(np.percentile(values, 90.0 if lower_is_better(name) else 10.0))

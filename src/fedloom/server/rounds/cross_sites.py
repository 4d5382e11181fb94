"""The matrix of a run's last round: models of sites, and the global one, on the validation data of every site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedloom.core.protocols import Roster
from fedloom.core.records import JsonObject

CROSS_SITES = "cross_sites"
"""Section of a round's record with the matrix."""
MISSING = "n/a"
"""Value of a model that was not evaluated at a site; `reasons` says why."""
GLOBAL = "global"

Metrics = Mapping[int, Mapping[str, float]]
"""Metrics of one model, by site."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reasons:
    """Why numbers are missing, by client."""

    models: dict[int, str] = field(default_factory=dict)
    """Why a site's model was evaluated nowhere."""
    sites: dict[int, str] = field(default_factory=dict)
    """Why a site has evaluated a model, or all of them, not."""


def cross_section(roster: Roster, of_global: Metrics, of_sites: Mapping[int, Metrics], reasons: Reasons) -> JsonObject:
    """Return the matrix.

    Args:
        roster: names the sites.
        of_global: metrics of the global model, by site.
        of_sites: metrics of each site's model that was shared, by its owner and by site.
        reasons: why numbers are missing.

    Returns:
        `sites`: names of the rows, all sites; `models`: names of the columns, `global` and all sites; by metric one row
        for each site, with numbers and `n/a`; `reasons`: why a model (`models`) or a site (`sites`) has an `n/a`, by
        name.
    """
    clients = range(roster.population)
    columns: list[Metrics] = [of_global, *(of_sites.get(owner, {}) for owner in clients)]
    names = sorted({name for column in columns for metrics in column.values() for name in metrics})
    return {
        "sites": [roster.name(client) for client in clients],
        "models": [GLOBAL, *(roster.name(client) for client in clients)],
        "metrics": {
            name: [[column.get(client, {}).get(name, MISSING) for column in columns] for client in clients]
            for name in names
        },
        "reasons": {
            "models": {roster.name(client): reasons.models[client] for client in sorted(reasons.models)},
            "sites": {roster.name(client): reasons.sites[client] for client in sorted(reasons.sites)},
        },
    }

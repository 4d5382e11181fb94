"""Checks a selection's choice, and adds its extra report to the strategy's exchange."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fedloom.core.errors import RunFailed, UnsupportedFeature
from fedloom.core.protocols import ExtraReport, Roster
from fedloom.core.records import Exchange, Info, JsonObject
from fedloom.server.rounds.open_round import OpenRound
from fedloom.server.rounds.request import Phase

_SHOWN = 8
"""Limit of clients that a notice names."""


def check_clients(round: OpenRound, selection: str, method: str, clients: Sequence[int]) -> tuple[int, ...]:
    """Return the clients a selection's method returned.

    Args:
        round: for the roster and the message.
        selection: its name.
        method: `choose`, or `probe` for its candidates.
        clients: the selection's choice.

    Raises:
        RunFailed: they are not distinct numbers of the roster.
    """
    last = round.roster.population - 1
    wrong = [client for client in clients if type(client) is not int or not 0 <= client <= last]
    found = ""
    if wrong:
        found = f"{wrong!r} in it"
    elif len(set(clients)) < len(clients):
        twice = sorted({client for client in clients if list(clients).count(client) > 1})
        found = f"{twice!r} more than once"
    if found:
        raise RunFailed(
            f"round {round.number}: `{method}` of selection {selection!r} returned {tuple(clients)!r}: expected "
            f"distinct clients (int) from 0 to {last}, found {found}. Correct the selection's `{method}`"
        )
    return tuple(clients)


def roster_section(roster: Roster, joined: int) -> Info:
    """Return the section of a round's record about a roster that has grown, or whose clients are not all connected."""
    section: JsonObject = {"population": roster.population, "joined": joined}
    if roster.names:
        section["joined_names"] = list(roster.names[roster.population - joined :])
        section["offline"] = {str(client): roster.names[client] for client in sorted(roster.offline)}
    return section


def with_extra_report(exchange: Exchange, extra: ExtraReport | None) -> Exchange:
    """Return the exchange with the selection's extra report.

    Raises:
        UnsupportedFeature: the strategy already uses a report.
    """
    if extra is None:
        return exchange
    if exchange.measure is not None:
        raise UnsupportedFeature(
            f"the selection needs clients to report {extra.measure!r} with their updates, but this strategy "
            f"already makes them report {exchange.measure!r}; use another selection with it"
        )
    return replace(exchange, measure=extra.measure, knobs={**exchange.knobs, **extra.knobs})


def collection(exchange: Exchange, cohort: Sequence[int]) -> Exchange | None:
    """Return the exchange that hands over the updates which the chosen candidates have parked; None for no cohort.

    Raises:
        UnsupportedFeature: the exchange in which they trained has not one job for each.
    """
    by_client = {job.client: job for job in exchange.jobs}
    if len(by_client) != len(exchange.jobs) or not set(cohort) <= by_client.keys():
        raise UnsupportedFeature(
            "the selection trains candidates before it chooses, which requires a strategy that plans one job for each "
            "client of the cohort; use another selection with this strategy"
        )
    jobs = tuple(replace(by_client[client], kind="collect") for client in cohort)
    return replace(exchange, jobs=jobs, collects=int(Phase.TRAIN)) if jobs else None


def without_examples(round: OpenRound) -> str:
    """Return a notice that no client of the round has an example."""
    cohort = round.context.cohort
    more = f" and {len(cohort) - _SHOWN} more" if len(cohort) > _SHOWN else ""
    return (
        f"round {round.number}: none of its clients ({', '.join(map(str, cohort[:_SHOWN]))}{more}) has an example, "
        'so the model is unchanged. Set a larger cohort, or workload.partition.empty = "move"'
    )

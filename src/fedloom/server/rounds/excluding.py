"""Clients that never take part: a selection and a monitor choose among the others, which they see as all there are."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from fedloom.core.protocols import (
    ExtraReport,
    Monitor,
    MonitorReading,
    MonitorRequest,
    Probe,
    Roster,
    Selection,
)
from fedloom.core.records import ClientReport, Info

S = TypeVar("S")


def without_clients(selection: Selection[S], excluded: Collection[int]) -> Selection[S]:
    """Return a selection that never chooses certain clients; the same one if there are none."""
    return _Excluding(selection, frozenset(excluded)) if excluded else selection


def monitor_without_clients(monitor: Monitor, excluded: Collection[int]) -> Monitor:
    """Return a monitor that never observes certain clients; the same one if there are none."""
    return _ExcludingMonitor(monitor, frozenset(excluded)) if excluded else monitor


class _Numbers:
    """The numbers of the remaining clients: the federation's, and those a selection sees, which have no gaps."""

    def __init__(self, excluded: frozenset[int], population: int) -> None:
        self.all = [client for client in range(population) if client not in excluded]
        self.inner = {client: number for number, client in enumerate(self.all)}

    def roster(self, roster: Roster) -> Roster:
        """Return the roster of the remaining clients."""
        return Roster(
            population=len(self.all),
            sizes=[roster.sizes[client] for client in self.all] if roster.sizes else (),
            label_counts=[roster.label_counts[client] for client in self.all] if roster.label_counts else (),
            names=[roster.name(client) for client in self.all] if roster.names else (),
            offline=frozenset(self.inner[client] for client in roster.offline if client in self.inner),
        )

    def outer(self, chosen: Sequence[int]) -> tuple[int, ...]:
        """Return the federation's numbers of chosen clients; -1, which is refused, for what is no client."""
        known = range(len(self.all))
        return tuple(self.all[number] if type(number) is int and number in known else -1 for number in chosen)

    def reports(self, reports: Sequence[ClientReport]) -> list[ClientReport]:
        """Return reports of remaining clients, with the selection's numbers."""
        return [replace(each, client=self.inner[each.client]) for each in reports if each.client in self.inner]


class _Excluding(Selection[S]):
    """A selection that sees the remaining clients only."""

    def __init__(self, selection: Selection[S], excluded: frozenset[int]) -> None:
        self._selection, self._excluded = selection, excluded
        self.State = selection.State  # type: ignore[misc]  # of this selection alone
        self._known: tuple[int, _Numbers] | None = None

    def init(self, roster: Roster) -> S:
        return self._selection.init(self._numbers(roster.population).roster(roster))

    def probe(self, state: S, roster: Roster, size: int, rng: np.random.Generator) -> Probe | None:
        numbers = self._numbers(roster.population)
        found = self._selection.probe(state, numbers.roster(roster), min(size, len(numbers.all)), rng)
        return found if found is None else replace(found, candidates=numbers.outer(found.candidates))

    def choose(
        self, state: S, roster: Roster, size: int, rng: np.random.Generator, reports: Sequence[ClientReport] = ()
    ) -> tuple[int, ...]:
        numbers = self._numbers(roster.population)
        size = min(size, len(numbers.all))
        return numbers.outer(self._selection.choose(state, numbers.roster(roster), size, rng, numbers.reports(reports)))

    def extra_report(self, state: S) -> ExtraReport | None:
        return self._selection.extra_report(state)

    def observe(self, state: S, reports: Sequence[ClientReport], probed: Sequence[ClientReport] = ()) -> S:
        numbers = self._latest()
        return self._selection.observe(state, numbers.reports(reports), numbers.reports(probed))

    def missed(self, state: S, clients: Sequence[int]) -> S:
        inner = self._latest().inner
        return self._selection.missed(state, [inner[client] for client in clients if client in inner])

    def grow(self, state: S, roster: Roster) -> S:
        return self._selection.grow(state, self._numbers(roster.population).roster(roster))

    def report(self, state: S) -> Info:
        return self._selection.report(state)

    def _numbers(self, population: int) -> _Numbers:
        if self._known is None or self._known[0] != population:
            self._known = population, _Numbers(self._excluded, population)
        return self._known[1]

    def _latest(self) -> _Numbers:
        """Return the numbers of the round in progress, whose clients have been chosen."""
        if self._known is None:
            raise RuntimeError("observe before choose")
        return self._known[1]


class _ExcludingMonitor(Monitor):
    """A monitor that sees the remaining clients only."""

    def __init__(self, monitor: Monitor, excluded: frozenset[int]) -> None:
        self._monitor, self._excluded = monitor, excluded

    def request(self, population: int, rng: np.random.Generator) -> MonitorRequest:
        numbers = _Numbers(self._excluded, population)
        found = self._monitor.request(len(numbers.all), rng)
        return found if found.parts is not None else replace(found, clients=numbers.outer(found.clients))

    def read(self, reports: Sequence[ClientReport], earlier: Sequence[Info]) -> MonitorReading:
        return self._monitor.read(reports, earlier)

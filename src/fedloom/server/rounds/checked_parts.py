"""Checks what users' strategies, selections and monitors return, at each call; fedloom's own are used as they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedloom.core.blame import Blame, kind_of
from fedloom.core.kinds import Kind
from fedloom.core.plugins import AnySelection, AnyStrategy
from fedloom.core.protocols import (
    Monitor,
    MonitorReading,
    MonitorRequest,
)
from fedloom.core.records import ClientReport, Info
from fedloom.core.registry import PartRef
from fedloom.server.rounds.checked_selection import CheckedSelection
from fedloom.server.rounds.checked_strategy import CheckedStrategy
from fedloom.server.rounds.result_checks import check_choice, check_json


def checked_strategy(strategy: AnyStrategy, name: str) -> AnyStrategy:
    """Return a strategy whose results are checked, if it is a user's."""
    blame = Blame(strategy, PartRef(Kind.STRATEGY, name, "strategy"))
    return CheckedStrategy(strategy, blame) if blame.users else strategy


def checked_selection(selection: AnySelection, name: str) -> AnySelection:
    """Return a selection whose results are checked, if it is a user's."""
    blame = Blame(selection, PartRef(Kind.SELECTION, name, "selection"))
    return CheckedSelection(selection, blame) if blame.users else selection


def checked_monitor(monitor: Monitor, name: str) -> Monitor:
    """Return a monitor whose results are checked, if it is a user's."""
    blame = Blame(monitor, PartRef(Kind.MONITOR, name, "monitor"))
    return _CheckedMonitor(monitor, blame) if blame.users else monitor


class _CheckedMonitor(Monitor):
    """A user's monitor."""

    def __init__(self, monitor: Monitor, blame: Blame) -> None:
        self._inner, self._blame = monitor, blame

    def request(self, population: int, rng: np.random.Generator) -> MonitorRequest:
        with self._blame.calling("request"):
            found: object = self._inner.request(population, rng)
        if not isinstance(found, MonitorRequest):
            raise self._blame.wrong("request", f"found {kind_of(found)}, expected a MonitorRequest")
        check_choice(self._blame, "request", found.clients, population if found.parts is None else found.parts)
        return found

    def read(self, reports: Sequence[ClientReport], earlier: Sequence[Info]) -> MonitorReading:
        with self._blame.calling("read"):
            found: object = self._inner.read(reports, earlier)
        if not isinstance(found, MonitorReading):
            raise self._blame.wrong("read", f"found {kind_of(found)}, expected a MonitorReading")
        check_json(self._blame, "read", found.metrics)
        check_json(self._blame, "read", found.info)
        for name, value in found.metrics.items():
            if not isinstance(value, int | float):
                raise self._blame.wrong("read", f"metric {name!r} is {kind_of(value)}, expected a number")
        return found

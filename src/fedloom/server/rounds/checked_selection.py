"""A user's selection whose results are checked at each call."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedloom.core.blame import Blame, kind_of
from fedloom.core.plugins import AnySelection
from fedloom.core.protocols import (
    ExtraReport,
    Probe,
    Roster,
    Selection,
)
from fedloom.core.records import ClientReport, Info
from fedloom.server.rounds.result_checks import States, check_choice, check_json


class CheckedSelection(Selection[object]):
    """A user's selection."""

    def __init__(self, selection: AnySelection, blame: Blame) -> None:
        self._inner, self._blame = selection, blame
        self.State = selection.State  # type: ignore[misc]  # of this selection alone
        self._states = States(blame, selection.State)

    def init(self, roster: Roster) -> object:
        with self._blame.calling("init"):
            state = self._inner.init(roster)
        self._states.made("init", state)
        return state

    def probe(self, state: object, roster: Roster, size: int, rng: np.random.Generator) -> Probe | None:
        with self._blame.calling("probe"):
            probe: object = self._inner.probe(state, roster, size, rng)
        if probe is not None and not isinstance(probe, Probe):
            raise self._blame.wrong("probe", f"found {kind_of(probe)}, expected a Probe or None")
        if probe is not None:
            self._check_clients("probe", probe.candidates, roster)
        self._states.unchanged("probe", state)
        return probe

    def choose(
        self, state: object, roster: Roster, size: int, rng: np.random.Generator, reports: Sequence[ClientReport] = ()
    ) -> tuple[int, ...]:
        with self._blame.calling("choose"):
            chosen: object = self._inner.choose(state, roster, size, rng, reports)
        self._states.unchanged("choose", state)
        return self._check_clients("choose", chosen, roster)

    def extra_report(self, state: object) -> ExtraReport | None:
        with self._blame.calling("extra_report"):
            found: object = self._inner.extra_report(state)
        if found is not None and not isinstance(found, ExtraReport):
            raise self._blame.wrong("extra_report", f"found {kind_of(found)}, expected an ExtraReport or None")
        return found

    def observe(self, state: object, reports: Sequence[ClientReport], probed: Sequence[ClientReport] = ()) -> object:
        with self._blame.calling("observe"):
            after = self._inner.observe(state, reports, probed)
        return self._next("observe", state, after)

    def missed(self, state: object, clients: Sequence[int]) -> object:
        with self._blame.calling("missed"):
            after = self._inner.missed(state, clients)
        return self._next("missed", state, after)

    def grow(self, state: object, roster: Roster) -> object:
        with self._blame.calling("grow"):
            after = self._inner.grow(state, roster)
        return self._next("grow", state, after)

    def report(self, state: object) -> Info:
        with self._blame.calling("report"):
            found = self._inner.report(state)
        check_json(self._blame, "report", found)
        return found

    def _next(self, method: str, state: object, after: object) -> object:
        self._states.unchanged(method, state)
        self._states.made(method, after)
        return after

    def _check_clients(self, method: str, clients: object, roster: Roster) -> tuple[int, ...]:
        return check_choice(self._blame, method, clients, roster.population)

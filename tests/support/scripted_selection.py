"""A selection in one file that chooses what its settings say, and remembers how large the roster was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedloom.core.config import PluginSettings
from fedloom.core.protocols import Probe, Roster, Selection
from fedloom.core.records import ClientReport


class Config(PluginSettings):
    """Cohorts by heart."""

    cohorts: tuple[tuple[int, ...], ...]
    """One for each round; the last one goes on for ever."""
    candidates: tuple[int, ...] = ()
    """Clients that train before the choice; none for no probe."""
    odd: str = ""
    """`text`: choose something that is no client."""


@dataclass(frozen=True)
class _State:
    round: int = 0
    populations: tuple[int, ...] = ()
    """The roster's at the start, and after each growth."""


class Scripted(Selection[_State]):
    State = _State

    def __init__(self, config: Config) -> None:
        self._config = config

    def init(self, roster: Roster) -> _State:
        return _State(populations=(roster.population,))

    def probe(self, state: _State, roster: Roster, size: int, rng: np.random.Generator) -> Probe | None:
        return Probe(candidates=self._config.candidates, kind="train") if self._config.candidates else None

    def choose(
        self, state: _State, roster: Roster, size: int, rng: np.random.Generator, reports: Sequence[ClientReport] = ()
    ) -> tuple[int, ...]:
        assert state.populations[-1] == roster.population, "it has been grown"
        cohort: Any = self._config.cohorts[min(state.round, len(self._config.cohorts) - 1)]
        return ("zero",) if self._config.odd == "text" else cohort  # type: ignore[return-value]  # the fault under test

    def observe(self, state: _State, reports: Sequence[ClientReport], probed: Sequence[ClientReport] = ()) -> _State:
        return replace(state, round=state.round + 1)

    def grow(self, state: _State, roster: Roster) -> _State:
        return replace(state, populations=(*state.populations, roster.population))

    def report(self, state: _State) -> dict[str, Any]:
        return {"populations": list(state.populations)}


def build_selection(config: Config) -> Scripted:
    return Scripted(config)

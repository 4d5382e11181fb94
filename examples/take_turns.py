"""A selection in one file: clients in turn, and of those whose turn it is, the ones the global model serves worst."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from fedloom.core.config import PluginSettings
from fedloom.core.errors import ConfigError
from fedloom.core.protocols import Probe, Roster, Selection
from fedloom.core.records import ClientReport


class Config(PluginSettings):
    """Turns around the circle of clients."""

    window: Annotated[int, Field(ge=1)]
    """Clients whose turn it is in one round; at least the cohort. They evaluate the global model."""


@dataclass(frozen=True)
class Turn:
    """Where on the circle the next round begins. All a round leaves behind; saved with every checkpoint."""

    start: int = 0


class TakeTurns(Selection[Turn]):
    """The m largest losses among the next `window` clients."""

    State = Turn

    def __init__(self, config: Config) -> None:
        self._window = config.window

    def init(self, roster: Roster) -> Turn:
        if self._window > roster.population:
            raise ConfigError(f"selection.window: {self._window} clients, but there are only {roster.population}")
        return Turn()

    def probe(self, state: Turn, roster: Roster, size: int, rng: np.random.Generator) -> Probe | None:
        if self._window < size:
            raise ConfigError(f"selection.window: {self._window} clients for a cohort of {size}")
        candidates = tuple((state.start + step) % roster.population for step in range(self._window))
        return Probe(candidates=candidates, kind="evaluate")

    def choose(
        self,
        state: Turn,
        roster: Roster,
        size: int,
        rng: np.random.Generator,
        reports: Sequence[ClientReport] = (),
    ) -> tuple[int, ...]:
        worst_first = sorted(reports, key=lambda report: -report.metrics["loss"].value)
        return tuple(report.client for report in worst_first[:size])

    def observe(self, state: Turn, reports: Sequence[ClientReport], probed: Sequence[ClientReport] = ()) -> Turn:
        return Turn(state.start + self._window)


def build_selection(config: Config) -> TakeTurns:
    """Return the selection a `Config` describes."""
    return TakeTurns(config)

"""A selection that takes the clients with the lowest loss it has heard of, those it never heard of first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fedloom.core.config import PluginSettings
from fedloom.core.protocols import Roster
from fedloom.core.records import ClientReport


class Config(PluginSettings):
    """Lowest loss first."""


@dataclass(frozen=True)
class Heard:
    losses: dict[str, float] = field(default_factory=dict)
    rounds: int = 0


class LowestLoss:
    State = Heard

    def init(self, roster: Roster) -> Heard:
        return Heard()

    def probe(self, state: Heard, roster: Roster, size: int, rng: np.random.Generator) -> None:
        return None

    def choose(
        self, state: Heard, roster: Roster, size: int, rng: np.random.Generator, reports: Sequence[ClientReport] = ()
    ) -> tuple[int, ...]:
        everybody = sorted(range(roster.population), key=lambda c: (state.losses.get(str(c), -1.0), c))
        return tuple(everybody[:size])

    def observe(self, state: Heard, reports: Sequence[ClientReport], probed: Sequence[ClientReport] = ()) -> Heard:
        news = {str(report.client): report.metrics["loss"].value for report in reports}
        return Heard({**state.losses, **news}, state.rounds + 1)


def build_selection(config: Config) -> LowestLoss:
    return LowestLoss()

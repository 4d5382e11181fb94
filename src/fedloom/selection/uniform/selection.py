"""Uniform selection without replacement."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedloom.core.protocols import Roster, Selection
from fedloom.core.records import ClientReport
from fedloom.selection._choosing.stateless import Nothing
from fedloom.selection.uniform.config import Config


class Uniform(Selection[Nothing]):
    """A uniformly random set, in random order; costs O(size), whatever the population."""

    State = Nothing

    def init(self, roster: Roster) -> Nothing:
        return Nothing()

    def choose(
        self,
        state: Nothing,
        roster: Roster,
        size: int,
        rng: np.random.Generator,
        reports: Sequence[ClientReport] = (),
    ) -> tuple[int, ...]:
        return tuple(int(client) for client in rng.choice(roster.population, size, replace=False))


def build_selection(config: Config) -> Uniform:
    """Return the selection a `Config` describes."""
    return Uniform()

"""Uniform selection without replacement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedloom.core.protocols import Probe, Roster
from fedloom.core.records import ClientReport
from fedloom.selection.uniform.config import Config


@dataclass(frozen=True, slots=True)
class Nothing:
    """Nothing to remember."""


class Uniform:
    """A uniformly random set, in random order; costs O(size), whatever the population."""

    State = Nothing

    def init(self, roster: Roster) -> Nothing:
        return Nothing()

    def probe(self, state: Nothing, roster: Roster, size: int, rng: np.random.Generator) -> Probe | None:
        return None

    def choose(
        self,
        state: Nothing,
        roster: Roster,
        size: int,
        rng: np.random.Generator,
        reports: Sequence[ClientReport] = (),
    ) -> tuple[int, ...]:
        return tuple(int(client) for client in rng.choice(roster.population, size, replace=False))

    def observe(self, state: Nothing, reports: Sequence[ClientReport], probed: Sequence[ClientReport] = ()) -> Nothing:
        return state


def build_selection(config: Config) -> Uniform:
    """The selection a `Config` describes."""
    return Uniform()

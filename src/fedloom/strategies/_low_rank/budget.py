"""The rank of a round, and of each of its clients."""

from __future__ import annotations

from dataclasses import dataclass

from fedloom.strategies._low_rank.schedule import Schedule
from fedloom.strategies._low_rank.state import Adapters


@dataclass(frozen=True)
class Budget:
    """Ranks by schedule, with fixed limits for clients. A method whose ranks follow from training derives from it."""

    schedule: Schedule
    client_ranks: tuple[int, ...] = ()
    """Largest rank of each client: client k has entry k modulo the length; empty means no limits."""

    def rank(self, state: Adapters, round: int) -> int:
        """Return r_t, the rank of the global factors in a round."""
        schedule = self.schedule
        return schedule.rank_max if schedule.is_initiating(round) else schedule.rank(round)

    def limit(self, state: Adapters, client: int) -> int | None:
        """Return the largest rank a client can be given; None without a limit."""
        ranks = self.client_ranks
        return ranks[client % len(ranks)] if ranks else None

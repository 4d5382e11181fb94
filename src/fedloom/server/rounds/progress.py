"""A run's state between two rounds, saved to and restored from checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedloom.core.errors import RunFailed
from fedloom.core.plugins import AnySelection, AnyStrategy
from fedloom.core.protocols import Roster
from fedloom.core.records import Array
from fedloom.core.state import dump_state, load_state, pinned_in
from fedloom.server.rounds.best import BestPhase
from fedloom.server.store.run_store import Checkpoint


@dataclass
class Progress:
    """The content of a checkpoint, live."""

    round: int
    """Rounds finished."""
    strategy: object
    """The strategy's state."""
    selection: object
    """The selection's state."""
    population: int
    """Number of clients the selection's state is made for."""

    @classmethod
    def read(cls, checkpoint: Checkpoint, strategy: AnyStrategy, selection: AnySelection) -> Progress:
        """Return the content of a checkpoint."""
        return cls(
            checkpoint.round,
            load_state(strategy.State, checkpoint.strategy, checkpoint.pinned),
            load_state(selection.State, checkpoint.selection, checkpoint.pinned),
            checkpoint.population,
        )

    def checkpoint(self, seconds: float, holders: Mapping[str, Array], best: BestPhase | None = None) -> Checkpoint:
        """Return it as a checkpoint.

        Args:
            seconds: wall-clock seconds of the run so far.
            holders: clients that have read pinned records, by the records' digests.
            best: holds the state of the best round; None if the last one is the final model's.
        """
        held = None if best is None else best.state
        return Checkpoint(
            self.round,
            dump_state(self.strategy),
            dump_state(self.selection),
            seconds,
            holders,
            {**pinned_in(self.strategy), **pinned_in(self.selection), **({} if best is None else best.pinned)},
            self.population,
            "" if held is None else held.sha256,
            0 if best is None else best.round,
        )

    def grow(self, selection: AnySelection, roster: Roster) -> int:
        """Extend the selection's state for clients that have joined since it was made; returns their number.

        Raises:
            RunFailed: there are fewer clients than before. Clients' numbers are permanent, so none may be removed.
        """
        joined = roster.population - self.population
        if joined < 0:
            raise RunFailed(
                f"round {self.round + 1}: the roster has {roster.population} clients, before it had {self.population}. "
                "Clients' numbers are permanent: list a client that left as offline instead of removing it"
            )
        if joined:
            self.selection = selection.grow(self.selection, roster)
            self.population = roster.population
        return joined

"""Where a run is between two rounds, and how that is saved and read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedloom.core.errors import RunFailed
from fedloom.core.plugins import AnySelection, AnyStrategy
from fedloom.core.protocols import Roster
from fedloom.core.records import Array
from fedloom.core.state import dump_state, load_state, pinned_in
from fedloom.server.store.run_store import Checkpoint


@dataclass
class Progress:
    """What a checkpoint holds, live."""

    round: int
    """Rounds finished."""
    strategy: object
    """The strategy's state."""
    selection: object
    """The selection's state."""
    population: int
    """Clients the selection's state is made for."""

    @classmethod
    def read(cls, checkpoint: Checkpoint, strategy: AnyStrategy, selection: AnySelection) -> Progress:
        """Return what a checkpoint holds."""
        return cls(
            checkpoint.round,
            load_state(strategy.State, checkpoint.strategy, checkpoint.pinned),
            load_state(selection.State, checkpoint.selection, checkpoint.pinned),
            checkpoint.population,
        )

    def checkpoint(self, seconds: float, holders: Mapping[str, Array]) -> Checkpoint:
        """Return it as a checkpoint.

        Args:
            seconds: wall-clock seconds of the run so far.
            holders: clients that have read pinned records, by the records' digests.
        """
        return Checkpoint(
            self.round,
            dump_state(self.strategy),
            dump_state(self.selection),
            seconds,
            holders,
            pinned_in(self.strategy) | pinned_in(self.selection),
            self.population,
        )

    def grow(self, selection: AnySelection, roster: Roster) -> int:
        """Have the selection make room for clients that have joined since its state was made; returns how many.

        Raises:
            RunFailed: there are fewer clients than before. Clients keep their numbers, so none may go.
        """
        joined = roster.population - self.population
        if joined < 0:
            raise RunFailed(
                f"round {self.round + 1}: the roster has {roster.population} clients, it had {self.population} before. "
                "Clients keep their numbers: list one that left as offline instead of removing it"
            )
        if joined:
            self.selection = selection.grow(self.selection, roster)
            self.population = roster.population
        return joined

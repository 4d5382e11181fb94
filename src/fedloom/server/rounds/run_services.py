"""What a run is given to work with: its way to the agents, and where its results go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedloom.core.clock import SYSTEM_CLOCK, Clock
from fedloom.core.events import Event
from fedloom.core.protocols import Roster
from fedloom.server.fleet.coordinator import Coordinator
from fedloom.server.store.answer_journal import AnswerJournal
from fedloom.server.store.run_store import RunStore

RosterSource = Callable[[Roster], Roster]
"""Returns the clients there are now. It gets the roster that the experiment and the workload declare."""


def declared_roster(declared: Roster) -> Roster:
    """Return the declared roster: a federation whose clients are known from the start."""
    return declared


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a session's clients run, for people."""

    runtime: str
    workers: int
    where: str


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetAccess:
    """A run's way to the agents."""

    coordinator: Coordinator
    place: Callable[[], Place]
    """Says where the clients run; called once the first agent has answered."""
    pump: Callable[[], None] | None = None
    """Does an agent's work in the caller's thread while the run waits; None where agents are elsewhere."""
    patience_s: float | None = None
    """Seconds without any agent before the run fails; None waits for ever."""
    roster: RosterSource = declared_roster
    """Called in each round."""
    clock: Clock = SYSTEM_CLOCK
    submitter: tuple[str, str] = ("", "")
    """Name and role of who has submitted the run; empty where there are no members."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOutputs:
    """Where what a run finds out goes."""

    store: RunStore
    """Results and checkpoints; a run that has checkpoints there resumes from the newest."""
    emit: Callable[[Event], None]
    journal: AnswerJournal | None = None
    """Keeps accepted results until a checkpoint has them; None where a killed run asks for them again."""

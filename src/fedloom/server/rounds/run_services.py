"""The services of a run: its connection to the agents, and destinations of its results."""

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
"""Returns the current clients, given the roster that the experiment and the workload declare."""


def declared_roster(declared: Roster) -> Roster:
    """Return the declared roster: a federation whose clients are known from the start."""
    return declared


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeInfo:
    """The location of a session's clients, for people."""

    runtime: str
    workers: int
    where: str


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetAccess:
    """A run's way to the agents."""

    coordinator: Coordinator
    place: Callable[[], RuntimeInfo]
    """Describes where the clients run; called once the first agent has connected."""
    pump: Callable[[], None] | None = None
    """Does an agent's work in the caller's thread while the run waits; None if agents are elsewhere."""
    patience_s: float | None = None
    """Seconds without any agent before the run fails; None: no limit."""
    roster: RosterSource = declared_roster
    """Called in each round."""
    clock: Clock = SYSTEM_CLOCK
    submitter: tuple[str, str] = ("", "")
    """Name and role of who has submitted the run; empty if there are no members."""
    code_names: bool = False
    """Whether nodes get code that is a file by name and SHA-256, as on a standing server; else by its path."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOutputs:
    """Destinations of a run's results."""

    store: RunStore
    """Results and checkpoints; a run that has checkpoints there resumes from the newest."""
    emit: Callable[[Event], None]
    journal: AnswerJournal | None = None
    """Keeps accepted results until a checkpoint has them; None if a killed run repeats them."""

"""A fleet in one process: a server with short heartbeats, and real agents in threads, over gRPC on loopback."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from fedloom.client.agent import Agent
from fedloom.client.grpc_channel import GrpcChannel
from fedloom.core.clock import SYSTEM_CLOCK, Clock
from fedloom.core.config import Experiment
from fedloom.core.events import Event
from fedloom.core.messages import Channel
from fedloom.core.protocols import Sink
from fedloom.server.app import Server
from fedloom.server.fleet.coordinator import Coordinator
from fedloom.server.rounds.run_services import FleetAccess, RosterSource, RuntimeInfo, declared_roster
from fedloom.server.rounds.session import Outcome, run_session
from fedloom.server.store.memory_run_store import MemoryRunStore
from fedloom.server.store.run_store import RunStore

T = TypeVar("T")
E = TypeVar("E", bound=Event)

TOKEN = "secret"
"""Token of agents of a test's server."""
PATIENCE_S = 60.0
"""Seconds that tests wait for what comes soon on an idle machine; a loaded one may take many times as long."""
PLACE = RuntimeInfo(runtime="test", workers=2, where="here")
"""Location of a test's runs."""


def quick_server(
    *,
    shared_memory: bool = True,
    heartbeat_s: float = 0.1,
    grace_s: float = 0.2,
    lost_after_s: float = PATIENCE_S,
    by_labels: bool = False,
    sinks: Sequence[Sink] = (),
) -> Server:
    """Make a server that detects a disconnected agent within a fraction of a second.

    Args:
        shared_memory: whether agents of this machine get payloads in shared memory.
        heartbeat_s: seconds between an agent's heartbeats.
        grace_s: seconds an agent may be away before its groups go to another.
        lost_after_s: seconds of silence after which an agent counts as disconnected.
        by_labels: whether a run's labels choose its nodes.
        sinks: take every event.
    """
    return Server(
        sinks,
        shared_memory=shared_memory,
        heartbeat_s=heartbeat_s,
        grace_s=grace_s,
        lost_after_s=lost_after_s,
        by_labels=by_labels,
    )


@contextlib.contextmanager
def running_agents(
    address: str, names: Sequence[str], wrap: Callable[[Channel], Channel] = lambda channel: channel
) -> Iterator[list[Agent]]:
    """Run agents over gRPC, each in a thread, until the block ends.

    Args:
        address: `host:port` of a server that listens with `TOKEN`.
        names: of the agents.
        wrap: puts something between each agent and its channel, such as a `faults.FaultyChannel`.
    """
    agents = [Agent(wrap(GrpcChannel(address, TOKEN)), name, give_up_s=PATIENCE_S) for name in names]
    threads = [threading.Thread(target=agent.run, name=agent.node) for agent in agents]
    for thread in threads:
        thread.start()
    try:
        yield agents
    finally:
        for agent in agents:
            agent.stop()
        for thread in threads:
            thread.join()


def run_on_fleet(
    experiment: Experiment,
    *,
    workers: int = 2,
    store: RunStore | None = None,
    sinks: Sequence[Sink] = (),
    stop: threading.Event | None = None,
    shared_memory: bool = True,
    wrap: Callable[[Channel], Channel] = lambda channel: channel,
) -> Outcome:
    """Run a whole experiment on its own server and agents.

    Args:
        experiment: its runtime is not used.
        workers: number of agents.
        store: the destination of the run's results; memory by default.
        sinks: take every event.
        stop: set it to stop the run in order.
        shared_memory, wrap: as for `quick_server` and `running_agents`.

    Returns:
        How it ended; an error does not raise, it is in the outcome.
    """
    store = store or MemoryRunStore("test-run")
    store.begin(experiment)
    with quick_server(shared_memory=shared_memory) as server:
        address = f"127.0.0.1:{server.listen(token=TOKEN)}"
        with running_agents(address, [f"agent-{index}" for index in range(workers)], wrap):
            fleet = fleet_access(server.coordinator, patience_s=PATIENCE_S)
            return run_session(experiment, store, fleet, sinks, stop=stop or threading.Event())


def fleet_access(
    coordinator: Coordinator,
    *,
    patience_s: float | None = None,
    place: Callable[[], RuntimeInfo] = lambda: PLACE,
    pump: Callable[[], None] | None = None,
    roster: RosterSource = declared_roster,
    clock: Clock = SYSTEM_CLOCK,
) -> FleetAccess:
    """Make a run's access to a coordinator's agents.

    Args:
        coordinator: the server's.
        patience_s: seconds a run waits without any agent; None: no limit.
        place, pump, roster, clock: as in `FleetAccess`.
    """
    return FleetAccess(
        coordinator=coordinator, place=place, pump=pump, patience_s=patience_s, roster=roster, clock=clock
    )


class EventLog:
    """A sink that stores a run's events and wakes waiting threads."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._changed = threading.Condition()

    def write(self, event: Event) -> None:
        """Store one event."""
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def close(self) -> None:
        """Do nothing."""

    def of(self, kind: type[E]) -> list[E]:
        """Return the events of a class, oldest first."""
        with self._changed:
            return [event for event in self.events if isinstance(event, kind)]

    def wait_for(self, condition: Callable[[Sequence[Event]], object], timeout_s: float = PATIENCE_S) -> None:
        """Wait until the events fulfil a condition.

        Raises:
            AssertionError: they have not after `timeout_s` seconds; the message shows them.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: condition(self.events), timeout_s):
                raise AssertionError(f"waited {timeout_s} s without success; events so far: {self.events}")


def wait_until(condition: Callable[[], T | None], timeout_s: float = PATIENCE_S, what: str = "it") -> T:
    """Wait until a condition is true, checking every few milliseconds; returns its value.

    Raises:
        AssertionError: `what` has not happened after `timeout_s` seconds.
    """
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        if time.monotonic() >= deadline:
            raise AssertionError(f"{what} has not happened within {timeout_s} s")
        time.sleep(0.005)
    return found

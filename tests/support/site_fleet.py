"""Sites in one process: agents with policies, each with a table of its own, and the runs they do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from policies import guard
from support_paths import SUPPORT

from fedloom.client.agent import Agent
from fedloom.client.setup import NodeSetup
from fedloom.core.config import Experiment
from fedloom.core.events import RoundFinished
from fedloom.core.records import Array
from fedloom.server.fleet.coordinator import Coordinator
from fedloom.server.fleet.payloads import PayloadStore
from fedloom.server.rounds.run_services import FleetAccess
from fedloom.server.rounds.session import Outcome, run_session
from fedloom.server.store.memory_run_store import MemoryRunStore
from fedloom.server.store.run_store import RunStore
from fedloom.simulation.in_process import InProcessChannel
from fedloom.testing.fleet import fleet_access, wait_until

OWN_ROWS = str(SUPPORT / "own_rows.py")


def rows(name: str) -> tuple[Array, Array]:
    """The rows and classes of a site, different for each name and in number."""
    rng = np.random.default_rng(sum(map(ord, name)))
    x = rng.normal(sum(map(ord, name)) % 7, 2.0, (20 + sum(map(ord, name)) % 13, 3))
    return x, np.arange(len(x)) % 2


def train_rows(name: str) -> Array:
    """The rows that a site trains on."""
    x, _ = rows(name)
    return np.asarray(x[np.arange(len(x)) % 5 != 4])


def experiment(**values: Any) -> Experiment:
    """FedAvg on the sites' own rows."""
    workload = {"name": OWN_ROWS, **values.pop("workload", {})}
    base = {"name": "sites", "rounds": 3, "clients": "nodes", "strategy": "fedavg", "workload": workload}
    return Experiment.parse({**base, **values})


class Sites:
    """A server, and agents that come and go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.coordinator = Coordinator(PayloadStore(None), heartbeat_s=0.05, grace_s=0.3)
        self._running: dict[str, tuple[Agent, threading.Thread]] = {}

    def write(self, name: str, x: Array, y: Array) -> None:
        """Give a site another table."""
        folder = self.folder / f"data-{name}"
        folder.mkdir(exist_ok=True)
        np.savez(folder / "rows.npz", x=x, y=y)

    def start(self, *names: str, **policy: Any) -> None:
        """Connect sites in this order, one after another."""
        for name in names:
            if not (self.folder / f"data-{name}").exists():
                self.write(name, *rows(name))
            allowed = {"workloads": {OWN_ROWS: {"data": str(self.folder / f"data-{name}")}}, "code": [OWN_ROWS]}
            given = guard(self.folder / name, **{**allowed, "tracebacks": True, **policy})
            setup = NodeSetup(guard=given, states=self.folder / name / "states")
            (self.folder / name).mkdir(exist_ok=True)
            agent = Agent(InProcessChannel(self.coordinator), name, setup)
            thread = threading.Thread(target=agent.run, name=name)
            thread.start()
            self._running[name] = agent, thread
            wait_until(lambda name=name: name in self.coordinator.present({}), what=f"connecting {name}")  # type: ignore[misc]

    def stop(self, *names: str) -> None:
        """Have sites leave."""
        for name in names:
            agent, thread = self._running.pop(name)
            agent.stop()
            thread.join()
            wait_until(lambda name=name: name not in self.coordinator.present({}), what=f"leaving of {name}")  # type: ignore[misc]

    def run(
        self,
        one: Experiment,
        *,
        store: RunStore | None = None,
        after: dict[int, Callable[[], None]] | None = None,
        sinks: Sequence[Any] = (),
        stop: threading.Event | None = None,
    ) -> Outcome:
        """Run an experiment, doing something after rounds of these numbers."""
        store = store or MemoryRunStore("run")
        store.begin(one)
        return run_session(one, store, self.access(), (*sinks, After(after or {})), stop=stop or threading.Event())

    def access(self) -> FleetAccess:
        """A run's way to the sites, which find its workload by its digest."""
        return replace(fleet_access(self.coordinator), code_names=True)

    def close(self) -> None:
        self.stop(*self._running)
        self.coordinator.close()


class After:
    """A sink that does something after rounds, in the run's own thread."""

    def __init__(self, doing: dict[int, Callable[[], None]]) -> None:
        self._doing = doing

    def write(self, event: object) -> None:
        if isinstance(event, RoundFinished) and event.record.round in self._doing:
            self._doing[event.record.round]()

    def close(self) -> None:
        pass

"""Nodes with policies of their own: guards, and a fleet of agents that have them."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from fedloom.client.agent import Agent
from fedloom.client.guard import Guard
from fedloom.client.policy import Policy
from fedloom.client.setup import NodeSetup
from fedloom.client.usage import Usage
from fedloom.core.config import Experiment
from fedloom.server.fleet.coordinator import Coordinator
from fedloom.server.fleet.payloads import PayloadStore
from fedloom.server.rounds.session import Outcome, run_session
from fedloom.server.store.memory_run_store import MemoryRunStore
from fedloom.simulation.in_process import InProcessChannel
from fedloom.testing.fleet import PATIENCE_S, fleet_access, wait_until

NOON = datetime(2026, 3, 1, 12, 0)


def guard(tmp_path: Path, now: datetime = NOON, /, **policy: object) -> Guard:
    """A policy at work at a time of day."""
    return Guard(Policy.model_validate(policy), Usage(tmp_path / "usage.json", lambda: now), lambda: now)


class Fleet:
    """In-process agents with policies, and a server that asks them."""

    def __init__(self, tmp_path: Path, **policies: Mapping[str, object]) -> None:
        self._tmp_path, self._policies = tmp_path, policies

    def run(self, experiment: Experiment, *sinks: Any) -> Outcome:
        coordinator = Coordinator(PayloadStore(None), heartbeat_s=0.05, grace_s=0.2)
        made = [
            Agent(
                InProcessChannel(coordinator),
                name,
                NodeSetup(guard=guard(self._tmp_path, **policy)),
            )
            for name, policy in self._policies.items()
        ]
        threads = [threading.Thread(target=agent.run) for agent in made]
        for thread in threads:
            thread.start()
        store = MemoryRunStore("run")
        try:
            wait_until(
                lambda: len(nodes := coordinator.nodes()) == len(made) and not any(n.fresh for n in nodes.values())
            )
            fleet = replace(fleet_access(coordinator, patience_s=PATIENCE_S), code_names=True)
            return run_session(experiment, store, fleet, sinks, stop=threading.Event())
        finally:
            for agent in made:
                agent.stop()
            for thread in threads:
                thread.join()
            coordinator.close()

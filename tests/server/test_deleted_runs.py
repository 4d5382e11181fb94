"""Deleting a run: nodes drop its clients' states, those that are away when they connect again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from site_fleet import Sites, experiment

from fedloom.client.client_stores import NodeStore
from fedloom.core.history import RosterLine, RoundRecord, RunSummary, SiteLine, Timing, Traffic
from fedloom.core.messages import Group, GroupKey, Hello, RunOver
from fedloom.core.records import Record
from fedloom.server.deleted_runs import KEPT_S
from fedloom.server.fleet.coordinator import Coordinator
from fedloom.server.fleet.payloads import PayloadStore
from fedloom.server.run_queue import RunQueue
from fedloom.server.store.disk_run_store import DiskRunStore
from fedloom.testing.clock import ManualClock
from fedloom.testing.fleet import wait_until


def never(store: DiskRunStore, emit: object, stop: threading.Event) -> RunSummary:
    raise AssertionError("no run is begun")


@contextlib.contextmanager
def opened(folder: Path, coordinator: Coordinator, clock: ManualClock) -> Iterator[RunQueue]:
    """A queue as the standing server opens it; nothing runs."""
    with contextlib.closing(RunQueue(folder, never, clock=clock)) as runs:
        runs.on_deleted, coordinator.deleted_runs = coordinator.drop_states, runs.deleted_for
        yield runs


def ended_run(runs: RunQueue, sites: dict[str, str]) -> str:
    """Queue a run of sites, by name and member, that is stopped before it has begun."""
    run_id = runs.submit(experiment().to_dict())
    joined = [SiteLine(client=k, name=name, member=member) for k, (name, member) in enumerate(sites.items())]
    runs.store(run_id).append_roster(RosterLine(round=1, joined=joined, online=[*range(len(joined))]))
    runs.stop(run_id)
    return run_id


def store_state(folder: Path, run_id: str) -> Path:
    """Store a client's state on a node; returns the file."""
    group = Group(key=GroupKey(run_id, 1, 0, 0), jobs=())
    before = set(folder.rglob("*.safetensors"))
    NodeStore(folder).keep(group, 0, Record({"own": {"w": np.ones(2, np.float32)}}))
    (file,) = set(folder.rglob("*.safetensors")) - before
    return file


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Sites]:
    with contextlib.closing(Sites(tmp_path)) as fleet:
        yield fleet


def test_connected_sites_drop_their_states_at_once_and_others_when_they_connect(sites: Sites, tmp_path: Path) -> None:
    clock = ManualClock()
    with opened(tmp_path / "server", sites.coordinator, clock) as runs:
        deleted, other = (ended_run(runs, {"a": "a", "b": "b"}) for _ in range(2))
        files = {
            (site, run): store_state(tmp_path / site / "states", run) for site in "abc" for run in (deleted, other)
        }
        sites.start("a", "c")
        assert runs.delete(deleted) == "interrupted"
        wait_until(lambda: not files["a", deleted].exists(), what="the end of a's state")
        assert files["b", deleted].exists(), "b is not connected"
    with opened(tmp_path / "server", sites.coordinator, clock):  # after a restart of the server
        sites.start("b")
        wait_until(lambda: not files["b", deleted].exists(), what="the end of b's state")
    assert {key for key, file in files.items() if not file.exists()} == {("a", deleted), ("b", deleted)}, (
        "c was no client of the run, and the other run was not deleted"
    )


def test_a_new_member_of_an_old_name_is_sent_nothing_and_a_renamed_one_is(tmp_path: Path) -> None:
    coordinator = Coordinator(PayloadStore(None))
    with contextlib.closing(coordinator), opened(tmp_path, coordinator, ManualClock()) as runs:
        run_id = ended_run(runs, {"north": "id-1"})
        runs.delete(run_id)
        for name, member, expected in (("north", "id-2", []), ("nord", "id-1", [RunOver(run_id=run_id)])):
            coordinator.register(Hello(node=name, session="s"), "remote", member=member)
            assert coordinator.attach(name, "s").take(9) == expected


def test_what_was_deleted_long_ago_is_forgotten(tmp_path: Path) -> None:
    coordinator, clock = Coordinator(PayloadStore(None)), ManualClock()
    with contextlib.closing(coordinator), opened(tmp_path, coordinator, clock) as runs:
        first = ended_run(runs, {"north": "north"})
        runs.delete(first)
        clock.advance(KEPT_S - 1)
        assert runs.deleted_for(["north"]) == [first]
        clock.advance(2)
        assert runs.deleted_for(["north"]) == []


def test_of_other_runs_the_nodes_that_worked_are_told_where_states_stay_on_nodes(tmp_path: Path) -> None:
    coordinator = Coordinator(PayloadStore(None))
    with contextlib.closing(coordinator), opened(tmp_path, coordinator, ManualClock()) as runs:
        for home, expected in (("server", []), ("node", ["w1"])):
            values = {"name": "x", "rounds": 1, "clients": 2, "strategy": "fedavg", "round": {"state_home": home}}
            run_id = runs.submit({**values, "workload": {"name": "fedloom.testing.linear"}})
            store = runs.store(run_id)
            shares = {"w1": {"jobs": 1, "busy_s": 0.0, "wire_bytes_down": 0, "wire_bytes_up": 0}}
            record = RoundRecord(round=1, cohort=[], num_examples=1, metrics={}, traffic=Traffic(), timing=Timing())
            store.append_round(RoundRecord.model_validate({**record.model_dump(), "nodes": shares}))
            runs.stop(run_id)
            runs.delete(run_id)
            assert [name for name in ("w1", "w2") if run_id in runs.deleted_for([name])] == expected

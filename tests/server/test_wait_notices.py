"""A waiting run says what it waits for: the labels, the work, since when."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedloom.core.config import Experiment
from fedloom.core.errors import Interrupted
from fedloom.core.events import Event, Notice
from fedloom.core.messages import Group, Hello
from fedloom.core.records import Exchange, Job
from fedloom.server.app import Server
from fedloom.server.fleet.open_exchange import Holding
from fedloom.server.fleet.planned import PlannedExchange, RunFacts
from fedloom.server.rounds.closing import Closing, ClosingTerms
from fedloom.server.rounds.long_waits import LongWaits
from fedloom.server.rounds.wait_notices import WaitNotices
from fedloom.server.rounds.waiting import Waiting
from fedloom.server.run_queue import RunQueue
from fedloom.server.store.disk_run_store import DiskRunStore
from fedloom.simulation.in_process import InProcessChannel
from fedloom.testing.by_hand import ManualAgent, open_exchange, planned_groups, run_spec
from fedloom.testing.clock import ManualClock
from fedloom.testing.fleet import EventLog, fleet_access, wait_until


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(now=1_000_000_000.0)  # 2001-09-09 01:46:40 UTC


def notices(events: list[Event], clock: ManualClock) -> WaitNotices:
    return WaitNotices("run", "the work is that of workload 'w'", events.append, clock)


def test_a_wait_is_reported_once_for_each_reason_and_when_it_is_over(clock: ManualClock) -> None:
    events: list[Event] = []
    waits = notices(events, clock)
    for _ in range(8):
        waits.look("no node with site=a is connected (connected: b)")
        clock.advance(1.0)
    waits.look("every node refuses the work for now (a: hours)")
    waits.look("")
    waits.look("")
    assert [(event.message, event.waits_for) for event in events if isinstance(event, Notice)] == [
        (text, text)
        for text in (
            "waits since 2001-09-09 01:46:40 UTC: no node with site=a is connected (connected: b); the work is that of "
            "workload 'w'",
            "waits since 2001-09-09 01:46:40 UTC: every node refuses the work for now (a: hours); the work is that of "
            "workload 'w'",
        )
    ] + [("waited 8 s; continues", "")]


def test_a_short_wait_is_not_reported(clock: ManualClock) -> None:
    events: list[Event] = []
    waits = notices(events, clock)
    waits.look("no node is connected")
    clock.advance(2.9)
    waits.look("no node is connected")
    waits.over()
    assert events == []


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(shared_memory=False, by_labels=True) as server:
        yield server


def join(server: Server, node: str, **labels: str) -> None:
    server.coordinator.register(Hello(node=node, session="s"), "process", labels)
    server.coordinator.attach(node, "s")


def test_what_is_lacking_is_said_with_labels_and_names(server: Server) -> None:
    coordinator = server.coordinator
    with open_exchange(coordinator, planned_groups(1.0), labels={"site": "a"}) as opened:
        assert coordinator.waits_for(opened) == "no node is connected"
        join(server, "n", site="b")
        assert coordinator.waits_for(opened) == "no node with site=a is connected (connected: n)"
        assert (coordinator.count_fitting({"site": "a"}), coordinator.count_fitting({"site": "b"})) == (0, 1)


def test_a_run_waits_for_the_nodes_it_wants_and_can_be_stopped_meanwhile(server: Server) -> None:
    log, stop = EventLog(), threading.Event()
    waits = WaitNotices("run", "", log.write, server.clock)
    long_waits = LongWaits("run", log.write, server.clock)
    waiting = Waiting(fleet_access(server.coordinator), stop, "stopped", waits, long_waits)
    done: list[str] = []

    def wait(count: int, labels: dict[str, str]) -> None:
        waiting.for_nodes(count, labels)
        done.append(f"{count} nodes")

    for name, labels in (("one", {"site": "a"}), ("other", {"site": "b"})):
        join(server, name, **labels)
    thread = threading.Thread(target=wait, args=(2, {"site": "a"}))
    thread.start()
    time.sleep(0.1)
    assert not done
    join(server, "two", site="a")
    thread.join(60)
    assert done == ["2 nodes"]
    thread = threading.Thread(target=wait, args=(3, {}))
    thread.start()
    thread.join(60)
    assert done == ["2 nodes", "3 nodes"]
    stop.set()
    with pytest.raises(Interrupted, match="stopped"):
        waiting.for_nodes(4, {})


def test_the_list_of_runs_says_what_a_run_waits_for(tmp_path: Path) -> None:
    go_on, said = threading.Event(), threading.Event()

    def run_one(store: DiskRunStore, emit: object, stop: threading.Event) -> object:
        assert callable(emit)
        emit(Notice(run_id=store.run_id, message="waits", waits_for="waits since now: no node"))
        said.set()
        assert go_on.wait(60)
        emit(Notice(run_id=store.run_id, message="another", waits_for=None))
        emit(Notice(run_id=store.run_id, message="goes on", waits_for=""))
        stop.wait(60)
        raise RuntimeError("the end")

    queue = RunQueue(tmp_path, run_one)  # type: ignore[arg-type]  # it returns no summary
    queue.start()
    try:
        run = queue.submit(
            Experiment.parse(
                {"rounds": 1, "strategy": "fedavg", "workload": {"name": "fedloom.testing.linear"}}
            ).to_dict()
        )
        assert said.wait(60)
        assert [row["error"] for row in queue.rows()] == ["waits since now: no node"]
        go_on.set()
        wait_until(lambda: queue.rows()[0]["error"] == "")
        queue.stop(run)
        wait_until(lambda: queue.rows()[0]["status"] == "failed")
        assert queue.rows()[0]["error"] == "RuntimeError: the end"
    finally:
        queue.close()


def held(**since: float) -> dict[int, Holding]:
    """Holdings of groups `_0`, `_1`, … by nodes n0, n1, …, since a monotonic time."""
    return {int(name[1:]): Holding(node=f"n{name[1:]}", since=at) for name, at in since.items()}


def test_a_client_that_does_not_return_is_named_after_a_minute_then_more_rarely(
    server: Server, clock: ManualClock
) -> None:
    events: list[Event] = []
    waits = LongWaits("run", events.append, clock)
    begin = clock.monotonic()
    said_at: list[int] = []
    with open_exchange(server.coordinator, planned_groups(1.0, 1.0)) as opened:
        for second in range(0, 4000, 5):
            before = len(events)
            waits.look(opened, held(_0=begin, _1=begin) if second < 20 else held(_1=begin))
            said_at += [second] * (len(events) - before)
            clock.advance(5.0)
        waits.closed()
        waits.closed()
    assert said_at == [60, 240, 960, 3840]
    first, *_, last = [event for event in events if isinstance(event, Notice)]
    assert first.message == (
        "round 1 waits since 2001-09-09 01:46:40 UTC for client 1 (train) on node 'n1', 60 s so far. No deadline "
        "bounds this: the run waits until they answer or their nodes disconnect. To close rounds without such "
        "clients, set round.deadline_s (seconds) and round.quorum_fraction below 1 when starting a run"
    )
    assert first.waits_for == first.message
    assert (len(events), last.message, last.waits_for) == (5, "the clients waited for have answered", "")


def test_what_takes_as_long_in_every_round_is_no_news(server: Server, clock: ManualClock) -> None:
    events: list[Event] = []
    waits = LongWaits("run", events.append, clock)
    with open_exchange(server.coordinator, planned_groups(1.0, 1.0)) as opened:
        for round_s in (50, 90, 170, 330, 330, 330):
            begin = clock.monotonic()
            for _ in range(0, round_s, 10):
                waits.look(opened, held(_0=begin))
                clock.advance(10.0)
            waits.look(opened, {})
            waits.closed()
    assert events == [], "never more than twice as long as before"


def test_a_run_that_waits_for_a_client_says_so(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedloom.server.rounds.long_waits.FIRST_S", 0.2)
    log, stop = EventLog(), threading.Event()
    long_waits = LongWaits("run", log.write, server.clock)
    waiting = Waiting(fleet_access(server.coordinator), stop, "stopped", notices([], ManualClock()), long_waits)
    groups = planned_groups(1.0)
    planned = PlannedExchange(
        run=RunFacts(spec=run_spec()),
        round=1,
        index=0,
        exchange=Exchange(jobs=(Job(round=1, client=0),)),
        groups=tuple(groups),
    )
    closing = Closing(planned, ClosingTerms(quota=1), server.clock)
    with open_exchange(server.coordinator, groups) as opened:
        agent = ManualAgent(InProcessChannel(server.coordinator), "lab-7")
        agent.start()
        agent.take(Group)
        threading.Timer(1.2, stop.set).start()
        with pytest.raises(Interrupted):
            waiting.next(opened, closing, lambda: None)
        waiting.closed()
    said = [event.message for event in log.events if isinstance(event, Notice)]
    assert "for client 0 (train) on node 'lab-7', " in said[0] and said[-1] == "the clients waited for have answered"

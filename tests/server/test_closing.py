"""When an exchange ends, decided in one place and by a clock that a test moves."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

import pytest

from fedloom.core.clock import SYSTEM_CLOCK, Clock
from fedloom.core.config import Experiment
from fedloom.core.errors import FedloomError, NoCapacity, QuorumNotReached
from fedloom.core.events import NodeChanged
from fedloom.core.messages import Ack, Group, GroupKey, Heartbeat, Hello, PayloadRef
from fedloom.core.records import ClientFailure, Exchange, Job, Record
from fedloom.server.fleet.coordinator import Coordinator
from fedloom.server.fleet.open_exchange import Answer
from fedloom.server.fleet.payloads import PayloadStore
from fedloom.server.fleet.planned import PlannedExchange, RunFacts
from fedloom.server.rounds.closing import Closing, ClosingTerms
from fedloom.server.rounds.collector import Collector
from fedloom.server.rounds.counts import Collected, RoundCounts
from fedloom.server.rounds.request import ExchangeRequest
from fedloom.server.rounds.run_services import RunOutputs
from fedloom.server.store.memory_run_store import MemoryRunStore
from fedloom.simulation.in_process import InProcessChannel
from fedloom.testing.by_hand import ManualAgent, group_result, planned_groups, run_spec
from fedloom.testing.clock import ManualClock
from fedloom.testing.fleet import EventLog, fleet_access, wait_until
from fedloom.testing.records import model_record

Make = Callable[..., Experiment]
T = TypeVar("T")


def closing(
    terms: ClosingTerms, groups: int, clock: ManualClock | None = None, *, only: str = "", **fields: object
) -> Closing:
    """Of an exchange of groups of one client each; `only` has a letter for each group's only node."""
    exchange = Exchange(jobs=tuple(Job(round=1, client=client) for client in range(groups)))
    values = {"reserve": range(groups - terms.reserve, groups), **fields}
    made = planned_groups(*[1.0] * groups)
    put = PlannedExchange(
        run=RunFacts(spec=run_spec()), round=1, index=0, exchange=exchange,
        groups=tuple(replace(group, only=only[at : at + 1]) for at, group in enumerate(made)),
        **values,  # type: ignore[arg-type]
    )  # fmt: skip
    return Closing(put, terms, clock or ManualClock())


def good(index: int) -> Answer:
    return Answer(index=index, node="n", result=group_result(GroupKey("run", 1, 0, index), index))


def lost(index: int) -> Answer:
    return Answer(index=index, node="n", result=None, lost="gone")


class TestDecisions:
    def test_everybody_has_answered(self) -> None:
        all_of = closing(ClosingTerms(quota=3), 3)
        for index in (2, 0, 1):
            assert all_of.open
            assert all_of.take(good(index)) == []
        assert not all_of.open and all_of.sampled() == (0, 1, 2) and all_of.superseded() == ()

    def test_the_quota_ends_it_and_the_rest_is_superseded(self) -> None:
        enough = closing(ClosingTerms(quota=2), 3)
        enough.take(good(2))
        enough.take(good(1))
        assert not enough.open and enough.superseded() == (0,) and enough.failures == []

    @pytest.mark.parametrize(("fraction", "may_fail"), [(1.0, 0), (0.5, 2), (0.34, 2), (0.25, 3)])
    def test_the_quorum_is_a_share_of_the_quota_rounded_up(self, fraction: float, may_fail: int) -> None:
        part = closing(ClosingTerms(quota=4, quorum_fraction=fraction), 4)
        for index in range(may_fail):
            part.take(lost(index))
        assert [failure.client for failure in part.failures] == list(range(may_fail))
        with pytest.raises(QuorumNotReached, match=f"needs updates of {4 - may_fail} of 4 clients"):
            part.take(lost(may_fail))

    def test_the_reserve_replaces_the_failed_and_counts_for_the_quorum(self) -> None:
        spare = closing(ClosingTerms(quota=2, reserve=2), 4)
        assert spare.sampled() == (0, 1)
        assert spare.take(lost(0)) == [2] and spare.take(lost(1)) == [3]
        assert spare.sampled() == (0, 1, 2, 3) and spare.open
        spare.take(good(2))
        with pytest.raises(QuorumNotReached):
            spare.take(lost(3))

    def test_a_reserve_that_has_answered_before_is_waited_for(self) -> None:
        """After a restart: its answer is on disk, and taken like any other."""
        spare = closing(ClosingTerms(quota=2, reserve=1), 3, answered={0, 2})
        spare.take(good(0))
        spare.take(good(2))
        assert not spare.open and spare.sampled() == (0, 1, 2) and spare.superseded() == (1,)

    def test_at_the_deadline_what_is_out_is_missing(self) -> None:
        clock = ManualClock()
        timed = closing(ClosingTerms(quota=3, quorum_fraction=0.3, deadline_s=60.0), 3, clock)
        timed.take(good(0))
        clock.advance(59.0)
        assert timed.open and timed.remaining_s() == 1.0
        clock.advance(2.0)
        assert timed.remaining_s() == -1.0
        timed.expire({1: "lab"})
        assert timed.superseded() == ()
        assert [(f.client, f.node, f.message, f.seconds) for f in timed.failures] == [
            (1, "lab", "no result within 60 s", 60.0),
            (2, "", "no result within 60 s; no node had capacity for it", 60.0),
        ]

    def test_a_site_that_did_not_get_its_own_group_is_named(self) -> None:
        timed = closing(ClosingTerms(quota=2, quorum_fraction=0.0, deadline_s=5.0), 2, only="ab")
        timed.expire({0: "a"})
        assert [(f.node, f.message) for f in timed.failures] == [
            ("a", "no result within 5 s"),
            ("b", "no result within 5 s; node 'b', the only one for it, had no capacity"),
        ]

    def test_a_reserve_nobody_has_seen_does_not_help_at_the_deadline(self) -> None:
        timed = closing(ClosingTerms(quota=2, reserve=1, deadline_s=1.0), 3)
        timed.take(good(0))
        with pytest.raises(QuorumNotReached, match="needs updates of 2 of 2 clients, but 1 are missing"):
            timed.expire({})


def test_counts_add_up() -> None:
    failure = ClientFailure(client=1, round=1, stage="train", error="E", message="m")
    one = RoundCounts(waiting_s=1.0, aggregation_s=0.5, duplicates=1, failures=(failure,), refusals={"a": "x"})
    two = RoundCounts(waiting_s=2.0, reassigned=3, restored=1, refusals={"b": "y"})
    both = RoundCounts(
        waiting_s=3.0, aggregation_s=0.5, duplicates=1, reassigned=3, restored=1, failures=(failure,),
        refusals={"a": "x", "b": "y"},
    )  # fmt: skip
    assert one + two == both and both + RoundCounts() == both
    assert both.beside_training() == RoundCounts(waiting_s=3.0, duplicates=1, reassigned=3, restored=1)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def listener() -> EventLog:
    return EventLog()


@pytest.fixture
def coordinator(listener: EventLog, clock: ManualClock) -> Iterator[Coordinator]:
    coordinator = Coordinator(
        PayloadStore(None), listener.write, heartbeat_s=4.0, grace_s=100.0, lost_after_s=1000.0, clock=clock
    )
    yield coordinator
    clock.advance(10_000.0)
    coordinator.close()


def join(coordinator: Coordinator, node: str = "hand") -> ManualAgent:
    hand = ManualAgent(InProcessChannel(coordinator), node)
    hand.open()
    hand.channel.send(Heartbeat())
    return hand


def collector(
    coordinator: Coordinator, facts: RunFacts, clock: Clock = SYSTEM_CLOCK, pump: Callable[[], None] | None = None
) -> tuple[Collector, MemoryRunStore]:
    store = MemoryRunStore("run")
    outputs = RunOutputs(store=store, emit=lambda event: None)
    return Collector(facts, fleet_access(coordinator, clock=clock, pump=pump), outputs, threading.Event()), store


def in_background(run: Collector, request: ExchangeRequest) -> tuple[threading.Thread, list[object]]:
    """Collect in a thread; its outcome, or what it raised, is put into the list."""
    outcome: list[object] = []

    def collect() -> None:
        try:
            outcome.append(run.collect(request))
        except FedloomError as exc:
            outcome.append(exc)

    thread = threading.Thread(target=collect)
    thread.start()
    return thread, outcome


def ask(*clients: int, **terms: float) -> ExchangeRequest:
    exchange = Exchange(jobs=tuple(Job(round=3, client=client) for client in clients), inputs={"model": model_record()})
    limits = ClosingTerms(quota=len(clients), **terms)  # type: ignore[arg-type]
    return ExchangeRequest(round=3, index=0, exchange=exchange, terms=limits)


class TestClock:
    def test_hours_pass_without_waiting(self, coordinator: Coordinator, clock: ManualClock, linear: Make) -> None:
        facts = RunFacts.of("run", linear(round={"group_size": 1}))
        run, _ = collector(coordinator, facts, clock=clock, pump=lambda: clock.advance(60.0))
        with pytest.raises(QuorumNotReached, match="no result within 36000 s; no node had capacity for it"):
            run.collect(ask(4, deadline_s=36_000.0))
        assert clock.monotonic() == 1000.0 + 36_000.0

    def test_a_group_of_a_vanished_agent_moves_when_its_grace_is_over(
        self, coordinator: Coordinator, clock: ManualClock, linear: Make
    ) -> None:
        facts = RunFacts.of("run", linear(round={"group_size": 1}))
        run, _ = collector(coordinator, facts, clock=clock)
        first = join(coordinator, "first")
        thread, outcome = in_background(run, ask(4))
        assert first.take(Group)[0].jobs[0].client == 4
        coordinator.detach("first", "session-1", "its connection broke")
        second = join(coordinator, "second")
        assert not [message for message in second.drain(0.05) if isinstance(message, Group)], "its grace is not over"
        clock.advance(101.0)
        group = second.take(Group)[0]
        second.channel.send(group_result(group.key, 4))
        thread.join(60)
        assert isinstance(outcome[0], Collected) and [report.client for report in outcome[0].reports] == [4]

    def test_a_deadline_is_later_by_as_long_as_the_server_stood_still(
        self, coordinator: Coordinator, linear: Make
    ) -> None:
        class Stopped(ManualClock):
            """Stands still in the first wait, as in a process that is stopped."""

            def get(self, source: queue.SimpleQueue[T], timeout_s: float) -> T:
                if self.monotonic() == 1000.0:
                    self.stand_still(500.0)
                    raise queue.Empty
                return super().get(source, timeout_s)

        clock = Stopped()
        run, _ = collector(coordinator, RunFacts.of("run", linear(round={"group_size": 1})), clock=clock)
        hand = join(coordinator)
        thread, outcome = in_background(run, ask(4, deadline_s=60.0))
        group = hand.take(Group)[0]
        wait_until(lambda: clock.monotonic() == 1500.0)
        hand.channel.send(group_result(group.key, 4))
        thread.join(60)
        assert isinstance(outcome[0], Collected) and [report.client for report in outcome[0].reports] == [4]

    def test_the_system_clock_continues(self) -> None:
        before = SYSTEM_CLOCK.monotonic()
        wait_until(lambda: SYSTEM_CLOCK.monotonic() > before)
        assert SYSTEM_CLOCK.time() > 1.6e9
        assert SYSTEM_CLOCK.overslept_s(SYSTEM_CLOCK.monotonic() - 7.0, 5.0) == pytest.approx(2.0, abs=0.5)
        assert SYSTEM_CLOCK.overslept_s(SYSTEM_CLOCK.monotonic(), 5.0) == 0.0


class TestStatesAtHome:
    """`round.state_home = "node"`."""

    def facts(self, linear: Make, home: str) -> RunFacts:
        return RunFacts.of("run", linear(round={"group_size": 1, "state_home": home}))

    @pytest.mark.parametrize("home", ["server", "node"])
    def test_the_server_sends_a_state_only_where_it_keeps_them(
        self, coordinator: Coordinator, linear: Make, home: str
    ) -> None:
        run, store = collector(coordinator, self.facts(linear, home))
        store.save_client(4, 2, 0, Record(info={"seen": 2}))
        hand = join(coordinator)
        thread, _ = in_background(run, ask(4))
        group = hand.take(Group)[0]
        assert set(group.states) == ({4} if home == "server" else set())
        hand.channel.send(group_result(group.key, 4))
        thread.join(60)

    @pytest.mark.parametrize("home", ["server", "node"])
    def test_a_state_that_comes_is_kept_or_refused(self, coordinator: Coordinator, linear: Make, home: str) -> None:
        run, store = collector(coordinator, self.facts(linear, home))
        hand = join(coordinator)
        thread, outcome = in_background(run, ask(4))
        group = hand.take(Group)[0]
        state = PayloadRef(size=1, record=Record(info={"seen": 3}))
        hand.channel.send(group_result(group.key, 4, states={4: state}))
        ack = hand.take(Ack)[0]
        if home == "node":
            coordinator.give_up("the test is over")
        thread.join(60)
        kept = store.client(4, (4, 0))
        if home == "server":
            assert ack.status == "accepted" and kept is not None and kept.info == {"seen": 3}
        else:
            assert ack.status == "rejected" and kept is None and isinstance(outcome[0], NoCapacity)
            assert "or each stays on its node (round.state_home = 'node')" in ack.message


def test_a_silent_agent_is_lost_by_the_clock(coordinator: Coordinator, clock: ManualClock, listener: EventLog) -> None:
    coordinator.register(Hello(node="far", session="1"), "remote")
    coordinator.attach("far", "1")
    clock.advance(1001.0)
    listener.wait_for(lambda events: any(isinstance(e, NodeChanged) and e.state == "lost" for e in events))

"""Who gets which group, and what happens when agents or messages vanish: the coordinator, without a network."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fedloom.core.config import Experiment
from fedloom.core.errors import (
    BadMessage,
    ClientFailed,
    NoCapacity,
    NotFound,
    QuorumNotReached,
    RunFailed,
    ServerUnreachable,
    StorageFull,
)
from fedloom.core.events import NodeChanged
from fedloom.core.messages import (
    Ack,
    Cancel,
    Goodbye,
    Group,
    GroupKey,
    GroupResult,
    Heartbeat,
    Hello,
    PayloadRef,
    Refusal,
)
from fedloom.core.records import ClientFailure, ClientReport, Exchange, Job, Record
from fedloom.server.fleet import results
from fedloom.server.fleet.coordinator import Coordinator
from fedloom.server.fleet.payloads import PayloadStore
from fedloom.server.fleet.planned import PlannedGroup, RunFacts
from fedloom.server.rounds.closing import ClosingTerms
from fedloom.server.rounds.collector import Collector
from fedloom.server.rounds.request import ExchangeRequest
from fedloom.server.rounds.run_services import RunOutputs
from fedloom.server.store.memory_run_store import MemoryRunStore
from fedloom.simulation.in_process import InProcessChannel
from fedloom.testing.by_hand import (
    ManualAgent,
    group_result,
    next_answer,
    open_exchange,
    planned_groups,
    prepared_ref,
    run_spec,
    sum_of_one,
)
from fedloom.testing.fleet import EventLog, fleet_access, wait_until
from fedloom.testing.records import model_record

Make = Callable[..., Experiment]


@pytest.fixture
def listener() -> EventLog:
    return EventLog()


@pytest.fixture
def coordinator(listener: EventLog) -> Iterator[Coordinator]:
    coordinator = Coordinator(PayloadStore(None), listener.write, heartbeat_s=0.05, grace_s=0.1, lost_after_s=0.4)
    yield coordinator
    coordinator.close()


def join(coordinator: Coordinator, node: str) -> ManualAgent:
    hand = ManualAgent(InProcessChannel(coordinator), node)
    hand.open()
    hand.channel.send(Heartbeat())
    return hand


def groups(hand: ManualAgent) -> list[int]:
    """Indices of the groups it has been given so far."""
    hand.drain(0.0)
    return [message.key.group for message in hand.got if isinstance(message, Group)]


def answer(hand: ManualAgent, index: int, round: int = 1) -> None:
    hand.channel.send(group_result(GroupKey("run", round, 0, index), index))


class TestPlacing:
    def test_the_longest_group_goes_first(self, coordinator: Coordinator) -> None:
        hand = join(coordinator, "a")
        with open_exchange(coordinator, planned_groups(1.0, 9.0, 5.0, 7.0)):
            for index in (1, 3, 2):
                assert index in groups(hand)
                answer(hand, index)
            assert groups(hand) == [1, 3, 2, 0]

    def test_equal_groups_go_in_cohort_order(self, coordinator: Coordinator) -> None:
        hand = join(coordinator, "a")
        with open_exchange(coordinator, planned_groups(1.0, 1.0, 1.0, 1.0)):
            assert groups(hand) == [0, 1, 2]

    def test_with_more_to_do_than_agents_groups_wait_with_them(self, coordinator: Coordinator) -> None:
        one, two = join(coordinator, "a"), join(coordinator, "b")
        with open_exchange(coordinator, planned_groups(*[1.0] * 6)) as opened:
            # Six, five, four and three waiting groups are more than two agents; the last two wait for whoever is free.
            assert (groups(one), groups(two), list(opened.pending)) == ([0, 2], [1, 3], [4, 5])

    def test_an_agent_is_filled_up_when_it_is_down_to_one(self, coordinator: Coordinator) -> None:
        hand = join(coordinator, "a")
        with open_exchange(coordinator, planned_groups(*[1.0] * 9)) as opened:
            assert groups(hand) == [0, 1, 2]
            answer(hand, 0)
            assert len(opened.pending) == 6  # two are left to it
            answer(hand, 1)
            assert groups(hand) == [0, 1, 2, 3, 4] and len(opened.pending) == 4

    def test_no_work_goes_to_a_node_busy_with_cancelled_work_while_another_is_there(
        self, coordinator: Coordinator
    ) -> None:
        one, two = join(coordinator, "a"), join(coordinator, "b")
        with open_exchange(coordinator, planned_groups(2.0, 1.0), round=1):
            assert (groups(one), groups(two)) == ([0], [1])
            answer(two, 1)
        with open_exchange(coordinator, planned_groups(*[1.0] * 9), round=2) as opened:
            assert {group.key.round for group in one.take(Group)} == {1} and {
                group.key.round for group in two.take(Group, 3)
            } == {1, 2}
            waiting = len(opened.pending)
            assert waiting > 5
            one.channel.send(group_result(GroupKey("run", 1, 0, 0), 0))  # too late to count: it is free again
            assert one.take(Group, 2)[1].key.round == 2 and len(opened.pending) < waiting

    def test_a_heartbeat_that_does_not_name_cancelled_work_says_that_a_node_is_free(
        self, coordinator: Coordinator
    ) -> None:
        one = join(coordinator, "a")
        with open_exchange(coordinator, planned_groups(1.0), round=1):
            assert groups(one) == [0]
        with open_exchange(coordinator, planned_groups(1.0), round=2) as opened:
            assert list(opened.pending) == [0]
            assert coordinator.waits_for(opened).startswith("every node is still busy with cancelled work (a for ")
            one.channel.send(Heartbeat(groups=(GroupKey("run", 1, 0, 0),)))
            assert list(opened.pending) == [0]
            one.channel.send(Heartbeat())
            assert not opened.pending and coordinator.waits_for(opened) == ""

    def test_near_the_end_nothing_is_kept_from_an_idle_neighbour(self, coordinator: Coordinator) -> None:
        one, two = join(coordinator, "a"), join(coordinator, "b")
        with open_exchange(coordinator, planned_groups(1.0, 1.0, 1.0)) as opened:
            assert (len(groups(one)), len(groups(two)), len(opened.pending)) == (1, 1, 1)
            answer(two, groups(two)[0])
            assert len(groups(two)) == 2 and not opened.pending

    def test_an_agent_gets_no_work_before_it_said_what_it_holds(self, coordinator: Coordinator) -> None:
        hand = ManualAgent(InProcessChannel(coordinator), "a")
        hand.open()
        with open_exchange(coordinator, planned_groups(1.0)) as opened:
            assert groups(hand) == []
            hand.channel.send(Heartbeat())
            assert groups(hand) == [0]
            assert opened.reassigned == 0

    def test_an_agent_that_comes_in_the_middle_gets_work(self, coordinator: Coordinator) -> None:
        with open_exchange(coordinator, planned_groups(1.0)):
            assert groups(join(coordinator, "late")) == [0]

    def test_two_exchanges_at_once_are_both_served(self, coordinator: Coordinator) -> None:
        hand = join(coordinator, "a")
        with (
            open_exchange(coordinator, planned_groups(1.0), run=run_spec("one")) as one,
            open_exchange(coordinator, planned_groups(1.0), run=run_spec("two")) as two,
        ):
            for run_id in ("one", "two"):
                hand.take(Group)
                hand.channel.send(group_result(GroupKey(run_id, 1, 0, 0), 0))
            assert next_answer(one).index == next_answer(two).index == 0

    def test_equal_payloads_of_two_exchanges_stay_until_both_are_over(self, coordinator: Coordinator) -> None:
        model = {"model": model_record(100_000)}
        first = coordinator.payloads.offer(model["model"])
        second = coordinator.payloads.offer(model["model"])
        ref = prepared_ref(coordinator.payloads, first, "remote")
        assert prepared_ref(coordinator.payloads, second, "remote").sha256 == ref.sha256
        coordinator.payloads.withdraw(second)
        assert sum(map(len, coordinator.payloads.download(ref.sha256, 0))) == ref.size
        coordinator.payloads.withdraw(first)
        with pytest.raises(NotFound, match="its round may have ended"):
            coordinator.payloads.download(ref.sha256, 0)


class TestVanishing:
    def test_a_dead_agents_group_goes_to_another_and_is_folded_once(self, coordinator: Coordinator) -> None:
        _one, two = join(coordinator, "a"), join(coordinator, "b")
        with open_exchange(coordinator, planned_groups(2.0, 1.0)) as opened:
            coordinator.leave("a", "", "its process ended with signal 9")
            answer(two, 1)
            assert groups(two) == [1, 0]
            answer(two, 0)
            assert sorted(next_answer(opened).index for _ in range(2)) == [0, 1]
            assert opened.reassigned == 1 and opened.answers.empty()

    def test_a_group_that_kills_every_agent_is_given_up(self, coordinator: Coordinator) -> None:
        with open_exchange(coordinator, planned_groups(1.0), run=run_spec(max_attempts=3)) as opened:
            for name in ("a", "b", "c"):
                assert groups(join(coordinator, name)) == [0]
                coordinator.leave(name, "", "its process ended with signal 9")
            lost = next_answer(opened)
            assert lost.result is None and lost.node == "c"
            assert lost.lost == "its process ended with signal 9 (3 attempts)"
            assert groups(join(coordinator, "d")) == []

    def test_an_agent_that_stays_away_loses_its_groups(self, coordinator: Coordinator, listener: EventLog) -> None:
        hand = join(coordinator, "a")
        with open_exchange(coordinator, planned_groups(1.0)) as opened:
            assert groups(hand) == [0]
            coordinator.detach("a", "session-1", "its connection broke")
            other = join(coordinator, "b")
            assert other.take(Group)[0].key.group == 0
            assert opened.reassigned == 1
        assert ("a", "lost") in [(event.node, event.state) for event in listener.of(NodeChanged)]

    def test_an_agent_that_is_back_in_time_keeps_them(self, coordinator: Coordinator) -> None:
        hand = join(coordinator, "a")
        with open_exchange(coordinator, planned_groups(1.0)) as opened:
            key = hand.take(Group)[0].key
            coordinator.detach("a", "session-1", "its connection broke")
            hand.open()
            hand.channel.send(Heartbeat(groups=(key,)))
            other = join(coordinator, "b")
            answer(hand, 0)
            assert next_answer(opened).node == "a"
            assert groups(other) == [] and opened.reassigned == 0

    def test_a_restarted_agent_gets_its_groups_again(self, coordinator: Coordinator) -> None:
        hand = join(coordinator, "a")
        with open_exchange(coordinator, planned_groups(1.0)) as opened:
            hand.take(Group)
            hand.open()
            hand.got.clear()
            hand.channel.send(Heartbeat())
            assert hand.take(Group)[0].key.group == 0
            assert opened.reassigned == 1

    def test_lost_pushes_are_repeated_without_counting_as_a_death(self, coordinator: Coordinator) -> None:
        hand = join(coordinator, "a")
        with open_exchange(coordinator, planned_groups(1.0), run=run_spec(max_attempts=1)) as opened:
            hand.take(Group)
            hand.got.clear()

            def again() -> list[int]:
                hand.channel.send(Heartbeat())
                return groups(hand)

            assert wait_until(again) == [0]
            assert opened.reassigned == 0 and opened.answers.empty()

    def test_a_held_group_is_not_pushed_again(self, coordinator: Coordinator) -> None:
        hand = join(coordinator, "a")
        with open_exchange(coordinator, planned_groups(1.0)):
            key = hand.take(Group)[0].key
            quiet = threading.Event()
            for _ in range(6):
                quiet.wait(0.03)
                hand.channel.send(Heartbeat(groups=(key,)))
            assert groups(hand) == [0]

    def test_a_silent_agent_counts_as_lost(self, coordinator: Coordinator, listener: EventLog) -> None:
        coordinator.register(Hello(node="quiet", session="1"), "remote")
        coordinator.attach("quiet", "1")
        coordinator.receive("quiet", "1", Heartbeat())
        with open_exchange(coordinator, planned_groups(1.0)):
            listener.wait_for(
                lambda events: any(
                    isinstance(e, NodeChanged) and (e.node, e.state) == ("quiet", "lost") for e in events
                )
            )
            (lost,) = [event for event in listener.of(NodeChanged) if event.state == "lost"]
            assert lost.node == "quiet" and "no heartbeat for" in lost.reason
            assert coordinator.online == 0
            assert join(coordinator, "b").take(Group)[0].key.group == 0

    def test_a_second_stream_of_a_session_takes_the_firsts_place(self, coordinator: Coordinator) -> None:
        coordinator.register(Hello(node="a", session="1"), "remote")
        first = coordinator.attach("a", "1")
        second = coordinator.attach("a", "1")
        assert first.get(timeout_s=5) is None, "the first stream ends"
        coordinator.detach("a", "1", "its connection ended", first)
        assert coordinator.online == 1
        coordinator.receive("a", "1", Heartbeat())
        with open_exchange(coordinator, planned_groups(1.0)):
            assert {type(second.get(timeout_s=5)).__name__ for _ in range(2)} == {"RunSpec", "Group"}


class TestBadMessages:
    def test_another_protocol_is_refused_with_what_to_do(self, coordinator: Coordinator) -> None:
        with pytest.raises(BadMessage, match="speaks protocol 9, this server 2: install the same"):
            coordinator.register(Hello(node="a", session="1", protocol=9), "remote")
        assert coordinator.rows() == []

    @pytest.mark.parametrize("node", ["a", "stranger"])
    def test_a_session_that_was_never_registered_is_not_found(self, coordinator: Coordinator, node: str) -> None:
        join(coordinator, "a")
        with pytest.raises(NotFound, match="register first"):
            coordinator.receive(node, "another", Heartbeat())
        with pytest.raises(NotFound, match="register first"):
            coordinator.attach(node, "another")

    @pytest.mark.parametrize("clients", [(0, 1), (), (7,), (0, 0)])
    def test_an_answer_about_other_clients_is_rejected_and_the_group_done_again(
        self, coordinator: Coordinator, clients: tuple[int, ...]
    ) -> None:
        hand = join(coordinator, "a")
        with open_exchange(coordinator, planned_groups(1.0)) as opened:
            key = hand.take(Group)[0].key
            reports = tuple(ClientReport(client=client, num_examples=1, seconds=0.0) for client in clients)
            hand.channel.send(GroupResult(key=key, total=PayloadRef(size=1, record=sum_of_one(0)), reports=reports))
            (ack,) = hand.take(Ack)
            assert ack.status == "rejected" and "expected clients [0]" in ack.message
            assert opened.answers.empty()
            wait_until(lambda: groups(hand) == [0, 0], what="that it is handed out again, there being nobody else")

    def test_an_answer_without_its_sum_is_rejected(self, coordinator: Coordinator) -> None:
        hand = join(coordinator, "a")
        with open_exchange(coordinator, planned_groups(1.0)):
            key = hand.take(Group)[0].key
            hand.channel.send(GroupResult(key=key, total=None, reports=group_result(key, 0).reports))
            assert "but no accumulator" in hand.take(Ack, status="rejected")[0].message

    def test_states_of_clients_that_were_not_sampled_are_rejected(self, coordinator: Coordinator) -> None:
        hand = join(coordinator, "a")
        with open_exchange(coordinator, planned_groups(1.0)) as opened:
            key = hand.take(Group)[0].key
            state = PayloadRef(size=1, record=Record(info={"mine": 1}))
            hand.channel.send(group_result(key, 0, states={0: state, 5: state}))
            assert "states of clients [5]" in hand.take(Ack, status="rejected")[0].message
            hand.channel.send(group_result(key, 0, states={0: state}))
            assert next_answer(opened).states[0].info == {"mine": 1}

    def test_a_state_that_is_not_there_rejects_the_result_not_the_run(self, coordinator: Coordinator) -> None:
        hand = join(coordinator, "a")
        with open_exchange(coordinator, planned_groups(1.0)) as opened:
            key = hand.take(Group)[0].key
            hand.channel.send(group_result(key, 0, states={0: PayloadRef(size=9, sha256="0" * 64)}))
            assert "is not complete" in hand.take(Ack, status="rejected")[0].message
            assert opened.answers.empty()

    @pytest.mark.parametrize("index", [1, 4_000_000_000])
    def test_groups_that_do_not_exist_change_nothing(self, coordinator: Coordinator, index: int) -> None:
        hand = join(coordinator, "a")
        with open_exchange(coordinator, planned_groups(1.0)) as opened:
            key = hand.take(Group)[0].key
            strange = key._replace(group=index)
            hand.channel.send(Heartbeat(groups=(key, strange)))
            hand.channel.send(group_result(strange, 0))
            assert "was not assigned to node 'a'" in hand.take(Ack, key=strange, status="rejected")[0].message
            coordinator.leave("a", "", "gone")
            other = join(coordinator, "b")
            assert groups(other) == [0]
            answer(other, 0)
            assert next_answer(opened).index == 0

    def test_a_result_of_a_run_nobody_knows_is_stale_and_leaves_nothing_behind(self, coordinator: Coordinator) -> None:
        hand = join(coordinator, "a")
        hand.channel.send(group_result(GroupKey("foreign", 1, 0, 0), 0))
        assert hand.take(Ack)[0].status == "stale"
        assert not coordinator._results._stale

    def test_a_late_result_counts_once_however_often_and_by_whatever_session_it_is_sent(
        self, coordinator: Coordinator
    ) -> None:
        one, two = join(coordinator, "a"), join(coordinator, "b")
        with open_exchange(coordinator, planned_groups(2.0, 1.0)):
            late = [group_result(hand.take(Group)[0].key, 0) for hand in (one, two)]
        for _ in range(3):
            one.channel.send(late[0])
        assert coordinator.take_stale("run") == 1
        again = join(coordinator, "a")
        again.channel.send(late[0])
        two.channel.send(late[1])
        assert again.take(Ack)[0].status == "stale", "it is acknowledged each time, or it would come for ever"
        assert coordinator.take_stale("run") == 1, "only the other node's is new"

    def test_late_results_do_not_fill_the_servers_memory(
        self, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(results, "MAX_LATE", 3)
        hand = join(coordinator, "a")
        with open_exchange(coordinator, planned_groups(1.0)):
            key = hand.take(Group)[0].key
        for round in range(2, 12):
            hand.channel.send(group_result(key._replace(round=round), 0))
        assert coordinator.take_stale("run") == 10
        assert len(coordinator._results._late["run"]) == 3
        coordinator.forget_run("run")
        assert not coordinator._results._late

    def test_another_agents_answer_to_the_group_is_as_good(self, coordinator: Coordinator) -> None:
        """It had been taken from that agent, which then answered after all."""
        one = join(coordinator, "a")
        with open_exchange(coordinator, planned_groups(2.0)) as opened:
            assert groups(one) == [0]
            coordinator.detach("a", "session-1", "its connection broke")
            two = join(coordinator, "b")
            assert two.take(Group)[0].key.group == 0
            one.start()
            answer(one, 0)
            assert next_answer(opened).node == "a"
            answer(two, 0)
            assert two.take(Ack)[0].status == "duplicate" and opened.duplicates == 1


def failing(key: GroupKey, stage: str = "load", client: int = 0) -> GroupResult:
    """The answer of a node that could do nothing of a group."""
    failure = ClientFailure(client=client, round=key.round, stage=stage, error="OSError", message="no disk", node="a")
    return GroupResult(key=key, total=None, failures=(failure,))


class TestFailingNodes:
    """Nodes that cannot do what another may be able to do."""

    def test_the_group_goes_to_each_node_once(self, coordinator: Coordinator) -> None:
        hands = {node: join(coordinator, node) for node in "abc"}
        with open_exchange(coordinator, planned_groups(1.0)) as opened:
            for node in "abc":
                (key,) = (group.key for group in hands[node].take(Group))
                assert opened.answers.empty()
                hands[node].channel.send(failing(key))
            answer = next_answer(opened)
            assert answer.node == "c" and answer.result is not None and answer.result.failures
            assert [node for _, node in opened.failed] == ["a", "b"]
            assert {node: (refusal.kind, refusal.reason) for node, refusal in opened.refusals.items()} == dict.fromkeys(
                "ab", ("failure", "stage load: OSError: no disk")
            )
            assert [groups(hands[node]) for node in "abc"] == [[0]] * 3

    def test_it_gets_nothing_more_of_the_exchange_but_of_the_next(self, coordinator: Coordinator) -> None:
        one, two = join(coordinator, "a"), join(coordinator, "b")
        with open_exchange(coordinator, planned_groups(2.0, 1.0)):
            one.channel.send(failing(one.take(Group)[0].key))
            assert (groups(one), groups(two)) == ([0], [1])
            answer(two, 1)
            assert (groups(one), groups(two)) == ([0], [1, 0])
        with open_exchange(coordinator, planned_groups(1.0), round=2):
            one.take(Group, key=GroupKey("run", 2, 0, 0))

    def test_what_it_repeats_changes_nothing(self, coordinator: Coordinator) -> None:
        one, two = join(coordinator, "a"), join(coordinator, "b")
        with open_exchange(coordinator, planned_groups(1.0)) as opened:
            key = one.take(Group)[0].key
            one.channel.send(failing(key))
            one.channel.send(failing(key))
            one.channel.send(Heartbeat(groups=(key,)))
            assert opened.duplicates == 1 and not opened.pending
            assert {ack.status for ack in one.take(Ack, count=2)} == {"accepted", "duplicate"}
            assert (groups(one), groups(two)) == ([0], [0])
            answer(two, 0)
            assert next_answer(opened).node == "b"

    def test_one_that_fails_late_takes_it_from_nobody(self, coordinator: Coordinator) -> None:
        one = join(coordinator, "a")
        with open_exchange(coordinator, planned_groups(1.0)) as opened:
            key = one.take(Group)[0].key
            two = join(coordinator, "b")
            coordinator.leave("a", "", "gone")
            assert groups(two) == [0]
            again = join(coordinator, "a")
            again.channel.send(failing(key))
            assert not opened.pending and groups(two) == [0] and opened.answers.empty()

    @pytest.mark.parametrize(("kind", "passed"), [("init", True), ("train", False)])
    def test_a_failure_in_a_clients_own_work_is_the_clients(
        self, coordinator: Coordinator, kind: str, passed: bool
    ) -> None:
        one, two = join(coordinator, "a"), join(coordinator, "b")
        with open_exchange(coordinator, [PlannedGroup(jobs=(Job(round=1, client=0, kind=kind),), work=1.0)]) as opened:
            one.channel.send(failing(one.take(Group)[0].key, stage=kind))
            assert (groups(two) == [0], opened.answers.empty()) == (passed, passed)

    def test_a_group_for_one_node_only_goes_to_no_other(self, coordinator: Coordinator) -> None:
        one, two = join(coordinator, "a"), join(coordinator, "b")
        with open_exchange(coordinator, [PlannedGroup(jobs=(Job(round=1, client=0),), work=1.0, only="a")]) as opened:
            one.channel.send(failing(one.take(Group)[0].key))
            assert next_answer(opened).node == "a" and groups(two) == []

    def test_with_none_left_that_would_the_reasons_of_all_are_reported(self, coordinator: Coordinator) -> None:
        one, two = join(coordinator, "a"), join(coordinator, "b")
        with open_exchange(coordinator, planned_groups(1.0)) as opened:
            key = one.take(Group)[0].key
            one.channel.send(failing(key))
            two.take(Group)
            two.channel.send(Refusal(key=key, kind="code", reason="not that"))
            lost = next_answer(opened)
            assert lost.result is None
            assert lost.lost == "refused by every node: a: stage load: OSError: no disk; b: not that"


class TestNeverReassigned:
    """Exchanges in which no group goes to a second node, such as rounds of a protocol that names its members."""

    def test_a_group_whose_node_vanishes_is_lost_with_it(self, coordinator: Coordinator) -> None:
        one, two = join(coordinator, "a"), join(coordinator, "b")
        with open_exchange(coordinator, planned_groups(2.0, 1.0), reassign=False) as opened:
            assert (groups(one), groups(two)) == ([0], [1])
            coordinator.leave("a", "", "its process ended with signal 9")
            lost = next_answer(opened)
            assert (lost.index, lost.node, lost.result) == (0, "a", None)
            assert lost.lost.startswith("its process ended with signal 9; this exchange does not reassign groups")
            answer(two, 1)
            assert next_answer(opened).index == 1
            assert groups(two) == [1] and groups(join(coordinator, "c")) == [] and opened.reassigned == 0

    def test_a_refusal_loses_the_group_even_if_it_is_for_a_while_only(self, coordinator: Coordinator) -> None:
        one, two = join(coordinator, "a"), join(coordinator, "b")
        with open_exchange(coordinator, planned_groups(1.0), reassign=False) as opened:
            key = one.take(Group)[0].key
            one.channel.send(Refusal(key=key, kind="hours", reason="at night only", retry_s=60.0))
            lost = next_answer(opened)
            assert (lost.node, lost.stage, lost.lost) == ("a", "policy", "refused by a: at night only")
            assert groups(two) == []

    def test_a_failure_of_the_node_is_the_answer(self, coordinator: Coordinator) -> None:
        one, two = join(coordinator, "a"), join(coordinator, "b")
        with open_exchange(coordinator, planned_groups(1.0), reassign=False) as opened:
            one.channel.send(failing(one.take(Group)[0].key))
            found = next_answer(opened)
            assert found.node == "a" and found.result is not None and found.result.failures[0].error == "OSError"
            assert groups(two) == []

    def test_a_rejected_result_loses_all_the_nodes_groups(self, coordinator: Coordinator) -> None:
        one = join(coordinator, "a")
        with open_exchange(coordinator, planned_groups(*[1.0] * 4), reassign=False) as opened:
            (first, *_) = one.take(Group, count=3)
            two = join(coordinator, "b")
            one.channel.send(GroupResult(key=first.key, total=None))  # about none of its clients
            lost = [next_answer(opened) for _ in range(3)]
            assert {answer.index for answer in lost} == {0, 1, 2} and {answer.node for answer in lost} == {"a"}
            assert groups(two) == [3]

    def test_a_push_that_got_lost_is_repeated_to_the_same_node(self, coordinator: Coordinator) -> None:
        one, two = join(coordinator, "a"), join(coordinator, "b")
        with open_exchange(coordinator, planned_groups(1.0), reassign=False):
            one.take(Group)
            one.got.clear()

            def again() -> list[int]:
                one.channel.send(Heartbeat())  # holds nothing, so what it was sent got lost
                return groups(one)

            assert wait_until(again) == [0] and groups(two) == []


class TestEnding:
    def test_closing_says_goodbye_and_takes_nobody_new(self, coordinator: Coordinator) -> None:
        hand = join(coordinator, "a")
        coordinator.close("maintenance")
        assert hand.take(Goodbye)[0].reason == "maintenance"
        with pytest.raises(ServerUnreachable, match="shutting down"):
            join(coordinator, "b")

    def test_leaving_an_exchange_cancels_and_forgets_it(self, coordinator: Coordinator) -> None:
        hand = join(coordinator, "a")
        with open_exchange(coordinator, planned_groups(1.0), round=3):
            hand.take(Group)
            assert coordinator.rows()[0]["state"] == "busy"
        assert hand.take(Cancel) == [Cancel(run_id="run", round=3, exchange=0)]
        assert coordinator.rows()[0]["state"] == "online"

    def test_trouble_with_a_push_ends_the_run_not_the_agent(
        self, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*args: object) -> PayloadRef:
            raise StorageFull("no shared memory for a buffer")

        with monkeypatch.context() as patch:
            patch.setattr(coordinator.payloads, "ref", full)
            hand = join(coordinator, "a")
            with open_exchange(coordinator, planned_groups(1.0, 1.0)) as opened:
                assert isinstance(opened.answers.get(timeout=5), StorageFull)
                assert groups(hand) == []
        with open_exchange(coordinator, planned_groups(1.0), round=2):
            assert groups(hand) == [0]


def collector(coordinator: Coordinator, linear: Make, **options: Any) -> Collector:
    run = RunFacts.of("run", linear(round={"max_attempts": 2, "group_size": 1}))
    outputs = RunOutputs(store=MemoryRunStore("run"), emit=lambda event: None)
    return Collector(run, fleet_access(coordinator, **options), outputs, threading.Event())


def ask(*clients: int) -> ExchangeRequest:
    jobs = tuple(Job(round=3, client=client) for client in clients)
    return asking(Exchange(jobs=jobs, inputs={"model": model_record()}))


def asking(exchange: Exchange) -> ExchangeRequest:
    return ExchangeRequest(round=3, index=0, exchange=exchange, terms=ClosingTerms(quota=len(exchange.jobs)))


class TestTexts:
    """What a person reads when it cannot go on."""

    def test_no_agent_for_too_long(self, coordinator: Coordinator, linear: Make) -> None:
        with pytest.raises(NoCapacity) as caught:
            collector(coordinator, linear, patience_s=0.05).collect(ask(1))
        assert "no agent has been connected" in str(caught.value) and "1 groups are waiting" in str(caught.value)
        assert "Check why the workers of the runtime ended" in str(caught.value)
        coordinator.explain_absence = lambda: "the cluster is full"
        with pytest.raises(NoCapacity, match=r"1 groups are waiting\. The run waits: the cluster is full"):
            collector(coordinator, linear, patience_s=0.05).collect(ask(1))

    def test_workers_that_cannot_be_kept_alive(self, coordinator: Coordinator, linear: Make) -> None:
        coordinator.give_up("worker-1 died 4 times in a row (last: signal 9)")
        with pytest.raises(NoCapacity, match="worker-1 died 4 times in a row"):
            collector(coordinator, linear).collect(ask(1))

    def test_lost_workers_name_client_round_stage_and_node(self, coordinator: Coordinator, linear: Make) -> None:
        def die() -> None:
            for name in ("n1", "n2"):
                join(coordinator, name).take(Group)
                coordinator.leave(name, "", "its process ended with signal 9")

        thread = threading.Thread(target=die)
        thread.start()
        with pytest.raises(QuorumNotReached) as caught:
            collector(coordinator, linear).collect(ask(5))
        thread.join()
        text = str(caught.value)
        assert "round 3 needs updates of 1 of 1 clients" in text
        assert "client 5, round 3, stage worker on n2: WorkerDied: its process ended with signal 9 (2 attempts)" in text

    def test_failing_clients_end_with_their_tracebacks(self, coordinator: Coordinator, linear: Make) -> None:
        hand = join(coordinator, "n1")

        def fail() -> None:
            key = hand.take(Group)[0].key
            failure = ClientFailure(
                client=5, round=3, stage="train", error="RuntimeError", message="broken", traceback="line 1", node="n1"
            )
            hand.channel.send(GroupResult(key=key, total=None, failures=(failure,)))

        thread = threading.Thread(target=fail)
        thread.start()
        with pytest.raises(ClientFailed, match="client 5, round 3, stage train on n1: RuntimeError: broken\nline 1"):
            collector(coordinator, linear).collect(ask(5))
        thread.join()

    @pytest.mark.parametrize(
        ("exchange", "text"),
        [
            (Exchange(jobs=(Job(round=3, client=5, inputs=("modle",)),), inputs={"model": model_record()}), "'modle'"),
            (Exchange(jobs=(Job(round=3, client=5, inputs=(), knobs={"mu": {1, 2}}),)), "knobs must be JSON"),
            (Exchange(jobs=(Job(round=3, client=5, inputs=()),), knobs={"mu": b"x"}), "knobs must be JSON"),
        ],
    )
    def test_a_plan_no_agent_could_be_sent_is_refused_and_poisons_nothing(
        self,
        coordinator: Coordinator,
        linear: Make,
        exchange: Exchange,
        text: str,
    ) -> None:
        join(coordinator, "a")
        with pytest.raises(RunFailed, match=text):
            collector(coordinator, linear).collect(asking(exchange))
        assert groups(join(coordinator, "b")) == []

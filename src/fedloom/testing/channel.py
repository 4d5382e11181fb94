"""Requirements on every channel between an agent and a server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from fedloom.core.accumulators import RunningMean
from fedloom.core.messages import Ack, Cancel, Channel, Goodbye, Group, GroupKey, Heartbeat, Hello, RunSpec
from fedloom.core.records import MODEL, Record, Update
from fedloom.server.app import Server
from fedloom.testing.by_hand import (
    ManualAgent,
    group_result,
    next_answer,
    open_exchange,
    planned_groups,
    run_spec,
    sum_of_one,
)
from fedloom.testing.fleet import quick_server, wait_until
from fedloom.testing.records import assert_same_record, model_record, records_of_every_dtype

SIZES = (100, 600_000, 30 << 20)
"""Bytes of payloads: some that fit into a message, some that go in shared memory or chunks, one of many chunks."""


@dataclass
class Rig:
    """A server, and channels to it."""

    suite: ChannelConformance
    server: Server
    stack: contextlib.ExitStack
    opened: list[Channel] = field(default_factory=list)

    def connect(self) -> Channel:
        """Make one more channel, closed with the rig."""
        self.opened.append(self.suite.connect(self.server))
        return self.opened[-1]

    def hand(self, node: str = "hand") -> ManualAgent:
        """Make an agent whose session is open and has beaten once."""
        hand = ManualAgent(self.connect(), node)
        hand.start()
        return hand

    def hand_with_work(self) -> ManualAgent:
        """Make an agent that is assigned a group; a server takes payloads from no other."""
        hand = self.hand()
        self.stack.enter_context(open_exchange(self.server.coordinator, planned_groups(1.0), run=run_spec("waits")))
        hand.take(Group)
        return hand


class ChannelConformance:
    """Tests of one kind of channel; subclass it, define `connect`, and set `shared` if payloads go in shared memory.

    A channel may repeat, delay or reorder messages; one that loses them fails here.
    """

    shared: bool = False
    """Whether an agent of this kind reads payloads from the server's shared memory."""

    def connect(self, server: Server) -> Channel:
        """Make a channel to the server, not opened yet."""
        raise NotImplementedError(f"{type(self).__name__} defines no connect(server)")

    def server(self) -> Server:
        """Make the server; its heartbeats are so slow that nothing beats within a test."""
        return quick_server(shared_memory=self.shared, heartbeat_s=5.0, lost_after_s=60.0)

    @contextlib.contextmanager
    def _rig(self) -> Iterator[Rig]:
        with self.server() as server, contextlib.ExitStack() as stack:
            rig = Rig(self, server, stack)
            try:
                yield rig
            finally:
                for channel in rig.opened:
                    channel.close()

    def test_a_welcome_has_the_servers_limits(self) -> None:
        """Check that opening returns the heartbeat interval and size limits."""
        with self._rig() as rig:
            welcome = rig.connect().open(Hello(node="a", session="1"))
            assert welcome.heartbeat_s == 5.0
            assert welcome.chunk_bytes == 1 << 20
            assert welcome.max_payload_bytes == rig.server.payloads.max_payload_bytes
            assert bool(welcome.depot_nonce) == self.shared

    def test_the_run_and_the_group_are_pushed(self) -> None:
        """Check that a group arrives with its run's experiment, and its inputs bit for bit."""
        with self._rig() as rig:
            hand = rig.hand()
            model = model_record(5, 0.25)
            with open_exchange(rig.server.coordinator, planned_groups(1.0), inputs={MODEL: model}) as opened:
                (spec,) = hand.take(RunSpec)
                (group,) = hand.take(Group)
                assert spec.run_id == "run" and spec.experiment["clients"] == 100
                assert group.key == opened.key(0) and [job.client for job in group.jobs] == [0]
                assert group.accumulator == "mean" and group.rules == ()
                assert_same_record(hand.channel.fetch(group.inputs[MODEL]), model)

    def test_what_is_fetched_is_read_only(self) -> None:
        """Check that fetched arrays cannot be written to: they may be the server's own."""
        with self._rig() as rig:
            hand = rig.hand()
            with open_exchange(rig.server.coordinator, planned_groups(1.0)):
                fetched = hand.channel.fetch(hand.take(Group)[0].inputs[MODEL])
                assert not fetched.groups[MODEL]["w"].flags.writeable, "a fetched array can be written to"

    def test_a_result_is_accepted_once_then_duplicate_then_stale(self) -> None:
        """Check that a result counts once, however often it is sent, and not after its exchange."""
        with self._rig() as rig:
            hand = rig.hand()
            with open_exchange(rig.server.coordinator, planned_groups(1.0, 1.0)) as opened:
                first, second = hand.take(Group, 1)[0], None
                answer = group_result(first.key, first.jobs[0].client, total=hand.store(sum_of_one(0)))
                hand.channel.send(answer)
                hand.take(Ack, key=first.key, status="accepted")
                arrived = next_answer(opened)
                assert arrived.node == "hand" and arrived.total is not None
                assert arrived.total.groups[MODEL]["w"].tolist() == [2, 2, 2]
                hand.channel.send(answer)
                hand.take(Ack, key=first.key, status="duplicate")
                assert opened.answers.empty() and opened.duplicates >= 1
                second = hand.take(Group, 2)[1]
                late = group_result(second.key, second.jobs[0].client, total=hand.store(sum_of_one(1)))
            for _ in range(2):  # as a node does whose acknowledgement was lost
                hand.channel.send(late)
            hand.take(Ack, key=second.key, status="stale")
            assert opened.answers.empty()
            assert rig.server.coordinator.take_stale("run") == 1, "a late result counts once, however often it is sent"
            assert rig.server.coordinator.take_stale("run") == 0

    def test_leaving_an_exchange_cancels_the_groups_that_wait(self) -> None:
        """Check that unfinished groups are cancelled when their exchange ends."""
        with self._rig() as rig:
            hand = rig.hand()
            with open_exchange(rig.server.coordinator, planned_groups(1.0, 1.0, 1.0), round=4, index=2):
                hand.take(Group, 2)
            (cancel,) = hand.take(Cancel)
            assert (cancel.run_id, cancel.round, cancel.exchange) == ("run", 4, 2)

    def test_an_agent_that_opens_again_keeps_the_groups_it_says_it_holds(self) -> None:
        """Check that a second session retains its groups and receives lost ones again."""
        with self._rig() as rig:
            hand = rig.hand()
            with open_exchange(rig.server.coordinator, planned_groups(3.0, 2.0, 1.0)) as opened:
                held, _forgotten = hand.take(Group, 2)
                before = len(hand.got)
                hand.open()
                hand.channel.send(Heartbeat(groups=(held.key,)))
                # The lost one is pushed again; the one it still has is not.
                while not (again := [m.key for m in hand.got[before:] if isinstance(m, Group)]):
                    hand.take(Group, 0)
                    hand.drain(0.2)
                assert held.key not in again
                hand.channel.send(group_result(held.key, held.jobs[0].client, total=hand.store(sum_of_one(0))))
                hand.take(Ack, key=held.key, status="accepted")
                assert next_answer(opened).index == held.key.group

    def test_a_goodbye_of_the_server_arrives(self) -> None:
        """Check that the server's farewell arrives."""
        with self._rig() as rig:
            hand = rig.hand()
            wait_until(lambda: rig.server.coordinator.online, 10, "the stream")
            rig.server.coordinator.close("enough for today")
            (goodbye,) = hand.take(Goodbye)
            assert goodbye.reason == "enough for today"

    def test_an_agent_that_leaves_gives_its_groups_to_another(self) -> None:
        """Check that groups of an agent that leaves go to another."""
        with self._rig() as rig:
            leaving, staying = rig.hand("leaving"), rig.hand("staying")
            with open_exchange(rig.server.coordinator, planned_groups(1.0, 1.0)) as opened:
                first, own = leaving.take(Group)[0], staying.take(Group)[0]
                leaving.channel.send(Goodbye(reason="battery"))
                staying.channel.send(group_result(own.key, own.jobs[0].client, total=staying.store(sum_of_one(0))))
                groups = staying.take(Group, 2)
                assert first.key in [group.key for group in groups]
                assert opened.reassigned == 1

    def test_records_of_every_dtype_cross_bit_for_bit(self) -> None:
        """Check that payloads of any dtype and size arrive bit for bit, in both directions."""
        small, medium, large = map(records_of_every_dtype, SIZES)
        with self._rig() as rig:
            hand = rig.hand()
            for index, record in enumerate((*small, *medium, large[2])):  # of the large ones bfloat16 alone
                with open_exchange(rig.server.coordinator, planned_groups(1.0), index=index, inputs={MODEL: record}):
                    group = hand.take(Group, index + 1)[index]
                    assert_same_record(hand.channel.fetch(group.inputs[MODEL]), record)
                    ref = hand.store(record)
                    assert ref.size > 0
                    assert_same_record(rig.server.payloads.take("hand", ref), record)
                hand.channel.send(Heartbeat())  # the exchange is cancelled; this says that none of it is running

    def test_equal_records_stored_twice_can_be_taken_twice(self) -> None:
        """Check that two equal payloads count as two."""
        with self._rig() as rig:
            hand = rig.hand_with_work()
            record = records_of_every_dtype(600_000)[0]
            first, second = hand.store(record), hand.store(record)
            for ref in (first, second):
                assert_same_record(rig.server.payloads.take("hand", ref), record)

    def test_leased_memory_is_stored_and_comes_back_after_recycle(self) -> None:
        """Check that arrays from `lease` can be stored, round after round, with memory that is reused."""
        with self._rig() as rig:
            hand = rig.hand_with_work()
            shape = Record({MODEL: {"w": np.zeros(300_000, np.float32), "b": np.zeros((), np.float32)}})
            names = []
            for round in (1, 2, 3):
                arrays = hand.lease(shape)
                arrays[MODEL]["w"][:] = round
                arrays[MODEL]["b"][...] = -round
                ref = hand.store(Record(arrays, {"round": round}))
                taken = rig.server.payloads.take("hand", ref)
                assert float(taken.groups[MODEL]["w"].sum()) == 300_000 * round
                assert float(taken.groups[MODEL]["b"]) == -round and taken.info == {"round": round}
                names.append(ref.shared)
                hand.channel.recycle("run")
            if self.shared:
                assert len(set(names)) == 1, "the buffer is used again"

    def test_recycling_a_runs_memory_leaves_that_of_others(self) -> None:
        """Check that another run's stored or leased memory is unchanged until that run's own is recycled."""
        with self._rig() as rig:
            hand = rig.hand_with_work()
            record, later = model_record(60_000, 1), model_record(60_000, 9)
            kept = hand.store(record, "a")
            leased = hand.lease(record, "a")
            leased[MODEL]["w"][:] = 2
            other = hand.store(record, "b")
            hand.lease(record, "b")
            hand.channel.recycle("b")
            again = {hand.store(later, "b").shared for _ in range(3)}
            assert_same_record(rig.server.payloads.take("hand", kept), record)
            assert float(leased[MODEL]["w"].sum()) == 120_000, "memory that another run leased was written to"
            taken = rig.server.payloads.take("hand", hand.store(Record(leased), "a"))
            assert_same_record(taken, model_record(60_000, 2))
            if self.shared:
                assert other.shared in again and kept.shared not in again, "only the recycled run's memory is reused"

    def test_an_abandoned_lease_is_never_taken_for_another_record(self) -> None:
        """Check that after an unusable sum is discarded, the next record stored is the one passed to `store`."""
        with self._rig() as rig:
            hand = rig.hand_with_work()
            for value in range(20):
                unusable = RunningMean(hand.lease)
                unusable.add(Update(num_examples=1, groups={MODEL: {"w": np.full(60_000, 9, np.float32)}}), 1.0, 0)
                del unusable
                record = Record({MODEL: {"w": np.full(60_000, value, np.float32)}})
                taken = rig.server.payloads.take("hand", hand.store(record))
                assert_same_record(taken, record)

    def test_the_experiment_is_sent_again_when_it_got_lost(self) -> None:
        """Check that a run's experiment is sent again when the agent reports it missing."""
        with self._rig() as rig:
            hand = rig.hand()
            run = run_spec("sent-again")
            with open_exchange(rig.server.coordinator, planned_groups(1.0), run=run):
                hand.take(RunSpec, run_id="sent-again")
                hand.take(Group)
                hand.got.clear()
                key = GroupKey("sent-again", 1, 0, 0)
                hand.channel.send(Heartbeat(groups=(key,), missing_runs=("sent-again",)))
                hand.take(RunSpec, run_id="sent-again")

"""Hashing, copying, decoding and vetting are done without the coordinator's lock, and what may happen meanwhile.

Nothing here waits for time to pass: long work stands still at a gate until the test has done what is to happen first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pytest

from fedloom.core import frames
from fedloom.core.depot import Depot
from fedloom.core.errors import BadUpdate, FedloomError, NotFound, RunFailed, StorageFull
from fedloom.core.messages import Ack, Group, GroupKey, GroupResult, Heartbeat, Hello, PayloadRef
from fedloom.core.records import Job, Record
from fedloom.server.fleet import node_table
from fedloom.server.fleet.coordinator import Coordinator
from fedloom.server.fleet.open_exchange import OpenExchange
from fedloom.server.fleet.payloads import PayloadStore
from fedloom.server.fleet.planned import PlannedGroup
from fedloom.testing.by_hand import group_result, open_exchange, planned_groups, run_spec, sum_of_one
from fedloom.testing.fleet import quick_server, wait_until
from fedloom.testing.records import model_record

T = TypeVar("T")
TIMEOUT_S = 10.0
ZERO = GroupKey("run", 1, 0, 0)
BIG = {"model": model_record(100_000)}


class Gate:
    """Long work that stands still until it is let on; `entered` counts who stands there."""

    def __init__(self) -> None:
        self.entered, self._open = threading.Semaphore(0), threading.Event()

    def wait(self) -> None:
        """Stand still; called by the work."""
        self.entered.release()
        assert self._open.wait(TIMEOUT_S), "the gate was not opened: somebody waits for this work"

    def reached(self, count: int = 1) -> None:
        """Return when so many stand there."""
        for _ in range(count):
            assert self.entered.acquire(timeout=TIMEOUT_S), "the work was not begun"

    def open(self) -> None:
        self._open.set()

    def vet(self, total: Record, clients: Any) -> None:
        """A check that takes long."""
        self.wait()


class Elsewhere:
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._error: BaseException | None = None

        def run() -> None:
            try:
                call()
            except BaseException as exc:
                self._error = exc

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def done(self) -> None:
        """Wait for its end, and raise what it raised."""
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive(), "the call has not returned"
        if self._error is not None:
            raise self._error


class Far:
    """A node on another machine, or on this host, moved by hand: calls into the coordinator, and what came back."""

    def __init__(
        self, coordinator: Coordinator, name: str, session: str = "1", locality: str = "remote", beat: bool = True
    ) -> None:
        self.coordinator, self.name, self.session = coordinator, name, session
        coordinator.register(Hello(node=name, session=session), "remote")
        self._mailbox = coordinator.attach(name, session, locality)
        self._got: list[Any] = []
        if beat:
            self.beat()

    def beat(self, *held: GroupKey) -> None:
        self.coordinator.receive(self.name, self.session, Heartbeat(groups=held))

    def send(self, message: GroupResult) -> None:
        self.coordinator.receive(self.name, self.session, message)

    def taken_over_by(self, name: str) -> Far:
        """Another node that gets this one's groups while this one is away for a moment."""
        self.coordinator.leave(self.name, self.session, "gone")
        other = Far(self.coordinator, name)
        self._mailbox = self.coordinator.attach(self.name, self.session, "remote")
        return other

    def upload(self, record: Record) -> PayloadRef:
        data = bytes(frames.encode(record))
        sha256 = hashlib.sha256(data).hexdigest()
        store = self.coordinator.payloads
        offset = store.upload_offset(self.name, sha256, len(data))
        assert store.upload(self.name, sha256, len(data), offset, [data[offset:]]) == len(data)
        return PayloadRef(size=len(data), sha256=sha256)

    def answer(self, index: int = 0, value: float = 2.0, **fields: Any) -> GroupResult:
        """A result whose sum has been uploaded."""
        return group_result(ZERO._replace(group=index), index, total=self.upload(sum_of_one(index, value)), **fields)

    def got(self, kind: type[T]) -> list[T]:
        with contextlib.suppress(queue.Empty):
            while True:
                self._got.append(self._mailbox.get(0))
        return [message for message in self._got if isinstance(message, kind)]

    def groups(self) -> list[int]:
        return [group.key.group for group in self.got(Group)]

    def acks(self) -> list[str]:
        return [ack.status for ack in self.got(Ack)]


@pytest.fixture
def coordinator() -> Iterator[Coordinator]:
    # No silence, absence or repetition counts within a test; where one is to, the test says so.
    coordinator = Coordinator(PayloadStore(None), heartbeat_s=60.0, grace_s=60.0, lost_after_s=60.0)
    yield coordinator
    coordinator.close()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


def owned(coordinator: Coordinator) -> bool:
    """Whether this thread holds the coordinator's lock."""
    held: bool = coordinator._changed._is_owned()  # type: ignore[attr-defined]
    return held


def answers(opened: OpenExchange) -> list[Any]:
    found = []
    with contextlib.suppress(queue.Empty):
        while True:
            found.append(opened.answers.get_nowait())
    return found


class TestVetting:
    def test_all_others_are_served_meanwhile(self, coordinator: Coordinator, gate: Gate) -> None:
        def vet(total: Record, clients: Any) -> None:
            if list(clients) == [0]:
                gate.wait()

        one, two = Far(coordinator, "a"), Far(coordinator, "b")
        with open_exchange(coordinator, planned_groups(9.0, 1.0), vet=vet) as opened:
            assert (one.groups(), two.groups()) == ([0], [1])
            slow = Elsewhere(lambda: one.send(one.answer(0)))
            gate.reached()
            two.beat(ZERO._replace(group=1))
            two.send(two.answer(1))
            assert two.acks() == ["accepted"] and [answer.index for answer in answers(opened)] == [1]
            assert Far(coordinator, "c").groups() == [] and coordinator.online == 3
            assert [row["state"] for row in coordinator.rows()] == ["busy", "online", "online"]
            with open_exchange(coordinator, planned_groups(1.0), round=2) as another:
                assert another.in_work == 1
            gate.open()
            slow.done()
            assert [answer.index for answer in answers(opened)] == [0] and one.acks() == ["accepted"]

    def test_two_results_of_a_group_at_the_same_time_are_one_answer(self, coordinator: Coordinator, gate: Gate) -> None:
        one = Far(coordinator, "a")
        with open_exchange(coordinator, planned_groups(1.0), vet=gate.vet) as opened:
            two = one.taken_over_by("b")
            both = [Elsewhere(partial(far.send, far.answer(0))) for far in (one, two)]
            gate.reached(2)
            assert len(coordinator.payloads._uploads) == 0, "both payloads are in the hands of who reads them"
            gate.open()
            for each in both:
                each.done()
            (answer,) = answers(opened)
            first, second = (one, two) if answer.node == "a" else (two, one)
            assert (first.acks(), second.acks()) == (["accepted"], ["duplicate"])
            assert (opened.duplicates, opened.done, list(opened.pending)) == (1, {0}, [])
            assert [coordinator.groups_done(far.name) for far in (first, second)] == [1, 0]

    def test_a_result_whose_exchange_closes_is_stale(self, coordinator: Coordinator, gate: Gate) -> None:
        one = Far(coordinator, "a")
        with open_exchange(coordinator, planned_groups(1.0), vet=gate.vet) as opened:
            slow = Elsewhere(lambda: one.send(one.answer(0)))
            gate.reached()
        gate.open()
        slow.done()
        assert one.acks() == ["stale"] and coordinator.take_stale("run") == 1
        assert answers(opened) == [] and not coordinator.payloads._uploads
        assert coordinator.groups_done("a") == 0

    def test_nor_does_it_answer_the_same_question_asked_anew(self, gate: Gate) -> None:
        """A run that was stopped and begun again: its node has the group again, does it, and that result counts."""
        coordinator = Coordinator(PayloadStore(None), heartbeat_s=0.02, grace_s=60.0, lost_after_s=60.0)
        with contextlib.closing(coordinator):
            one = Far(coordinator, "a")
            with open_exchange(coordinator, planned_groups(1.0), vet=gate.vet):
                slow = Elsewhere(lambda: one.send(one.answer(0)))
                gate.reached()
            with open_exchange(coordinator, planned_groups(1.0)) as anew:
                gate.open()
                slow.done()
                assert one.acks() == ["stale"] and answers(anew) == []
                before = len(one.groups())
                # The agent has put its group away with the old result, and its heartbeats no longer name it.

                def pushed_again() -> bool:
                    one.beat()
                    return len(one.groups()) > before

                wait_until(pushed_again)
                one.send(one.answer(0))
                assert [answer.node for answer in answers(anew)] == ["a"]

    def test_a_session_that_takes_over_hears_of_the_result(self, coordinator: Coordinator, gate: Gate) -> None:
        one = Far(coordinator, "a")
        with open_exchange(coordinator, planned_groups(1.0), vet=gate.vet) as opened:
            message = one.answer(0)
            slow = Elsewhere(lambda: one.send(message))
            gate.reached()
            again = Far(coordinator, "a", session="2", beat=False)
            again.beat(ZERO)  # it holds the result, which nobody has acknowledged,
            again.send(message)  # and sends it again: the payload has been read, so only the first copy can count
            assert again.acks() == []
            gate.open()
            slow.done()
            (answer,) = answers(opened)
            assert answer.node == "a" and again.acks() == ["accepted"] and again.groups() == []
            assert not opened.refusals and opened.reassigned == 0 and coordinator.groups_done("a") == 1
            with pytest.raises(NotFound, match="register first"):
                one.beat()

    def test_a_copy_that_comes_meanwhile_or_later_changes_nothing(self, coordinator: Coordinator, gate: Gate) -> None:
        one = Far(coordinator, "a")
        with open_exchange(coordinator, planned_groups(1.0), vet=gate.vet) as opened:
            message = one.answer(0)
            slow = Elsewhere(lambda: one.send(message))
            gate.reached()
            one.send(message)
            gate.open()
            slow.done()
            assert len(answers(opened)) == 1 and one.acks() == ["accepted"] and not opened.refusals
            one.send(message)
            assert answers(opened) == [] and one.acks() == ["accepted", "duplicate"] and opened.duplicates == 1

    def test_a_node_that_leaves_has_answered_after_all(self, coordinator: Coordinator, gate: Gate) -> None:
        one, two = Far(coordinator, "a"), Far(coordinator, "b")
        with open_exchange(coordinator, planned_groups(1.0), vet=gate.vet) as opened:
            slow = Elsewhere(lambda: one.send(one.answer(0)))
            gate.reached()
            coordinator.leave("a", "", "its process ended")
            assert two.groups() == [0] and opened.reassigned == 1
            gate.open()
            slow.done()
            assert [answer.node for answer in answers(opened)] == ["a"]
            two.send(two.answer(0))
            assert two.acks() == ["duplicate"] and answers(opened) == [] and not coordinator.payloads._uploads

    def test_a_group_given_up_meanwhile_stays_given_up(self, coordinator: Coordinator, gate: Gate) -> None:
        one = Far(coordinator, "a")
        with open_exchange(coordinator, planned_groups(1.0), run=run_spec(max_attempts=1), vet=gate.vet) as opened:
            slow = Elsewhere(lambda: one.send(one.answer(0)))
            gate.reached()
            coordinator.leave("a", "", "its process ended")
            gate.open()
            slow.done()
            (lost,) = answers(opened)
            assert lost.result is None and "its process ended" in lost.lost and opened.duplicates == 1

    def test_a_node_forgotten_meanwhile_changes_nothing(
        self, coordinator: Coordinator, gate: Gate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(node_table, "MAX_NODES", 10)
        one, *others = (Far(coordinator, f"n-{index}") for index in range(10))
        with open_exchange(coordinator, planned_groups(1.0), vet=gate.vet) as opened:
            slow = Elsewhere(lambda: one.send(one.answer(0)))
            gate.reached()
            coordinator.leave("n-0", "", "gone")
            Far(coordinator, "n-10")  # the eleventh takes the place of the one that left
            assert "n-0" not in coordinator.nodes()
            gate.open()
            slow.done()
            assert answers(opened) == [] and [far.name for far in others if far.groups()] == ["n-1"]

    def test_a_bad_one_after_anothers_good_one_turns_its_node_away_and_takes_nothing_back(
        self, coordinator: Coordinator, gate: Gate
    ) -> None:
        def vet(total: Record, clients: Any) -> None:
            if not np.isfinite(total.groups["model"]["w"]).all():
                gate.wait()
                raise BadUpdate("not finite")

        one = Far(coordinator, "a")
        with open_exchange(coordinator, planned_groups(9.0), vet=vet) as opened:
            two = one.taken_over_by("b")
            bad = Elsewhere(lambda: one.send(group_result(ZERO, 0, total=one.upload(spoilt()))))
            gate.reached()
            two.send(two.answer(0))
            gate.open()
            bad.done()
            assert one.acks() == ["rejected"] and list(opened.refusals) == ["a"]
            assert [answer.node for answer in answers(opened)] == ["b"]
            assert opened.done == {0} and list(opened.pending) == [] and two.groups() == [0]

    def test_an_unforeseen_error_leaves_the_group_to_be_answered(self, coordinator: Coordinator) -> None:
        calls = iter([ZeroDivisionError("a bug")])

        def vet(total: Record, clients: Any) -> None:
            for error in calls:
                raise error

        one = Far(coordinator, "a")
        with open_exchange(coordinator, planned_groups(1.0), vet=vet) as opened:
            with pytest.raises(ZeroDivisionError):
                one.send(one.answer(0))
            one.send(one.answer(0))
            assert len(answers(opened)) == 1 and not opened.refusals

    def test_it_is_acknowledged_when_the_run_has_made_it_safe(self, coordinator: Coordinator, gate: Gate) -> None:
        one = Far(coordinator, "a")
        with open_exchange(coordinator, planned_groups(1.0), vet=gate.vet, run_acknowledges=True) as opened:
            message = one.answer(0)
            slow = Elsewhere(lambda: one.send(message))
            gate.reached()
            assert opened.unacknowledged == {}
            gate.open()
            assert opened.answers.get(timeout=TIMEOUT_S)
            assert opened.unacknowledged == {0: "a"}, "the run can acknowledge as soon as it has the answer"
            slow.done()
            one.send(message)
            one.beat(ZERO)
            assert one.acks() == [], "a copy is not told that the answer is safe before it is"
            coordinator.acknowledge(opened, 0)
            assert one.acks() == ["accepted"]


def spoilt() -> Record:
    record = sum_of_one(0)
    return Record({"model": {"w": np.full(3, np.nan, np.float32)}}, record.info)


class TestPayloadsAreUsedOnce:
    """A node may upload equal bytes for two of its groups: each result uses one of them."""

    def test_a_copy_of_a_result_does_not_use_the_next_ones(self, coordinator: Coordinator) -> None:
        one = Far(coordinator, "a")
        total = sum_of_one(0)
        with open_exchange(coordinator, planned_groups(1.0, 1.0, 1.0, 1.0)) as opened:
            refs = [one.upload(total), one.upload(total)]
            assert refs[0] == refs[1]
            first = group_result(ZERO, 0, total=refs[0])
            one.send(first)
            one.send(first)
            one.send(group_result(ZERO._replace(group=1), 1, total=refs[1]))
            assert one.acks() == ["accepted", "duplicate", "accepted"]
            assert len(answers(opened)) == 2 and not coordinator.payloads._uploads

    @pytest.mark.parametrize("trouble", ["vet", "clients", "state"])
    def test_nor_does_one_that_is_rejected(self, coordinator: Coordinator, trouble: str) -> None:
        def vet(total: Record, clients: Any) -> None:
            if trouble == "vet" and list(clients) == [0]:
                raise BadUpdate("no")

        one, total = Far(coordinator, "a"), sum_of_one(0)
        with open_exchange(coordinator, planned_groups(1.0, 1.0, 1.0), vet=vet) as opened:
            refs = [one.upload(total), one.upload(total)]
            missing = {0: PayloadRef(size=9, sha256="0" * 64)} if trouble == "state" else {}
            one.send(group_result(ZERO, 7 if trouble == "clients" else 0, total=refs[0], states=missing))
            assert one.acks() == ["rejected"]
            one.send(group_result(ZERO._replace(group=1), 1, total=refs[1]))
            assert one.acks() == ["rejected", "accepted"]
            assert len(answers(opened)) == 1 and not coordinator.payloads._uploads


class TestPreparing:
    @pytest.fixture
    def hashing(self, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Hashes wait at the gate; sizes of the records hashed so far."""
        digest, hashed = frames.digest, list[int]()

        def slow(record: Record) -> str:
            hashed.append(record.num_bytes)
            gate.wait()
            return digest(record)

        monkeypatch.setattr(frames, "digest", slow)
        return hashed

    def test_all_are_served_while_an_exchange_is_hashed_at_its_beginning(
        self, coordinator: Coordinator, gate: Gate, hashing: list[int]
    ) -> None:
        one, two = Far(coordinator, "a"), Far(coordinator, "b")
        with open_exchange(coordinator, planned_groups(1.0), run=run_spec("small")) as small:
            over = threading.Event()

            def big() -> None:
                with open_exchange(coordinator, planned_groups(1.0, 1.0), run=run_spec("big"), inputs=BIG):
                    assert over.wait(TIMEOUT_S)

            run = Elsewhere(big)
            gate.reached()
            one.beat(GroupKey("small", 1, 0, 0))
            one.send(group_result(GroupKey("small", 1, 0, 0), 0, total=one.upload(sum_of_one(0))))
            assert [answer.node for answer in answers(small)] == ["a"]
            assert [key.run_id for key in pushed(one, two)] == ["small"]
            gate.open()
            wait_until(lambda: [key.run_id for key in pushed(one, two)] == ["small", "big", "big"])
            over.set()
            run.done()
        assert hashing == [400_000], "once for both nodes"

    def test_a_node_of_another_kind_that_comes_later_waits_for_its_form_and_nobody_with_it(
        self, coordinator: Coordinator, gate: Gate, hashing: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        near = Far(coordinator, "near", locality="process")
        with open_exchange(coordinator, planned_groups(*[1.0] * 9), inputs=BIG) as opened:
            assert near.groups() == [0, 1, 2] and not hashing
            far = Far(coordinator, "far")  # its first heartbeat makes it ask for work
            gate.reached()
            assert far.groups() == []
            near.send(group_result(ZERO, 0))
            near.send(group_result(ZERO._replace(group=1), 1))
            assert near.groups() == [0, 1, 2, 3, 4] and len(answers(opened)) == 2
            with monkeypatch.context() as patch:
                patch.setattr(
                    coordinator._preparation._threads, "submit", lambda *args: pytest.fail("it is asked for twice")
                )
                farther = Far(coordinator, "farther")
            gate.open()
            wait_until(lambda: (far.groups(), farther.groups()) == ([5], [6]))
            (first,) = far.got(Group)
            assert b"".join(coordinator.payloads.download(first.inputs["model"].sha256, 0)) == bytes(
                frames.encode(BIG["model"])
            )
        assert hashing == [400_000], "once for both nodes"

    def test_a_group_that_prefers_a_node_waits_for_that_nodes_form(
        self, coordinator: Coordinator, gate: Gate, hashing: list[int]
    ) -> None:
        prefers = PlannedGroup(jobs=(Job(round=1, client=0),), work=1.0, prefer="far")
        with open_exchange(coordinator, [prefers], inputs=BIG) as opened:
            far, near = Far(coordinator, "far"), Far(coordinator, "near", locality="process")
            gate.reached()
            assert (far.groups(), near.groups(), list(opened.pending)) == ([], [], [0])
            gate.open()
            wait_until(lambda: far.groups() == [0])
            assert near.groups() == [] and len(hashing) == 1

    @pytest.mark.parametrize("shared", [False, True])
    def test_an_exchange_that_closes_meanwhile_leaves_nothing(
        self, gate: Gate, monkeypatch: pytest.MonkeyPatch, shared: bool
    ) -> None:
        depot = Depot.create() if shared else None
        digest, write = frames.digest, frames.write_into

        def slow_digest(record: Record) -> str:
            gate.wait()
            return digest(record)

        def slow_write(*args: Any) -> int:
            gate.wait()
            return write(*args)

        monkeypatch.setattr(frames, "digest", slow_digest)
        monkeypatch.setattr(frames, "write_into", slow_write)
        store = PayloadStore(depot)
        coordinator = Coordinator(store, heartbeat_s=60.0)
        with contextlib.closing(store), contextlib.closing(coordinator):
            with open_exchange(coordinator, planned_groups(1.0), inputs=BIG) as opened:
                late = Far(coordinator, "late", locality="host" if shared else "remote")
                gate.reached()
            gate.open()
            coordinator.close()  # waits for what is being prepared
            offer = opened.inputs["model"]
            assert offer.ended and not offer.listed and offer.buffer is None and late.groups() == []
            assert not store._by_digest and (depot is None or not depot._leased)

    @pytest.mark.parametrize(
        ("trouble", "reported"), [(StorageFull("full"), StorageFull), (ZeroDivisionError("a bug"), RunFailed)]
    )
    def test_trouble_is_the_runs_not_the_nodes(
        self,
        coordinator: Coordinator,
        monkeypatch: pytest.MonkeyPatch,
        trouble: Exception,
        reported: type[FedloomError],
    ) -> None:
        def fail(record: Record) -> str:
            raise trouble

        with monkeypatch.context() as patch:
            patch.setattr(frames, "digest", fail)
            with open_exchange(coordinator, planned_groups(1.0, 1.0), inputs=BIG) as opened:
                one = Far(coordinator, "a")
                assert isinstance(opened.answers.get(timeout=TIMEOUT_S), reported)
                assert one.groups() == [] and not opened.pending
            with pytest.raises(type(trouble)), open_exchange(coordinator, planned_groups(1.0), inputs=BIG, round=2):
                pytest.fail("it was put out")
        with open_exchange(coordinator, planned_groups(1.0), inputs=BIG, round=2):
            assert one.groups() == [0]

    def test_what_two_want_at_the_same_time_is_made_once(self, gate: Gate, hashing: list[int]) -> None:
        store = PayloadStore(None)
        offer = store.offer(BIG["model"])
        first = Elsewhere(lambda: store.prepare(offer, ["remote"]))
        gate.reached()
        second = Elsewhere(lambda: store.prepare(offer, ["remote"]))
        assert not gate.entered.acquire(timeout=0.1), "the second waits for the first"
        gate.open()
        first.done()
        second.done()
        assert hashing == [400_000] and len(store._by_digest[offer.sha256]) == 1

    def test_what_was_not_prepared_cannot_be_named(self) -> None:
        store = PayloadStore(None)
        offer = store.offer(BIG["model"])
        with pytest.raises(RuntimeError, match="400192 bytes is sent to a remote agent before it is prepared"):
            store.ref(offer, "remote")
        store.prepare(offer, ["remote"])
        assert store.ref(offer, "remote").sha256 == frames.digest(BIG["model"])
        store.withdraw(offer)
        store.prepare(offer, ["remote"])
        with pytest.raises(RuntimeError):
            store.ref(offer, "remote")


def pushed(*nodes: Far) -> list[GroupKey]:
    """The groups nodes have been given, runs that come first in the alphabet last."""
    return sorted((group.key for far in nodes for group in far.got(Group)), key=lambda key: key.run_id, reverse=True)


def test_in_a_whole_run_nothing_long_is_done_under_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large states, uploads and shared memory included; what is long is found by name, wherever it is called."""
    done: dict[str, int] = {}
    with quick_server(shared_memory=True) as server:
        coordinator = server.coordinator

        def watch(module: Any, name: str) -> None:
            real = getattr(module, name)

            def watched(*args: Any, **kwargs: Any) -> Any:
                assert not owned(coordinator), f"{name} under the coordinator's lock"
                done[name] = done.get(name, 0) + 1
                return real(*args, **kwargs)

            monkeypatch.setattr(module, name, watched)

        for name in ("digest", "write_into", "encode", "decode"):
            watch(frames, name)
        watch(json, "dumps")
        states = {0: model_record(50_000), 1: model_record(50_000, 2.0)}
        groups = [
            PlannedGroup(jobs=(Job(round=1, client=client),), work=1.0, states={client: states[client]})
            for client in states
        ]
        near, far = Far(coordinator, "near", locality="host"), Far(coordinator, "far")
        with open_exchange(coordinator, groups, vet=lambda total, clients: None) as opened:
            wait_until(lambda: len(near.groups()) == len(far.groups()) == 1)
            for each in (near, far):
                (group,) = each.got(Group)
                client = group.key.group
                ref = group.states[client]
                assert bool(ref.shared) == (each is near) and bool(ref.sha256) == (each is far)
                each.send(each.answer(client))
            assert sorted(answer.index for answer in answers(opened)) == [0, 1]
        coordinator.rows()
    assert done.keys() >= {"digest", "write_into", "encode", "decode", "dumps"}, done


def test_uploads_are_freed_without_the_lock(coordinator: Coordinator) -> None:
    freed: list[bool] = []
    one = Far(coordinator, "a")

    def watched() -> PayloadRef:
        ref = one.upload(sum_of_one(0))
        upload = coordinator.payloads._uploads["a", ref.sha256]
        weakref.finalize(upload, lambda: freed.append(owned(coordinator)))
        return ref

    one.send(group_result(GroupKey("nobody's", 1, 0, 0), 0, total=watched()))  # stale
    assert freed == [False]
    with open_exchange(coordinator, planned_groups(1.0)):
        one.send(group_result(ZERO._replace(group=5), 0, total=watched()))  # no such group
        assert freed == [False] * 2
    watched()
    coordinator.leave("a", "", "gone")
    assert freed == [False] * 3

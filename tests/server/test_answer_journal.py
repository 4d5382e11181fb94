"""Accepted answers outlive the server: what is written down, what still counts, and who is not asked again."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedloom.core.accumulators import RunningMean
from fedloom.core.config import Experiment
from fedloom.core.messages import Ack, Group, GroupKey, GroupResult, Heartbeat, PayloadRef
from fedloom.core.pinned import Pinned
from fedloom.core.records import ClientFailure, ClientReport, Exchange, Job, Mean, Record
from fedloom.server.fleet.coordinator import Coordinator
from fedloom.server.fleet.open_exchange import Answer
from fedloom.server.fleet.payloads import PayloadStore
from fedloom.server.fleet.planned import PlannedGroup, RunFacts
from fedloom.server.rounds.closing import ClosingTerms
from fedloom.server.rounds.collector import Collector
from fedloom.server.rounds.counts import Collected
from fedloom.server.rounds.request import ExchangeRequest
from fedloom.server.rounds.run_services import RunOutputs
from fedloom.server.store.answer_journal import AnswerJournal
from fedloom.server.store.memory_run_store import MemoryRunStore
from fedloom.simulation.in_process import InProcessChannel
from fedloom.testing.by_hand import ManualAgent, group_result, sum_of_one
from fedloom.testing.fleet import fleet_access, wait_until
from fedloom.testing.records import model_record

Make = Callable[..., Experiment]


def journal(folder: Path, **settings: Any) -> AnswerJournal:
    return AnswerJournal(folder / "answers", "run", settings)


def ask(*clients: int, value: float = 1.0, **changes: Any) -> Exchange:
    jobs = tuple(Job(round=3, client=client) for client in clients)
    return Exchange(jobs=jobs, inputs={"model": model_record(value=value)}, **changes)


def asking(exchange: Exchange) -> ExchangeRequest:
    return ExchangeRequest(round=3, index=0, exchange=exchange, terms=ClosingTerms(quota=len(exchange.jobs)))


def grouped(exchange: Exchange) -> list[PlannedGroup]:
    return [PlannedGroup(jobs=(job,), work=1.0) for job in exchange.jobs]


def answer(index: int = 0, *, total: Record | None = None, **fields: Any) -> Answer:
    report = ClientReport(
        client=5,
        num_examples=7,
        seconds=0.1 + 0.2,
        metrics={"loss": Mean(math.nan, 7.0), "accuracy": Mean(1 / 3, 7.0)},
        info={"credit": [0.1, None, "x"]},
        num_trained=1,
        bytes_up=12,
    )
    failure = ClientFailure(client=6, round=3, stage="train", error="E", message="m", traceback="t", node="n")
    reported = GroupResult(
        key=GroupKey("run", 3, 0, index), total=None, reports=(report,), failures=(failure,), busy_s=1.5
    )
    return Answer(index=index, node="north", result=reported, total=total, **fields)


class TestFiles:
    def test_what_is_read_is_what_was_kept(self, tmp_path: Path) -> None:
        total = Record({"mean": {"w": np.array([[1.5, -0.0], [np.inf, 2.0]], np.float32)}, "n": {}}, {"count": 2})
        written, asked = answer(2, total=total), "of-this-test"
        journal(tmp_path).keep(3, 0, asked, written)
        (found,) = journal(tmp_path).read(3, 0, asked).values()
        assert found.node == "north" and found.index == 2 and found.total is not None and found.total.info == total.info
        assert found.total.groups["mean"]["w"].tobytes() == total.groups["mean"]["w"].tobytes()
        # NaN is no equal of itself, so texts are compared.
        assert repr(found.result) == repr(written.result)

    def test_a_group_in_which_every_client_failed_has_no_sum(self, tmp_path: Path) -> None:
        journal(tmp_path).keep(3, 0, "q", answer())
        assert journal(tmp_path).read(3, 0, "q")[0].total is None

    def test_answers_to_another_question_are_gone(self, tmp_path: Path) -> None:
        journal(tmp_path).keep(3, 0, "q", answer())
        assert journal(tmp_path).read(3, 0, "another") == {}
        assert journal(tmp_path).read(3, 0, "q") == {}, "removed, for it will never be asked again"

    def test_a_damaged_file_is_no_answer(self, tmp_path: Path) -> None:
        journal(tmp_path).keep(3, 0, "q", answer(0, total=sum_of_one(5)))
        journal(tmp_path).keep(3, 0, "q", answer(1, total=sum_of_one(5)))
        victim = min((tmp_path / "answers").iterdir())
        victim.write_bytes(victim.read_bytes()[:-1] + b"\xff")
        assert set(journal(tmp_path).read(3, 0, "q")) == {1}

    def test_pruning_leaves_the_rounds_after_a_checkpoint(self, tmp_path: Path) -> None:
        for round in (9, 10, 11):
            journal(tmp_path).keep(round, 0, "q", answer())
        journal(tmp_path).prune(10)
        assert [path.name.split("-")[0] for path in (tmp_path / "answers").iterdir()] == ["000011"]
        journal(tmp_path).close()
        assert (tmp_path / "answers").exists(), "an answer is left for who goes on"
        journal(tmp_path).prune(11)
        journal(tmp_path).close()
        assert not (tmp_path / "answers").exists()

    def test_dropping_concerns_one_exchange(self, tmp_path: Path) -> None:
        for exchange in (0, 1):
            journal(tmp_path).keep(3, exchange, "q", answer())
        journal(tmp_path).drop(3, 0)
        assert journal(tmp_path).read(3, 0, "q") == {} and set(journal(tmp_path).read(3, 1, "q")) == {0}

    @pytest.mark.parametrize(
        ("other", "settings"),
        [
            (ask(1, 2, value=1.5), {}),
            (ask(1, 3), {}),
            (ask(2, 1), {}),
            (ask(1, 2, knobs={"rate": 1}), {}),
            (ask(1, 2, rules=("fedprox",)), {}),
            (ask(1, 2, accumulator="separate"), {}),
            (ask(1, 2), {"seed": 2}),
        ],
    )
    def test_a_question_is_all_its_answers_depend_on(
        self, tmp_path: Path, other: Exchange, settings: dict[str, Any]
    ) -> None:
        mine = journal(tmp_path).question(ask(1, 2), grouped(ask(1, 2)))
        assert mine == journal(tmp_path / "elsewhere").question(ask(1, 2), grouped(ask(1, 2)))
        assert mine != journal(tmp_path, **settings).question(other, grouped(other))


def test_a_pinned_input_is_part_of_the_question_by_its_digest(tmp_path: Path) -> None:
    def asked(value: float) -> str:
        base = Pinned.of(model_record(value=value))
        exchange = Exchange(jobs=(Job(round=3, client=1),), inputs={"base": base})
        return journal(tmp_path).question(exchange, grouped(exchange))

    assert asked(1.0) == asked(1.0) != asked(2.0)


class Fleet:
    """A server as often as wanted, each with one agent moved by hand."""

    def __init__(self, folder: Path, experiment: Experiment) -> None:
        self.journal = AnswerJournal(folder / "answers", "run", {})
        self._experiment = experiment
        self._open: list[Coordinator] = []

    def start(self) -> tuple[ManualAgent, Collector, threading.Event]:
        """A new server; the event stops its run."""
        coordinator = Coordinator(PayloadStore(None), heartbeat_s=0.2)
        self._open.append(coordinator)
        hand = ManualAgent(InProcessChannel(coordinator))
        hand.open()
        hand.channel.send(Heartbeat())
        stop = threading.Event()
        outputs = RunOutputs(store=MemoryRunStore("run"), emit=lambda event: None, journal=self.journal)
        collector = Collector(RunFacts.of("run", self._experiment), fleet_access(coordinator), outputs, stop)
        return hand, collector, stop

    def close(self) -> None:
        for coordinator in self._open:
            coordinator.close()


@pytest.fixture
def fleet(tmp_path: Path, linear: Make) -> Iterator[Fleet]:
    made = Fleet(tmp_path, linear(round={"group_size": 1}))
    yield made
    made.close()


def in_background(collector: Collector, exchange: Exchange) -> tuple[threading.Thread, list[Any]]:
    """Collect in a thread; its outcome, or what it raised, is put into the list."""
    outcome: list[Any] = []

    def collect() -> None:
        try:
            outcome.append(collector.collect(asking(exchange)))
        except Exception as exc:
            outcome.append(exc)

    thread = threading.Thread(target=collect)
    thread.start()
    return thread, outcome


def reply(hand: ManualAgent, group: Group) -> None:
    """The sum of one client of weight one."""
    client = group.jobs[0].client
    total = PayloadRef(size=1, record=sum_of_one(client, value=float(client)))
    hand.channel.send(group_result(group.key, client, total=total))


def reply_to_all(hand: ManualAgent, count: int) -> list[int]:
    """Answer that many groups as they come; returns their clients."""
    clients: list[int] = []
    while len(clients) < count:
        group = hand.take(Group, len(clients) + 1)[-1]
        reply(hand, group)
        clients.append(group.jobs[0].client)
    return clients


class TestRestart:
    def test_only_what_was_not_answered_is_assigned_again(self, fleet: Fleet) -> None:
        hand, collector, stop = fleet.start()
        thread, outcome = in_background(collector, ask(4, 5, 6))
        first = hand.take(Group)[0]
        reply(hand, first)
        assert hand.take(Ack)[0] == Ack(key=first.key, status="accepted")
        stop.set()
        thread.join(60)

        hand, collector, _ = fleet.start()
        thread, outcome = in_background(collector, ask(4, 5, 6))
        assert set(reply_to_all(hand, 2)) == {4, 5, 6} - {first.jobs[0].client}
        thread.join(60)
        (collected,) = outcome
        assert isinstance(collected, Collected) and collected.counts.restored == 1
        assert [report.client for report in collected.reports] == [4, 5, 6]
        assert isinstance(collected.total, RunningMean) and collected.total.count == 3
        np.testing.assert_array_equal(collected.total.value()["model"]["w"], np.full(3, 5.0, np.float32))

    def test_a_round_that_was_complete_assigns_nothing(self, fleet: Fleet) -> None:
        hand, collector, _ = fleet.start()
        thread, _ = in_background(collector, ask(4))
        reply(hand, hand.take(Group)[0])
        thread.join(60)
        hand, collector, _ = fleet.start()
        collected = collector.collect(asking(ask(4)))
        assert collected.counts.restored == 1 and [report.client for report in collected.reports] == [4]
        assert not [message for message in hand.drain() if isinstance(message, Group)]

    def test_another_model_is_another_question(self, fleet: Fleet) -> None:
        hand, collector, _ = fleet.start()
        thread, _ = in_background(collector, ask(4))
        reply(hand, hand.take(Group)[0])
        thread.join(60)
        hand, collector, _ = fleet.start()
        thread, outcome = in_background(collector, ask(4, value=1.5))
        reply(hand, hand.take(Group)[0])
        thread.join(60)
        assert outcome[0].counts.restored == 0


def test_an_answer_is_acknowledged_only_once_it_is_written_down(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    hand, collector, _ = fleet.start()
    may_write, keep = threading.Event(), fleet.journal.keep

    def slowly(*arguments: Any) -> None:
        assert may_write.wait(60)
        keep(*arguments)

    monkeypatch.setattr(fleet.journal, "keep", slowly)
    thread, outcome = in_background(collector, ask(4))
    (group,) = hand.take(Group)
    reply(hand, group)
    reply(hand, group)  # an agent that has waited too long says it again
    assert not [message for message in hand.drain() if isinstance(message, Ack)]
    may_write.set()
    assert hand.take(Ack) == [Ack(key=group.key, status="accepted")]
    thread.join(60)
    assert outcome[0].counts.duplicates == 1


def test_answers_that_cannot_be_folded_are_not_met_again(fleet: Fleet) -> None:
    hand, collector, _ = fleet.start()
    thread, outcome = in_background(collector, ask(4, 5))
    for number, size in enumerate((3, 8), 1):
        group = hand.take(Group, number)[-1]
        total = PayloadRef(size=1, record=sum_of_one(4, size=size))
        hand.channel.send(group_result(group.key, group.jobs[0].client, total=total))
    thread.join(60)
    assert type(outcome[0]).__name__ == "BadUpdate"
    wait_until(lambda: fleet.journal.read(3, 0, fleet.journal.question(ask(4, 5), grouped(ask(4, 5)))) == {})


def test_the_header_of_a_kept_answer_is_json(tmp_path: Path) -> None:
    journal(tmp_path).keep(3, 0, "q", answer(0, total=sum_of_one(5)))
    (path,) = (tmp_path / "answers").iterdir()
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert json.loads(header["__metadata__"]["fedloom"])["info"]["node"] == "north"

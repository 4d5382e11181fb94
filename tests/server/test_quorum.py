"""Rounds in which answers are missing: quorum, deadline, and what the record and the error say."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

import pytest

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.core.errors import ClientFailed, QuorumNotReached
from fedloom.core.events import ClientLost, RoundFinished
from fedloom.core.messages import Channel, FromAgent, Group, GroupKey, GroupResult, ToAgent
from fedloom.server.rounds.session import Outcome
from fedloom.testing.faults import ForwardingChannel
from fedloom.testing.fleet import EventLog, run_on_fleet

Make = Callable[..., Experiment]
HALF = {"quorum_fraction": 0.5}


def everybody(linear: Make, **values: Any) -> Experiment:
    """Six clients, all asked in each of two rounds, in groups of two."""
    round = {"group_size": 2, **values.pop("round", {})}
    return linear(rounds=2, clients=6, cohort=6, round=round, **values)


class TestQuorum:
    def test_half_the_answers_are_enough_and_the_missing_are_listed(self, linear: Make) -> None:
        listener = EventLog()
        outcome = run_on_fleet(everybody(linear, workload={"fail_clients": [1, 4]}, round=HALF), sinks=[listener])
        assert outcome.error is None and outcome.summary.status == "done"
        assert outcome.summary.failures == 4
        for record in outcome.history:
            assert sorted(failure.client for failure in record.failures) == [1, 4]
            for failure in record.failures:
                assert (failure.round, failure.stage, failure.error) == (record.round, "train", "RuntimeError")
                assert failure.message == f"client {failure.client} has a broken sensor"
                assert (
                    failure.traceback.endswith(f"RuntimeError: {failure.message}") and "linear.py" in failure.traceback
                )
                assert failure.node.startswith("agent-") and failure.seconds > 0
            assert sorted(map(int, record.client_seconds)) == [0, 2, 3, 5]
        assert len(listener.of(ClientLost)) == 4

    def test_exactly_the_quorum_is_enough_one_less_is_not(self, linear: Make) -> None:
        three = run_on_fleet(everybody(linear, workload={"fail_clients": [0, 1, 2]}, round=HALF))
        assert three.error is None
        four = run_on_fleet(everybody(linear, workload={"fail_clients": [0, 1, 2, 3]}, round=HALF))
        assert isinstance(four.error, QuorumNotReached)
        text = str(four.error)
        assert "round 1 needs updates of 3 of 6 clients, but 4 are missing" in text
        assert "see round.quorum_fraction and round.deadline_s" in text
        assert "client 0, round 1, stage train on agent-" in text and "broken sensor" in text and "… and 1 more" in text
        assert four.summary.status == "failed" and four.summary.rounds == 0

    def test_without_a_quorum_the_first_failure_ends_it_with_its_traceback(self, linear: Make) -> None:
        outcome = run_on_fleet(everybody(linear, workload={"fail_clients": [4]}))
        assert isinstance(outcome.error, ClientFailed)
        assert "client 4, round 1, stage train on agent-" in str(outcome.error)
        assert str(outcome.error).endswith("RuntimeError: client 4 has a broken sensor")

    @pytest.mark.parametrize(
        ("kind", "stage", "words", "advice"),
        [
            ("nan_clients", "aggregate", "not finite", "try a smaller learning rate"),
            ("wide_clients", "outgoing", "has shape (6,)", "check what `train` returns"),
        ],
    )
    def test_a_bad_update_names_client_and_array_and_what_to_do(
        self, linear: Make, kind: str, stage: str, words: str, advice: str
    ) -> None:
        for runtime in ("inline", "threads"):
            experiment = everybody(linear, workload={kind: [5]})
            if runtime == "inline":
                with pytest.raises(ClientFailed) as caught:
                    api.run(experiment, keep=False)
                text = str(caught.value)
            else:
                text = str(run_on_fleet(experiment).error)
            assert "client 5" in text and "round 1" in text and f"stage {stage}" in text, text
            assert "array 'w'" in text and words in text and advice in text, text

    @pytest.mark.parametrize("kind", ["nan_clients", "wide_clients", "fail_clients"])
    def test_the_others_are_folded_as_if_the_bad_client_had_not_been_there(self, linear: Make, kind: str) -> None:
        experiment = everybody(linear, workload={kind: [5]}, round=HALF, evaluation={"every": 0})
        bad = run_on_fleet(experiment)
        assert bad.error is None
        failing = everybody(linear, workload={"fail_clients": [5]}, round=HALF, evaluation={"every": 0})
        assert bad.summary.model_sha256 == run_on_fleet(failing).summary.model_sha256
        assert bad.summary.model_sha256 == api.run(experiment, keep=False).summary.model_sha256
        in_processes = everybody(
            linear, workload={kind: [5]}, round=HALF, evaluation={"every": 0}, runtime={"name": "process", "workers": 2}
        )
        assert api.run(in_processes, keep=False).summary.model_sha256 == bad.summary.model_sha256
        assert [sorted(f.client for f in record.failures) for record in bad.history] == [[5], [5]]

    def test_a_whole_group_may_be_missing(self, linear: Make) -> None:
        gone = run_on_fleet(everybody(linear)).history[0].cohort[2:4]
        outcome = run_on_fleet(everybody(linear, workload={"fail_clients": gone}, round=HALF))
        assert outcome.error is None
        assert sorted(failure.client for failure in outcome.history[0].failures) == sorted(gone)

    def test_nobody_answering_is_said(self, linear: Make) -> None:
        outcome = run_on_fleet(
            everybody(linear, workload={"fail_clients": list(range(6))}, round={"quorum_fraction": 0.01})
        )
        assert isinstance(outcome.error, QuorumNotReached) and "6 are missing" in str(outcome.error)


class Slow(ForwardingChannel):
    """A channel whose agent keeps the results of some clients back until it is told."""

    def __init__(self, inner: Channel, clients: set[int], go: threading.Event) -> None:
        super().__init__(inner)
        self._clients, self._go = clients, go
        self._kept: dict[GroupKey, GroupResult] = {}

    def send(self, message: FromAgent) -> None:
        if isinstance(message, GroupResult) and not self._go.is_set() and message.key.round:
            slow = self._clients & {report.client for report in message.reports}
            if slow:
                self._kept[message.key] = message
                return
        while self._go.is_set() and self._kept:
            result = self._kept.popitem()[1]
            for _ in range(2):  # as an agent does to which no acknowledgement comes
                self.inner.send(result)
        self.inner.send(message)


class TestDeadline:
    def run(self, linear: Make, slow: set[int], **round: Any) -> tuple[Outcome, EventLog]:
        go, listener = threading.Event(), EventLog()

        class Release:
            """Lets the late results go once the first round is over."""

            def write(self, event: Any) -> None:
                if isinstance(event, RoundFinished) and event.record.round == 1:
                    go.set()

            def close(self) -> None:
                pass

        experiment = linear(
            rounds=4,
            clients=6,
            cohort=6,
            evaluation={"every": 0},
            workload={"sleep_s": 0.02},
            round={"group_size": 1, "deadline_s": 3.0, **round},
        )
        outcome = run_on_fleet(
            experiment, workers=6, sinks=[Release(), listener], wrap=lambda channel: Slow(channel, slow, go)
        )
        return outcome, listener

    def test_it_closes_the_round_and_late_answers_are_stale(self, linear: Make) -> None:
        outcome, _ = self.run(linear, {2, 3}, quorum_fraction=0.5)
        assert outcome.error is None
        first, *later = outcome.history
        assert sorted(failure.client for failure in first.failures) == [2, 3]
        for failure in first.failures:
            assert (failure.stage, failure.error) == ("deadline", "DeadlineExceeded")
            assert failure.message == "no result within 3 s" and failure.seconds == 3.0
        assert len({failure.node for failure in first.failures} - {""}) == 2, "each by the node that had it"
        assert first.timing.total_s >= 3.0
        assert all(not record.failures for record in later)
        assert sum(record.stale for record in later) == 2

    def test_below_the_quorum_it_fails_with_the_reasons(self, linear: Make) -> None:
        outcome, listener = self.run(linear, {1, 2, 3, 4}, quorum_fraction=0.5)
        assert isinstance(outcome.error, QuorumNotReached)
        text = str(outcome.error)
        assert "needs updates of 3 of 6 clients, but 4 are missing" in text
        assert re.search(r"stage deadline on agent-\d: DeadlineExceeded: no result within 3 s\n", text)
        assert sorted(event.failure.client for event in listener.of(ClientLost)) == [1, 2, 3, 4]

    def test_a_round_that_is_done_does_not_wait_for_it(self, linear: Make) -> None:
        outcome = run_on_fleet(everybody(linear, round={"deadline_s": 100.0}))
        assert outcome.error is None and outcome.summary.seconds < 100.0


class Swallow(Slow):
    """A channel that loses the group of client 3, always."""

    def __init__(self, inner: Channel) -> None:
        super().__init__(inner, set(), threading.Event())

    def receive(self, timeout_s: float) -> ToAgent | None:
        message = self.inner.receive(timeout_s)
        lost = isinstance(message, Group) and message.key.round and any(job.client == 3 for job in message.jobs)
        return None if lost else message


def test_a_group_that_never_arrives_anywhere_is_missing_at_the_deadline(linear: Make) -> None:
    experiment = linear(
        rounds=1,
        clients=4,
        cohort=4,
        evaluation={"every": 0},
        round={"group_size": 1, "quorum_fraction": 0.5, "deadline_s": 0.7},
    )
    outcome = run_on_fleet(experiment, wrap=Swallow)
    assert outcome.error is None
    (failure,) = outcome.history[0].failures
    assert (failure.client, failure.stage) == (3, "deadline")

"""The agent by itself, on a channel that does what the test says."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support_paths import LINEAR, SUPPORT

from fedloom.client import agent as agent_module
from fedloom.client.agent import Agent
from fedloom.client.setup import NodeSetup
from fedloom.core.errors import BadMessage, NotFound, ServerUnreachable, StorageFull, Unauthenticated
from fedloom.core.messages import (
    Ack,
    Cancel,
    FromAgent,
    Goodbye,
    Group,
    GroupKey,
    GroupResult,
    Heartbeat,
    Hello,
    PayloadRef,
    Refusal,
    RunOver,
    RunSpec,
    ToAgent,
    Welcome,
)
from fedloom.core.records import Job, Record
from fedloom.testing.by_hand import sum_of_one
from fedloom.testing.records import model_record


class Script:
    """A channel whose server is the test: `say` puts messages, `sent` and `recycled` tell what the agent did."""

    def __init__(self) -> None:
        self.inbox: deque[ToAgent | Exception] = deque()
        self.sent: list[FromAgent] = []
        self.recycled: list[str] = []
        self.opened: list[Hello] = []
        self.nonce = "one"
        self.closed = self.shared = False
        self.fetch_errors: deque[Exception] = deque()
        self.store_errors: deque[Exception] = deque()
        self.refusal: Exception | None = None
        self.fetching = threading.Event()
        self.let_fetch = threading.Event()
        self.let_fetch.set()

    def say(self, *messages: ToAgent | Exception) -> None:
        self.inbox.extend(messages)

    def open(self, hello: Hello) -> Welcome:
        if self.refusal is not None:
            raise self.refusal
        self.opened.append(hello)
        return Welcome(heartbeat_s=0.05, max_payload_bytes=1 << 30, chunk_bytes=1 << 20, depot_nonce=self.nonce)

    def send(self, message: FromAgent) -> None:
        self.sent.append(message)

    def receive(self, timeout_s: float) -> ToAgent | None:
        if not self.inbox:
            return None
        message = self.inbox.popleft()
        if isinstance(message, Exception):
            raise message
        return message

    def fetch(self, ref: PayloadRef) -> Record:
        self.fetching.set()
        assert self.let_fetch.wait(60)
        if self.fetch_errors:
            raise self.fetch_errors.popleft()
        assert ref.record is not None
        return ref.record

    def store(self, record: Record, run_id: str) -> PayloadRef:
        if self.store_errors:
            raise self.store_errors.popleft()
        return PayloadRef(size=1, record=record, shared="buffer" if self.shared else "")

    def lease(self, record: Record, run_id: str) -> Mapping[str, Mapping[str, Any]]:
        return {g: {n: np.empty(a.shape, a.dtype) for n, a in arrays.items()} for g, arrays in record.groups.items()}

    def recycle(self, run_id: str) -> None:
        self.recycled.append(run_id)

    def close(self) -> None:
        self.closed = True

    def results(self) -> list[GroupResult]:
        return [message for message in self.sent if isinstance(message, GroupResult)]


SPEC = RunSpec(
    run_id="run",
    experiment={"rounds": 9, "clients": 9, "strategy": "fedavg", "workload": {"name": str(LINEAR), "features": 3}},
)
ONE = PayloadRef(size=1, record=Record({"model": {"w": np.ones(3, np.float32)}}))
MODEL = PayloadRef(size=1, record=Record({"model": {"w": np.ones(3, np.float32), "b": np.zeros((), np.float32)}}))


def group(round: int = 1, index: int = 0, exchange: int = 0, client: int = 0, run: str = "run") -> Group:
    key = GroupKey(run, round, exchange, index)
    return Group(key=key, jobs=(Job(round=round, client=client),), inputs={"model": MODEL})


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def agent(script: Script) -> Agent:
    agent = Agent(script, "a")
    agent.connect()
    return agent


def test_it_works_through_what_arrived_one_group_a_step(agent: Agent, script: Script) -> None:
    script.say(SPEC, group(index=0), group(index=1))
    assert agent.step(0) and agent.step(0) and not agent.step(0)
    assert [result.key.group for result in script.results()] == [0, 1]
    assert [report.client for report in script.results()[0].reports] == [0]


def test_results_of_quick_groups_travel_together_but_never_wait_for_the_last(
    agent: Agent, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "GATHER_S", 1000.0)
    script.say(SPEC, *(group(index=index) for index in range(5)))
    reported = [agent.step(0) and len(script.results()) for _ in range(5)]
    # The first goes at once; then they gather while more than one group waits; before the last is begun all are sent.
    assert reported == [1, 1, 1, 4, 5]
    monkeypatch.setattr(agent_module, "GATHER_S", 0.0)
    script.say(*(group(round=2, index=index) for index in range(4)))
    assert [agent.step(0) and len(script.results()) for _ in range(4)] == [6, 7, 8, 9]


def test_gathered_results_are_not_lost_with_the_connection(
    agent: Agent, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "GATHER_S", 1000.0)
    script.say(SPEC, *(group(index=index) for index in range(4)))
    assert agent.step(0) and agent.step(0)
    assert len(script.results()) == 1  # the second is being gathered
    script.sent.clear()
    agent.connect()
    assert [result.key.group for result in script.results()] == [0, 1]


def test_a_group_waits_for_its_experiment_and_the_heartbeat_asks_for_it(agent: Agent, script: Script) -> None:
    script.say(group())
    agent.step(0)
    assert not script.results()
    agent._channel.send(agent._heartbeat())
    assert script.sent[-1] == Heartbeat(groups=(group().key,), missing_runs=("run",))
    script.say(SPEC)
    agent.step(0)
    assert len(script.results()) == 1


def test_a_repeated_group_is_not_done_twice_its_result_is_sent_again(agent: Agent, script: Script) -> None:
    script.say(SPEC, group(), group())
    agent.step(0)
    script.say(group())
    agent.step(0)
    first, again = script.results()
    assert first is again
    script.say(Ack(key=first.key, status="accepted"))
    agent.step(0)
    assert agent._heartbeat() == Heartbeat()


def test_cancelled_groups_are_dropped(agent: Agent, script: Script) -> None:
    script.say(SPEC, group(1, 0), group(1, 1), group(2, 0), Cancel(run_id="run", round=1, exchange=0))
    agent.step(0)
    assert [result.key.round for result in script.results()] == [2]
    assert not agent.step(0)


def test_memory_is_recycled_when_a_later_exchange_begins_and_never_for_an_earlier_one(
    agent: Agent, script: Script
) -> None:
    script.say(SPEC, group(1, exchange=0))
    agent.step(0)
    script.say(group(1, exchange=1))
    agent.step(0)
    assert script.recycled == ["run"]
    script.say(group(1, exchange=0, index=1))  # delayed on its way: exchange 1 is not folded yet
    agent.step(0)
    assert script.recycled == ["run"]
    script.say(group(2, exchange=0))
    agent.step(0)
    assert script.recycled == ["run", "run"]


def test_memory_of_runs_in_turn_is_recycled_for_each_and_when_one_is_over(agent: Agent, script: Script) -> None:
    script.say(SPEC, replace(SPEC, run_id="other"))
    for round in (1, 2):
        for run in ("run", "other"):
            script.say(group(round, run=run))
            agent.step(0)
    assert script.recycled == ["run", "other"]
    script.say(RunOver(run_id="run"), group(3, run="other"))
    agent.step(0)
    assert script.recycled == ["run", "other", "run", "other"]


def test_results_in_memory_that_is_recycled_are_never_sent_again(agent: Agent, script: Script) -> None:
    """A run that is over may be resumed: by then other results lie in that memory."""
    script.shared = True
    script.say(SPEC, replace(SPEC, run_id="other"), group(run="run"), group(run="other"))
    assert agent.step(0) and agent.step(0) and len(script.results()) == 2
    script.say(RunOver(run_id="run"))
    agent.step(0)
    assert agent._heartbeat().groups == (group(run="other").key,)
    script.shared = False
    script.say(group(2, run="other"), RunOver(run_id="other"))
    agent.step(0)
    assert agent._heartbeat().groups == (group(2, run="other").key,), "what lies in no shared memory may be asked for"


def test_the_state_of_clients_stays_at_the_node_until_the_run_cannot_be_resumed(script: Script, tmp_path: Path) -> None:
    """Counting's clients tell how often they were asked before."""
    agent = Agent(script, "a", NodeSetup(states=tmp_path / "states"))
    agent.connect()
    workload = {"name": str(SUPPORT / "counting.py"), "size": 3}
    spec = RunSpec(run_id="run", experiment={**SPEC.experiment, "workload": workload, "round": {"state_home": "node"}})
    seen = []
    for round, over in ((1, None), (2, True), (3, None), (4, False), (5, None)):
        script.say(
            spec, Group(key=GroupKey("run", round, 0, 0), jobs=(Job(round=round, client=2),), inputs={"model": ONE})
        )
        agent.step(0)
        result = script.results()[-1]
        assert result.states == {} and not result.failures
        seen.append(result.reports[0].metrics["seen"].value)
        if over is not None:
            script.say(RunOver(run_id="run", resumable=over))
            agent.step(0)
    assert seen == [0, 1, 2, 3, 0]


def test_a_run_that_ends_while_a_group_is_in_work_is_dropped_after_it(script: Script) -> None:
    agent = Agent(script, "a")
    script.say(SPEC, group(1, 0))
    worker = threading.Thread(target=agent.run)
    script.let_fetch.clear()
    worker.start()
    try:
        assert script.fetching.wait(60)
        script.say(RunOver(run_id="run"))
        _wait(lambda: not script.inbox)
        assert agent._executor.knows("run") and not script.recycled, "its memory is in use"
    finally:
        script.let_fetch.set()
        _wait(lambda: script.recycled == ["run"])
        script.say(Goodbye())
        worker.join(60)
    assert len(script.results()) == 1 and not agent._executor.knows("run")


@pytest.mark.parametrize("where", ["fetch_errors", "store_errors"])
def test_a_connection_lost_under_a_transfer_is_no_clients_failure(agent: Agent, script: Script, where: str) -> None:
    getattr(script, where).append(ServerUnreachable("gone"))
    script.say(SPEC, group())
    with pytest.raises(ServerUnreachable):
        agent.step(0)
    assert not script.results()
    agent.connect()
    assert script.sent[-1] == Heartbeat(groups=(group().key,))
    agent.step(0)
    (result,) = script.results()
    assert [report.client for report in result.reports] == [0] and not result.failures


def test_a_sum_that_cannot_be_sent_fails_its_clients_with_the_reason(agent: Agent, script: Script) -> None:
    script.store_errors.append(StorageFull("no shared memory for a buffer"))
    script.say(SPEC, group())
    agent.step(0)
    (failure,) = script.results()[0].failures
    assert (failure.client, failure.round, failure.stage) == (0, 1, "send")
    assert failure.error == "fedloom.core.errors.StorageFull" and "no shared memory" in failure.message
    assert script.results()[0].total is None


def test_a_group_whose_payload_is_gone_is_put_away_until_it_is_pushed_again(agent: Agent, script: Script) -> None:
    """The server was restarted under it; what it pushes now it offers."""
    script.fetch_errors.append(NotFound("its round may be over"))
    script.say(SPEC, group())
    agent.step(0)
    assert not script.results()
    agent.connect()
    assert script.sent[-1] == Heartbeat(groups=())
    script.say(group())
    agent.step(0)
    (result,) = script.results()
    assert [report.client for report in result.reports] == [0] and not result.failures


def test_a_payload_that_is_gone_twice_is_reported_as_a_failure_of_reading_inputs(agent: Agent, script: Script) -> None:
    script.fetch_errors.extend(NotFound("its round may be over") for _ in range(4))
    script.say(SPEC, group(), group())
    agent.step(0)
    script.say(group())
    agent.step(0)
    (failure,) = script.results()[0].failures
    assert failure.stage == "inputs" and failure.error == "fedloom.core.errors.NotFound"


def test_while_a_long_group_is_in_work_messages_are_taken_and_results_not_repeated(script: Script) -> None:
    agent = Agent(script, "a")
    script.say(SPEC, group(1, 0))
    worker = threading.Thread(target=agent.run)
    script.let_fetch.clear()
    worker.start()
    try:
        assert script.fetching.wait(60)
        script.say(group(1, 1), group(1, 2), Cancel(run_id="other", round=1, exchange=0))
        both = {group(1, index).key for index in (0, 1, 2)}
        _wait(lambda: any(isinstance(m, Heartbeat) and set(m.groups) == both for m in list(script.sent)))
        script.say(Ack(key=group(1, 2).key, status="duplicate"))
        _wait(
            lambda: isinstance(script.sent[-1], Heartbeat) and set(script.sent[-1].groups) == both - {group(1, 2).key}
        )
    finally:
        script.let_fetch.set()
        _wait(lambda: {result.key.group for result in script.results()} == {0, 1})
        script.say(Goodbye())
        worker.join(60)
    assert not worker.is_alive() and script.closed


def test_a_goodbye_ends_it_even_when_the_connection_ends_with_it(script: Script) -> None:
    script.say(Goodbye(reason="the run is over"), ServerUnreachable("closed"))
    Agent(script, "a").run()
    assert len(script.opened) == 1 and script.closed


def test_a_lost_connection_is_opened_again_with_results_and_groups_kept(script: Script) -> None:
    script.say(SPEC, group(1, 0))
    agent = Agent(script, "a")
    agent.connect()
    agent.step(0)
    script.say(group(1, 1), ServerUnreachable("cut"))
    with pytest.raises(ServerUnreachable):
        agent.step(0)
    agent.connect()
    heartbeat, again = script.sent[-2:]
    assert isinstance(heartbeat, Heartbeat) and set(heartbeat.groups) == {group(1, 0).key, group(1, 1).key}
    assert isinstance(again, GroupResult) and again.key == group(1, 0).key
    assert script.opened[0].session != script.opened[1].session


def test_a_restarted_server_has_another_memory_so_the_agent_starts_over(agent: Agent, script: Script) -> None:
    script.say(SPEC, group(1, 0), group(1, 1))
    agent.step(0)
    script.nonce = "two"
    agent.connect()
    assert script.sent[-1] == Heartbeat()


def test_a_refusal_ends_it_and_closes_the_channel(script: Script) -> None:
    script.refusal = Unauthenticated("no token")
    with pytest.raises(Unauthenticated, match="no token"):
        Agent(script, "a").run()
    assert script.closed


def test_it_gives_up_after_the_time_it_was_given(script: Script) -> None:
    script.refusal = ServerUnreachable("nobody there")
    with pytest.raises(ServerUnreachable, match="nobody there"):
        Agent(script, "a", give_up_s=0.0).run()
    assert script.closed


def test_it_says_once_why_it_waits(script: Script, caplog: pytest.LogCaptureFixture) -> None:
    script.refusal = ServerUnreachable("nobody there")
    with pytest.raises(ServerUnreachable):
        Agent(script, "a", give_up_s=0.5).connect()
    assert [record.getMessage() for record in caplog.records] == ["node a: nobody there; retrying until it responds"]


def test_stop_ends_an_agent_that_looks_for_a_server(script: Script) -> None:
    script.refusal = ServerUnreachable("nobody there")
    agent = Agent(script, "a")
    worker = threading.Thread(target=agent.run)
    worker.start()
    agent.stop()
    worker.join(60)
    assert not worker.is_alive()


def test_an_experiment_that_names_nothing_installed_here_fails_the_clients_not_the_agent(
    agent: Agent, script: Script
) -> None:
    spec = RunSpec(run_id="run", experiment={**SPEC.experiment, "workload": "nowhere"})
    script.say(spec, group())
    agent.step(0)
    (failure,) = script.results()[0].failures
    assert failure.stage == "load" and "nowhere" in failure.message and "available" in failure.message


def test_a_rule_that_is_not_installed_fails_the_clients_not_the_agent(agent: Agent, script: Script) -> None:
    script.say(SPEC, Group(key=group().key, jobs=group().jobs, inputs={"model": MODEL}, rules=("fedporx",)))
    agent.step(0)
    (failure,) = script.results()[0].failures
    assert failure.stage == "load" and "did you mean 'fedprox'" in failure.message


def test_sums_of_a_hand_made_group_are_the_trainings(agent: Agent, script: Script) -> None:
    """Guards the fixtures: two clients' weighted sum, one after the other."""
    script.say(
        SPEC, Group(key=group().key, jobs=(Job(round=1, client=1), Job(round=1, client=2)), inputs={"model": MODEL})
    )
    agent.step(0)
    (result,) = script.results()
    assert result.total is not None and result.total.record is not None
    assert result.total.record.info["count"] == 2
    assert result.total.record.info["weight"] == sum(20 + client % 7 for client in (1, 2))
    assert sum_of_one(0).info["weight"] == 1.0 and model_record().num_elements == 3


def _wait(condition: Any) -> None:
    from fedloom.testing.fleet import wait_until

    wait_until(condition)


def refusing(script: Script, monkeypatch: pytest.MonkeyPatch, *, also_failures: bool = False) -> None:
    """Have the channel refuse to encode results with a report, as gRPC's does."""
    send = script.send

    def encode(message: FromAgent) -> None:
        if isinstance(message, GroupResult) and (message.reports or also_failures):
            raise BadMessage("a message cannot be encoded: ValueError: negative")
        send(message)

    monkeypatch.setattr(script, "send", encode)


def test_a_result_that_cannot_be_encoded_is_its_clients_failure(
    agent: Agent, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing(script, monkeypatch)
    script.say(SPEC, group(client=4))
    agent.step(0)
    (result,) = script.results()
    (failure,) = result.failures
    assert (failure.client, failure.stage, result.total) == (4, "send", None)
    assert failure.message == "a message cannot be encoded: ValueError: negative"
    agent.connect()  # what is sent again is the failure
    assert script.results() == [result, result]


def test_where_not_even_the_failure_can_be_sent_the_group_is_refused(
    agent: Agent, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing(script, monkeypatch, also_failures=True)
    script.say(SPEC, group())
    agent.step(0)
    assert [message.key for message in script.sent if isinstance(message, Refusal)] == [group().key]
    assert agent._heartbeat() == Heartbeat()


def test_a_result_that_the_server_refuses_is_not_sent_again(agent: Agent, script: Script) -> None:
    script.say(SPEC, group(client=4))
    agent.step(0)
    script.say(BadMessage("report.info: not JSON"), Goodbye(reason="done"))
    script.sent.clear()
    agent.run()
    first, second = script.results()  # of the connection that it broke, and of the next one
    assert first.reports and not second.reports
    assert second.failures[0].client == 4 and "the connection broke each time it was sent" in second.failures[0].message


def test_a_result_with_which_every_connection_breaks_is_dropped_at_last(
    agent: Agent, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    script.say(SPEC, group(client=4))
    agent.step(0)
    script.say(*[ServerUnreachable("broke")] * 6, Goodbye(reason="done"))
    script.sent.clear()
    agent.run()
    assert [bool(result.reports) for result in script.results()] == [True] * 3 + [False] * 4
    lost = [record for record in caplog.records if "lost the connection" in record.message]
    assert len(lost) == 1  # six losses within seconds


def test_connections_that_break_at_once_are_made_ever_more_rarely(script: Script) -> None:
    agent = Agent(script, "a")
    pauses = []
    for _ in range(8):
        agent._connection.opened()
        agent._connection.lost(ServerUnreachable("broke"))
        pauses.append(agent._connection.pause_s(0.2, 2.0))
    assert pauses == [0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0, 2.0]

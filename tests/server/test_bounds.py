"""What one member can make a server hold, write or say: uploads, reports, labels, runs, refusals."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from members import members

from fedloom.client.control import ControlClient
from fedloom.core.clock import SystemClock
from fedloom.core.config import Experiment
from fedloom.core.errors import BadMessage, LimitExceeded, NotFound
from fedloom.core.events import ClientLost, NodeRefused, RoundFinished, RoundStarted
from fedloom.core.history import RoundRecord
from fedloom.core.messages import GroupKey, Heartbeat, Hello, Refusal
from fedloom.core.records import ClientFailure, ClientReport, Mean
from fedloom.proto.v1 import codec
from fedloom.proto.v1 import fleet_pb2 as pb
from fedloom.server import metrics
from fedloom.server.access.calls import Pace
from fedloom.server.fleet import node_table
from fedloom.server.fleet.coordinator import Coordinator
from fedloom.server.fleet.dispatch import RETRY_S
from fedloom.server.fleet.open_exchange import UPLOAD_BYTES, UPLOAD_FACTOR, OpenExchange
from fedloom.server.fleet.payloads import PayloadStore
from fedloom.server.metrics import PrometheusSink
from fedloom.server.rounds.record import FURTHER, MAX_NAMES, sum_metrics
from fedloom.testing.by_hand import open_exchange, planned_groups
from fedloom.testing.fleet import wait_until
from fedloom.testing.records import model_record

Make = Callable[..., Experiment]


class Hands(SystemClock):
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Hands:
    return Hands()


@pytest.fixture
def fleet(clock: Hands) -> Iterator[Coordinator]:
    made = Coordinator(PayloadStore(None), heartbeat_s=0.02, grace_s=0.1, lost_after_s=1e9, clock=clock)
    yield made
    made.close()


def attached(fleet: Coordinator, name: str = "n") -> None:
    fleet.register(Hello(node=name, session="s"), "remote")
    fleet.attach(name, "s")
    fleet.receive(name, "s", Heartbeat())


def wait_for_work(fleet: Coordinator, opened: OpenExchange) -> None:
    wait_until(lambda: "n" in fleet.holders(opened).values())


def test_uploads_are_for_groups_and_no_larger_than_they_can_need(fleet: Coordinator) -> None:
    attached(fleet)
    with pytest.raises(NotFound, match="has no unanswered group"):
        fleet.upload_limit("n")
    model = model_record(1000)
    with open_exchange(fleet, planned_groups(1.0), inputs={"model": model}) as opened:
        wait_until(lambda: "n" in fleet.holders(opened).values())
        size = sum(offer.size for offer in opened.inputs.values())
        limit = fleet.upload_limit("n")
        assert limit == UPLOAD_BYTES + UPLOAD_FACTOR * 2 * size, "one client, and their sum"
        digest = hashlib.sha256(b"").hexdigest()
        for announced in (limit + 1, 1 << 40):
            with pytest.raises(LimitExceeded, match=rf"exceeds the limit of {limit}, which is for the groups"):
                fleet.payloads.upload_offset("n", digest, announced, limit)
        assert fleet.payloads.upload_offset("n", digest, limit, limit) == 0
    with pytest.raises(NotFound):
        fleet.upload_limit("n")


def test_a_later_exchange_with_small_inputs_may_still_answer_with_the_model(fleet: Coordinator) -> None:
    attached(fleet)
    limits = []
    for index, size in enumerate((10_000_000, 1)):
        with open_exchange(fleet, planned_groups(1.0), index=index, inputs={"model": model_record(size)}) as opened:
            fleet.receive("n", "s", Heartbeat())  # nothing is left of the exchange before
            wait_for_work(fleet, opened)
            limits.append(fleet.upload_limit("n"))
    assert limits[0] == limits[1]


def test_what_a_gone_node_has_uploaded_is_dropped(
    fleet: Coordinator, clock: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_table, "UPLOADS_S", 5.0)
    attached(fleet)
    data = bytes(1000)
    fleet.payloads.upload("n", hashlib.sha256(data).hexdigest(), 1000, 0, [data])
    fleet.payloads.upload_offset("n", "0" * 64, 1 << 30)
    fleet.detach("n", "s", "its connection broke")
    clock.now += 4.0
    assert len(fleet.payloads._uploads) == 2, "it may come back and go on"
    clock.now += 2.0
    wait_until(lambda: not fleet.payloads._uploads)


def test_a_node_that_refuses_at_once_again_and_again_is_asked_once_a_second(fleet: Coordinator, clock: Hands) -> None:
    attached(fleet)
    with open_exchange(fleet, planned_groups(1.0)) as opened:
        key = GroupKey("run", 1, 0, 0)
        for _ in range(3):
            wait_until(lambda: "n" in fleet.holders(opened).values())
            fleet.receive("n", "s", Refusal(key=key, kind="hours", reason="no", retry_s=1e-6))
            clock.now += 0.9 * RETRY_S
            fleet.receive("n", "s", Heartbeat())
            assert not fleet.holders(opened)
            clock.now += 0.2 * RETRY_S


@pytest.mark.parametrize(
    ("report", "text"),
    [
        (pb.Report(metrics=[pb.Metric(name=f"m{n}") for n in range(100_000)]), "at most 256 metrics"),
        (pb.Report(info_json='{"x": "' + "y" * (5 << 20) + '"}'), "got 0 and 5242889"),
        (pb.Report(metrics=[pb.Metric(name="m" * 10_000)]), "1 to 256 printable characters"),
    ],
)
def test_reports_are_bounded(report: pb.Report, text: str) -> None:
    message = pb.FromAgent(result=pb.GroupResult(key=pb.GroupKey(run_id="r"), reports=[report]))
    with pytest.raises(BadMessage, match=text):
        codec.read_from_agent(message, "n")


def test_a_round_has_so_many_metrics_and_no_more() -> None:
    """Each report within its limits, each with names of its own: a line of `rounds.jsonl` stays short."""
    shared = Mean(2.0, 1.0)
    reports = [
        ClientReport(
            client=client, num_examples=1, seconds=0.1,
            metrics={"loss": shared, **{f"m{client}-{n}" + "x" * 200: Mean(1.0, 1.0) for n in range(255)}},
        )
        for client in range(100)
    ]  # fmt: skip
    total, left_out = sum_metrics(reports)
    assert len(total) == MAX_NAMES and total["loss"] == Mean(200.0, 100.0), "what all report is complete"
    assert left_out == {FURTHER: list(range(4, 100))} and FURTHER not in total
    few = sum_metrics([replace(report, metrics={"loss": shared}) for report in reports])
    assert few == ({"loss": Mean(200.0, 100.0)}, {})


def test_what_a_node_says_of_itself_and_why_it_refuses_is_short() -> None:
    with pytest.raises(BadMessage, match="at most 4096 characters"):
        codec.read_hello(pb.RegisterRequest(node="n", session="s", facts_json='{"x": "' + "y" * 16_000 + '"}'))
    refusal = pb.Refusal(key=pb.GroupKey(run_id="r"), kind="hours", reason="x" * 60_000)
    read = codec.read_from_agent(pb.FromAgent(refusal=refusal), "n")
    assert isinstance(read, Refusal) and len(read.reason) == 2000


def series(sink: PrometheusSink) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in sink.registry.collect()
        for sample in family.samples
    }


def test_what_nodes_say_makes_no_labels() -> None:
    sink = PrometheusSink()
    sink.write(RoundStarted(run_id="r", round=1, cohort=1))
    for number in range(500):
        error = "RuntimeError" if number == 0 else f"x{number}"
        failure = ClientFailure(client=0, round=1, stage=f"y{number}", error=error, message="", traceback="", node="n")
        sink.write(ClientLost(run_id="r", failure=failure))
        sink.write(NodeRefused(run_id="r", node="n", kind=f"z{number}", round=1, reason=""))
    record = RoundRecord.model_construct(**_record(), evaluation={f"m{n}": 1.0 for n in range(100_000)})
    sink.write(RoundFinished(run_id="r", record=record))
    labels = {value for name, pairs in series(sink) if "created" not in name for _, value in pairs}
    assert {"RuntimeError", "other"} <= labels and not {"x5", "y5", "z5"} & labels
    assert sum(name == "fedloom_evaluation" for name, _ in series(sink)) == metrics.MAX_METRICS
    assert len(series(sink)) < 250


def _record() -> dict[str, Any]:
    from fedloom.core.history import Timing, Traffic

    return {
        "round": 1, "client_seconds": {}, "stale": 0, "duplicates": 0, "nodes": {},
        "timing": Timing(), "traffic": Traffic(),
    }  # fmt: skip


def test_series_of_old_runs_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_RUNS", 3)
    sink = PrometheusSink()
    for number in range(10):
        sink.write(RoundStarted(run_id=f"r{number}", round=1, cohort=1))
    runs = {value for _, pairs in series(sink) for key, value in pairs if key == "run"}
    assert runs == {"r7", "r8", "r9"}


def test_submissions_of_a_user_have_a_pace() -> None:
    now = [0.0]
    pace = Pace(3, 10.0, "runs submitted by", lambda: now[0])
    for _ in range(3):
        pace.enter("ann")
    with pytest.raises(LimitExceeded, match="runs submitted by 'ann': limit of 3 in a burst exceeded; retry in 10 s"):
        pace.enter("ann")
    pace.enter("bob")
    now[0] += 10.0
    pace.enter("ann")
    with pytest.raises(LimitExceeded):
        pace.enter("ann")
    now[0] += 1e6
    for _ in range(3):
        pace.enter("ann")
    assert math.isclose(pace._used["ann"][0], 3.0)


def test_a_user_who_submits_without_end_is_stopped_and_an_administrator_is_not(
    tmp_path: Path, linear: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedloom.server.access.submission.MAX_SUBMISSIONS", 3)
    experiment = linear(rounds=1, workload={"name": "image_classification"})
    with members(tmp_path) as fleet:
        user = fleet.joined("ann", "user")
        with ControlClient(fleet.address, identity=user) as control:
            with pytest.raises(LimitExceeded, match="runs submitted by 'ann'"):
                for _ in range(4):
                    control.submit(experiment)
            assert len(control.runs()) == 3
        with ControlClient(fleet.address, identity=fleet.admin) as control:
            for _ in range(4):
                control.submit(experiment)


def test_a_node_that_begins_session_after_session_has_to_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedloom.client.grpc_channel import GrpcChannel
    from fedloom.core.errors import ServerUnreachable
    from fedloom.server.access import calls

    monkeypatch.setattr(calls, "SESSIONS", 3)
    monkeypatch.setattr(calls, "SESSION_S", 600.0)
    with members(tmp_path) as fleet:
        identity = fleet.joined("n")
        refused = pytest.raises(
            ServerUnreachable, match=r"calls of Fleet/Register by 'n': limit of 3 in a burst exceeded"
        )
        with contextlib.closing(GrpcChannel(fleet.address, identity=lambda: identity)) as channel, refused:
            for number in range(5):
                channel.open(Hello(node="n", session=f"s{number}"))


def test_calls_of_a_member_are_counted_and_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedloom.client.link import connect
    from fedloom.server.access import calls

    monkeypatch.setattr(calls, "MAX_OPEN", 2)
    with members(tmp_path) as fleet:
        user = fleet.joined("ann", "user")
        with contextlib.closing(connect(fleet.address, user)) as channel:
            submit = channel.stream_unary("/fedloom.proto.v1.Control/Submit", None, None)
            never = _Never()
            held = [submit.future(never, timeout=60) for _ in range(4)]
            wait_until(lambda: sum(call.done() for call in held) == 2)
            assert {call.code().name for call in held if call.done()} == {"RESOURCE_EXHAUSTED"}
            for call in held:
                call.cancel()  # type: ignore[no-untyped-call]  # grpc-stubs leave it without types
        with ControlClient(fleet.address, identity=user) as control:
            wait_until(lambda: control.runs() == [])


class _Never:
    """A request that never comes."""

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        import time

        time.sleep(3600)
        raise AssertionError

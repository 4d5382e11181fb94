"""Values to wire messages and back, and what strangers may send instead."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.core.errors import BadMessage, FedloomError
from fedloom.core.messages import (
    MAX_NAME,
    MAX_TEXT,
    Ack,
    Cancel,
    Goodbye,
    Group,
    GroupKey,
    GroupResult,
    Heartbeat,
    Hello,
    PayloadRef,
    RunOver,
    RunSpec,
    Welcome,
)
from fedloom.core.records import ClientFailure, ClientReport, Job, Mean
from fedloom.proto.v1 import codec
from fedloom.proto.v1 import fleet_pb2 as pb

KEY = GroupKey("run", 7, 1, 3)
REFS = (
    PayloadRef(size=3, inline=b"abc"),
    PayloadRef(size=9, shared="0a-1"),
    PayloadRef(size=1 << 40, sha256="0" * 64),
    PayloadRef(size=9, shared="0a-1", sha256="0" * 64, pinned=True),
)


@pytest.mark.parametrize(
    "message",
    [
        RunSpec(run_id="run", experiment={"rounds": 3, "strategy": {"name": "fedavg"}}),
        Group(
            key=KEY,
            jobs=(
                Job(round=7, client=0, knobs={"mu": 0.1}),
                Job(round=7, client=2**40, kind="evaluate", inputs=("model", "mask"), cached_inputs=("mask",)),
            ),
            inputs={"model": REFS[0], "mask": REFS[1]},
            knobs={"deep": {"list": [1, None, "ä"]}},
            accumulator="separate",
            rules=("fedprox",),
            states={0: REFS[2]},
        ),
        Group(key=KEY, jobs=(Job(round=7, client=0, inputs=()),)),
        Ack(key=KEY, status="rejected", message="because"),
        Cancel(run_id="run", round=7, exchange=65536),
        Goodbye(reason="shutting down"),
        RunOver(run_id="run"),
        RunOver(run_id="run", resumable=True),
    ],
)
def test_what_the_server_says_arrives(message: object) -> None:
    wire = codec.to_agent_message(message).SerializeToString()  # type: ignore[arg-type]
    assert codec.read_to_agent(pb.ToAgent.FromString(wire)) == message


@pytest.mark.parametrize(
    "message",
    [
        GroupResult(
            key=KEY,
            total=REFS[0],
            reports=(
                ClientReport(
                    client=4, num_examples=9, seconds=0.25, metrics={"loss": Mean(1.5, 9)}, info={"rank": [1]},
                    bytes_down=1, bytes_up=2, params_down=3, params_up=4, num_trained=1, num_retrained=1,
                ),
            ),
            failures=(
                ClientFailure(
                    client=5, round=7, stage="train", error="OSError", message="no", traceback="t", node="n", seconds=1,
                    bytes_down=4096,
                ),
            ),
            states={4: REFS[1]},
            busy_s=1.25,
        ),
        GroupResult(key=KEY, total=None),
        Heartbeat(groups=(KEY, KEY._replace(group=4)), missing_runs=("a", "b")),
        Heartbeat(),
        Goodbye(),
    ],
)  # fmt: skip
def test_what_an_agent_says_arrives(message: object) -> None:
    wire = codec.from_agent_message(message).SerializeToString()  # type: ignore[arg-type]
    assert codec.read_from_agent(pb.FromAgent.FromString(wire), "n") == message


def test_introductions_arrive() -> None:
    hello = Hello(node="n", session="s", facts={"cores": 4})
    assert codec.read_hello(pb.RegisterRequest.FromString(codec.hello_message(hello).SerializeToString())) == hello
    welcome = Welcome(heartbeat_s=2.5, max_payload_bytes=1 << 34, chunk_bytes=1 << 20, depot_path="/d", depot_nonce="x")
    assert codec.read_welcome(codec.welcome_message(welcome)) == welcome


def test_long_texts_of_a_failure_are_cut_its_last_lines_kept() -> None:
    failure = ClientFailure(
        client=1, round=7, stage="train", error="E" * 999, message="m" * 10**6, traceback="x" * 10**6 + "the end"
    )
    wire = codec.from_agent_message(GroupResult(key=KEY, total=None, failures=(failure,)))
    (read,) = codec.read_from_agent(wire, "n").failures  # type: ignore[union-attr]
    assert wire.ByteSize() < 3 * MAX_TEXT
    assert read.traceback.endswith("the end") and len(read.message) == MAX_TEXT and len(read.error) == MAX_NAME


def _result(**fields: object) -> pb.FromAgent:
    return pb.FromAgent(result=pb.GroupResult(key=pb.GroupKey(run_id="run"), **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.FromAgent(), "kind None"),
        (pb.FromAgent(result=pb.GroupResult()), "run_id"),
        (pb.FromAgent(result=pb.GroupResult(key=pb.GroupKey(run_id="a\nb"))), "run_id"),
        (pb.FromAgent(heartbeat=pb.Heartbeat(held=[pb.GroupKey(run_id="x" * 257)])), "run_id"),
        (_result(busy_s=math.nan), "busy_s"),
        (_result(busy_s=-1.0), "busy_s"),
        (_result(total=pb.Payload(size=4, inline=b"abc")), "payload.inline has 3 bytes, but payload.size is 4"),
        (_result(reports=[pb.Report(seconds=math.inf)]), "report.seconds"),
        (_result(reports=[pb.Report(info_json="{")]), "report.info: not JSON"),
        (_result(reports=[pb.Report(info_json="[1]")]), "report.info: expected a JSON object, got a list"),
        (_result(reports=[pb.Report(info_json="[" * 100_000)]), "report.info: not JSON"),
        (_result(reports=[pb.Report(metrics=[pb.Metric(name="")])]), "metric"),
        (_result(failures=[pb.Failure(stage="")]), "failure.stage"),
        (_result(failures=[pb.Failure(stage="train", seconds=-math.inf)]), "failure.seconds"),
    ],
)
def test_a_malformed_message_names_the_field(message: pb.FromAgent, field: str) -> None:
    with pytest.raises(BadMessage, match=field):
        codec.read_from_agent(message, "n")


@pytest.mark.parametrize("name", ["", "x" * 257, "a\x00b", "line\nbreak", "bell\x07"])
@pytest.mark.parametrize("field", ["node", "session"])
def test_names_are_short_and_printable(name: str, field: str) -> None:
    request = pb.RegisterRequest(**{"protocol": 1, "node": "n", "session": "s", field: name})  # type: ignore[arg-type]
    with pytest.raises(BadMessage, match=field):
        codec.read_hello(request)


def test_a_message_of_a_newer_server_is_named() -> None:
    with pytest.raises(BadMessage, match="newer than this agent"):
        codec.read_to_agent(pb.ToAgent())


# Any bytes at all

texts = st.text(max_size=300)
floats = st.floats()
payloads = st.builds(
    pb.Payload,
    size=st.integers(0, 2**64 - 1),
    inline=st.binary(max_size=20),
    shared=texts,
    sha256=texts,
)
keys = st.builds(
    pb.GroupKey,
    run_id=texts,
    round=st.integers(0, 2**32 - 1),
    exchange=st.integers(0, 9),
    index=st.integers(0, 2**32 - 1),
)
reports = st.builds(
    pb.Report,
    client=st.integers(-(2**63), 2**63 - 1),
    num_examples=st.integers(0, 2**64 - 1),
    seconds=floats,
    info_json=texts,
    metrics=st.lists(st.builds(pb.Metric, name=texts, sum=floats, weight=floats), max_size=3),
)
failures = st.builds(pb.Failure, client=st.integers(0, 9), stage=texts, error=texts, message=texts, seconds=floats)
results = st.builds(
    pb.GroupResult,
    key=keys,
    total=payloads,
    reports=st.lists(reports, max_size=3),
    failures=st.lists(failures, max_size=3),
    states=st.dictionaries(st.integers(-9, 9), payloads, max_size=2),
    busy_s=floats,
)
anything = st.one_of(
    st.builds(lambda result: pb.FromAgent(result=result), results),
    st.builds(
        lambda held, missing: pb.FromAgent(heartbeat=pb.Heartbeat(held=held, missing_runs=missing)),
        st.lists(keys, max_size=4),
        st.lists(texts, max_size=3),
    ),
    st.builds(lambda reason: pb.FromAgent(goodbye=pb.Goodbye(reason=reason)), texts),
    st.just(pb.FromAgent()),
)


@settings(max_examples=150, deadline=None)
@given(anything)
def test_whatever_an_agent_sends_is_a_message_or_a_bad_message(message: pb.FromAgent) -> None:
    try:
        read = codec.read_from_agent(message, "n")
    except FedloomError as exc:
        assert isinstance(exc, BadMessage)
    else:
        assert isinstance(read, GroupResult | Heartbeat | Goodbye)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_a_message_a_bad_message_or_no_protobuf(data: bytes) -> None:
    def of_an_agent() -> None:
        codec.read_from_agent(pb.FromAgent.FromString(data), "n")

    def of_a_hello() -> None:
        codec.read_hello(pb.RegisterRequest.FromString(data))

    for read in (of_an_agent, of_a_hello):
        try:
            read()
        except Exception as exc:
            assert type(exc).__name__ == "DecodeError" or isinstance(exc, BadMessage)
